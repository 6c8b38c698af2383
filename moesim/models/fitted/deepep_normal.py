"""DeepEP's normal kernels: one copy per node over the card and one per GPU over NVLink, moved by a few streaming multiprocessors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np

from moesim.facts.arrays import Floats
from moesim.models.exchange.hierarchical import ALIGNMENT, META_BYTES
from moesim.models.exchange.payload import INDEX_BYTES, WEIGHT_BYTES, payload_bytes
from moesim.models.fitted.deepep_low_latency import CONTENTION, SHARPNESS, crowding
from moesim.models.fitted.estimate import refuse_degenerate
from moesim.models.fitted.parametric import Parametric, refuse_narrow, smooth_maximum
from moesim.models.fitted.rows import Rows, numbers
from moesim.models.fitted.uniform_routing import expected_distinct


@dataclass(frozen=True, slots=True, kw_only=True)
class DeepEpNormal(Parametric):
    """Launch, then the slowest of the kernel's SMs, NVLink and the card; copies are de-duplicated per GPU and per node.

    ``t = launch + per_byte m + max(T W / sms, T m C (C's share that leaves its GPU) / (link_efficiency B), T m R crowding /
    (nic_efficiency N))``:
    m bytes of a message, C distinct GPUs of a token, R distinct other nodes, both by expectation of uniform routing. The work of a token
    in SM-seconds is
    ``W = token_byte_cost m + (C + R) (copy_cost + copy_byte_cost m)`` (one copy per stage that carries it), times ``network_work`` with
    more than
    one node, whose kernel sends, forwards and receives.

    Rows have the columns ``tokens_per_rank``, ``num_topk``, ``num_experts``, ``node_num``, ``gpus_per_node``, ``gpu_copies`` (C),
    ``node_copies`` (R; :func:`copies`
    gives both), ``sms``, ``message_bytes``, ``link_bandwidth`` and ``nic_bandwidth``.

    Notes
    -----
    Bytes: :class:`moesim.models.exchange.hierarchical.Hierarchical` and :class:`~moesim.models.exchange.direct.Direct`.
    """

    NAME: ClassVar[str] = "deepep_normal"
    UNITS: ClassVar[Mapping[str, str]] = {
        "launch": "s", "per_byte": "s/B", "token_byte_cost": "s/B", "copy_cost": "s", "copy_byte_cost": "s/B", "network_latency": "s",
    }  # fmt: skip
    RANGED: ClassVar[tuple[str, ...]] = ("tokens_per_rank", "num_topk", "num_experts", "node_num", "gpus_per_node", "sms", "message_bytes")

    launch: float
    per_byte: float
    token_byte_cost: float
    copy_cost: float
    copy_byte_cost: float
    link_efficiency: float
    network_latency: float
    network_work: float
    nic_efficiency: float
    contention: float

    @staticmethod
    def seconds_of(values: Mapping[str, float], rows: Rows) -> Floats:
        """Return the seconds of rows with the given parameters."""
        size, nodes, local = numbers(rows, "message_bytes"), numbers(rows, "node_num"), numbers(rows, "gpus_per_node")
        tokens, gpus, others = numbers(rows, "tokens_per_rank"), numbers(rows, "gpu_copies"), numbers(rows, "node_copies")
        away = gpus * (local - 1) / local  # a copy is under way inside a node unless it lands on the GPU of its rail
        each = values["copy_cost"] + values["copy_byte_cost"] * size
        stages = gpus + others
        work = values["token_byte_cost"] * size + stages * each
        kernel = tokens * work * np.where(nodes > 1, values["network_work"], 1.0) / numbers(rows, "sms")
        link = tokens * size * away / (values["link_efficiency"] * numbers(rows, "link_bandwidth"))
        card = tokens * size * others / (values["nic_efficiency"] * numbers(rows, "nic_bandwidth")) * crowding(nodes, values["contention"])
        moving = smooth_maximum(smooth_maximum(kernel, link, SHARPNESS), card, SHARPNESS)
        return np.asarray(values["launch"] + values["per_byte"] * size + values["network_latency"] * (nodes > 1) + moving)

    @classmethod
    def fit(cls, rows: Rows, seconds: Floats, *, source: str = "", start: Mapping[str, float] | None = None) -> Self:
        """Return the model that comes nearest to the rows; what they cannot tell keeps the value of ``start``, marked assumed.

        Raises
        ------
        CalibrationError
            If there are too few rows or numbers of tokens.
        """
        refuse_degenerate(rows, what="DeepEP normal", least=6, varied={"tokens_per_rank": 4})
        refuse_narrow(rows, what="DeepEP normal", column="tokens_per_rank", reach=100)
        begin = {**START, **(start or {})}
        nodes = numbers(rows, "node_num")
        why = ("assumed", "these rows cannot tell; carried over from the other tables of the same kernels")
        held: dict[str, tuple[str, str]] = {"nic_efficiency": NIC_HELD}
        sizes = numbers(rows, "message_bytes")
        if sizes.max() < 1.5 * sizes.min():
            held |= {"per_byte": why, "token_byte_cost": why, "copy_cost": why}
        if len(np.unique(numbers(rows, "num_topk"))) < 2:
            held["token_byte_cost"] = why
        if len(np.unique(numbers(rows, "sms"))) < 2 and not np.any(nodes > 1):
            held |= {"copy_cost": why, "copy_byte_cost": why}
        if len(np.unique(numbers(rows, "sms")[nodes == 1])) < 3:
            held["link_efficiency"] = why
        if not np.any(nodes > 1):
            held |= {"network_work": why, "network_latency": why}
        elif not np.any(nodes == 1):
            held |= {"network_latency": why, "copy_byte_cost": why}
        if len(np.unique(nodes[nodes > 1])) < 2:
            held["contention"] = ("assumed", "as in the low-latency kernels")
        return cls.fitted(rows, seconds, start=begin, held=held, bounds=BOUNDS, source=source)


NIC_HELD = ("assumed", "that of the low-latency kernels among the same two nodes, where the card is what limits; here SMs limit first")

START = {
    "launch": 26e-6, "per_byte": 3e-10, "token_byte_cost": 8e-11, "copy_cost": 1e-7, "copy_byte_cost": 2e-11,
    "link_efficiency": 0.7, "network_latency": 1e-6, "network_work": 1.5, "nic_efficiency": 0.94, "contention": CONTENTION,
}  # fmt: skip
START_OF = {
    "dispatch": {**START, "copy_cost": 1.26e-7, "link_efficiency": 0.75},
    "combine": {
        **START,
        "launch": 2.5e-5,
        "per_byte": 1.55e-9,
        "token_byte_cost": 9.7e-11,
        "copy_cost": 3.3e-8,
        "copy_byte_cost": 3e-11,
        "link_efficiency": 0.73,
    },
}
"""By operation: what one table cannot tell stays as here, rounded from eight H200 of one node."""

BOUNDS = {
    "link_efficiency": (0.02, 1.0), "network_work": (0.3, 10.0), "token_byte_cost": (1e-13, 1e-9),
    "copy_cost": (1e-10, 1e-5), "copy_byte_cost": (1e-13, 1e-9), "per_byte": (1e-12, 1e-7), "network_latency": (1e-8, 1e-3), "contention":
    (1e-4, 3.0),
}  # fmt: skip


def copies(nodes: Floats, gpus_per_node: Floats, experts: Floats, top_k: Floats) -> tuple[Floats, Floats]:
    """Return the distinct GPUs of a token, and its distinct nodes other than its own, by expectation of uniform routing.

    Examples
    --------
    >>> [round(float(each[0]), 3) for each in copies(*(np.asarray([float(value)]) for value in (2, 8, 256, 8)))]
    [6.523, 0.997]
    """
    gpus = expected_distinct(nodes * gpus_per_node, experts, top_k)
    return gpus, np.asarray(expected_distinct(nodes, experts, top_k) * (nodes - 1) / nodes)


def row_bytes(hidden: Floats, top_k: Floats, op: str, nodes: Floats, *, dispatch_dtype: str = "fp8") -> Floats:
    """Return the bytes of one copy of a token.

    Within one node: the payload, in dispatch with a 4-byte index and weight per choice. Across nodes, also where it comes from, rounded up
    to 16 B.

    Examples
    --------
    >>> row_bytes(np.asarray([7168, 7168]), np.asarray([8, 8]), "dispatch", np.asarray([1, 2])).tolist()
    [7456.0, 7472.0]
    """
    kind = dispatch_dtype if op == "dispatch" else "bf16"
    each = {int(width): payload_bytes(int(width), kind, 128) for width in np.unique(hidden)}
    size = np.asarray([each[int(width)] for width in hidden], dtype=np.float64)
    if op == "dispatch":
        size = size + top_k * (INDEX_BYTES + WEIGHT_BYTES)
    padded = -(-(size + META_BYTES) // ALIGNMENT) * ALIGNMENT
    return np.asarray(np.where(nodes > 1, padded, size))
