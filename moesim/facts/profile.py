"""A profile: what fits to measurements found about one kind of machine, each number with where it comes from."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from moesim.base.errors import did_you_mean
from moesim.facts.arrays import Bools, Floats
from moesim.facts.evidence import STRENGTH, weakest

WEAK = 0.3
"""How far a draw of logarithms goes along a principal axis of the covariance: a factor of 1.35, up to which models are close to linear."""

SCALES = ("log", "plain")
"""What a covariance is of: the natural logarithms of the values, or the values themselves."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameter:
    """One fitted number.

    Parameters
    ----------
    name : str
        Also the field of the model that uses it.
    value : float
        In SI units.
    unit : str
        ``s``, ``B/s``, ``flop/s``, ``B`` or empty.
    basis : str
        A word of :data:`moesim.facts.evidence.STRENGTH`.
    source, date : str
        Which table or data sheet, and when it was read or measured.
    error : float or None
        One standard error in the parameter's unit; None where the fit cannot tell.
    """

    name: str
    value: float
    unit: str
    basis: str
    source: str
    date: str
    error: float | None = None

    def __post_init__(self) -> None:
        if self.basis not in STRENGTH:
            raise ValueError(f"parameter {self.name}: unknown basis {self.basis!r}{did_you_mean(self.basis, STRENGTH)}")
        if not math.isfinite(self.value):
            raise ValueError(f"parameter {self.name}: {self.value} is not a finite number")
        if self.error is not None and not (math.isfinite(self.error) and self.error >= 0):
            raise ValueError(f"parameter {self.name}: the error {self.error} is not a finite number of at least 0")


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """One fitted model: its parameters, how sure they are, and where it may be asked.

    Parameters
    ----------
    model : str
        Name of the model that the parameters belong to, such as ``nccl_all_to_all``.
    parameters : tuple of Parameter
        P of them, each name once.
    covariance : float[P][P] or None
        Of the parameters in their order; row and column are 0 for one that was not fitted. Any array will do; it is kept as tuples, so that
        sections can be compared.
    scale : str
        ``log`` (the default) or ``plain``: what the covariance is of.
    fitted_range : mapping of str to (float, float)
        Least and most of each quantity among the rows of the fit, by column name.
    rows : int
        Rows that the fit used; 0 where nothing was fitted.
    scatter : mapping of str to float
        Standard deviation of the logarithm of measured over predicted, by regime; the key ``""`` holds that of all rows.
    source : str
        Table, or how the section follows from another one.
    carried_from : str
        GPU that was measured, where it is another one than the profile's: the section then follows from ratios of data sheets.
    """

    model: str
    parameters: tuple[Parameter, ...]
    covariance: Sequence[Sequence[float]] | Floats | None = None
    scale: str = "log"
    fitted_range: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    rows: int = 0
    scatter: Mapping[str, float] = field(default_factory=dict)
    source: str = ""
    carried_from: str = ""

    def __post_init__(self) -> None:
        names = [parameter.name for parameter in self.parameters]
        if len(set(names)) < len(names):
            raise ValueError(f"section {self.model}: a parameter stands twice in {', '.join(names)}")
        if self.scale not in SCALES:
            raise ValueError(f"section {self.model}: unknown scale {self.scale!r}{did_you_mean(self.scale, SCALES)}")
        if self.covariance is not None:
            matrix = np.asarray(self.covariance, dtype=np.float64)
            _check_covariance(self.model, matrix, len(names))
            object.__setattr__(self, "covariance", tuple(tuple(row) for row in matrix.tolist()))
        for name, (least, most) in self.fitted_range.items():
            if not least <= most:
                raise ValueError(f"section {self.model}: the range of {name} is from {least} to {most}")

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the parameters, in order."""
        return tuple(parameter.name for parameter in self.parameters)

    @property
    def matrix(self) -> Floats | None:
        """The covariance as float[P, P]."""
        return None if self.covariance is None else np.asarray(self.covariance, dtype=np.float64).reshape(len(self.names), len(self.names))

    @property
    def basis(self) -> str:
        """The weakest basis among the parameters."""
        return weakest(parameter.basis for parameter in self.parameters)

    def values(self) -> dict[str, float]:
        """Return the parameters' values by name: the keyword arguments of the model."""
        return {parameter.name: parameter.value for parameter in self.parameters}

    def outside(self, quantities: Mapping[str, Floats]) -> Bools:
        """Tell which rows lie outside the fitted range; a quantity without a range counts as inside.

        Parameters
        ----------
        quantities : mapping of str to Floats[n]
            By column name; names that the section has no range of are ignored.

        Returns
        -------
        Bools[n]
        """
        length = len(next(iter(quantities.values()))) if quantities else 0
        beyond = np.zeros(length, dtype=bool)
        for name, (least, most) in self.fitted_range.items():
            if name in quantities:
                column = np.asarray(quantities[name], dtype=np.float64)
                beyond |= (column < least - 1e-9 * abs(least)) | (column > most + 1e-9 * abs(most))
        return beyond

    def slowed(self, factor: float) -> Section:
        """Return the section of kernels that take ``factor`` times as long on every row.

        Times are multiplied (``s``, ``s/B``), rates and shares of a peak rate divided (``B/s``, ``flop/s``, names that end in
        ``efficiency`` or hold ``_efficiency_``); counts, sizes and shapes of curves stay. Every model of :mod:`moesim.models.fitted` is a
        sum or a maximum of such terms, so that its predictions are multiplied by exactly ``factor``.
        """
        return replace(self, parameters=tuple(replace(item, value=item.value * factor ** _power_of_time(item)) for item in self.parameters))

    def draws(self, count: int, rng: np.random.Generator) -> Iterator[dict[str, float]]:
        """Yield ``count`` sets of values that the measurements would have allowed as well.

        Values are drawn from a normal distribution with the section's covariance, of their logarithms or of themselves. A draw of a plain
        value below 0 is cut at 0, for no parameter of a model may be negative. Without a covariance each draw is the values themselves.

        A mixture of logarithms that the rows hardly determine has a large variance because, next to the fit, no prediction depends on it.
        Far from the fit predictions would, so a draw goes no farther than ``WEAK`` along such a direction.
        """
        values = self.values()
        matrix = self.matrix
        if matrix is None:
            yield from (dict(values) for _ in range(count))
            return
        # A covariance of full rank is rare: parameters may be fixed. Principal axes work for any that is not negative.
        sizes, axes = np.linalg.eigh(matrix)
        lengths = np.sqrt(np.maximum(sizes, 0.0))
        centre = np.asarray(list(values.values()))
        limit = WEAK if self.scale == "log" else np.inf
        for _ in range(count):
            step = axes @ np.clip(lengths * rng.standard_normal(len(centre)), -limit, limit)
            drawn = centre * np.exp(step) if self.scale == "log" else np.maximum(centre + step, 0.0)
            yield dict(zip(values, drawn.tolist(), strict=True))


def _power_of_time(parameter: Parameter) -> int:
    """Return 1 for a time, -1 for a rate or a share of one, 0 for what has nothing to do with time."""
    if parameter.unit == "s" or parameter.unit.startswith("s/"):
        return 1
    if parameter.unit.endswith("/s") or "efficiency" in parameter.name.split("_"):
        return -1
    return 0


def _check_covariance(model: str, matrix: Floats, size: int) -> None:
    if matrix.shape != (size, size) and size:
        raise ValueError(f"section {model}: a covariance of {size} parameters has {size} rows and columns, not the shape {matrix.shape}")
    if not np.all(np.isfinite(matrix)):
        raise ValueError(f"section {model}: the covariance holds a number that is not finite")
    largest = float(np.abs(matrix).max(initial=0.0))
    if not np.allclose(matrix, matrix.T, rtol=1e-6, atol=1e-12 * largest):
        raise ValueError(f"section {model}: the covariance is not symmetric")
    if size and float(np.linalg.eigvalsh(matrix).min()) < -1e-8 * max(largest, 1e-300):
        raise ValueError(f"section {model}: the covariance has a negative variance in some direction")


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """All that was fitted on one kind of machine.

    Parameters
    ----------
    name : str
        Such as ``h200-sxm``; also the name of its file.
    gpu : str
        Name of the GPU preset that was measured; ``cpu`` for a machine without a GPU.
    made : str
        Month in which it was made, such as ``2026-11``.
    sections : mapping of str to Section
        By the name under which models ask for them, such as ``expert_ffn.vllm``.
    note : str
        What a user must know before trusting it.
    """

    name: str
    gpu: str
    made: str
    sections: Mapping[str, Section]
    note: str = ""

    @property
    def basis(self) -> str:
        """The weakest basis among the sections."""
        return weakest(section.basis for section in self.sections.values())
