"""Following the data through a plan: does every rank end with what the operation promises."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from moesim.base.errors import LawBroken
from moesim.facts.collective import CollectivePlan

Contents = NDArray[np.int64]
"""int[n, pieces, n]: how often each rank holds the contribution of each rank to each piece."""


def contents_before(plan: CollectivePlan) -> Contents:
    """Return what each rank brings.

    In a reduction every rank brings its own part of every piece; otherwise a piece is there once, with the rank it comes from.
    """
    count, pieces = len(plan.ranks), len(plan.pieces)
    held = np.zeros((count, pieces, count), dtype=np.int64)
    rank, piece = np.arange(count), np.arange(pieces)
    match plan.operation:
        case "all_gather":
            held[plan.home, piece, plan.home] = 1
        case "broadcast" | "send":
            held[plan.root, piece, plan.root] = 1
        case "all_to_all":
            held[piece // count, piece, piece // count] = 1
        case _:
            held[rank, :, rank] = 1
    return held


def contents_promised(plan: CollectivePlan) -> tuple[Contents, NDArray[np.bool_]]:
    """Return what each rank must hold of each piece in the end, and bool[n, pieces] where that is promised at all."""
    count, pieces = len(plan.ranks), len(plan.pieces)
    before = contents_before(plan)
    everything = np.broadcast_to(before.max(axis=0), before.shape).copy()
    promised = np.ones((count, pieces), dtype=np.bool_)
    if plan.operation in {"reduce_scatter", "reduce", "all_to_all", "send"}:
        promised = np.arange(count)[:, None] == plan.home
    return everything, promised


def contents_after(plan: CollectivePlan) -> Contents:
    """Return what each rank holds after the stages of a plan in steps.

    What is sent is what its source held when the stage began.

    Raises
    ------
    LawBroken
        If a GPU sends a piece of which it holds nothing, or the bytes of a transfer are not those of its piece.
    """
    held = contents_before(plan)
    place = {int(gpu): rank for rank, gpu in enumerate(plan.ranks)}
    for number, stage in enumerate(plan.stages):
        source = np.array([place[gpu] for gpu in stage.source.tolist()], dtype=np.int64)
        destination = np.array([place[gpu] for gpu in stage.destination.tolist()], dtype=np.int64)
        sent = held[source, stage.piece]
        right = sent.any(axis=1) & np.isclose(stage.bytes, plan.pieces[stage.piece], rtol=1e-12, atol=0.0)
        for flow in np.flatnonzero(~right)[:1].tolist():
            piece = int(stage.piece[flow])
            raise LawBroken(
                f"law L2 (bytes): stage {number} of the {plan.algorithm} {plan.operation}: GPU {stage.source[flow]} sends "
                f"{stage.bytes[flow]:.6g} B as piece {piece} of {plan.pieces[piece]:.6g} B, of which it holds "
                f"{'something' if sent[flow].any() else 'nothing'}"
            )
        if stage.adds:
            np.add.at(held, (destination, stage.piece), sent)
        else:
            held[destination, stage.piece] = sent
    return held


def check_delivers(plan: CollectivePlan) -> None:
    """Check that a plan in steps keeps the promise of its operation: each rank ends with every contribution to its pieces, once.

    Raises
    ------
    LawBroken
        Naming a rank and a piece that it lacks or has twice.
    """
    if not plan.stages and (len(plan.ranks) == 1 or not plan.bytes):
        return  # nothing to do, or nothing to send
    held = contents_after(plan)
    wanted, promised = contents_promised(plan)
    wrong = np.argwhere((held != wanted).any(axis=2) & promised)
    if len(wrong):
        rank, piece = wrong[0].tolist()
        raise LawBroken(
            f"law L2 (bytes): after the {plan.algorithm} {plan.operation} rank {rank} holds the contributions {held[rank, piece].tolist()} "
            f"to piece {piece}, but {wanted[rank, piece].tolist()} are promised"
        )
