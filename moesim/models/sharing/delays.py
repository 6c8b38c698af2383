"""Flows that start later, for cores that know only flows that start now."""

from __future__ import annotations

import heapq
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from moesim.facts.arrays import Floats, Ints

Whole32 = NDArray[np.int32]


class Prompt(Protocol):
    """A core whose flows start at once."""

    busy: Floats
    through: Floats
    carried: Floats

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
    ) -> Ints:
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


class Delays:
    """A core that keeps flows back until they start; see :class:`~moesim.models.sharing.core.Core`."""

    def __init__(self, core: Prompt) -> None:
        self._core = core
        self._next_id = 0
        self._waiting: list[tuple[float, int, tuple[object, ...]]] = []
        self._inner: dict[int, int] = {}
        self._late: dict[int, tuple[Whole32, float]] = {}
        self.busy, self.through, self.carried = core.busy, core.through, core.carried

    @property
    def live(self) -> int:
        """Flows on their way or about to start."""
        return self._core.live + len(self._late)

    def reset(self) -> None:
        """Begin a new busy period: time is 0 again."""
        self._core.reset()
        self._waiting.clear()
        self._inner.clear()

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
        if delay is None or not delay.any():
            inner = self._core.join(now, route, pair, size, weight, cap, watch, pending)
            self._inner.update(zip(ids.tolist(), inner.tolist(), strict=True))
            return ids
        for wait in np.unique(delay).tolist():
            of = np.flatnonzero(delay == wait)
            part = (
                ids[of],
                route[of],
                pair[of],
                size[of],
                None if weight is None else weight[of],
                None if cap is None else cap[of],
                watch[of],
            )
            for place, flow in enumerate(part[0].tolist()):
                self._late[flow] = (part[6][place], float(part[3][place]))
            heapq.heappush(self._waiting, (now + wait, int(ids[of[0]]), part))
        return ids

    def leave(self, now: float, ids: Ints, pending: Ints, woken: Ints) -> tuple[Floats, int]:
        """Take flows away before they end or before they start."""
        left = np.empty(len(ids))
        woke = 0
        inner = []
        for place, flow in enumerate(ids.tolist()):
            if flow in self._late:
                watch, left[place] = self._late.pop(flow)
                for counter in watch.tolist():
                    pending[counter] -= 1
                    if pending[counter] == 0:
                        woken[woke] = counter
                        woke += 1
            else:
                inner.append(place)
        if inner:
            rest = np.array([self._inner[flow] for flow in ids[inner].tolist()], dtype=np.int64)
            more: Ints = np.empty(len(woken), dtype=np.int64)
            left[inner], count = self._core.leave(now, rest, pending, more)
            woken[woke : woke + count] = more[:count]
            woke += count
        return left, woke

    def on_their_way(self) -> Ints:
        """Return the numbers of the flows that are on their way or about to start."""
        inner = set(self._core.on_their_way().tolist())
        # A number is used again when its flow has ended; the latest flow with it is the one that moves.
        latest = {number: flow for flow, number in self._inner.items()}
        moving = [flow for number, flow in latest.items() if number in inner]
        return np.array(sorted([*moving, *self._late]), dtype=np.int64)

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

    def _begin(self, now: float, part: tuple[object, ...], pending: Ints) -> None:
        ids, route, pair, size, weight, cap, watch = part
        kept = [place for place, flow in enumerate(ids.tolist()) if flow in self._late]  # type: ignore[attr-defined]
        if not kept:
            return
        arrays = [None if values is None else values[kept] for values in (route, pair, size, weight, cap, watch)]  # type: ignore[index]
        inner = self._core.join(now, *arrays, pending)  # type: ignore[arg-type,call-arg]
        for flow, number in zip(ids[kept].tolist(), inner.tolist(), strict=True):  # type: ignore[index]
            del self._late[flow]
            self._inner[flow] = number
