"""All-to-alls of sockets: receives posted beforehand, the alternating posts of a library, senders that leave bytes in buffers.

Gloo's ``alltoall`` lets rank r, in step k = 1 ... n - 1, send to r + k and then receive from r - k (gloo/alltoall.cc). Data moves once
the receiver has said that it is ready, and that word travels on the connection of the pair, behind the data that already waits there. So
of two ranks the one that enters later, and that comes to its send before its receive, holds up what the other has for it: the two
directions of that pair run one after the other. Ranks that enter in the same instant hold up nobody: each has posted its receives before
the word of the other is read. Ranks that post every receive before any send do not meet this at all
(:class:`moesim.engine.collective.Collective`).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import simpy

from moesim.engine.fabric import Fabric
from moesim.facts.arrays import Floats


class PostedCall:
    """An all-to-all whose receives are all posted before it begins: a rank's messages move when it comes, whoever else is there.

    Parameters
    ----------
    env : simpy.Environment
    fabric : Fabric
    size : float[n, n]
        Bytes from each rank to each other.
    """

    def __init__(self, env: simpy.Environment, fabric: Fabric, size: Floats) -> None:
        self._env = env
        self._fabric = fabric
        self._size = np.array(size, dtype=np.float64)
        np.fill_diagonal(self._size, 0.0)
        self._here: list[int] = []
        self._left = np.count_nonzero(self._size, axis=0) + np.count_nonzero(self._size, axis=1)
        self._done = [env.event() for _ in range(len(size))]

    def arrive(self, rank: int) -> simpy.Event:
        """Let a rank in; the event fires when all that it sends and receives has moved."""
        self._here.append(rank)
        for peer in range(len(self._size)):
            self._send(rank, peer)
        self._leave(rank)
        return self._done[rank]

    def _send(self, source: int, destination: int, then: Callable[[], None] | None = None) -> None:
        size = self._size[source, destination]
        if size <= 0:
            if then is not None:
                then()
            return

        def ended() -> None:
            self._left[[source, destination]] -= 1
            if then is not None:
                then()
            self._leave(source)
            self._leave(destination)

        self._move(source, destination, size, ended)

    def _move(self, source: int, destination: int, size: float, then: Callable[[], None]) -> None:
        def ended() -> None:
            self._fabric.unwatch(counter)
            then()

        counter = self._fabric.watch(ended)
        self._fabric.transfer(np.array([source]), np.array([destination]), np.array([size]), np.array([[counter, counter]], dtype=np.int32))

    def _leave(self, rank: int) -> None:
        if rank in self._here and not self._left[rank] and not self._done[rank].triggered:
            self._done[rank].succeed()


class LibraryCall(PostedCall):
    """An all-to-all whose sends and receives are posted alternately; a rank leaves it when all ranks are there as well.

    Parameters
    ----------
    env, fabric, size
        As for :class:`PostedCall`.
    """

    def __init__(self, env: simpy.Environment, fabric: Fabric, size: Floats) -> None:
        super().__init__(env, fabric, size)
        self._entered: dict[int, float] = {}

    def arrive(self, rank: int) -> simpy.Event:
        """Let a rank in; the event fires when all ranks are there and all that it sends and receives has moved."""
        now = self._entered[rank] = self._env.now
        for earlier in self._here:
            first_step, half = (earlier - rank) % len(self._size), len(self._size) / 2
            # Its send to the earlier one is posted before its receive from it, and finds the word of the earlier one.
            if first_step <= half and self._entered[earlier] < now:
                self._send(rank, earlier, partial(self._send, earlier, rank))
            else:
                self._send(rank, earlier)
                self._send(earlier, rank)
        self._here.append(rank)
        if len(self._here) == len(self._size):
            for peer in range(len(self._size)):
                self._leave(peer)
        return self._done[rank]

    def _leave(self, rank: int) -> None:
        if len(self._here) == len(self._size):
            super()._leave(rank)


class BufferedCall(PostedCall):
    """An all-to-all whose pairs start when both ranks are there, and whose senders do not wait for the last bytes.

    Who sends through a socket has done so when what is left lies in the socket's buffer: a rank that mostly sends goes on while its last
    bytes are still under way.

    Parameters
    ----------
    env, fabric, size
        As for :class:`PostedCall`.
    buffer : float
        Bytes of each message that its sender does not wait for.
    """

    def __init__(self, env: simpy.Environment, fabric: Fabric, size: Floats, buffer: float) -> None:
        super().__init__(env, fabric, size)
        self._buffer = buffer

    def arrive(self, rank: int) -> simpy.Event:
        """Let a rank in; the event fires when all that it receives is there, and all that it sends has left but for the buffers."""
        earlier = list(self._here)
        self._here.append(rank)
        for peer in earlier:
            for source, destination in ((rank, peer), (peer, rank)):
                self._message(source, destination)
        self._leave(rank)
        return self._done[rank]

    def _message(self, source: int, destination: int) -> None:
        size = float(self._size[source, destination])
        if size <= 0:
            return

        def received() -> None:
            self._left[destination] -= 1
            self._leave(destination)

        def handed_over() -> None:
            self._left[source] -= 1
            self._move(source, destination, min(size, self._buffer), received)
            self._leave(source)

        if self._buffer <= 0:
            self._send(source, destination)
        elif size > self._buffer:
            self._move(source, destination, size - self._buffer, handed_over)
        else:
            handed_over()
