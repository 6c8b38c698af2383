"""Experts computed one after the other, as a device of one's own was measured: rates are its own, no data sheet is needed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np

from moesim.facts.arrays import Floats
from moesim.models.fitted.estimate import refuse_degenerate
from moesim.models.fitted.parametric import Parametric, refuse_narrow, smooth_maximum
from moesim.models.fitted.rows import Rows, numbers


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertLoop(Parametric):
    """Seconds of the matrix products of some experts, one after the other.

    ``t = launch + sum over experts with rows of (per_expert + smooth_max(b_e / memory_rate, f_e / compute_rate))``: b_e the bytes of the
    expert's weights and of its rows in and out, f_e its operations, ``smooth_max(a, b) = (a**p + b**p)**(1/p)`` with p = ``sharpness``.
    Each expert waits for the one before, so an expert with few rows costs its weights even beside one with many: under skew the sum of
    maxima counts, not the maximum of sums. The roofline is that of Williams, Waterman and Patterson, CACM 52(4), 2009.

    Rows have ``expert_rows`` (Floats[n, S]: rows of each expert, 0 where a row of the table has fewer), ``hidden_size``, ``inter_size``,
    ``matrices`` (of hidden x width: 3 for a gated FFN, 2 for its up and gate projection, 1 for the down projection), ``weight_bytes`` and
    ``row_bytes`` of one element.
    """

    NAME: ClassVar[str] = "expert_loop"
    UNITS: ClassVar[Mapping[str, str]] = {"launch": "s", "per_expert": "s", "memory_rate": "B/s", "compute_rate": "flop/s"}
    RANGED: ClassVar[tuple[str, ...]] = ("most_rows", "hidden_size", "inter_size")

    launch: float
    per_expert: float
    memory_rate: float
    compute_rate: float
    sharpness: float

    @staticmethod
    def seconds_of(values: Mapping[str, float], rows: Rows) -> Floats:
        """Return the seconds of rows with the given parameters."""
        given = np.asarray(rows["expert_rows"], dtype=np.float64)
        hidden, width, matrices = (numbers(rows, name)[:, None] for name in ("hidden_size", "inter_size", "matrices"))
        weights = matrices * hidden * width * numbers(rows, "weight_bytes")[:, None]
        passing = given * (2.0 * hidden + matrices * width) * numbers(rows, "row_bytes")[:, None]
        computing = given * 2.0 * matrices * hidden * width / values["compute_rate"]
        each = values["per_expert"] + smooth_maximum((weights + passing) / values["memory_rate"], computing, values["sharpness"])
        return np.asarray(values["launch"] + np.where(given > 0, each, 0.0).sum(axis=1))

    @classmethod
    def fit(cls, rows: Rows, seconds: Floats, *, source: str = "") -> Self:
        """Return the model that comes nearest to the rows.

        Raises
        ------
        CalibrationError
            If the rows are too few, or their experts do not reach from few rows to many.
        """
        refuse_degenerate(rows, what="experts one after the other", least=8, varied={"most_rows": 4})
        refuse_narrow(rows, what="experts one after the other", column="most_rows", reach=16)
        return cls.fitted(rows, seconds, start=START, held={}, bounds=BOUNDS, source=source)

    @classmethod
    def fit_rates(cls, rows: Rows, seconds: Floats, *, source: str = "") -> Self:
        """Return the model with the two rates that come nearest to a few sizes: times of reading and computing add up, nothing else counts.

        Raises
        ------
        CalibrationError
            If the rows are too few, or all of one size.
        """
        refuse_degenerate(rows, what="experts of all ranks at once", least=4, varied={"most_rows": 2})
        refuse_narrow(rows, what="experts of all ranks at once", column="most_rows", reach=4)
        held = dict.fromkeys(("launch", "per_expert", "sharpness"), ("assumed", "a few sizes tell two rates and no more"))
        start = {**START, "launch": BOUNDS["launch"][0], "per_expert": BOUNDS["per_expert"][0], "sharpness": 1.0}
        return cls.fitted(rows, seconds, start=start, held=held, bounds=BOUNDS, source=source)


START = {"launch": 1e-5, "per_expert": 1e-5, "memory_rate": 1e10, "compute_rate": 1e11, "sharpness": 2.0}
BOUNDS = {
    "launch": (1e-8, 1e-1),
    "per_expert": (1e-8, 1e-1),
    "memory_rate": (1e8, 1e14),
    "compute_rate": (1e8, 1e17),
    "sharpness": (1.0, 12.0),
}
