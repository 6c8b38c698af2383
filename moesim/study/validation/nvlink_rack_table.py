"""Prepare, dispatch and combine inside one NVLink rack."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.facts.arrays import Bools, Floats
from moesim.facts.profile import Section
from moesim.models.fitted.nvlink_rack import NvlinkRack, copies_of, port_bytes
from moesim.models.fitted.rows import Rows, count, each, labels, numbers, words
from moesim.study.validation.fitted_table import FittedTable, alpha_beta
from moesim.study.validation.machines import peaks, presets_of
from moesim.study.validation.number_formats import format_of
from moesim.study.validation.table_kind import register_table

PREFIX = "alltoall_"
DTYPES = ("bfloat16", "fp8", "nvfp4")
KERNELS = ("NVLinkTwoSided", "NVLinkOneSided")

ROWS = {1: "nvfp4", 2: "fp8", 4: "bfloat16"}
"""In which of the formats that were measured rows travel, by the half bytes of an element: weights may be narrower than their rows."""


def _sent_as(dtype: str) -> str:
    """Return the measured format in which rows of a number format travel."""
    return ROWS[math.floor(2 * format_of(dtype).row_bytes)]


@register_table
class NvlinkRackTable(FittedTable):
    """Phases of TensorRT-LLM's all-to-all kernels; the regime is the phase."""

    model = NvlinkRack
    name = "nvlink_moe_alltoall"
    files = ("*nvlink_moe_alltoall*.csv",)
    columns = ("device", "kernel_source", "op_name", "moe_dtype", "moe_ep_size", "num_tokens", "hidden_size", "topk", "time_us")
    system_column = "device"
    source = "gb200_nvlink_moe_alltoall.csv"

    def inputs(self, rows: Rows) -> dict[str, NDArray[Any]]:
        """Return tokens, copies of a token, the bytes that pass the port and its peak."""
        ranks, top_k, hidden = (numbers(rows, name) for name in ("moe_ep_size", "topk", "hidden_size"))
        ops = np.char.replace(words(rows, "op_name"), PREFIX, "")
        sent = {name: _sent_as(name) for name in np.unique(words(rows, "moe_dtype")).tolist()}
        dtypes = np.asarray([sent[name] for name in words(rows, "moe_dtype").tolist()], dtype=np.str_)
        moved = np.zeros(count(rows))
        for mask in each(rows, labels({"op": ops, "kernel": words(rows, "kernel_source")}, ("op", "kernel"))).values():
            kernel = str(words(rows, "kernel_source")[mask][0])
            moved[mask] = port_bytes(str(ops[mask][0]), kernel, ranks[mask], top_k[mask], hidden[mask], dtypes[mask])
        return {
            "num_tokens": numbers(rows, "num_tokens"),
            "copies": copies_of(ranks, top_k),
            "port_bytes": moved,
            "link_bandwidth": peaks(presets_of(words(rows, "device")), "nvlink"),
        }

    def sections(self, rows: Rows) -> NDArray[np.str_]:
        """Return kernel, phase and dtype."""
        ops = np.char.replace(words(rows, "op_name"), PREFIX, "")
        parts = zip(words(rows, "kernel_source").tolist(), ops.tolist(), words(rows, "moe_dtype").tolist(), strict=True)
        return np.asarray([".".join(("nvlink_rack", *part)) for part in parts])

    def instead(self, name: str) -> tuple[str, ...]:
        """Return the phase in the dtype that rows travel in, in another, then of the other kernel: bytes follow, the launch does not."""
        _, kernel, op, dtype = name.split(".", 3)
        kernels = (kernel, *(other for other in KERNELS if other != kernel))
        return tuple(f"nvlink_rack.{who}.{op}.{what}" for who in kernels for what in (_sent_as(dtype), *DTYPES))

    def beyond(self, section: Section, inputs: Rows, rows: Rows) -> Bools:
        """Tell rows outside the fitted range, and larger groups: nobody measured that ranks beyond the copies of a token cost nothing."""
        most = section.fitted_range.get("copies", (0.0, np.inf))[1]
        return np.asarray(super().beyond(section, inputs, rows) | (numbers(rows, "moe_ep_size") > most))

    def seconds(self, rows: Rows) -> Floats:
        """Return the measured time."""
        return numbers(rows, "time_us") / 1e6

    def regime(self, rows: Rows) -> NDArray[np.str_]:
        """Return the phase."""
        return np.asarray(np.char.replace(words(rows, "op_name"), PREFIX, ""))

    def group(self, rows: Rows) -> NDArray[np.str_]:
        """Return device, kernel, phase, dtype and EP."""
        return labels(rows, ("device", "kernel_source", "op_name", "moe_dtype", "moe_ep_size"))

    def baseline(self, rows: Rows) -> tuple[str, Floats]:
        """Return one alpha and one beta per kernel and phase for the bytes of a rank's choices."""
        dtype_bytes = np.asarray([{"nvfp4": 0.5, "fp8": 1.0}.get(str(name), 2.0) for name in words(rows, "moe_dtype")])
        back = np.char.find(words(rows, "op_name"), "combine") >= 0
        sent = numbers(rows, "num_tokens") * numbers(rows, "topk") * numbers(rows, "hidden_size") * np.where(back, 2.0, dtype_bytes)
        keys = labels(rows, ("device", "kernel_source", "op_name"))
        return "one alpha-beta per kernel and phase, fitted to these rows", alpha_beta(sent, self.seconds(rows), keys)
