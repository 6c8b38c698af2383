"""Differences of means with intervals and p-values, from few independent pieces of evidence."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from moesim.base.stats import student_quantile
from moesim.facts.arrays import Floats

CONFIDENCE = 0.95

ROUNDING = 1e-12
"""Differences below this part of the numbers themselves are the order in which floats were added, and no difference."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimated:
    """A mean, its standard error and degrees of freedom.

    ``error`` is None and ``freedom`` 0 where a single piece of evidence says nothing of spread. An ``error`` of 0 says that every piece
    gave the same number.
    """

    value: float
    error: float | None
    freedom: float
    n: int

    def interval(self, confidence: float = CONFIDENCE) -> tuple[float | None, float | None]:
        """Return the Student-t interval of that confidence, (None, None) where nothing is known of spread."""
        if self.error is None:
            return None, None
        if self.error == 0:
            return self.value, self.value
        half = _quantile(self.freedom, confidence) * self.error
        return self.value - half, self.value + half

    def p_value(self) -> float | None:
        """Return the two-sided p-value of the hypothesis that the mean is 0, None where nothing is known of spread."""
        if self.error is None:
            return None
        if self.error == 0:
            return 1.0 if self.value == 0 else 0.0
        from scipy.special import stdtr

        return float(2 * stdtr(self.freedom, -abs(self.value) / self.error))


def estimate(values: Floats, weights: Floats | None = None, *, scale: float = 0.0) -> Estimated:
    """Estimate a mean from independent values.

    Parameters
    ----------
    values : float[n]
        At least one.
    weights : float[n], optional
        How much each counts in the mean (a block of more steps counts for more); equal if left out.
    scale : float
        How large the numbers are that ``values`` were computed from: what is below 1e-12 of it is rounding.

    Returns
    -------
    Estimated

    Notes
    -----
    With weights ``w`` that sum to 1 the squared standard error is ``n / (n - 1) * sum(w**2 * (x - mean)**2)``, which is ``s**2 /
    n`` for equal weights (Cochran, Sampling Techniques, 3rd edition, 1977, chapter 6, without the finite population).

    Examples
    --------
    >>> estimate(np.array([1.0, 3.0])).error
    1.0
    """
    count = len(values)
    share = np.full(count, 1 / count) if weights is None else weights / weights.sum()
    mean = float(values[0]) if values.min() == values.max() else float(share @ values)
    if abs(mean) <= ROUNDING * scale:
        mean = 0.0
    if count < 2:
        return Estimated(value=mean, error=None, freedom=0, n=count)
    error = math.sqrt(count / (count - 1) * float(share**2 @ (values - mean) ** 2))
    if error <= ROUNDING * max(scale, abs(mean)):
        error = 0.0
    return Estimated(value=mean, error=error, freedom=count - 1, n=count)


def difference(of: Floats, base: Floats, weights: Floats | None = None) -> Estimated:
    """Estimate the mean of paired differences ``of - base``.

    Parameters
    ----------
    of, base : float[n]
        The same pieces of evidence (seeds, blocks of tokens) under two policies.
    weights : float[n], optional
        How much each piece counts.

    Examples
    --------
    >>> difference(np.array([2.0, 4.0]), np.array([1.0, 3.0]))
    Estimated(value=1.0, error=0.0, freedom=1, n=2)
    """
    return estimate(of - base, weights, scale=float(max(np.abs(of).max(), np.abs(base).max())))


@dataclass(frozen=True, slots=True, kw_only=True)
class Ratio:
    """A ratio of two means less 1, with what its interval needs: variances of both means and their covariance."""

    of: float
    base: float
    variance: float | None
    base_variance: float
    covariance: float
    freedom: float

    @property
    def value(self) -> float:
        """``of / base - 1``."""
        return (self.of - self.base) / self.base

    def interval(self, confidence: float = CONFIDENCE) -> tuple[float | None, float | None]:
        """Return Fieller's interval of that confidence; (None, None) where nothing is known of spread, or the base may be 0.

        Notes
        -----
        All ratios r for which ``of - r * base`` cannot be told from 0 (Fieller, Journal of the Royal Statistical Society B 16, 1954). So it
        leaves out 0 exactly if the interval of the difference does, and it never reaches below -100 % of means above 0.
        """
        if self.variance is None:
            return None, None
        t2 = _quantile(self.freedom, confidence) ** 2
        square = self.base**2 - t2 * self.base_variance
        if square <= 0:
            return None, None
        half = self.of * self.base - t2 * self.covariance
        rest = self.of**2 - t2 * self.variance
        root = math.sqrt(max(half**2 - square * rest, 0.0))
        low, high = (half - root) / square - 1, (half + root) / square - 1
        return min(low, self.value), max(high, self.value)


def relative(of: Floats, base: Floats, weights: Floats | None = None) -> Ratio | None:
    """Estimate ``mean(of) / mean(base) - 1`` from pairs; None where the mean of ``base`` is 0.

    Parameters
    ----------
    of, base : float[n]
        Pairs.
    weights : float[n], optional
        How much each pair counts.

    Examples
    --------
    >>> relative(np.array([3.0, 3.0]), np.array([2.0, 2.0])).interval()
    (0.5, 0.5)
    """
    count = len(of)
    share = np.full(count, 1 / count) if weights is None else weights / weights.sum()
    above, below = float(share @ of), float(share @ base)
    if below == 0:
        return None
    if count < 2:
        return Ratio(of=above, base=below, variance=None, base_variance=0.0, covariance=0.0, freedom=0)
    wide = count / (count - 1) * share**2
    mine, others = of - above, base - below
    return Ratio(
        of=above,
        base=below,
        variance=float(wide @ mine**2),
        base_variance=float(wide @ others**2),
        covariance=float(wide @ (mine * others)),
        freedom=count - 1,
    )


def unpaired(of: Estimated, base: Estimated) -> Estimated:
    """Estimate the difference of two means from evidence that has no pairs (Welch, Biometrika 34, 1947).

    Parameters
    ----------
    of, base : Estimated
        The two means.

    Examples
    --------
    >>> one = Estimated(value=3.0, error=3.0, freedom=4, n=5)
    >>> unpaired(one, Estimated(value=1.0, error=4.0, freedom=4, n=5)).error
    5.0
    """
    value, n = of.value - base.value, min(of.n, base.n)
    if abs(value) <= ROUNDING * max(abs(of.value), abs(base.value)):
        value = 0.0
    if of.error is None or base.error is None:
        return Estimated(value=value, error=None, freedom=0, n=n)
    error = math.hypot(of.error, base.error)
    if error == 0:
        return Estimated(value=value, error=0.0, freedom=max(of.freedom, base.freedom), n=n)
    freedom = error**4 / (of.error**4 / of.freedom + base.error**4 / base.freedom)
    return Estimated(value=value, error=error, freedom=freedom, n=n)


def unpaired_relative(of: Estimated, base: Estimated) -> Ratio | None:
    """Estimate ``of / base - 1`` of two means that have no pairs; None where the base is 0."""
    if base.value == 0:
        return None
    known = of.error is not None and base.error is not None
    return Ratio(
        of=of.value,
        base=base.value,
        variance=of.error**2 if of.error is not None and known else None,
        base_variance=base.error**2 if base.error is not None else 0.0,
        covariance=0.0,
        freedom=unpaired(of, base).freedom,
    )


def _quantile(freedom: float, confidence: float) -> float:
    if freedom == int(freedom):
        return student_quantile(int(freedom), confidence)
    from scipy.special import stdtrit

    return float(stdtrit(freedom, 0.5 + confidence / 2))
