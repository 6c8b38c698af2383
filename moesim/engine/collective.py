"""A collective: every rank starts when *it* arrives, and its time is split into waiting for peers and transferring."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import simpy

from moesim.engine.fabric import Fabric
from moesim.engine.posting import AT_ONCE, Posting, Rules
from moesim.facts.arrays import Bools, Floats, Ints


@dataclass(slots=True)
class Participation:
    """How one rank fared in one collective, in s; ``waited_for`` says how long it waited for each peer."""

    arrival: float
    done: simpy.Event = field(repr=False)
    end: float = 0.0
    waited_for: dict[int, float] = field(default_factory=dict)
    idle_since: float = 0.0
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
        The GPUs that take part, in ascending order.
    size : float[R, R]
        Bytes from each of them to each other.
    barrier : bool
        Nothing moves before the last rank has arrived.
    rules : Rules
        In which order and how fast a rank posts its messages, and whether the limit of its communication kernels applies.

    Attributes
    ----------
    at : dict of int to Participation
        How each rank that has arrived fares.
    moving : float
        Seconds in which at least one byte was on its way, latency included.
    """

    def __init__(
        self, env: simpy.Environment, fabric: Fabric, ranks: Sequence[int], size: Floats, *, barrier: bool, rules: Rules = AT_ONCE
    ) -> None:
        self._env = env
        self._barrier = barrier
        self._missing = set(ranks)
        self._order: list[int] = []
        # Inside, ranks are counted from the first, so that a group costs as much in a large cluster as in a small one.
        gpu = np.asarray(ranks, dtype=np.int64)
        self._lowest = int(gpu[0])
        span = int(gpu[-1]) + 1 - self._lowest
        self._idle: Bools = np.zeros(span, dtype=np.bool_)
        self._arrived: Bools = np.zeros(span, dtype=np.bool_)
        sender, receiver = np.nonzero((size > 0) & ~np.eye(len(gpu), dtype=np.bool_))
        self._bytes = size[sender, receiver]
        self._source, self._destination = gpu[sender], gpu[receiver]
        # Flows by rank: those of rank r are flow[first[r] : first[r + 1]], and peer says who is at the other end of each.
        ends = np.concatenate([self._source, self._destination]) - self._lowest
        order = np.argsort(ends, kind="stable")
        self._first = np.searchsorted(ends[order], np.arange(span + 1))
        self._flow = order % max(len(self._source), 1)
        self._peer = np.concatenate([self._destination, self._source])[order] - self._lowest
        self._posting = Posting(env, fabric, gpu, rules, self._quiet)
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
        now = self._env.now
        here = Participation(now, self._env.event(), idle_since=now)
        place = rank - self._lowest
        self._idle[place] = self._arrived[place] = True
        self._posting.enter(rank)
        self._order.append(rank)
        self.at[rank] = here
        self._missing.discard(rank)
        if not self._barrier:
            mine = slice(self._first[place], self._first[place + 1])
            self._start(self._flow[mine][self._arrived[self._peer[mine]]], rank)
        elif not self._missing:
            self._start(np.arange(len(self._source)), rank)
        if not self._missing:
            for peer in self._order:
                if self._idle[peer - self._lowest]:
                    self._finish(peer, self.at[peer], rank)
        return here.done

    def _start(self, flows: Ints, cause: int) -> None:
        if not len(flows):
            return
        source, destination = self._source[flows], self._destination[flows]
        if not self._moving:
            self._moving_since = self._env.now
        ends = np.concatenate([source, destination])
        for rank in sorted(set(ends[self._idle[ends - self._lowest]].tolist())):
            self._moving += 1
            self._idle[rank - self._lowest] = False
            self._charge(self.at[rank], cause if cause != rank else -1)
        self._posting.send(source, destination, self._bytes[flows])

    def _charge(self, state: Participation, cause: int) -> None:
        """Book the idle time up to now as waiting, for the sake of ``cause``."""
        if self._env.now > state.idle_since:
            state.waited_for[cause] = state.waited_for.get(cause, 0.0) + self._env.now - state.idle_since

    def _quiet(self, rank: int) -> None:
        """All flows of a rank have ended for now."""
        state = self.at[rank]
        state.idle_since = self._env.now
        self._idle[rank - self._lowest] = True
        self._moving -= 1
        if not self._moving:
            self.moving += self._env.now - self._moving_since
        if not self._missing:
            self._finish(rank, state, -1)

    def _finish(self, rank: int, state: Participation, cause: int) -> None:
        self._charge(state, cause if cause != rank else -1)
        self._idle[rank - self._lowest] = False
        state.end = self._env.now
        self._posting.leave(rank)
        state.done.succeed()
