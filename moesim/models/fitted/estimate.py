"""Least squares on logarithms: parameters with covariance, errors on rows that were held back, intervals of predictions.

Times of one table span five decades. Least squares on their logarithms weighs a row by its relative error, and keeps every parameter
positive. What the data do not determine is refused by name instead of being returned as a number.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moesim.base.errors import CalibrationError
from moesim.facts.arrays import Floats, frozen
from moesim.facts.profile import Parameter
from moesim.models.fitted.intervals import BEYOND, CARRIED, CONFIDENCE, interval, scatter_by, spread
from moesim.models.fitted.leave_out import HeldBack, leave_group_out, leave_one_out
from moesim.models.fitted.rows import Rows, count

__all__ = [
    "BEYOND",
    "CARRIED",
    "CONFIDENCE",
    "Estimated",
    "HeldBack",
    "interval",
    "least_squares_log",
    "leave_group_out",
    "leave_one_out",
    "parameters_of",
    "range_of",
    "refuse_degenerate",
    "scatter_by",
    "spread",
]

REACH = 1e6
"""Unless a bound is given, a parameter stays within this factor of where its search starts."""

UNDETERMINED = 1e-7
"""A direction in parameter space that moves predictions less than this share of the strongest direction is not determined by the rows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimated:
    """What a least-squares fit found.

    Parameters
    ----------
    names : tuple of str
        The P parameters, in the order of ``start``.
    values : Floats[P]
        In the units of ``start``.
    covariance : Floats[P, P]
        Of the logarithms; row and column are 0 for a parameter that was held or ended on a bound.
    residuals : Floats[n]
        Logarithm of measured over predicted.
    scatter : float
        Standard deviation of the residuals, with the degrees of freedom that are left.
    degrees : int
        Rows less fitted parameters.
    on_bound : tuple of str
        Parameters that ended on a bound: the rows want them still smaller or larger.
    """

    names: tuple[str, ...]
    values: Floats
    covariance: Floats
    residuals: Floats
    scatter: float
    degrees: int
    on_bound: tuple[str, ...] = ()

    def by_name(self) -> dict[str, float]:
        """Return the values by name."""
        return dict(zip(self.names, self.values.tolist(), strict=True))

    def errors(self) -> dict[str, float]:
        """Return one standard error of each value, in its unit; 0 where the covariance is."""
        return dict(zip(self.names, (self.values * np.sqrt(np.maximum(np.diag(self.covariance), 0.0))).tolist(), strict=True))


def least_squares_log(
    predict: Callable[[Mapping[str, float]], Floats],
    start: Mapping[str, float],
    seconds: Floats,
    *,
    held: Iterable[str] = (),
    bounds: Mapping[str, tuple[float, float]] | None = None,
    weights: Floats | None = None,
    groups: NDArray[np.str_] | None = None,
    robust: float | None = None,
    strict: bool = True,
) -> Estimated:
    """Fit positive parameters so that the logarithms of predictions come nearest to those of measurements.

    Minimises the sum of ``weights * (log seconds - log predict(parameters))**2`` over the logarithms of the parameters (trust region
    within bounds, ``scipy.optimize.least_squares``). The covariance is ``s^2 (J'J)^-1`` (Bates and Watts, "Nonlinear Regression Analysis
    and Its Applications", 1988, section 2.3) or, with ``groups``, the cluster-robust one ``(J'J)^-1 (sum_g J_g' r_g r_g' J_g) (J'J)^-1``
    times ``g / (g - 1)`` (Liang and Zeger, Biometrika 73, 1986): rows of one group err together, and count as one piece of evidence.

    Parameters
    ----------
    predict : callable
        From parameters by name to Floats[n] above 0, in seconds.
    start : mapping of str to float
        Every parameter, above 0.
    seconds : Floats[n]
        Measured; above 0.
    held : iterable of str
        Parameters that keep their value.
    bounds : mapping of str to (float, float), optional
        Least and most; otherwise a factor of ``REACH`` around the start.
    weights : Floats[n], optional
        Of the squares; 1 if left out.
    groups : str array [n], optional
        Label of the group of each row.
    robust : float, optional
        Residuals beyond this count linearly instead of squared (scipy's ``soft_l1``).
    strict : bool
        Whether to refuse what the rows do not determine. Otherwise such a direction gets no variance.

    Returns
    -------
    Estimated

    Raises
    ------
    CalibrationError
        If a measured value is not above 0, there are fewer rows than parameters, or the rows do not determine them.
    """
    from scipy.optimize import least_squares

    measured = np.asarray(seconds, dtype=np.float64)
    _refuse_times(measured)
    names = tuple(start)
    free = [name for name in names if name not in set(held)]
    if len(measured) <= len(free):
        raise CalibrationError(f"{len(measured)} rows cannot determine {len(free)} parameters ({', '.join(free)}); measure more points")
    roots = np.ones(len(measured)) if weights is None else np.sqrt(np.asarray(weights, dtype=np.float64))
    limits = [_limits(name, start[name], bounds or {}) for name in free]
    lower, upper = (np.log(np.asarray([limit[side] for limit in limits])) for side in (0, 1))

    def values_at(point: Floats) -> dict[str, float]:
        moved = dict(zip(free, np.exp(point).tolist(), strict=True))
        return {name: moved.get(name, float(start[name])) for name in names}

    def residuals_at(point: Floats) -> Floats:
        found = np.asarray(predict(values_at(point)), dtype=np.float64)
        if not np.all(np.isfinite(found) & (found > 0)):
            raise CalibrationError("the model gives a time that is not above 0 for a row of the table; is a size in it 0?")
        return np.asarray(roots * (np.log(measured) - np.log(found)))

    if not free:
        values = values_at(np.zeros(0))
        rest = residuals_at(np.zeros(0)) / roots
        return _estimated(names, values, np.zeros((0, 0)), [], rest, len(rest))
    point = np.clip(np.log([float(start[name]) for name in free]), lower + 1e-9, upper - 1e-9)
    loss = {} if robust is None else {"loss": "soft_l1", "f_scale": robust}
    solved = least_squares(residuals_at, point, bounds=(lower, upper), xtol=1e-12, ftol=1e-12, gtol=1e-12, x_scale="jac", **loss)
    on_bound = tuple(name for name, low, high, at in zip(free, lower, upper, solved.x, strict=True) if at - low < 1e-6 or high - at < 1e-6)
    rest = residuals_at(solved.x)
    degrees = max(len(rest) - len(free), 1)
    inside = [index for index, name in enumerate(free) if name not in on_bound]
    covariance = np.zeros((len(free), len(free)))
    if inside:
        chosen = np.ix_(inside, inside)
        covariance[chosen] = _covariance(solved.jac[:, inside], rest, degrees, [free[index] for index in inside], groups, strict=strict)
    plain = np.asarray(rest / np.where(roots > 0, roots, 1.0))
    return _estimated(names, values_at(solved.x), covariance, free, plain, degrees, on_bound)


def _estimated(
    names: tuple[str, ...],
    values: Mapping[str, float],
    covariance: Floats,
    free: Sequence[str],
    residuals: Floats,
    degrees: int,
    on_bound: tuple[str, ...] = (),
) -> Estimated:
    whole = np.zeros((len(names), len(names)))
    where = [names.index(name) for name in free]
    whole[np.ix_(where, where)] = covariance
    return Estimated(
        names=names,
        values=frozen([values[name] for name in names], np.float64),
        covariance=frozen(whole),
        residuals=frozen(residuals),
        scatter=float(np.sqrt(np.sum(residuals**2) / degrees)),
        degrees=degrees,
        on_bound=on_bound,
    )


def _limits(name: str, start: float, bounds: Mapping[str, tuple[float, float]]) -> tuple[float, float]:
    if not start > 0:
        raise ValueError(f"the search for {name} starts at {start}; it must start above 0")
    return bounds.get(name, (start / REACH, start * REACH))


def _refuse_times(seconds: Floats) -> None:
    wrong = np.flatnonzero(~(np.isfinite(seconds) & (seconds > 0)))
    if len(wrong):
        raise CalibrationError(f"row {int(wrong[0])} of the rows to fit has the time {seconds[wrong[0]]:g} s: times are above 0")


def _covariance(jacobian: Floats, rest: Floats, degrees: int, names: list[str], groups: NDArray[np.str_] | None, *, strict: bool) -> Floats:
    # Columns are scaled to length 1 first: what counts is the direction, not that one parameter moves predictions more than another.
    lengths = np.linalg.norm(jacobian, axis=0)
    dead = [name for name, length in zip(names, lengths, strict=True) if length <= UNDETERMINED * float(lengths.max(initial=0.0))]
    if dead and strict:
        raise CalibrationError(f"the rows do not determine {', '.join(dead)}: no row's time depends on it; measure points where it does")
    lengths = np.where(lengths > 0, lengths, 1.0)
    _, sizes, axes = np.linalg.svd(jacobian / lengths, full_matrices=False)
    weak = sizes <= UNDETERMINED**0.5 * sizes[0]
    if np.any(weak) and strict:
        mixed = [name for name, part in zip(names, np.abs(axes[-1]), strict=True) if part > 0.3]
        raise CalibrationError(
            f"the rows cannot tell {' from '.join(mixed)}: another mixture fits as well; vary what sets them apart, such as the size"
        )
    inverse = np.where(weak, 0.0, 1.0 / np.where(weak, 1.0, sizes) ** 2)
    bread = (axes.T * inverse) @ axes
    if groups is None:
        middle = float(np.sum(rest**2)) / degrees * (axes.T * np.where(weak, 0.0, sizes**2)) @ axes
    else:
        sums = [(jacobian[mask] / lengths).T @ rest[mask] for mask in (groups == label for label in np.unique(groups))]
        if len(sums) < 2:
            raise CalibrationError("all rows belong to one group: their common error cannot be told; measure a second group")
        middle = np.sum([np.outer(part, part) for part in sums], axis=0) * len(sums) / (len(sums) - 1)
    return np.asarray(bread @ middle @ bread / np.outer(lengths, lengths))


def refuse_degenerate(rows: Rows, *, what: str, least: int, varied: Mapping[str, int] | None = None) -> None:
    """Refuse rows that cannot determine a model.

    Parameters
    ----------
    rows : Rows
        That shall be fitted.
    what : str
        The model, for the message.
    least : int
        Rows that it needs.
    varied : mapping of str to int, optional
        How many different values each of these columns must hold.

    Raises
    ------
    CalibrationError
        Naming what is missing.
    """
    if count(rows) < least:
        raise CalibrationError(f"{what}: {count(rows)} rows are too few, at least {least} are needed")
    for name, needed in (varied or {}).items():
        found = np.unique(rows[name]) if name in rows else np.zeros(0)
        if len(found) < needed:
            listing = ", ".join(str(item) for item in found.tolist()) or "nothing"
            raise CalibrationError(f"{what}: {name} holds only {listing}; at least {needed} different values are needed")


def range_of(rows: Rows, names: Iterable[str]) -> dict[str, tuple[float, float]]:
    """Return the least and the most of some columns, as a section keeps them."""
    return {name: (float(np.min(rows[name])), float(np.max(rows[name]))) for name in names}


def parameters_of(
    found: Estimated, units: Mapping[str, str], *, source: str, date: str, held: Mapping[str, tuple[str, str]] | None = None
) -> tuple[Parameter, ...]:
    """Return a fit's values as parameters of a section; ``held`` gives the basis and the source of those that were not fitted."""
    errors = found.errors()
    kept = held or {}
    return tuple(
        Parameter(
            name=name,
            value=value,
            unit=units.get(name, ""),
            basis=kept[name][0] if name in kept else "fitted",
            source=kept[name][1] if name in kept else source,
            date=date,
            error=None if name in kept else errors[name],
        )
        for name, value in found.by_name().items()
    )
