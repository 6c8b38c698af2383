"""Tables of DeepEP's low-latency and normal kernels, in one node and between nodes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from moesim.facts.arrays import Floats
from moesim.models.fitted import deepep_low_latency, deepep_normal
from moesim.models.fitted.deepep_low_latency import DeepEpLowLatency, message_bytes
from moesim.models.fitted.deepep_normal import DeepEpNormal, copies, row_bytes
from moesim.models.fitted.parametric import Parametric
from moesim.models.fitted.rows import Rows, count, labels, numbers, words
from moesim.study.validation.fitted_table import FittedTable, alpha_beta, both_ops
from moesim.study.validation.machines import TRAY, in_rack, peaks, presets_of
from moesim.study.validation.number_formats import has_units
from moesim.study.validation.table_kind import register_table

NODE = 8
"""GPUs of a node that is no tray of a rack."""

OUTLIER = 8
"""Nodes from which on normal dispatch is a class of its own: in the source 3 times slower than at 4, while combine is not."""


class DeepEpTable(FittedTable):
    """What the four tables share: dispatch and combine in one row, nodes that may be trays of one NVLink rack."""

    kernel: ClassVar[str]

    def machine(self, rows: Rows) -> dict[str, NDArray[Any]]:
        """Return nodes, GPUs of a node and peaks; the trays of a rack are one node, for NVLink joins them."""
        presets = presets_of(words(rows, "system"))
        nodes, rack = numbers(rows, "node_num"), in_rack(words(rows, "system"))
        return {
            "node_num": np.where(rack, 1.0, nodes),
            "gpus_per_node": np.where(rack, TRAY * nodes, float(NODE)),
            "link_bandwidth": peaks(presets, "nvlink"),
            "nic_bandwidth": peaks(presets, "nic"),
        }

    def without_fp8(self, rows: Rows) -> NDArray[np.bool_]:
        """Tell the rows of GPUs without fp8: their dispatch sends bf16."""
        presets = presets_of(words(rows, "system"))
        return np.asarray(~has_units(presets, np.full(count(rows), "fp8")))

    def sections(self, rows: Rows) -> NDArray[np.str_]:
        """Return the kernel and the operation; what was measured between nodes, with another version of the library, is apart."""
        across = np.where(self.machine(rows)["node_num"] > 1, "_internode", "")
        across = np.full(count(rows), "_internode") if self.internode else across
        return np.asarray([f"{self.kernel}{where}.{op}" for where, op in zip(across.tolist(), words(rows, "op").tolist(), strict=True)])

    internode: ClassVar[bool] = False

    def seconds(self, rows: Rows) -> Floats:
        """Return the measured time."""
        return numbers(rows, "measured_us") / 1e6

    def regime(self, rows: Rows) -> NDArray[np.str_]:
        """Return where and what: ``intra_node dispatch``, ``inter_node combine``, from 4 nodes on with their number."""
        nodes = numbers(rows, "node_num").astype(int)
        where = ["intra_node" if node == 1 else "inter_node" if node == 2 else f"inter_node_{node}" for node in nodes.tolist()]
        return np.asarray([f"{place} {op}" for place, op in zip(where, words(rows, "op").tolist(), strict=True)])

    def assumed(self, rows: Rows) -> NDArray[np.bool_]:
        """Tell the rows of more nodes than two: the crowding of their cards was never measured."""
        return np.asarray(self.machine(rows)["node_num"] > 2)


class LowLatencyTable(DeepEpTable):
    """Low-latency kernels."""

    model = DeepEpLowLatency
    kernel = "deepep_low_latency"
    columns = ("system", "node_num", "hidden_size", "tokens_per_rank", "num_topk", "num_experts", "dispatch_us", "combine_us")

    def join(self, rows: Rows, companions: Mapping[str, Rows]) -> Rows:
        """Make two rows of each."""
        del companions
        return both_ops(rows, {"dispatch": "dispatch_us", "combine": "combine_us"})

    def inputs(self, rows: Rows) -> dict[str, NDArray[Any]]:
        """Return the shape, the bytes of a message and the machine."""
        out, hidden = words(rows, "op") == "dispatch", numbers(rows, "hidden_size")
        sent = np.where(self.without_fp8(rows), message_bytes(hidden, "dispatch", dtype="bf16"), message_bytes(hidden, "dispatch"))
        size = np.where(out, sent, message_bytes(hidden, "combine"))
        shape = {name: numbers(rows, name) for name in ("tokens_per_rank", "num_topk", "num_experts")}
        return {**shape, "message_bytes": size, **self.machine(rows)}

    def fitted(self, section: str, inputs: Rows, seconds: Floats) -> Parametric:
        """Return the model, started from what the tables of one node say of this operation."""
        start = deepep_low_latency.START_OF[section.rpartition(".")[2]]
        return DeepEpLowLatency.fit(inputs, seconds, source=self.source, start=start)

    def group(self, rows: Rows) -> NDArray[np.str_]:
        """Return system, nodes and shape."""
        return labels(rows, ("system", "node_num", "hidden_size", "num_topk", "num_experts"))


@register_table
class LowLatencyIntranode(LowLatencyTable):
    """One node, many shapes."""

    name = "deepep_ll_intranode"
    files = ("deepep_ll_intranode*.csv",)
    source = "deepep_ll_intranode.csv"

    def baseline(self, rows: Rows) -> tuple[str, Floats]:
        """Return one alpha and one beta per system and operation for the bytes that leave a GPU."""
        given = self.inputs(rows)
        moved = given["tokens_per_rank"] * given["num_topk"] * given["message_bytes"]
        return "one alpha-beta per system and operation, fitted to these rows", alpha_beta(
            moved, self.seconds(rows), labels(rows, ("system", "op"))
        )


@register_table
class LowLatencyInternode(LowLatencyTable):
    """One node and several."""

    name = "deepep_ll_internode"
    files = ("deepep_ll_internode*.csv",)
    source = "deepep_ll_internode.csv"
    internode = True

    def baseline(self, rows: Rows) -> tuple[str, Floats]:
        """Return a line through two nodes: latency, and the bytes that cross the card over a bandwidth."""
        given = self.inputs(rows)
        nodes = np.maximum(given["node_num"], 2.0)
        crossed = given["tokens_per_rank"] * given["num_topk"] * given["message_bytes"] * (nodes - 1) / nodes
        alpha, rate = (np.asarray([TWO_NODES[op][index] for op in words(rows, "op").tolist()]) for index in (0, 1))
        values = np.where(given["node_num"] > 1, alpha + crossed / (rate * given["nic_bandwidth"]), np.nan)
        return "alpha + bytes/bandwidth of two nodes", values

    def group(self, rows: Rows) -> NDArray[np.str_]:
        """Return system and nodes."""
        return labels(rows, ("system", "node_num"))


TWO_NODES = {"dispatch": (20.39e-6, 0.9355), "combine": (24.94e-6, 0.9305)}
"""Seconds, and share of the card's peak: a line fitted to the logarithms of the rows of two nodes of ``deepep_ll_internode.csv``."""


class NormalTable(DeepEpTable):
    """Normal kernels; the handshake (``notify``) is a time of its own where it was separated."""

    model = DeepEpNormal
    kernel = "deepep_normal"
    columns = (
        "system", "node_num", "hidden_size", "tokens_per_rank", "num_topk", "num_experts", "dispatch_sms", "dispatch_transmit_us",
        "combine_sms",
        "combine_transmit_us",
    )  # fmt: skip

    def join(self, rows: Rows, companions: Mapping[str, Rows]) -> Rows:
        """Make two rows of each."""
        del companions
        measured = {"dispatch": "dispatch_transmit_us", "combine": "combine_transmit_us"}
        return both_ops(rows, measured, {"sms": {"dispatch": "dispatch_sms", "combine": "combine_sms"}})

    def inputs(self, rows: Rows) -> dict[str, NDArray[Any]]:
        """Return the shape, the SMs, the bytes of a copy and the machine."""
        machine, ops = self.machine(rows), words(rows, "op")
        shape = {name: numbers(rows, name) for name in ("tokens_per_rank", "num_topk", "num_experts", "sms")}
        hidden, top_k, nodes = numbers(rows, "hidden_size"), shape["num_topk"], machine["node_num"]
        wide = row_bytes(hidden, top_k, "dispatch", nodes, dispatch_dtype="bf16")
        out = np.where(self.without_fp8(rows), wide, row_bytes(hidden, top_k, "dispatch", nodes))
        gpus, others = copies(nodes, machine["gpus_per_node"], shape["num_experts"], top_k)
        shape |= {"gpu_copies": gpus, "node_copies": others}
        return {**shape, "message_bytes": np.where(ops == "dispatch", out, row_bytes(hidden, top_k, "combine", nodes)), **machine}

    def fitted(self, section: str, inputs: Rows, seconds: Floats) -> Parametric:
        """Return the model, started from what the tables of one node say of this operation."""
        start = deepep_normal.START_OF[section.rpartition(".")[2]]
        return DeepEpNormal.fit(inputs, seconds, source=self.source, start=start)

    def regime(self, rows: Rows) -> NDArray[np.str_]:
        """Return where and what; dispatch from 8 nodes on is a class of its own."""
        found = super().regime(rows)
        odd = (numbers(rows, "node_num") >= OUTLIER) & (words(rows, "op") == "dispatch")
        return np.where(odd, np.char.add(found, " (outlier class of the source)"), found)

    def baseline(self, rows: Rows) -> tuple[str, Floats]:
        """Return the port bound: the bytes of NVLink or of the card at their data-sheet rate, whichever takes longer."""
        given = self.inputs(rows)
        local, moved = given["gpus_per_node"], given["tokens_per_rank"] * given["message_bytes"]
        link = moved * given["gpu_copies"] * (local - 1) / local / given["link_bandwidth"]
        card = moved * given["node_copies"] / given["nic_bandwidth"]
        return "port bound", np.maximum(link, card)


@register_table
class NormalIntranode(NormalTable):
    """One node, many shapes and SM budgets."""

    name = "deepep_normal_intranode"
    files = ("deepep_normal_intranode*.csv",)
    source = "deepep_normal_intranode.csv"

    def group(self, rows: Rows) -> NDArray[np.str_]:
        """Return system and shape."""
        return labels(rows, ("system", "hidden_size", "num_topk", "num_experts"))


@register_table
class NormalInternode(NormalTable):
    """One node and several, one shape."""

    name = "deepep_normal_internode"
    files = ("deepep_normal_internode*.csv",)
    source = "deepep_normal_internode.csv"
    internode = True

    def group(self, rows: Rows) -> NDArray[np.str_]:
        """Return system and nodes: what is asked of the model is another number of nodes, and other SMs of the same would give it away."""
        return labels(rows, ("system", "node_num"))
