"""Means with intervals, quantiles: the few statistics that every floor shares."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A mean and the interval it lies in; ``low`` and ``high`` are None when one sample says nothing of spread."""

    value: float
    low: float | None
    high: float | None
    n: int


def mean_interval(samples: ArrayLike, confidence: float = 0.95) -> Estimate:
    """Return the mean of independent samples with a Student-t interval.

    Parameters
    ----------
    samples : array_like, float[n]
        One number per step or replicate; at least one.
    confidence : float
        Probability that the interval covers the mean of normally distributed samples.

    Returns
    -------
    Estimate
        ``low`` and ``high`` are None for one sample.

    Examples
    --------
    >>> mean_interval([1.0, 1.0, 1.0])
    Estimate(value=1.0, low=1.0, high=1.0, n=3)
    """
    values: NDArray[np.float64] = np.asarray(samples, dtype=np.float64)
    mean = float(values.mean())
    if values.size < 2:
        return Estimate(value=mean, low=None, high=None, n=int(values.size))
    from scipy.special import stdtrit

    # Identical samples must give exactly their value: the mean of equal floats can differ from them in the last bit.
    if values.min() == values.max():
        mean = float(values[0])
        return Estimate(value=mean, low=mean, high=mean, n=int(values.size))
    half = float(stdtrit(values.size - 1, 0.5 + confidence / 2)) * float(values.std(ddof=1)) / float(np.sqrt(values.size))
    return Estimate(value=mean, low=mean - half, high=mean + half, n=int(values.size))
