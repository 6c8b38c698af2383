"""Flows that start later, for cores that know only flows that start now."""

from __future__ import annotations

import heapq
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from moesim.base.errors import UsageError
from moesim.facts.arrays import Bools, Floats, Ints

Whole32 = NDArray[np.int32]
Numbers = NDArray[np.signedinteger[Any]]


class Prompt(Protocol):
    """A core whose flows start at once."""

    busy: Floats
    through: Floats

    @property
    def carried(self) -> Floats:
        """Bytes of flows that have ended, by pair."""
        ...

    @property
    def live(self) -> int:
        """Flows on their way."""
        ...

    def reset(self) -> None:
        """Begin a new busy period."""
        ...

    def join(
        self,
        now: float,
        route: Whole32,
        pair: Ints,
        size: Floats,
        weight: Floats | None,
        cap: Floats | None,
        watch: Whole32,
        pending: Ints,
    ) -> Numbers:
        """Let flows start to move."""
        ...

    def leave(self, now: float, ids: Ints, pending: Ints, woken: Ints) -> tuple[Floats, int]:
        """Take flows away before they end."""
        ...

    def on_their_way(self) -> Ints:
        """Return the numbers of the flows that are on their way."""
        ...

    def change_capacity(self, now: float, links: Ints, values: Floats) -> None:
        """Let links carry more or less from now on."""
        ...

    def advance(self, horizon: float, pending: Ints, woken: Ints) -> tuple[float, int]:
        """Let time pass."""
        ...

    def catch_up(self, now: float) -> None:
        """Bring ``busy`` and ``through`` up to now."""
        ...


class _Late(NamedTuple):
    """Flows that will start at one instant; arrays as ``join`` takes them."""

    ids: Ints
    route: Whole32
    pair: Ints
    size: Floats
    weight: Floats | None
    cap: Floats | None
    watch: Whole32

    def those(self, which: Bools | Ints) -> _Late:
        """Return some of them."""
        return _Late(
            self.ids[which],
            self.route[which],
            self.pair[which],
            self.size[which],
            None if self.weight is None else self.weight[which],
            None if self.cap is None else self.cap[which],
            self.watch[which],
        )


WAITS, CANCELLED = -1, -2
"""What stands in place of the number that a core gives to a flow, as long as it has none."""


class Delays:
    """A core that keeps flows back until they start; see :class:`~moesim.models.sharing.core.Core`."""

    def __init__(self, core: Prompt) -> None:
        self._core = core
        self._first_id = self._next_id = 0
        self._late = 0
        self._waiting: list[tuple[float, int, _Late]] = []
        # By flow, from the first id of this busy period on: the number that the core gave it. By such a number: the flow that had it last.
        self._number: NDArray[np.int32] = np.empty(0, dtype=np.int32)
        self._flow_of: Ints = np.empty(0, dtype=np.int64)
        self.busy, self.through = core.busy, core.through

    @property
    def carried(self) -> Floats:
        """float[pairs], bytes of flows that ended (or were cancelled), by pair."""
        return self._core.carried

    @property
    def live(self) -> int:
        """Flows on their way or about to start."""
        return self._core.live + self._late

    def reset(self) -> None:
        """Begin a new busy period: time is 0 again."""
        self._core.reset()
        self._waiting.clear()
        self._late = 0
        self._first_id = self._next_id
        self._number = self._number[:0]

    def join(
        self,
        now: float,
        route: Whole32,
        pair: Ints,
        size: Floats,
        weight: Floats | None,
        cap: Floats | None,
        watch: Whole32,
        pending: Ints,
        delay: Floats | None = None,
    ) -> Ints:
        """Let flows start to move, each after its delay; ids are this object's own."""
        ids = np.arange(self._next_id, self._next_id + len(pair))
        self._next_id += len(pair)
        every = _Late(ids, route, pair, size, weight, cap, watch)
        if delay is None or not delay.any():
            self._let(now, every, pending)
            return ids
        self._put(ids, WAITS)
        self._late += len(ids)
        waits = np.unique(delay).tolist()
        for wait in waits:
            batch = every if len(waits) == 1 else every.those(delay == wait)
            heapq.heappush(self._waiting, (now + wait, int(batch.ids[0]), batch))
        return ids

    def leave(self, now: float, ids: Ints, pending: Ints, woken: Ints) -> tuple[Floats, int]:
        """Take flows away before they end or before they start."""
        left = np.empty(len(ids))
        woke = 0
        number = self._number[ids - self._first_id]
        late = number == WAITS
        for place in np.flatnonzero(late).tolist():
            flow = int(ids[place])
            watch, left[place] = self._cancel(flow)
            for counter in watch.tolist():
                pending[counter] -= 1
                if pending[counter] == 0:
                    woken[woke] = counter
                    woke += 1
        if not late.all():
            more: Ints = np.empty(len(woken), dtype=np.int64)
            left[~late], count = self._core.leave(now, number[~late].astype(np.int64), pending, more)
            woken[woke : woke + count] = more[:count]
            woke += count
        return left, woke

    def on_their_way(self) -> Ints:
        """Return the numbers of the flows that are on their way or about to start."""
        # A number is used again when its flow has ended; the latest flow with it is the one that moves.
        moving = self._flow_of[self._core.on_their_way()]
        return np.sort(np.concatenate([moving, self._first_id + np.flatnonzero(self._number == WAITS)]))

    def change_capacity(self, now: float, links: Ints, values: Floats) -> None:
        """Let links carry more or less from ``now`` on."""
        self._core.change_capacity(now, links, values)

    def advance(self, horizon: float, pending: Ints, woken: Ints) -> tuple[float, int]:
        """Let time pass until a counter reaches zero, or until ``horizon``; flows start when it is their time."""
        while True:
            start = self._waiting[0][0] if self._waiting else np.inf
            now, woke = self._core.advance(min(horizon, start), pending, woken)
            if woke or not self._waiting:
                return now, woke
            if horizon < start:
                return horizon, 0  # a core that has run empty may be at its last end, but others are still to start
            while self._waiting and self._waiting[0][0] == start:
                self._begin(start, heapq.heappop(self._waiting)[2], pending)

    def catch_up(self, now: float) -> None:
        """Bring ``busy`` and ``through`` up to ``now``."""
        self._core.catch_up(now)

    def _begin(self, now: float, late: _Late, pending: Ints) -> None:
        waits = self._number[late.ids - self._first_id] == WAITS
        if waits.any():
            self._late -= int(waits.sum())
            self._let(now, late if waits.all() else late.those(waits), pending)

    def _let(self, now: float, flows: _Late, pending: Ints) -> None:
        """Let flows start now."""
        number = self._core.join(now, *flows[1:], pending)
        self._put(flows.ids, number)
        most = int(number.max(initial=-1)) + 1
        if most > len(self._flow_of):
            self._flow_of = np.concatenate([self._flow_of, np.empty(most - len(self._flow_of), dtype=np.int64)])
        self._flow_of[number] = flows.ids

    def _put(self, ids: Ints, number: Numbers | int) -> None:
        """Note the numbers of flows."""
        known = self._next_id - self._first_id
        if known > len(self._number):
            room = max(known, 2 * len(self._number)) - len(self._number)
            self._number = np.concatenate([self._number, np.full(room, CANCELLED, dtype=np.int32)])
        self._number[ids - self._first_id] = number

    def _cancel(self, flow: int) -> tuple[Whole32, float]:
        """Take a flow away that waits; return its two counters, and its bytes."""
        self._number[flow - self._first_id] = CANCELLED
        self._late -= 1
        for _, _, late in self._waiting:
            place = int(np.searchsorted(late.ids, flow))
            if place < len(late.ids) and late.ids[place] == flow:
                return late.watch[place], float(late.size[place])
        raise UsageError(f"flow {flow} is not among those that wait to start")
