"""Ranks that compute and exchange by turns, on links shared exactly: the events of a whole step, compiled.

Every rank goes through the same tasks, one after another: kernels, whose seconds are known, and exchanges, each of one or more *legs*
(stages of an all-to-all), in which a pair of ranks starts when both are there and a rank is done when all are there and its own bytes
have moved. Where nothing else happens on the machine, what comes next follows from these numbers alone. This file plays it, event by event
and in the order in which :class:`moesim.engine.lanes.StepRun` and :class:`moesim.engine.collective.Collective` would, which say why each
thing is as it is; floats are added in the same order too, so that both give the same results to the last bit.

No clock stands here: times are handed in and out, and whoever owns the clock is told each time that all ranks have left a leg.
"""
# ruff: noqa: PLR0917, PLR0912, PLR0915, C901 - compiled functions take arrays by position, and a call inside a loop copies them all
# Signatures of compiled functions name some forty arrays; the formatter would give each a line of its own.
# fmt: off

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numba import njit

from moesim.facts.arrays import Bools, Floats, Ints
from moesim.models.sharing import bottleneck_groups as kernel
from moesim.models.sharing.bottleneck_groups import (
    CANDIDATE,
    CAPACITY,
    COMPONENT,
    ENDS,
    FIRST,
    LAST,
    PARTS,
    QUEUED,
    SERVICE,
    THROUGH,
    TOTAL,
    Whole32,
    admit,
    advance,
)

COLLECTIVE, LAST_OF, LEGS = range(3)
"""Columns of ``tasks``: whether a task is an exchange; the last kernel of a row of kernels, or the first leg; how many legs."""
POSITION, LEG, KIND, SEQUENCE, CAUSES, SPAN_CAUSES, IDLE = range(7)
"""Rows of ``rank_whole``: the task a rank is at, its leg, what it does next and the place of that in line, lengths of its lists."""
WHEN, IDLE_SINCE, REACHED, SPAN_START = range(4)
"""Rows of ``rank_real``: when what it does next happens; since when it is idle; when its last kernel ended; when its exchange began."""
NOTHING, KERNELS_END, LAUNCHED, RESUME = range(4)
ARRIVED, ORDER = range(2)
"""Rows of ``slot``, for odd and for even legs: who has arrived, and in which order."""
MISSING, MOVING = range(2)
"""Rows of ``group_whole``, for odd and even legs."""
TOP, LIVE, PHASE, PLACE, RECORDED, BATCH, PERIODS, FREE, PAUSE, LEGS_BEGUN = range(10)
BEGAN, INSTANT, CORE_NOW, BOUND, TOOK = range(5)
WHOLE, REAL = 10, 5
"""Lengths of ``whole`` and ``real``: numbers of flows in use, flows on their way, where to go on, things put down and recorded so far,
flows that start now, busy periods, numbers that are free again, whether to tell the clock, legs begun; the time when the busy period
began, now, the time of the core within the period; the least seconds of all periods so far, and their seconds."""
FRESH, EVENTS, ADMITTED = range(3)
DONE, LEFT, ROOM, LISTS, STUCK = range(5)
"""What :func:`play` returns: all is done; all ranks have left a leg; the core has no room for the flows of this instant; the lists of links
have none; nothing is left to happen, but somebody waits."""


class Ranks(NamedTuple):
    """All that is known of ranks; T tasks, K legs, W ranks of a group, G of all groups.

    ``tasks`` int[T, 3], ``launch`` float[T] (s before an exchange offers its first byte), ``seconds`` float[T, G] of kernels, ``size``
    float[K, G, W] bytes from each rank to those of its group, ``barrier`` int[K]. ``slot`` is int[2, 2, G], ``group_whole`` int[2, 2, G /
    W]. ``cause`` and ``cause_s`` [G, W + 1] list for whom a rank has waited in its leg, ``span_cause`` and ``span_s`` in its exchange.
    Written for the record: ``leg_real`` float[3, K, G] (arrival, end, waiting), ``leg_moving`` float[K, G / W] (s in which any byte was on
    its way), ``leg_began`` int[K, G / W] (the place of the leg among all that began), ``leg_left`` int[K] (ranks that have left it),
    ``task_real`` float[3, T, G] (start, end, waiting), ``task_whole`` int[2, T, G] (whom it waited for longest, and the place of the task
    among all that ended). ``pending`` int[G] counts flows on their way; ``batch_pair`` and ``batch_leg`` hold those of this instant.
    ``next_up`` int[2 P], with P a power of 2 and at least G, is a tree of the ranks by what they do next: rank r stands at P + r, -1 if it
    does nothing, and at n the earlier of those at 2 n and 2 n + 1.
    """

    tasks: Ints
    launch: Floats
    seconds: Floats
    size: Floats
    barrier: Ints
    rank_whole: Ints
    rank_real: Floats
    slot: Ints
    group_whole: Ints
    moving_since: Floats
    cause: Ints
    cause_s: Floats
    span_cause: Ints
    span_s: Floats
    leg_real: Floats
    leg_moving: Floats
    leg_began: Ints
    leg_left: Ints
    task_real: Floats
    task_whole: Ints
    pending: Ints
    batch_pair: Ints
    batch_leg: Ints
    next_up: Ints
    whole: Ints
    real: Floats


@njit(cache=True, error_model="numpy")
def _enter(s: Ranks, rank: int, kind: int) -> None:
    """Say what a rank does next, and find out whether it is the first to do something."""
    s.rank_whole[KIND, rank] = kind
    node = len(s.next_up) // 2 + rank
    s.next_up[node] = rank if kind != NOTHING else -1
    node //= 2
    while node > 0:
        one, other = s.next_up[2 * node], s.next_up[2 * node + 1]
        if one < 0 or (
            other >= 0
            and (
                s.rank_real[WHEN, other] < s.rank_real[WHEN, one]
                or (s.rank_real[WHEN, other] == s.rank_real[WHEN, one] and s.rank_whole[SEQUENCE, other] < s.rank_whole[SEQUENCE, one])
            )
        ):
            one = other
        s.next_up[node] = one
        node //= 2


@njit(cache=True, error_model="numpy")
def _schedule(s: Ranks, rank: int, kind: int, when: float) -> None:
    """Put down what a rank does next; of things at the same time, what was put down first happens first."""
    s.rank_whole[SEQUENCE, rank] = s.whole[PLACE]
    s.rank_real[WHEN, rank] = when
    s.whole[PLACE] += 1
    _enter(s, rank, kind)


@njit(cache=True, error_model="numpy")
def _earliest(s: Ranks) -> int:
    """Return the rank that does something next, -1 if none does."""
    return int(s.next_up[1])


@njit(cache=True, error_model="numpy")
def _add(cause: Ints, seconds: Floats, rank: int, many: int, peer: int, amount: float) -> int:
    """Add to what a rank has waited for a peer; peers stand in the order in which they first made it wait. Return how many there are."""
    for place in range(many):
        if cause[rank, place] == peer:
            seconds[rank, place] += amount
            return many
    cause[rank, many], seconds[rank, many] = peer, amount
    return many + 1


@njit(cache=True, error_model="numpy")
def _charge(s: Ranks, rank: int, peer: int, now: float) -> None:
    """Book the idle time of a rank up to now as waiting, for the sake of a peer; -1 if of nobody else."""
    since = s.rank_real[IDLE_SINCE, rank]
    if now > since:
        # In the order of ``waited_for.get(cause, 0.0) + now - idle_since``.
        many = s.rank_whole[CAUSES, rank]
        for place in range(many):
            if s.cause[rank, place] == peer:
                s.cause_s[rank, place] = s.cause_s[rank, place] + now - since
                return
        s.cause[rank, many], s.cause_s[rank, many] = peer, 0.0 + now - since
        s.rank_whole[CAUSES, rank] = many + 1


@njit(cache=True, error_model="numpy")
def _finish(s: Ranks, rank: int, peer: int, now: float) -> None:
    """Let a rank leave its leg; it goes on after what is in line before it."""
    _charge(s, rank, peer if peer != rank else -1, now)
    leg = s.rank_whole[LEG, rank]
    s.rank_whole[IDLE, rank] = 0
    s.leg_real[1, leg, rank] = now
    s.leg_left[leg] += 1
    if s.leg_left[leg] == s.rank_whole.shape[1]:
        s.whole[PAUSE] = 1
    _schedule(s, rank, RESUME, now)


@njit(cache=True, error_model="numpy")
def _moves(s: Ranks, leg: int, source: int, destination: int, rank: int, now: float) -> None:
    """Let the bytes of a pair start; ``rank`` made it possible."""
    odd = leg & 1
    group = source // (s.rank_whole.shape[1] // s.group_whole.shape[2])
    for end in (source, destination):
        if s.rank_whole[IDLE, end] != 0:
            if s.group_whole[odd, MOVING, group] == 0:
                s.moving_since[odd, group] = now
            s.group_whole[odd, MOVING, group] += 1
            s.rank_whole[IDLE, end] = 0
            _charge(s, end, rank if rank != end else -1, now)
        s.pending[end] += 1
    place = s.whole[BATCH]
    s.batch_pair[place], s.batch_leg[place] = source * s.rank_whole.shape[1] + destination, leg
    s.whole[BATCH] += 1


@njit(cache=True, error_model="numpy")
def _arrive(s: Ranks, rank: int, leg: int, now: float) -> None:
    """Let a rank into a leg."""
    ranks = s.rank_whole.shape[1] // s.group_whole.shape[2]
    group, odd = rank // ranks, leg & 1
    first = group * ranks
    if s.group_whole[odd, MISSING, group] == 0:
        # Its first rank is here, so all ranks have left the leg before the last, which used this place.
        s.group_whole[odd, MISSING, group] = ranks
        s.group_whole[odd, MOVING, group] = 0
        s.slot[odd, ARRIVED, first : first + ranks] = 0
        s.leg_began[leg, group] = s.whole[LEGS_BEGUN]
        s.whole[LEGS_BEGUN] += 1
    s.rank_whole[LEG, rank] = leg
    s.rank_whole[CAUSES, rank] = 0
    s.rank_whole[IDLE, rank] = 1
    s.rank_real[IDLE_SINCE, rank] = now
    s.leg_real[0, leg, rank] = now
    s.slot[odd, ARRIVED, rank] = 1
    s.slot[odd, ORDER, first + ranks - s.group_whole[odd, MISSING, group]] = rank
    s.group_whole[odd, MISSING, group] -= 1
    all_here = s.group_whole[odd, MISSING, group] == 0
    if s.barrier[leg] == 0:
        for peer in range(first, first + ranks):
            if peer != rank and s.slot[odd, ARRIVED, peer] != 0 and s.size[leg, rank, peer - first] > 0:
                _moves(s, leg, rank, peer, rank, now)
        for peer in range(first, first + ranks):
            if peer != rank and s.slot[odd, ARRIVED, peer] != 0 and s.size[leg, peer, rank - first] > 0:
                _moves(s, leg, peer, rank, rank, now)
    elif all_here:
        for source in range(first, first + ranks):
            for destination in range(first, first + ranks):
                if source != destination and s.size[leg, source, destination - first] > 0:
                    _moves(s, leg, source, destination, rank, now)
    if all_here:
        for place in range(first, first + ranks):
            peer = s.slot[odd, ORDER, place]
            # One that came to this leg and has no bytes to move, or none that still do, has waited for the others only.
            if s.rank_whole[IDLE, peer] != 0:
                _finish(s, peer, rank, now)


@njit(cache=True, error_model="numpy")
def _quiet(s: Ranks, rank: int, now: float) -> None:
    """All flows of a rank have ended for now."""
    leg = s.rank_whole[LEG, rank]
    odd = leg & 1
    group = rank // (s.rank_whole.shape[1] // s.group_whole.shape[2])
    s.rank_real[IDLE_SINCE, rank] = now
    s.rank_whole[IDLE, rank] = 1
    s.group_whole[odd, MOVING, group] -= 1
    if s.group_whole[odd, MOVING, group] == 0:
        s.leg_moving[leg, group] += now - s.moving_since[odd, group]
    if s.group_whole[odd, MISSING, group] == 0:
        _finish(s, rank, -1, now)


@njit(cache=True, error_model="numpy")
def _record(s: Ranks, task: int, rank: int) -> None:
    s.task_whole[1, task, rank] = s.whole[RECORDED]
    s.whole[RECORDED] += 1


@njit(cache=True, error_model="numpy")
def _go_on(s: Ranks, rank: int, now: float) -> None:
    """Let a rank begin the task that it has come to."""
    task = s.rank_whole[POSITION, rank]
    if task == len(s.tasks):
        _enter(s, rank, NOTHING)
        return
    if s.tasks[task, COLLECTIVE] != 0:
        reached = s.rank_real[REACHED, rank]
        s.rank_real[SPAN_START, rank] = now if reached < 0 else reached
        s.rank_whole[SPAN_CAUSES, rank] = 0
        if s.launch[task] > 0 and reached < 0:
            _schedule(s, rank, LAUNCHED, now + s.launch[task])
        else:
            _enter(s, rank, NOTHING)
            _arrive(s, rank, s.tasks[task, LAST_OF], now)
        return
    last = s.tasks[task, LAST_OF]
    end = now
    for kernels in range(task, last + 1):
        s.task_real[0, kernels, rank] = end
        end += s.seconds[kernels, rank]
        s.task_real[1, kernels, rank] = end
    launch = s.launch[last + 1] if last + 1 < len(s.tasks) else 0.0
    _schedule(s, rank, KERNELS_END, now + (end + launch - now))


@njit(cache=True, error_model="numpy")
def _happen(s: Ranks, rank: int, now: float) -> None:
    """Let happen what a rank does next."""
    kind = s.rank_whole[KIND, rank]
    _enter(s, rank, NOTHING)
    task = s.rank_whole[POSITION, rank]
    if kind == LAUNCHED:
        _arrive(s, rank, s.tasks[task, LAST_OF], now)
        return
    if kind == KERNELS_END:
        last = s.tasks[task, LAST_OF]
        launch = s.launch[last + 1] if last + 1 < len(s.tasks) else 0.0
        if launch == 0.0:
            s.task_real[1, last, rank] = now
        for kernels in range(task, last + 1):
            s.task_real[2, kernels, rank] = 0.0
            s.task_whole[0, kernels, rank] = -1
            _record(s, kernels, rank)
        s.rank_real[REACHED, rank] = s.task_real[1, last, rank] if launch > 0 else -1.0
        s.rank_whole[POSITION, rank] = last + 1
        _go_on(s, rank, now)
        return
    leg = s.rank_whole[LEG, rank]
    waited = 0.0
    for place in range(s.rank_whole[CAUSES, rank]):
        waited += s.cause_s[rank, place]
        s.rank_whole[SPAN_CAUSES, rank] = _add(
            s.span_cause, s.span_s, rank, s.rank_whole[SPAN_CAUSES, rank], s.cause[rank, place], s.cause_s[rank, place]
        )
    s.leg_real[2, leg, rank] = waited
    if leg + 1 < s.tasks[task, LAST_OF] + s.tasks[task, LEGS]:
        _arrive(s, rank, leg + 1, now)
        return
    waited, most, peer = 0.0, -1.0, -1
    for place in range(s.rank_whole[SPAN_CAUSES, rank]):
        seconds = s.span_s[rank, place]
        waited += seconds
        if seconds > most or (seconds == most and s.span_cause[rank, place] < peer):
            most, peer = seconds, s.span_cause[rank, place]
    s.task_real[0, task, rank], s.task_real[1, task, rank], s.task_real[2, task, rank] = s.rank_real[SPAN_START, rank], now, waited
    s.task_whole[0, task, rank] = peer
    _record(s, task, rank)
    s.rank_real[REACHED, rank] = -1.0
    s.rank_whole[POSITION, rank] = task + 1
    _go_on(s, rank, now)


@njit(cache=True, error_model="numpy")
def _events(s: Ranks, now: float, before: int) -> None:
    """Let everything happen that is due, and was put down before a place in line, in order."""
    while True:
        rank = _earliest(s)
        if rank < 0 or s.rank_real[WHEN, rank] > now or s.rank_whole[SEQUENCE, rank] >= before:
            return
        _happen(s, rank, now)


def _compiled_core() -> str:
    """Return a digest that changes with the compiled functions of the core, which :func:`play` calls.

    Compiled code on disk is found by the function that it belongs to and what this one closes over; a change in another file would go
    unnoticed.
    """
    digest = hashlib.blake2b(digest_size=16)
    for name, value in sorted(vars(kernel).items()):
        code = getattr(getattr(value, "py_func", None), "__code__", None)
        if code is not None:
            digest.update(f"{name}:{code.co_code.hex()}:{code.co_consts!r}:{code.co_names!r};".encode())
        elif isinstance(value, int | float):
            digest.update(f"{name}={value!r};".encode())
    return digest.hexdigest()


def _play_with(core: str) -> Callable[..., int]:
    @njit(cache=True, error_model="numpy")
    def play(
        route: Whole32, flow_whole: Whole32, flow_real: Floats, link_whole: Whole32, link_real: Floats, open_: Floats, crossing: Whole32,
        neighbours: Whole32, shared: Whole32, shared_weight: Floats, before: Floats, listed: Whole32, members: Whole32, candidates: Whole32,
        part_whole: Ints, part_real: Floats, capped: Whole32, carried: Floats, key: Floats, entry: Whole32, start_key: Floats,
        start_entry: Whole32, joined: Whole32, counts: Ints,
        binding: Bools, routes: Whole32, port_routes: Whole32, latency: Floats, by_port: Ints, through: Floats, woken: Ints, none: Floats,
        tasks: Ints, launch: Floats, seconds: Floats, size: Floats, barrier: Ints, rank_whole: Ints, rank_real: Floats, slot: Ints,
        group_whole: Ints, moving_since: Floats, cause: Ints, cause_s: Floats, span_cause: Ints, span_s: Floats, leg_real: Floats,
        leg_moving: Floats, leg_began: Ints, leg_left: Ints, task_real: Floats, task_whole: Ints, pending: Ints, batch_pair: Ints,
        batch_leg: Ints, next_up: Ints, whole: Ints, real: Floats
    ) -> int:
        """Let things happen until all ranks have left a leg; return what has become of it.

        Parameters
        ----------
        route ... counts
            The core, as :data:`moesim.models.sharing.bottleneck_groups.ADVANCE_TAKES` names it.
        binding, routes, port_routes, latency
            Which links may become full; of each pair of GPUs int32[G * G, H], the links between them, without and with the ports of
            both, and float[G * G] s.
        by_port : int[K]
            Which legs go through ports.
        through : float[links]
            What had gone over each link when the busy period began.
        woken, none
            Room for G counters; an empty array.
        tasks ... real
            See :class:`Ranks`.
        """
        s = Ranks(
            tasks, launch, seconds, size, barrier, rank_whole, rank_real, slot, group_whole, moving_since, cause, cause_s, span_cause,
            span_s, leg_real, leg_moving, leg_began, leg_left, task_real, task_whole, pending, batch_pair, batch_leg, next_up,
            whole, real
        )
        ranks, links = rank_whole.shape[1], crossing.shape[0]
        if whole[PHASE] == FRESH and len(core) > 0:
            for rank in range(ranks):
                _go_on(s, rank, real[INSTANT])
            whole[PHASE] = EVENTS
        while True:
            now = real[INSTANT]
            if whole[PHASE] == EVENTS:
                _events(s, now, whole[PLACE] + 1_000_000_000)
                whole[PHASE] = ADMITTED
                many = whole[BATCH]
                if many > 0:
                    if whole[LIVE] == 0:  # a busy period begins: time is 0 again
                        link_whole[COMPONENT] = -1
                        link_whole[CANDIDATE] = 0
                        link_whole[LAST] = link_whole[FIRST]
                        link_real[SERVICE] = 0.0
                        link_real[TOTAL] = 0.0
                        counts[PARTS] = counts[QUEUED] = 0
                        whole[TOP] = whole[FREE] = 0
                        real[CORE_NOW] = 0.0
                        real[BEGAN] = now
                        whole[PERIODS] += 1
                        through[:] = link_real[THROUGH, :links]
                    top = whole[TOP]
                    if whole[FREE] > 0 or top + many > min(route.shape[0], max(4096, 4 * (whole[LIVE] + many))):
                        return ROOM
                    ids = np.arange(top, top + many)
                    path = np.empty((many, routes.shape[1]), dtype=np.int32)
                    watch = np.empty((many, 2), dtype=np.int32)
                    bytes_, delay = np.empty(many), np.empty(many)
                    for flow in range(many):
                        pair, leg = batch_pair[flow], batch_leg[flow]
                        path[flow] = port_routes[pair] if by_port[leg] != 0 else routes[pair]
                        watch[flow, 0], watch[flow, 1] = pair // ranks, pair % ranks
                        bytes_[flow] = size[leg, pair // ranks, pair % ranks % size.shape[2]]
                        delay[flow] = latency[pair]
                    local = now - real[BEGAN]
                    fits = admit(
                        route, flow_whole, flow_real, link_whole, start_key, start_entry, counts, ids, local, path, binding,
                        batch_pair[:many], bytes_, none, none, watch, delay
                    )
                    whole[TOP] += many
                    whole[LIVE] += many
                    whole[BATCH] = 0
                    real[CORE_NOW] = max(real[CORE_NOW], local)
                    if not fits:
                        return LISTS
            if whole[PAUSE] != 0:
                whole[PAUSE] = 0
                return LEFT
            first = _earliest(s)
            horizon = rank_real[WHEN, first] if first >= 0 else np.inf
            if whole[LIVE] == 0:
                if first < 0:
                    for rank in range(ranks):
                        if rank_whole[POSITION, rank] < len(tasks):
                            return STUCK
                    return DONE
                real[INSTANT] = horizon
                whole[PHASE] = EVENTS
                continue
            ends = counts[ENDS]
            local, woke = advance(
                route, flow_whole, flow_real, link_whole, link_real, open_, crossing, neighbours, shared, shared_weight, before, listed,
                members, candidates, part_whole, part_real, capped, carried, key, entry, start_key, start_entry, joined, counts,
                horizon - real[BEGAN], real[CORE_NOW], pending, woken, False
            )
            whole[LIVE] -= counts[ENDS] - ends
            real[CORE_NOW] = local
            whole[PHASE] = EVENTS
            if woke == 0:
                if first < 0:
                    return STUCK
                real[INSTANT] = horizon
                continue
            if whole[LIVE] == 0:
                most = 0.0
                for link in range(links):
                    most = max(most, (link_real[THROUGH, link] - through[link]) / link_real[CAPACITY, link])
                real[BOUND] += most
                real[TOOK] += local
            # In two steps, as the clock counts: it is at ``now``, and has so long to go.
            now += max(real[BEGAN] + local - now, 0.0)
            real[INSTANT] = now
            _events(s, now, whole[PLACE])  # what stood in line for this very instant comes first
            for place in range(woke):
                if pending[woken[place]] == 0:
                    _quiet(s, woken[place], now)

    return play


play = _play_with(_compiled_core())
