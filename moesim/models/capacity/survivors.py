"""Which routes survive a limit: the shared arithmetic of all capacity rules.

A rule is an order (:mod:`~moesim.models.capacity.orders`: which route an expert would rather keep), queues (the routes that compete: those
of a source for an expert, or those of all sources for a GPU) and a room for each queue. :func:`keep_in_queues` fills all queues at once.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.facts.arrays import Bools, Ints
from moesim.facts.routing import Kept, LayerRouting, count_routes
from moesim.models.compiled_loops import is_whole, loops_for


def keep_first(routing: LayerRouting, limit: Ints, order: Ints) -> Bools:
    """Keep, of the routes from each source to each expert, the first ``limit`` in ``order``.

    Parameters
    ----------
    routing : LayerRouting
        With ids.
    limit : int[G] or int[G, E]
        Routes that an expert takes from each source.
    order : int[T, k]
        From 0 to 2**32 - 1, smallest kept first; of equal ones the earlier in the array (the earlier token).

    Returns
    -------
    bool[T, k]
        True where a route is kept; false where there was none.
    """
    ids = routing.need_ids("dropping routes")
    keep: Bools = np.array(ids >= 0, order="C")  # C order, so that its flat view is a view
    room = _by_source(limit, routing)
    if not (routing.counts > room).any():
        return keep
    queue = np.add(routing.source_of_token()[:, None] * routing.experts, ids, dtype=np.int64)
    return keep_in_queues(keep, queue, routing.counts.ravel(), room.ravel(), order)


def keep_in_queues(keep: Bools, queue: Ints, length: Ints, room: Ints, order: Ints) -> Bools:
    """Keep, of the routes in each queue, as many as there is room for, the first in ``order``.

    Parameters
    ----------
    keep : bool[n...]
        Which routes compete; C order. It is changed in place and returned.
    queue : int[n...]
        Where they compete, from 0 to Q - 1; anything where ``keep`` is false.
    length : int[Q]
        Competing routes of each queue.
    room : int[Q]
        How many stay.
    order : int[n...]
        From 0 to 2**32 - 1, smallest kept first; of equal ones the earlier in the array.

    Notes
    -----
    One sort of whole words, (queue, order), gives the last order that each full queue admits; a comparison does the rest. Queues
    that overflow nowhere are not sorted.
    """
    full = length > room
    if not full.any():
        return keep
    loops = loops_for(keep, queue, length, room, order)
    if loops is not None and all(is_whole(array) for array in (queue, length, room, order)):
        loops.keep_lowest(keep.reshape(-1), queue.reshape(-1), length, room, order.reshape(-1))
        return keep
    queue_of = np.cumsum(full, dtype=np.int64) - 1
    contested = np.flatnonzero(keep.ravel() & np.take(full, queue.ravel(), mode="clip"))
    numbered = queue_of[queue.ravel()[contested]]
    # An order fits in 32 bits, so that it and the number of its queue share one 64-bit word.
    word = (numbered << 32) | order.ravel()[contested]

    words = np.sort(word)
    ends = np.cumsum(length[full])
    start = ends - length[full]
    space = room[full]
    # A queue without room admits nothing: its last word is one below its first possible one.
    last = np.where(space > 0, words[start + np.maximum(space, 1) - 1], (np.arange(len(space)) << 32) - 1)
    admitted = word <= last[numbered]

    # Routes that tie for the last place were all admitted: the latest of them go.
    surplus = np.searchsorted(words, last, side="right") - start - space
    if surplus.any():
        tied = np.flatnonzero((word == last[numbered]) & (surplus[numbered] > 0))
        grouped = tied[np.argsort(numbered[tied], kind="stable")]
        behind = np.searchsorted(numbered[grouped], numbered[grouped], side="right")
        from_the_end = behind - np.arange(len(grouped))
        admitted[grouped[from_the_end <= surplus[numbered[grouped]]]] = False
    keep.ravel()[contested[~admitted]] = False
    return keep


def what_is_left(
    routing: LayerRouting,
    *,
    capacity: Ints,
    limit: Ints,
    rows: Ints | None,
    keep: Bools | None,
    weights: NDArray[Any] | None = None,
) -> Kept:
    """Return what a rule with a limit per source and expert leaves of a layer.

    Parameters
    ----------
    routing : LayerRouting
        Before the rule.
    capacity : int[G]
        Rows of a buffer, for the record.
    limit : int[G]
        Routes that an expert takes from each source.
    rows : int[G] or None
        Rows up to which each buffer is filled; None if only real routes are sent.
    keep : bool[T, k] or None
        Which routes are kept; None where tokens are unknown.
    weights : float[T, k] or None
        Gate weights after the rule; ignored without ``keep``.
    """
    counts = np.minimum(routing.counts, _by_source(limit, routing))
    padding = None if rows is None else np.maximum(rows[:, None] - counts, 0)
    return leave(routing, counts=counts, keep=keep, weights=weights, padding=padding, capacity=capacity)


def leave(
    routing: LayerRouting,
    *,
    counts: Ints | None = None,
    keep: Bools | None,
    weights: NDArray[Any] | None = None,
    padding: Ints | None = None,
    capacity: Ints | None = None,
    room: int | None = None,
    at_receiver: bool = False,
) -> Kept:
    """Return what is left of a layer when some routes are dropped.

    Parameters
    ----------
    routing : LayerRouting
        Before the rule.
    counts : int[G, E] or None
        Routes that stay; None to count ``keep``.
    keep : bool[T, k] or None
        Which routes stay; None where tokens are unknown.
    weights : float[T, k] or None
        Gate weights after the rule; ignored without ``keep``.
    padding : int[G, E] or None
        Rows that are added; None for none.
    capacity, room : int[G], int or None
        For the record; see :class:`~moesim.facts.routing.Kept`.
    at_receiver : bool
        Whether dropping and padding happen after the dispatch: all routes travel, and no padding does.
    """
    ids = routing.ids
    fully_dropped = None
    if keep is not None and ids is not None:
        ids, weights, fully_dropped = _struck(ids, weights, keep)
    if counts is None:
        counts = routing.counts if ids is None else count_routes(ids, routing.token_start, routing.experts)
    left = replace(routing, counts=counts, ids=ids, weights=weights)
    none = np.zeros_like(routing.counts)
    return Kept(
        routing=left,
        dropped=routing.counts - counts,
        padding=none if padding is None else padding,
        capacity=capacity,
        fully_dropped=fully_dropped,
        sent=Kept(routing=routing, dropped=none, padding=none) if at_receiver else None,
        room=room,
    )


def _struck(ids: NDArray[Any], weights: NDArray[Any] | None, keep: Bools) -> tuple[NDArray[Any], NDArray[Any] | None, int]:
    """Return ids with -1 and weights with 0 for the routes that are not kept, and how many tokens had routes and have none left."""
    loops = loops_for(ids, keep)
    if loops is not None and ids.dtype == np.int32 and weights is not None and weights.dtype == np.float32:
        left, weights_left = ids.copy(), np.array(weights, order="C")
        emptied: int = loops.strike(left, weights_left, keep)
        return settled(left), settled(weights_left), emptied
    emptied = int(np.count_nonzero(_any_choice(ids >= 0) & ~_any_choice(keep)))
    signed = signed_type(ids.dtype)
    ids = settled(np.where(keep, ids.astype(signed, copy=False), np.asarray(-1, dtype=signed)))
    if weights is not None:
        weights = settled(np.where(keep, weights, np.asarray(0, dtype=weights.dtype)))
    return ids, weights, emptied


def _any_choice(flags: Bools) -> Bools:
    """Return bool[T], whether any of bool[T, k] is true: column by column, because rows are short."""
    found = np.zeros(len(flags), dtype=np.bool_)
    for column in flags.T:
        found |= column
    return found


def signed_type(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Return an integer type for expert ids that has room for -1: recordings often hold the smallest unsigned one."""
    signed = np.promote_types(dtype, np.int8)
    return signed if signed.kind == "i" else np.dtype(np.int64)


def settled(array: NDArray[Any]) -> NDArray[Any]:
    """Return a fresh array that may not be written to any more: the facts share such arrays instead of copying them."""
    array.flags.writeable = False
    return array


def _by_source(limit: Ints, routing: LayerRouting) -> Ints:
    return np.broadcast_to(limit if limit.ndim == 2 else limit[:, None], routing.counts.shape)
