"""Rates of one quantum, found by groups: as in :mod:`~moesim.models.sharing.quanta_fill`, for flows without weights and caps.

From one quantum to the next hardly any flow is limited by another link than before. So flows that one link limits stay a *group*, which
stands at the head of the list of its link, and it is known how many of them cross which other links. A filling then takes links in the
order of their fair shares and fixes a group with a few sums over these counts. A flow is looked at to see whether it ends, and touched
only if it does, or changes groups.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.facts.arrays import Floats, Ints
from moesim.models.sharing.compiled import lean
from moesim.models.sharing.quanta_order import sink
from moesim.models.sharing.quanta_state import (
    CAPACITY,
    ENDED,
    HEAD_LENGTH,
    LENGTH,
    LEVEL,
    MARK,
    MEMBERS,
    NEAR,
    OWN,
    OWN_WEIGHT,
    PART,
    RISING,
    START,
    USED,
    State,
)


@lean
def _count(
    route: NDArray[Any], place: Ints, crossing: NDArray[Any], near: NDArray[Any], shared: NDArray[np.int32], f: int, group: int, sign: int
) -> None:
    """Count a flow among (1) or no more among (-1) the members of a group that cross the other links of its route."""
    for h in range(route.shape[1] - 2):
        k = route[f, h]
        if k < 0:
            break
        if k == group:
            continue
        at = crossing[group, k] - 1
        if at < 0:
            at = place[group, NEAR]
            near[group, at], shared[group, at] = k, 0
            place[group, NEAR] = crossing[group, k] = at + 1
        shared[group, at] += sign
        if shared[group, at] == 0:
            last = place[group, NEAR] - 1
            place[group, NEAR] = last
            other = near[group, last]
            near[group, at], shared[group, at] = other, shared[group, last]
            crossing[group, other] = at + 1
            crossing[group, k] = 0


@lean
def expel(s: State, f: int) -> None:
    """Take a flow out of its group, if it is in one."""
    group = s.route[f, s.route.shape[1] - 2]
    if group >= 0 and s.crossing.size > 0:
        s.place[group, MEMBERS] -= 1
        _count(s.route, s.place, s.crossing, s.near, s.shared, f, group, -1)
        s.route[f, s.route.shape[1] - 2] = -1


@lean
def disband(s: State, flows: Ints) -> None:
    """Let there be no groups any more; the flows are all that are on their way."""
    for f in flows:
        limit = s.route[f, s.route.shape[1] - 2]
        expel(s, f)
        # It moves on as this link lets it until its quantum is over.
        s.route[f, s.route.shape[1] - 2] = limit
        s.route[f, s.route.shape[1] - 1] = s.part[s.place[s.route[f, 0], PART], MARK]


@lean
def _assemble(
    route: NDArray[Any],
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

    Those that have left the group step back behind the head, where they are found soon if they return. Flows that ended are struck off as
    far as the list is read.
    """
    hops, last = route.shape[1] - 2, route.shape[1] - 1
    head, end = first + place[k, HEAD_LENGTH], first + length
    if place[k, MEMBERS] != place[k, HEAD_LENGTH]:
        at = first
        while at < head:
            f = pool[at]
            if route[f, hops] == k:
                at += 1
            else:
                head -= 1
                pool[at], pool[head] = pool[head], f
    at = head
    while head - first < wanted and at < end:
        f = pool[at]
        if route[f, last] == ENDED:
            end -= 1
            pool[at] = pool[end]
            continue
        group = route[f, hops]
        if link[group, LEVEL] == np.inf if group >= 0 else route[f, last] != mark:
            if group >= 0:
                place[group, MEMBERS] -= 1
                _count(route, place, crossing, near, shared, f, group, -1)
            route[f, hops] = k
            _count(route, place, crossing, near, shared, f, k, 1)
            pool[at], pool[head] = pool[head], f
            head += 1
        at += 1
    place[k, MEMBERS] = place[k, HEAD_LENGTH] = head - first
    return end - first


@lean
def _take_out(  # noqa: PLR0917
    route: NDArray[Any],
    left: Floats,
    following_end: NDArray[np.int32],
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
    first: int,
) -> tuple[int, int]:
    """Take the members of a group that have no more than ``size`` bytes to go out of it: they end within the quantum.

    Returns how many stay, and the first of the list of all flows that end.
    """
    hops = route.shape[1] - 2
    at, end = start, start + many
    while at < end:
        f = pool[at]
        if left[f] > size:
            at += 1
            continue
        end -= 1
        pool[at], pool[end] = pool[end], f
        _count(route, place, crossing, near, shared, f, k, -1)
        route[f, hops], route[f, hops + 1] = -1 - k, mark
        rate = left[f] / lasts
        link[k, OWN] += rate
        link[k, OWN_WEIGHT] += 1.0
        for h in range(hops):
            c = route[f, h]
            if c < 0:
                break
            tide[c, USED] += rate
            tide[c, RISING] -= 1.0
        following_end[f] = first
        first = f
    place[k, MEMBERS] = place[k, HEAD_LENGTH] = end - start
    return end - start, first


@lean
def levels(  # noqa: PLR0917
    route: NDArray[Any],
    left: Floats,
    following_end: NDArray[np.int32],
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
    mark: int,
    count: int,
    lasts: float,
) -> int:
    """Fix the groups of a part in order of level; return the first of a list of the flows that end within ``lasts``."""
    first = -1
    reached = 0.0
    while count > 0:
        k = heap[0]
        many = 0
        level = 0.0
        if tide[k, RISING] > 0:
            following = np.inf if count < 2 else (key[1] if count < 3 else min(key[1], key[2]))
            following *= 1 + 1e-13
            level = max((tide[k, CAPACITY] - tide[k, USED]) / tide[k, RISING], reached)
            if level > following:
                sink(key, heap, count, 0, level, k)
                continue
            start, wanted = lists[k, START], int(tide[k, RISING])
            if wanted != place[k, MEMBERS] or wanted != place[k, HEAD_LENGTH]:
                lists[k, LENGTH] = _assemble(route, link, place, pool, crossing, near, shared, k, start, lists[k, LENGTH], mark, wanted)
            many = place[k, MEMBERS]
            while many > 0 and level <= following:
                stay, first = _take_out(
                    route,
                    left,
                    following_end,
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
                    first,
                )
                if stay == many:
                    reached = link[k, LEVEL] = level
                    link[k, OWN] += many * level
                    link[k, OWN_WEIGHT] += many
                    tide[k, USED] += many * level
                    for at in range(place[k, NEAR]):
                        tide[near[k, at], USED] += shared[k, at] * level
                        tide[near[k, at], RISING] -= shared[k, at]
                    many = 0
                else:
                    many = stay
                    if many > 0:
                        level = max((tide[k, CAPACITY] - tide[k, USED]) / many, reached)
        if many > 0:
            sink(key, heap, count, 0, level, k)
        else:
            count -= 1
            if count > 0:
                sink(key, heap, count, 0, key[count], heap[count])
    return first
