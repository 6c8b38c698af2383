"""Which weights move between two placements, from whom, and in which rounds."""

from __future__ import annotations

import numpy as np

from moesim.facts.arrays import Ints


def copies_needed(old: Ints, new: Ints, rank_of_slot: Ints) -> Ints:
    """Return int[M, 3]: source rank, destination rank and expert of every copy that one layer needs.

    A rank needs one copy of each expert that it holds now and did not hold before, in however many slots; its own slots cost nothing.
    The ranks in need are dealt, in order, to the present holders in equal runs; what is left over goes one each to the first holders.

    Parameters
    ----------
    old, new : int[S]
        Expert of each slot, before and after; -1 where a slot is empty.
    rank_of_slot : int[S]
        Rank of each slot.

    Notes
    -----
    Source: vllm-project/vllm 0.33.0, ``vllm/distributed/eplb/migration_scheduler.py``, ``build_migration_instructions``.
    """
    ranks = int(rank_of_slot.max()) + 1
    experts = int(max(old.max(), new.max())) + 1
    had = np.zeros((experts, ranks), dtype=bool)
    has = np.zeros((experts, ranks), dtype=bool)
    had[old[old >= 0], rank_of_slot[old >= 0]] = True
    has[new[new >= 0], rank_of_slot[new >= 0]] = True
    copies: list[tuple[int, int, int]] = []
    wanting = has & ~had
    for expert in np.flatnonzero(wanting.any(axis=1) & had.any(axis=1)).tolist():
        holders = np.flatnonzero(had[expert]).tolist()
        needy = np.flatnonzero(wanting[expert]).tolist()
        each, over = divmod(len(needy), len(holders))
        for number, holder in enumerate(holders):
            served = needy[number * each : (number + 1) * each]
            if number < over:
                served.append(needy[len(holders) * each + number])
            copies += [(holder, rank, expert) for rank in served]
    return np.array(copies, dtype=np.int64).reshape(-1, 3)


def in_rounds(copies: Ints) -> Ints:
    """Return int[M, 4]: the round of each copy, then the copy; no rank takes part in two pairs of ranks within a round.

    Copies between the same two ranks, in the same direction, go together. Pairs are taken in the order in which they first appear, each
    into the first round in which both ranks are free.

    Parameters
    ----------
    copies : int[M, 3]
        From :func:`copies_needed`.

    Notes
    -----
    Source: vllm-project/vllm 0.33.0, ``migration_scheduler.py``, ``schedule_migration_batches``.
    """
    together: dict[tuple[int, int], list[list[int]]] = {}
    for source, destination, expert in copies.tolist():
        together.setdefault((source, destination), []).append([source, destination, expert])
    rounds: list[list[list[int]]] = []
    busy: list[set[int]] = []
    for pair, group in together.items():
        number = next((number for number, taken in enumerate(busy) if taken.isdisjoint(pair)), len(rounds))
        if number == len(rounds):
            rounds.append([])
            busy.append(set())
        rounds[number] += group
        busy[number].update(pair)
    rows = [[number, *copy] for number, group in enumerate(rounds) for copy in group]
    return np.array(rows, dtype=np.int64).reshape(-1, 4)
