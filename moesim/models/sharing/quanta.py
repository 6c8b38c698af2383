"""The approximate sharing core: max-min fair rates for a short quantum at a time, for flows that come and go.

Links that flows connect form a part, and each part has quanta of its own. One filling a quantum says how many *bytes* each flow carries in
it: no flow more than it has left, no link more than its capacity times the length of the quantum, and max-min fair between these bounds
(:mod:`~moesim.models.sharing.quanta_fill`). So what a flow that ends leaves over goes to all others on its links, whoever limits them, and
the bytes of a link never exceed what it can carry. Inside the quantum, flows of the same bottleneck hand the rate of one that ends on to
each other, which says when each ends (:mod:`~moesim.models.sharing.quanta_ends`). If nothing ends within a quantum it lasts until the first
end, and is exact. A start, a cancellation or a change of capacity cuts the quantum of its part short at its moment; nothing else does.

What makes ends wrong is the order of events within a quantum: the last flow of a receiver gets the average of its sender's rate, though it
could use that only once the others had gone. Tried and lost: rates instead of bytes (all links but the flow's own limit go without what is
handed on, some over capacity); holding such last flows back for the next quantum (late by more than the others are early); holding their
pace down to the level of their other links (no gain).

The fluid model is that of Bertsekas and Gallager, *Data Networks*, section 6.5.2; time and memory are those of one filling a quantum.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from moesim.base.errors import UsageError
from moesim.facts.arrays import Floats, Ints
from moesim.models.sharing import quanta_carry as carry
from moesim.models.sharing import quanta_groups as groups
from moesim.models.sharing import quanta_join as joining
from moesim.models.sharing import quanta_parts as parts
from moesim.models.sharing import quanta_state as state
from moesim.models.sharing import quanta_time as time
from moesim.models.sharing.never_full import never_full

Whole32 = NDArray[np.int32]
NO_LIMIT = 1e300
"""Capacity of a link that limits nobody, in B/s: infinite for all purposes, but sums and products of it are numbers."""
GROUPED = 4_500
"""Up to so many links it is known of each group which links it crosses where quanta are guarded; that takes 8 B for each two links."""
WIDE = 8_000_000
"""Otherwise that is known of the largest groups only, and takes room for no more than so many pairs of links."""


class QuantaCore:
    """Flows on links, advanced from one noticed moment to the next.

    Parameters
    ----------
    capacity : float[K]
        Of each link, in B/s; may be infinite.
    hops : int
        Links on the longest route.
    pairs : int
        How many pairs of GPUs ``carried`` counts.
    quantum : float
        Length of a quantum as a share of how long the flows of a part still need at least, plus how long ago the last of them joined.
    guard : float
        Quanta are no longer than ``2 * guard * quantum`` of the time, counted from the first start, at which the next link will be done:
        early ends are then as precise, relative to themselves, as late ones. 0 for no such limit.
    follows : int[N, 2]
        Which link comes right after which on some route, with K after the last and before the first: see
        :func:`moesim.models.sharing.never_full.follows_of`. Links that can never be full are left out of the sums.

    Attributes
    ----------
    live : int
        Flows on their way.
    busy, through : float[K]
        As of the last :meth:`catch_up`: seconds in which each link carried something, and bytes through it, from rates and times.
    """

    def __init__(
        self, capacity: Floats, *, hops: int, pairs: int, quantum: float = 0.01, guard: float = 2.0, follows: Ints | None = None
    ) -> None:
        links = len(capacity)
        self._links, self._hops, self._follows = links, max(hops, 1), follows
        self._quantum, self._guard = quantum, guard
        self._capacity = np.array(capacity, dtype=np.float64)
        self._now = 0.0
        self._top = 0
        self._free: Whole32 = np.empty(0, dtype=np.int32)
        self._used = 0
        self._plan = joining.Plan(
            more=np.zeros(2 * links + 2, dtype=np.int64),
            load=np.zeros(2 * links + 2),
            touched=np.zeros(2 * links + 2, dtype=np.int64),
            absorbed=np.zeros(2 * links + 2, dtype=np.int64),
            merged=np.zeros(1, dtype=np.int64),
            links=np.zeros(1, dtype=np.int64),
            twice=np.zeros(1, dtype=np.int64),
        )
        self.live = 0
        self.busy: Floats = np.zeros(links)
        self.through: Floats = np.zeros(links)
        whole = np.int16 if links < 2**15 - 2 else np.int32
        every = guard > 0 and links <= GROUPED
        rows = links + 1 if every else 1
        self._state = state.State(
            route=np.zeros((0, self._hops + 2), dtype=whole),
            amount=np.zeros((0, 5)),
            number=np.zeros((0, 10), dtype=np.int32),
            weight=np.ones(0),
            cap=np.ones(0),
            tide=np.zeros((links + 1, 4)),
            link=np.zeros((links + 1, 15)),
            place=np.zeros((links + 1, 8), dtype=np.int64),
            span=np.zeros((links + 1, 5)),
            part=np.zeros((links + 1, 7), dtype=np.int64),
            list=np.zeros((2 * links + 2, 3), dtype=np.int64),
            pool=np.zeros(0, dtype=np.int32),
            active=np.zeros(links + 2, dtype=np.int64),
            key=np.zeros(links + 1),
            heap=np.zeros(links + 1, dtype=np.int64),
            carried=np.zeros(pairs),
            crossing=np.zeros((rows, links + 1), dtype=whole),
            near=np.zeros((rows, links + 1), dtype=whole),
            shared=np.zeros((rows, links + 1), dtype=np.int32),
            rows=np.zeros(0, dtype=np.int64) if every else np.array([1, 0]),
        )
        self._state.place[:, state.PART] = -1
        self._state.place[:, state.ROW] = np.arange(links + 1) if every else -1
        self._binding = self._which_bind()
        self._write_capacity()

    @property
    def carried(self) -> Floats:
        """float[pairs], bytes of flows that ended (or were cancelled), by pair."""
        carry.settle(self._state, self._top)
        return self._state.carried

    def reset(self) -> None:
        """Begin a new busy period: time is 0 again.

        Raises
        ------
        UsageError
            If flows are still on their way.
        """
        if self.live:
            raise UsageError(f"{self.live} flows are still on their way: time can begin anew only when none is")
        self._now = 0.0

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
    ) -> Whole32:
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

        Returns
        -------
        int32[F]
            Numbers of the flows, theirs until they end.
        """
        ids = self._numbers(len(pair))
        self._write_optional(ids, weight, cap)
        stage = 0
        while stage < 3:
            stage, count, self._used = joining.admit(
                self._state, stage, now, ids, route, self._binding, pair, size, watch, self._plan, self._used
            )
            if stage < 3:
                self._repack(count, len(ids))
        self.live += len(ids)
        self._now = max(self._now, now)
        if self._plan.twice[0]:
            self._disband()
        elif self._state.rows.size:
            self._make_rows()
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
        self._bring(self._state.route[ids, 0].astype(np.int64), now)
        left = np.empty(len(ids))
        woke = time.leave(self._state, ids.astype(np.int32), pending, woken, left)
        self.live -= len(ids)
        self._now = max(self._now, now)
        return left, woke

    def on_their_way(self) -> Ints:
        """Return the numbers of the flows that are on their way."""
        return np.flatnonzero(self._state.route[: self._top, -1])

    def change_capacity(self, now: float, links: Ints, values: Floats) -> None:
        """Let links carry more or less from ``now`` on, in B/s, more than 0."""
        self._bring(np.asarray(links, dtype=np.int64), now)
        self._capacity[links] = values
        binding = self._which_bind()
        if not self.live:
            self._binding = binding
        elif (binding & ~self._binding).any():
            self._start_over(now, binding)
        self._write_capacity()

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
        now, woke, ended = time.advance(self._state, horizon, self._now, self._quantum, self._guard, pending, woken)
        self.live -= ended
        self._now = now
        if not self.live:
            self.catch_up(now)
        return now, woke

    def catch_up(self, now: float) -> None:
        """Bring ``busy`` and ``through`` up to ``now``; nothing else changes."""
        busy, through = self._state.link[: self._links, state.BUSY].copy(), self._state.link[: self._links, state.THROUGH].copy()
        if self.live:
            # In the middle of a quantum only the straight line to its end is known; if it is cut, a link may turn out to have carried less.
            carry.so_far(self._state, now, busy, through, not self._binding.all())
            np.maximum(busy, self.busy, out=busy)
            np.maximum(through, self.through, out=through)
        self.busy[:], self.through[:] = busy, through

    def _which_bind(self) -> NDArray[np.bool_]:
        return np.ones(self._links, dtype=np.bool_) if self._follows is None else ~never_full(self._capacity, self._follows)

    def _start_over(self, now: float, binding: NDArray[np.bool_]) -> None:
        """Put all flows back on their links, some of which can be full that could not before."""
        ids = self.on_their_way().astype(np.int32)
        self._bring(self._state.route[ids, 0].astype(np.int64), now)
        # A link that was counted as one that may be full stays one while flows are on their way.
        self._binding = binding | self._binding
        parts.start_over(self._state, ids, now, self._binding)
        stage = 0
        while stage < 3:
            stage, count, self._used = joining.connect_anew(self._state, stage, now, ids, self._plan, self._used)
            if stage < 3:
                self._repack(count, len(ids))

    def _write_capacity(self) -> None:
        self._state.tide[:, state.CAPACITY] = np.minimum(np.append(self._capacity, np.inf), NO_LIMIT)

    def _write_optional(self, ids: Whole32, weight: Floats | None, cap: Floats | None) -> None:
        """Write weights and caps; nobody pays for them before the first flow that has one."""
        if weight is not None or cap is not None:
            self._disband()
        s, room = self._state, len(self._state.route)
        if weight is not None and not s.weight.size:
            self._state = s = s._replace(weight=np.ones(room))
        if cap is not None and not s.cap.size:
            self._state = s = s._replace(cap=np.full(room, np.inf))
        if s.weight.size:
            s.weight[ids] = 1.0 if weight is None else weight
        if s.cap.size:
            s.cap[ids] = np.inf if cap is None else cap

    def _disband(self) -> None:
        """From now on fill flow by flow: what moves is not as :mod:`~moesim.models.sharing.quanta_groups` takes it."""
        s = self._state
        if s.crossing.size:
            groups.disband(s, (self.on_their_way() if self.live else np.empty(0)).astype(np.int32))
            self._state = s._replace(crossing=s.crossing[:0, :0].copy(), near=s.near[:0, :0].copy(), shared=s.shared[:0, :0].copy())

    def _make_rows(self) -> None:
        """Let the groups of all links that have many flows know which links they cross."""
        s, have = self._state, len(self._state.crossing)
        many = int(np.count_nonzero(s.place[:, state.FLOWS] >= groups.MANY_FLOWS * len(s.place)))
        wanted = min(many, WIDE // len(s.place))
        if have == 0 or wanted <= have:
            return
        crossing, near, shared = (np.zeros((wanted, table.shape[1]), dtype=table.dtype) for table in (s.crossing, s.near, s.shared))
        crossing[:have], near[:have], shared[:have] = s.crossing, s.near, s.shared
        free = s.rows[1 : 1 + s.rows[0]]
        rows = np.zeros(wanted + 1, dtype=np.int64)
        rows[0] = len(free) + wanted - have
        rows[1 : 1 + rows[0]] = np.concatenate([free, np.arange(have, wanted)])
        self._state = s._replace(crossing=crossing, near=near, shared=shared, rows=rows)

    def _bring(self, links: Ints, now: float) -> None:
        carry.bring_all(self._state, links, now)

    def _repack(self, count: int, flows: int = 0) -> None:
        """Strike flows that have ended off all lists, so that their numbers can be used again; make room on the lists that are touched.

        ``flows`` join: after the lists of links those of parts get them too, and the pool is not to be moved once more for these.
        """
        s, plan = self._state, self._plan
        most = s.list[:, state.LENGTH] + plan.more
        # Lists that are there already get some spare room; a first join, of any size, gets what it needs.
        room = int(most.sum() * 1.25) + 5 * len(most) if s.list[:, state.LENGTH].any() else int(most.sum()) + flows
        pool = np.empty(room, dtype=np.int32)
        self._used = joining.repack(s, plan.more, pool)
        self._state = s._replace(pool=pool)
        plan.more[plan.touched[:count]] = 0
        carry.settle(s, self._top)
        self._free = (np.flatnonzero(s.route[: self._top, -1] == state.ENDED) if self.live else np.empty(0)).astype(np.int32)

    def _numbers(self, flows: int) -> Whole32:
        """Return free numbers for so many flows."""
        if not self.live:
            carry.settle(self._state, self._top)
            self._top, self._free = 0, np.empty(0, dtype=np.int32)
        room = len(self._state.route)
        if len(self._free) < flows and self._top + flows > room and 2 * (self.live + flows) <= room:
            self._repack(0)
        if len(self._free) >= flows:
            ids, self._free = self._free[:flows], self._free[flows:]
            return ids
        if self._top + flows > room:
            self._enlarge(max(256, flows if not self.live else 2 * (self._top + flows)))
        self._top += flows
        return np.arange(self._top - flows, self._top, dtype=np.int32)

    def _enlarge(self, room: int) -> None:
        s, old = self._state, len(self._state.route)
        more = room - old
        # Memory that is asked for zeroed is not touched before it is written to.
        route, amount = (np.zeros((room, column.shape[1]), dtype=column.dtype) for column in (s.route, s.amount))
        route[:old], amount[:old] = s.route, s.amount
        self._state = s._replace(
            route=route,
            amount=amount,
            number=amount.view(np.int32),
            weight=np.concatenate([s.weight, np.ones(more)]) if s.weight.size else s.weight,
            cap=np.concatenate([s.cap, np.full(more, np.inf)]) if s.cap.size else s.cap,
        )
