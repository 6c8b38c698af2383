"""A whole routed MoE layer in one fused kernel: dispatch, both grouped GEMMs and combine overlap, and the slowest rank decides."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np

from moesim.facts.arrays import Floats
from moesim.models.fitted.estimate import refuse_degenerate
from moesim.models.fitted.parametric import Parametric, smooth_maximum
from moesim.models.fitted.rows import Rows, numbers, words


@dataclass(frozen=True, slots=True, kw_only=True)
class FusedLayer(Parametric):
    """Seconds of the slowest rank of a fused layer, from the rows of every expert.

    On rank r, with rows c_e of its experts e: reading the weights of experts that have rows takes ``w_e = [c_e > 0] W /
    (memory_efficiency M)``, the arithmetic ``g_e = c_e F / (compute_efficiency P)``, where W are the bytes of one expert, F the
    operations of one row, M the memory bandwidth and P the peak arithmetic of the data sheet. Tiles of several experts are under way at
    the same time, but not of all, so

    ``t_r = hidden_weights smooth_max(sum w_e, sum g_e) + (1 - hidden_weights) sum max(w_e, g_e)``,

    ``smooth_max(a, b) = (a**p + b**p)**(1/p)`` with p = ``sharpness``; and the layer takes

    ``launch + max_r t_r + local_share B / L``: B the bytes of the results that come back to one rank, L the peak of its link one way. That
    last part does not depend on skew: every rank has as many tokens of its own, and adds up their results when all have arrived.

    Dispatch and combine are hidden behind the GEMMs, but for that part: what passes a link takes a third of what the same rows
    compute. The roofline of each part is that of Williams, Waterman and Patterson, "Roofline", CACM 52(4), 2009.

    Rows have ``counts`` (int[n, D, E]: D draws of the rows of each expert, in the order in which ranks hold them), ``ranks``, ``experts``
    (E of the row; further columns of ``counts`` are 0), ``weight_bytes``, ``row_flops``, ``returned_bytes``, and the data sheet's
    ``memory_bandwidth``, ``peak_flops`` and ``link_bandwidth``. Seconds are means over draws.
    """

    NAME: ClassVar[str] = "fused_layer"
    UNITS: ClassVar[Mapping[str, str]] = {"launch": "s", "local_share": "s/s"}
    RANGED: ClassVar[tuple[str, ...]] = ("tokens_per_rank", "ranks", "hidden_size", "inter_size")

    launch: float
    memory_efficiency: float
    compute_efficiency: float
    sharpness: float
    hidden_weights: float
    local_share: float

    @staticmethod
    def seconds_of(values: Mapping[str, float], rows: Rows) -> Floats:
        """Return the seconds of rows with the given parameters."""
        reading = numbers(rows, "weight_bytes") / (values["memory_efficiency"] * numbers(rows, "memory_bandwidth"))
        computing = numbers(rows, "row_flops") / (values["compute_efficiency"] * numbers(rows, "peak_flops"))
        counts, ranks, experts = rows["counts"], rows["ranks"].astype(np.int64), rows["experts"].astype(np.int64)
        slowest = np.empty(len(counts))
        for size, over in {(int(e), int(r)) for e, r in zip(experts, ranks, strict=True)}:
            alike = np.flatnonzero((experts == size) & (ranks == over))
            part = counts[alike, :, :size].astype(np.float64)
            read = (part > 0) * reading[alike, None, None]
            work = part * computing[alike, None, None]
            shape = (*part.shape[:2], over, size // over)
            apart = np.maximum(read, work).reshape(shape).sum(axis=3)
            together = smooth_maximum(read.reshape(shape).sum(axis=3), work.reshape(shape).sum(axis=3), values["sharpness"])
            share = values["hidden_weights"]
            slowest[alike] = (share * together + (1.0 - share) * apart).max(axis=2).mean(axis=1)
        local = values["local_share"] * numbers(rows, "returned_bytes") / numbers(rows, "link_bandwidth")
        return np.asarray(values["launch"] + slowest + local)

    @classmethod
    def fit(cls, rows: Rows, seconds: Floats, *, source: str = "") -> Self:
        """Return the model that comes nearest to the rows.

        Raises
        ------
        CalibrationError
            If sizes do not reach from few tokens to many, or no row is skewed.
        """
        refuse_degenerate(rows, what="fused layer", least=12, varied={"tokens_per_rank": 6, "distribution": 2})
        return cls.fitted(rows, seconds, start=START, held={}, bounds=BOUNDS, regimes=words(rows, "regime"), source=source)


START = {
    "launch": 65e-6, "memory_efficiency": 0.78, "compute_efficiency": 0.45, "sharpness": 3.0, "hidden_weights": 0.5, "local_share": 0.4,
}  # fmt: skip
BOUNDS = {
    "memory_efficiency": (0.05, 1.0), "compute_efficiency": (0.02, 1.0), "sharpness": (1.0, 12.0), "hidden_weights": (0.01, 0.99),
    "local_share": (1e-3, 3.0),
}  # fmt: skip
