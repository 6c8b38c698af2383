"""Correct verdicts for the number of comparisons: of many, some look like a difference by chance."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import TypeVar

Name = TypeVar("Name", bound=Hashable)

ALPHA = 0.05
"""The chance that any verdict of a family is wrong where nothing differs."""


def holm(p_values: Mapping[Name, float | None]) -> dict[Name, float | None]:
    """Return p-values adjusted for their number: those up to 0.05 are all right together with 95 %.

    Parameters
    ----------
    p_values : mapping of name to float or None
        One per comparison of a family; None where there is none, which counts as no comparison.

    Returns
    -------
    dict of name to float or None
        In the order of ``p_values``.

    Notes
    -----
    Holm's step-down procedure (Scandinavian Journal of Statistics 6, 1979): the i-th smallest of m is multiplied by m - i + 1, and
    none becomes smaller than the one before it. It needs no independence of the comparisons, and rejects whatever Bonferroni's rejects.

    Examples
    --------
    >>> holm({"a": 0.01, "b": 0.5, "c": 0.03})
    {'a': 0.03, 'b': 0.5, 'c': 0.06}
    """
    known = sorted((p, order, name) for order, (name, p) in enumerate(p_values.items()) if p is not None)
    adjusted: dict[Name, float | None] = dict.fromkeys(p_values)
    largest = 0.0
    for rank, (p, _, name) in enumerate(known):
        largest = max(largest, min(1.0, p * (len(known) - rank)))
        adjusted[name] = largest
    return adjusted


def confidence_of(p: float, adjusted: float) -> float:
    """Return the confidence of the interval that leaves out 0 exactly if ``adjusted`` is at most 0.05.

    Parameters
    ----------
    p, adjusted : float
        A p-value, and what :func:`holm` made of it.

    Notes
    -----
    The interval of confidence 1 - c leaves out 0 exactly if p <= c; with c = 0.05 * p / adjusted that is adjusted <= 0.05.

    Examples
    --------
    >>> confidence_of(0.01, 0.05)
    0.99
    """
    return 1 - ALPHA * (p / adjusted) if adjusted > 0 else 1 - ALPHA
