"""NCCL's all-to-all among the GPUs of one NVLink domain, with equal shares for all."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np

from moesim.facts.arrays import Floats
from moesim.models.fitted.estimate import refuse_degenerate
from moesim.models.fitted.parametric import Parametric, refuse_narrow, saturating
from moesim.models.fitted.rows import Rows, count, numbers

FULL_RATE_POWER = 1.5
"""How sharply the ramp sets in; between 1 and 2 the held-back errors hardly differ."""

LARGE = 16e6
"""Bytes per rank from which on bandwidth dominates; smaller calls are the regime ``small``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NcclAllToAll(Parametric):
    """Launch, change of protocol, ramp-up, and three things that share a GPU: its link, its copy to itself, the fan-in of its peers.

    ``t = launch + per_peer (n - 2) + protocol_cost h(S / protocol_bytes) + ramp_cost h(S / ramp_bytes)
    + S (n - 1)/n (1 + fan_in (n - 2)) / (link_efficiency B) + S/n / (copy_efficiency M)``, with S bytes sent per rank (its own share
    included), n GPUs, B the peak of the scale-up link one way and M that of memory; ``h(x) = x/(1+x)``, for the ramp of ``x**1.5``.

    Rows have the columns ``num_gpus``, ``bytes_per_rank``, ``link_bandwidth`` and ``memory_bandwidth`` (B/s, data sheet). Other GPUs
    follow from their data sheets: efficiencies are shares of a peak. Pinned by small messages: the launch and the cost of leaving the
    low-latency
    protocols, which all sizes from some 50 KB on pay. Pinned by large ones: bandwidth, and what filling the pipeline costs.

    Notes
    -----
    Why S/n of its own: nccl-tests count a rank's share for itself, which the same kernel copies through memory. It explains why two A100
    reach
    less bus bandwidth than four. ``fan_in``: more senders into one port cost 1 to 2 % each. The terms are those of NCCL's
    ``ncclSendRecv`` kernels (LL and Simple protocol, ``src/enqueue.cc``); their sizes are fitted, not read from its code.
    """

    NAME: ClassVar[str] = "nccl_all_to_all"
    UNITS: ClassVar[Mapping[str, str]] = {
        "launch": "s", "per_peer": "s", "protocol_cost": "s", "protocol_bytes": "B", "ramp_cost": "s", "ramp_bytes": "B",
    }  # fmt: skip
    RANGED: ClassVar[tuple[str, ...]] = ("num_gpus", "bytes_per_rank")

    launch: float
    per_peer: float
    protocol_cost: float
    protocol_bytes: float
    ramp_cost: float
    ramp_bytes: float
    link_efficiency: float
    copy_efficiency: float
    fan_in: float

    @staticmethod
    def seconds_of(values: Mapping[str, float], rows: Rows) -> Floats:
        """Return the seconds of rows with the given parameters."""
        ranks, size = numbers(rows, "num_gpus"), numbers(rows, "bytes_per_rank")
        crowd = 1.0 + values["fan_in"] * np.maximum(ranks - 2, 0)
        sent = size * (ranks - 1) / ranks * crowd / (values["link_efficiency"] * numbers(rows, "link_bandwidth"))
        copied = size / ranks / (values["copy_efficiency"] * numbers(rows, "memory_bandwidth"))
        return np.asarray(
            values["launch"]
            + values["per_peer"] * np.maximum(ranks - 2, 0)
            + values["protocol_cost"] * saturating(size, values["protocol_bytes"])
            + values["ramp_cost"] * saturating(size, values["ramp_bytes"], power=FULL_RATE_POWER)
            + sent
            + copied
        )

    @classmethod
    def fit(cls, rows: Rows, seconds: Floats, *, source: str = "") -> Self:
        """Return the model that comes nearest to the rows.

        With one number of GPUs, what each further peer costs cannot be told and is taken from the H200. With two, the terms in
        ``(n - 1)/n``, ``1/n`` and the crowding of both are three unknowns for two speeds, so that ``fan_in`` is taken from there.

        Raises
        ------
        CalibrationError
            If sizes do not reach from latency to bandwidth, or the rows are too few.
        """
        refuse_degenerate(rows, what="NCCL all-to-all", least=10, varied={"bytes_per_rank": 6})
        refuse_narrow(rows, what="NCCL all-to-all", column="bytes_per_rank", reach=1e4)
        held = {}
        counts = len(np.unique(numbers(rows, "num_gpus")))
        if counts == 2:
            held = {"fan_in": ("assumed", "eight H200, carried over: rows of two numbers of GPUs cannot tell it from the copy")}
        if counts < 2:
            why = ("assumed", "eight H200, carried over: rows of one number of GPUs cannot tell")
            held = {"per_peer": why, "copy_efficiency": why, "fan_in": why}
        return cls.fitted(rows, seconds, start=START, held=held, bounds=BOUNDS, regimes=regimes_of(rows), source=source)


START = {
    "launch": 7e-6, "per_peer": 2.5e-7, "protocol_cost": 6e-6, "protocol_bytes": 5e4, "ramp_cost": 25e-6, "ramp_bytes": 1.6e7,
    "link_efficiency": 0.78, "copy_efficiency": 0.6, "fan_in": 0.014,
}  # fmt: skip
BOUNDS = {"link_efficiency": (0.01, 1.0), "copy_efficiency": (0.05, 1.0), "fan_in": (1e-4, 0.2), "per_peer": (1e-8, 1e-5)}


def regimes_of(rows: Rows) -> np.ndarray:
    """Return ``large`` or ``small`` for each row."""
    return np.where(numbers(rows, "bytes_per_rank") >= LARGE, "large", "small") if count(rows) else np.asarray([], dtype=np.str_)
