"""DeepEP's low-latency kernels: a copy for each choice, straight to the GPU of its expert, over NVLink or the network card."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np

from moesim.facts.arrays import Floats
from moesim.models.exchange.low_latency import HEADER_BYTES
from moesim.models.exchange.payload import payload_bytes
from moesim.models.fitted.estimate import refuse_degenerate
from moesim.models.fitted.parametric import Parametric, refuse_narrow, smooth_maximum
from moesim.models.fitted.rows import Rows, numbers

SHARPNESS = 4.0
"""Of the corner between two limits that overlap."""

BLOCKS = 128
"""Streaming multiprocessors that the kernels use at most; fewer where there are fewer experts, for each works for at least one
(deepseek-ai/DeepEP, ``csrc/kernels/internode_ll.cu``: ``num_sms = ceil_div(num_experts, num_warp_groups)``)."""

CONTENTION = 0.14
"""What many senders add: a share of the time of two nodes, approached as (n - 2)/(n - 1) grows to 1. No row of one or two nodes can tell
it. The collection of measurements that this is fitted on says that a line through two nodes is 9 to 12 % too fast at 4 and 8; 0.14 puts
it at 9.3 and 12 %, hence assumed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeepEpLowLatency(Parametric):
    """Launch, work per expert, one message's way through the kernel, then the slowest of NVLink, network card and kernel blocks.

    ``t = (launch + per_expert E + per_byte m + network_latency [n > 1] + max(T k m (g-1)/(g n) / (link_efficiency B),
    T k m (n-1)/n / (nic_efficiency N), T k m / (blocks block_bandwidth))) (1 + contention (n-2)/(n-1))`` with n nodes of g GPUs, T tokens
    per rank, k choices,
    messages of m bytes, E experts, B and N the peaks of link and card. The maximum has a rounded corner. Routing is uniform.

    Rows have the columns ``tokens_per_rank``, ``num_topk``, ``num_experts``, ``node_num``, ``gpus_per_node``, ``message_bytes``,
    ``link_bandwidth``
    and ``nic_bandwidth``; :func:`message_bytes` gives those of a hidden size.

    Notes
    -----
    Bytes: :class:`moesim.models.exchange.low_latency.LowLatency`. The factor for more than two nodes is the share of pairs of messages
    into a card that come from
    different nodes, (n-2)/(n-1): 0 for two nodes, where all senders share one node.
    """

    NAME: ClassVar[str] = "deepep_low_latency"
    UNITS: ClassVar[Mapping[str, str]] = {
        "launch": "s", "per_expert": "s", "per_byte": "s/B", "block_bandwidth": "B/s", "network_latency": "s",
    }  # fmt: skip
    RANGED: ClassVar[tuple[str, ...]] = ("tokens_per_rank", "num_topk", "num_experts", "node_num", "gpus_per_node", "message_bytes")

    launch: float
    per_expert: float
    per_byte: float
    link_efficiency: float
    block_bandwidth: float
    network_latency: float
    nic_efficiency: float
    contention: float

    @staticmethod
    def seconds_of(values: Mapping[str, float], rows: Rows) -> Floats:
        """Return the seconds of rows with the given parameters."""
        size, nodes, local = numbers(rows, "message_bytes"), numbers(rows, "node_num"), numbers(rows, "gpus_per_node")
        experts = numbers(rows, "num_experts")
        everything = numbers(rows, "tokens_per_rank") * numbers(rows, "num_topk") * size
        link = everything * (local - 1) / (local * nodes) / (values["link_efficiency"] * numbers(rows, "link_bandwidth"))
        card = everything * (nodes - 1) / nodes / (values["nic_efficiency"] * numbers(rows, "nic_bandwidth"))
        kernel = everything / (np.minimum(experts, BLOCKS) * values["block_bandwidth"])
        moving = smooth_maximum(smooth_maximum(link, kernel, SHARPNESS), card, SHARPNESS)
        still = values["launch"] + values["per_expert"] * experts + values["per_byte"] * size + values["network_latency"] * (nodes > 1)
        return np.asarray((still + moving) * crowding(nodes, values["contention"]))

    @classmethod
    def fit(cls, rows: Rows, seconds: Floats, *, source: str = "", start: Mapping[str, float] | None = None) -> Self:
        """Return the model that comes nearest to the rows; what they cannot tell keeps the value of ``start``, marked assumed.

        Parameters
        ----------
        rows, seconds
            Measurements.
        source : str
            Where they are from.
        start : mapping of str to float, optional
            Values of parameters, such as those of another table.

        Raises
        ------
        CalibrationError
            If there are too few rows or numbers of tokens.
        """
        refuse_degenerate(rows, what="DeepEP low-latency", least=6, varied={"tokens_per_rank": 4})
        refuse_narrow(rows, what="DeepEP low-latency", column="tokens_per_rank", reach=30)
        begin = {**START, **(start or {})}
        several = len(np.unique(numbers(rows, "node_num"))) > 1
        network = bool(np.any(numbers(rows, "node_num") > 1))
        more = len(np.unique(numbers(rows, "node_num")[numbers(rows, "node_num") > 1])) > 1
        why = ("assumed", "these rows cannot tell; carried over from the other tables of the same kernels")
        held: dict[str, tuple[str, str]] = {}
        if len(np.unique(numbers(rows, "num_experts"))) < 3:
            held |= {"per_expert": why, "block_bandwidth": why}
        if len(np.unique(numbers(rows, "message_bytes"))) < 2:
            held["per_byte"] = why
        if not network:
            held |= {"network_latency": why, "nic_efficiency": why}
        if network and not several:
            held["network_latency"] = why
        if network and not np.any(numbers(rows, "node_num") == 1):
            held["link_efficiency"] = why
        if not more:
            held["contention"] = ("assumed", "a line through two nodes is 9 to 12 % too fast at 4 and 8, says the README of the collection")
        return cls.fitted(rows, seconds, start=begin, held=held, bounds=BOUNDS, regimes=None, source=source)


START = {
    "launch": 7e-6, "per_expert": 1e-8, "per_byte": 1.2e-10, "link_efficiency": 0.6, "block_bandwidth": 4e9,
    "network_latency": 8e-6, "nic_efficiency": 0.94, "contention": CONTENTION,
}  # fmt: skip
START_OF = {
    "dispatch": START,
    "combine": {
        **START,
        "launch": 8.6e-6,
        "per_expert": 4e-9,
        "per_byte": 1.07e-10,
        "link_efficiency": 0.5,
        "block_bandwidth": 2.8e10,
        "network_latency": 1.3e-5,
    },
}
"""By operation. Where a table cannot tell a number (one shape says nothing of the cost per expert) it stays as it is here: rounded from
eight
H200 of one node."""

BOUNDS = {
    "link_efficiency": (0.02, 1.0), "nic_efficiency": (0.02, 1.0), "block_bandwidth": (1e9, 1e11), "contention": (1e-4, 3.0),
    "per_expert": (1e-11, 1e-7), "per_byte": (1e-12, 1e-8),
}  # fmt: skip


def crowding(nodes: Floats, contention: float) -> Floats:
    """Return by what a time grows as more than two nodes send: ``1 + contention (n - 2)/(n - 1)``."""
    return np.asarray(1.0 + contention * np.maximum(nodes - 2, 0) / np.maximum(nodes - 1, 1))


def message_bytes(hidden: Floats, op: str, *, dtype: str | None = None) -> Floats:
    """Return the bytes of one message: dispatch in fp8 with scales behind a header, combine in bf16, unless told otherwise.

    Examples
    --------
    >>> message_bytes(np.asarray([7168]), "dispatch").tolist(), message_bytes(np.asarray([7168]), "combine").tolist()
    ([7408.0], [14336.0])
    """
    kind = dtype or ("fp8" if op == "dispatch" else "bf16")
    each = {int(width): payload_bytes(int(width), kind, 128) for width in np.unique(hidden)}
    return np.asarray([each[int(width)] + (HEADER_BYTES if op == "dispatch" else 0) for width in hidden], dtype=np.float64)
