"""What one variant changes against another: paired where they can be paired."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from moesim.study.batches import batches, joined
from moesim.study.paired import Estimated, Ratio, difference, relative, unpaired, unpaired_relative
from moesim.study.played import Series

BETTER, WORSE, UNDECIDED = "better", "worse", "not distinguishable"
"""The verdicts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Apart:
    """How far two variants are apart in one metric: in its unit, and as a part of the base (None where that is 0)."""

    absolute: Estimated
    relative: Ratio | None
    paired: bool


def apart(of: Series, base: Series) -> Apart:
    """Estimate the difference ``of - base`` of one metric.

    Parameters
    ----------
    of, base : Series
        Pieces of evidence with the same labels (seeds, or blocks of the same recording) are pairs. Without common labels, or when one is
        several runs and the other one run, nothing is paired.

    Notes
    -----
    Blocks of one run are joined into batches by their *differences* (:func:`moesim.study.batches.batches`): what both policies
    share, such as a heavy step, cancels before anything is called correlated.
    """
    common = [label for label in of.labels if label in set(base.labels)]
    if of.serial != base.serial or not common:
        first, second = of.estimate(), base.estimate()
        return Apart(absolute=unpaired(first, second), relative=unpaired_relative(first, second), paired=False)
    mine, others = _at(of, common), _at(base, common)
    values, below = of.values[mine], base.values[others]
    weights = (of.weights[mine] + base.weights[others]) / 2
    if of.serial:
        parts = batches(values - below, weights)
        (values, sums), (below, _) = joined(values, weights, parts), joined(below, weights, parts)
        weights = sums
    return Apart(absolute=difference(values, below, weights), relative=relative(values, below, weights), paired=True)


def verdict(value: float, better: str, *, differs: bool) -> str:
    """Return ``better``, ``worse`` or ``not distinguishable``.

    Parameters
    ----------
    value : float
        Variant minus baseline.
    better : str
        The direction of the metric: ``lower``, ``higher`` or ``neither``.
    differs : bool
        Whether the difference is told from chance after correction for many comparisons.

    Notes
    -----
    Of a metric without a direction nobody can say which of two values is better: it is never more than ``not distinguishable`` as to that,
    and whether it differs stands beside the verdict.
    """
    if not differs or value == 0 or better not in {"lower", "higher"}:
        return UNDECIDED
    return BETTER if (value < 0) == (better == "lower") else WORSE


def _at(found: Series, labels: list[int]) -> np.ndarray:
    place = {label: index for index, label in enumerate(found.labels)}
    return np.array([place[label] for label in labels])
