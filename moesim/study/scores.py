"""How far predictions are from measurements: errors, order, ratios, and whether intervals hold what they promise."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moesim.facts.arrays import Bools, Floats, Ints

NOISE = 0.015
"""Relative standard error of a measurement whose table says nothing of its spread: nccl-tests repeats within 1 % at the median."""

SIGMAS = 2.0
"""Two measurements are told apart when they differ by this many standard errors of their difference."""


def errors_of(measured: Floats, predicted: Floats, quantity: str) -> Floats:
    """Return signed errors, below 0 where the prediction is too small.

    In per cent of the measurement for a ``time`` and for a ``count`` (there of 1 at least), in thousandths for a ``fraction``.
    """
    if quantity == "fraction":
        return np.asarray((predicted - measured) * 1e3)
    if quantity == "count":
        return np.asarray((predicted - measured) / np.maximum(measured, 1.0) * 100.0)
    return np.asarray((predicted / measured - 1.0) * 100.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Errors:
    """Of n rows: mean, median and 90th percentile of the absolute error, and the mean of the signed one; NaN of no rows."""

    n: int
    mape: float
    median_ape: float
    p90_ape: float
    bias: float
    worst: float


def summary_of(errors: Floats) -> Errors:
    """Summarise signed errors; NaN is left out."""
    known = errors[np.isfinite(errors)]
    if not len(known):
        return Errors(n=0, mape=np.nan, median_ape=np.nan, p90_ape=np.nan, bias=np.nan, worst=np.nan)
    size = np.abs(known)
    return Errors(
        n=len(known),
        mape=float(size.mean()),
        median_ape=float(np.median(size)),
        p90_ape=float(np.quantile(size, 0.9)),
        bias=float(known.mean()),
        worst=float(size.max()),
    )


def coverage_of(measured: Floats, low: Floats, high: Floats) -> tuple[int, float]:
    """Return how many rows have an interval, and the share of them that lie in it (NaN of none)."""
    given = np.isfinite(low) & np.isfinite(high) & np.isfinite(measured)
    if not np.any(given):
        return 0, float("nan")
    inside = (measured[given] >= low[given]) & (measured[given] <= high[given])
    return int(given.sum()), float(inside.mean())


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """Whether predictions order rivals as measurements do.

    ``correlation`` is the mean over experiments of Spearman's rank correlation (experiments of at least 3 rivals that differ); ``pairs``
    counts pairs whose measured difference exceeds noise, ``wrong`` those of them that the prediction orders the other way or not at all.
    """

    experiments: int
    correlation: float
    pairs: int
    wrong: int

    @property
    def wrong_rate(self) -> float:
        """Wrong winners as a share of the pairs; NaN of none."""
        return self.wrong / self.pairs if self.pairs else float("nan")


def order_of(measured: Floats, predicted: Floats, rivals: NDArray[np.str_], noise: Floats) -> Order:
    """Compare the order of rows that share a label of ``rivals``.

    Parameters
    ----------
    measured, predicted : Floats[n]
        Above 0; rows that are NaN in either are left out.
    rivals : str array [n]
        Label of the experiment that each row belongs to; an empty label belongs to none.
    noise : Floats[n]
        Relative standard error of each measurement.
    """
    correlations: list[float] = []
    pairs = wrong = experiments = 0
    usable = np.isfinite(measured) & np.isfinite(predicted) & (rivals != "")
    for label in np.unique(rivals[usable]):
        rows = np.flatnonzero(usable & (rivals == label))
        if len(rows) < 2:
            continue
        experiments += 1
        truth, guess = measured[rows], predicted[rows]
        if len(rows) >= 3 and np.ptp(truth) > 0 and np.ptp(guess) > 0:
            correlations.append(_spearman(truth, guess))
        first, second = np.triu_indices(len(rows), 1)
        apart = np.log(truth[first] / truth[second])
        threshold = SIGMAS * np.hypot(noise[rows][first], noise[rows][second])
        told = np.abs(apart) > threshold
        said = np.log(guess[first] / guess[second])
        pairs += int(told.sum())
        wrong += int((np.sign(said[told]) != np.sign(apart[told])).sum())
    return Order(
        experiments=experiments, correlation=float(np.mean(correlations)) if correlations else float("nan"), pairs=pairs, wrong=wrong
    )


def _spearman(one: Floats, other: Floats) -> float:
    """Return Pearson's correlation of average ranks: Spearman's rank correlation with ties."""
    from scipy.stats import rankdata

    ranks = [np.asarray(rankdata(item), dtype=np.float64) for item in (one, other)]
    parts = [item - item.mean() for item in ranks]
    return float(parts[0] @ parts[1] / np.sqrt((parts[0] @ parts[0]) * (parts[1] @ parts[1])))


@dataclass(frozen=True, slots=True, kw_only=True)
class Ratios:
    """Errors of ratios to a reference row, in per cent; ``wrong_sign`` counts those of the ``told`` beyond noise on the other side of 1.

    ``told_beyond`` and ``wrong_beyond`` are the same beyond noise and chance: what a table did not record of its two cases differs, too.
    None where nothing was left to chance.
    """

    errors: Errors
    baseline: str
    baseline_errors: Errors
    told: int
    wrong_sign: int
    told_beyond: int | None = None
    wrong_beyond: int | None = None


def ratios_of(
    measured: Floats,
    predicted: Floats,
    reference: Ints,
    noise: Floats,
    which: Bools,
    baseline: tuple[str, Floats] | None = None,
    chance: Floats | None = None,
) -> Ratios:
    """Compare each row's ratio to its reference row, measured and predicted.

    Parameters
    ----------
    measured, predicted, noise : Floats[n]
        As in :func:`order_of`.
    reference : int array [n]
        Index of the reference row, -1 for none.
    which : Bools[n]
        Rows to look at; their references may be others.
    baseline : (str, Floats[n]), optional
        Name and ratios of a simple rule.
    chance : Floats[n], optional
        Relative standard deviation that what was not recorded gives a measurement.
    """
    rows = np.flatnonzero(which & (reference >= 0))
    at = reference[rows]
    truth, guess = measured[rows] / measured[at], predicted[rows] / predicted[at]
    rule = np.full(len(rows), np.nan) if baseline is None else np.asarray(baseline[1], dtype=np.float64)[rows]
    both = np.isfinite(truth) & np.isfinite(guess)
    apart = np.log(truth[both])
    told = np.abs(apart) > SIGMAS * np.hypot(noise[rows], noise[at])[both]
    clear = (
        None if chance is None else np.abs(apart) > SIGMAS * np.sqrt(sum(part[rows] ** 2 + part[at] ** 2 for part in (noise, chance)))[both]
    )
    wrong = np.sign(np.log(guess[both])) != np.sign(apart)
    return Ratios(
        errors=summary_of(errors_of(truth, guess, "time")),
        baseline="" if baseline is None else baseline[0],
        baseline_errors=summary_of(errors_of(truth[both], rule[both], "time")),
        told=int(told.sum()),
        wrong_sign=int((wrong & told).sum()),
        told_beyond=None if clear is None else int(clear.sum()),
        wrong_beyond=None if clear is None else int((wrong & clear).sum()),
    )
