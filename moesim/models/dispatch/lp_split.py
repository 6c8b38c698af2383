"""The split of each expert's rows over its replicas that makes the most loaded rank as light as it can be."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from moesim.base.errors import PluginError
from moesim.facts.arrays import Floats, Ints


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """A solution of the linear program.

    Parameters
    ----------
    rows : float[S]
        Rows of each slot; the slots of an expert add up to its load. One of the best splits: there may be others.
    most : float
        Rows of the most loaded rank: no split of whole or broken rows has less.
    """

    rows: Floats
    most: float


def optimal_split(load: Ints, expert_of_slot: Ints, rank_of_slot: Ints, *, ranks: int) -> Split:
    """Minimise the rows of the most loaded rank.

    Parameters
    ----------
    load : int[E]
        Rows of each expert; every expert with rows has a slot.
    expert_of_slot, rank_of_slot : int[S]
        What each slot holds, and where it is.
    ranks : int
        W.

    Raises
    ------
    PluginError
        If the solver gives up.

    Notes
    -----
    With x_s the share of all rows that slot s of a replicated expert takes: minimise M so that the x_s of each expert add up to its share,
    the x_s of each rank plus the shares of its experts that have one slot are at most M, and x_s >= 0. The program is that of
    sgl-project/sglang, ``python/sglang/srt/eplb/lplb_solver.py`` (``LPLBSolver``), and of DeepSeek's LPLB; it is solved to the optimum by
    HiGHS (``scipy.optimize.linprog``), where SGLang takes five steps of an interior-point method.
    """
    # Imported here: it takes long, and no other dispatch needs it.
    from scipy.optimize import linprog
    from scipy.sparse import coo_array

    total = int(load.sum())
    rows = load[expert_of_slot].astype(np.float64)
    replicas = np.bincount(expert_of_slot, minlength=len(load))
    free = np.flatnonzero((replicas[expert_of_slot] > 1) & (rows > 0))
    fixed = rows.copy()
    fixed[replicas[expert_of_slot] > 1] = 0.0
    base = np.bincount(rank_of_slot, weights=fixed, minlength=ranks)
    if not free.size:
        return Split(rows=fixed, most=float(base.max()))
    experts, which = np.unique(expert_of_slot[free], return_inverse=True)
    column, bound = np.arange(len(free)), len(free)
    of_expert = coo_array((np.ones(len(free)), (which, column)), shape=(len(experts), bound + 1))
    of_rank = coo_array(
        (
            np.concatenate([np.ones(len(free)), np.full(ranks, -1.0)]),
            (np.concatenate([rank_of_slot[free], np.arange(ranks)]), np.concatenate([column, np.full(ranks, bound)])),
        ),
        shape=(ranks, bound + 1),
    )
    cost = np.zeros(bound + 1)
    cost[bound] = 1.0
    answer = linprog(
        cost, A_ub=of_rank.tocsr(), b_ub=-base / total, A_eq=of_expert.tocsr(), b_eq=load[experts] / total, bounds=(0, None), method="highs"
    )
    if answer.x is None:
        raise PluginError(f"dispatch 'lp': the solver found no split: {answer.message}")
    fixed[free] = np.maximum(answer.x[:bound], 0.0) * total
    return Split(rows=fixed, most=float(np.bincount(rank_of_slot, weights=fixed, minlength=ranks).max()))


def whole_rows(split: Floats, load: Ints, expert_of_slot: Ints) -> Ints:
    """Round a split to whole rows; those of an expert still add up to its load.

    Every slot gets the whole part of its share of the load; what is left of an expert's load goes, one row each, to its slots with the
    largest rest, ties to the earlier slot. So a slot changes by less than one row, and a rank by less than one row for each replica that
    it holds.

    Parameters
    ----------
    split : float[S]
        Rows of each slot, at least 0.
    load : int[E]
        Rows of each expert.
    expert_of_slot : int[S]
        What each slot holds.

    Returns
    -------
    int[S]
    """
    given = np.bincount(expert_of_slot, weights=split, minlength=len(load))
    replicas = np.bincount(expert_of_slot, minlength=len(load))
    # The solver's sums are off by its tolerance; scaled to the load, the whole parts never exceed it.
    scale = np.where(given > 0, load / np.where(given > 0, given, 1.0), 0.0)
    exact = np.where(given[expert_of_slot] > 0, split * scale[expert_of_slot], (load / np.maximum(replicas, 1))[expert_of_slot])
    near = np.rint(exact)
    exact = np.where(np.abs(exact - near) < 1e-7 * np.maximum(near, 1.0), near, exact)
    whole = np.floor(exact).astype(np.int64)
    left = load - np.bincount(expert_of_slot, weights=whole, minlength=len(load)).astype(np.int64)
    order = np.lexsort((np.arange(len(exact)), -(exact - whole), expert_of_slot))
    sorted_expert = expert_of_slot[order]
    place = np.arange(len(order)) - np.searchsorted(sorted_expert, sorted_expert, side="left")
    whole[order] += place < left[sorted_expert]
    return whole
