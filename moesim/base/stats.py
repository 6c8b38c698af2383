"""Means with intervals, quantiles: the few statistics that every floor shares."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

STUDENT_95 = (
    12.706204736174694, 4.302652729749462, 3.1824463052837078, 2.7764451051977934, 2.5705818356363146, 2.4469118511449786,
    2.364624251592784, 2.306004135204166, 2.262157162798205, 2.228138851986274, 2.200985160091639, 2.1788128296672284,
    2.1603686564627913, 2.144786687917804, 2.131449545559776, 2.1199052992212546, 2.1098155778333156, 2.1009220402410382,
    2.0930240544083087, 2.085963447265864, 2.0796138447276795, 2.0738730679040254, 2.0686576104190486, 2.0638985616280245,
    2.0595385527532972, 2.0555294386428735, 2.0518305164802846, 2.0484071417952454, 2.045229642132703, 2.0422724563012378,
)  # fmt: skip
"""Quantiles of Student's t for intervals of 95 %, from 1 degree of freedom on: ``scipy.special.stdtrit(degrees, 0.975)``.

Nearly every run asks for one of these only, and loading SciPy takes a tenth of a short run.
"""


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
    # Identical samples must give exactly their value: the mean of equal floats can differ from them in the last bit.
    if values.min() == values.max():
        mean = float(values[0])
        return Estimate(value=mean, low=mean, high=mean, n=int(values.size))
    half = student_quantile(int(values.size) - 1, confidence) * float(values.std(ddof=1)) / float(np.sqrt(values.size))
    return Estimate(value=mean, low=mean - half, high=mean + half, n=int(values.size))


def student_quantile(degrees: int, confidence: float) -> float:
    """Return how many standard errors a Student-t interval reaches to either side.

    Parameters
    ----------
    degrees : int
        Degrees of freedom, at least 1: samples less one.
    confidence : float
        Probability that the interval covers the mean.

    Examples
    --------
    >>> round(student_quantile(2, 0.95), 4)
    4.3027
    """
    if confidence == 0.95 and 1 <= degrees <= len(STUDENT_95):
        return STUDENT_95[degrees - 1]
    from scipy.special import stdtrit

    return float(stdtrit(degrees, 0.5 + confidence / 2))
