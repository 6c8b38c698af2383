"""All-to-all of rows or bytes between ranks, in the two ways that are measured."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch.distributed as dist

from moesim.lab.session import Session

AllToAll = Callable[[Any, Any, Sequence[int], Sequence[int]], None]
"""``exchange(source, target, sends, receives)``: ``sends[0]`` rows of ``source`` go to rank 0, and so on; so with ``target``."""


def all_to_all(session: Session, posting: str) -> AllToAll:
    """Return an all-to-all between the ranks of a session.

    Parameters
    ----------
    session : Session
        The ranks.
    posting : str
        ``receives_first`` posts every receive before any send, in ring order, one group on NCCL. ``library`` calls ``all_to_all_single``.

    Returns
    -------
    callable
        On a GPU it returns when the exchange is in the stream, on a CPU when it is done.

    Notes
    -----
    gloo's ``all_to_all_single`` starts sends and receives pair by pair. The message by which it says that a receive is ready travels on the
    connection that carries data the other way, and may queue behind it, so that a pair moves one direction after the other.
    """
    if session.world == 1:
        return _copy
    if posting == "library":
        return _library
    if session.backend == "nccl":
        return lambda source, target, sends, receives: _grouped(session, source, target, sends, receives)
    return lambda source, target, sends, receives: _receives_first(session, source, target, sends, receives)


def _copy(source: Any, target: Any, sends: Sequence[int], receives: Sequence[int]) -> None:  # noqa: ARG001 - as its brothers
    target.copy_(source)


def _library(source: Any, target: Any, sends: Sequence[int], receives: Sequence[int]) -> None:
    dist.all_to_all_single(target, source, list(receives), list(sends))


def parts(session: Session, tensor: Any, sizes: Sequence[int]) -> list[tuple[int, Any]]:
    """Return ``(peer, its rows)`` of a tensor in ring order from the own rank on; peers with no rows are left out."""
    pieces = tensor.split(list(sizes))
    ring = ((session.rank + step) % session.world for step in range(session.world))
    return [(peer, pieces[peer]) for peer in ring if sizes[peer]]


def post(session: Session, target: Any, receives: Sequence[int]) -> list[tuple[int, Any]]:
    """Post a receive from every peer; return ``(peer, work)``."""
    ring = parts(session, target, receives)
    # Rank r sends to r + 1 first, so r hears from r - 1 first.
    return [(peer, dist.irecv(piece, peer)) for peer, piece in reversed(ring) if peer != session.rank]


def send(session: Session, source: Any, sends: Sequence[int]) -> list[Any]:
    """Begin to send to every peer."""
    return [dist.isend(piece, peer) for peer, piece in parts(session, source, sends) if peer != session.rank]


def keep_own(session: Session, source: Any, target: Any, sends: Sequence[int], receives: Sequence[int]) -> None:
    """Copy what a rank sends to itself."""
    rank = session.rank
    target.split(list(receives))[rank].copy_(source.split(list(sends))[rank])


def _receives_first(session: Session, source: Any, target: Any, sends: Sequence[int], receives: Sequence[int]) -> None:
    expected = post(session, target, receives)
    going = send(session, source, sends)
    keep_own(session, source, target, sends, receives)
    for _, work in expected:
        work.wait()
    for work in going:
        work.wait()


def _grouped(session: Session, source: Any, target: Any, sends: Sequence[int], receives: Sequence[int]) -> None:
    incoming = [dist.P2POp(dist.irecv, piece, peer) for peer, piece in reversed(parts(session, target, receives)) if peer != session.rank]
    outgoing = [dist.P2POp(dist.isend, piece, peer) for peer, piece in parts(session, source, sends) if peer != session.rank]
    keep_own(session, source, target, sends, receives)
    if incoming or outgoing:
        for work in dist.batch_isend_irecv([*incoming, *outgoing]):
            work.wait()
