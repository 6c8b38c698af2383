"""Errors on rows that a fit did not see: groups of rows, or single ones, left out in turn."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from moesim.base.errors import CalibrationError
from moesim.facts.arrays import Floats, frozen
from moesim.models.fitted.rows import Rows, count, each, take

M = TypeVar("M")


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldBack:
    """Predictions of rows by fits that did not see their group; NaN where the other rows allowed no fit, with the reason by group."""

    values: Floats
    reasons: Mapping[str, str]


def leave_group_out(rows: Rows, groups: NDArray[np.str_], fit: Callable[[Rows], M], predict: Callable[[M, Rows], Floats]) -> HeldBack:
    """Predict each group of rows from a fit to all others.

    Parameters
    ----------
    rows : Rows
        n of them.
    groups : str array [n]
        Labels; see :func:`moesim.models.fitted.rows.labels`.
    fit : callable
        From rows to a model; may raise :class:`~moesim.base.errors.CalibrationError`.
    predict : callable
        From a model and rows to Floats, seconds.

    Returns
    -------
    HeldBack

    Raises
    ------
    CalibrationError
        If there is only one group.
    """
    masks = each(rows, groups)
    if len(masks) < 2:
        raise CalibrationError(f"all {count(rows)} rows belong to one group ({next(iter(masks), 'none')}): nothing can be held back")
    values = np.full(count(rows), np.nan)
    reasons: dict[str, str] = {}
    for label, mask in masks.items():
        try:
            values[mask] = predict(fit(take(rows, ~mask)), take(rows, mask))
        except CalibrationError as error:
            reasons[label] = str(error)
    return HeldBack(values=frozen(values), reasons=reasons)


def leave_one_out(rows: Rows, fit: Callable[[Rows], M], predict: Callable[[M, Rows], Floats]) -> HeldBack:
    """Predict each row from a fit to all others; as :func:`leave_group_out` with every row a group."""
    return leave_group_out(rows, np.asarray([f"row {index}" for index in range(count(rows))]), fit, predict)
