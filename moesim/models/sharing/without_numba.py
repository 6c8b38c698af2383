"""The exact sharing core in plain NumPy, for machines on which nothing can be compiled: the same ends, much later."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from moesim.base.errors import UsageError
from moesim.facts.arrays import Bools, Floats, Ints
from moesim.models.sharing.reference import fair_rates

Whole32 = NDArray[np.int32]
SAME = 1e-12
"""Ends that differ by less than this share of the time to them are one instant."""
NO_LIMIT = 1e300
"""Capacity of a link that limits nobody, in B/s: infinite for all purposes, but sums and products of it are numbers."""


class PlainCore:
    """Flows on links, advanced from one noticed moment to the next.

    Rates are found anew with :func:`~moesim.models.sharing.reference.fair_rates` after each event, and nothing is written down between
    events, so it does not matter how often :meth:`advance` stops in between.

    Parameters
    ----------
    capacity : float[K]
        Of each link, in B/s; may be infinite.
    hops : int
        Links on the longest route.
    pairs : int
        How many pairs of GPUs ``carried`` counts.

    Attributes
    ----------
    live : int
        Flows on their way.
    busy, through : float[K]
        As of the last :meth:`catch_up`: seconds in which each link carried something, and bytes through it, from rates and times.
    carried : float[pairs]
        Bytes of flows that ended (or were cancelled), by pair.
    """

    def __init__(self, capacity: Floats, *, hops: int, pairs: int) -> None:
        links = len(capacity)
        self._capacity = np.minimum(np.asarray(capacity, dtype=np.float64), NO_LIMIT)
        self.live = 0
        self.busy: Floats = np.zeros(links)
        self.through: Floats = np.zeros(links)
        self.carried: Floats = np.zeros(pairs)
        self._then = 0.0  # when the last event was; what follows is as of then
        self._busy, self._through = np.zeros(links), np.zeros(links)
        self._alive: Bools = np.zeros(0, dtype=np.bool_)
        self._route = np.full((0, hops), -1, dtype=np.int32)
        self._watch = np.zeros((0, 2), dtype=np.int32)
        self._pair: Ints = np.zeros(0, dtype=np.int64)
        self._asked, self._left, self._weight, self._cap = np.zeros(0), np.zeros(0), np.zeros(0), np.zeros(0)
        self._known: tuple[Ints, Floats, Floats] | None = None

    def reset(self) -> None:
        """Begin a new busy period: time is 0 again.

        Raises
        ------
        UsageError
            If flows are still on their way.
        """
        if self.live:
            raise UsageError(f"{self.live} flows are still on their way: time can begin anew only when none is")
        self._then = 0.0

    def join(
        self,
        now: float,
        route: Whole32,
        pair: Ints,
        size: Floats,
        weight: Floats | None,
        cap: Floats | None,
        watch: Whole32,
        pending: Ints,  # noqa: ARG002 - part of the contract of a core
    ) -> Ints:
        """Let flows start to move; see :meth:`moesim.models.sharing.groups.GroupsCore.join`."""
        self._bring(now)
        free = np.flatnonzero(~self._alive)
        if len(free) < len(pair):
            self._grow(2 * (self.live + len(pair)))
            free = np.flatnonzero(~self._alive)
        ids = free[: len(pair)]
        self._alive[ids] = True
        self._route[ids], self._pair[ids], self._watch[ids] = route, pair, watch
        self._asked[ids] = self._left[ids] = size
        self._weight[ids] = 1.0 if weight is None else weight
        self._cap[ids] = np.inf if cap is None else cap
        self.live += len(ids)
        return ids

    def leave(self, now: float, ids: Ints, pending: Ints, woken: Ints) -> tuple[Floats, int]:
        """Take flows away before they end.

        Returns
        -------
        float[F]
            The bytes that each had still to carry.
        int
            How many counters reached zero, written to ``woken``.
        """
        self._bring(now)
        left = self._left[ids]
        return left, self._take_off(ids, pending, woken)

    def on_their_way(self) -> Ints:
        """Return the numbers of the flows that are on their way."""
        return np.flatnonzero(self._alive)

    def change_capacity(self, now: float, links: Ints, values: Floats) -> None:
        """Let links carry more or less from ``now`` on, in B/s, more than 0."""
        self._bring(now)
        self._capacity[links] = np.minimum(values, NO_LIMIT)

    def advance(self, horizon: float, pending: Ints, woken: Ints) -> tuple[float, int]:
        """Let time pass until a counter reaches zero, or until ``horizon``.

        Parameters
        ----------
        horizon : float
            In s since the busy period began; may be infinite.
        pending : int[W]
            Flows on their way by counter; updated.
        woken : int[W]
            Written: the counters that reached zero.

        Returns
        -------
        float, int
            The time reached, and how many counters reached zero at it.
        """
        ended = False
        while self.live:
            flows, _, needs = self._rates()
            soonest = float(needs.min())
            if self._then + soonest > horizon:
                return horizon, 0
            done = flows[needs <= soonest * (1 + SAME)]
            self._move(soonest)
            self._then += soonest
            ended = True
            woke = self._take_off(done, pending, woken)
            if woke:
                return self._then, woke
        return (self._then if ended else horizon), 0

    def catch_up(self, now: float) -> None:
        """Bring ``busy`` and ``through`` up to ``now``; nothing else changes."""
        self.busy[:], self.through[:] = self._busy, self._through
        if self.live:
            busy, through, _ = self._carried_in(max(now - self._then, 0.0))
            self.busy += busy
            self.through += through

    def _rates(self) -> tuple[Ints, Floats, Floats]:
        """Return the flows on their way, the rate of each, and how long each needs."""
        if self._known is None:
            flows = np.flatnonzero(self._alive)
            route = self._route[flows]
            real = route >= 0
            start = np.concatenate(([0], np.cumsum(real.sum(axis=1))))
            rates = fair_rates(self._capacity, start, route[real], self._weight[flows], self._cap[flows])
            # A flow without links or a cap needs no time; its rate is made a number so that products with it are numbers.
            known: Floats = np.minimum(rates, NO_LIMIT)
            needs: Floats = self._left[flows] / known
            self._known = flows, known, needs
        return self._known

    def _carried_in(self, step: float) -> tuple[Floats, Floats, Floats]:
        """Return seconds and bytes of each link, and bytes of each flow on its way, in ``step`` seconds at present rates."""
        flows, rates, _ = self._rates()
        moved: Floats = np.minimum(rates * step, self._left[flows])
        route = self._route[flows]
        real = route >= 0
        links = len(self._capacity)
        through: Floats = np.zeros(links)
        np.add.at(through, route[real], np.broadcast_to(moved[:, None], route.shape)[real])
        busy: Floats = np.zeros(links)
        busy[route[real]] = step
        return busy, through, moved

    def _move(self, step: float) -> None:
        """Write down what was carried in ``step`` seconds at present rates."""
        flows, _, _ = self._rates()
        busy, through, moved = self._carried_in(step)
        self._busy += busy
        self._through += through
        self._left[flows] -= moved
        self._known = None

    def _bring(self, now: float) -> None:
        """Bring all flows up to ``now``, because rates are about to change."""
        if self.live:
            self._move(max(now - self._then, 0.0))
        self._then = max(now, self._then) if self.live else now
        self._known = None

    def _take_off(self, flows: Ints, pending: Ints, woken: Ints) -> int:
        """Take flows off their links and counters; return how many counters have reached zero."""
        np.add.at(self.carried, self._pair[flows], self._asked[flows] - self._left[flows])
        self._alive[flows] = False
        self.live -= len(flows)
        self._known = None
        counters = self._watch[flows].ravel()
        np.subtract.at(pending, counters, 1)
        zero = np.unique(counters[pending[counters] == 0])
        woken[: len(zero)] = zero
        if not self.live:
            self.busy[:], self.through[:] = self._busy, self._through
        return len(zero)

    def _grow(self, rows: int) -> None:
        more = rows - len(self._alive)
        self._alive = np.concatenate([self._alive, np.zeros(more, dtype=np.bool_)])
        self._route = np.concatenate([self._route, np.full((more, self._route.shape[1]), -1, dtype=np.int32)])
        self._watch = np.concatenate([self._watch, np.zeros((more, 2), dtype=np.int32)])
        self._pair = np.concatenate([self._pair, np.zeros(more, dtype=np.int64)])
        room = np.zeros(more)
        self._asked, self._left = np.concatenate([self._asked, room]), np.concatenate([self._left, room])
        self._weight, self._cap = np.concatenate([self._weight, room]), np.concatenate([self._cap, room])
