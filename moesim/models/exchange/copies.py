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


def copies_per_route(assignment: Assignment) -> Ints:
    """Return int[G, G], one copy per kept route, from source to destination GPU; the diagonal is 0."""
    return between_gpus(assignment, assignment.slot_counts)


def padding_rows(assignment: Assignment) -> Ints:
    """Return int[G, G], the padding rows from source to destination GPU; the diagonal is 0."""
    return between_gpus(assignment, assignment.slot_padding)


def copies_per_token(assignment: Assignment, who: str, *, own: bool = False) -> Ints:
    """Return int[G, G], one copy per token and GPU that holds at least one of its slots.

    Parameters
    ----------
    assignment : Assignment
        With the slot of each route, unless no route leaves its GPU.
    who : str
        On whose behalf to refuse.
    own : bool
        Whether the diagonal holds the tokens that have a slot on their own GPU; it is 0 otherwise, and 0 where no route leaves its GPU.

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
    if stays_home(assignment):
        return np.zeros((gpus, gpus), dtype=np.int64)
    loops = loops_for(*_plain(assignment))
    if loops is not None:
        copies: Ints = loops.tokens_between(*_plain(assignment))
        if not own:
            np.fill_diagonal(copies, 0)
        return copies
    source, columns = destinations(assignment, who)
    flat = np.zeros(gpus * gpus, dtype=np.int64)
    for choice, first in first_of_each(columns):
        flat += np.bincount(source[first] * gpus + columns[choice][first], minlength=gpus * gpus)
    tokens = flat.reshape(gpus, gpus)
    if not own:
        np.fill_diagonal(tokens, 0)
    return tokens


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


def between_gpus(assignment: Assignment, rows: Ints) -> Ints:
    """Sum int[G, S] rows of each source and slot by the GPU of the slot; what stays at home is left out."""
    gpus = len(assignment.slot_counts)
    moved = np.zeros((gpus, gpus), dtype=np.int64)
    if rows.any():
        source = np.broadcast_to(np.arange(gpus)[:, None], assignment.destination.shape)
        np.add.at(moved, (source, assignment.destination), rows)
        np.fill_diagonal(moved, 0)
    return moved
