"""An all-to-all as a machine of one's own was measured: latency per message, and bytes over a rate that is its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np

from moesim.facts.arrays import Floats
from moesim.models.fitted.estimate import refuse_degenerate
from moesim.models.fitted.parametric import Parametric, refuse_narrow, saturating
from moesim.models.fitted.rows import Rows, numbers


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnAllToAll(Parametric):
    """Latency of the call and of each peer, what filling the pipe costs, then the bytes of the busiest rank over what a rank can move.

    ``t = launch + per_peer (n - 2) + ramp_cost h(S / ramp_bytes) + S (1 + fan_in (n - 2)) / port_rate``: n ranks, S the bytes that the
    busiest rank sends or receives, ``h(x) = x / (1 + x)``. Nothing comes from a data sheet, so the section says nothing of another machine.

    Rows have ``num_gpus`` (ranks) and ``port_bytes`` (S).
    """

    NAME: ClassVar[str] = "own_all_to_all"
    UNITS: ClassVar[Mapping[str, str]] = {"launch": "s", "per_peer": "s", "ramp_cost": "s", "ramp_bytes": "B", "port_rate": "B/s"}
    RANGED: ClassVar[tuple[str, ...]] = ("num_gpus", "port_bytes")

    launch: float
    per_peer: float
    ramp_cost: float
    ramp_bytes: float
    port_rate: float
    fan_in: float

    @staticmethod
    def seconds_of(values: Mapping[str, float], rows: Rows) -> Floats:
        """Return the seconds of rows with the given parameters."""
        size, beyond = numbers(rows, "port_bytes"), np.maximum(numbers(rows, "num_gpus") - 2, 0)
        latency = values["launch"] + values["per_peer"] * beyond
        ramp = values["ramp_cost"] * saturating(size, values["ramp_bytes"])
        return np.asarray(latency + ramp + size * (1.0 + values["fan_in"] * beyond) / values["port_rate"])

    @classmethod
    def fit(cls, rows: Rows, seconds: Floats, *, source: str = "") -> Self:
        """Return the model that comes nearest to the rows.

        With one number of ranks, what each further one costs cannot be told: it is taken as nothing, and marked assumed.

        Raises
        ------
        CalibrationError
            If the rows are too few, or their sizes do not reach from latency to bandwidth.
        """
        refuse_degenerate(rows, what="all-to-all of your own", least=4, varied={"port_bytes": 3})
        refuse_narrow(rows, what="all-to-all of your own", column="port_bytes", reach=16)
        held: dict[str, tuple[str, str]] = {}
        start = dict(START)
        if len(np.unique(numbers(rows, "num_gpus"))) < 2:
            why = ("assumed", "rows of one number of ranks cannot tell what another rank costs")
            start |= {"per_peer": NOTHING, "fan_in": NOTHING}
            held |= {"per_peer": why, "fan_in": why}
        sizes = numbers(rows, "port_bytes")
        if sizes.max() < RAMP_REACH * sizes[sizes > 0].min():
            why = ("assumed", "sizes of so small a range cannot tell a ramp from latency and bandwidth")
            start["ramp_cost"] = NOTHING
            held |= {"ramp_cost": why, "ramp_bytes": why}
        return cls.fitted(rows, seconds, start=start, held=held, bounds=BOUNDS, source=source)


NOTHING = 1e-12
RAMP_REACH = 1e4
"""How many times the smallest size the largest must be to tell a slow start from a low rate."""

START = {"launch": 2e-4, "per_peer": 5e-5, "ramp_cost": 1e-4, "ramp_bytes": 1e6, "port_rate": 1e9, "fan_in": 0.05}
BOUNDS = {
    "launch": (1e-7, 1.0), "per_peer": (1e-9, 1.0), "ramp_cost": (1e-9, 1.0), "ramp_bytes": (1e3, 1e9), "port_rate": (1e5, 1e14),
    "fan_in": (1e-6, 2.0),
}  # fmt: skip
