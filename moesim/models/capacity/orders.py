"""In which order an expert takes routes: the earlier token, the larger weight, the first choice.

An order is one whole number per route, from 0 to 2**32 - 1; the smallest is kept first, and of equal ones the earlier in the array.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.facts.arrays import Ints
from moesim.facts.routing import LayerRouting

SMALLEST_SUM = float(np.finfo(np.float32).eps)


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
    if not (bits & sign).any():  # as gate weights are, mostly
        return (~sign - bits).astype(np.int64)
    ascending = np.where(bits & sign, ~bits, bits | sign)
    return (~ascending).astype(np.int64)


def rank_of_choice(weights: NDArray[Any]) -> Ints:
    """Return int[T, k], which choice of its token a route is: 0 for the largest weight; equal weights: the earlier slot.

    Recordings have slots in any order, so the rank is read from the weights.

    Notes
    -----
    k (k - 1) / 2 comparisons of whole columns, several times quicker than sorting T short rows.
    """
    columns = np.ascontiguousarray(weights.T)
    rank = np.zeros(columns.shape, dtype=np.int64)
    for slot in range(1, len(columns)):
        for earlier in range(slot):
            behind = columns[earlier] >= columns[slot]
            rank[slot] += behind
            rank[earlier] += ~behind
    return np.ascontiguousarray(rank.T)


def by_choice(weights: NDArray[Any]) -> Ints:
    """Return an order in which first choices of all tokens come before all second choices (slot-major), each in token order.

    Parameters
    ----------
    weights : float[T, k]
        See :func:`rank_of_choice`.

    Returns
    -------
    int[T, k]
        ``rank of the choice * T + token``.
    """
    tokens = len(weights)
    order: Ints = rank_of_choice(weights) * tokens + np.arange(tokens)[:, None]
    return order


def by_priority(weights: NDArray[Any]) -> Ints:
    """Return the order of batch-prioritised routing: first choices before second ones, each by descending largest weight of the token.

    Parameters
    ----------
    weights : float[T, k]
        Tokens with an equal largest weight: the earlier token.

    Returns
    -------
    int[T, k]
        ``rank of the choice * T + place of the token``.

    Notes
    -----
    Source: Riquelme et al., arXiv:2106.05974, section 4.2.
    """
    tokens = len(weights)
    place = np.empty(tokens, dtype=np.int64)
    # The order by weight ascends from the largest weight; a stable sort keeps equal tokens in their order.
    place[np.argsort(by_weight(weights).min(axis=1, initial=2**32 - 1), kind="stable")] = np.arange(tokens)
    order: Ints = rank_of_choice(weights) * tokens + place[:, None]
    return order


def slot_major(routing: LayerRouting, who: str, *, priority: bool = False) -> Ints:
    """Return :func:`by_choice`, or :func:`by_priority`, of a routing; with one choice per token the order of tokens needs no weights.

    Raises
    ------
    FidelityError
        On behalf of ``who``, if the weights are needed and unknown.
    """
    if routing.need_ids(who).shape[1] == 1 and not priority:
        return by_position(routing)
    weights = routing.need_weights(who)
    return by_priority(weights) if priority else by_choice(weights)


def renormalise(weights: NDArray[Any], keep: NDArray[np.bool_]) -> NDArray[Any]:
    """Return float[T, k]: each token's kept weights divided by their sum (at least the single-precision epsilon), 0 where dropped.

    Half-precision weights come back in single precision.
    """
    dtype = np.promote_types(weights.dtype, np.float32)
    left = np.where(keep, weights, 0).astype(dtype, copy=False)
    return np.asarray(left / np.maximum(left.sum(axis=1, keepdims=True), dtype.type(SMALLEST_SUM)))
