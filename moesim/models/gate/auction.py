"""Assigning tokens to experts so that all get equally many and the total score is near its maximum: an auction."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.facts.arrays import Floats, Ints

COARSEST, FINEST, STEP = 1 / 8, 1 / 20_000, 4.0
"""The least raise of a bid, as a share of the range of the scores: in the first auction, in the last, and from one to the next."""


def balanced_assignment(scores: NDArray[Any]) -> Ints:
    """Return int[T], the expert of each token: none has more than ceil(T / E) tokens, and exactly T / E where that is whole.

    Parameters
    ----------
    scores : float[T, E]
        Finite; how much a token and an expert like each other.

    Returns
    -------
    int[T]
        Of a total score within T / 20,000 of the range of the scores of the best there is. Deterministic.

    Notes
    -----
    The auction algorithm of Bertsekas for objects of which there are several alike (Bertsekas and Castañon, Parallel Computing 17, 1989),
    with raises that shrink from auction to auction while prices stay. BASE layers (Lewis et al., arXiv:2103.16716) use the same
    algorithm with one raise, a fiftieth of the range, and stop it after 100 rounds.
    Where E does not divide T, tokens that like all experts alike fill up the last places.
    """
    tokens, experts = scores.shape
    if experts == 1 or not tokens:
        return np.zeros(tokens, dtype=np.int64)
    places = -(-tokens // experts)
    likes = np.zeros((places * experts, experts))
    likes[:tokens] = scores
    spread = float(scores.max() - scores.min())
    if spread == 0:
        return np.asarray(np.arange(tokens) % experts)
    price = np.zeros(experts)
    raise_ = COARSEST
    while True:
        assigned = _auction(likes, places, price, spread * raise_)
        if raise_ <= FINEST:
            return assigned[:tokens]
        raise_ = max(raise_ / STEP, FINEST)


def _auction(likes: Floats, places: int, price: Floats, raise_: float) -> Ints:
    """Return int[T], an assignment within T raises of the best; ``price`` becomes that of the cheapest place of each expert."""
    tokens, experts = likes.shape
    holder = np.full(tokens, -1)
    paid = np.zeros(tokens)
    looking = np.arange(tokens)
    while looking.size:
        profit = likes[looking] - price
        best = profit.argmax(axis=1)
        rows = np.arange(len(looking))
        first = profit[rows, best]
        profit[rows, best] = -np.inf
        paid[looking] = price[best] + (first - profit.max(axis=1)) + raise_
        holder[looking] = best
        asked = np.zeros(experts, dtype=np.bool_)
        asked[best] = True
        bidders = np.flatnonzero(asked[holder] & (holder >= 0))
        # By expert, the highest bid first; of equal ones the earlier token keeps its place.
        order = bidders[np.lexsort((-paid[bidders], holder[bidders]))]
        of = holder[order]
        start = np.searchsorted(of, np.arange(experts))
        rank = np.arange(len(order)) - start[of]
        last = rank == places - 1
        price[of[last]] = paid[order[last]]
        looking = order[rank >= places]
        holder[looking] = -1
    return holder
