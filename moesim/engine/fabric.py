"""The fabric as one SimPy component: processes hand it flows, a sharing core below shares the links among them.

SimPy sees who starts and who is done; flows never become processes. All flows of an instant join the core together, after all
ordinary events of that instant. The core then advances to the next moment that anybody can notice: a watched count reaching zero, or
the next event in SimPy's queue. Nothing is ever computed beyond that moment, so nothing has to be taken back when a late rank starts
to send.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import simpy
from numpy.typing import NDArray
from simpy.events import EventPriority

from moesim.base.errors import LawBroken, UsageError
from moesim.engine.periods import Periods
from moesim.engine.ticket import Ticket
from moesim.engine.verifying import Inputs
from moesim.facts.arrays import Floats, Ints
from moesim.facts.cluster import Cluster
from moesim.facts.scenario import Sharing
from moesim.models.bounds import link_bytes
from moesim.models.sharing.never_full import follows_of

LATE = EventPriority(2)
"""After every ordinary event (and SimPy's own urgent ones) of the same instant."""

SLACK = 1e-9
"""Share of bytes by which sums of rates times seconds may differ from what was asked for."""


class Fabric:
    """Links shared max-min fairly by the flows on them.

    Parameters
    ----------
    env : simpy.Environment
        The clock.
    cluster : Cluster
        Links and routes.
    sharing : Sharing
        How exactly.
    port : float
        B/s that the communication kernels of a GPU can send, and receive, at most; applies to transfers that ask for it.

    """

    def __init__(self, env: simpy.Environment, cluster: Cluster, sharing: Sharing | None = None, *, port: float = math.inf) -> None:
        self._env = env
        self._cluster = cluster
        gpus = cluster.gpus
        limited = math.isfinite(port)
        self._latency = cluster.once("latency by pair", lambda: cluster.route_latency().ravel())
        self._route, self._route_by_port = cluster.once(f"routes by pair, ports {limited}", lambda: _routes(cluster, ports=limited))
        ports = np.full(2 * gpus if limited else 0, port)
        capacity = np.concatenate([cluster.bandwidth, ports])
        self._fastest = cluster.bandwidth.copy()
        follows = cluster.once(
            f"links that follow each other, ports {limited}",
            lambda: follows_of(np.concatenate([self._route, self._route_by_port]) if limited else self._route, len(capacity)),
        )
        hops = self._route.shape[1]
        self._periods = Periods(Sharing() if sharing is None else sharing, capacity, hops=hops, pairs=gpus * gpus, follows=follows)
        self._pending: Ints = np.zeros(64, dtype=np.int64)
        self._woken: Ints = np.empty(64, dtype=np.int64)
        self._callbacks: list[Callable[[], None] | None] = []
        self._free: list[int] = []
        self._new: list[Ticket] = []
        self._latest = 0
        self._planned = math.inf
        self._asked: Floats = np.zeros(gpus * gpus)
        self._asked_lately: list[Inputs] = []
        self._cancelled: Floats = np.zeros(gpus * gpus)

    def watch(self, callback: Callable[[], None]) -> int:
        """Return a counter; ``callback`` runs each time the flows counted on it have all ended."""
        if self._free:
            number = self._free.pop()
            self._callbacks[number] = callback
            return number
        self._callbacks.append(callback)
        if len(self._callbacks) > len(self._pending):
            self._pending = np.concatenate([self._pending, np.zeros_like(self._pending)])
            self._woken = np.empty(len(self._pending), dtype=np.int64)
        return len(self._callbacks) - 1

    def unwatch(self, number: int) -> None:
        """Give a counter back."""
        self._callbacks[number] = None
        self._free.append(number)

    def expect(self, flows: int) -> None:
        """Say how many flows will be on their way at once, so that ``auto`` can choose a mode; ignored while anything moves."""
        if not self._new:
            self._periods.expect(flows)

    def transfer(
        self,
        source: Ints,
        destination: Ints,
        size: Floats,
        watch: NDArray[np.int32],
        *,
        weight: Floats | None = None,
        cap: Floats | None = None,
        delay: Floats | None = None,
        by_port: bool = False,
    ) -> Ticket:
        """Start flows now; each moves after the latency of its route.

        Parameters
        ----------
        source, destination : int[F]
            GPUs; never the same.
        size : float[F]
            Bytes, more than 0.
        watch : int32[F, 2]
            The two counters that each flow is counted on.
        weight : float[F], optional
            Share of each flow relative to others; 1 if left out.
        cap : float[F], optional
            The most each can use, in B/s.
        delay : float[F], optional
            Seconds until each is sent, before the latency of its route.
        by_port : bool
            Whether the limit of the GPUs' communication kernels applies.

        Returns
        -------
        Ticket
            To cancel them.
        """
        pair = source * self._cluster.gpus + destination
        np.add.at(self._pending, watch.ravel(), 1)
        wait = self._latency[pair] if delay is None else self._latency[pair] + delay
        route = (self._route_by_port if by_port else self._route)[pair]
        ticket = Ticket(Inputs(0.0, route, pair, np.asarray(size, dtype=np.float64), weight, cap, watch, wait))
        self._new.append(ticket)
        self._asked_lately.append(ticket.flows)
        if len(self._asked_lately) > 1000:
            self._count_asked()
        self._touch()
        return ticket

    def cancel(self, ticket: Ticket) -> None:
        """Take those flows of a ticket away that have not ended; their counters go down as at an end."""
        self._admit()
        going, left, counters = self._periods.leave(self._env.now, ticket, self._pending, self._woken)
        np.add.at(self._cancelled, ticket.flows.pair[going], left)
        if counters:
            self._env.timeout(0.0).callbacks.append(lambda _: self._deliver(counters))
        self._touch()

    def change_bandwidth(self, link: int, bandwidth: float) -> None:
        """Let a link carry more or less from now on.

        Raises
        ------
        UsageError
            If the bandwidth is not a finite number above 0.
        """
        if not (math.isfinite(bandwidth) and bandwidth > 0):
            name = self._cluster.link_names[link]
            raise UsageError(f"link {name} cannot carry {bandwidth:g} B/s: it must be a finite number above 0 (cancel flows to stop them)")
        self._admit()
        self._fastest[link] = max(self._fastest[link], bandwidth)
        self._periods.change_capacity(self._env.now, link, bandwidth, self._pending)
        self._touch()

    @property
    def busy(self) -> Floats:
        """float[K], seconds in which each link has carried something."""
        return self._periods.so_far(self._env.now, self._pending)[0][: self._cluster.links]

    @property
    def carried_on_link(self) -> Floats:
        """float[K], bytes that have gone over each link, from what its flows had as time passed."""
        return self._periods.so_far(self._env.now, self._pending)[1][: self._cluster.links]

    @property
    def asked_between(self) -> Floats:
        """Bytes of all flows so far, by pair: float[G * G]."""
        self._count_asked()
        return self._asked

    def _count_asked(self) -> None:
        """Add up what was asked for since the last time; together is quicker than one by one."""
        lately, self._asked_lately = self._asked_lately, []
        if lately:
            pair, size = np.concatenate([flows.pair for flows in lately]), np.concatenate([flows.size for flows in lately])
            self._asked += np.bincount(pair, weights=size, minlength=len(self._asked))

    @property
    def carried_between(self) -> Floats:
        """Bytes of flows that ended or were cancelled, by pair: float[G * G]."""
        return self._periods.carried

    def report(self) -> dict[str, Any]:
        """Return how exactly links were shared: mode, quantum, guard, the errors known of them, and those measured."""
        return self._periods.report()

    def check(self) -> None:
        """Check laws L2 (what was asked for was carried, by pair and by link) and L3 (no link carried more than it can).

        Raises
        ------
        LawBroken
            Naming the pair or link, and the two numbers.
        """
        asked, carried = self.asked_between - self._cancelled, self.carried_between
        for pair in np.flatnonzero(np.abs(carried - asked) > SLACK * self.asked_between)[:1].tolist():
            source, destination = divmod(pair, self._cluster.gpus)
            raise LawBroken(
                f"law L2 (bytes): GPU {source} asked to send {asked[pair]:.6g} B to GPU {destination}, "
                f"but {carried[pair]:.6g} B were carried"
            )
        # What the links carried is what the core let each flow have as time passed, apart from what the flows were asked to bring.
        wanted = link_bytes(asked.reshape(self._cluster.gpus, -1), self._cluster)
        through = self.carried_on_link
        for link in np.flatnonzero(np.abs(through - wanted) > SLACK * wanted)[:1].tolist():
            name = self._cluster.link_names[link]
            raise LawBroken(f"law L2 (bytes): link {name} should have carried {wanted[link]:.6g} B, but carried {through[link]:.6g} B")
        most = self._fastest * self.busy
        for link in np.flatnonzero(through > most * (1 + SLACK))[:1].tolist():
            raise LawBroken(
                f"law L3 (capacity): link {self._cluster.link_names[link]} carried {through[link]:.6g} B in "
                f"{self.busy[link]:.6g} s, more than its {self._fastest[link]:.6g} B/s allow"
            )

    @property
    def lendable(self) -> bool:
        """Whether a whole step may be worked out on these links at once: nothing is on its way, and links are shared exactly."""
        return not self._new and self._periods.lendable

    def play_chain(self, arrays: dict[str, np.ndarray], by_port: Ints, asked: Floats) -> Iterator[float]:
        """Let ranks go through a step, and yield the times at which all have left a leg, the last time at its end.

        Parameters
        ----------
        arrays : dict of str to array
            Of :class:`moesim.models.sharing.rank_chains.Ranks` by name, but for its last two; they are written.
        by_port : int[K]
            Which legs go through the ports of communication kernels.
        asked : float[G * G]
            Bytes of all legs by pair of GPUs, as the exchanges ask for them: laws hold the flows to that.

        Notes
        -----
        Nobody else may use the fabric meanwhile.
        """
        yield from self._periods.play_chain(self._env.now, arrays, self._route, self._route_by_port, self._latency, by_port)
        self._asked += asked

    def _touch(self) -> None:
        """Settle after everything else that happens at this instant."""
        if self._planned != self._env.now:
            self._settle_after(0.0)

    def at_end_of_instant(self, callback: Callable[[], None], wait: float = 0.0) -> None:
        """Run a callback after all ordinary events of this instant, or of the one after ``wait`` seconds."""
        event = self._env.event()
        event._ok, event._value = True, None  # noqa: SLF001 - how SimPy itself makes an event of another priority
        event.callbacks.append(lambda _: callback())
        self._env.schedule(event, LATE, wait)

    def _settle_after(self, wait: float) -> None:
        self._latest += 1
        number = self._latest
        self._planned = self._env.now + wait
        self.at_end_of_instant(lambda: self._settle(number), wait)

    def _admit(self) -> None:
        """Hand the flows of this instant over, all together."""
        if self._new:
            new, self._new = self._new, []
            self._periods.admit(self._env.now, new, self._pending)

    def _settle(self, number: int) -> None:
        if number != self._latest:
            return  # a later settle has been planned, for an earlier or the same instant
        self._planned = math.inf
        self._admit()
        if self._periods.idle:
            return
        now, horizon = self._env.now, self._env.peek()
        reached, counters = self._periods.advance(horizon, self._pending, self._woken)
        if counters:
            self._env.timeout(max(reached - now, 0.0)).callbacks.append(lambda _: self._deliver(counters))
        elif horizon < math.inf:
            # Until the event itself, not until the time that was reached: that is rounded, and could be now for ever.
            self._settle_after(horizon - now)

    def _deliver(self, counters: list[int]) -> None:
        for counter in counters:
            callback = self._callbacks[counter]
            if callback is not None and self._pending[counter] == 0:
                callback()
        self._touch()


def _routes(cluster: Cluster, *, ports: bool) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Return the routes between all pairs as int32[G * G, H], padded with -1: plain ones, and ones through the ports of both GPUs."""
    length = np.diff(cluster.route_start)
    extra = 2 if ports else 0
    routes = np.full((len(length), max(int(length.max(initial=0)), 1) + extra), -1, dtype=np.int32)
    pair = np.repeat(np.arange(len(length)), length)
    hop = np.arange(len(cluster.route_link)) - np.repeat(cluster.route_start[:-1], length)
    routes[pair, hop] = cluster.route_link
    if not ports:
        return routes, routes
    through = np.full_like(routes, -1)
    through[pair, hop + 1] = cluster.route_link
    every = np.arange(len(length))
    through[:, 0] = cluster.links + every // cluster.gpus
    through[every, length + 1] = cluster.links + cluster.gpus + every % cluster.gpus
    return routes, through
