"""Bind the rows of a batch to slots of which only the numbers are planned."""

from __future__ import annotations

import numpy as np

from moesim.base.errors import PluginError
from moesim.facts.arrays import Ints
from moesim.facts.batch_plan import NOWHERE
from moesim.facts.routing import Assignment, Kept


def deal_rows(kept: Kept, rows: Ints, expert_of_slot: Ints, rank_of_slot: Ints, *, ranks: int, who: str) -> Assignment:
    """Bind the rows of each source and expert to slots, in order: the first rows to the first slot that takes any, and so on.

    A source's rows for an expert are its kept routes in token order, then its padding rows.

    Parameters
    ----------
    kept : Kept
        Of G sources.
    rows : int[G, S]
        How many rows of each source each slot computes; over the slots of an expert they add up to the source's rows for it.
    expert_of_slot : int[N, S]
        For each group of ``ranks`` consecutive GPUs; -1 where a slot is empty.
    rank_of_slot : int[S]
    ranks : int
        W.
    who : str
        On whose behalf a plan that loses rows is refused.

    Raises
    ------
    PluginError
        If the rows do not add up.
    """
    routing = kept.routing
    gpus, slots = rows.shape
    experts = routing.experts
    holds = np.repeat(expert_of_slot, ranks, axis=0)
    total = routing.counts + kept.padding
    bound = np.zeros((gpus, experts + 1), dtype=np.int64)  # the last column gathers what empty slots were given
    np.add.at(bound, (np.arange(gpus)[:, None], np.where(holds == NOWHERE, experts, holds)), rows)
    wrong = np.argwhere(bound != np.pad(total, ((0, 0), (0, 1))))
    if wrong.size or (rows < 0).any():
        gpu, expert = (int(i) for i in (wrong[0] if wrong.size else np.argwhere(rows < 0)[0]))
        raise PluginError(
            f"{who}: plans {bound[gpu].max()} rows at most for GPU {gpu}, but its rows for expert {expert} do not add up (law L1)"
        )
    # The parts of all sources in one line, by source, expert and slot; a row's place in it says which part it is in.
    by_expert = np.argsort(holds, axis=1, kind="stable")
    parts = np.take_along_axis(rows, by_expert, axis=1).ravel()
    ends = np.cumsum(parts)
    expert_first = (np.cumsum(total.ravel()) - total.ravel()).reshape(gpus, experts)
    sorted_holds = np.take_along_axis(holds, by_expert, axis=1)
    real_until = np.take_along_axis(expert_first + routing.counts, np.maximum(sorted_holds, 0), axis=1).ravel()
    counts = np.empty_like(rows)
    np.put_along_axis(counts, by_expert, np.clip(real_until - (ends - parts), 0, parts).reshape(gpus, slots), axis=1)
    chosen = None
    if routing.ids is not None:
        chosen = np.full(routing.ids.shape, -1, dtype=np.int32)
        token, choice = np.nonzero(routing.ids >= 0)
        pair = routing.source_of_token()[token] * experts + routing.ids[token, choice]
        order = np.argsort(pair, kind="stable")
        of_pair = routing.counts.ravel()
        number = np.arange(len(pair)) - np.repeat(np.cumsum(of_pair) - of_pair, of_pair)
        part = np.searchsorted(ends, expert_first.ravel()[pair[order]] + number, side="right")
        chosen[token[order], choice[order]] = by_expert.ravel()[part]
        chosen.flags.writeable = False
    return Assignment(
        kept=kept,
        slot_counts=counts,
        slot_padding=rows - counts,
        slots=chosen,
        destination=(np.arange(gpus) // ranks * ranks)[:, None] + rank_of_slot,
    )


def common_layout(held: list[Ints], ranks: int) -> tuple[Ints, Ints, Ints]:
    """Return slots that fit every group: who holds what, given as bool or counts of replicas.

    Parameters
    ----------
    held : list of int[ranks, E]
        For each group, how many replicas of each expert each rank holds.
    ranks : int
        W.

    Returns
    -------
    expert_of_slot : int[N, S]
        Slots rank by rank, each with its experts in order, then empty ones (-1): a rank has the slots of the group that needs most.
    rank_of_slot : int[S]
    first : int[W + 1]
        The slots of rank r are ``first[r] : first[r + 1]``.
    """
    room = np.max([table.sum(axis=1) for table in held], axis=0)
    first = np.concatenate([[0], np.cumsum(room)])
    expert_of_slot = np.full((len(held), int(first[-1])), NOWHERE, dtype=np.int64)
    experts = np.arange(held[0].shape[1])
    for group, table in enumerate(held):
        for rank in range(ranks):
            mine = np.repeat(experts, table[rank])
            expert_of_slot[group, first[rank] : first[rank] + len(mine)] = mine
    return expert_of_slot, np.repeat(np.arange(ranks), room), first
