"""Rates of one quantum, found by groups: as in :mod:`~moesim.models.sharing.quanta_fill`, for flows without weights and caps.

From one quantum to the next hardly any flow is limited by another link than before. So flows that one link limits stay a *group*, which
stands at the head of the list of its link, and it is known how many of them cross which other links. A filling then takes links in the
order of their fair shares and fixes a group with a few sums over these counts.

All members of a group move at one rate, so it is written down once what each of them has been given (GIVEN). A member ends when this
reaches what is written for it (LEFT: bytes to carry, and GIVEN when it joined). Members that may end within the next few quanta stand
before the others; only these are looked at. A flow is touched when it ends or changes groups, and once in these few quanta.

A row of counts takes 8 B for each link. Where that is too much, the largest groups have rows and the flows of others are fixed one by one.

Tried and lost: flows whose two links have nearly the same level stay with the one that limited them. Links that many flows share change
places in the order of levels often, and all these flows change groups each time; but holding them back does not make that less, only later,
since what one link gives too much another lacks, and their levels part.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.facts.arrays import Floats, Ints
from moesim.models.sharing.compiled import at, lean, wide
from moesim.models.sharing.quanta_order import sink
from moesim.models.sharing.quanta_state import (
    CAPACITY,
    EDGE,
    ENDED,
    GIVEN,
    HEAD_LENGTH,
    LEFT,
    LENGTH,
    LEVEL,
    MARK,
    MEMBERS,
    NEAR,
    OWN,
    OWN_WEIGHT,
    PART,
    RISING,
    ROW,
    SOON,
    START,
    USED,
    State,
)

SPAN = 4.0
"""The members of a group that can end within so many quanta like this one are set apart."""
MANY_FLOWS = 2
"""Where not all groups can have rows of counts, those do that have so many times as many members as there are links."""


@lean
def _count(
    route: NDArray[Any], place: Ints, crossing: NDArray[Any], near: NDArray[Any], shared: NDArray[np.int32], f: int, group: int, sign: int
) -> None:
    """Count a flow among (1) or no more among (-1) the members of a group that cross the other links of its route."""
    row = place[group, ROW]
    if row < 0:
        return
    place_of, links, flows = crossing[at(row)], near[at(row)], shared[at(row)]
    for h in range(route.shape[1] - 2):
        k = route[at(f), at(h)]
        if k < 0:
            break
        if k == group:
            continue
        i = wide(place_of[at(k)]) - 1
        if i < 0:
            i = place[group, NEAR]
            links[at(i)], flows[at(i)] = k, 0
            place[group, NEAR] = i + 1
            place_of[at(k)] = i + 1
        flows[at(i)] += sign
        if flows[at(i)] == 0:
            last = place[group, NEAR] - 1
            place[group, NEAR] = last
            other = links[at(last)]
            links[at(i)], flows[at(i)] = other, flows[at(last)]
            place_of[at(other)] = i + 1
            place_of[at(k)] = 0


@lean
def expel(s: State, f: int) -> None:
    """Take a flow out of its group, if it is in one."""
    group = s.route[f, s.route.shape[1] - 2]
    if group >= 0 and s.crossing.size > 0:
        s.place[group, MEMBERS] -= 1
        _count(s.route, s.place, s.crossing, s.near, s.shared, f, group, -1)
        s.route[f, s.route.shape[1] - 2] = -1
        s.amount[f, LEFT] = max(s.amount[f, LEFT] - s.link[group, GIVEN], 0.0)


@lean
def disband(s: State, flows: NDArray[np.int32]) -> None:
    """Let there be no groups any more; the flows are all that are on their way."""
    for f in flows:
        limit = s.route[f, s.route.shape[1] - 2]
        expel(s, f)
        # It moves on as this link lets it until its quantum is over.
        s.route[f, s.route.shape[1] - 2] = limit
        s.route[f, s.route.shape[1] - 1] = s.part[s.place[s.route[f, 0], PART], MARK]
    s.link[:, GIVEN] = 0.0


@lean
def _send_back(route: NDArray[Any], place: Ints, pool: NDArray[np.int32], k: int, first: int) -> None:
    """Let those that have left a group step back behind the head of the list, where they are found soon if they return."""
    hops = route.shape[1] - 2
    i, head = first, first + place[k, HEAD_LENGTH]
    while i < head:
        f = pool[at(i)]
        if route[at(f), hops] == k:
            i += 1
        else:
            head -= 1
            pool[at(i)], pool[at(head)] = pool[at(head)], f
    place[k, HEAD_LENGTH] = head - first
    place[k, SOON] = min(place[k, SOON], head - first)


@lean
def _assemble(  # noqa: PLR0917
    route: NDArray[Any],
    left: Floats,
    link: Floats,
    place: Ints,
    pool: NDArray[np.int32],
    crossing: NDArray[Any],
    near: NDArray[Any],
    shared: NDArray[np.int32],
    k: int,
    first: int,
    length: int,
    mark: int,
    wanted: int,
) -> int:
    """Make the flows of a link that still rise, so many are wanted, its group and the head of its list; return the list's length.

    The head holds members only. Flows that ended are struck off as far as the list is read.
    """
    hops, last = route.shape[1] - 2, route.shape[1] - 1
    head, end = first + place[k, HEAD_LENGTH], first + length
    given, edge, soon = link[k, GIVEN], link[k, EDGE], first + place[k, SOON]
    i = head
    while head - first < wanted and i < end:
        f = pool[at(i)]
        if route[at(f), last] == ENDED:
            end -= 1
            pool[at(i)] = pool[at(end)]
            continue
        group = route[at(f), hops]
        if link[group, LEVEL] == np.inf if group >= 0 else route[at(f), last] != mark:
            if group >= 0:
                place[group, MEMBERS] -= 1
                _count(route, place, crossing, near, shared, f, group, -1)
                left[at(f)] = max(left[at(f)] - link[group, GIVEN], 0.0)
            route[at(f), hops] = k
            left[at(f)] += given
            _count(route, place, crossing, near, shared, f, k, 1)
            pool[at(i)] = pool[at(head)]
            if left[at(f)] <= edge:
                pool[at(head)], pool[at(soon)] = pool[at(soon)], f
                soon += 1
            else:
                pool[at(head)] = f
            head += 1
        i += 1
    place[k, MEMBERS] = place[k, HEAD_LENGTH] = head - first
    place[k, SOON] = soon - first
    return end - first


@lean
def _look_ahead(left: Floats, link: Floats, place: Ints, pool: NDArray[np.int32], k: int, start: int, many: int, edge: float) -> None:
    """Put the members of a group that have no more than ``edge`` bytes to go at the front, and count anew what the group is given."""
    given = link[k, GIVEN]
    soon = start
    for i in range(start, start + many):
        f = pool[at(i)]
        left[at(f)] = max(left[at(f)] - given, 0.0)
        if left[at(f)] <= edge:
            pool[at(i)], pool[at(soon)] = pool[at(soon)], f
            soon += 1
    link[k, GIVEN], link[k, EDGE] = 0.0, edge
    place[k, SOON] = soon - start


@lean
def _take_out(  # noqa: PLR0917
    route: NDArray[Any],
    left: Floats,
    ending: NDArray[np.int32],
    tide: Floats,
    link: Floats,
    place: Ints,
    pool: NDArray[np.int32],
    crossing: NDArray[Any],
    near: NDArray[Any],
    shared: NDArray[np.int32],
    k: int,
    start: int,
    many: int,
    mark: int,
    size: float,
    lasts: float,
    ended: int,
) -> tuple[int, int]:
    """Take the members of a group that have no more than ``size`` bytes to go out of it: they end within the quantum.

    Returns how many stay, and how many flows of all groups end.
    """
    hops = route.shape[1] - 2
    if link[k, GIVEN] + size > link[k, EDGE]:
        _look_ahead(left, link, place, pool, k, start, many, SPAN * size)
    given = link[k, GIVEN]
    limit = given + size
    i, soon, end = start, start + place[k, SOON], start + many
    while i < soon:
        f = pool[at(i)]
        if left[at(f)] > limit:
            i += 1
            continue
        end -= 1
        soon -= 1
        pool[at(i)], pool[at(soon)], pool[at(end)] = pool[at(soon)], pool[at(end)], f
        left[at(f)] = max(left[at(f)] - given, 0.0)
        _count(route, place, crossing, near, shared, f, k, -1)
        route[at(f), hops], route[at(f), hops + 1] = -1 - k, mark
        rate = left[at(f)] / lasts
        link[k, OWN] += rate
        link[k, OWN_WEIGHT] += 1.0
        for h in range(hops):
            c = route[at(f), h]
            if c < 0:
                break
            tide[at(c), USED] += rate
            tide[at(c), RISING] -= 1.0
        ending[ended] = f
        ended += 1
    place[k, MEMBERS] = place[k, HEAD_LENGTH] = end - start
    place[k, SOON] = soon - start
    return end - start, ended


@lean
def _begin_group(link: Floats, place: Ints, rows: Ints, k: int, wanted: int) -> None:
    """Make a group of which nobody is a member ready for some; it gets a row of counts if they are many and there is one."""
    place[k, HEAD_LENGTH] = place[k, SOON] = 0
    link[k, GIVEN] = link[k, EDGE] = 0.0
    if rows.size == 0:
        return
    if place[k, ROW] < 0:
        if wanted >= MANY_FLOWS * len(place) and rows[0] > 0:
            place[k, ROW] = rows[rows[0]]
            rows[0] -= 1
    elif wanted < len(place):
        rows[0] += 1
        rows[rows[0]] = place[k, ROW]
        place[k, ROW] = -1


@lean
def _fix(route: NDArray[Any], tide: Floats, pool: NDArray[np.int32], k: int, start: int, many: int, level: float) -> None:
    """Let the members of a group rise no further, one by one; what their own link carries is added up by the caller."""
    hops = route.shape[1] - 2
    for i in range(start, start + many):
        f = pool[at(i)]
        for h in range(hops):
            c = route[at(f), h]
            if c < 0:
                break
            if c != k:
                tide[at(c), USED] += level
                tide[at(c), RISING] -= 1.0


@lean
def levels(  # noqa: C901, PLR0912, PLR0917
    route: NDArray[Any],
    left: Floats,
    ending: NDArray[np.int32],
    tide: Floats,
    link: Floats,
    place: Ints,
    lists: Ints,
    pool: NDArray[np.int32],
    key: Floats,
    heap: Ints,
    crossing: NDArray[Any],
    near: NDArray[Any],
    shared: NDArray[np.int32],
    rows: Ints,
    mark: int,
    count: int,
    lasts: float,
) -> int:
    """Fix the groups of a part in order of level; write the flows that end within ``lasts``, and return how many they are."""
    ended = 0
    reached = 0.0
    while count > 0:
        k = heap[0]
        many = 0
        level = 0.0
        if tide[at(k), RISING] > 0:
            following = np.inf if count < 2 else (key[1] if count < 3 else min(key[1], key[2]))
            following *= 1 + 1e-13
            level = max((tide[at(k), CAPACITY] - tide[at(k), USED]) / tide[at(k), RISING], reached)
            if level > following:
                sink(key, heap, count, 0, level, k)
                continue
            start, wanted = lists[at(k), START], int(tide[at(k), RISING])
            if place[at(k), MEMBERS] == 0:
                _begin_group(link, place, rows, k, wanted)
            elif place[at(k), MEMBERS] != place[at(k), HEAD_LENGTH]:
                _send_back(route, place, pool, k, start)
            many = place[at(k), MEMBERS]
            complete, again = wanted == many, False
            while (many > 0 or not complete) and level <= following:
                stay = many
                if many > 0:
                    stay, ended = _take_out(
                        route,
                        left,
                        ending,
                        tide,
                        link,
                        place,
                        pool,
                        crossing,
                        near,
                        shared,
                        k,
                        start,
                        many,
                        mark,
                        level * lasts,
                        lasts,
                        ended,
                    )
                if stay < many and not complete:
                    # What its members leave that end may be enough to let another link have the flows that are to join.
                    again = True
                    break
                if not complete:
                    lists[at(k), LENGTH] = _assemble(
                        route, left, link, place, pool, crossing, near, shared, k, start, lists[at(k), LENGTH], mark, wanted
                    )
                    many, complete = place[at(k), MEMBERS], True
                elif stay == many:
                    reached = link[at(k), LEVEL] = level
                    link[at(k), OWN] += many * level
                    link[at(k), OWN_WEIGHT] += many
                    tide[at(k), USED] += many * level
                    row = place[at(k), ROW]
                    if row >= 0:
                        links, flows = near[row], shared[row]
                        for i in range(at(place[at(k), NEAR])):
                            c, crossed = at(links[i]), float(flows[i])
                            tide[c, USED] += crossed * level
                            tide[c, RISING] -= crossed
                    else:
                        _fix(route, tide, pool, k, start, many, level)
                    many = 0
                else:
                    many = stay
                    if many > 0:
                        level = max((tide[at(k), CAPACITY] - tide[at(k), USED]) / many, reached)
            if again:
                continue
        if many > 0:
            sink(key, heap, count, 0, level, k)
        else:
            count -= 1
            if count > 0:
                sink(key, heap, count, 0, key[count], heap[count])
    return ended
