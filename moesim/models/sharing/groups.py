"""The exact sharing core: max-min fair rates between all events, end by end, for flows that come and go."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import numpy as np

from moesim.base.errors import UsageError
from moesim.facts.arrays import Bools, Floats, Ints
from moesim.models.sharing import bottleneck_groups as kernel
from moesim.models.sharing.bottleneck_groups import State, Whole32
from moesim.models.sharing.compiled import is_on_disk
from moesim.models.sharing.group_tables import blank, given, grown
from moesim.models.sharing.never_full import never_full

_NONE: Floats = np.zeros(0)

# A tuple of arrays is handed over with a star, which the types of compiled functions do not allow for.
_advance = cast("Callable[..., tuple[float, int]]", kernel.advance)
_admit = cast("Callable[..., bool]", kernel.admit)
_start = cast("Callable[..., None]", kernel.start)
_bring = cast("Callable[..., None]", kernel.bring)
_queue = cast("Callable[..., None]", kernel.queue)
_stop = cast("Callable[..., int]", kernel.stop)
_list_anew = cast("Callable[..., None]", kernel.list_anew)
_so_far = cast("Callable[..., None]", kernel.so_far)
_so_far_elsewhere = cast("Callable[..., None]", kernel.so_far_elsewhere)


def is_cached() -> bool:
    """Return whether the compiled code of this core lies on disk, and that of steps which are played with it."""
    from moesim.models.sharing import rank_chains

    return is_on_disk(kernel.advance) and is_on_disk(rank_chains.play)


class GroupsCore:
    """Flows on links, advanced from one noticed moment to the next; see :mod:`moesim.models.sharing.bottleneck_groups`.

    Nothing but a start, an end, a cancellation or a change of capacity alters the state: how often :meth:`advance` is asked to stop in
    between changes no bit of the results.

    Parameters
    ----------
    capacity : float[K]
        Of each link, in B/s; may be infinite.
    hops : int
        Links on the longest route.
    pairs : int
        How many pairs of GPUs ``carried`` counts.
    follows : int[N, 2]
        Which link comes right after which on some route, with K after the last and before the first. Links that can never be full because
        of those before or after them are left out of the sums.

    Attributes
    ----------
    live : int
        Flows on their way.
    busy, through : float[K]
        As of the last :meth:`catch_up`: seconds in which each link carried something, and bytes through it, from rates and times.
    carried : float[pairs]
        Bytes of flows that ended (or were cancelled), by pair.
    """

    def __init__(self, capacity: Floats, *, hops: int, pairs: int, follows: Ints | None = None) -> None:
        links = len(capacity)
        self._links, self._hops = links, hops
        self._follows = follows
        self._capacity = np.array(capacity, dtype=np.float64)
        self._weighted = False
        self._top = 0
        self._free: Ints = np.zeros(0, dtype=np.int64)
        self._now = 0.0
        self.live = 0
        self.busy: Floats = np.zeros(links)
        self.through: Floats = np.zeros(links)
        self.carried: Floats = np.zeros(pairs)
        self._state = blank(self._capacity, hops, self.carried)
        self._binding = self._which_bind()

    @property
    def _state(self) -> State:
        return self._tables

    @_state.setter
    def _state(self, tables: State) -> None:
        self._tables = tables
        # What is handed over with nearly every call is gathered once.
        self._to_advance = given(tables, kernel.ADVANCE_TAKES)
        self._to_admit = given(tables, kernel.ADMIT_TAKES)

    @property
    def counts(self) -> dict[str, int]:
        """Return how much work was done: fillings, flows moved between groups, ends."""
        fills, moves, ends = self._state.counts[:3].tolist()
        return {"fills": fills, "moves": moves, "ends": ends}

    def reset(self) -> None:
        """Begin a new busy period: time is 0 again.

        Raises
        ------
        UsageError
            If flows are still on their way.
        """
        if self.live:
            raise UsageError(f"{self.live} flows are still on their way: time can begin anew only when none is")
        s = self._state
        s.link_whole[:, kernel.COMPONENT] = -1
        s.link_whole[:, kernel.CANDIDATE] = 0
        s.link_whole[:, kernel.LAST] = s.link_whole[:, kernel.FIRST]
        s.link_real[:, kernel.SERVICE] = 0.0
        s.link_real[:, kernel.TOTAL] = 0.0
        self._top = 0
        s.counts[[kernel.PARTS, kernel.QUEUED]] = 0
        self._free = self._free[:0]
        self._now = 0.0
        if len(s.capped):
            self._state = s._replace(capped=s.capped[:0])

    def join(
        self,
        now: float,
        route: Whole32,
        pair: Ints,
        size: Floats,
        weight: Floats | None,
        cap: Floats | None,
        watch: Whole32,
        pending: Ints,  # noqa: ARG002 - part of the contract of a core: another one may have to end flows here
        delay: Floats | None = None,
    ) -> Ints:
        """Let flows start to move.

        Parameters
        ----------
        now : float
            In s since the busy period began.
        route : int32[F, hops]
            Links, padded with -1.
        pair : int[F]
            What ``carried`` counts them by.
        size : float[F]
            Bytes, more than 0.
        weight, cap : float[F] or None
            Shares relative to others; the most each can use, in B/s. None for 1, and for no caps.
        watch : int32[F, 2]
            Two counters of ``pending`` that go down by one when the flow ends.
        pending : int[W]
        delay : float[F] or None
            Seconds from ``now`` until each flow starts; None for 0.

        Returns
        -------
        int[F]
            Numbers of the flows, theirs until they end.
        """
        flows = len(pair)
        ids = self._room(flows)
        if weight is not None and not self._weighted and bool((weight != 1.0).any()):
            self._weigh()
        fits = _admit(
            *self._to_admit,
            ids,
            now,
            route,
            self._binding,
            pair,
            size,
            _NONE if weight is None else weight,
            _NONE if cap is None else cap,
            watch,
            _NONE if delay is None else delay,
        )
        if not fits:
            self._relist()
        if cap is not None:
            self._cap(ids[np.isfinite(cap)])
        self.live += flows
        self._now = max(self._now, now)
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
        s = self._state
        moving = ids[s.flow_whole[ids, kernel.ALIVE] != 0]
        for part in sorted({int(part) for part in s.link_whole[s.route[moving, 0], kernel.COMPONENT]}):
            _bring(*given(self._state, kernel.BRING_TAKES), part, now, self._weighted)
        left = np.empty(len(ids))
        woke = _stop(*given(self._state, kernel.STOP_TAKES), ids, now, pending, woken, left, self._weighted)
        self.live -= len(ids)
        return left, woke

    def on_their_way(self) -> Ints:
        """Return the numbers of the flows that are on their way."""
        return np.flatnonzero(self._going(np.arange(self._top)))

    def change_capacity(self, now: float, links: Ints, values: Floats) -> None:
        """Let links carry more or less from ``now`` on, in B/s, more than 0."""
        s = self._state
        for part in sorted({int(part) for part in s.link_whole[links, kernel.COMPONENT] if part >= 0}):
            _bring(*given(self._state, kernel.BRING_TAKES), part, now, self._weighted)
        self._capacity[links] = values
        binding = self._which_bind()
        if self.live and (binding & ~self._binding).any():
            # A link that could never be full can be now: the flows on it must learn of it.
            self._start_over(now, binding)
        elif not self.live:
            self._binding = binding
        s.link_real[: self._links, kernel.CAPACITY] = self._capacity

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
        ends = int(self._state.counts[kernel.ENDS])
        now, woke = _advance(*self._to_advance, horizon, self._now, pending, woken, self._weighted)
        self.live -= int(self._state.counts[kernel.ENDS]) - ends
        self._now = now
        return now, woke

    def catch_up(self, now: float) -> None:
        """Bring ``busy`` and ``through`` up to ``now``; nothing else changes."""
        s = self._state
        self.busy[:] = s.link_real[: self._links, kernel.BUSY]
        self.through[:] = s.link_real[: self._links, kernel.THROUGH]
        for part in range(int(s.counts[kernel.PARTS])):
            _so_far(*given(self._state, kernel.SO_FAR_TAKES), part, now, self.busy, self._weighted)
        if self.live:
            _so_far_elsewhere(*given(self._state, kernel.SO_FAR_ELSEWHERE_TAKES), now, self.busy, self.through, self._weighted)

    def can_be_lent(self) -> bool:
        """Return whether nothing is on its way, and all flows so far had equal shares and no caps."""
        return not self.live and not self._weighted and not len(self._state.capped)

    def lend(self) -> tuple[Any, ...]:
        """Return the arrays that ``bottleneck_groups.ADVANCE_TAKES`` lists, bool[K], the links that may become full, and free numbers."""
        return (*self._to_advance, self._binding, self._free)

    def take_back(self, top: int, live: int, free: int, now: float) -> None:
        """Learn how many numbers of flows are in use, how many flows are on their way, how many numbers are still free, and the time."""
        self._top, self.live, self._now = top, live, now
        self._free = self._free[len(self._free) - free :]

    def held(self) -> tuple[int, int, int]:
        """Return how many numbers of flows are in use, how many flows are on their way, and how many numbers are free again."""
        return self._top, self.live, len(self._free)

    def make_room(self) -> None:
        """Make room in the lists of links."""
        self._relist()

    def _which_bind(self) -> Bools:
        return np.ones(self._links, dtype=np.bool_) if self._follows is None else ~never_full(self._capacity, self._follows)

    def _start_over(self, now: float, binding: Bools) -> None:
        """Take all flows off their links and put them back, with other links counted as those that may become full."""
        s, ids = self._state, self.on_their_way()
        waiting = s.flow_whole[ids, kernel.WAITING] != 0
        starts = np.full(self._top, now)
        queued = int(s.counts[kernel.QUEUED])
        starts[s.start_entry[:queued]] = s.start_key[:queued]
        route, whole, real = s.route[ids].copy(), s.flow_whole[ids].copy(), s.flow_real[ids].copy()
        counters = int(whole[:, [kernel.SOURCE, kernel.DESTINATION]].max(initial=0)) + 1
        carried = self.carried.copy()
        # Counters that cannot reach zero: these flows do not end.
        left, _ = self.leave(now, ids, np.full(counters, 2 * len(ids) + 1), np.empty(0, dtype=np.int64))
        self.carried[:] = carried
        s.counts[kernel.QUEUED] = 0
        self._binding = binding
        watch = np.ascontiguousarray(whole[:, [kernel.SOURCE, kernel.DESTINATION]])
        weight, cap = real[:, kernel.WEIGHT].copy(), real[:, kernel.CAP].copy()
        asked = real[:, kernel.ASKED].copy()
        _admit(*self._to_admit, ids, 0.0, route, binding, whole[:, kernel.PAIR].astype(np.int64), asked, weight, cap, watch, starts[ids])
        s.flow_real[ids, kernel.BOOKED] = real[:, kernel.BOOKED] + np.where(waiting, 0.0, asked - left - real[:, kernel.BOOKED])
        self._relist()
        s = self._state
        # Those that were on their way go on at once; the queue keeps the others.
        moving = ids[~waiting]
        s.counts[kernel.QUEUED] = 0
        s.flow_real[moving, kernel.TAG] = left[~waiting]
        _start(*given(self._state, kernel.START_TAKES), moving[::-1].astype(np.int32), now, self._weighted)
        _queue(*given(self._state, kernel.QUEUE_TAKES), ids[waiting], starts[ids[waiting]])
        self.live = len(ids)

    def _room(self, flows: int) -> Ints:
        """Return free numbers for so many flows.

        Numbers are used again when three in four belong to flows that have ended; that depends on the flows alone, and not on how much
        room earlier busy periods have left behind, so that equal periods are equal to the last bit.
        """
        if self._top + flows > max(4096, 4 * (self.live + flows)) and len(self._free) < flows:
            self._purge()
            taken = self._going(np.arange(self._top))
            # A cancelled flow keeps its number until its place in the queue has come up.
            taken[self._state.start_entry[: self._state.counts[kernel.QUEUED]]] = True
            self._free = np.flatnonzero(~taken)
        again = min(flows, len(self._free))
        ids: Ints = np.arange(self._top, self._top + flows - again)
        self._top += flows - again
        if again:
            ids, self._free = np.concatenate([self._free[:again], ids]), self._free[again:]
        s = self._state
        if self._top > s.route.shape[0]:
            self._state = grown(s, max(256, 2 * self._top))
        return ids

    def _purge(self) -> None:
        """Strike flows that have ended off the lists of their links, so that their numbers can be used again."""
        self._relist()
        capped = self._state.capped
        if len(capped):
            self._state = self._state._replace(capped=capped[self._going(capped)])

    def _relist(self) -> None:
        """Write the lists of the links anew, with room for twice what is on its way or about to start."""
        s = self._state
        whole = s.link_whole[: self._links].T
        room = np.maximum(whole[kernel.ROOM], 2 * (whole[kernel.FLOWS] + whole[kernel.RESERVED]) + 8).astype(np.int64)
        old = s.listed
        self._state = s._replace(listed=np.zeros(int(room.sum()), dtype=np.int32))
        _list_anew(*given(self._state, kernel.LIST_ANEW_TAKES), old, np.cumsum(room) - room)
        whole[kernel.ROOM] = room

    def _going(self, ids: Ints | Whole32) -> Bools:
        """Return which of these flows are on their way or about to start."""
        whole = self._state.flow_whole
        return np.asarray((whole[ids, kernel.ALIVE] | whole[ids, kernel.WAITING]) != 0)

    def _weigh(self) -> None:
        """Keep sums of weights from now on, not only counts."""
        s = self._state
        self._state = s._replace(shared_weight=s.shared.astype(np.float64))
        self._weighted = True

    def _cap(self, ids: Ints) -> None:
        """Keep the flows that have a cap in the order in which a rising level meets their caps."""
        s = self._state
        kept = s.capped[self._going(s.capped)]
        every = np.concatenate([kept, ids])
        level = s.flow_real[every, kernel.CAP] / s.flow_real[every, kernel.WEIGHT]
        self._state = s._replace(capped=every[np.lexsort((every, level))].astype(np.int32))
