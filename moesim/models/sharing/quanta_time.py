"""Let time pass in the core of :mod:`moesim.models.sharing.quanta`: ends, ends of quanta, and quanta that are cut short."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from moesim.facts.arrays import Floats, Ints
from moesim.models.sharing.quanta_fill import SAME, announce, start_quantum
from moesim.models.sharing.quanta_parts import dissolve, fall_apart
from moesim.models.sharing.quanta_state import (
    ASKED,
    BEGAN,
    BUSY,
    CAPACITY,
    CHECKED,
    DESTINATION,
    END,
    ENDED,
    ENDING,
    FIRST,
    FLOWS,
    FOLLOWING,
    GONE,
    HEAD,
    LASTS,
    LEFT,
    LENGTH,
    LEVEL,
    LOAD,
    MANY,
    NEXT,
    PAIR,
    PART,
    SERVICE,
    SOURCE,
    STALE,
    START,
    SUM,
    THEN,
    THROUGH,
    UNTIL,
    USED,
    WEIGHT,
    State,
    rate_of,
)


@njit(cache=True, error_model="numpy")
def _shares(  # noqa: PLR0917
    route: NDArray[Any],
    left: Floats,
    end: Floats,
    following_end: NDArray[np.int32],
    tide: Floats,
    link: Floats,
    place: Ints,
    head: int,
    first: int,
    passed: float,
    lasts: float,
) -> None:
    """Write to SUM which share of its flows' wishes each link can grant in a quantum that is cut, so that none carries more than it can.

    The wish of a running flow is to have come, on the straight line, as far as it should have by now. At constant rates all links could
    grant that; but flows that end within the quantum run ahead of it.
    """
    hops = route.shape[1] - 2
    part_over = passed / lasts
    k = head
    while k >= 0:
        link[k, SUM] = tide[k, USED] * passed - link[k, GONE] * part_over
        k = place[k, FOLLOWING]
    f = first
    while f >= 0:
        ahead = left[f] * ((1.0 if end[f] <= passed else passed / end[f]) - part_over)
        for h in range(hops):
            k = route[f, h]
            if k < 0:
                break
            link[k, SUM] += ahead
        f = following_end[f]
    k = head
    while k >= 0:
        room = max(tide[k, CAPACITY] * passed - link[k, GONE], 0.0)
        link[k, SUM] = 1.0 if link[k, SUM] <= room else room / link[k, SUM]
        k = place[k, FOLLOWING]


@njit(cache=True, error_model="numpy")
def _take(  # noqa: PLR0917
    route: NDArray[Any],
    left: Floats,
    end: Floats,
    weight: Floats,
    cap: Floats,
    link: Floats,
    pool: NDArray[np.int32],
    first: int,
    length: int,
    passed: float,
    even: bool,
    take: bool,
) -> int:
    """Take what running flows have carried in a quantum from them (with ``take``); add it to SERVICE unless ``even``.

    A flow has come, on the straight line to where it will be at the end of the quantum, as far as its links grant. Returns how many run.
    """
    hops, weighted, capped = route.shape[1] - 2, weight.size > 0, cap.size > 0
    kept = first
    for i in range(first, first + length):
        f = pool[i]
        if route[f, hops + 1] == ENDED:
            continue
        pool[kept] = f
        kept += 1
        limit = route[f, hops]
        if limit >= 0:
            moved = link[limit, LEVEL]
            if weighted:
                moved *= weight[f]
            if capped:
                moved = min(moved, cap[f])
            moved = min(moved * passed, left[f])
        elif end[f] <= passed:
            moved = left[f]
        else:
            moved = left[f] * (passed / end[f])
        if not even:
            share = 1.0
            for h in range(hops):
                k = route[f, h]
                if k < 0:
                    break
                share = min(share, link[k, SUM])
            moved *= share
            for h in range(hops):
                k = route[f, h]
                if k < 0:
                    break
                link[k, SERVICE] += moved
        if take:
            left[f] -= moved
    return kept - first


@njit(cache=True, error_model="numpy")
def _moved(s: State, p: int, left: Floats, passed: float, even: bool, take: bool) -> None:
    """Write to SERVICE what each link of a part carried in ``passed`` seconds of its quantum; with ``take``, take it from ``left``."""
    link, place, which, end = s.link, s.place, len(s.place) + p, s.amount[END]
    if not even:
        _shares(s.route, left, end, s.number[NEXT], s.tide, link, place, s.part[p, HEAD], s.part[p, FIRST], passed, s.span[p, LASTS])
    k = s.part[p, HEAD]
    while k >= 0:
        link[k, SERVICE] = s.tide[k, USED] * passed if even else link[k, GONE]
        k = place[k, FOLLOWING]
    if take or not even:
        s.list[which, LENGTH] = _take(
            s.route, left, end, s.weight, s.cap, link, s.pool, s.list[which, START], s.list[which, LENGTH], passed, even, take
        )


@njit(cache=True, error_model="numpy")
def bring(s: State, p: int, now: float) -> None:
    """Bring a part up to ``now``: its quantum is over, rates must be found anew."""
    began = s.span[p, BEGAN]
    s.span[p, BEGAN] = s.span[p, THEN] = max(now, began)
    if not s.part[p, STALE]:
        _close(s, p, min(max(now - began, 0.0), s.span[p, LASTS]))


@njit(cache=True, error_model="numpy")
def bring_all(s: State, links: Ints, now: float) -> None:
    """Bring the parts of some links up to ``now``."""
    for k in links:
        p = s.place[k, PART]
        if p >= 0 and not (s.part[p, STALE] and s.span[p, BEGAN] >= now):
            bring(s, p, now)


@njit(cache=True, error_model="numpy")
def bring_parts(s: State, ids: Ints, now: float) -> None:
    """Bring the parts that new flows touch up to ``now``."""
    for f in ids:
        for h in range(s.route.shape[1] - 2):
            if s.route[f, h] < 0:
                break
            p = s.place[s.route[f, h], PART]
            if p >= 0 and not (s.part[p, STALE] and s.span[p, BEGAN] >= now):
                bring(s, p, now)


@njit(cache=True, error_model="numpy")
def _close(s: State, p: int, passed: float) -> None:
    """Write down what was carried in the quantum of a part, which is over after ``passed`` seconds."""
    even = s.part[p, ENDING] == 0 or (passed >= s.span[p, LASTS] and s.part[p, FIRST] < 0)
    _moved(s, p, s.amount[LEFT], passed, even, True)
    link, place = s.link, s.place
    k = s.part[p, HEAD]
    while k >= 0:
        link[k, THROUGH] += link[k, SERVICE]
        link[k, LOAD] = max(link[k, LOAD] - link[k, SERVICE], 0.0)
        link[k, GONE] = 0.0
        if place[k, FLOWS] > 0:
            link[k, BUSY] += passed
        k = place[k, FOLLOWING]
    s.part[p, STALE] = 1
    s.part[p, FIRST] = -1


@njit(cache=True, error_model="numpy")
def so_far(s: State, now: float, busy: Floats, through: Floats, pruned: bool) -> None:
    """Add to ``busy`` and ``through`` what links have done since the quanta of their parts began; change nothing that matters later."""
    left = s.amount[LEFT].copy() if pruned else s.amount[LEFT]
    for i in range(s.active[0]):
        p = s.active[1 + i]
        if not s.part[p, STALE]:
            passed = min(max(now - s.span[p, BEGAN], 0.0), s.span[p, LASTS])
            _moved(s, p, left, passed, s.part[p, ENDING] == 0, pruned)
            k = s.part[p, HEAD]
            while k >= 0:
                if k < len(busy):
                    through[k] += s.link[k, SERVICE]
                    busy[k] += passed if s.place[k, FLOWS] > 0 else 0.0
                k = s.place[k, FOLLOWING]
        which = len(s.place) + p
        for j in range(s.list[which, START], s.list[which, START] + s.list[which, LENGTH] if pruned else 0):
            f = s.pool[j]
            for h in range(s.route.shape[1] - 2):
                if s.route[f, -1] != ENDED and s.route[f, h] < -1:
                    through[-2 - s.route[f, h]] += s.amount[ASKED, f] - left[f]
    for k in range(len(busy)):
        if s.place[k, PART] < 0 and s.place[k, FLOWS] > 0:  # a link that cannot be full
            busy[k] += now - s.link[k, UNTIL]


@njit(cache=True, error_model="numpy")
def _take_off(  # noqa: PLR0917
    route: NDArray[Any], link: Floats, place: Ints, f: int, weight: float, moved: float, carried: float, passed: float, now: float
) -> None:
    """Take a flow off its links, ``passed`` seconds into its quantum, in which it moved so many bytes, and ``carried`` in all."""
    hops = route.shape[1] - 2
    for h in range(hops):
        k = route[f, h]
        if k == -1:
            break
        if k < 0:  # a link that cannot be full
            k = -2 - k
            link[k, THROUGH] += carried
            place[k, FLOWS] -= 1
            if place[k, FLOWS] == 0:
                link[k, BUSY] += now - link[k, UNTIL]
        else:
            link[k, GONE] += moved
            link[k, WEIGHT] -= weight
            place[k, FLOWS] -= 1
            if place[k, FLOWS] == 0:
                link[k, WEIGHT] = 0.0
                link[k, BUSY] += passed
    route[f, hops + 1] = ENDED


@njit(cache=True, error_model="numpy")
def _count_down(number: NDArray[np.int32], f: int, pending: Ints, woken: Ints, count: int) -> int:
    for side in range(SOURCE, DESTINATION + 1):
        counter = number[side, f]
        pending[counter] -= 1
        if pending[counter] == 0:
            woken[count] = counter
            count += 1
    return count


@njit(cache=True, error_model="numpy")
def leave(s: State, ids: Ints, pending: Ints, woken: Ints, left: Floats) -> int:
    """Take flows away; their parts have been brought up to now. Write what each has left; return how many counters reached zero."""
    count = 0
    for i in range(len(ids)):
        f = ids[i]
        p = s.place[s.route[f, 0], PART]
        left[i] = s.amount[LEFT, f]
        carried = s.amount[ASKED, f] - left[i]
        s.carried[s.number[PAIR, f]] += carried
        _take_off(s.route, s.link, s.place, f, s.weight[f] if s.weight.size else 1.0, 0.0, carried, 0.0, s.span[p, BEGAN])
        count = _count_down(s.number, f, pending, woken, count)
        for h in range(s.route.shape[1] - 2):
            if s.route[f, h] < 0:
                break
            s.link[s.route[f, h], LOAD] = max(s.link[s.route[f, h], LOAD] - left[i], 0.0)
        s.part[p, MANY] -= 1
        if s.part[p, MANY] == 0:
            dissolve(s, p)
    return count


@njit(cache=True, error_model="numpy")
def _run_down(  # noqa: PLR0917
    route: NDArray[Any],
    amount: Floats,
    number: NDArray[np.int32],
    weights: Floats,
    cap: Floats,
    link: Floats,
    place: Ints,
    carried: Floats,
    f: int,
    began: float,
    lasts: float,
    even: bool,
    last: float,
    pending: Ints,
    woken: Ints,
    count: int,
) -> tuple[int, int, float, int]:
    """End flows, from ``f`` on, up to ``last`` or to the first instant at which a counter has reached zero.

    Returns the flow that ends next, how many counters have reached zero, when the last flow ended, and how many flows have ended.
    """
    hops, weighted = route.shape[1] - 2, weights.size > 0
    now, ended = began, 0
    while f >= 0 and began + amount[END, f] <= last:
        end, had = amount[END, f], amount[LEFT, f]
        now = began + end
        # What it moved in this quantum: at its own rate if that did not change, else what the filling set aside for it.
        moved = rate_of(link, weights, cap, f, -1 - route[f, hops]) * end if even else had / lasts * lasts
        in_all = amount[ASKED, f] - (had - moved)
        carried[number[PAIR, f]] += in_all
        _take_off(route, link, place, f, weights[f] if weighted else 1.0, had, in_all, end, now)
        before = count
        count = _count_down(number, f, pending, woken, count)
        if count > before:  # ends of the same instant belong together, however rounding has put them
            last = min(last, now * (1 + SAME)) if before else now * (1 + SAME)
        f = number[NEXT, f]
        ended += 1
    return f, count, now, ended


@njit(cache=True, error_model="numpy")
def _end_flows(s: State, p: int, last: float, pending: Ints, woken: Ints, count: int) -> tuple[int, float, int]:
    """End flows of a part; return how many counters have reached zero, when the last flow ended, and how many flows have ended."""
    s.part[p, FIRST], count, now, ended = _run_down(
        s.route,
        s.amount,
        s.number,
        s.weight,
        s.cap,
        s.link,
        s.place,
        s.carried,
        s.part[p, FIRST],
        s.span[p, BEGAN],
        s.span[p, LASTS],
        s.part[p, ENDING] == 0,
        last,
        pending,
        woken,
        count,
    )
    s.part[p, MANY] -= ended
    if s.part[p, MANY] == 0:
        _close(s, p, s.span[p, LASTS])
        dissolve(s, p)
    else:
        announce(s, p)
    return count, now, ended


@njit(cache=True, error_model="numpy")
def _next(s: State) -> tuple[int, float]:
    """Return the part in which something happens first, and when something happens in another."""
    soonest, first, second = -1, np.inf, np.inf
    for i in range(1, s.active[0] + 1):
        then = s.span[s.active[i], THEN]
        if then < first:
            soonest, first, second = s.active[i], then, first
        else:
            second = min(second, then)
    return soonest, second


@njit(cache=True, error_model="numpy")
def advance(s: State, horizon: float, now: float, share: float, guard: float, pending: Ints, woken: Ints) -> tuple[float, int, int]:
    """Let time pass until a counter reaches zero, or to the horizon; return the time, how many counters, and how many flows ended."""
    ended = 0
    while s.active[0] > 0:
        p, other = _next(s)
        then = s.span[p, THEN]
        if then > horizon:
            return horizon, 0, ended
        if s.part[p, FIRST] < 0:
            if not s.part[p, STALE]:
                _close(s, p, s.span[p, LASTS])
                s.span[p, BEGAN] += s.span[p, LASTS]
            if 2 * s.part[p, MANY] <= s.part[p, CHECKED]:
                fall_apart(s, p, share, guard)
            else:
                start_quantum(s, p, share, guard)
            continue
        count, then, many = _end_flows(s, p, min(other, horizon), pending, woken, 0)
        now = max(now, then)
        ended += many
        if count:
            last = then * (1 + SAME)
            while s.active[0] > 0:
                p, other = _next(s)
                if s.part[p, FIRST] < 0 or s.span[p, THEN] > last:
                    break
                count, _, many = _end_flows(s, p, last, pending, woken, count)
                ended += many
            return now, count, ended
    return (now if ended else horizon), 0, ended
