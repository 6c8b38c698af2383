"""Which routes survive a limit per source and expert: the shared arithmetic of all capacity rules.

A rule is an order (which route an expert would rather keep) and a limit (how many it takes from a source). An order is one whole number
per route, smaller is kept first; :func:`keep_first` applies the limit to all sources and experts at once.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.facts.arrays import Bools, Ints
from moesim.facts.routing import Kept, LayerRouting


def by_position(routing: LayerRouting) -> Ints:
    """Return int[T, k], the order of the tokens, a token's choices together (token-major)."""
    ids = routing.need_ids("an order by position")
    return np.arange(ids.size, dtype=np.int64).reshape(ids.shape)


def by_weight(weights: NDArray[Any]) -> Ints:
    """Return an order of routes, largest gate weight first; equal weights are equal in the order.

    Parameters
    ----------
    weights : float[T, k]
        Any float type, not NaN.

    Returns
    -------
    int[T, k]
        From 0 to 2**32 - 1.

    Notes
    -----
    The bits of an IEEE 754 single, with those of negative numbers flipped, sort like the numbers. Doubles that are no singles are
    numbered by rank instead, so that nothing is rounded together.
    """
    single = weights.astype(np.float32)
    if weights.dtype.itemsize > single.dtype.itemsize and not np.array_equal(single, weights):
        rank = np.unique(weights, return_inverse=True)[1].reshape(weights.shape).astype(np.int64)
        return np.asarray(rank.max(initial=0) - rank)
    single += np.float32(0.0)  # -0.0 becomes 0.0: they are equal
    bits = single.view(np.uint32)
    sign = np.uint32(1 << 31)
    ascending = np.where(bits & sign, ~bits, bits | sign)
    return (~ascending).astype(np.int64)


def by_choice(weights: NDArray[Any]) -> Ints:
    """Return an order in which first choices of all tokens come before all second choices (slot-major), each in token order.

    Parameters
    ----------
    weights : float[T, k]
        Which choice is a token's first is read from them (equal weights: the earlier slot), since recordings have slots in any order.

    Returns
    -------
    int[T, k]
        ``rank of the choice * T + token``.
    """
    tokens, choices = weights.shape
    slots = np.argsort(-weights, axis=1, kind="stable")
    rank = np.empty((tokens, choices), dtype=np.int64)
    np.put_along_axis(rank, slots, np.broadcast_to(np.arange(choices), (tokens, choices)), axis=1)
    order: Ints = rank * tokens + np.arange(tokens)[:, None]
    return order


def keep_first(routing: LayerRouting, limit: Ints, order: Ints) -> Bools:
    """Keep, of the routes from each source to each expert, the first ``limit`` in ``order``.

    Parameters
    ----------
    routing : LayerRouting
        With ids.
    limit : int[G]
        Routes that an expert takes from each source.
    order : int[T, k]
        From 0 to 2**32 - 1, smallest kept first; of equal ones the earlier in the array (the earlier token).

    Returns
    -------
    bool[T, k]
        True where a route is kept; false where there was none.

    Notes
    -----
    One sort of whole words, (queue, order), gives the last order that each full queue admits; a comparison does the rest. Queues
    that overflow nowhere are not sorted.
    """
    ids = routing.need_ids("dropping routes")
    keep: Bools = np.array(ids >= 0, order="C")  # C order, so that its flat view below is a view
    full = routing.counts > limit[:, None]
    if not full.any():
        return keep
    queue_of = np.cumsum(full.ravel(), dtype=np.int64) - 1
    pair = routing.source_of_token()[:, None] * routing.experts + ids.astype(np.int64)
    contested = np.flatnonzero(keep.ravel() & np.take(full.ravel(), pair.ravel(), mode="clip"))
    queue = queue_of[pair.ravel()[contested]]
    # An order fits in 32 bits, so that it and the number of its queue share one 64-bit word.
    word = (queue << 32) | order.ravel()[contested]

    words = np.sort(word)
    length = routing.counts[full]
    start = np.cumsum(length) - length
    room = np.broadcast_to(limit[:, None], full.shape)[full]
    # A queue without room admits nothing: its last word is one below its first possible one.
    last = np.where(room > 0, words[start + np.maximum(room, 1) - 1], (np.arange(len(room)) << 32) - 1)
    admitted = word <= last[queue]

    # Routes that tie for the last place were all admitted: the latest of them go.
    surplus = np.searchsorted(words, last, side="right") - start - room
    if surplus.any():
        tied = np.flatnonzero((word == last[queue]) & (surplus[queue] > 0))
        grouped = tied[np.argsort(queue[tied], kind="stable")]
        ends = np.searchsorted(queue[grouped], queue[grouped], side="right")
        from_the_end = ends - np.arange(len(grouped))
        admitted[grouped[from_the_end <= surplus[queue[grouped]]]] = False
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
    """Return what a rule leaves of a layer.

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
    counts = np.minimum(routing.counts, limit[:, None])
    ids = routing.ids
    fully_dropped = None
    if keep is not None and ids is not None:
        fully_dropped = int(np.count_nonzero((ids >= 0).any(axis=1) & ~keep.any(axis=1)))
        signed = _signed(ids.dtype)
        ids = _settled(np.where(keep, ids.astype(signed, copy=False), np.asarray(-1, dtype=signed)))
        if weights is not None:
            weights = _settled(np.where(keep, weights, np.asarray(0, dtype=weights.dtype)))
    left = LayerRouting(
        experts=routing.experts, token_start=routing.token_start, counts=counts, ids=ids, weights=weights, scores=routing.scores
    )
    padding = np.zeros_like(counts) if rows is None else np.maximum(rows[:, None] - counts, 0)
    return Kept(routing=left, dropped=routing.counts - counts, padding=padding, capacity=capacity, fully_dropped=fully_dropped)


def _signed(dtype: np.dtype[Any]) -> np.dtype[Any]:
    # Recordings hold ids in the smallest type that fits, often without a sign; a dropped route is -1.
    signed = np.promote_types(dtype, np.int8)
    return signed if signed.kind == "i" else np.dtype(np.int64)


def _settled(array: NDArray[Any]) -> NDArray[Any]:
    # An array that is read-only already is shared by the facts, not copied.
    array.flags.writeable = False
    return array
