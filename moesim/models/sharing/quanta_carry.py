"""What flows and links carry in a quantum, or in what has passed of it."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.facts.arrays import Floats, Ints
from moesim.models.sharing.compiled import at, lean, making_arrays
from moesim.models.sharing.quanta_fill import fill_again
from moesim.models.sharing.quanta_state import (
    ASKED,
    BEGAN,
    BUSY,
    CAPACITY,
    END,
    ENDED,
    ENDING,
    FIRST,
    FLOWS,
    FOLLOWING,
    GIVEN,
    GONE,
    HEAD,
    LASTS,
    LEFT,
    LENGTH,
    LEVEL,
    LOAD,
    NEXT,
    PAIR,
    PART,
    SERVICE,
    STALE,
    START,
    SUM,
    THEN,
    THROUGH,
    UNTIL,
    USED,
    State,
)


@lean
def _shares(
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


@lean
def _take(
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


@lean
def _moved(s: State, p: int, left: Floats, passed: float, even: bool, take: bool) -> None:
    """Write to SERVICE what each link of a part carried in ``passed`` seconds of its quantum; with ``take``, take it from ``left``."""
    link, place, which, end = s.link, s.place, len(s.place) + p, s.amount[:, END]
    if not even:
        _shares(s.route, left, end, s.number[:, NEXT], s.tide, link, place, s.part[p, HEAD], s.part[p, FIRST], passed, s.span[p, LASTS])
    k = s.part[p, HEAD]
    while k >= 0:
        link[k, SERVICE] = s.tide[k, USED] * passed if even else link[k, GONE]
        k = place[k, FOLLOWING]
    if take or not even:
        s.list[which, LENGTH] = _take(
            s.route, left, end, s.weight, s.cap, link, s.pool, s.list[which, START], s.list[which, LENGTH], passed, even, take
        )


@lean
def _give(s: State, p: int, passed: float) -> None:
    """Take what they have carried from the flows of a part that are in groups, and write to SERVICE what each link carried."""
    route, left, end = s.route, s.amount[:, LEFT], s.amount[:, END]
    hops = route.shape[1] - 2
    k = s.part[p, HEAD]
    while k >= 0:
        s.link[at(k), SERVICE] = s.tide[at(k), USED] * passed if passed > 0.0 else s.link[at(k), GONE]
        if s.link[at(k), LEVEL] < np.inf:
            s.link[at(k), GIVEN] += s.link[at(k), LEVEL] * passed
        k = s.place[at(k), FOLLOWING]
    f = s.part[p, FIRST]
    while f >= 0:
        if route[f, hops + 1] != ENDED:
            left[f] -= left[f] if end[f] <= passed else left[f] * (passed / end[f])
        f = s.number[f, NEXT]


@lean
def bring(s: State, p: int, now: float) -> None:
    """Bring a part up to ``now``: its quantum is over, rates must be found anew."""
    began = s.span[p, BEGAN]
    s.span[p, BEGAN] = s.span[p, THEN] = max(now, began)
    if not s.part[p, STALE]:
        close(s, p, min(max(now - began, 0.0), s.span[p, LASTS]))


@lean
def bring_all(s: State, links: Ints, now: float) -> None:
    """Bring the parts of some links up to ``now``."""
    for k in links:
        p = s.place[k, PART]
        if p >= 0 and not (s.part[p, STALE] and s.span[p, BEGAN] >= now):
            bring(s, p, now)


@lean
def close(s: State, p: int, passed: float) -> None:
    """Write down what was carried in the quantum of a part, which is over after ``passed`` seconds."""
    even = s.part[p, ENDING] == 0 or (passed >= s.span[p, LASTS] and s.part[p, FIRST] < 0)
    if not even and 0.0 < passed < s.span[p, LASTS]:
        fill_again(s, p, passed)
        even = True
    link, place = s.link, s.place
    if s.crossing.size > 0:
        _give(s, p, passed)
    else:
        _moved(s, p, s.amount[:, LEFT], passed, even, True)
    k = s.part[p, HEAD]
    while k >= 0:
        link[at(k), THROUGH] += link[at(k), SERVICE]
        link[at(k), LOAD] = max(link[at(k), LOAD] - link[at(k), SERVICE], 0.0)
        link[at(k), GONE] = 0.0
        if place[at(k), FLOWS] > 0:
            link[at(k), BUSY] += passed
        k = place[at(k), FOLLOWING]
    s.part[p, STALE] = 1
    s.part[p, FIRST] = -1


@lean
def settle(s: State, many: int) -> None:
    """Count what flows have brought that have ended, of the first so many, by pair.

    It is done for many at once, in the order of their numbers, which is mostly that of pairs: ends come in no such order, and counting at
    each would wait for memory.
    """
    for f in range(many):
        if s.route[at(f), s.route.shape[1] - 1] == ENDED:
            s.carried[s.number[at(f), PAIR]] += s.amount[at(f), ASKED]
            s.amount[at(f), ASKED] = 0.0


@making_arrays
def so_far(s: State, now: float, busy: Floats, through: Floats, pruned: bool) -> None:
    """Add to ``busy`` and ``through`` what links have done since the quanta of their parts began; change nothing that matters later."""
    grouped = s.crossing.size > 0
    left = s.amount[:, LEFT].copy() if pruned or grouped else s.amount[:, LEFT]
    if grouped:
        for i in range(s.active[0]):
            which = len(s.place) + s.active[1 + i]
            for j in range(s.list[which, START], s.list[which, START] + s.list[which, LENGTH]):
                f = s.pool[j]
                if s.route[f, -1] != ENDED and s.route[f, -2] >= 0:
                    left[f] = max(left[f] - s.link[s.route[f, -2], GIVEN], 0.0)
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
                    through[-2 - s.route[f, h]] += s.amount[f, ASKED] - left[f]
    for k in range(len(busy)):
        if s.place[k, PART] < 0 and s.place[k, FLOWS] > 0:  # a link that cannot be full
            busy[k] += now - s.link[k, UNTIL]
