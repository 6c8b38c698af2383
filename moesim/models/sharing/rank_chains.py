"""Ranks that compute and exchange by turns, on links shared exactly: the events of a whole step, compiled.

Every rank goes through the same tasks, one after another: kernels, whose seconds are known, and exchanges, each of one or more *legs*
(stages of an all-to-all), in which a pair of ranks starts when both are there and a rank is done when all are there and its own bytes
have moved. Where nothing else happens on the machine, what comes next follows from these numbers alone. This file plays it, event by event
and in the order in which :class:`moesim.engine.lanes.StepRun` and :class:`moesim.engine.collective.Collective` would, which say why each
thing is as it is; floats are added in the same order too, so that both give the same results to the last bit.

No clock stands here: times are handed in and out, and whoever owns the clock is told each time that all ranks have left a leg.
"""
# ruff: noqa: PLR0917, PLR0912, C901 - compiled functions take arrays by position, and a call inside a loop copies them all
# Signatures of compiled functions name some forty arrays; the formatter would give each a line of its own.
# fmt: off

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from moesim.facts.arrays import Bools, Floats, Ints
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
    Whole16,
    Whole32,
    admit_one,
    advance,
)
from moesim.models.sharing.compiled import at, from_python, inside, wide

COLLECTIVE, LAST_OF, LEGS = range(3)
"""Columns of ``tasks``: whether a task is an exchange; the last kernel of a row of kernels, or the first leg; how many legs."""
POSITION, LEG, KIND, SEQUENCE, CAUSES, SPAN_CAUSES, IDLE = range(7)
"""Rows of ``rank_whole``: the task a rank is at, its leg, what it does next and the place of that in line, lengths of its lists."""
WHEN, IDLE_SINCE, REACHED, SPAN_START = range(4)
"""Rows of ``rank_real``: when what it does next happens; since when it is idle; when its last kernel ended; when its exchange began."""
NOTHING, KERNELS_END, LAUNCHED, RESUME = (wide(kind) for kind in range(4))
OUT, INTO = range(2)
"""Rows of ``span``: where the flows of a leg that leave a rank begin; where those that come to it do."""
SENDER, RECEIVER, INCOMING = range(3)
"""Rows of ``flow``: its GPUs; and the flows again in another order, by receiver and sender."""
IN_LEG, IN_EXCHANGE = range(2)
"""Rows of ``cause`` and ``cause_s``: for whom a rank has waited in its leg, and in its exchange."""
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
    """All that is known of ranks; T tasks, K legs, W ranks of a group, G of all groups, F flows of all legs.

    ``tasks`` int[T, 3], ``launch`` float[T] (s before an exchange offers its first byte), ``seconds`` float[T, G] of kernels. The flows of
    a leg stand together, by sender and receiver: those that leave rank r in leg k are ``span[OUT, k, r]`` to ``span[OUT, k, r + 1]``, and
    those that come to it the numbers at ``span[INTO, k, r]`` ... of ``flow[INCOMING]``; ``span`` is int[2, K, G + 1], ``flow`` int32[3, F],
    ``size`` float[F] B. ``barrier`` int[K]. ``slot`` is int[2, 2, G], ``group_whole`` int[2, 2, G / W]. ``cause`` and ``cause_s``
    [2, G, W + 1] list for whom a rank has waited in its leg, and in its exchange.
    Written for the record: ``leg_real`` float[3, K, G] (arrival, end, waiting), ``leg_moving`` float[K, G / W] (s in which any byte was on
    its way), ``leg_began`` int[K, G / W] (the place of the leg among all that began), ``leg_left`` int[K] (ranks that have left it),
    ``task_real`` float[3, T, G] (start, end, waiting), ``task_whole`` int[2, T, G] (whom it waited for longest, and the place of the task
    among all that ended). ``pending`` int[G] counts flows on their way; ``batch`` int[2, ...] holds those of this instant, and their legs.
    ``next_up`` int[2 P], with P a power of 2 and at least G, is a tree of the ranks by what they do next: rank r stands at P + r, -1 if it
    does nothing, and at n the earlier of those at 2 n and 2 n + 1.
    """

    tasks: Ints
    launch: Floats
    seconds: Floats
    span: Ints
    flow: Whole32
    size: Floats
    barrier: Ints
    rank_whole: Ints
    rank_real: Floats
    slot: Ints
    group_whole: Ints
    moving_since: Floats
    cause: Ints
    cause_s: Floats
    leg_real: Floats
    leg_moving: Floats
    leg_began: Ints
    leg_left: Ints
    task_real: Floats
    task_whole: Ints
    pending: Ints
    batch: Ints
    next_up: Ints
    whole: Ints
    real: Floats


@inside
def _enter(rank_whole: Ints, rank_real: Floats, next_up: Ints, rank: int, kind: int) -> None:
    """Say what a rank does next, and find out whether it is the first to do something."""
    rank_whole[KIND, rank] = kind
    node = len(next_up) // 2 + rank
    next_up[node] = rank if kind != NOTHING else -1
    node //= 2
    while node > 0:
        one, other = next_up[2 * node], next_up[2 * node + 1]
        if one < 0 or (
            other >= 0
            and (
                rank_real[WHEN, other] < rank_real[WHEN, one]
                or (rank_real[WHEN, other] == rank_real[WHEN, one] and rank_whole[SEQUENCE, other] < rank_whole[SEQUENCE, one])
            )
        ):
            one = other
        next_up[node] = one
        node //= 2


@inside
def _schedule(rank_whole: Ints, rank_real: Floats, next_up: Ints, whole: Ints, rank: int, kind: int, when: float) -> None:
    """Put down what a rank does next; of things at the same time, what was put down first happens first."""
    rank_whole[SEQUENCE, rank] = whole[PLACE]
    rank_real[WHEN, rank] = when
    whole[PLACE] += 1
    _enter(rank_whole, rank_real, next_up, rank, kind)


@inside
def _charge(rank_whole: Ints, rank_real: Floats, cause: Ints, cause_s: Floats, rank: int, peer: int, now: float) -> None:
    """Book the idle time of a rank up to now as waiting, for the sake of a peer; -1 if of nobody else."""
    since = rank_real[IDLE_SINCE, rank]
    if now > since:
        # In the order of ``waited_for.get(cause, 0.0) + now - idle_since``.
        many = rank_whole[CAUSES, rank]
        for place in range(many):
            if cause[IN_LEG, rank, place] == peer:
                cause_s[IN_LEG, rank, place] = cause_s[IN_LEG, rank, place] + now - since
                return
        cause[IN_LEG, rank, many], cause_s[IN_LEG, rank, many] = peer, 0.0 + now - since
        rank_whole[CAUSES, rank] = many + 1


@inside
def _add_up(rank_whole: Ints, cause: Ints, cause_s: Floats, rank: int) -> float:
    """Add what a rank has waited in its leg to what it has in its exchange; return the former, s.

    Peers stand in the order in which they first made it wait.
    """
    waited = 0.0
    for place in range(rank_whole[CAUSES, rank]):
        amount = cause_s[IN_LEG, rank, place]
        waited += amount
        many = rank_whole[SPAN_CAUSES, rank]
        at = 0
        while at < many and cause[IN_EXCHANGE, rank, at] != cause[IN_LEG, rank, place]:
            at += 1
        if at < many:
            cause_s[IN_EXCHANGE, rank, at] += amount
        else:
            cause[IN_EXCHANGE, rank, at], cause_s[IN_EXCHANGE, rank, at] = cause[IN_LEG, rank, place], amount
            rank_whole[SPAN_CAUSES, rank] = many + 1
    return waited


@inside
def _finish(s: Ranks, rank: int, peer: int, now: float) -> None:
    """Let a rank leave its leg; it goes on after what is in line before it."""
    _charge(s.rank_whole, s.rank_real, s.cause, s.cause_s, rank, peer if peer != rank else wide(-1), now)
    leg = s.rank_whole[LEG, rank]
    s.rank_whole[IDLE, rank] = 0
    s.leg_real[1, leg, rank] = now
    s.leg_left[leg] += 1
    if s.leg_left[leg] == s.rank_whole.shape[1]:
        s.whole[PAUSE] = 1
    _schedule(s.rank_whole, s.rank_real, s.next_up, s.whole, rank, RESUME, now)


@inside
def _moves(
    flow: Whole32, rank_whole: Ints, rank_real: Floats, group_whole: Ints, moving_since: Floats, cause: Ints, cause_s: Floats,
    pending: Ints, batch: Ints, whole: Ints, leg: int, number: int, rank: int, now: float
) -> None:
    """Let the bytes of a pair start; ``rank`` made it possible."""
    odd = leg & 1
    for row in range(2):
        end = wide(flow[row, number])
        if rank_whole[IDLE, end] != 0:
            group = end // (rank_whole.shape[1] // group_whole.shape[2])
            if group_whole[odd, MOVING, group] == 0:
                moving_since[odd, group] = now
            group_whole[odd, MOVING, group] += 1
            rank_whole[IDLE, end] = 0
            _charge(rank_whole, rank_real, cause, cause_s, end, rank if rank != end else wide(-1), now)
        pending[end] += 1
    batch[0, whole[BATCH]], batch[1, whole[BATCH]] = number, leg
    whole[BATCH] += 1


@inside
def _arrive(s: Ranks, rank: int, leg: int, now: float) -> None:
    """Let a rank into a leg."""
    ranks = s.rank_whole.shape[1] // s.group_whole.shape[2]
    group, odd = rank // ranks, leg & 1
    first = group * ranks
    if s.group_whole[odd, MISSING, group] == 0:
        # Its first rank is here, so all ranks have left the leg before the last, which used this place.
        s.group_whole[odd, MISSING, group] = ranks
        s.group_whole[odd, MOVING, group] = 0
        for peer in range(first, first + ranks):
            s.slot[odd, ARRIVED, peer] = 0
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
    barrier = s.barrier[leg] != 0
    # What it sends comes before what it receives; behind a barrier, all that the group sends.
    sender, last = (first, first + ranks) if barrier else (rank, rank + 1)
    for way in range(2):
        begin, end = s.span[way, leg, sender], s.span[way, leg, last]
        if barrier and (way == INTO or not all_here):
            end = begin
        for place in range(begin, end):
            number = place if way == OUT else wide(s.flow[INCOMING, place])
            if barrier or s.slot[odd, ARRIVED, s.flow[RECEIVER if way == OUT else SENDER, number]] != 0:
                _moves(
                    s.flow, s.rank_whole, s.rank_real, s.group_whole, s.moving_since, s.cause, s.cause_s, s.pending, s.batch, s.whole,
                    leg, number, rank, now
                )
    if all_here:
        for place in range(first, first + ranks):
            peer = s.slot[odd, ORDER, place]
            # One that came to this leg and has no bytes to move, or none that still do, has waited for the others only.
            if s.rank_whole[IDLE, peer] != 0:
                _finish(s, peer, rank, now)


@inside
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
        _finish(s, rank, wide(-1), now)


@inside
def _record(task_whole: Ints, whole: Ints, task: int, rank: int, peer: int) -> None:
    task_whole[0, task, rank], task_whole[1, task, rank] = peer, whole[RECORDED]
    whole[RECORDED] += 1


@inside
def _go_on(s: Ranks, rank: int, now: float) -> int:
    """Let a rank begin the task that it has come to; return the leg into which it goes now, -1 if it does not."""
    task = s.rank_whole[POSITION, rank]
    if task == len(s.tasks):
        _enter(s.rank_whole, s.rank_real, s.next_up, rank, NOTHING)
        return -1
    if s.tasks[task, COLLECTIVE] != 0:
        reached = s.rank_real[REACHED, rank]
        s.rank_real[SPAN_START, rank] = now if reached < 0 else reached
        s.rank_whole[SPAN_CAUSES, rank] = 0
        if s.launch[task] > 0 and reached < 0:
            _schedule(s.rank_whole, s.rank_real, s.next_up, s.whole, rank, LAUNCHED, now + s.launch[task])
            return -1
        _enter(s.rank_whole, s.rank_real, s.next_up, rank, NOTHING)
        return int(s.tasks[task, LAST_OF])
    last = s.tasks[task, LAST_OF]
    end = now
    for kernels in range(task, last + 1):
        s.task_real[0, kernels, rank] = end
        end += s.seconds[kernels, rank]
        s.task_real[1, kernels, rank] = end
    launch = s.launch[last + 1] if last + 1 < len(s.tasks) else 0.0
    _schedule(s.rank_whole, s.rank_real, s.next_up, s.whole, rank, KERNELS_END, now + (end + launch - now))
    return -1


@inside
def _happen(s: Ranks, rank: int, now: float) -> int:
    """Let happen what a rank does next; return the leg into which it goes now, -1 if it does not."""
    kind = s.rank_whole[KIND, rank]
    _enter(s.rank_whole, s.rank_real, s.next_up, rank, NOTHING)
    task = s.rank_whole[POSITION, rank]
    if kind == LAUNCHED:
        return int(s.tasks[task, LAST_OF])
    if kind == KERNELS_END:
        last = s.tasks[task, LAST_OF]
        launch = s.launch[last + 1] if last + 1 < len(s.tasks) else 0.0
        if launch == 0.0:
            s.task_real[1, last, rank] = now
        for kernels in range(task, last + 1):
            s.task_real[2, kernels, rank] = 0.0
            _record(s.task_whole, s.whole, kernels, rank, wide(-1))
        s.rank_real[REACHED, rank] = s.task_real[1, last, rank] if launch > 0 else -1.0
        s.rank_whole[POSITION, rank] = last + 1
    else:
        leg = s.rank_whole[LEG, rank]
        s.leg_real[2, leg, rank] = _add_up(s.rank_whole, s.cause, s.cause_s, rank)
        if leg + 1 < s.tasks[task, LAST_OF] + s.tasks[task, LEGS]:
            return int(leg + 1)
        waited, most, peer = 0.0, -1.0, wide(-1)
        for place in range(s.rank_whole[SPAN_CAUSES, rank]):
            seconds = s.cause_s[IN_EXCHANGE, rank, place]
            waited += seconds
            if seconds > most or (seconds == most and s.cause[IN_EXCHANGE, rank, place] < peer):
                most, peer = seconds, s.cause[IN_EXCHANGE, rank, place]
        s.task_real[0, task, rank], s.task_real[1, task, rank], s.task_real[2, task, rank] = s.rank_real[SPAN_START, rank], now, waited
        _record(s.task_whole, s.whole, task, rank, peer)
        s.rank_real[REACHED, rank] = -1.0
        s.rank_whole[POSITION, rank] = task + 1
    return _go_on(s, rank, now)


@inside
def _events(s: Ranks, now: float, before: int) -> None:
    """Let everything happen that is due, and was put down before a place in line, in order."""
    while True:
        rank = s.next_up[1]
        if rank < 0 or s.rank_real[WHEN, rank] > now or s.rank_whole[SEQUENCE, rank] >= before:
            return
        leg = _happen(s, rank, now)
        if leg >= 0:
            _arrive(s, rank, leg, now)


@inside
def _begin_period(
    link_whole: Whole32, link_real: Floats, counts: Ints, through: Floats, whole: Ints, real: Floats, now: float
) -> None:
    """Begin a busy period: time is 0 again."""
    for link in range(len(link_whole) // 16):
        link_whole[at(16 * link + COMPONENT)] = -1
        link_whole[at(16 * link + CANDIDATE)] = 0
        link_whole[at(16 * link + LAST)] = link_whole[at(16 * link + FIRST)]
        link_real[at(8 * link + SERVICE)] = 0.0
        link_real[at(8 * link + TOTAL)] = 0.0
    for link in range(len(through)):
        through[link] = link_real[at(8 * link + THROUGH)]
    counts[PARTS] = counts[QUEUED] = 0
    whole[TOP] = whole[FREE] = 0
    real[CORE_NOW] = 0.0
    real[BEGAN] = now
    whole[PERIODS] += 1


@inside
def _admit(
    route: Whole32, flow_whole: Whole32, flow_real: Floats, link_whole: Whole32, start_key: Floats, start_entry: Whole32,
    counts: Ints, binding: Bools, routes: Whole32, port_routes: Whole32, latency: Floats, by_port: Ints, free: Ints, flow: Whole32,
    size: Floats, batch: Ints, whole: Ints, ranks: int, local: float
) -> bool:
    """Hand the flows of this instant to the core, in order; return whether the lists of all links have room for them.

    Numbers that are free again are given away first, as :class:`moesim.models.sharing.groups.GroupsCore` does.
    """
    fits = True
    for place in range(whole[BATCH]):
        if whole[FREE] > 0:
            f = free[len(free) - whole[FREE]]
            whole[FREE] -= 1
        else:
            f = whole[TOP]
            whole[TOP] += 1
        number, leg = batch[0, place], batch[1, place]
        source, destination = wide(flow[SENDER, number]), wide(flow[RECEIVER, number])
        pair = source * ranks + destination
        paths = port_routes if by_port[leg] != 0 else routes
        listed = admit_one(
            route, flow_whole, flow_real, link_whole, start_key, start_entry, counts, f, paths, pair, binding, pair, size[number], 1.0,
            np.inf, source, destination, local + latency[pair]
        )
        fits = fits and listed
    whole[LIVE] += whole[BATCH]
    whole[BATCH] = 0
    return fits


@from_python
def play(
    route: Whole32, flow_whole: Whole32, group_of: Whole32, flow_real: Floats, link_whole: Whole32, link_real: Floats, fixed: Floats,
    open_: Floats, crossing: Whole16, neighbours: Whole32, shared: Whole32, shared_weight: Floats, before: Floats, listed: Whole32,
    members: Whole32, candidates: Whole32, part_whole: Ints, part_real: Floats, capped: Whole32, carried: Floats, key: Floats,
    entry: Whole32, start_key: Floats, start_entry: Whole32, joined: Whole32, counts: Ints, binding: Bools, free: Ints, routes: Whole32,
    port_routes: Whole32, latency: Floats, by_port: Ints, through: Floats, woken: Ints, weighted: bool, tasks: Ints, launch: Floats,
    seconds: Floats, span: Ints, flow: Whole32, size: Floats, barrier: Ints, rank_whole: Ints, rank_real: Floats, slot: Ints,
    group_whole: Ints, moving_since: Floats, cause: Ints, cause_s: Floats, leg_real: Floats, leg_moving: Floats, leg_began: Ints,
    leg_left: Ints, task_real: Floats, task_whole: Ints, pending: Ints, batch: Ints, next_up: Ints, whole: Ints, real: Floats
) -> int:
    """Let things happen until all ranks have left a leg; return what has become of it.

    Parameters
    ----------
    route ... counts
        The core, as :data:`moesim.models.sharing.bottleneck_groups.ADVANCE_TAKES` names it.
    binding, free, routes, port_routes, latency
        Which links may become full; the numbers of flows that are free again; of each pair of GPUs int32[G * G, H], the links between
        them, without and with the ports of both, and float[G * G] s.
    by_port : int[K]
        Which legs go through ports.
    through : float[links]
        What had gone over each link when the busy period began.
    woken
        Room for G counters.
    weighted
        Whether any weight is not 1: never, here.
    tasks ... real
        See :class:`Ranks`.
    """
    s = Ranks(
        tasks, launch, seconds, span, flow, size, barrier, rank_whole, rank_real, slot, group_whole, moving_since, cause, cause_s,
        leg_real, leg_moving, leg_began, leg_left, task_real, task_whole, pending, batch, next_up, whole, real
    )
    ranks = rank_whole.shape[1]
    if whole[PHASE] == FRESH:
        for rank in range(ranks):
            leg = _go_on(s, rank, real[INSTANT])
            if leg >= 0:
                _arrive(s, rank, leg, real[INSTANT])
        whole[PHASE] = EVENTS
    while True:
        now = real[INSTANT]
        if whole[PHASE] == EVENTS:
            _events(s, now, whole[PLACE] + 1_000_000_000)
            whole[PHASE] = ADMITTED
            many = whole[BATCH]
            if many > 0:
                if whole[LIVE] == 0:
                    _begin_period(link_whole, link_real, counts, through, whole, real, now)
                # As ``GroupsCore`` looks for room, which makes some where there is none.
                used, live = whole[TOP] + many, whole[LIVE] + many
                if (whole[FREE] < many and used > max(4096, 4 * live)) or used - min(many, whole[FREE]) > route.shape[0]:
                    return ROOM
                local = now - real[BEGAN]
                fits = _admit(
                    route, flow_whole, flow_real, link_whole, start_key, start_entry, counts, binding, routes, port_routes,
                    latency, by_port, free, flow, size, batch, whole, ranks, local
                )
                real[CORE_NOW] = max(real[CORE_NOW], local)
                if not fits:
                    return LISTS
        if whole[PAUSE] != 0:
            whole[PAUSE] = 0
            return LEFT
        first = next_up[1]
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
            route, flow_whole, group_of, flow_real, link_whole, link_real, fixed, open_, crossing, neighbours, shared, shared_weight,
            before, listed, members, candidates, part_whole, part_real, capped, carried, key, entry, start_key, start_entry, joined, counts,
            horizon - real[BEGAN], real[CORE_NOW], pending, woken, weighted
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
            for link in range(len(through)):
                most = max(most, (link_real[at(8 * link + THROUGH)] - through[link]) / link_real[at(8 * link + CAPACITY)])
            real[BOUND] += most
            real[TOOK] += local
        # In two steps, as the clock counts: it is at ``now``, and has so long to go.
        now += max(real[BEGAN] + local - now, 0.0)
        real[INSTANT] = now
        _events(s, now, whole[PLACE])  # what stood in line for this very instant comes first
        for place in range(woke):
            if pending[woken[place]] == 0:
                _quiet(s, woken[place], now)
