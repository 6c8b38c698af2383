"""Counting what goes from GPU to GPU: copies of tokens, or routes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.base.errors import FidelityError
from moesim.facts.arrays import Bools, Ints
from moesim.facts.routing import Assignment
from moesim.models.compiled_loops import loops_for


def copies_per_route(assignment: Assignment, ranks: int) -> Ints:
    """Return int[G / R, R, R], one copy per kept route, from source to destination GPU of each group of R; the diagonals are 0."""
    return between_gpus(assignment, assignment.slot_counts, ranks)


def padding_rows(assignment: Assignment, ranks: int) -> Ints:
    """Return int[G / R, R, R], the padding rows from source to destination GPU of each group of R; the diagonals are 0."""
    return between_gpus(assignment, assignment.slot_padding, ranks)


def copies_per_token(assignment: Assignment, who: str, *, ranks: int, own: bool = False) -> Ints:
    """Return int[G / R, R, R], one copy per token and GPU of its group that holds at least one of its slots.

    Parameters
    ----------
    assignment : Assignment
        With the slot of each route, unless no route leaves its GPU.
    who : str
        On whose behalf to refuse.
    ranks : int
        R, the GPUs of a group.
    own : bool
        Whether the diagonals hold the tokens that have a slot on their own GPU; they are 0 otherwise, and 0 where no route leaves its GPU.

    Raises
    ------
    FidelityError
        If the routing has counts only: which routes belong to one token is then unknown.

    Notes
    -----
    Law L2's sending half. A choice is counted when no earlier choice of its token goes to the same GPU: k (k - 1) / 2 comparisons of
    whole columns, which for the usual k of up to about 20 is several times faster than sorting each token's destinations.
    """
    gpus = len(assignment.slot_counts)
    shape = gpus // ranks, ranks, ranks
    if stays_home(assignment):
        return np.zeros(shape, dtype=np.int64)
    loops = loops_for(*_plain(assignment))
    if loops is not None:
        copies: Ints = loops.tokens_between(*_plain(assignment), ranks).reshape(shape)
    else:
        source, columns = destinations(assignment, who)
        flat = np.zeros(gpus * ranks, dtype=np.int64)
        row = source * ranks - source // ranks * ranks  # of a GPU, less the number of the first of its group
        for choice, first in first_of_each(columns):
            flat += np.bincount(row[first] + columns[choice][first], minlength=gpus * ranks)
        copies = flat.reshape(shape)
    return copies if own else without_own(copies)


def _plain(assignment: Assignment) -> tuple[NDArray[Any], ...]:
    """Return slots, bounds of tokens and destinations as compiled loops take them; an empty array where they cannot."""
    slots = assignment.slots
    if slots is None or slots.dtype != np.int32 or assignment.kept.routing.ids is None:
        return (np.zeros(0),)
    return slots, assignment.kept.routing.token_start, np.ascontiguousarray(assignment.destination, dtype=np.int64)


def stays_home(assignment: Assignment) -> bool:
    """Return whether every slot that a source may use is on the source itself: expert parallelism of one."""
    own = np.arange(len(assignment.slot_counts))[:, None]
    return np.array_equal(assignment.destination, np.broadcast_to(own, assignment.destination.shape))


def destinations(assignment: Assignment, who: str) -> tuple[Ints, Ints]:
    """Return int[T], the source of each token, and int[k, T], the GPU of each of its choices (-1 where it has none).

    Raises
    ------
    FidelityError
        On behalf of ``who``, if the routing does not tell tokens apart.
    """
    routing = assignment.kept.routing
    routing.need_ids(who)
    if assignment.slots is None:
        raise FidelityError(f"{who} needs the slot of each route, but the dispatch bound counts only")
    source = routing.source_of_token()
    return source, destination_columns(assignment, source)


def destination_columns(assignment: Assignment, source: Ints) -> Ints:
    """Return int[k, T], the GPU of each choice of each token, -1 where it has none."""
    slots = np.ascontiguousarray(np.asarray(assignment.slots).T, dtype=np.int64)
    slot_count = assignment.destination.shape[1]
    # A choice of -1 reads some entry of the row before; it is overwritten at once.
    found = np.asarray(assignment.destination, dtype=np.int64).ravel()[source * slot_count + np.maximum(slots, 0)]
    found[slots < 0] = -1
    return np.asarray(found)


def first_of_each(columns: Ints) -> Iterator[tuple[int, Bools]]:
    """Yield each choice with bool[T]: whether it names a place that no earlier choice of its token names; -1 is no place.

    Parameters
    ----------
    columns : int[k, T]
        The place of each choice of each token.
    """
    for choice in range(len(columns)):
        first = columns[choice] >= 0
        for earlier in range(choice):
            first &= columns[choice] != columns[earlier]
        yield choice, first


def between_gpus(assignment: Assignment, rows: Ints, ranks: int) -> Ints:
    """Sum int[G, S] rows of each source and slot by the GPU of the slot, in groups of R; what stays at home is left out.

    Returns
    -------
    int[G / R, R, R]
    """
    gpus = len(assignment.slot_counts)
    moved = np.zeros((gpus, ranks), dtype=np.int64)
    if rows.any():
        source = np.arange(gpus)[:, None]
        every = np.broadcast_to(source, assignment.destination.shape)
        np.add.at(moved, (every, assignment.destination - source // ranks * ranks), rows)
    return without_own(moved.reshape(gpus // ranks, ranks, ranks))


def without_own(blocks: Ints) -> Ints:
    """Write 0 for what a GPU keeps into int[G / R, R, R], and return it."""
    own = np.arange(blocks.shape[1])
    blocks[:, own, own] = 0
    return blocks
