"""Links that can never be full, whatever flows there are, because the links around them are narrower."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from moesim.facts.arrays import Bools, Floats, Ints

MOST_ROUTES = 2**18
"""Looked at together."""


def follows_of(route: NDArray[np.int32], links: int) -> Ints:
    """Return which link follows which on some route.

    Parameters
    ----------
    route : int32[R, H]
        Links of each route, padded with -1.
    links : int
        K.

    Returns
    -------
    int[N, 2]
        Pairs (link, next link), each once; K stands before the first link of a route and after its last.
    """
    seen = np.zeros((links + 1) ** 2, dtype=np.bool_)
    for first in range(0, len(route), MOST_ROUTES):
        some = route[first : first + MOST_ROUTES]
        path = np.full((len(some), route.shape[1] + 2), links, dtype=np.int64)
        path[:, 1:-1] = np.where(some >= 0, some, links)
        for hop in range(route.shape[1] + 1):
            seen[path[:, hop] * (links + 1) + path[:, hop + 1]] = True
    pairs = np.stack(np.divmod(np.flatnonzero(seen), links + 1), axis=1)
    return np.asarray(pairs[(pairs < links).any(axis=1)])


def never_full(capacity: Floats, follows: Ints) -> Bools:
    """Return bool[K]: true for a link that no set of flows on these routes can fill to more than its capacity.

    Parameters
    ----------
    capacity : float[K]
        In B/s.
    follows : int[N, 2]
        As :func:`follows_of` returns it.

    Notes
    -----
    A link whose every flow comes from one of some links, which together carry no more than it can, is never full; this stays true if those
    are never full themselves, because a chain of links that each rest on the ones before ends at a first link, which rests on none.
    The same holds for the links after it, but a chain must not turn round: only links that are left after the first rule may be rested on.
    """
    links = len(capacity)
    known = np.append(capacity, np.inf)
    pruned = _held(known, holder=follows[:, 0], held=follows[:, 1], links=links)
    standing = known.copy()
    standing[:-1][pruned] = np.inf
    return pruned | (_held(standing, holder=follows[:, 1], held=follows[:, 0], links=links) & np.isfinite(capacity)) | np.isinf(capacity)


def _held(known: Floats, *, holder: Ints, held: Ints, links: int) -> Bools:
    """Return bool[K]: links whose holders together carry no more than they can."""
    feeding = np.bincount(held, weights=known[holder], minlength=links + 1)[:links]
    return np.asarray((feeding <= known[:links]) & np.isfinite(feeding) & (feeding > 0))
