"""MORI's dispatch and combine among AMD GPUs that are joined pair by pair."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.base.errors import CalibrationError, did_you_mean
from moesim.facts.arrays import Floats
from moesim.facts.model import DTYPE_BYTES
from moesim.facts.profile import Profile
from moesim.models.fitted.nvlink_rack import NvlinkRack
from moesim.models.fitted.rows import Rows, count, labels, numbers, words
from moesim.models.fitted.uniform_routing import expected_distinct
from moesim.study.validation.fitted_table import FittedTable, alpha_beta
from moesim.study.validation.machines import presets_of
from moesim.study.validation.table_kind import UNSAID, Prediction, register_table

TOP_K, EXPERTS = 8, 256
"""The tuning tool's default shape, by the table's header."""

PAIR_BANDWIDTH = {"mi300x": 64e9, "mi308x": 64e9, "mi325x": 64e9, "mi350x": 76.8e9, "mi355x": 76.8e9}
"""B/s one way of the Infinity Fabric link between two GPUs (AMD Instinct data sheets, not read again: 128 and 153.6 GB/s both ways)."""

UNMEASURED = ("mi325x",)
"""Of these, no row was fitted: their predictions rest on the data sheet, although one profile answers for the whole family."""

DTYPES = {
    "fp8": "fp8", "fp8_e4m3": "fp8", "fp8_e4m3_fnuz": "fp8", "bf16": "bf16", "fp4": "fp4", "fp16": "fp16", "bfloat16": "bf16",
    "float16": "fp16",
}  # fmt: skip

FULL_HIDDEN = 7168
"""The tuner writes fp4 with half as many elements of 8 bits: rows of 3584 are tokens of 7168."""


@register_table
class MoriMesh(FittedTable):
    """Each pair of GPUs has a link of its own, so what counts is the bytes of one pair: they fall as EP grows."""

    model = NvlinkRack
    name = "mori_dispatch_combine_amd"
    files = ("mori_dispatch_combine_amd*.csv",)
    columns = ("gpu", "kernel", "ep", "op", "dtype", "hidden_size", "tokens_per_rank", "quant", "latency_us")
    system_column = "gpu"
    source = "mori_dispatch_combine_amd.csv"

    def presets(self, rows: Rows) -> NDArray[np.str_]:
        """Return one preset for the whole family: its members share a profile, and :data:`PAIR_BANDWIDTH` tells their links apart."""
        names = words(rows, "gpu")
        return np.where(np.char.find(np.char.lower(names), "mi3") >= 0, "mi300x", presets_of(names)).astype(np.str_)

    def inputs(self, rows: Rows) -> dict[str, NDArray[Any]]:
        """Return tokens, peers, the bytes per token on the link of one pair and its peak."""
        ranks, size = numbers(rows, "ep"), count(rows)
        shape = np.full(size, float(EXPERTS)), np.full(size, float(TOP_K))
        each = numbers(rows, "hidden_size") * np.asarray([_element(str(name)) for name in words(rows, "dtype")])
        # Combine may send fp8 although its tokens are bf16.
        each = np.where(words(rows, "quant") == "fp8_direct_cast", each / 2, each)
        pair = np.asarray([PAIR_BANDWIDTH.get(str(name).lower(), np.nan) for name in words(rows, "gpu")])
        share = expected_distinct(ranks, *shape) / ranks
        return {"num_tokens": numbers(rows, "tokens_per_rank"), "copies": ranks, "port_bytes": share * each, "link_bandwidth": pair}

    def predict(self, rows: Rows, profiles: Mapping[str, Profile]) -> Prediction:
        """Predict every row; flag GPUs that follow from the data sheet, and name those whose links are not known."""
        found = super().predict(rows, profiles)
        reasons, basis = found.reasons.copy(), found.basis.copy()
        for row, name in enumerate(words(rows, "gpu").tolist()):
            if name.lower() in UNMEASURED and np.isfinite(found.values[row]):
                basis[row] = "datasheet"
            elif name.lower() not in PAIR_BANDWIDTH and str(reasons[row]) == UNSAID:
                reasons[row] = f"the bandwidth of a link between two GPUs of {name!r} is not known; it is of {', '.join(PAIR_BANDWIDTH)}"
        return replace(found, reasons=reasons, basis=basis)

    def sections(self, rows: Rows) -> NDArray[np.str_]:
        """Return the operation; between nodes it is another kernel, which was not fitted."""
        parts = zip(words(rows, "kernel").tolist(), words(rows, "op").tolist(), strict=True)
        return np.asarray([f"mori_mesh.{kernel}.{op}" for kernel, op in parts])

    def seconds(self, rows: Rows) -> Floats:
        """Return the latency."""
        return numbers(rows, "latency_us") / 1e6

    def regime(self, rows: Rows) -> NDArray[np.str_]:
        """Return kernel and operation."""
        return np.asarray([f"{kernel} {op}" for kernel, op in zip(words(rows, "kernel").tolist(), words(rows, "op").tolist(), strict=True)])

    def group(self, rows: Rows) -> NDArray[np.str_]:
        """Return GPU, operation and EP."""
        return labels(rows, ("gpu", "kernel", "op", "ep"))

    def baseline(self, rows: Rows) -> tuple[str, Floats]:
        """Return one alpha and one beta per GPU and operation for the bytes of a rank's tokens."""
        each = np.asarray([_element(str(name)) for name in words(rows, "dtype")])
        sent = numbers(rows, "tokens_per_rank") * numbers(rows, "hidden_size") * each
        return "one alpha-beta per GPU and operation, fitted to these rows", alpha_beta(
            sent, self.seconds(rows), labels(rows, ("gpu", "op"))
        )


def _element(dtype: str) -> float:
    known = dtype.lower()
    if known not in DTYPES:
        raise CalibrationError(f"the number format {dtype!r} is not known{did_you_mean(dtype, DTYPES)}")
    # fp4 rows count bytes as elements; see FULL_HIDDEN.
    return 1.0 if known == "fp4" else float(DTYPE_BYTES[DTYPES[known]])
