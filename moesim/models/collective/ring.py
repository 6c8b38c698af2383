"""Rings: each GPU sends to the next and receives from the one before."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from moesim.facts.arrays import Floats, Ints, frozen
from moesim.facts.collective import Stage


def around(orders: Ints, ranks: Ints, size: float, rounds: tuple[tuple[int, bool], ...], *, phase: int = 0) -> Iterator[Stage]:
    """Yield the stages in which pieces go round rings, n - 1 stages per round.

    Bandwidth-optimal ring (Patarasuk and Yuan, "Bandwidth optimal all-reduce algorithms for clusters of workstations", Journal of Parallel
    and Distributed Computing 69(2), 2009): in step k of a round whose ``first`` is f, place p of a ring sends piece (p - k + f) mod n to
    place p + 1. A reduction starts at f = -1, one place behind, so that piece p ends at place p; a gathering starts at f = 0.

    Parameters
    ----------
    orders : int[channels, n]
        For each ring the positions in ``ranks`` in the order of the ring. Piece j of ring c has the number ``c * n + j``.
    ranks : int[n]
        GPUs.
    size : float
        Bytes of a piece.
    rounds : tuple of (int, bool)
        Of each round its ``first``, and whether pieces are added up.
    phase : int
        Of all stages.
    """
    channels, count = orders.shape
    source: Ints = frozen(ranks[orders].ravel())
    destination: Ints = frozen(ranks[np.roll(orders, -1, axis=1)].ravel())
    each: Floats = frozen(np.full(channels * count, size))
    place, channel = np.arange(count), np.arange(channels)[:, None] * count
    for first, adds in rounds:
        for step in range(count - 1):
            piece = (channel + (place - step + first) % count).ravel()
            yield Stage(source=source, destination=destination, bytes=each, piece=piece, adds=adds, phase=phase)


def along(orders: Ints, ranks: Ints, size: float, root: int, *, adds: bool) -> Iterator[Stage]:
    """Yield the n - 1 stages in which one piece per ring goes from the root along the ring, or, adding up, along the ring to the root.

    Parameters
    ----------
    orders : int[channels, n]
        As for :func:`around`. The piece of ring c has the number c.
    ranks : int[n]
        GPUs.
    size : float
        Bytes of a piece.
    root : int
        Position in ``ranks``.
    adds : bool
        A reduction, which ends at the root.
    """
    channels, count = orders.shape
    at = np.argmax(orders == root, axis=1)
    piece, each = np.arange(channels), np.full(channels, size)
    for step in range(count - 1):
        place = (at + step + (1 if adds else 0)) % count
        sender, receiver = orders[piece, place], orders[piece, (place + 1) % count]
        yield Stage(source=ranks[sender], destination=ranks[receiver], bytes=each, piece=piece, adds=adds)
