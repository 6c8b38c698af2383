"""Kernel times as they were measured: a table of seconds by rows, with straight lines between its points."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np

from moesim.base.errors import FieldError, PluginError
from moesim.base.fields import Count, FlopsPerSecond, ReadFile, Seconds, Text, section
from moesim.base.registry import register
from moesim.facts.arrays import Floats, Ints
from moesim.facts.program import FORWARD
from moesim.facts.scenario import Setting
from moesim.models.compute.peaks import peak
from moesim.models.compute.roofline import roofline_seconds

BACKWARD_OVER_FORWARD = 2.0
"""Each GEMM of the forward pass has two in the backward pass, of as many operations each."""


def interpolated(rows: Ints | Floats, at: Floats, seconds: Floats) -> Floats:
    """Read a table of seconds at other numbers of rows.

    Parameters
    ----------
    rows : array
        Where to read it.
    at : float[N]
        Rows of the table, increasing.
    seconds : float[N]
        Its times.

    Returns
    -------
    Floats
        0 for no rows; the first time up to the first point (a kernel with one row reads the weights as well); straight lines between
        points, for a GEMM is linear in its rows between the sizes of its tiles; in proportion to the rows beyond the last point.
    """
    count = np.asarray(rows, dtype=np.float64)
    inside = np.interp(count, at, seconds)
    return np.asarray(np.where(count > at[-1], seconds[-1] * count / at[-1], np.where(count > 0, inside, 0.0)))


def rising(seconds: Floats) -> Floats:
    """Return a table without dips: more rows never take less time, whatever noise there was in a measurement."""
    return np.asarray(np.maximum.accumulate(seconds))


@section
@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertTimes:
    """Seconds of one expert on one device, alone.

    Parameters
    ----------
    rows : list of int
        Numbers of rows that were measured, increasing.
    forward : list of time
        Seconds of each.
    backward : list of time
        Seconds of the backward pass; if left out, twice the forward pass (assumed).
    shape : str or None
        Hidden size and width of the expert, such as ``512x1536``; a model with another expert is refused. If left out, nobody checks.
    source : str or None
        What measured it.
    """

    rows: tuple[Count, ...]
    forward: tuple[Seconds, ...]
    backward: tuple[Seconds, ...] = ()
    shape: Text | None = None
    source: Text | None = None

    def __post_init__(self) -> None:
        if not self.rows:
            raise FieldError("rows", "the table is empty: give at least one number of rows and its seconds")
        if list(self.rows) != sorted(set(self.rows)):
            raise FieldError("rows", "rows must be increasing, each number once")
        for name, times in (("forward", self.forward), ("backward", self.backward)):
            if len(times) != len(self.rows) and (times or name == "forward"):
                raise FieldError(name, f"{len(times)} times for {len(self.rows)} numbers of rows: give one for each")
            if times and not min(times) > 0:
                raise FieldError(name, "a kernel takes more than 0 s")


@dataclass(frozen=True, slots=True, kw_only=True)
class TableKernels:
    """Kernels of one run; see :class:`Table`."""

    rows: Floats
    forward: Floats
    backward: Floats
    rate: float | None
    setting: Setting
    launch: float
    basis: str = "assumed"
    """Experts are measured, but what is not an expert is a roofline."""

    def dense(self, flops: Floats, moved: Floats, *, dtype: str) -> Floats:
        """Return seconds, elementwise: the roofline of the rate that was measured, or of the device's peaks."""
        gpu = self.setting.cluster.gpu
        return roofline_seconds(flops, moved, peak(gpu, dtype) if self.rate is None else self.rate, gpu.memory_bandwidth, self.launch)

    def experts(self, rows: Ints, *, direction: str) -> Floats:
        """Return float[G] from int[G, slots] rows: experts run one after the other."""
        return np.asarray(interpolated(rows, self.rows, self.forward if direction == FORWARD else self.backward).sum(axis=1))


@register("compute", "table")
@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """Time experts as they were measured: each alone, by its rows, one after the other.

    For devices that no profile describes, such as the cores of a testbed. An expert costs what the table says at its rows, with straight
    lines between the points; beyond the last point the time grows in proportion to the rows. Where a table dips, the highest time so far
    counts. On one CPU thread this errs by 0.5 to 3 % for 16 rows and more; below, times are not smooth and only a point at every number of
    rows helps.

    Parameters
    ----------
    file : path or None
        A solo calibration as ``moesim measure testbed`` writes it.
    shape : str or None
        Which experts of the file, such as ``512x1536`` (hidden size x expert width); needed if it holds several.
    experts : section or None
        The times themselves, instead of a file.
    dense_rate : flop/s or None
        What everything but experts achieves; if left out, the device's peak.
    launch : time
        Per dense phase.
    """

    file: Annotated[str, ReadFile(reader="expert_times", into="experts")] | None = None
    shape: Text | None = None
    experts: ExpertTimes | None = None
    dense_rate: FlopsPerSecond | None = None
    launch: Seconds = 0.0

    def __post_init__(self) -> None:
        if self.experts is None and self.file is None:
            raise FieldError("file", "a table needs a file of a calibration, or the times themselves as experts")
        if self.file is not None and self.experts is not None:
            raise FieldError("file", "a table has either a file or the times of experts, not both")

    def begin(self, setting: Setting) -> TableKernels:
        """Return the kernels of one run.

        Raises
        ------
        PluginError
            If a file was named that nobody has read, or the times are those of an expert of another shape than the model's.
        """
        times, model = self.experts, setting.model
        if times is None:
            raise PluginError(f"{self.file} was not read: load the scenario with load_scenario, or give the times themselves")
        own = f"{model.dispatch_width}x{model.expert_width}"
        if times.shape is not None and times.shape != own:
            raise PluginError(f"compute.experts holds times of {times.shape} experts, but those of {model.name} are {own}")
        forward = rising(np.array(times.forward))
        return TableKernels(
            rows=np.array(times.rows, dtype=np.float64),
            forward=forward,
            backward=rising(np.array(times.backward)) if times.backward else BACKWARD_OVER_FORWARD * forward,
            rate=self.dense_rate,
            setting=setting,
            launch=self.launch,
        )
