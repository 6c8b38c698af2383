"""Least-Loaded Expert Parallelism: what does not fit on an expert's own GPU goes, with its weights, to the least loaded."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from moesim.base.errors import PluginError
from moesim.facts.arrays import Ints, frozen

WHO = "placement 'llep'"


@dataclass(frozen=True, slots=True, kw_only=True)
class LlepPlan:
    """Who computes which rows of one layer.

    Parameters
    ----------
    parts : int[M, 4]
        Expert, rank, and the first and the one-past-last of the expert's rows (over all sources, in the order of ranks), as planned.
    transfers : int[P, 5]
        Expert, own rank, helping rank, first and one-past-last row, for each part on a rank that is not the expert's own.
    loads : int[W]
        Rows of each rank.
    """

    parts: Ints
    transfers: Ints
    loads: Ints

    def __post_init__(self) -> None:
        for name in ("parts", "transfers", "loads"):
            object.__setattr__(self, name, frozen(getattr(self, name), np.int64))


def plan_llep(counts: ArrayLike, *, ranks: int, alpha: float = 1.1, least_rows: int = 1024) -> LlepPlan:
    """Plan one layer of one batch.

    No rank should get more than ``alpha`` times the mean (both rounded down to whole rows). Experts are taken in the order of their rows,
    most first. Each keeps on its own rank what fits beside the rows that are assigned there and those of the rank's experts that are
    still to come; the rest goes to other ranks, least loaded first by the same measure, as much as fits. A part of fewer than
    ``least_rows`` is made only if it is all that is left. What fits nowhere goes to the least loaded of the others.

    Parameters
    ----------
    counts : int[E]
        Rows of each expert; expert e belongs to rank ``e // (E / ranks)``.
    ranks : int
        W, a divisor of E.
    alpha : float
        ``max_tokens_factor``.
    least_rows : int
        ``min_tokens_per_gemm``.

    Notes
    -----
    Source: SalesforceAIResearch/LeastLoadedEP at 034974620fc7, ``llep/gpt_oss_llep.py``, ``compute_llep_lpt_plan``. As there, the order
    of helpers is found anew after every part if the own rank takes some rows, and once if it takes none.

    Raises
    ------
    PluginError
        If the experts do not divide over the ranks, or a count is negative.
    """
    rows = np.asarray(counts, dtype=np.int64)
    if rows.ndim != 1 or len(rows) % ranks or (rows < 0).any():
        raise PluginError(
            f"{WHO}: counts must be at least 0, one for each expert, and divide over {ranks} ranks; their shape is {rows.shape}"
        )
    owner = np.arange(len(rows)) // (len(rows) // ranks)
    mean = int(rows.sum()) // ranks
    limit = max(int(alpha * mean) if mean > 0 else int(rows.sum()), 1)
    ledger = _Ledger(load=np.bincount(owner, weights=rows, minlength=ranks).astype(np.int64), limit=limit, least=least_rows)
    for expert in np.argsort(-rows, kind="stable").tolist():
        if rows[expert]:
            ledger.place(expert, int(rows[expert]), int(owner[expert]))
    parts = np.array(ledger.parts, dtype=np.int64).reshape(-1, 4)
    away = parts[owner[parts[:, 0]] != parts[:, 1]] if len(parts) else parts
    transfers = np.column_stack([away[:, 0], owner[away[:, 0]], away[:, 1:]])
    return LlepPlan(parts=parts, transfers=transfers, loads=np.array(ledger.load))


class _Ledger:
    """Rows that each rank has or, of its own experts, still expects."""

    def __init__(self, *, load: Ints, limit: int, least: int) -> None:
        self.load = load
        self.limit = limit
        self.least = least
        self.parts: list[tuple[int, int, int, int]] = []

    def place(self, expert: int, rows: int, own: int) -> None:
        """Take an expert's rows from what its rank expects, and assign them."""
        self.load[own] -= rows
        others = len(self.load) > 1
        here = min(rows, max(int(self.limit - self.load[own]), 0)) if others else rows
        start = 0
        if here:
            self._give(expert, own, 0, here)
            start = here
        while start < rows:
            before = start
            order = self._helpers(own)
            for rank in order:
                part = min(rows - start, int(self.limit - self.load[rank]))
                if part <= 0 or (part < self.least and part < rows - start):
                    continue
                self._give(expert, rank, start, start + part)
                start += part
                if here or start == rows:
                    break
            if start == before or not here:
                if start < rows:
                    self._give(expert, order[0], start, rows)
                return

    def _helpers(self, own: int) -> list[int]:
        order: list[int] = np.argsort(self.load, kind="stable").tolist()
        order.remove(own)
        return order

    def _give(self, expert: int, rank: int, start: int, end: int) -> None:
        self.parts.append((expert, rank, start, end))
        self.load[rank] += end - start


def rows_by_source(counts: Ints, plan: LlepPlan) -> Ints:
    """Return int[W, M], how many rows of each source each part of the plan computes.

    Parameters
    ----------
    counts : int[W, E]
        Rows of each source for each expert; their sums over sources are what was planned from.
    plan : LlepPlan
    """
    until = np.cumsum(counts, axis=0)
    expert, start, end = plan.parts[:, 0], plan.parts[:, 2], plan.parts[:, 3]
    last = np.minimum(until[:, expert], end)
    first = np.maximum((until - counts)[:, expert], start)
    return np.asarray(np.maximum(last - first, 0))
