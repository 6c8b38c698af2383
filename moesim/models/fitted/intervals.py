"""Intervals of predictions: the scatter of measurements about a model, what its covariance does, and what is assumed beyond them."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from moesim.base.stats import student_quantile
from moesim.facts.arrays import Bools, Floats
from moesim.facts.profile import Section

CONFIDENCE = 0.9
"""Of the intervals of predictions."""

CARRIED = 0.2
"""Standard deviation of the logarithm that a section carried over to other hardware by data-sheet ratios adds: two laboratories that
measure the same thing on the same hardware differ by 10 to 20 %, and a ratio of peaks is no better than that."""

BEYOND = 2.0
"""Factor by which the spread of a prediction grows outside the fitted range; an assumption, and the prediction is flagged."""


def scatter_by(regimes: NDArray[np.str_], logs: Floats) -> dict[str, float]:
    """Return the root of the mean squared log error by regime, and that of all rows under the empty name.

    ``logs`` are logarithms of measured over predicted, best of rows that were held back: errors of fitted rows are too small. NaN is left
    out.
    """
    known = np.isfinite(logs)
    found = {"": float(np.sqrt(np.mean(logs[known] ** 2)))} if np.any(known) else {}
    for label in np.unique(regimes):
        mask = known & (regimes == label)
        if np.any(mask):
            found[str(label)] = float(np.sqrt(np.mean(logs[mask] ** 2)))
    return found


def spread(
    section: Section,
    predict: Callable[[Mapping[str, float]], Floats],
    *,
    regimes: NDArray[np.str_] | None = None,
    outside: Bools | None = None,
    carried: bool = False,
) -> Floats:
    """Return the standard deviation of the logarithm of each prediction.

    Three parts, added as variances: the scatter of measurements about the model in the row's regime; what the covariance of the parameters
    does to the prediction (to first order, by central differences); and ``CARRIED`` for a section that follows from other hardware.
    Outside the fitted range the whole grows by ``BEYOND``.

    Parameters
    ----------
    section : Section
        Whose parameters were used.
    predict : callable
        From parameters by name to Floats[n] above 0.
    regimes : str array [n], optional
        Regime of each row; one that the section has no scatter of takes the largest that it has.
    outside : Bools[n], optional
        Which rows lie outside the fitted range.
    carried : bool
        Whether the section was carried over to other hardware.

    Returns
    -------
    Floats[n]
    """
    values = section.values()
    centre = np.log(predict(values))
    fallback = max(section.scatter.values(), default=0.0)
    whole = section.scatter.get("", fallback)
    scatter = np.full(len(centre), whole)
    if regimes is not None:
        scatter = np.asarray([section.scatter.get(str(label), fallback) for label in regimes], dtype=np.float64)
    variance = scatter**2 + (CARRIED**2 if carried else 0.0)
    matrix = section.matrix
    if matrix is not None and np.any(matrix):
        slopes = np.stack([_slope(predict, values, name, section.scale) for name in values])
        variance += np.einsum("pn,pq,qn->n", slopes, matrix, slopes)
    found = np.sqrt(np.maximum(variance, 0.0))
    return np.asarray(found if outside is None else np.where(outside, BEYOND * found, found))


def _slope(predict: Callable[[Mapping[str, float]], Floats], values: Mapping[str, float], name: str, scale: str) -> Floats:
    """Return the derivative of the logarithm of the predictions by a parameter, or by its logarithm."""
    value, step = values[name], 1e-4
    if value == 0:
        return np.zeros_like(predict(values))
    above, below = (np.log(predict({**values, name: value * float(np.exp(sign * step))})) for sign in (1, -1))
    slope = (above - below) / (2 * step)
    return np.asarray(slope if scale == "log" else slope / value)


def interval(values: Floats, deviation: Floats, *, degrees: int = 30, confidence: float = CONFIDENCE) -> tuple[Floats, Floats]:
    """Return the bounds between which a measurement lies with the given probability: ``values * exp(-+ t * deviation)``.

    Parameters
    ----------
    values : Floats[n]
        Predictions.
    deviation : Floats[n]
        Of their logarithms; see :func:`spread`.
    degrees : int
        Degrees of freedom of the deviation, at least 1.
    confidence : float
        Probability.
    """
    reach = student_quantile(max(degrees, 1), confidence) * deviation
    return np.asarray(values * np.exp(-reach)), np.asarray(values * np.exp(reach))
