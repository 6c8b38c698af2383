"""Routes of networks with a routing rule of their own: from the vertices that bytes pass to the links between them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np

from moesim.base.errors import PluginError
from moesim.facts.arrays import Ints

Walks: TypeAlias = Callable[[int], Ints]


def routes_of_walks(walks: Walks, *, gpus: int, tail: Ints, head: Ints, vertices: Sequence[str]) -> tuple[Ints, Ints]:
    """Return the routes between all pairs as ``route_start`` int[G * G + 1] and ``route_link``.

    Parameters
    ----------
    walks : callable
        Given a source GPU, int[G, W]: the vertices passed on the way to each destination; -1 is skipped.
    gpus : int
        G; vertices 0 to G - 1 are the GPUs.
    tail, head : int[K]
        The vertices that each link joins.
    vertices : sequence of str
        Names, for messages.

    Raises
    ------
    PluginError
        If a walk does not lead from its source to its destination along links.
    """
    # A table of all pairs of vertices: looking up a link is one read, and there are millions of them.
    link_of = np.full((len(vertices), len(vertices)), -1, dtype=np.int32)
    link_of[tail, head] = np.arange(len(tail), dtype=np.int32)
    lengths, links = np.zeros((gpus, gpus), dtype=np.int64), []
    for source in range(gpus):
        walk = np.array(walks(source), dtype=np.int64)
        walk[source] = -1
        there = walk >= 0
        passed, row = walk[there], np.nonzero(there)[0]
        starts, ends = np.diff(row, prepend=-1) != 0, np.diff(row, append=gpus) != 0
        others = np.delete(np.arange(gpus), source)
        if not (np.array_equal(row[starts], others) and (passed[starts] == source).all() and np.array_equal(passed[ends], others)):
            raise PluginError(f"the walks from {vertices[source]} must begin there and end at each other GPU")
        taken = link_of[passed[:-1], passed[1:]][~starts[1:]]
        lost = np.flatnonzero(taken < 0)
        if lost.size:
            step = np.flatnonzero(~starts[1:])[lost[0]]
            here, there_, goal = (vertices[int(at)] for at in (passed[step], passed[step + 1], row[step]))
            raise PluginError(f"the walk from {vertices[source]} to {goal} goes from {here} to {there_}, which no link joins")
        lengths[source] = np.maximum(np.bincount(row, minlength=gpus) - 1, 0)
        links.append(taken)
    start = np.concatenate(([0], np.cumsum(lengths.ravel())))
    return start, np.concatenate(links, dtype=np.int64) if links else np.zeros(0, dtype=np.int64)
