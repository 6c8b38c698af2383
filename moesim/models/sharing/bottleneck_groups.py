"""The arithmetic of exact max-min sharing by bottleneck groups and virtual time, compiled.

Every flow on its way belongs to the *group* of the link that limits it, and all flows of a group run at one level per unit of weight. The
integral of that level is the group's virtual time: a flow ends when it reaches the flow's tag, so letting time pass costs a few
additions per group, and nothing per flow. Levels come from water-filling over groups: for each group it is known how many of
its flows cross which other links, and taking links in the order of their fair shares fixes one group after another. A flow is
touched when the link that limits it changes, when it starts and when it ends; one pairing heap per group keeps the ends in order.

Links that share flows form a *component*; components do not feel each other, so each has its own time and is filled on its own.

Source of the fair shares: D. Bertsekas, R. Gallager, *Data Networks*, 2nd ed., 1992, section 6.5.2; of the virtual time: A. Parekh,
R. Gallager, "A generalized processor sharing approach to flow control", IEEE/ACM Transactions on Networking 1(3), 1993; of the heap:
M. Fredman et al., "The pairing heap", Algorithmica 1, 1986. All compiled functions of this core stand in one file, because they are the
parts of one algorithm on the same arrays. Functions take these arrays one by one and not as a tuple, which Python hands over more slowly.
"""
# ruff: noqa: PLR0917 - compiled functions take arrays by position
# The formatter would give each of some twenty arrays a line of its own, in every signature and call.
# fmt: off

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from moesim.facts.arrays import Bools, Floats, Ints
from moesim.models.sharing.compiled import from_python, inside, merged, wide

Whole32 = NDArray[np.int32]

TIE = 1e-12
"""Ends that differ by less than this share of the time to the first of them are one event."""
OVERFULL = 1e-11
"""A link that was no bottleneck so far becomes one when it would carry this share more than it can."""

# Columns of ``State.flow_whole`` and ``State.flow_real``: what is known of each flow, side by side, because it is needed together.
GROUP, CHILD, NEXT, PREVIOUS, BINDING, SOURCE, DESTINATION, PAIR, ALIVE, SETTLED, WAITING = range(11)
TAG, ASKED, WEIGHT, CAP, BOOKED = range(5)
# Rows of ``State.link_whole`` and ``State.link_real``.
FIRST, LAST, ROOM, FLOWS, OWN, COMPONENT, CANDIDATE, NEIGHBOURS, HEAP, FIXED, ELSEWHERE, RESERVED = range(12)
CAPACITY, LEVEL, SERVICE, TOTAL, BUSY, THROUGH, SINCE = range(7)
# Columns of ``State.open``: what a filling still has to give away on a link, and to how many flows of what weight.
LEFT, WEIGHTS, COUNT = range(3)
NOWHERE = -2
"""The group of a flow that is between two."""
# Rows of ``State.part_whole`` and ``State.part_real``: components; then room for working, and for what their rows held before.
BEGIN, END, CANDIDATES, PART_FLOWS, DIRTY, FILLED, NUMBER, SIZE, OLD = range(9)
TIME, NEXT_END, STEP, SOON, OLD_TIMES = range(5)
PART_ROWS, PART_TIMES = 6, 3
FILLS, MOVES, ENDS, PARTS, QUEUED = range(5)


CLEAN, PARTLY, WHOLLY = range(3)
"""What a component needs before time can pass: nothing, a filling of the groups above the last end, or a filling of all groups."""


class State(NamedTuple):
    """All that the core knows, in few arrays, because each costs a little with every call.

    K links, P components at most, room for F flows. Group K + p holds the flows of component p that run at their own caps; its virtual
    time is time itself. ``crossing[b, c]`` is 1 more than the place of c among the neighbours of b, 0 if it is not among them;
    ``shared[b, i]`` counts the flows limited at b that cross neighbour i too, and ``shared_weight`` sums their weights (it has a single
    entry while all weights are 1); ``before[b, i]`` is what neighbour i had left before the level of b was fixed. The candidates of a
    component stand in the order in which their levels were fixed; behind K of them is room for as many. ``start_key`` and ``start_entry``
    are a binary heap of flows that will start.
    """

    route: Whole32
    flow_whole: Whole32
    flow_real: Floats
    link_whole: Whole32
    link_real: Floats
    open: Floats
    crossing: Whole32
    neighbours: Whole32
    shared: Whole32
    shared_weight: Floats
    before: Floats
    listed: Whole32
    members: Whole32
    candidates: Whole32
    part_whole: Ints
    part_real: Floats
    capped: Whole32
    carried: Floats
    key: Floats
    entry: Whole32
    start_key: Floats
    start_entry: Whole32
    joined: Whole32
    counts: Ints


ADVANCE_TAKES = (
    "route", "flow_whole", "flow_real", "link_whole", "link_real", "open", "crossing", "neighbours", "shared", "shared_weight", "before",
    "listed", "members", "candidates", "part_whole", "part_real", "capped", "carried", "key", "entry", "start_key", "start_entry",
    "joined", "counts"
)
ADMIT_TAKES = ("route", "flow_whole", "flow_real", "link_whole", "start_key", "start_entry", "counts")
START_TAKES = (
    "route", "flow_whole", "flow_real", "link_whole", "link_real", "open", "crossing", "neighbours", "shared", "shared_weight", "before",
    "listed", "members", "candidates", "part_whole", "part_real", "capped", "key", "entry", "joined", "counts"
)
BRING_TAKES = (
    "route", "flow_whole", "flow_real", "link_whole", "link_real", "open", "crossing", "neighbours", "shared", "shared_weight", "before",
    "listed", "members", "candidates", "part_whole", "part_real", "capped", "key", "entry", "counts"
)
QUEUE_TAKES = ("start_key", "start_entry", "counts")
STOP_TAKES = (
    "route", "flow_whole", "flow_real", "link_whole", "link_real", "open", "crossing", "neighbours", "shared", "shared_weight",
    "part_whole", "carried"
)
LIST_ANEW_TAKES = ("flow_whole", "link_whole", "listed")
SO_FAR_TAKES = (
    "route", "flow_whole", "flow_real", "link_whole", "link_real", "open", "crossing", "neighbours", "shared", "shared_weight", "before",
    "listed", "members", "candidates", "part_whole", "part_real", "capped", "key", "entry", "counts"
)
SO_FAR_ELSEWHERE_TAKES = ("route", "flow_whole", "flow_real", "link_whole", "link_real", "crossing", "part_real")
"""Which arrays of a state each entry takes, in order. They are handed over one by one: a tuple of them takes ten times as long."""


@inside
def _meld(a: int, b: int, real: Floats, whole: Whole32) -> int:
    """Return the root of two heaps made one; -1 is the empty heap."""
    if a < 0:
        return b
    if b < 0:
        return a
    if real[b, TAG] < real[a, TAG]:
        a, b = b, a
    child = whole[a, CHILD]
    whole[b, NEXT] = child
    if child >= 0:
        whole[child, PREVIOUS] = b
    whole[b, PREVIOUS] = a
    whole[a, CHILD] = b
    return a


@inside
def _take(f: int, root: int, real: Floats, whole: Whole32) -> int:
    """Take flow f out of the heap and return the new root: its children are melded in pairs, then from the last to the first."""
    stack = wide(-1)
    x = wide(whole[f, CHILD])
    while x >= 0:
        y = wide(whole[x, NEXT])
        whole[x, NEXT] = whole[x, PREVIOUS] = -1
        rest = wide(-1)
        if y >= 0:
            rest = wide(whole[y, NEXT])
            whole[y, NEXT] = whole[y, PREVIOUS] = -1
        pair = _meld(x, y, real, whole)
        whole[pair, NEXT] = stack
        stack = pair
        x = rest
    below = wide(-1)
    while stack >= 0:
        rest = wide(whole[stack, NEXT])
        whole[stack, NEXT] = whole[stack, PREVIOUS] = -1
        below = _meld(below, stack, real, whole)
        stack = rest
    whole[f, CHILD] = -1
    if root == f:
        return below
    above, following = whole[f, PREVIOUS], whole[f, NEXT]
    if whole[above, CHILD] == f:
        whole[above, CHILD] = following
    else:
        whole[above, NEXT] = following
    if following >= 0:
        whole[following, PREVIOUS] = above
    whole[f, NEXT] = whole[f, PREVIOUS] = -1
    return _meld(root, below, real, whole)


@inside
def _sift(key: Floats, entry: Whole32, size: int, place: int, value: float, item: int) -> None:
    """Let ``item`` sink from ``place`` in a binary heap, smallest key on top.

    Of equal keys the lowest entry comes first: links with equal shares are common, and flows that cross two of them would change groups
    each time their order changed.
    """
    while True:
        below = 2 * place + 1
        if below >= size:
            break
        right = below + 1
        if right < size and (key[right] < key[below] or (key[right] == key[below] and entry[right] < entry[below])):
            below = right
        if key[below] > value or (key[below] == value and entry[below] > item):
            break
        key[place], entry[place] = key[below], entry[below]
        place = below
    key[place], entry[place] = value, item


@merged
def _speed(flow_real: Floats, f: int, group: int, links: int) -> float:
    """Return what a flow gets per unit of its group's virtual time: its weight, or its cap where it runs at that."""
    return float(flow_real[f, CAP] if group >= links else flow_real[f, WEIGHT])


@inside
def _cross(
    route: Whole32, flow_whole: Whole32, flow_real: Floats, link_whole: Whole32, crossing: Whole32, neighbours: Whole32, shared: Whole32,
    shared_weight: Floats, group: int, f: int, sign: int, weighted: bool
) -> None:
    """Count flow f among (1) or no more among (-1) the flows of a group on the other links of its route."""
    place_of, near, flows = crossing[group], neighbours[group], shared[group]
    for h in range(flow_whole[f, BINDING]):
        c = route[f, h]
        if c == group:
            continue
        place = place_of[c] - 1
        if place < 0:
            place = link_whole[NEIGHBOURS, group]
            near[place] = c
            flows[place] = 0
            place_of[c] = place + 1
            if weighted:
                shared_weight[group, place] = 0.0
            link_whole[NEIGHBOURS, group] = place + 1
        flows[place] += sign
        if weighted:
            shared_weight[group, place] += sign * flow_real[f, WEIGHT]
        if flows[place] == 0:
            last = link_whole[NEIGHBOURS, group] - 1
            link_whole[NEIGHBOURS, group] = last
            place_of[c] = 0
            if place < last:
                near[place], flows[place] = near[last], flows[last]
                place_of[near[place]] = place + 1
                if weighted:
                    shared_weight[group, place] = shared_weight[group, last]


@inside
def _enter(
    route: Whole32, flow_whole: Whole32, flow_real: Floats, link_whole: Whole32, link_real: Floats, crossing: Whole32,
    neighbours: Whole32, shared: Whole32, shared_weight: Floats, f: int, group: int, left: float, links: int, weighted: bool
) -> None:
    """Let a flow with ``left`` bytes to go into a group."""
    if link_whole[OWN, group] == 0:
        # An empty group may count its virtual time anew: small numbers are precise numbers.
        link_real[SERVICE, group] = 0.0
    link_whole[OWN, group] += 1
    flow_whole[f, GROUP] = group
    flow_real[f, TAG] = link_real[SERVICE, group] + left / _speed(flow_real, f, group, links)
    link_whole[HEAP, group] = _meld(wide(link_whole[HEAP, group]), f, flow_real, flow_whole)
    if group < links:
        _cross(route, flow_whole, flow_real, link_whole, crossing, neighbours, shared, shared_weight, group, f, wide(1), weighted)


@merged
def _unheap(flow_whole: Whole32, flow_real: Floats, link_whole: Whole32, link_real: Floats, f: int, links: int) -> float:
    """Take a flow out of the heap of its group; return the bytes that it still has to carry."""
    group = wide(flow_whole[f, GROUP])
    link_whole[HEAP, group] = _take(f, wide(link_whole[HEAP, group]), flow_real, flow_whole)
    return float((flow_real[f, TAG] - link_real[SERVICE, group]) * _speed(flow_real, f, group, links))


@merged
def _discount(
    route: Whole32, flow_whole: Whole32, flow_real: Floats, link_whole: Whole32, crossing: Whole32, neighbours: Whole32, shared: Whole32,
    shared_weight: Floats, f: int, links: int, weighted: bool
) -> None:
    """Count a flow no more among those of its group."""
    group = wide(flow_whole[f, GROUP])
    link_whole[OWN, group] -= 1
    if group < links:
        _cross(route, flow_whole, flow_real, link_whole, crossing, neighbours, shared, shared_weight, group, f, wide(-1), weighted)


@inside
def _exit(
    route: Whole32, flow_whole: Whole32, flow_real: Floats, link_whole: Whole32, link_real: Floats, crossing: Whole32,
    neighbours: Whole32, shared: Whole32, shared_weight: Floats, f: int, links: int, weighted: bool
) -> float:
    """Take a flow out of its group; return the bytes that it still has to carry."""
    left = _unheap(flow_whole, flow_real, link_whole, link_real, f, links)
    _discount(route, flow_whole, flow_real, link_whole, crossing, neighbours, shared, shared_weight, f, links, weighted)
    return left


@merged
def _is_fixed(flow_whole: Whole32, link_whole: Whole32, f: int, links: int, number: int) -> bool:
    """Return whether this filling has given flow f its rate."""
    group = flow_whole[f, GROUP]
    if group < links:
        return bool(link_whole[FIXED, group] != 0)
    return bool(flow_whole[f, SETTLED] == number)


@merged
def _at_cap(
    route: Whole32, flow_whole: Whole32, flow_real: Floats, link_whole: Whole32, link_real: Floats, open_: Floats, crossing: Whole32,
    neighbours: Whole32, shared: Whole32, shared_weight: Floats, counts: Ints, f: int, part: int, links: int, number: int, weighted: bool
) -> bool:
    """Give a flow its cap as its rate, and take that off its links; return what :func:`_fix` returns."""
    group = links + part
    if flow_whole[f, GROUP] != group:
        left = _exit(route, flow_whole, flow_real, link_whole, link_real, crossing, neighbours, shared, shared_weight, f, links, weighted)
        _enter(
            route, flow_whole, flow_real, link_whole, link_real, crossing, neighbours, shared, shared_weight, f, group, left, links,
            weighted
        )
        counts[MOVES] += 1
    flow_whole[f, SETTLED] = number
    short = False
    for h in range(flow_whole[f, BINDING]):
        c = route[f, h]
        open_[c, LEFT] -= flow_real[f, CAP]
        open_[c, WEIGHTS] -= flow_real[f, WEIGHT]
        open_[c, COUNT] -= 1.0
        if open_[c, LEFT] < 0.0 and link_whole[CANDIDATE, c] == 0:
            short = True
    return short


@merged
def _gather(
    route: Whole32, flow_whole: Whole32, flow_real: Floats, link_whole: Whole32, link_real: Floats, crossing: Whole32,
    neighbours: Whole32, shared: Whole32, shared_weight: Floats, listed: Whole32, counts: Ints, link: int, links: int, number: int,
    weighted: bool
) -> None:
    """Make all flows of a link that have no rate yet members of its group."""
    to = link_whole[FIRST, link]
    for place in range(link_whole[FIRST, link], link_whole[LAST, link]):
        f = wide(listed[place])
        if flow_whole[f, ALIVE] == 0:
            continue  # it has ended: the list gets shorter
        listed[to] = f
        to += 1
        if flow_whole[f, GROUP] != link and not _is_fixed(flow_whole, link_whole, f, links, number):
            left = _exit(
                route, flow_whole, flow_real, link_whole, link_real, crossing, neighbours, shared, shared_weight, f, links, weighted
            )
            _enter(
                route, flow_whole, flow_real, link_whole, link_real, crossing, neighbours, shared, shared_weight, f, link, left, links,
                weighted
            )
            counts[MOVES] += 1
    link_whole[LAST, link] = to


@merged
def _fix(
    link_whole: Whole32, open_: Floats, neighbours: Whole32, shared: Whole32, shared_weight: Floats, before: Floats, link: int,
    level: float, weighted: bool
) -> bool:
    """Take what the flows of a group use at a level off the other links that they cross.

    Returns true if a link that is no candidate has less than nothing left.
    """
    near, flows, had = neighbours[link], shared[link], before[link]
    short = False
    for place in range(link_whole[NEIGHBOURS, link]):
        c = near[place]
        left = open_[c, LEFT]
        had[place] = left
        if weighted:
            open_[c, WEIGHTS] -= shared_weight[link, place]
            open_[c, COUNT] -= flows[place]
            left -= shared_weight[link, place] * level
        else:
            open_[c, WEIGHTS] -= flows[place]
            left -= flows[place] * level
        open_[c, LEFT] = left
        if left < 0.0 and link_whole[CANDIDATE, c] == 0:
            short = True
    return short


@merged
def _undo(
    link_whole: Whole32, link_real: Floats, open_: Floats, neighbours: Whole32, shared: Whole32, before: Floats, candidates: Whole32,
    part_whole: Ints, part: int, level: float
) -> None:
    """Take the levels of all groups at ``level`` and above back, from the last to the first, to the last bit; all weights are 1."""
    begin = part_whole[BEGIN, part]
    last = begin + part_whole[FILLED, part] - 1
    while last >= begin and link_real[LEVEL, candidates[last]] >= level:
        link = candidates[last]
        near, flows, had = neighbours[link], shared[link], before[link]
        for place in range(link_whole[NEIGHBOURS, link]):
            open_[near[place], LEFT] = had[place]
            open_[near[place], WEIGHTS] += flows[place]
        link_whole[FIXED, link] = 0
        last -= 1
    part_whole[FILLED, part] = last + 1 - begin


@merged
def _clear(link_whole: Whole32, link_real: Floats, open_: Floats, members: Whole32, part_whole: Ints, part: int) -> None:
    """Take all levels of a component back."""
    for place in range(part_whole[BEGIN, part], part_whole[END, part]):
        link = members[place]
        open_[link, LEFT] = link_real[CAPACITY, link]
        open_[link, WEIGHTS] = link_real[TOTAL, link]
        open_[link, COUNT] = link_whole[FLOWS, link]
        link_whole[FIXED, link] = 0
    part_whole[FILLED, part] = 0


@merged
def _heap_up(
    link_whole: Whole32, open_: Floats, candidates: Whole32, part_whole: Ints, key: Floats, entry: Whole32, part: int, count: int
) -> int:
    """Make a heap of the candidates whose levels are not fixed, by their shares; return its size."""
    begin = part_whole[BEGIN, part]
    size = wide(0)
    for place in range(begin + part_whole[FILLED, part], begin + part_whole[CANDIDATES, part]):
        link = candidates[place]
        if open_[link, count] > 0:
            key[size], entry[size] = open_[link, LEFT] / open_[link, WEIGHTS], link
            size += 1
        else:
            link_whole[CANDIDATE, link] = 0
    for place in range(size // 2 - 1, -1, -1):
        _sift(key, entry, size, place, key[place], wide(entry[place]))
    return size


@merged
def _scarcest(link_whole: Whole32, open_: Floats, key: Floats, entry: Whole32, size: int, level: float, count: int) -> tuple[int, float]:
    """Bring the link with the smallest share to the top of the heap; return the heap's size and that share."""
    while size > 0:
        link = wide(entry[0])
        if open_[link, count] > 0:
            # Rounding must not let a level fall below the one before it.
            share = max(open_[link, LEFT] / open_[link, WEIGHTS], level)
            if share <= key[0] * (1 + 1e-13):
                return size, share
            _sift(key, entry, size, wide(0), share, link)
            continue
        link_whole[CANDIDATE, link] = 0
        size = _pop(key, entry, size)
    return 0, np.inf


@merged
def _pop(key: Floats, entry: Whole32, size: int) -> int:
    """Take the top off the heap of candidates; return its size."""
    size -= 1
    if size > 0:
        _sift(key, entry, size, wide(0), key[size], wide(entry[size]))
    return size


@inside
def _fill(
    route: Whole32, flow_whole: Whole32, flow_real: Floats, link_whole: Whole32, link_real: Floats, open_: Floats, crossing: Whole32,
    neighbours: Whole32, shared: Whole32, shared_weight: Floats, before: Floats, listed: Whole32, members: Whole32, candidates: Whole32,
    part_whole: Ints, part_real: Floats, capped: Whole32, key: Floats, entry: Whole32, counts: Ints, part: int, weighted: bool
) -> None:
    """Find the levels of a component, and when its next flow ends.

    Only links that were bottlenecks before (the candidates) are looked at; if another one would carry more than it can, it becomes a
    candidate too and the filling starts again. When a flow ends, the levels below its own stay as they are: up to there, filling meets
    the same links with the same shares, for a link on its route that was scarcer would have limited it. So a partial filling keeps these.
    """
    begin = part_whole[BEGIN, part]
    count = COUNT if weighted else WEIGHTS
    links = crossing.shape[0]
    if part_whole[DIRTY, part] == WHOLLY:
        _clear(link_whole, link_real, open_, members, part_whole, part)
    short = True
    while short:
        counts[FILLS] += 1
        number = int(counts[FILLS] % 2147483647)
        filled = begin + part_whole[FILLED, part]
        level = link_real[LEVEL, candidates[filled - 1]] if filled > begin else 0.0
        size = _heap_up(link_whole, open_, candidates, part_whole, key, entry, part, count)
        next_capped = 0
        short = False
        while True:
            size, share = _scarcest(link_whole, open_, key, entry, size, level, count)
            if next_capped < len(capped):
                f = wide(capped[next_capped])
                at = flow_real[f, CAP] / flow_real[f, WEIGHT]
                if at <= share:
                    next_capped += 1
                    mine = link_whole[COMPONENT, route[f, 0]] == part
                    if flow_whole[f, ALIVE] != 0 and mine and not _is_fixed(flow_whole, link_whole, f, links, number):
                        level = max(level, at)
                        short = (
                            _at_cap(
                                route, flow_whole, flow_real, link_whole, link_real, open_, crossing, neighbours, shared, shared_weight,
                                counts, f, part, links, number, weighted
                            )
                            or short
                        )
                    continue
            if size == 0:
                break
            link, level = wide(entry[0]), share
            if open_[link, count] > link_whole[OWN, link]:
                _gather(
                    route, flow_whole, flow_real, link_whole, link_real, crossing, neighbours, shared, shared_weight, listed, counts,
                    link, links, number, weighted
                )
            link_real[LEVEL, link] = level
            link_whole[FIXED, link] = 1
            short = _fix(link_whole, open_, neighbours, shared, shared_weight, before, link, level, weighted) or short
            candidates[filled] = link
            filled += 1
            size = _pop(key, entry, size)
        part_whole[CANDIDATES, part] = part_whole[FILLED, part] = filled - begin
        short = short and _more_candidates(link_whole, link_real, open_, members, candidates, part_whole, part)
        if short:
            _clear(link_whole, link_real, open_, members, part_whole, part)
    _plan_end(flow_real, link_whole, link_real, crossing, candidates, part_whole, part_real, part)


@merged
def _plan_end(
    flow_real: Floats, link_whole: Whole32, link_real: Floats, crossing: Whole32, candidates: Whole32, part_whole: Ints,
    part_real: Floats, part: int
) -> None:
    """Work out when the next flow of a component ends at the present levels."""
    begin = part_whole[BEGIN, part]
    step = np.inf
    for place in range(begin, begin + part_whole[FILLED, part]):
        link = candidates[place]
        first = link_whole[HEAP, link]
        if first >= 0:
            step = min(step, (flow_real[first, TAG] - link_real[SERVICE, link]) / link_real[LEVEL, link])
    own = crossing.shape[0] + part
    link_real[LEVEL, own] = 1.0
    if link_whole[HEAP, own] >= 0:
        step = min(step, flow_real[link_whole[HEAP, own], TAG] - link_real[SERVICE, own])
    part_real[STEP, part] = max(step, 0.0)
    part_real[NEXT_END, part] = part_real[TIME, part] + part_real[STEP, part]
    part_whole[DIRTY, part] = CLEAN


@merged
def _more_candidates(
    link_whole: Whole32, link_real: Floats, open_: Floats, members: Whole32, candidates: Whole32, part_whole: Ints, part: int
) -> bool:
    """Make candidates of the links that would carry more than they can; return whether there are any."""
    more = False
    begin = part_whole[BEGIN, part]
    for place in range(begin, part_whole[END, part]):
        link = members[place]
        if link_whole[CANDIDATE, link] == 0 and open_[link, LEFT] < -OVERFULL * link_real[CAPACITY, link]:
            link_whole[CANDIDATE, link] = 1
            candidates[begin + part_whole[CANDIDATES, part]] = link
            part_whole[CANDIDATES, part] += 1
            more = True
    return more


@merged
def _load(link_whole: Whole32, link_real: Floats, open_: Floats, link: int) -> float:
    """Return what a link carries at the present levels, in B/s."""
    unused = 0.0 if link_whole[FIXED, link] != 0 else open_[link, LEFT]
    return float(link_real[CAPACITY, link] - unused)


@merged
def _pass_time(
    link_whole: Whole32, link_real: Floats, open_: Floats, crossing: Whole32, members: Whole32, candidates: Whole32, part_whole: Ints,
    part_real: Floats, part: int, step: float, now: float
) -> None:
    """Let a component run at its present levels until ``now``, ``step`` seconds after its own time."""
    begin = part_whole[BEGIN, part]
    if step > 0:
        for place in range(begin, part_whole[END, part]):
            link = wide(members[place])
            if link_whole[FLOWS, link] > 0:
                link_real[THROUGH, link] += _load(link_whole, link_real, open_, link) * step
        for place in range(begin, begin + part_whole[FILLED, part]):
            link = candidates[place]
            link_real[SERVICE, link] += link_real[LEVEL, link] * step
        link_real[SERVICE, crossing.shape[0] + part] += step
    part_real[TIME, part] = now


@merged
def _off(
    route: Whole32, flow_whole: Whole32, flow_real: Floats, link_whole: Whole32, link_real: Floats, open_: Floats, part_whole: Ints,
    carried: Floats, f: int, left: float, now: float, pending: Ints, woken: Ints, woke: int
) -> int:
    """Take a flow that is in no group any more off its links and counters; return how many counters have reached zero so far."""
    brought = flow_real[f, ASKED] - left
    flow_whole[f, ALIVE] = 0
    carried[flow_whole[f, PAIR]] += brought
    part_whole[PART_FLOWS, link_whole[COMPONENT, route[f, 0]]] -= 1
    for h in range(route.shape[1]):
        link = route[f, h]
        if link < 0:
            break
        if h < flow_whole[f, BINDING]:
            link_whole[FLOWS, link] -= 1
            # What is left of a sum of weights when the last of them has gone is rounding.
            link_real[TOTAL, link] = link_real[TOTAL, link] - flow_real[f, WEIGHT] if link_whole[FLOWS, link] > 0 else 0.0
            open_[link, WEIGHTS] -= flow_real[f, WEIGHT]
            open_[link, COUNT] -= 1.0
            if link_whole[FLOWS, link] == 0:
                link_real[BUSY, link] += now - link_real[SINCE, link]
        else:
            link_real[THROUGH, link] += brought - flow_real[f, BOOKED]
            link_whole[ELSEWHERE, link] -= 1
            if link_whole[ELSEWHERE, link] == 0:
                link_real[BUSY, link] += now - link_real[SINCE, link]
    return _count_down(flow_whole, f, pending, woken, woke)


@merged
def _count_down(flow_whole: Whole32, f: int, pending: Ints, woken: Ints, woke: int) -> int:
    """Take a flow off its two counters; return how many counters have reached zero so far."""
    for counter in (flow_whole[f, SOURCE], flow_whole[f, DESTINATION]):
        pending[counter] -= 1
        if pending[counter] == 0:
            woken[woke] = counter
            woke += 1
    return woke


@merged
def _end_flows(
    route: Whole32, flow_whole: Whole32, flow_real: Floats, link_whole: Whole32, link_real: Floats, open_: Floats, crossing: Whole32,
    neighbours: Whole32, shared: Whole32, shared_weight: Floats, before: Floats, members: Whole32, candidates: Whole32, part_whole: Ints,
    part_real: Floats, capped: Whole32, carried: Floats, entry: Whole32, counts: Ints, part: int, pending: Ints, woken: Ints,
    weighted: bool
) -> int:
    """Let the flows end that end next in a component; return how many counters have reached zero."""
    links = crossing.shape[0]
    now, step = part_real[NEXT_END, part], part_real[STEP, part]
    begin = part_whole[BEGIN, part]
    within = step * (1 + TIE) + 4e-16 * now
    # Who ends is decided before time passes: afterwards what is left is lost in rounding.
    ended = 0
    lowest = np.inf
    for place in range(begin, begin + part_whole[FILLED, part] + 1):
        group = candidates[place] if place < begin + part_whole[FILLED, part] else links + part
        level, service = link_real[LEVEL, group], link_real[SERVICE, group]
        while link_whole[HEAP, group] >= 0:
            f = wide(link_whole[HEAP, group])
            if (flow_real[f, TAG] - service) / level > within:
                break
            _unheap(flow_whole, flow_real, link_whole, link_real, f, links)
            entry[ended] = f
            ended += 1
            lowest = min(lowest, level)
    _pass_time(link_whole, link_real, open_, crossing, members, candidates, part_whole, part_real, part, step, now)
    if weighted or len(capped) > 0:
        part_whole[DIRTY, part] = WHOLLY
    else:
        _undo(link_whole, link_real, open_, neighbours, shared, before, candidates, part_whole, part, lowest)
    woke = wide(0)
    for place in range(ended):
        counts[ENDS] += 1
        f = wide(entry[place])
        _discount(route, flow_whole, flow_real, link_whole, crossing, neighbours, shared, shared_weight, f, links, weighted)
        woke = _off(
            route, flow_whole, flow_real, link_whole, link_real, open_, part_whole, carried, f, 0.0, now, pending, woken, woke
        )
    part_whole[DIRTY, part] = max(part_whole[DIRTY, part], PARTLY)
    return woke


@inside
def _bring(
    route: Whole32, flow_whole: Whole32, flow_real: Floats, link_whole: Whole32, link_real: Floats, open_: Floats, crossing: Whole32,
    neighbours: Whole32, shared: Whole32, shared_weight: Floats, before: Floats, listed: Whole32, members: Whole32, candidates: Whole32,
    part_whole: Ints, part_real: Floats, capped: Whole32, key: Floats, entry: Whole32, counts: Ints, part: int, now: float, weighted: bool
) -> None:
    """Let a component run to ``now`` at its present levels, because something about it is going to change."""
    step = now - part_real[TIME, part]
    if part_whole[PART_FLOWS, part] > 0 and step > 0:
        if part_whole[DIRTY, part] != CLEAN:
            _fill(
                route, flow_whole, flow_real, link_whole, link_real, open_, crossing, neighbours, shared, shared_weight, before, listed,
                members, candidates, part_whole, part_real, capped, key, entry, counts, part, weighted
            )
        _pass_time(link_whole, link_real, open_, crossing, members, candidates, part_whole, part_real, part, step, now)
    part_real[TIME, part] = now
    part_whole[DIRTY, part] = WHOLLY


@from_python
def bring(
    route: Whole32, flow_whole: Whole32, flow_real: Floats, link_whole: Whole32, link_real: Floats, open_: Floats, crossing: Whole32,
    neighbours: Whole32, shared: Whole32, shared_weight: Floats, before: Floats, listed: Whole32, members: Whole32, candidates: Whole32,
    part_whole: Ints, part_real: Floats, capped: Whole32, key: Floats, entry: Whole32, counts: Ints, part: int, now: float, weighted: bool
) -> None:
    """Let a component run to ``now`` at its present levels, because something about it is going to change."""
    _bring(
        route, flow_whole, flow_real, link_whole, link_real, open_, crossing, neighbours, shared, shared_weight, before, listed, members,
        candidates, part_whole, part_real, capped, key, entry, counts, part, now, weighted
    )


@inside
def _root(joined: Whole32, part: int) -> int:
    while joined[part] != part:
        joined[part] = joined[joined[part]]
        part = wide(joined[part])
    return part


@merged
def _connect(
    route: Whole32, flow_whole: Whole32, flow_real: Floats, link_whole: Whole32, link_real: Floats, open_: Floats, crossing: Whole32,
    neighbours: Whole32, shared: Whole32, shared_weight: Floats, before: Floats, listed: Whole32, members: Whole32, candidates: Whole32,
    part_whole: Ints, part_real: Floats, capped: Whole32, key: Floats, entry: Whole32, joined: Whole32, counts: Ints, flows: Whole32,
    first: int, last: int, now: float, weighted: bool
) -> None:
    """Bring the components that new flows touch to ``now``, and make one of those that a flow joins."""
    parts = counts[PARTS]
    component = link_whole[COMPONENT]
    apart = False
    for index in range(last - 1, first - 1, -1):
        f = flows[index]
        home = component[route[f, 0]]
        for h in range(flow_whole[f, BINDING]):
            part = wide(component[route[f, h]])
            apart = apart or part < 0 or part != home
            if part >= 0 and (part_real[TIME, part] != now or part_whole[DIRTY, part] != WHOLLY):
                _bring(
                    route, flow_whole, flow_real, link_whole, link_real, open_, crossing, neighbours, shared, shared_weight, before,
                    listed, members, candidates, part_whole, part_real, capped, key, entry, counts, part, now, weighted
                )
    if not apart:
        return
    for part in range(parts):
        joined[part] = part
    for index in range(last - 1, first - 1, -1):
        f = flows[index]
        home = wide(-1)
        for h in range(flow_whole[f, BINDING]):
            part = wide(component[route[f, h]])
            if part >= 0:
                part = _root(joined, part)
                if home >= 0:
                    joined[max(part, home)] = min(part, home)
                    part = min(part, home)
                home = part
        if home < 0:
            home = parts
            joined[home] = home
            part_whole[PART_FLOWS, home] = 0
            part_real[TIME, home] = now
            part_whole[DIRTY, home] = WHOLLY
            parts += 1
        for h in range(flow_whole[f, BINDING]):
            if component[route[f, h]] < 0:
                component[route[f, h]] = home
    counts[PARTS] = _renumber(
        route, flow_whole, flow_real, link_whole, link_real, crossing, neighbours, shared, shared_weight, members, candidates, part_whole,
        part_real, capped, parts, joined, weighted
    )


@merged
def _leave_caps(
    route: Whole32, flow_whole: Whole32, flow_real: Floats, link_whole: Whole32, link_real: Floats, crossing: Whole32,
    neighbours: Whole32, shared: Whole32, shared_weight: Floats, capped: Whole32, weighted: bool
) -> None:
    """Take the flows that run at their caps out of their groups, until :func:`_return_to_caps`; their tags are what they have to go."""
    links = crossing.shape[0]
    for place in range(len(capped)):
        f = wide(capped[place])
        if flow_whole[f, ALIVE] != 0 and flow_whole[f, GROUP] >= links:
            flow_real[f, TAG] = _exit(
                route, flow_whole, flow_real, link_whole, link_real, crossing, neighbours, shared, shared_weight, f, links, weighted
            )
            flow_whole[f, GROUP] = NOWHERE


@merged
def _put_aside(crossing: Whole32, candidates: Whole32, part_whole: Ints, part_real: Floats, parts: int, joined: Whole32) -> int:
    """Copy what is known of components, and give new numbers to those that remain; return how many these are."""
    # Loops and not slices: these take seconds to compile.
    links = crossing.shape[0]
    for place in range(links):
        candidates[links + place] = candidates[place]
    kept = wide(0)
    part_whole[SIZE, 0] = 0
    for part in range(parts):
        for row in range(PART_ROWS):
            part_whole[OLD + row, part] = part_whole[row, part]
        for row in range(PART_TIMES):
            part_real[OLD_TIMES + row, part] = part_real[row, part]
        if joined[part] == part:
            part_whole[NUMBER, part] = kept
            kept += 1
            part_whole[SIZE, kept] = 0
    return kept


@merged
def _renumber(
    route: Whole32, flow_whole: Whole32, flow_real: Floats, link_whole: Whole32, link_real: Floats, crossing: Whole32,
    neighbours: Whole32, shared: Whole32, shared_weight: Floats, members: Whole32, candidates: Whole32, part_whole: Ints,
    part_real: Floats, capped: Whole32, parts: int, joined: Whole32, weighted: bool
) -> int:
    """Give the joined components the numbers 0, 1 …, and each its links in one row; return how many there are.

    Components that were not touched, and so need not be filled anew, keep their candidates in the order in which these were fixed.
    """
    links = crossing.shape[0]
    # Flows at their caps leave their old groups before the numbers change.
    _leave_caps(route, flow_whole, flow_real, link_whole, link_real, crossing, neighbours, shared, shared_weight, capped, weighted)
    kept = _put_aside(crossing, candidates, part_whole, part_real, parts, joined)
    for link in range(links):
        if link_whole[COMPONENT, link] >= 0:
            to = part_whole[NUMBER, _root(joined, wide(link_whole[COMPONENT, link]))]
            link_whole[COMPONENT, link] = to
            part_whole[SIZE, to + 1] += 1
    for part in range(kept):
        part_whole[SIZE, part + 1] += part_whole[SIZE, part]
        part_whole[PART_FLOWS, part] = 0
    for part in range(parts):
        to = part_whole[NUMBER, _root(joined, part)]
        part_whole[PART_FLOWS, to] += part_whole[OLD + PART_FLOWS, part]
        if joined[part] != part:
            continue
        begin = part_whole[SIZE, to]
        for row in range(PART_TIMES):
            part_real[row, to] = part_real[OLD_TIMES + row, part]
        part_whole[BEGIN, to] = part_whole[END, to] = begin
        part_whole[DIRTY, to] = part_whole[OLD + DIRTY, part]
        part_whole[CANDIDATES, to] = part_whole[FILLED, to] = 0
        if part_whole[DIRTY, to] != WHOLLY:
            part_whole[CANDIDATES, to] = part_whole[OLD + CANDIDATES, part]
            part_whole[FILLED, to] = part_whole[OLD + FILLED, part]
            for place in range(part_whole[CANDIDATES, to]):
                candidates[begin + place] = candidates[links + part_whole[OLD + BEGIN, part] + place]
    for link in range(links):
        part = link_whole[COMPONENT, link]
        if part < 0:
            continue
        members[part_whole[END, part]] = link
        part_whole[END, part] += 1
        if link_whole[CANDIDATE, link] != 0 and part_whole[DIRTY, part] == WHOLLY:
            candidates[part_whole[BEGIN, part] + part_whole[CANDIDATES, part]] = link
            part_whole[CANDIDATES, part] += 1
    _return_to_caps(
        route, flow_whole, flow_real, link_whole, link_real, crossing, neighbours, shared, shared_weight, capped, kept, weighted
    )
    return kept


@merged
def _return_to_caps(
    route: Whole32, flow_whole: Whole32, flow_real: Floats, link_whole: Whole32, link_real: Floats, crossing: Whole32,
    neighbours: Whole32, shared: Whole32, shared_weight: Floats, capped: Whole32, parts: int, weighted: bool
) -> None:
    """Put the flows that :func:`_leave_caps` took out into the groups of their components' new numbers."""
    links = crossing.shape[0]
    for part in range(parts):
        link_whole[HEAP, links + part] = -1
        link_whole[OWN, links + part] = 0
        link_real[LEVEL, links + part] = 1.0
        link_real[SERVICE, links + part] = 0.0
    for place in range(len(capped)):
        f = wide(capped[place])
        if flow_whole[f, ALIVE] != 0 and flow_whole[f, GROUP] == NOWHERE:
            _enter(
                route, flow_whole, flow_real, link_whole, link_real, crossing, neighbours, shared, shared_weight, f,
                links + wide(link_whole[COMPONENT, route[f, 0]]), flow_real[f, TAG], links, weighted
            )


@inside
def _start(
    route: Whole32, flow_whole: Whole32, flow_real: Floats, link_whole: Whole32, link_real: Floats, open_: Floats, crossing: Whole32,
    neighbours: Whole32, shared: Whole32, shared_weight: Floats, before: Floats, listed: Whole32, members: Whole32, candidates: Whole32,
    part_whole: Ints, part_real: Floats, capped: Whole32, key: Floats, entry: Whole32, joined: Whole32, counts: Ints, flows: Whole32,
    first: int, last: int, now: float, weighted: bool
) -> None:
    """Let flows that stand in the tables move: on their links, and in the group of the link that looks scarcest.

    They are ``flows[first:last]``, from the last to the first; their tags are the bytes that they have to go.
    """
    _connect(
        route, flow_whole, flow_real, link_whole, link_real, open_, crossing, neighbours, shared, shared_weight, before, listed, members,
        candidates, part_whole, part_real, capped, key, entry, joined, counts, flows, first, last, now, weighted
    )
    links = crossing.shape[0]
    whole, real = link_whole, link_real
    for index in range(last - 1, first - 1, -1):
        f = wide(flows[index])
        flow_whole[f, ALIVE] = 1
        flow_whole[f, WAITING] = 0
        flow_whole[f, SETTLED] = 0
        for row in (CHILD, NEXT, PREVIOUS):
            flow_whole[f, row] = -1
        scarcest, least = wide(-1), np.inf
        for h in range(route.shape[1]):
            link = route[f, h]
            if link < 0:
                break
            if h >= flow_whole[f, BINDING]:
                if whole[ELSEWHERE, link] == 0:
                    real[SINCE, link] = now
                whole[ELSEWHERE, link] += 1
                continue
            if whole[FLOWS, link] == 0:
                real[SINCE, link] = now
            whole[FLOWS, link] += 1
            whole[RESERVED, link] -= 1
            real[TOTAL, link] += flow_real[f, WEIGHT]
            listed[whole[LAST, link]] = f
            whole[LAST, link] += 1
            share = real[CAPACITY, link] / real[TOTAL, link]
            if share < least:
                scarcest, least = wide(link), share
        part = whole[COMPONENT, scarcest]
        part_whole[PART_FLOWS, part] += 1
        if whole[CANDIDATE, scarcest] == 0:
            whole[CANDIDATE, scarcest] = 1
            candidates[part_whole[BEGIN, part] + part_whole[CANDIDATES, part]] = scarcest
            part_whole[CANDIDATES, part] += 1
        _enter(
            route, flow_whole, flow_real, link_whole, link_real, crossing, neighbours, shared, shared_weight, f, scarcest,
            flow_real[f, TAG], links, weighted
        )


@from_python
def start(
    route: Whole32, flow_whole: Whole32, flow_real: Floats, link_whole: Whole32, link_real: Floats, open_: Floats, crossing: Whole32,
    neighbours: Whole32, shared: Whole32, shared_weight: Floats, before: Floats, listed: Whole32, members: Whole32, candidates: Whole32,
    part_whole: Ints, part_real: Floats, capped: Whole32, key: Floats, entry: Whole32, joined: Whole32, counts: Ints, flows: Whole32,
    now: float, weighted: bool
) -> None:
    """Let flows that stand in the tables move, from the last to the first; their tags are the bytes that they have to go."""
    _start(
        route, flow_whole, flow_real, link_whole, link_real, open_, crossing, neighbours, shared, shared_weight, before, listed, members,
        candidates, part_whole, part_real, capped, key, entry, joined, counts, flows, wide(0), len(flows), now, weighted
    )


@merged
def _start_queued(
    route: Whole32, flow_whole: Whole32, flow_real: Floats, link_whole: Whole32, link_real: Floats, open_: Floats, crossing: Whole32,
    neighbours: Whole32, shared: Whole32, shared_weight: Floats, before: Floats, listed: Whole32, members: Whole32, candidates: Whole32,
    part_whole: Ints, part_real: Floats, capped: Whole32, key: Floats, entry: Whole32, start_key: Floats, start_entry: Whole32,
    joined: Whole32, counts: Ints, now: float, weighted: bool
) -> None:
    """Start the flows whose time has come. They are put where the queue ends, which gets shorter, each before the one that was there."""
    last = counts[QUEUED]
    first, size = last, last
    while size > 0 and start_key[0] == now:
        f = wide(start_entry[0])
        size -= 1
        if size > 0:
            _sift(start_key, start_entry, size, wide(0), start_key[size], wide(start_entry[size]))
        if flow_whole[f, WAITING] != 0:  # otherwise it was cancelled
            first -= 1
            start_entry[first] = f
            flow_real[f, TAG] = flow_real[f, ASKED]
    counts[QUEUED] = size
    _start(
        route, flow_whole, flow_real, link_whole, link_real, open_, crossing, neighbours, shared, shared_weight, before, listed, members,
        candidates, part_whole, part_real, capped, key, entry, joined, counts, start_entry, first, last, now, weighted
    )


@from_python
def advance(
    route: Whole32, flow_whole: Whole32, flow_real: Floats, link_whole: Whole32, link_real: Floats, open_: Floats, crossing: Whole32,
    neighbours: Whole32, shared: Whole32, shared_weight: Floats, before: Floats, listed: Whole32, members: Whole32, candidates: Whole32,
    part_whole: Ints, part_real: Floats, capped: Whole32, carried: Floats, key: Floats, entry: Whole32, start_key: Floats,
    start_entry: Whole32, joined: Whole32, counts: Ints, horizon: float, now: float, pending: Ints, woken: Ints, weighted: bool
) -> tuple[float, int]:
    """Let time pass until a counter reaches zero, or until ``horizon``; flows start when it is their time.

    Parameters
    ----------
    horizon : float
        In s; may be infinite.
    now : float
        The time reached so far, in s.
    pending : int[W]
        Flows on their way by counter; updated.
    woken : int[W]
        Written: the counters that reached zero.
    weighted : bool
        Whether any weight is not 1.

    Returns
    -------
    float, int
        The time reached, and how many counters reached zero then.
    """
    # Components in a heap by their next ends: while none but the first changes, nobody looks at the others.
    soon, whose = part_real[SOON], joined
    while True:
        size = wide(0)
        for part in range(counts[PARTS]):
            if part_whole[PART_FLOWS, part] == 0:
                continue
            if part_whole[DIRTY, part] != CLEAN:
                _fill(
                    route, flow_whole, flow_real, link_whole, link_real, open_, crossing, neighbours, shared, shared_weight, before,
                    listed, members, candidates, part_whole, part_real, capped, key, entry, counts, part, weighted
                )
            soon[size], whose[size] = part_real[NEXT_END, part], part
            size += 1
        for place in range(size // 2 - 1, -1, -1):
            _sift(soon, whose, size, place, soon[place], wide(whose[place]))
        while True:
            soonest = soon[0] if size > 0 else np.inf
            if counts[QUEUED] > 0 and start_key[0] < soonest:
                if start_key[0] > horizon:
                    return horizon, 0
                now = start_key[0]
                _start_queued(
                    route, flow_whole, flow_real, link_whole, link_real, open_, crossing, neighbours, shared, shared_weight, before,
                    listed, members, candidates, part_whole, part_real, capped, key, entry, start_key, start_entry, joined, counts, now,
                    weighted
                )
                break
            if size == 0:
                return (horizon if horizon < np.inf else now), 0
            if soonest > horizon:
                return horizon, 0
            now, first = soonest, wide(whose[0])
            woke = _end_flows(
                route, flow_whole, flow_real, link_whole, link_real, open_, crossing, neighbours, shared, shared_weight, before, members,
                candidates, part_whole, part_real, capped, carried, entry, counts, first, pending, woken, weighted
            )
            if woke:
                return now, woke
            if part_whole[PART_FLOWS, first] == 0:
                size = _pop(soon, whose, size)
                continue
            _fill(
                route, flow_whole, flow_real, link_whole, link_real, open_, crossing, neighbours, shared, shared_weight, before, listed,
                members, candidates, part_whole, part_real, capped, key, entry, counts, first, weighted
            )
            _sift(soon, whose, size, wide(0), part_real[NEXT_END, first], first)


@inside
def _queue(start_key: Floats, start_entry: Whole32, counts: Ints, f: int, time: float) -> None:
    """Put a flow into the queue of those that will start."""
    place = counts[QUEUED]
    counts[QUEUED] += 1
    while place > 0:
        above = (place - 1) // 2
        if start_key[above] < time or (start_key[above] == time and start_entry[above] < f):
            break
        start_key[place], start_entry[place] = start_key[above], start_entry[above]
        place = above
    start_key[place], start_entry[place] = time, f


@from_python
def queue(start_key: Floats, start_entry: Whole32, counts: Ints, flows: Ints, times: Floats) -> None:
    """Put flows into the queue of those that will start."""
    for index in range(len(flows)):
        _queue(start_key, start_entry, counts, flows[index], times[index])


@inside
def admit_one(
    route: Whole32, flow_whole: Whole32, flow_real: Floats, link_whole: Whole32, start_key: Floats, start_entry: Whole32, counts: Ints,
    f: int, paths: Whole32, path: int, binding: Bools, pair: int, size: float, weight: float, cap: float, source: int, destination: int,
    time: float
) -> bool:
    """Write a new flow into the tables and into the queue of those that will start, at ``time``.

    Its links are ``paths[path]``; in the tables those that may become full come first. Returns whether their lists have room for it.
    """
    fits = True
    many = 0
    for h in range(paths.shape[1]):
        link = paths[path, h]
        if link >= 0 and binding[link]:
            route[f, many] = link
            many += 1
            link_whole[RESERVED, link] += 1
            used = link_whole[LAST, link] - link_whole[FIRST, link] + link_whole[RESERVED, link]
            fits = fits and used <= link_whole[ROOM, link]
    flow_whole[f, BINDING] = many
    for h in range(paths.shape[1]):
        link = paths[path, h]
        if link >= 0 and not binding[link]:
            route[f, many] = link
            many += 1
    for h in range(many, paths.shape[1]):
        route[f, h] = -1
    flow_whole[f, SOURCE], flow_whole[f, DESTINATION] = source, destination
    flow_whole[f, PAIR] = pair
    flow_whole[f, ALIVE], flow_whole[f, WAITING] = 0, 1
    flow_real[f, ASKED], flow_real[f, BOOKED] = size, 0.0
    flow_real[f, WEIGHT] = weight
    flow_real[f, CAP] = cap
    _queue(start_key, start_entry, counts, f, time)
    return fits


@from_python
def admit(
    route: Whole32, flow_whole: Whole32, flow_real: Floats, link_whole: Whole32, start_key: Floats, start_entry: Whole32, counts: Ints,
    flows: Ints, now: float, path: Whole32, binding: Bools, pair: Ints, size: Floats, weight: Floats, cap: Floats, watch: Whole32,
    delay: Floats
) -> bool:
    """Write new flows into the tables and into the queue of those that will start.

    Parameters
    ----------
    flows : int[F]
        Their numbers.
    now : float
        In s.
    path : int32[F, H]
        Links, padded with -1.
    binding : bool[K]
        Links that may become full.
    pair, size, watch
        As :meth:`moesim.models.sharing.groups.GroupsCore.join` takes them.
    weight, cap, delay : float[F] or float[0]
        Empty for weights of 1, no caps, no delays.

    Returns
    -------
    bool
        Whether the lists of all links have room for these flows.
    """
    fits = True
    for index in range(len(flows)):
        listed = admit_one(
            route, flow_whole, flow_real, link_whole, start_key, start_entry, counts, flows[index], path, index, binding, pair[index],
            size[index], weight[index] if len(weight) else 1.0, cap[index] if len(cap) else np.inf, wide(watch[index, 0]),
            wide(watch[index, 1]), now + delay[index] if len(delay) else now
        )
        fits = fits and listed
    return fits


@from_python
def stop(
    route: Whole32, flow_whole: Whole32, flow_real: Floats, link_whole: Whole32, link_real: Floats, open_: Floats, crossing: Whole32,
    neighbours: Whole32, shared: Whole32, shared_weight: Floats, part_whole: Ints, carried: Floats, flows: Ints, now: float,
    pending: Ints, woken: Ints, left: Floats, weighted: bool
) -> int:
    """Take flows away before they end (``left`` is written: their bytes to go); return how many counters have reached zero."""
    links = crossing.shape[0]
    woke = wide(0)
    for index in range(len(flows)):
        f = flows[index]
        if flow_whole[f, WAITING] != 0:
            left[index] = flow_real[f, ASKED]
            flow_whole[f, WAITING] = 0
            for h in range(flow_whole[f, BINDING]):
                link_whole[RESERVED, route[f, h]] -= 1
            woke = _count_down(flow_whole, f, pending, woken, woke)
            continue
        going = _exit(
            route, flow_whole, flow_real, link_whole, link_real, crossing, neighbours, shared, shared_weight, f, links, weighted
        )
        left[index] = min(max(going, 0.0), flow_real[f, ASKED])
        woke = _off(
            route, flow_whole, flow_real, link_whole, link_real, open_, part_whole, carried, f, left[index], now, pending, woken, woke
        )
    return woke


@from_python
def list_anew(flow_whole: Whole32, link_whole: Whole32, listed: Whole32, old: Whole32, first: Ints) -> None:
    """Write the flows of every link from ``old`` to ``listed``, where those of link k stand from ``first[k]`` on.

    Flows that have ended are left out, so that their numbers may be used again.
    """
    for link in range(len(first)):
        to = first[link]
        for place in range(link_whole[FIRST, link], link_whole[LAST, link]):
            f = old[place]
            if flow_whole[f, ALIVE] != 0:
                listed[to] = f
                to += 1
        link_whole[FIRST, link], link_whole[LAST, link] = first[link], to


@from_python
def so_far(
    route: Whole32, flow_whole: Whole32, flow_real: Floats, link_whole: Whole32, link_real: Floats, open_: Floats, crossing: Whole32,
    neighbours: Whole32, shared: Whole32, shared_weight: Floats, before: Floats, listed: Whole32, members: Whole32, candidates: Whole32,
    part_whole: Ints, part_real: Floats, capped: Whole32, key: Floats, entry: Whole32, counts: Ints, part: int, now: float, busy: Floats,
    through: Floats, weighted: bool
) -> None:
    """Add to copies of busy seconds and bytes what the links of a component did since these were counted last."""
    if part_whole[PART_FLOWS, part] == 0:
        return
    if part_whole[DIRTY, part] != CLEAN:
        _fill(
            route, flow_whole, flow_real, link_whole, link_real, open_, crossing, neighbours, shared, shared_weight, before, listed,
            members, candidates, part_whole, part_real, capped, key, entry, counts, part, weighted
        )
    for place in range(part_whole[BEGIN, part], part_whole[END, part]):
        link = wide(members[place])
        if link_whole[FLOWS, link] > 0:
            busy[link] += now - link_real[SINCE, link]
            through[link] += _load(link_whole, link_real, open_, link) * (now - part_real[TIME, part])


@from_python
def so_far_elsewhere(
    route: Whole32, flow_whole: Whole32, flow_real: Floats, link_whole: Whole32, link_real: Floats, crossing: Whole32, part_real: Floats,
    now: float, busy: Floats, through: Floats
) -> None:
    """Add to copies what the links that can never be full did for the flows that are on their way; :func:`so_far` comes first."""
    links = crossing.shape[0]
    for link in range(links):
        if link_whole[ELSEWHERE, link] > 0:
            busy[link] += now - link_real[SINCE, link]
    for f in range(route.shape[0]):
        if flow_whole[f, ALIVE] == 0 or flow_whole[f, BINDING] == route.shape[1]:
            continue
        group = wide(flow_whole[f, GROUP])
        part = link_whole[COMPONENT, route[f, 0]]
        service = link_real[SERVICE, group] + link_real[LEVEL, group] * (now - part_real[TIME, part])
        left = (flow_real[f, TAG] - service) * _speed(flow_real, f, group, links)
        for h in range(flow_whole[f, BINDING], route.shape[1]):
            link = route[f, h]
            if link < 0:
                break
            through[link] += flow_real[f, ASKED] - left - flow_real[f, BOOKED]
