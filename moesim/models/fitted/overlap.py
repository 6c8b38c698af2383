"""How much experts and an all-to-all slow each other down while both are under way."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np

from moesim.facts.arrays import Floats
from moesim.models.fitted.estimate import refuse_degenerate
from moesim.models.fitted.parametric import Parametric
from moesim.models.fitted.rows import Rows, numbers, words

BOTH, COMPUTE, EXCHANGE = "both", "compute", "exchange"
"""What is timed of a pair that starts together: until both have ended, or one of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Overlap(Parametric):
    """Two jobs that start together; while both run, each goes at less than its own pace.

    Experts that take c seconds alone go at the rate ``1 - compute_lost`` while an exchange of x seconds is under way, the exchange at
    ``1 - exchange_lost`` while experts compute; whichever is left alone goes on at its full rate. With rates p and q, the experts end
    first if ``c / p <= x / q``; then ``T_c = c / p`` and ``T_x = T_c + x - q T_c``, otherwise the same the other way round. What is lost
    is what communication takes from computing: SMs on a GPU, cores on a CPU, memory bandwidth on both. At ``compute_lost =
    exchange_lost = 1/2`` overlap gains nothing; at 0 it is free.

    Rows have ``compute_seconds`` (c), ``exchange_seconds`` (x), and ``op``: ``both`` (the later end), ``compute`` (T_c) or ``exchange``.

    Notes
    -----
    The engine slows what computes beside an exchange by ``compute_lost`` (:mod:`moesim.engine.held_sms`). Links are slowed by other flows
    only: a flow shares its links with all others, so a rate that follows the kernels of two GPUs would have to be found anew at every
    start and end of a kernel. ``exchange_lost`` is therefore reported, used by ``moesim validate``, and a run whose schedule overlaps
    says by how much the exchange is too fast; it does not enter the time.
    """

    NAME: ClassVar[str] = "overlap"
    UNITS: ClassVar[Mapping[str, str]] = {}
    RANGED: ClassVar[tuple[str, ...]] = ("compute_seconds", "exchange_seconds", "num_gpus")

    compute_lost: float
    exchange_lost: float

    @staticmethod
    def seconds_of(values: Mapping[str, float], rows: Rows) -> Floats:
        """Return the seconds of rows with the given parameters."""
        alone, moving = numbers(rows, "compute_seconds"), numbers(rows, "exchange_seconds")
        pace, flow = 1.0 - values["compute_lost"], 1.0 - values["exchange_lost"]
        first = alone / pace <= moving / flow
        shared = np.where(first, alone / pace, moving / flow)
        computed = np.where(first, shared, shared + alone - pace * shared)
        moved = np.where(first, shared + moving - flow * shared, shared)
        op = words(rows, "op")
        return np.asarray(np.where(op == COMPUTE, computed, np.where(op == EXCHANGE, moved, np.maximum(computed, moved))))

    @classmethod
    def fit(cls, rows: Rows, seconds: Floats, *, source: str = "") -> Self:
        """Return the model that comes nearest to the rows.

        Raises
        ------
        CalibrationError
            If the rows are too few, or in all of them the same side is by far the longer one.
        """
        refuse_degenerate(rows, what="overlap", least=6, varied={"compute_seconds": 2, "exchange_seconds": 2})
        return cls.fitted(rows, seconds, start=START, held={}, bounds=BOUNDS, source=source)


START = {"compute_lost": 0.2, "exchange_lost": 0.2}
BOUNDS = {"compute_lost": (1e-4, 0.95), "exchange_lost": (1e-4, 0.95)}
