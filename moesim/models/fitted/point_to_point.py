"""One GPU sends to another, and rings of them: NCCL's send/receive and all-reduce, inside a node and between nodes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from moesim.facts.arrays import Floats
from moesim.models.fitted.estimate import refuse_degenerate
from moesim.models.fitted.parametric import Parametric, refuse_narrow, saturating
from moesim.models.fitted.rows import Rows, numbers

PROTOCOL_BYTES = 3e4
"""Where a change of protocol has cost half of what it will; held, as the sizes of most tables are too coarse to tell."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PointToPoint(Parametric):
    """Launch, hops, the change to the protocol for large messages, and bytes over the bandwidth that the ring has.

    ``t = launch + per_hop (hops - 1) + protocol_cost h(S / 30 kB) + rounds S / (efficiency P)``: S bytes, ``rounds`` how often each rank
    must pass the buffer on
    (1 for a send, 2 (n-1)/n for an all-reduce), P the data-sheet bandwidth of what the ring crosses: NVLink inside a node, otherwise the
    cards that the GPUs of a node use.

    Rows have the columns ``size``, ``rounds``, ``hops`` and ``path_bandwidth``; :func:`path` gives the last three.

    Notes
    -----
    Rounds: NVIDIA/nccl-tests, ``doc/PERFORMANCE.md``.
    """

    NAME: ClassVar[str] = "point_to_point"
    UNITS: ClassVar[Mapping[str, str]] = {"launch": "s", "per_hop": "s", "protocol_cost": "s"}
    RANGED: ClassVar[tuple[str, ...]] = ("size", "hops")

    launch: float
    per_hop: float
    protocol_cost: float
    efficiency: float

    @staticmethod
    def seconds_of(values: Mapping[str, float], rows: Rows) -> Floats:
        """Return the seconds of rows with the given parameters."""
        size = numbers(rows, "size")
        return np.asarray(
            values["launch"]
            + values["per_hop"] * (numbers(rows, "hops") - 1)
            + values["protocol_cost"] * saturating(size, PROTOCOL_BYTES)
            + numbers(rows, "rounds") * size / (values["efficiency"] * numbers(rows, "path_bandwidth"))
        )

    @classmethod
    def fit(cls, rows: Rows, seconds: Floats, *, source: str = "") -> Self:
        """Return the model that comes nearest to the rows.

        Raises
        ------
        CalibrationError
            If there are too few rows or sizes.
        """
        refuse_degenerate(rows, what="point to point", least=6, varied={"size": 5})
        refuse_narrow(rows, what="point to point", column="size", reach=100)
        held = {}
        if len(np.unique(numbers(rows, "hops"))) < 2:
            held["per_hop"] = ("assumed", "rows of one number of ranks cannot tell")
        return cls.fitted(rows, seconds, start=START, held=held, bounds=BOUNDS, source=source)


START = {"launch": 8e-6, "per_hop": 1e-6, "protocol_cost": 8e-6, "efficiency": 0.7}
BOUNDS = {"efficiency": (0.01, 1.5), "per_hop": (1e-9, 1e-4), "protocol_cost": (1e-8, 1e-3)}


def path(
    collective: str | NDArray[np.str_], workers: Floats, per_node: Floats, *, link: Floats, nic: Floats
) -> tuple[Floats, Floats, Floats]:
    """Return rounds, hops and path bandwidth of a send or of an all-reduce in rings.

    Parameters
    ----------
    collective : str or str array [n]
        ``send_recv`` or ``all_reduce``.
    workers, per_node : Floats[n]
        Ranks in all, and on each node.
    link, nic : Floats[n]
        Data-sheet bandwidth one way of the scale-up link of a GPU, and of its card.

    Returns
    -------
    tuple of Floats[n]
        Between nodes a ring per card crosses; two neighbouring GPUs of a DGX share a PCIe switch and its cards, so a pair of them brings
        one card into play.
    """
    across = workers > per_node
    cards = np.where(collective == "send_recv", 1.0, np.maximum(per_node / 2, 1.0))
    rounds = np.where(collective == "send_recv", 1.0, 2 * (workers - 1) / workers)
    hops = np.where(collective == "send_recv", 1.0, 2 * (workers - 1))
    return np.asarray(rounds), np.asarray(hops), np.asarray(np.where(across, nic * cards, link))
