"""Let time pass in the core of :mod:`moesim.models.sharing.quanta`: ends, ends of quanta, and quanta that are cut short."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.facts.arrays import Floats, Ints
from moesim.models.sharing.compiled import at, lean
from moesim.models.sharing.quanta_carry import close
from moesim.models.sharing.quanta_fill import SAME, start_quantum
from moesim.models.sharing.quanta_groups import expel
from moesim.models.sharing.quanta_parts import dissolve, fall_apart
from moesim.models.sharing.quanta_state import (
    ASKED,
    BEGAN,
    BUSY,
    CHECKED,
    DESTINATION,
    END,
    ENDED,
    ENDING,
    FIRST,
    FLOWS,
    GONE,
    LASTS,
    LEFT,
    LENGTH,
    LEVEL,
    LOAD,
    MANY,
    NEXT,
    PART,
    SOURCE,
    STALE,
    START,
    THEN,
    THROUGH,
    UNTIL,
    WEIGHT,
    State,
)

Whole32 = NDArray[np.int32]


@lean
def _take_off(
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


@lean
def _count_down(number: NDArray[np.int32], f: int, pending: Ints, woken: Ints, count: int) -> int:
    for side in range(SOURCE, DESTINATION + 1):
        counter = number[f, side]
        pending[counter] -= 1
        if pending[counter] == 0:
            woken[count] = counter
            count += 1
    return count


@lean
def leave(s: State, ids: Whole32, pending: Ints, woken: Ints, left: Floats) -> int:
    """Take flows away; their parts have been brought up to now. Write what each has left; return how many counters reached zero."""
    count = 0
    for i in range(len(ids)):
        f = ids[i]
        p = s.place[s.route[f, 0], PART]
        expel(s, f)
        left[i] = s.amount[f, LEFT]
        carried = s.amount[f, ASKED] - left[i]
        s.amount[f, ASKED] = carried
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


@lean
def _soonest(active: Ints, span: Floats) -> tuple[int, float]:
    """Return the part in which something happens first (-1: in none), and when something happens in another."""
    part, first, second = -1, np.inf, np.inf
    for i in range(1, active[0] + 1):
        then = span[active[i], THEN]
        if then < first:
            part, first, second = active[i], then, first
        elif then < second:
            second = then
    return part, second


@lean
def _end_flows(  # noqa: C901, PLR0912, PLR0917
    route: NDArray[Any],
    amount: Floats,
    number: NDArray[np.int32],
    weights: Floats,
    caps: Floats,
    link: Floats,
    place: Ints,
    span: Floats,
    part: Ints,
    active: Ints,
    now: float,
    last: float,
    pending: Ints,
    woken: Ints,
    count: int,
) -> tuple[int, int, float, float, int]:
    """End flows in the order of time, up to ``last`` or to the instant at which a counter reaches zero.

    Returns the part whose quantum is over, or which has no flows left, before that (-1: none); how many counters have reached zero; when
    they did, or else the last flow ended; until when others may still end; and how many flows ended.
    """
    hops, weighted, capped = route.shape[1] - 2, weights.size > 0, caps.size > 0
    weight, ended = 1.0, 0
    while True:
        p, other = _soonest(active, span)
        if p < 0 or span[p, THEN] > last:
            return -1, count, now, last, ended
        f = part[p, FIRST]
        if f < 0:
            return p, count, now, last, ended
        began, lasts, even = span[p, BEGAN], span[p, LASTS], part[p, ENDING] == 0
        while f >= 0 and began + amount[at(f), END] <= min(other, last):
            end, had = amount[at(f), END], amount[at(f), LEFT]
            if count == 0:
                now = max(now, began + end)
            if weighted:
                weight = weights[f]
            # What it moved in this quantum: at its own rate if that did not change, else what the filling set aside for it.
            if even:
                moved = weight * link[-1 - route[at(f), hops], LEVEL]
                moved = (min(moved, caps[f]) if capped else moved) * end
            else:
                moved = had / lasts * lasts
            in_all = amount[at(f), ASKED] - (had - moved)
            amount[at(f), ASKED] = in_all  # counted by pair some day: see settle
            for h in range(hops):
                k = route[at(f), h]
                if k == -1:
                    break
                if k < 0:  # a link that cannot be full
                    k = -2 - k
                    link[at(k), THROUGH] += in_all
                    place[at(k), FLOWS] -= 1
                    if place[at(k), FLOWS] == 0:
                        link[at(k), BUSY] += began + end - link[at(k), UNTIL]
                else:
                    link[at(k), GONE] += had
                    link[at(k), WEIGHT] -= weight
                    place[at(k), FLOWS] -= 1
                    if place[at(k), FLOWS] == 0:
                        link[at(k), WEIGHT] = 0.0
                        link[at(k), BUSY] += end
            route[at(f), hops + 1] = ENDED
            for side in range(SOURCE, DESTINATION + 1):
                counter = number[at(f), side]
                pending[counter] -= 1
                if pending[counter] == 0:
                    if count == 0:  # ends of the same instant belong together, however rounding has put them
                        last = (began + end) * (1 + SAME)
                    woken[count] = counter
                    count += 1
            part[p, MANY] -= 1
            ended += 1
            f = number[at(f), NEXT]
        part[p, FIRST] = f
        span[p, THEN] = began + (amount[at(f), END] if f >= 0 else lasts)
        if part[p, MANY] == 0:
            return p, count, now, last, ended


@lean
def _strike(route: NDArray[Any], pool: NDArray[np.int32], lists: Ints, which: int) -> None:
    """Strike flows that were taken away off the list of a part."""
    first = lists[which, START]
    kept = first
    for i in range(first, first + lists[which, LENGTH]):
        if route[pool[i], route.shape[1] - 1] != ENDED:
            pool[kept] = pool[i]
            kept += 1
    lists[which, LENGTH] = kept - first


@lean
def advance(s: State, horizon: float, now: float, share: float, guard: float, pending: Ints, woken: Ints) -> tuple[float, int, int]:
    """Let time pass until a counter reaches zero, or to the horizon; return the time, how many counters, and how many flows ended."""
    ended, count, last = 0, 0, horizon
    while True:
        p, count, now, last, many = _end_flows(
            s.route,
            s.amount,
            s.number,
            s.weight,
            s.cap,
            s.link,
            s.place,
            s.span,
            s.part,
            s.active,
            now,
            last,
            pending,
            woken,
            count,
        )
        ended += many
        if p < 0:
            break
        if s.part[p, MANY] == 0:
            close(s, p, s.span[p, LASTS])
            dissolve(s, p)
            continue
        if count:
            break
        halved = 2 * s.part[p, MANY] <= s.part[p, CHECKED]
        if halved or s.part[p, STALE]:
            _strike(s.route, s.pool, s.list, len(s.place) + p)
        if not s.part[p, STALE]:
            close(s, p, s.span[p, LASTS])
            s.span[p, BEGAN] += s.span[p, LASTS]
        if halved:
            fall_apart(s, p, share, guard)
        else:
            start_quantum(s, p, share, guard)
    if count:
        return now, count, ended
    return (now if ended and s.active[0] == 0 else horizon), 0, ended
