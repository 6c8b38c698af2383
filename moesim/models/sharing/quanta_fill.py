"""Rates of one quantum: water-filling by bytes, in which a flow takes no more than it has left.

A quantum of ``h`` seconds gives link k the room for ``capacity[k] * h`` bytes. Levels rise together from zero; a flow stops at what it has
left (it ends within the quantum), at its own cap, or when one of its links is full. What a flow leaves over goes to all others on its
links at once, so that no link is overdrawn over the quantum and none is left idle that somebody could use.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.facts.arrays import Floats, Ints
from moesim.models.sharing.compiled import at, lean, making_arrays
from moesim.models.sharing.quanta_ends import chain, first_guess, share_out
from moesim.models.sharing.quanta_groups import expel, levels
from moesim.models.sharing.quanta_order import in_order, sink
from moesim.models.sharing.quanta_state import (
    BEGAN,
    BORN,
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
    HEAD_LENGTH,
    JOINED,
    LASTS,
    LEFT,
    LENGTH,
    LEVEL,
    LOAD,
    MANY,
    MARK,
    NEXT,
    OWN,
    OWN_WEIGHT,
    PART,
    RISERS,
    RISING,
    SERVICE,
    STALE,
    START,
    SUM,
    THEN,
    UNTIL,
    USED,
    WEIGHT,
    State,
    rate_of,
)

SAME = 1e-12
"""Ends that differ by less than this share are one instant: rounding of one division and one sum is thousands of times smaller."""


@lean
def _settle(route: NDArray[Any], tide: Floats, link: Floats, f: int, limit: int, code: int, rate: float, weight: float, mark: int) -> None:
    """Let a flow rise no further; ``code`` is link ``limit``, or -1 - ``limit`` if the flow ends."""
    hops = route.shape[1] - 2
    route[f, hops + 1] = mark
    route[f, hops] = code
    link[limit, OWN] += rate
    link[limit, OWN_WEIGHT] += weight
    for h in range(hops):
        k = route[f, h]
        if k < 0:
            break
        tide[k, USED] += rate
        tide[k, RISING] -= weight
        tide[k, RISERS] -= 1.0


@lean
def _settle_all(
    route: NDArray[Any], tide: Floats, flows: NDArray[np.int32], count: int, weights: Floats, limit: int, level: float, mark: int
) -> None:
    """Let the flows that a link limits rise no further; what the link itself carries is added up by the caller."""
    hops, weighted = route.shape[1] - 2, weights.size > 0
    weight = 1.0
    for i in range(count):
        f = flows[i]
        if route[f, hops + 1] == mark:  # a route that crosses a link twice is on its list twice
            continue
        route[f, hops + 1] = mark
        route[f, hops] = limit
        if weighted:
            weight = weights[f]
        rate = weight * level
        for h in range(hops):
            k = route[f, h]
            if k < 0:
                break
            if k != limit:
                tide[k, USED] += rate
                tide[k, RISING] -= weight
                if weighted:
                    tide[k, RISERS] -= 1.0


@lean
def _begin(
    p: int, head: int, tide: Floats, link: Floats, place: Ints, lists: Ints, key: Floats, heap: Ints
) -> tuple[int, float, float, int]:
    """Empty the links of a part; return how many have flows, how soon one and all can be done, and the length of the longest list."""
    count, soonest, bound, longest = 0, np.inf, 0.0, 0
    before = -1
    k = head
    while k >= 0:
        following = place[at(k), FOLLOWING]
        used = tide[at(k), USED]
        tide[at(k), USED] = 0.0
        for column in (GONE, OWN, OWN_WEIGHT, SERVICE, UNTIL, SUM):
            link[at(k), column] = 0.0
        link[at(k), LEVEL] = np.inf
        if place[at(k), FLOWS] > 0:
            tide[at(k), RISING], tide[at(k), RISERS] = link[at(k), WEIGHT], place[at(k), FLOWS]
            needs = link[at(k), LOAD] / tide[at(k), CAPACITY]
            bound = max(bound, needs)
            soonest = min(soonest, link[at(k), LOAD] / used if used > 0 else needs)
            key[at(count)], heap[at(count)] = tide[at(k), CAPACITY] / link[at(k), WEIGHT], k
            count += 1
            longest = max(longest, lists[at(k), LENGTH])
            before = k
        else:
            lists[at(k), LENGTH] = place[at(k), HEAD_LENGTH] = 0
            link[at(k), LOAD] = 0.0
            if k != p and before >= 0:  # nobody is left on it: it is free to belong elsewhere
                place[before, FOLLOWING] = following
                place[at(k), PART] = -1
            else:
                before = k
        k = following
    for i in range(count // 2 - 1, -1, -1):
        sink(key, heap, count, i, key[i], heap[i])
    return count, soonest, bound, longest


@lean
def _still_rising(
    route: NDArray[Any], pool: NDArray[np.int32], first: int, length: int, mark: int, rising: NDArray[np.int32], wanted: int
) -> tuple[int, int]:
    """Write the flows of a link that still rise, so many are wanted; return how many there are, and the length of the link's list.

    They move to the front of the list and keep their order, so the next filling, in which nearly the same flows rise here, finds them
    without a look at the others. Flows that ended are struck off as far as the list is read.
    """
    at, end = first, first + length
    count = 0
    last = route.shape[1] - 1
    while count < wanted and at < end:
        f = pool[at]
        state = route[f, last]
        if state == ENDED:
            end -= 1
            pool[at] = pool[end]
            continue
        if state != mark:
            pool[at] = pool[first + count]
            pool[first + count] = f
            rising[count] = f
            count += 1
        at += 1
    return count, end - first


@lean
def _levels(  # noqa: C901, PLR0912, PLR0917
    route: NDArray[Any],
    left: Floats,
    ending: NDArray[np.int32],
    weights: Floats,
    caps: Floats,
    tide: Floats,
    link: Floats,
    lists: Ints,
    pool: NDArray[np.int32],
    key: Floats,
    heap: Ints,
    rising: NDArray[np.int32],
    mark: int,
    count: int,
    lasts: float,
) -> int:
    """Settle all flows of a part, link by link in order of level; write those that end within ``lasts``, and return how many they are."""
    weighted, capped, last = weights.size > 0, caps.size > 0, route.shape[1] - 1
    ended = 0
    reached, weight, cap = 0.0, 1.0, np.inf
    while count > 0:
        k = heap[0]
        many = 0
        level = 0.0
        wanted = int(tide[k, RISERS if weighted else RISING])
        if wanted > 0:
            following = np.inf if count < 2 else (key[1] if count < 3 else min(key[1], key[2]))
            following *= 1 + 1e-13
            level = max((tide[k, CAPACITY] - tide[k, USED]) / tide[k, RISING], reached)
            if level > following:
                sink(key, heap, count, 0, level, k)
                continue
            many, lists[k, LENGTH] = _still_rising(route, pool, lists[k, START], lists[k, LENGTH], mark, rising, wanted)
            while many > 0 and level <= following:
                kept, sum_of_weights = 0, 0.0
                for i in range(many):
                    f = rising[i]
                    if weighted:
                        weight = weights[f]
                    if capped:
                        cap = caps[f]
                    if left[f] > min(weight * level, cap) * lasts and cap > weight * level:
                        rising[kept] = f
                        kept += 1
                        sum_of_weights += weight
                    elif route[f, last] != mark:  # a route that crosses a link twice is on its list twice
                        if left[f] <= min(weight * level, cap) * lasts:
                            _settle(route, tide, link, f, k, -1 - k, left[f] / lasts, weight, mark)
                            ending[ended] = f
                            ended += 1
                        else:
                            _settle(route, tide, link, f, k, k, cap, weight, mark)
                if kept == many:
                    reached = link[k, LEVEL] = level
                    _settle_all(route, tide, rising, many, weights, k, level, mark)
                    link[k, OWN] += sum_of_weights * level
                    link[k, OWN_WEIGHT] += sum_of_weights
                    tide[k, USED] += sum_of_weights * level
                    kept = 0
                elif kept > 0:
                    tide[k, RISING], tide[k, RISERS] = sum_of_weights, kept
                    level = max((tide[k, CAPACITY] - tide[k, USED]) / sum_of_weights, reached)
                many = kept
        if many > 0:
            sink(key, heap, count, 0, level, k)
        else:
            count -= 1
            if count > 0:
                sink(key, heap, count, 0, key[count], heap[count])
    return ended


@lean
def _until_first_end(
    route: NDArray[Any],
    left: Floats,
    end: Floats,
    following_end: NDArray[np.int32],
    weight: Floats,
    cap: Floats,
    link: Floats,
    pool: NDArray[np.int32],
    start: int,
    length: int,
) -> tuple[int, float]:
    """Find the first end at the rates found, which are exact until then; return the first of a list of flows that end then, and when."""
    hops = route.shape[1] - 2
    soonest, first = np.inf, -1
    for i in range(start, start + length):
        f = pool[at(i)]
        if route[at(f), hops + 1] == ENDED:
            continue
        k = route[at(f), hops]
        soonest = min(soonest, max(left[at(f)] - link[at(k), GIVEN], 0.0) / rate_of(link, weight, cap, f, k))
    for i in range(start, start + length):
        f = pool[at(i)]
        if route[at(f), hops + 1] == ENDED:
            continue
        k = route[at(f), hops]
        if max(left[at(f)] - link[at(k), GIVEN], 0.0) / rate_of(link, weight, cap, f, k) <= soonest * (1 + SAME):
            end[f] = soonest
            following_end[f] = first
            first = f
    return first, soonest


@making_arrays
def _fill(s: State, p: int, count: int, longest: int, lasts: float) -> NDArray[np.int32]:
    """Find the level of every flow of a part whose links are empty; return those that end within ``lasts``."""
    left, mark = s.amount[:, LEFT], s.part[p, MARK]
    ending = np.empty(s.part[p, MANY], dtype=np.int32)
    if s.crossing.size > 0:
        many = levels(
            s.route,
            left,
            ending,
            s.tide,
            s.link,
            s.place,
            s.list,
            s.pool,
            s.key,
            s.heap,
            s.crossing,
            s.near,
            s.shared,
            s.rows,
            mark,
            count,
            lasts,
        )
        return ending[:many]
    rising = np.empty(longest + 1, dtype=np.int32)
    many = _levels(s.route, left, ending, s.weight, s.cap, s.tide, s.link, s.list, s.pool, s.key, s.heap, rising, mark, count, lasts)
    return ending[:many]


@lean
def announce(s: State, p: int) -> None:
    """Write when something happens next in a part: its next end, or the end of its quantum."""
    f = s.part[p, FIRST]
    s.span[p, THEN] = s.span[p, BEGAN] + (s.amount[f, END] if f >= 0 else s.span[p, LASTS])


@lean
def _after_filling(k: int, tide: Floats, link: Floats, place: Ints) -> None:
    """Write for each link of a part, in place of sums that are needed no more: seconds for a byte of all its flows; bytes that ended."""
    while k >= 0:
        tide[at(k), RISING], tide[at(k), RISERS] = link[at(k), WEIGHT] / tide[at(k), CAPACITY], 0.0
        k = place[at(k), FOLLOWING]


@making_arrays
def start_quantum(s: State, p: int, share: float, guard: float) -> None:
    """Find rates and ends of the quantum of a part that begins now."""
    s.part[p, MARK] = 3 - s.part[p, MARK]
    count, soonest, bound, longest = _begin(p, s.part[p, HEAD], s.tide, s.link, s.place, s.list, s.key, s.heap)
    began = s.span[p, BEGAN]
    lasts = share * (bound + began - s.span[p, JOINED])
    if guard > 0:
        lasts = min(lasts, 2.0 * share * guard * (soonest + began - s.span[p, BORN]))
    lasts = max(lasts, 1e-15 * began, 1e-300)
    left, end, following = s.amount[:, LEFT], s.amount[:, END], s.number[:, NEXT]
    flows = _fill(s, p, count, longest, lasts)
    if len(flows) == 0:
        which = len(s.place) + p
        first, lasts = _until_first_end(
            s.route, left, end, following, s.weight, s.cap, s.link, s.pool, s.list[which, START], s.list[which, LENGTH]
        )
        f = first
        while f >= 0:
            limit = s.route[f, s.route.shape[1] - 2]
            expel(s, f)
            s.route[f, s.route.shape[1] - 2], s.route[f, s.route.shape[1] - 1] = -1 - limit, s.part[p, MARK]
            f = following[f]
        s.part[p, ENDING] = 0
    else:
        keys = np.empty(len(flows))
        _after_filling(s.part[p, HEAD], s.tide, s.link, s.place)
        first_guess(flows, keys, s.route, left, s.weight, s.tide, s.link)
        share_out(in_order(keys), flows, keys, s.route, left, s.weight, s.cap, s.tide, s.link, lasts)
        first = chain(in_order(keys), flows, keys, end, following)
        s.part[p, ENDING] = 1
    s.part[p, FIRST] = first
    s.span[p, LASTS] = lasts
    s.part[p, STALE] = 0
    announce(s, p)


@making_arrays
def fill_again(s: State, p: int, passed: float) -> None:
    """Find what flows and links of a part have carried since its quantum began, which is cut short after ``passed`` seconds.

    Flows that have ended keep what they had. What is left of the links is filled anew, as if it had been known from the start how long the
    quantum would be; flows that could have ended by now have nothing left. Going back along the straight lines to where the quantum was to
    end would hold back flows that share a link with those that end, time and again if quanta are cut time and again.
    """
    s.part[p, MARK] = 3 - s.part[p, MARK]
    count, longest = 0, 0
    k = s.part[p, HEAD]
    while k >= 0:
        s.tide[k, USED] = s.link[k, GONE] / passed
        s.link[k, OWN] = s.link[k, OWN_WEIGHT] = 0.0
        s.link[k, LEVEL] = np.inf
        if s.place[k, FLOWS] > 0:
            s.tide[k, RISING], s.tide[k, RISERS] = s.link[k, WEIGHT], s.place[k, FLOWS]
            s.key[count], s.heap[count] = max(s.tide[k, CAPACITY] - s.tide[k, USED], 0.0) / s.link[k, WEIGHT], k
            count += 1
            longest = max(longest, s.list[k, LENGTH])
        k = s.place[k, FOLLOWING]
    for i in range(count // 2 - 1, -1, -1):
        sink(s.key, s.heap, count, i, s.key[i], s.heap[i])
    first = -1
    for f in _fill(s, p, count, longest, passed):
        s.amount[f, END] = passed
        s.number[f, NEXT] = first
        first = f
    s.part[p, FIRST] = first
