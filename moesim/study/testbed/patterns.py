"""Who sends how much to whom in the exchanges of the testbed: matrices by name, size and seed.

Anybody can draw them again with NumPy: the generator of a matrix is ``default_rng([seed, ranks, sum of the character codes of its name])``.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from moesim.base.errors import UsageError, did_you_mean
from moesim.base.streams import plain_stream
from moesim.engine.replay import AllToAll, replay
from moesim.facts.arrays import Floats, Ints, frozen
from moesim.models.topology.shaped_hosts import ShapedHosts

ELEMENT = 4
"""Bytes of an element; every message is a whole number of them."""

KINDS = ("even", "hot", "zipf", "dir", "sparse", "incast", "shift", "adv1", "adv2", "adv3")
"""What a matrix may be.

``even``: all pairs alike. ``hot``: one destination four times as popular as the others. ``zipf``: popularity 1/rank of destinations, in
random order. ``dir``: every source splits its bytes by a Dirichlet(0.7) draw of its own. ``sparse``: about half of the pairs are silent.
``incast``: all to rank 0. ``shift``: each to the next. ``adv1`` ...: of 400 sparse matrices the one whose max-min makespan exceeds its
port bound most."""

HOT = 4.0
CONCENTRATION = 0.7
TRIES = 400


def matrix(kind: str, ranks: int, per_pair: int, seed: int = 0) -> Ints:
    """Return int[ranks, ranks], bytes from each rank (row) to each other.

    Parameters
    ----------
    kind : str
        One of ``KINDS``.
    ranks : int
        At least 2.
    per_pair : int
        Bytes of a pair on average: a rank sends ``per_pair * (ranks - 1)`` (``incast``: all but rank 0; ``adv``: the busiest rank).
    seed : int
        Of the draw.

    Raises
    ------
    UsageError
        If there is no such kind, or fewer than two ranks.

    Examples
    --------
    >>> matrix("shift", 3, 8).tolist()
    [[0, 16, 0], [0, 0, 16], [16, 0, 0]]
    """
    if kind not in KINDS:
        raise UsageError(f"there is no traffic pattern {kind!r}{did_you_mean(kind, KINDS)}")
    if ranks < 2:
        raise UsageError(f"{ranks} ranks exchange nothing: a pattern needs two or more")
    total = float(per_pair * (ranks - 1))
    if kind.startswith("adv"):
        sent = _adversarial(kind, ranks, seed) * total
    elif kind == "even":
        sent = np.full((ranks, ranks), float(per_pair))
    elif kind == "incast":
        sent = np.zeros((ranks, ranks))
        sent[1:, 0] = total
    elif kind == "shift":
        sent = np.roll(np.eye(ranks), 1, axis=1) * total
    else:
        sent = _shares(kind, ranks, seed) * total
    whole = (sent // ELEMENT * ELEMENT).astype(np.int64)
    np.fill_diagonal(whole, 0)
    return whole


def _draw(kind: str, ranks: int, seed: int) -> np.random.Generator:
    return plain_stream(seed, ranks, sum(map(ord, kind)))


def _shares(kind: str, ranks: int, seed: int) -> Floats:
    """Return what share of its bytes each rank sends to each other; rows add up to 1."""
    draw = _draw(kind, ranks, seed)
    if kind == "hot":
        popularity = np.ones(ranks)
        popularity[ranks // 2] = HOT
    elif kind == "zipf":
        popularity = (1.0 / np.arange(1, ranks + 1))[draw.permutation(ranks)]
    rows = []
    for source in range(ranks):
        if kind in {"hot", "zipf"}:
            row = popularity.copy()
        elif kind == "dir":
            row = draw.dirichlet(np.full(ranks, CONCENTRATION))
        else:
            row = (draw.random(ranks) < 0.5) * draw.random(ranks)
        row[source] = 0.0
        if not row.any():
            row[(source + 1) % ranks] = 1.0
        rows.append(row / row.sum())
    return np.array(rows)


@lru_cache(maxsize=64)
def _adversarial(kind: str, ranks: int, seed: int) -> Floats:
    """Return the sparse matrix, its busiest port at 1, that takes longest under max-min sharing on a star of links of 1 B/s.

    For dense traffic the busiest port decides, whatever shares the links; only where it idles now and then do models differ.
    """
    draw = _draw(kind, ranks, seed)
    star = ShapedHosts(ranks=ranks, rank_link=1.0, payload=1.0).build()
    best, worst = np.zeros((ranks, ranks)), 0.0
    for _ in range(TRIES):
        sizes = (draw.random((ranks, ranks)) < draw.uniform(0.15, 0.5)) * draw.choice([1, 2, 4, 8, 16], size=(ranks, ranks))
        np.fill_diagonal(sizes, 0)
        if not sizes.any():
            continue
        sent = sizes / max(sizes.sum(axis=0).max(), sizes.sum(axis=1).max())
        seconds = replay(star, [AllToAll(name=kind, bytes=sent)]).seconds
        if seconds > worst * (1 + 1e-12):
            best, worst = sent, seconds
    return frozen(best)
