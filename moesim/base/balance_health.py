"""Statistics of one layer's loads that tell a healthy router from a sick one."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

IDLE = 0.01
"""An expert with less than this share of the mean load counts as idle."""
STAGNANT = 0.1
"""And with less than this share as stagnant: it has some tokens, but hardly learns. Where the line is drawn is our choice."""


def entropy(loads: ArrayLike) -> float:
    """Return the entropy of the shares of float[E] loads over its maximum ln E: 1 if all are equal, 0 if one has all; NaN without load.

    Examples
    --------
    >>> entropy([1, 1, 1, 1]), entropy([5, 0])
    (1.0, 0.0)
    """
    values: NDArray[np.float64] = np.asarray(loads, dtype=np.float64)
    if values.size < 2 or not values.sum():
        return math.nan
    shares = values[values > 0] / values.sum()
    return max(float(-(shares * np.log(shares)).sum() / math.log(values.size)), 0.0)


def idle(loads: ArrayLike) -> NDArray[np.bool_]:
    """Return bool[E], the experts with less than a hundredth of the mean load; none where there is no load."""
    values: NDArray[np.float64] = np.asarray(loads, dtype=np.float64)
    return np.asarray(values < IDLE * values.mean())


def stagnant(loads: ArrayLike) -> NDArray[np.bool_]:
    """Return bool[E], the experts with less than a tenth of the mean load, idle ones among them; none where there is no load."""
    values: NDArray[np.float64] = np.asarray(loads, dtype=np.float64)
    return np.asarray(values < STAGNANT * values.mean())


def correlation(loads: ArrayLike, before: ArrayLike) -> float:
    """Return Pearson's correlation of two float[E] loads; NaN if either is even."""
    now: NDArray[np.float64] = np.asarray(loads, dtype=np.float64)
    then: NDArray[np.float64] = np.asarray(before, dtype=np.float64)
    now, then = now - now.mean(), then - then.mean()
    scale = math.sqrt(float((now**2).sum()) * float((then**2).sum()))
    return float((now * then).sum()) / scale if scale else math.nan


def mutual_information(counts: ArrayLike) -> float:
    """Return what the row of a route says about its column, in bits, from int[G, E] routes: of GPUs, or of domains, to experts.

    Notes
    -----
    Chance alone gives about (G - 1) (E - 1) / (2 N ln 2) bits for N routes (G. A. Miller, 1955), which is taken off; rows and columns
    without routes do not count. At least 0.
    """
    table: NDArray[np.float64] = np.asarray(counts, dtype=np.float64)
    total = table.sum()
    if not total:
        return math.nan
    rows, columns = table.sum(axis=1), table.sum(axis=0)
    expected = np.outer(rows, columns) / total
    some = table > 0
    bits = float((table[some] * np.log2(table[some] / expected[some])).sum() / total)
    bias = (np.count_nonzero(rows) - 1) * (np.count_nonzero(columns) - 1) / (2 * total * math.log(2))
    return max(float(bits - bias), 0.0)


def noise_floor(experts: int, top_k: int, tokens: float) -> float:
    """Return the MaxVio that chance gives a perfectly balanced router: 0.85 sqrt(2 ln E (1 - k / E) E / (k T)).

    The largest of E nearly normal loads with variance T (k / E) (1 - k / E). For finite E it is less than the limit sqrt(2 ln E) says: a
    test finds factors from 0.75 to 0.95 for 16 to 256 experts.
    """
    if experts < 2 or not tokens:
        return 0.0
    return 0.85 * math.sqrt(2 * math.log(experts) * (1 - top_k / experts) * experts / (top_k * tokens))
