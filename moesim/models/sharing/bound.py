"""The bound: every link works off its bytes in the order in which they come, as if nothing else held them up."""

from __future__ import annotations

import heapq

import numpy as np
from numpy.typing import NDArray

from moesim.base.errors import UsageError
from moesim.facts.arrays import Floats, Ints

Whole32 = NDArray[np.int32]


class BoundCore:
    """Flows that end when the last of their links has worked off its bytes; see :class:`~moesim.models.sharing.core.Core`.

    For flows that start together the last end is the largest, over links, of bytes / bandwidth: no way of sharing ends sooner. It says
    nothing of who is held up by whom, so ends of single flows are rough. A cap lets a flow last at least bytes / cap; weights play no part.
    """

    def __init__(self, capacity: Floats, *, hops: int, pairs: int) -> None:
        self._capacity = np.array(capacity, dtype=np.float64)
        self._hops = hops
        self._free: Floats = np.zeros(len(capacity))
        self._first: Floats = np.zeros(len(capacity))
        self._queue: list[tuple[float, int]] = []
        self._flows: dict[int, tuple[list[int], int, float, float, list[int]]] = {}
        self._next_id = 0
        self._busy: Floats = np.zeros(len(capacity))
        self._through: Floats = np.zeros(len(capacity))
        self._now = 0.0
        self.busy: Floats = np.zeros(len(capacity))
        self.through: Floats = np.zeros(len(capacity))
        self.carried: Floats = np.zeros(pairs)

    @property
    def live(self) -> int:
        """Flows on their way or about to start."""
        return len(self._flows)

    def reset(self) -> None:
        """Begin a new busy period: time is 0 again."""
        if self._flows:
            raise UsageError(f"{len(self._flows)} flows are still on their way: time can begin anew only when none is")
        self._free[:] = 0.0
        self._queue.clear()
        self._now = 0.0

    def join(
        self,
        now: float,
        route: Whole32,
        pair: Ints,
        size: Floats,
        weight: Floats | None,  # noqa: ARG002 - the bound has no shares
        cap: Floats | None,
        watch: Whole32,
        pending: Ints,  # noqa: ARG002
        delay: Floats | None = None,
    ) -> Ints:
        """Let flows start, each after its delay."""
        ids = np.arange(self._next_id, self._next_id + len(pair))
        self._next_id += len(pair)
        waits = np.zeros(len(pair)) if delay is None else delay
        for wait in np.unique(waits).tolist():
            of = np.flatnonzero(waits == wait)
            real = route[of] >= 0
            links = route[of][real]
            more = np.bincount(links, weights=np.repeat(size[of], real.sum(axis=1)), minlength=len(self._capacity))
            touched = np.flatnonzero(more)
            start = now + wait
            self._free[touched] = np.maximum(self._free[touched], start) + more[touched] / self._capacity[touched]
            ends = np.where(real, self._free[route[of]], -np.inf).max(axis=1)
            if cap is not None:
                ends = np.maximum(ends, start + size[of] / cap[of])
            for flow, end, place in zip(ids[of].tolist(), ends.tolist(), of.tolist(), strict=True):
                heapq.heappush(self._queue, (end, flow))
                row = route[place]
                self._flows[flow] = (row[row >= 0].tolist(), int(pair[place]), float(size[place]), start, watch[place].tolist())
        self._now = max(self._now, now)
        return ids

    def leave(self, now: float, ids: Ints, pending: Ints, woken: Ints) -> tuple[Floats, int]:
        """Take flows away; their bytes stay booked on the links, for the bound keeps no account of who comes after whom."""
        ends = {flow: end for end, flow in self._queue}
        left = np.empty(len(ids))
        woke = 0
        for place, flow in enumerate(ids.tolist()):
            _, _, size, start, _ = self._flows[flow]
            share = (now - start) / (ends[flow] - start) if ends[flow] > start else 1.0
            left[place] = size * (1.0 - min(max(share, 0.0), 1.0))
            woke = self._end(flow, now, left[place], pending, woken, woke)
        return left, woke

    def on_their_way(self) -> Ints:
        """Return the numbers of the flows that are on their way or about to start."""
        return np.array(sorted(self._flows), dtype=np.int64)

    def change_capacity(self, now: float, links: Ints, values: Floats) -> None:
        """Let links carry more or less; what waits on them then takes as much longer or less long."""
        waiting = np.maximum(self._free[links] - now, 0.0) * self._capacity[links]
        self._capacity[links] = values
        self._free[links] = np.where(waiting > 0, now + waiting / values, self._free[links])
        changed = set(links.tolist())
        again = []
        for end, flow in self._queue:
            if flow in self._flows and changed & set(self._flows[flow][0]):
                again.append((max(float(self._free[self._flows[flow][0]].max()), now), flow))
            else:
                again.append((end, flow))
        heapq.heapify(again)
        self._queue = again

    def advance(self, horizon: float, pending: Ints, woken: Ints) -> tuple[float, int]:
        """Let time pass until a counter reaches zero, or until ``horizon``."""
        while self._queue:
            end, flow = self._queue[0]
            if flow not in self._flows:
                heapq.heappop(self._queue)
                continue
            if end > horizon:
                self._now = horizon
                return horizon, 0
            woke = 0
            while self._queue and self._queue[0][0] == end:
                gone = heapq.heappop(self._queue)[1]
                if gone in self._flows:
                    woke = self._end(gone, end, 0.0, pending, woken, woke)
            self._now = end
            if woke:
                return end, woke
        return (horizon if horizon < np.inf else self._now), 0

    def catch_up(self, now: float) -> None:  # noqa: ARG002 - a bound knows ends only
        """Bring ``busy`` and ``through`` up to the ends so far."""
        self.busy[:] = self._busy
        self.through[:] = self._through

    def _end(self, flow: int, now: float, left: float, pending: Ints, woken: Ints, woke: int) -> int:  # noqa: ARG002
        links, pair, size, _, watch = self._flows.pop(flow)
        self.carried[pair] += size - left
        self._through[links] += size - left
        # While a link works off bytes it is full.
        self._busy[links] += (size - left) / self._capacity[links]
        for counter in watch:
            pending[counter] -= 1
            if pending[counter] == 0:
                woken[woke] = counter
                woke += 1
        return woke
