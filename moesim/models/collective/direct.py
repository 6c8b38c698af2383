"""One-shot operations: everybody sends straight to whom it concerns, in one stage."""

from __future__ import annotations

import numpy as np

from moesim.facts.arrays import Ints
from moesim.facts.collective import Stage


def scatter(ranks: Ints, size: float) -> Stage:
    """Return the stage in which each GPU sends piece j to GPU j of the group, who adds up what it gets.

    Parameters
    ----------
    ranks : int[n]
        GPUs; piece j has the number j.
    size : float
        Bytes of a piece.
    """
    sender, receiver = _pairs(len(ranks))
    return Stage(source=ranks[sender], destination=ranks[receiver], bytes=np.full(len(sender), size), piece=receiver, adds=True)


def gather(ranks: Ints, size: float, *, phase: int = 0) -> Stage:
    """Return the stage in which each GPU j sends its piece j to all others.

    Parameters
    ----------
    ranks : int[n]
        GPUs; piece j has the number j.
    size : float
        Bytes of a piece.
    phase : int
        Of the stage.
    """
    sender, receiver = _pairs(len(ranks))
    return Stage(source=ranks[sender], destination=ranks[receiver], bytes=np.full(len(sender), size), piece=sender, phase=phase)


def exchange(ranks: Ints, size: float) -> Stage:
    """Return the stage in which each GPU i sends piece ``i * n + j`` to each other GPU j: an all-to-all of equal parts."""
    sender, receiver = _pairs(len(ranks))
    piece = sender * len(ranks) + receiver
    return Stage(source=ranks[sender], destination=ranks[receiver], bytes=np.full(len(sender), size), piece=piece)


def fan(ranks: Ints, size: float, root: int, *, adds: bool) -> Stage:
    """Return the stage in which the root sends piece 0 to all others, or, adding up, all others send it to the root."""
    others = np.delete(np.arange(len(ranks)), root)
    hub = np.full(len(others), root)
    sender, receiver = (others, hub) if adds else (hub, others)
    piece = np.zeros(len(others), dtype=np.int64)
    return Stage(source=ranks[sender], destination=ranks[receiver], bytes=np.full(len(others), size), piece=piece, adds=adds)


def message(ranks: Ints, size: float, sender: int, receiver: int) -> Stage:
    """Return the stage in which one GPU sends piece 0 to one other."""
    return Stage(source=ranks[[sender]], destination=ranks[[receiver]], bytes=np.array([size]), piece=np.zeros(1, dtype=np.int64))


def _pairs(count: int) -> tuple[Ints, Ints]:
    sender, receiver = (side.ravel() for side in np.meshgrid(np.arange(count), np.arange(count), indexing="ij"))
    return sender[sender != receiver], receiver[sender != receiver]
