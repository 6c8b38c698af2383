"""What the fitted models of communication share: parameters as fields, a fit on logarithms, and the section that a profile keeps."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from moesim.base.errors import CalibrationError
from moesim.facts.arrays import Floats
from moesim.facts.profile import Parameter, Section
from moesim.models.fitted.estimate import least_squares_log, parameters_of, range_of
from moesim.models.fitted.intervals import scatter_by
from moesim.models.fitted.rows import Rows, numbers

ROBUST = 0.1
"""Residuals of more than 10 % count linearly: single rows of nccl-tests are off by a third at small sizes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Parametric(ABC):
    """A model whose parameters are positive numbers, in SI units.

    Parameters
    ----------
    kept : Section or None
        What the fit found beside the values: covariance, range, scatter. None for a model that was written down.
    """

    NAME: ClassVar[str]
    UNITS: ClassVar[Mapping[str, str]]
    RANGED: ClassVar[tuple[str, ...]]
    """Columns of which a section keeps the range."""

    kept: Section | None = field(default=None, repr=False, compare=False)

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """Return the names of the parameters."""
        return tuple(item.name for item in fields(cls) if item.name != "kept")

    @staticmethod
    @abstractmethod
    def seconds_of(values: Mapping[str, float], rows: Rows) -> Floats:
        """Return the seconds of rows with the given parameters."""

    def values(self) -> dict[str, float]:
        """Return the parameters by name."""
        return {name: float(getattr(self, name)) for name in self.names()}

    def predict(self, rows: Rows) -> Floats:
        """Return the seconds of each row."""
        return self.seconds_of(self.values(), rows)

    def section(self) -> Section:
        """Return what a profile keeps of the model; a model that was not fitted says that its numbers are assumed."""
        if self.kept is not None:
            return self.kept
        written = tuple(
            Parameter(name=name, value=value, unit=self.UNITS.get(name, ""), basis="assumed", source="written down, not fitted", date="")
            for name, value in self.values().items()
        )
        return Section(model=self.NAME, parameters=written, source="written down, not fitted")

    @classmethod
    def of_section(cls, section: Section) -> Self:
        """Return the model that a profile holds.

        Raises
        ------
        CalibrationError
            If the section is of another model, or lacks a parameter.
        """
        if section.model != cls.NAME:
            raise CalibrationError(f"a section of the model {section.model!r} cannot be read as {cls.NAME!r}")
        values = section.values()
        missing = [name for name in cls.names() if name not in values]
        if missing:
            raise CalibrationError(f"the section {cls.NAME!r} lacks {', '.join(missing)}")
        return cls(**{name: values[name] for name in cls.names()}, kept=section)

    @classmethod
    def fitted(
        cls,
        rows: Rows,
        seconds: Floats,
        *,
        start: Mapping[str, float],
        held: Mapping[str, tuple[str, str]],
        bounds: Mapping[str, tuple[float, float]] | None = None,
        weights: Floats | None = None,
        regimes: NDArray[np.str_] | None = None,
        source: str = "",
        date: str = "2026-11",
        ranged: Iterable[str] | None = None,
    ) -> Self:
        """Return the model that comes nearest to the rows.

        Parameters
        ----------
        rows : Rows
            n of them.
        seconds : Floats[n]
            Measured.
        start : mapping of str to float
            Where the search starts, for every parameter; a held parameter keeps it.
        held : mapping of str to (str, str)
            Basis and source of parameters that the rows cannot tell.
        bounds : mapping of str to (float, float), optional
            Least and most.
        weights : Floats[n], optional
            Of the squares.
        regimes : str array [n], optional
            By which the scatter is told apart.
        source, date : str
            Of the rows.
        ranged : iterable of str, optional
            Columns of which the range is kept, instead of those of the class.

        Raises
        ------
        CalibrationError
            If the rows do not determine the parameters.
        """
        found = least_squares_log(
            lambda values: cls.seconds_of(values, rows),
            start,
            np.asarray(seconds, dtype=np.float64),
            held=tuple(held),
            bounds=bounds,
            weights=weights,
            robust=ROBUST,
            strict=False,
        )
        labels = np.asarray([""] * len(found.residuals)) if regimes is None else regimes
        section = Section(
            model=cls.NAME,
            parameters=parameters_of(found, cls.UNITS, source=source, date=date, held=held),
            covariance=found.covariance,
            fitted_range=range_of(rows, cls.RANGED if ranged is None else ranged),
            rows=len(found.residuals),
            scatter=scatter_by(labels, found.residuals),
            source=source,
        )
        return cls(**found.by_name(), kept=section)


def refuse_narrow(rows: Rows, *, what: str, column: str, reach: float) -> None:
    """Refuse rows whose sizes do not reach from where latency decides to where bandwidth does.

    Parameters
    ----------
    rows : Rows
        That shall be fitted.
    what : str
        The model, for the message.
    column : str
        Of the sizes, above 0.
    reach : float
        How many times the smallest the largest must be.

    Raises
    ------
    CalibrationError
        Naming the range that is there.
    """
    sizes = numbers(rows, column)
    least, most = float(sizes.min()), float(sizes.max())
    if not (least > 0 and np.isfinite(most)):
        raise CalibrationError(f"{what}: {column} goes from {least:g} to {most:g}; sizes are above 0 and finite")
    if most < reach * least:
        raise CalibrationError(
            f"{what}: {column} goes from {least:g} to {most:g} only; measure sizes that differ by a factor of {reach:g} or more, "
            "or latency cannot be told from bandwidth"
        )


def smooth_maximum(first: Floats, second: Floats, sharpness: float | Floats) -> Floats:
    """Return a maximum of two positive times with a rounded corner: ``(x**p + y**p)**(1/p)``, written so that no power overflows.

    Two limits that overlap in part cost more than the larger one and less than both together.

    Examples
    --------
    >>> smooth_maximum(np.asarray([3.0]), np.asarray([4.0]), 2.0).tolist()
    [5.0]
    """
    larger, smaller = np.maximum(first, second), np.minimum(first, second)
    ratio = np.divide(smaller, larger, out=np.zeros_like(larger), where=larger > 0)
    return np.asarray(larger * (1.0 + ratio**sharpness) ** (1.0 / sharpness))


def saturating(size: Floats, half: float, *, power: float = 1.0) -> Floats:
    """Return ``x**p / (1 + x**p)`` of ``x = size / half``: 0 for the smallest sizes, 1/2 at ``half``, 1 for the largest."""
    risen = (size / half) ** power
    return np.asarray(risen / (1.0 + risen))
