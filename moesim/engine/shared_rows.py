"""Rows for the shared expert that a dispatch sends to other ranks, as if it were a routed one."""

from __future__ import annotations

import numpy as np

from moesim.base.errors import LawBroken
from moesim.facts.arrays import Ints
from moesim.facts.routing import Assignment


def ranks_of_slots(assignment: Assignment, rank_of_slot: Ints, ranks: int) -> Ints:
    """Return int[S], the rank of each slot of an assignment: those of the placement, and one on each rank where shared experts have one."""
    return np.concatenate([rank_of_slot, np.arange(ranks)]) if assignment.shared_slots else rank_of_slot


def check_shared(assignment: Assignment, ranks: int, step: int, moe_layer: int) -> None:
    """Law L1: the shared expert computes every token once, on a rank of the token's own group.

    Raises
    ------
    LawBroken
        Naming the GPU where the tokens start.
    """
    number = assignment.shared_slots
    if not number:
        return
    where = f"law L1 (tokens): step {step}, MoE layer {moe_layer}"
    if number != ranks:
        raise LawBroken(f"{where}: the dispatch made {number} slots for the shared expert, where each of the {ranks} ranks has one")
    bound = assignment.slot_counts[:, -number:].sum(axis=1)
    tokens = np.diff(assignment.kept.routing.token_start)
    wrong = np.flatnonzero(bound != tokens)
    if wrong.size:
        gpu = int(wrong[0])
        raise LawBroken(f"{where}: GPU {gpu} has {tokens[gpu]} tokens, of which the shared experts of its group compute {bound[gpu]}")
    own = np.arange(len(tokens))[:, None] // ranks * ranks + np.arange(ranks)
    elsewhere = np.argwhere(assignment.destination[:, -number:] != own)
    if elsewhere.size:
        gpu, rank = (int(i) for i in elsewhere[0])
        raise LawBroken(
            f"{where}: GPU {gpu} looks for the shared expert of rank {rank} on GPU {assignment.destination[gpu, rank - number]}"
        )
