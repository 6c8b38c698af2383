"""Busy periods of a fabric: from the first flow on idle links to the end of the last one. No clock: the fabric says what time it is."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from moesim.base.errors import LawBroken
from moesim.engine.repeats import FEWEST, Period, Repeats
from moesim.engine.ticket import Replay, Ticket
from moesim.engine.verifying import Inputs, Verifying
from moesim.facts.arrays import Floats, Ints
from moesim.facts.scenario import Sharing
from moesim.models.sharing import core as cores
from moesim.models.sharing.core import Core, Lendable, make_core
from moesim.models.sharing.modes import EXACT, MODES, Mode, choose_mode

Whole32 = NDArray[np.int32]


@dataclass(slots=True)
class _Record:
    """A period that is written down while it happens for the first time."""

    key: bytes
    period: Period
    name_of: Ints
    busy: Floats
    through: Floats


class Periods:
    """The cores of a fabric, one per mode, and what is remembered of the periods that they have played.

    Core time starts at 0 with each period: small numbers are precise, and a period is a function of its flows alone.

    Parameters
    ----------
    sharing : Sharing
        How exactly links are shared.
    capacity : float[K]
        Of each link, in B/s.
    hops : int
        Links on the longest route.
    pairs : int
        How many pairs of GPUs are told apart.
    follows : int[N, 2] or None
        As :func:`moesim.models.sharing.never_full.follows_of` returns it.
    """

    def __init__(self, sharing: Sharing, capacity: Floats, *, hops: int, pairs: int, follows: Ints | None) -> None:
        self._sharing = sharing
        self._capacity = capacity.copy()
        self._hops, self._pairs, self._follows = hops, pairs, follows
        self._cores: dict[str, Core] = {}
        self._mode = choose_mode(sharing, 0)
        self._core = self._core_of(self._mode)
        self._changes = 0
        self._repeats = Repeats() if sharing.repeats else None
        self._record: _Record | None = None
        self._replay: Replay | None = None
        self._overdue: list[int] = []
        self._verifying: Verifying | None = None
        self._counted: dict[str, int] = {}
        self._bound = self._took = 0.0
        self._before: Floats = np.zeros(len(capacity))
        self._extra_busy: Floats = np.zeros(len(capacity))
        self._extra_through: Floats = np.zeros(len(capacity))
        self._extra_carried: Floats = np.zeros(pairs)
        self.began = 0.0
        self.reached = 0.0
        self.number = -1

    @property
    def idle(self) -> bool:
        """Whether nothing is on its way."""
        return not self._core.live and self._replay is None and not self._overdue

    @property
    def carried(self) -> Floats:
        """Bytes of flows that ended or were cancelled, by pair."""
        return np.asarray(np.sum([core.carried for core in self._cores.values()], axis=0) + self._extra_carried)

    def expect(self, flows: int) -> None:
        """Choose the mode for so many flows at once; nothing changes while anything moves."""
        if self.idle:
            self._mode = choose_mode(self._sharing, flows)
            self._core = self._core_of(self._mode)

    def admit(self, now: float, tickets: list[Ticket], pending: Ints) -> None:
        """Hand the flows of one instant to the core.

        Raises
        ------
        LawBroken
            If the core has been let run beyond this instant (law L6).
        """
        fresh = self.idle
        if fresh:
            self._begin(now)
        else:
            if abs(now - self.reached) > 16 * math.ulp(now):
                raise LawBroken(f"law L6 (causality): the fabric is at {self.reached!r} s when flows join at {now!r} s")
            self._take_over(now, pending)
            self._record = None
        flows = tickets[0].flows if len(tickets) == 1 else _together([ticket.flows for ticket in tickets])
        flows.now = now - self.began
        if fresh and self._repeats is not None and len(flows.pair) >= FEWEST and self._look_up(flows, tickets, len(pending)):
            return
        self._join(flows, tickets, pending)

    def advance(self, horizon: float, pending: Ints, woken: Ints) -> tuple[float, list[int]]:
        """Let time pass until a counter reaches zero or until ``horizon``; return the time reached and those counters."""
        if self._overdue:
            overdue, self._overdue = self._overdue, []
            return self.reached, overdue
        if self._replay is not None:
            return self._advance_replay(self._replay, horizon, pending)
        local, woke = self._core.advance(horizon - self.began, pending, woken)
        self.reached = self.began + local
        if not woke:
            return self.reached, []
        if self._verifying is not None and self._verifying.inputs:
            self._verifying.seen.append((local, woken[:woke].tolist()))
        if self._record is not None:
            self._record.period.ends.append((local, self._record.name_of[woken[:woke]]))
        if not self._core.live:
            self._end(local)
        return self.reached, woken[:woke].tolist()

    def leave(self, now: float, ticket: Ticket, pending: Ints, woken: Ints) -> tuple[Ints, Floats, list[int]]:
        """Take those flows of a ticket away that have not ended.

        Returns
        -------
        int[F]
            Which of them these are.
        float[F]
            Their bytes to go.
        list of int
            The counters that reached zero.
        """
        self._take_over(now, pending)
        none = np.zeros(0, dtype=np.int64)
        if ticket.ids is None or ticket.period != self.number or not self._core.live:
            return none, np.zeros(0), []
        going = np.flatnonzero(np.isin(ticket.ids, self._core.on_their_way()))
        if not len(going):
            return none, np.zeros(0), []
        self._spoil()
        left, woke = self._core.leave(now - self.began, ticket.ids[going], pending, woken)
        if not self._core.live:
            self._end(now - self.began)
        # Another flow may have taken the number of one that has gone.
        ticket.ids = np.delete(ticket.ids, going)
        return going, left, woken[:woke].tolist()

    def change_capacity(self, now: float, link: int, value: float, pending: Ints) -> None:
        """Let a link carry more or less from now on."""
        self._take_over(now, pending)
        self._spoil()
        self._changes += 1
        self._capacity[link] = value
        for core in self._cores.values():
            core.change_capacity(now - self.began if core is self._core else 0.0, np.array([link]), np.array([value]))

    def so_far(self, now: float, pending: Ints) -> tuple[Floats, Floats]:
        """Return float[K] seconds in which each link carried something, and bytes through it, up to now."""
        self._take_over(now, pending)
        busy, through = self._extra_busy.copy(), self._extra_through.copy()
        for core in self._cores.values():
            core.catch_up(now - self.began)
            busy += core.busy
            through += core.through
        return busy, through

    @property
    def lendable(self) -> bool:
        """Whether :meth:`play_chain` can be used now: nothing is on its way, and the next period is shared exactly by compiled code."""
        return self.idle and self._mode.name == EXACT and isinstance(self._core, Lendable) and self._core.can_be_lent()

    def play_chain(
        self, now: float, arrays: dict[str, np.ndarray], routes: Whole32, port_routes: Whole32, latency: Floats, by_port: Ints
    ) -> Iterator[float]:
        """Work a step out by compiled code, period by period; see :meth:`moesim.engine.fabric.Fabric.play_chain`."""
        from moesim.models.sharing import rank_chains as chains

        core = self._core
        if not isinstance(core, Lendable):
            return
        gpus = len(arrays["pending"])
        whole, real = np.zeros(chains.WHOLE, dtype=np.int64), np.zeros(chains.REAL)
        real[chains.INSTANT], real[chains.BOUND], real[chains.TOOK] = now, self._bound, self._took
        core.catch_up(0.0)
        through, woken = np.zeros(len(core.through)), np.empty(gpus, dtype=np.int64)
        around = (routes, port_routes, latency, by_port, through, woken, False)
        ranks = tuple(arrays[name] for name in chains.Ranks._fields[:-2])
        play = cast("Callable[..., int]", chains.play)  # the type of a compiled function does not allow for stars
        outcome = chains.LEFT
        while outcome not in {chains.DONE, chains.STUCK}:
            outcome = play(*core.lend(), *around, *ranks, whole, real)
            if outcome == chains.LEFT:
                yield float(real[chains.INSTANT])
                continue
            core.take_back(int(whole[chains.TOP]), int(whole[chains.LIVE]), int(whole[chains.FREE]), float(real[chains.CORE_NOW]))
            if outcome == chains.LISTS:
                core.make_room()
            elif outcome == chains.ROOM:
                self._join_chain(core, arrays, whole, real, (routes, port_routes, latency, by_port))
        self.began, self.reached = float(real[chains.BEGAN]), float(real[chains.INSTANT])
        periods = int(whole[chains.PERIODS])
        self.number += periods
        self._counted[EXACT] = self._counted.get(EXACT, 0) + periods
        self._bound, self._took = float(real[chains.BOUND]), float(real[chains.TOOK])
        yield float(real[chains.INSTANT])

    def _join_chain(
        self, core: Lendable, arrays: dict[str, np.ndarray], whole: Ints, real: Floats, around: tuple[Whole32, Whole32, Floats, Ints]
    ) -> None:
        """Hand the flows of one instant over for which compiled code found no room."""
        from moesim.models.sharing import rank_chains as chains

        routes, port_routes, latency, by_port = around
        number, leg = arrays["batch"][:, : int(whole[chains.BATCH])]
        source, destination = arrays["flow"][: chains.INCOMING, number]
        pair = source.astype(np.int64) * len(arrays["pending"]) + destination
        core.join(
            float(real[chains.INSTANT] - real[chains.BEGAN]),
            np.where(by_port[leg][:, None] != 0, port_routes[pair], routes[pair]),
            pair,
            arrays["size"][number],
            None,
            None,
            np.stack([source, destination], axis=1),
            arrays["pending"],
            latency[pair],
        )
        whole[chains.BATCH] = 0
        whole[chains.TOP], whole[chains.LIVE], whole[chains.FREE] = core.held()
        real[chains.CORE_NOW] = max(float(real[chains.CORE_NOW]), float(real[chains.INSTANT] - real[chains.BEGAN]))

    def report(self) -> dict[str, Any]:
        """Return mode, quantum and guard, the errors that are known of them, and those that were measured."""
        mode = self._mode
        return {
            "mode": mode.name,
            "quantum": mode.quantum,
            "guard": mode.guard,
            "compiled": cores.can_compile(),
            "error_bound": mode.errors(),
            "drain_ratio": self._took / self._bound if self._bound > 0 else None,
            "busy_periods": dict(sorted(self._counted.items())),
            "repeated": self._repeats.found if self._repeats is not None else 0,
            "verified": self._verifying.report() if self._verifying is not None else None,
        }

    # ---- underneath

    def _core_of(self, mode: Mode) -> Core:
        if mode.name not in self._cores:
            self._cores[mode.name] = self._fresh(mode)
        return self._cores[mode.name]

    def _fresh(self, mode: Mode) -> Core:
        return make_core(mode, self._capacity, hops=self._hops, pairs=self._pairs, follows=self._follows)

    def _begin(self, now: float) -> None:
        self._core.reset()
        self.began = self.reached = now
        self.number += 1
        name = self._mode.name
        self._counted[name] = self._counted.get(name, 0) + 1
        self._core.catch_up(0.0)
        self._before = self._core.through.copy()
        if self._sharing.verify and name != EXACT:
            if self._verifying is None:
                self._verifying = Verifying(self._fresh(MODES[EXACT]))
            self._verifying.begin()

    def _end(self, local: float) -> None:
        """Close the books of a period whose last flow has ended."""
        self._core.catch_up(local)
        through = self._core.through - self._before
        self._count(through, local)
        record, self._record = self._record, None
        if record is not None and self._repeats is not None:
            record.period.busy = self._core.busy - record.busy
            record.period.through = through
            self._repeats.keep(record.key, record.period)
        if self._verifying is not None:
            self._verifying.finish()

    def _count(self, through: Floats, local: float) -> None:
        self._bound += float((through / self._capacity).max(initial=0.0))
        self._took += local

    def _spoil(self) -> None:
        """Something happens that is not a function of the flows that began the period."""
        self._record = None
        if self._verifying is not None:
            self._verifying.spoil()

    def _join(self, flows: Inputs, tickets: list[Ticket], pending: Ints) -> None:
        if self._verifying is not None and self._verifying.watching:
            self._verifying.inputs.append(flows)
        ids = self._core.join(flows.now, flows.route, flows.pair, flows.size, flows.weight, flows.cap, flows.watch, pending, flows.delay)
        first = 0
        for ticket in tickets:
            many = len(ticket.flows.pair)
            ticket.ids, ticket.period = ids[first : first + many], self.number
            first += many

    def _look_up(self, flows: Inputs, tickets: list[Ticket], counters: int) -> bool:
        """Replay the period that these flows began before; if there was none, write this one down."""
        if self._repeats is None:
            return False
        known, name_of = _names(flows.watch, counters)
        mode = self._mode
        state = f"{mode.name} {mode.quantum!r} {mode.guard!r} {self._changes}"
        key = Repeats.key(state, (flows.route, flows.pair, flows.size, flows.weight, flows.cap, name_of[flows.watch], flows.delay))
        period = self._repeats.find(key)
        if period is None:
            self._record = _Record(key, Period(), name_of, self._core.busy.copy(), self._core.through.copy())
            return False
        self._replay = Replay(period, tickets, flows, known)
        return True

    def _advance_replay(self, replay: Replay, horizon: float, pending: Ints) -> tuple[float, list[int]]:
        local, names = replay.period.ends[replay.place]
        if self.began + local > horizon:
            self.reached = horizon
            return horizon, []
        self.reached = self.began + local
        counters = replay.counters[names].tolist()
        pending[counters] = 0
        replay.place += 1
        if replay.place == len(replay.period.ends):
            self._replay = None
            self._extra_busy += replay.period.busy
            self._extra_through += replay.period.through
            np.add.at(self._extra_carried, replay.flows.pair, replay.flows.size)
            self._count(replay.period.through, local)
        return self.reached, counters

    def _take_over(self, now: float, pending: Ints) -> None:
        """Let the core take over a period that was being replayed, because what comes next has not happened before."""
        replay, self._replay = self._replay, None
        if replay is None:
            return
        asked = np.bincount(replay.flows.watch.ravel(), minlength=len(pending))
        left = asked.copy()
        woken: Ints = np.empty(len(pending), dtype=np.int64)
        self._core.reset()
        self._join(replay.flows, replay.tickets, left)
        told = [counter for _, names in replay.period.ends[: replay.place] for counter in replay.counters[names].tolist()]
        while True:
            _, woke = self._core.advance(now - self.began, left, woken)
            if not woke:
                break
            self._overdue += [counter for counter in woken[:woke].tolist() if counter not in told]
        asked[told] = 0
        pending += left - asked
        self.reached = now


def _names(watch: Whole32, counters: int) -> tuple[Ints, Ints]:
    """Return the counters in the order in which flows name them, and int[counters], the place of each in that order."""
    counted, first = np.unique(watch.ravel(), return_index=True)
    known: Ints = counted[np.argsort(first)].astype(np.int64)
    name_of: Ints = np.zeros(counters, dtype=np.int64)
    name_of[known] = np.arange(len(known))
    return known, name_of


def _together(parts: list[Inputs]) -> Inputs:
    """Return the flows of one instant as one set."""

    def joined(name: str, missing: float) -> Floats | None:
        values = [getattr(part, name) for part in parts]
        if all(value is None for value in values):
            return None
        filled = [np.full(len(part.pair), missing) if value is None else value for part, value in zip(parts, values, strict=True)]
        return np.concatenate(filled)

    return Inputs(
        now=parts[0].now,
        route=np.concatenate([part.route for part in parts]),
        pair=np.concatenate([part.pair for part in parts]),
        size=np.concatenate([part.size for part in parts]),
        weight=joined("weight", 1.0),
        cap=joined("cap", np.inf),
        watch=np.concatenate([part.watch for part in parts]),
        delay=joined("delay", 0.0),
    )
