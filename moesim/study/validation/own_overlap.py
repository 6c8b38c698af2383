"""Experts beside an all-to-all, as 'moesim measure overlap' times them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.facts.arrays import Floats
from moesim.models.fitted.overlap import BOTH, COMPUTE, EXCHANGE, Overlap
from moesim.models.fitted.parametric import Parametric
from moesim.models.fitted.rows import Rows, labels, numbers, words
from moesim.study.validation.fitted_table import both_ops
from moesim.study.validation.own_table import OwnTable
from moesim.study.validation.table_kind import register_table


@register_table
class OwnOverlap(OwnTable):
    """Three ends of a pair that starts together, from the times that each takes alone; the regime says which end."""

    name = "own_overlap"
    files = ("overlap.csv", "overlap_*.csv")
    columns = (
        "system", "library", "num_gpus", "rows", "compute_us", "exchange_us", "overlapped_us", "compute_beside_us", "exchange_beside_us",
    )  # fmt: skip
    source = "overlap.csv of 'moesim measure'"

    def join(self, rows: Rows, companions: Mapping[str, Rows]) -> Mapping[str, NDArray[Any]]:  # noqa: ARG002 - the contract's name
        """Make three rows of each: both ended, the experts did, the exchange did."""
        return both_ops(rows, {BOTH: "overlapped_us", COMPUTE: "compute_beside_us", EXCHANGE: "exchange_beside_us"})

    def model_of(self, section: str) -> type[Parametric]:
        """Return the model."""
        del section
        return Overlap

    def sections(self, rows: Rows) -> NDArray[np.str_]:
        """Return ``overlap.LIBRARY``."""
        return np.asarray([f"overlap.{name}" for name in words(rows, "library").tolist()], dtype=np.str_)

    def inputs(self, section: str, rows: Rows) -> dict[str, NDArray[Any]]:
        """Return both times alone, and which end is asked."""
        del section
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
        return "overlap that costs nothing", np.asarray(values)
