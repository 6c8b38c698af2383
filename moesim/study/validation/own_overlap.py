"""Experts beside an all-to-all, as 'moesim measure overlap' times them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.base.errors import CalibrationError
from moesim.facts.arrays import Floats
from moesim.models.fitted.expert_loop import ExpertLoop
from moesim.models.fitted.overlap import BOTH, COMPUTE, EXCHANGE, Overlap
from moesim.models.fitted.parametric import Parametric
from moesim.models.fitted.rows import Rows, labels, numbers, take, words
from moesim.study.validation.fitted_table import both_ops
from moesim.study.validation.machines import preset_of
from moesim.study.validation.own_compute import GROUPED, loop_inputs
from moesim.study.validation.own_table import OwnTable
from moesim.study.validation.table_kind import register_table

ALONE, TOGETHER = "alone", ".together"
"""Experts without an exchange beside them, but on all ranks of a machine at once; and what the name of their section ends with."""

SHAPE = ("kernel_source", "moe_dtype", "hidden_size", "inter_size", "num_local_experts")


@register_table
class OwnOverlap(OwnTable):
    """Three ends of a pair that starts together, from the times that each takes alone; the regime says which end.

    The time of the experts alone is predicted, too: all ranks are at it, as in a layer, while 'moesim measure compute' times one. Ranks
    that share memory, or hyperthreads of one core, are then slower, and weights come from memory, for an exchange went by since.
    """

    name = "own_overlap"
    files = ("overlap.csv", "overlap_*.csv")
    columns = (
        "system", "library", "num_gpus", "rows", "compute_us", "exchange_us", "overlapped_us", "compute_beside_us", "exchange_beside_us",
    )  # fmt: skip
    source = "overlap.csv of 'moesim measure'"

    def join(self, rows: Rows, companions: Mapping[str, Rows]) -> Mapping[str, NDArray[Any]]:  # noqa: ARG002 - the contract's name
        """Make three rows of each: both ended, the experts did, the exchange did; and one of the experts alone, on all ranks at once."""
        ends = {BOTH: "overlapped_us", COMPUTE: "compute_beside_us", EXCHANGE: "exchange_beside_us"}
        if not all(name in rows for name in SHAPE):
            return both_ops(rows, ends)
        found = both_ops(rows, {**ends, ALONE: "compute_us"})
        grouped = np.isin(words(found, "kernel_source"), GROUPED) & np.asarray([bool(preset_of(name)) for name in words(found, "system")])
        return take(found, ~(grouped & (words(found, "op") == ALONE)))  # what a GPU's grouped kernels take stands in another table

    def model_of(self, section: str) -> type[Parametric]:
        """Return the model."""
        return Overlap if section.startswith("overlap") else ExpertLoop

    def fitted(self, section: str, given: Rows, seconds: Floats) -> Parametric:
        """Return the fit of a section; of experts alone, a few sizes tell the two rates."""
        if self.model_of(section) is Overlap:
            return Overlap.fit(given, seconds, source=self.source)
        return ExpertLoop.fit_rates(given, seconds, source=f"{self.source}, experts alone")

    def sections(self, rows: Rows) -> NDArray[np.str_]:
        """Return ``overlap.LIBRARY``, or ``expert_loop.KERNEL.DTYPE.together`` of experts alone."""
        libraries, ops = words(rows, "library").tolist(), words(rows, "op").tolist()
        kernels, formats = (words(rows, name).tolist() if name in rows else libraries for name in ("kernel_source", "moe_dtype"))
        return np.asarray(
            [
                f"expert_loop.{kernel}.{form}{TOGETHER}" if op == ALONE else f"overlap.{library}"
                for library, op, kernel, form in zip(libraries, ops, kernels, formats, strict=True)
            ],
            dtype=np.str_,
        )

    def inputs(self, section: str, rows: Rows) -> dict[str, NDArray[Any]]:
        """Return both times alone, and which end is asked; of experts alone, their rows."""
        if self.model_of(section) is ExpertLoop:
            routed, slots = numbers(rows, "rows"), numbers(rows, "num_local_experts")
            if np.any(slots < 1):
                raise CalibrationError("num_local_experts: a rank with a share of the experts holds at least one")
            local = np.where(np.arange(int(slots.max(initial=1))) < slots[:, None], (routed / slots)[:, None], 0.0)
            width = numbers(rows, "inter_size")
            return loop_inputs(local, numbers(rows, "hidden_size"), width, np.full(len(width), 3.0), words(rows, "moe_dtype"))
        return {
            "compute_seconds": numbers(rows, "compute_us") / 1e6,
            "exchange_seconds": numbers(rows, "exchange_us") / 1e6,
            "num_gpus": numbers(rows, "num_gpus"),
            "op": words(rows, "op"),
        }

    def seconds(self, rows: Rows) -> Floats:
        """Return the end that was timed."""
        return numbers(rows, "measured_us") / 1e6

    def regime(self, rows: Rows) -> NDArray[np.str_]:
        """Return which end."""
        return words(rows, "op")

    def group(self, rows: Rows) -> NDArray[np.str_]:
        """Return system, ranks and rows: what computes beside exchanges of several sizes is held back whole."""
        return labels(rows, ("system", "library", "num_gpus", "rows"))

    def baseline(self, rows: Rows) -> tuple[str, Floats]:
        """Return overlap for nothing: each takes what it takes alone, and the longer one is the end."""
        alone, moving, op = numbers(rows, "compute_us") / 1e6, numbers(rows, "exchange_us") / 1e6, words(rows, "op")
        values = np.where(op == COMPUTE, alone, np.where(op == EXCHANGE, moving, np.maximum(alone, moving)))
        values = np.where(op == ALONE, np.nan, values)
        return "overlap that costs nothing", np.asarray(values)
