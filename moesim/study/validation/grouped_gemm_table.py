"""Grouped GEMMs of DeepGEMM by themselves: both projections of balanced experts, masked layout in decode and contiguous in prefill."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.base.streams import stream
from moesim.facts.arrays import Floats
from moesim.models.fitted.grouped_gemm_kernel import GroupedGemmKernel, tiles_chosen
from moesim.models.fitted.rows import Rows, count, labels, numbers, words
from moesim.study.validation.fitted_table import FittedTable, both_ops
from moesim.study.validation.machines import peaks, presets_of
from moesim.study.validation.number_formats import format_of, peak_flops
from moesim.study.validation.table_kind import register_table

FORMAT = "fp8"
"""The files do not say it. The times of the H20 do: up to 280 Tflop/s, of which its bf16 units have 148 at most; and the column ``mfu``
times 296 Tflop/s, its fp8 peak, is the rate of every row within a tenth."""

LEAST, MOST, DRAWS = 0.7, 1.3, 16
"""DeepGEMM's benchmark gives expert after expert ``int(mean x uniform(0.7, 1.3))`` rows (deepseek-ai/DeepGEMM, ``tests/generators.py``):
with a mean of one row, half of the experts have none, and the times say so."""


@lru_cache(maxsize=4096)
def drawn(experts: int, mean: float, tile: int) -> tuple[Floats, Floats, Floats]:
    """Return experts with rows, rows and row tiles of DRAWS batches whose experts get 0.7 to 1.3 times the mean."""
    shares = stream(0, "rows of a grouped GEMM", experts).uniform(LEAST, MOST, (DRAWS, experts))
    rows = np.floor(mean * shares)
    return (rows > 0).sum(axis=1).astype(np.float64), rows.sum(axis=1), np.ceil(rows / tile).sum(axis=1)


@register_table
class GroupedGemmTable(FittedTable):
    """One projection of all local experts; the regime is the phase."""

    model = GroupedGemmKernel
    name = "grouped_gemm"
    files = ("grouped_gemm_infersim*.csv",)
    columns = (
        "gpu", "phase", "num_local_experts", "hidden_size", "intermediate_size", "tokens_per_expert", "up_proj_us", "down_proj_us",
    )  # fmt: skip
    system_column = "gpu"
    source = "grouped_gemm_infersim.csv"

    def join(self, rows: Rows, companions: Mapping[str, Rows]) -> Mapping[str, NDArray[Any]]:  # noqa: ARG002 - the contract's name
        """Make two rows of each: both projections were timed."""
        return both_ops(rows, {"up": "up_proj_us", "down": "down_proj_us"})

    def inputs(self, rows: Rows) -> dict[str, NDArray[Any]]:
        """Return tiles, rows and the data sheet."""
        experts, hidden, width, mean = (
            numbers(rows, name) for name in ("num_local_experts", "hidden_size", "intermediate_size", "tokens_per_expert")
        )
        up, masked = words(rows, "op") == "up", words(rows, "phase") == "decode"
        presets, form = presets_of(words(rows, "gpu")), format_of(FORMAT)
        columns, sms = np.where(up, 2 * width, hidden), peaks(presets, "sms")
        tile, wide = tiles_chosen(mean, experts, columns, sms, ~masked)
        batches = [drawn(int(size), float(rows_each), int(tall)) for size, rows_each, tall in zip(experts, mean, tile, strict=True)]
        active, routed, tiles = (np.stack([batch[part] for batch in batches]) if batches else np.zeros((0, DRAWS)) for part in range(3))
        return {
            "active": active,
            "routed": routed,
            "tiles": tiles,
            "tile_rows": tile,
            "tile_columns": wide,
            "rows_per_expert": mean,
            "experts": experts,
            "columns": columns,
            "depth": np.where(up, hidden, width),
            "weight_bytes": np.full(count(rows), form.weight_bytes),
            "row_bytes": np.full(count(rows), form.row_bytes),
            "regime": self.regime(rows),
            "memory_bandwidth": peaks(presets, "memory_bandwidth"),
            "sms": sms,
            "peak_flops": peak_flops(presets, np.asarray([form.arithmetic] * count(rows))),
        }

    def sections(self, rows: Rows) -> NDArray[np.str_]:
        """Return the layout."""
        return np.where(words(rows, "phase") == "decode", "grouped_gemm.masked", "grouped_gemm.contiguous").astype(np.str_)

    def seconds(self, rows: Rows) -> Floats:
        """Return the time of the projection."""
        return numbers(rows, "measured_us") / 1e6

    def regime(self, rows: Rows) -> NDArray[np.str_]:
        """Return the phase."""
        return words(rows, "phase")

    def group(self, rows: Rows) -> NDArray[np.str_]:
        """Return GPU and shape: every held-back shape is new to the fit."""
        return labels(rows, ("gpu", "hidden_size", "intermediate_size"))

    def baseline(self, rows: Rows) -> tuple[str, Floats]:
        """Return the roofline at the data sheet's peaks."""
        inputs = self.inputs(rows)
        reading = inputs["active"].mean(axis=1) * inputs["columns"] * inputs["depth"] * inputs["weight_bytes"] / inputs["memory_bandwidth"]
        computing = inputs["routed"].mean(axis=1) * inputs["columns"] * inputs["depth"] * 2 / inputs["peak_flops"]
        return "roofline at the data sheet's peaks", np.maximum(reading, computing)
