"""A collective: every rank starts when *it* arrives, and its time is split into waiting for peers and transferring."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import simpy

from moesim.engine.fabric import Fabric
from moesim.facts.arrays import Floats, Ints


@dataclass(slots=True)
class Participation:
    """How one rank fared in one collective, in s; ``waited_for`` says how long it waited for each peer."""

    arrival: float
    done: simpy.Event = field(repr=False)
    end: float = 0.0
    waited_for: dict[int, float] = field(default_factory=dict)
    idle_since: float | None = None
    counter: int = -1

    @property
    def waiting(self) -> float:
        """Seconds in which none of its bytes could move, because peers were not there."""
        return sum(self.waited_for.values())


class Collective:
    """One stage of an all-to-all among the ranks of a group.

    A pair of ranks starts to exchange when both have arrived (or, with ``barrier``, when all have). A rank is done when all ranks
    have arrived and everything it sends and receives has moved: nobody can know that it will receive nothing more before the last
    rank has said so. While none of a rank's bytes can move, because those it must exchange with are not there yet, it is *waiting*.

    Parameters
    ----------
    env : simpy.Environment
    fabric : Fabric
    ranks : sequence of int
        The GPUs that take part.
    size : float[G, G]
        Bytes from each GPU to each other.
    barrier : bool
        Nothing moves before the last rank has arrived.

    Attributes
    ----------
    at : dict of int to Participation
        How each rank that has arrived fares.
    moving : float
        Seconds in which at least one byte was on its way, latency included.
    """

    def __init__(self, env: simpy.Environment, fabric: Fabric, ranks: Sequence[int], size: Floats, *, barrier: bool) -> None:
        self._env = env
        self._fabric = fabric
        self._size = size
        self._barrier = barrier
        self._missing = set(ranks)
        self._order = np.empty(len(self._missing), dtype=np.int64)
        self._counter = np.zeros(len(size), dtype=np.int32)
        self._moving = 0
        self._moving_since = 0.0
        self.moving = 0.0
        self.ranks = tuple(ranks)
        self.at: dict[int, Participation] = {}

    @property
    def missing(self) -> tuple[int, ...]:
        """Ranks that have not arrived."""
        return tuple(sorted(self._missing))

    def arrive(self, rank: int) -> simpy.Event:
        """Let a rank in; the event it gets back fires when this rank is done."""
        here = Participation(self._env.now, self._env.event(), idle_since=self._env.now)
        here.counter = self._fabric.watch(lambda: self._quiet(rank))
        self._counter[rank] = here.counter
        earlier = self._order[: len(self.at)].copy()
        self._order[len(self.at)] = rank
        self.at[rank] = here
        self._missing.discard(rank)
        if not self._barrier:
            self._start(
                np.concatenate([np.full(len(earlier), rank), earlier]), np.concatenate([earlier, np.full(len(earlier), rank)]), rank
            )
        elif not self._missing:
            everybody = np.sort(self._order)
            source, destination = (side.ravel() for side in np.meshgrid(everybody, everybody, indexing="ij"))
            self._start(source[source != destination], destination[source != destination], rank)
        if not self._missing:
            for peer, state in self.at.items():
                if state.idle_since is not None:
                    self._finish(peer, state, rank)
        return here.done

    def _start(self, source: Ints, destination: Ints, cause: int) -> None:
        size = self._size[source, destination]
        real = size > 0
        if not real.any():
            return
        source, destination, size = source[real], destination[real], size[real]
        if not self._moving:
            self._moving_since = self._env.now
        for rank in sorted({*source.tolist(), *destination.tolist()}):
            self._moving += self.at[rank].idle_since is not None
            self._charge(self.at[rank], cause if cause != rank else -1)
        self._fabric.transfer(source, destination, size, np.stack([self._counter[source], self._counter[destination]], axis=1))

    def _charge(self, state: Participation, cause: int) -> None:
        """Book the idle time up to now as waiting, for the sake of ``cause``."""
        if state.idle_since is not None and self._env.now > state.idle_since:
            state.waited_for[cause] = state.waited_for.get(cause, 0.0) + self._env.now - state.idle_since
        state.idle_since = None

    def _quiet(self, rank: int) -> None:
        """All flows of a rank have ended for now."""
        state = self.at[rank]
        state.idle_since = self._env.now
        self._moving -= 1
        if not self._moving:
            self.moving += self._env.now - self._moving_since
        if not self._missing:
            self._finish(rank, state, -1)

    def _finish(self, rank: int, state: Participation, cause: int) -> None:
        self._charge(state, cause if cause != rank else -1)
        state.end = self._env.now
        self._fabric.unwatch(state.counter)
        state.done.succeed()
