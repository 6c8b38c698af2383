"""The fabric as one SimPy component: processes hand it flows, arrays below share the links among them.

SimPy sees who starts and who is done; flows never become processes. At each instant at which something changed, one *settle*
runs after all ordinary events of that instant. It lets the compiled core advance to the next moment that anybody can notice:
a watched count reaching zero, or the next event in SimPy's queue. Nothing is ever computed beyond that moment, so nothing has to
be taken back when a late rank starts to send.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import simpy
from numpy.typing import NDArray
from simpy.events import EventPriority

from moesim.base.errors import LawBroken
from moesim.facts.arrays import Floats, Ints
from moesim.facts.cluster import Cluster
from moesim.models.bounds import link_bytes
from moesim.models.sharing.compiled import FINISHED, run_until

LATE = EventPriority(2)
"""After every ordinary event (and SimPy's own urgent ones) of the same instant."""


class _Flows:
    """Room for the flows on their way, one row each."""

    def __init__(self, rows: int, hops: int) -> None:
        self.route = np.empty((rows, hops), dtype=np.int32)
        self.pair: Ints = np.empty(rows, dtype=np.int64)
        self.asked: Floats = np.empty(rows)
        self.left: Floats = np.empty(rows)
        self.watch = np.empty((rows, 2), dtype=np.int32)

    def grown(self, rows: int) -> _Flows:
        """Return more room with the same flows."""
        more, old = _Flows(rows, self.route.shape[1]), len(self.left)
        for name in ("route", "pair", "asked", "left", "watch"):
            getattr(more, name)[:old] = getattr(self, name)
        return more


class Fabric:
    """Links shared max-min fairly by the flows on them.

    Parameters
    ----------
    env : simpy.Environment
        The clock.
    cluster : Cluster
        Links and routes.
    """

    def __init__(self, env: simpy.Environment, cluster: Cluster) -> None:
        self._env = env
        self._cluster = cluster
        self._capacity = np.ascontiguousarray(cluster.bandwidth)
        self._latency = cluster.route_latency().ravel()
        self._route = _padded_routes(cluster)
        self._live = 0
        self._flows = _Flows(256, self._route.shape[1])
        self._pending: Ints = np.zeros(64, dtype=np.int64)
        self._callbacks: list[Callable[[], None] | None] = []
        self._free: list[int] = []
        self._time = 0.0
        self._latest = 0
        self._dirty = False
        self._woken: Ints = np.empty(64, dtype=np.int64)
        self.busy: Floats = np.zeros(cluster.links)
        self.carried_on_link: Floats = np.zeros(cluster.links)
        self.asked_between: Floats = np.zeros(cluster.gpus * cluster.gpus)
        self.carried_between: Floats = np.zeros(cluster.gpus * cluster.gpus)

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

    def transfer(self, source: Ints, destination: Ints, size: Floats, watch: NDArray[np.int32]) -> None:
        """Start flows now; each moves after the latency of its route.

        Parameters
        ----------
        source, destination : int[F]
            GPUs; never the same.
        size : float[F]
            Bytes, more than 0.
        watch : int32[F, 2]
            The two counters that each flow is counted on.
        """
        pair = source * self._cluster.gpus + destination
        np.add.at(self._pending, watch.ravel(), 1)
        np.add.at(self.asked_between, pair, size)
        latency = self._latency[pair]
        for wait in sorted(set(latency.tolist())):
            flows = latency == wait
            self._after(wait, self._join, pair[flows], np.asarray(size[flows], dtype=np.float64), watch[flows])

    def check(self) -> None:
        """Check laws L2 (what was asked for was carried, by pair and by link) and L3 (no link carried more than it can).

        Raises
        ------
        LawBroken
            Naming the pair or link, and the two numbers.
        """
        # A flow ends with less than FINISHED of it left; a sum of n such terms rounds by n units in the last place, far below 1e-9.
        slack = 1e-9 + FINISHED
        asked, carried = self.asked_between, self.carried_between
        for pair in np.flatnonzero(np.abs(carried - asked) > slack * asked)[:1].tolist():
            source, destination = divmod(pair, self._cluster.gpus)
            raise LawBroken(
                f"law L2 (bytes): GPU {source} asked to send {asked[pair]:.6g} B to GPU {destination}, "
                f"but {carried[pair]:.6g} B were carried"
            )
        # What the links carried is summed from rates and times, apart from what the flows were asked to bring.
        wanted = link_bytes(asked.reshape(self._cluster.gpus, -1), self._cluster)
        through = self.carried_on_link
        for link in np.flatnonzero(np.abs(through - wanted) > slack * wanted)[:1].tolist():
            name = self._cluster.link_names[link]
            raise LawBroken(f"law L2 (bytes): link {name} should have carried {wanted[link]:.6g} B, but carried {through[link]:.6g} B")
        most = self._capacity * self.busy
        for link in np.flatnonzero(through > most * (1 + 1e-9))[:1].tolist():
            raise LawBroken(
                f"law L3 (capacity): link {self._cluster.link_names[link]} carried {through[link]:.6g} B in "
                f"{self.busy[link]:.6g} s, more than its {self._capacity[link]:.6g} B/s allow"
            )

    def _after(self, wait: float, what: Callable[..., None], *arguments: object) -> None:
        event = self._env.timeout(wait) if wait > 0 else self._env.event().succeed()
        event.callbacks.append(lambda _: what(*arguments))

    def _join(self, pair: Ints, size: Floats, watch: NDArray[np.int32]) -> None:
        if not self._live:
            self._time = self._env.now  # an idle fabric has nothing to catch up with
        elif abs(self._env.now - self._time) > 4 * math.ulp(self._env.now):
            raise LawBroken(f"law L6 (causality): the fabric is at {self._time!r} s when a flow joins at {self._env.now!r} s")
        end = self._live + len(pair)
        if end > len(self._flows.left):
            self._flows = self._flows.grown(2 * end)
        place = slice(self._live, end)
        self._flows.route[place] = self._route[pair]
        self._flows.pair[place] = pair
        self._flows.asked[place] = size
        self._flows.left[place] = size
        self._flows.watch[place] = watch
        self._live = end
        self._touch()

    def _touch(self) -> None:
        """Settle after everything else that happens at this instant."""
        if not self._dirty:
            self._dirty = True
            self._settle_after(0.0)

    def _settle_after(self, wait: float) -> None:
        self._latest += 1
        number = self._latest
        event = self._env.event()
        event._ok, event._value = True, None  # noqa: SLF001 - how SimPy itself makes an event of another priority
        event.callbacks.append(lambda _: self._settle(number))
        self._env.schedule(event, LATE, wait)

    def _settle(self, number: int) -> None:
        if number != self._latest:
            return  # a later settle has been planned, for an earlier or the same instant
        self._dirty = False
        if not self._live:
            return
        now, flows = self._env.now, self._flows
        self._time, self._live, woken = run_until(
            self._capacity,
            flows.route,
            flows.pair,
            flows.asked,
            flows.left,
            flows.watch,
            self._live,
            self._pending,
            self.busy,
            self.carried_on_link,
            self.carried_between,
            self._woken,
            now,
            self._env.peek(),
        )
        wait = max(self._time - now, 0.0)
        if woken:
            counters = self._woken[:woken].tolist()
            self._env.timeout(wait).callbacks.append(lambda _: self._deliver(counters))
        else:
            self._settle_after(wait)

    def _deliver(self, counters: list[int]) -> None:
        for counter in counters:
            callback = self._callbacks[counter]
            if callback is not None and self._pending[counter] == 0:
                callback()
        self._touch()


def _padded_routes(cluster: Cluster) -> NDArray[np.int32]:
    """Return int32[G * G, longest route], padded with -1."""
    length = np.diff(cluster.route_start)
    routes = np.full((len(length), max(int(length.max(initial=0)), 1)), -1, dtype=np.int32)
    pair = np.repeat(np.arange(len(length)), length)
    hop = np.arange(len(cluster.route_link)) - np.repeat(cluster.route_start[:-1], length)
    routes[pair, hop] = cluster.route_link
    return routes
