"""The arithmetic of exact max-min sharing by bottleneck groups and virtual time, compiled.

Every flow on its way belongs to the *group* of the link that limits it, and all flows of a group run at one level per unit of weight. The
integral of that level is the group's virtual time: a flow ends when it reaches the flow's tag, so letting time pass costs a few
additions per group, and nothing per flow or link. Levels come from water-filling over groups: for each group it is known how many of
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
from moesim.models.sharing.compiled import at, from_python, inside, merged, wide

Whole16 = NDArray[np.uint16]
Whole32 = NDArray[np.int32]

TIE = 1e-12
"""Ends that differ by less than this share of the time to the first of them are one event."""
OVERFULL = 1e-11
"""A link that was no bottleneck so far becomes one when it would carry this share more than it can."""

# Columns of ``State.flow_whole``, int32, and of ``State.flow_real``, float64, which are two views of the same 128 B of each flow.
CHILD, NEXT, PREVIOUS, BINDING, SOURCE, DESTINATION, PAIR, ALIVE, SETTLED, WAITING = range(6, 16)
TAG, ASKED, BOOKED, WEIGHT, CAP = 0, 1, 2, 8, 9
# Columns of ``State.link_whole`` and ``State.link_real``; rows of ``State.fixed``.
FIRST, LAST, ROOM, FLOWS, OWN, COMPONENT, CANDIDATE, NEIGHBOURS, HEAP, FIXED, ELSEWHERE, RESERVED = range(12)
CAPACITY, LEVEL, SERVICE, TOTAL, BUSY, THROUGH, SINCE = range(7)
FIXED_LEVEL, FIXED_SERVICE, FIXED_TAG, FIXED_WAIT = range(4)
# Columns of ``State.open``: what a filling still has to give away on a link, and to how many flows of what weight.
LEFT, WEIGHTS, COUNT = range(3)
ENDED, NOWHERE = -1, -2
"""The groups of a flow that is not on its way, and of one that is between two."""
# Rows of ``State.part_whole`` and ``State.part_real``: components; then room for working, and for what their rows held before.
BEGIN, END, CANDIDATES, PART_FLOWS, DIRTY, FILLED, NUMBER, SIZE, OLD = range(9)
TIME, NEXT_END, STEP, SOON, OLD_TIMES = range(5)
PART_ROWS, PART_TIMES = 6, 3
FILLS, MOVES, ENDS, PARTS, QUEUED = range(5)


SAME = 1e-13
"""Shares that differ by less than this part of them count as equal: of links with equal shares the one with the lowest number comes first,
for flows that cross two of them would change groups each time their order changed."""
FEW = 24
"""So many candidates or fewer are looked at one by one; more stand in a heap."""
CLEAN, PARTLY, WHOLLY = range(3)
"""What a component needs before time can pass: nothing, a filling of the groups above the last end, or a filling of all groups."""


class State(NamedTuple):
    """All that the core knows, in few arrays, because each costs a little with every call.

    K links, P components at most, room for F flows. Group K + p holds the flows of component p that run at their own caps; its virtual
    time is time itself. ``crossing[b, c]`` is 1 more than the place of c among the neighbours of b, 0 if it is not among them;
    ``shared[b, i]`` counts the flows limited at b that cross neighbour i too, and ``shared_weight`` sums their weights (it has a single
    entry while all weights are 1); ``before[b, i]`` is what neighbour i had left before the level of b was fixed. The candidates of a
    component stand in the order in which their levels were fixed; behind K of them is room for as many. Of those that are fixed, ``fixed``
    keeps level, virtual time, tag of the next end and seconds until it side by side, in that order too; the virtual time of the others is
    in ``link_real``. ``group_of`` is the group of each flow. ``start_key`` and ``start_entry`` are a binary heap of flows that will start.
    ``flow_whole`` and ``flow_real`` are columns of the same memory.
    """

    route: Whole32
    flow_whole: Whole32
    group_of: Whole32
    flow_real: Floats
    link_whole: Whole32
    link_real: Floats
    fixed: Floats
    open: Floats
    crossing: Whole16
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
    "route", "flow_whole", "group_of", "flow_real", "link_whole", "link_real", "fixed", "open", "crossing", "neighbours", "shared",
    "shared_weight", "before", "listed", "members", "candidates", "part_whole", "part_real", "capped", "carried", "key", "entry",
    "start_key", "start_entry", "joined", "counts"
)
ADMIT_TAKES = ("route", "flow_whole", "flow_real", "link_whole", "start_key", "start_entry", "counts")
START_TAKES = (
    "route", "flow_whole", "group_of", "flow_real", "link_whole", "link_real", "fixed", "open", "crossing", "neighbours", "shared",
    "shared_weight", "before", "listed", "members", "candidates", "part_whole", "part_real", "capped", "key", "entry", "joined", "counts"
)
BRING_TAKES = (
    "route", "flow_whole", "group_of", "flow_real", "link_whole", "link_real", "fixed", "open", "crossing", "neighbours", "shared",
    "shared_weight", "before", "listed", "members", "candidates", "part_whole", "part_real", "capped", "key", "entry", "counts"
)
QUEUE_TAKES = ("start_key", "start_entry", "counts")
STOP_TAKES = (
    "route", "flow_whole", "group_of", "flow_real", "link_whole", "link_real", "open", "crossing", "neighbours", "shared",
    "shared_weight", "part_whole", "carried"
)
LIST_ANEW_TAKES = ("flow_whole", "link_whole", "listed")
SO_FAR_TAKES = (
    "route", "flow_whole", "group_of", "flow_real", "link_whole", "link_real", "fixed", "open", "crossing", "neighbours", "shared",
    "shared_weight", "before", "listed", "members", "candidates", "part_whole", "part_real", "capped", "key", "entry", "counts"
)
SO_FAR_ELSEWHERE_TAKES = ("route", "flow_whole", "group_of", "flow_real", "link_whole", "link_real", "crossing", "part_real")
"""Which arrays of a state each entry takes, in order. They are handed over one by one: a tuple of them takes ten times as long."""
FLAT = ("flow_whole", "flow_real", "link_whole", "link_real", "open")
"""Tables whose columns compiled functions count through, row by row: then it is known how wide a row is when they are compiled."""


@inside
def _meld(a: int, b: int, real: Floats, whole: Whole32) -> int:
    """Return the root of two heaps made one; -1 is the empty heap."""
    if a < 0:
        return b
    if b < 0:
        return a
    if real[at(16 * b + TAG)] < real[at(16 * a + TAG)]:
        a, b = b, a
    child = whole[at(32 * a + CHILD)]
    whole[at(32 * b + NEXT)] = child
    if child >= 0:
        whole[at(32 * child + PREVIOUS)] = b
    whole[at(32 * b + PREVIOUS)] = a
    whole[at(32 * a + CHILD)] = b
    return a


@inside
def _take(f: int, root: int, real: Floats, whole: Whole32) -> int:
    """Take flow f out of the heap and return the new root: its children are melded in pairs, then from the last to the first."""
    stack = wide(-1)
    x = wide(whole[at(32 * f + CHILD)])
    while x >= 0:
        y = wide(whole[at(32 * x + NEXT)])
        whole[at(32 * x + NEXT)] = whole[at(32 * x + PREVIOUS)] = -1
        rest = wide(-1)
        if y >= 0:
            rest = wide(whole[at(32 * y + NEXT)])
            whole[at(32 * y + NEXT)] = whole[at(32 * y + PREVIOUS)] = -1
        pair = _meld(x, y, real, whole)
        whole[at(32 * pair + NEXT)] = stack
        stack = pair
        x = rest
    below = wide(-1)
    while stack >= 0:
        rest = wide(whole[at(32 * stack + NEXT)])
        whole[at(32 * stack + NEXT)] = whole[at(32 * stack + PREVIOUS)] = -1
        below = _meld(below, stack, real, whole)
        stack = rest
    whole[at(32 * f + CHILD)] = -1
    if root == f:
        return below
    above, following = whole[at(32 * f + PREVIOUS)], whole[at(32 * f + NEXT)]
    if whole[at(32 * above + CHILD)] == f:
        whole[at(32 * above + CHILD)] = following
    else:
        whole[at(32 * above + NEXT)] = following
    if following >= 0:
        whole[at(32 * following + PREVIOUS)] = above
    whole[at(32 * f + NEXT)] = whole[at(32 * f + PREVIOUS)] = -1
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
        if right < size and (key[at(right)] < key[at(below)] or (key[at(right)] == key[at(below)] and entry[at(right)] < entry[at(below)])):
            below = right
        if key[at(below)] > value or (key[at(below)] == value and entry[at(below)] > item):
            break
        key[at(place)], entry[at(place)] = key[at(below)], entry[at(below)]
        place = below
    key[at(place)], entry[at(place)] = value, item


@merged
def _speed(flow_real: Floats, f: int, group: int, links: int, weighted: bool) -> float:
    """Return what a flow gets per unit of its group's virtual time: its weight, or its cap where it runs at that."""
    if group >= links:
        return float(flow_real[at(16 * f + CAP)])
    return float(flow_real[at(16 * f + WEIGHT)]) if weighted else 1.0


@inside
def _cross(
    route: Whole32, flow_whole: Whole32, flow_real: Floats, link_whole: Whole32, crossing: Whole16, neighbours: Whole32,
    shared: Whole32, shared_weight: Floats, group: int, f: int, sign: int, weighted: bool
) -> None:
    """Count flow f among (1) or no more among (-1) the flows of a group on the other links of its route."""
    place_of, near, flows = crossing[at(group)], neighbours[at(group)], shared[at(group)]
    for h in range(flow_whole[at(32 * f + BINDING)]):
        c = route[at(f), at(h)]
        if c == group:
            continue
        place = wide(place_of[at(c)]) - 1
        if place < 0:
            place = link_whole[at(16 * group + NEIGHBOURS)]
            near[at(place)] = c
            flows[at(place)] = 0
            place_of[at(c)] = place + 1
            if weighted:
                shared_weight[group, place] = 0.0
            link_whole[at(16 * group + NEIGHBOURS)] = place + 1
        flows[at(place)] += sign
        if weighted:
            shared_weight[group, place] += sign * flow_real[at(16 * f + WEIGHT)]
        if flows[at(place)] == 0:
            last = link_whole[at(16 * group + NEIGHBOURS)] - 1
            link_whole[at(16 * group + NEIGHBOURS)] = last
            place_of[at(c)] = 0
            if place < last:
                near[place], flows[at(place)] = near[last], flows[last]
                place_of[at(near[at(place)])] = place + 1
                if weighted:
                    shared_weight[group, place] = shared_weight[group, last]


@inside
def _enter(
    route: Whole32, flow_whole: Whole32, group_of: Whole32, flow_real: Floats, link_whole: Whole32, link_real: Floats,
    crossing: Whole16, neighbours: Whole32, shared: Whole32, shared_weight: Floats, f: int, group: int, left: float, links: int,
    weighted: bool
) -> None:
    """Let a flow with ``left`` bytes to go into a group."""
    if link_whole[at(16 * group + OWN)] == 0:
        # An empty group may count its virtual time anew: small numbers are precise numbers.
        link_real[at(8 * group + SERVICE)] = 0.0
    link_whole[at(16 * group + OWN)] += 1
    group_of[at(f)] = group
    flow_real[at(16 * f + TAG)] = link_real[at(8 * group + SERVICE)] + left / _speed(flow_real, f, group, links, weighted)
    link_whole[at(16 * group + HEAP)] = _meld(wide(link_whole[at(16 * group + HEAP)]), f, flow_real, flow_whole)
    if group < links:
        _cross(route, flow_whole, flow_real, link_whole, crossing, neighbours, shared, shared_weight, group, f, wide(1), weighted)


@merged
def _unheap(
    flow_whole: Whole32, group_of: Whole32, flow_real: Floats, link_whole: Whole32, link_real: Floats, f: int, links: int,
    weighted: bool
) -> float:
    """Take a flow out of the heap of its group; return the bytes that it still has to carry."""
    group = wide(group_of[at(f)])
    link_whole[at(16 * group + HEAP)] = _take(f, wide(link_whole[at(16 * group + HEAP)]), flow_real, flow_whole)
    return float((flow_real[at(16 * f + TAG)] - link_real[at(8 * group + SERVICE)]) * _speed(flow_real, f, group, links, weighted))


@merged
def _discount(
    route: Whole32, flow_whole: Whole32, group_of: Whole32, flow_real: Floats, link_whole: Whole32, crossing: Whole16, neighbours: Whole32,
    shared: Whole32, shared_weight: Floats, f: int, links: int, weighted: bool
) -> None:
    """Count a flow no more among those of its group."""
    group = wide(group_of[at(f)])
    link_whole[at(16 * group + OWN)] -= 1
    if group < links:
        _cross(
            route, flow_whole, flow_real, link_whole, crossing, neighbours, shared, shared_weight, group, f, wide(-1), weighted
        )


@inside
def _exit(
    route: Whole32, flow_whole: Whole32, group_of: Whole32, flow_real: Floats, link_whole: Whole32, link_real: Floats,
    crossing: Whole16, neighbours: Whole32, shared: Whole32, shared_weight: Floats, f: int, links: int, weighted: bool
) -> float:
    """Take a flow out of its group; return the bytes that it still has to carry."""
    left = _unheap(flow_whole, group_of, flow_real, link_whole, link_real, f, links, weighted)
    _discount(route, flow_whole, group_of, flow_real, link_whole, crossing, neighbours, shared, shared_weight, f, links, weighted)
    return left


@merged
def _is_fixed(flow_whole: Whole32, group_of: Whole32, link_whole: Whole32, f: int, links: int, number: int) -> bool:
    """Return whether this filling has given flow f its rate."""
    group = group_of[at(f)]
    if group < links:
        return bool(link_whole[at(16 * group + FIXED)] != 0)
    return bool(flow_whole[at(32 * f + SETTLED)] == number)


@merged
def _at_cap(
    route: Whole32, flow_whole: Whole32, group_of: Whole32, flow_real: Floats, link_whole: Whole32, link_real: Floats,
    open_: Floats, crossing: Whole16, neighbours: Whole32, shared: Whole32, shared_weight: Floats, counts: Ints, f: int, part: int,
    links: int, number: int, weighted: bool
) -> bool:
    """Give a flow its cap as its rate, and take that off its links; return what :func:`_fix` returns."""
    group = links + part
    if group_of[at(f)] != group:
        left = _exit(
            route, flow_whole, group_of, flow_real, link_whole, link_real, crossing, neighbours, shared, shared_weight, f, links,
            weighted
        )
        _enter(
            route, flow_whole, group_of, flow_real, link_whole, link_real, crossing, neighbours, shared, shared_weight, f, group,
            left, links, weighted
        )
        counts[MOVES] += 1
    flow_whole[at(32 * f + SETTLED)] = number
    short = False
    for h in range(flow_whole[at(32 * f + BINDING)]):
        c = route[at(f), at(h)]
        open_[at(4 * c + LEFT)] -= flow_real[at(16 * f + CAP)]
        open_[at(4 * c + WEIGHTS)] -= flow_real[at(16 * f + WEIGHT)]
        open_[at(4 * c + COUNT)] -= 1.0
        if open_[at(4 * c + LEFT)] < 0.0 and link_whole[at(16 * c + CANDIDATE)] == 0:
            short = True
    return short


@merged
def _gather(
    route: Whole32, flow_whole: Whole32, group_of: Whole32, flow_real: Floats, link_whole: Whole32, link_real: Floats,
    open_: Floats, crossing: Whole16, neighbours: Whole32, shared: Whole32, shared_weight: Floats, listed: Whole32, counts: Ints, link: int,
    links: int, number: int, weighted: bool, count: int
) -> None:
    """Make all flows of a link that have no rate yet members of its group; at least one is not yet.

    The list of the link is made shorter when most of it has ended; otherwise it is read until no flow is missing.
    """
    first, last = link_whole[at(16 * link + FIRST)], link_whole[at(16 * link + LAST)]
    if last - first > 2 * link_whole[at(16 * link + FLOWS)] + 8:
        to = first
        for place in range(first, last):
            f = wide(listed[at(place)])
            if group_of[at(f)] != ENDED:
                listed[at(to)] = f
                to += 1
        last = to
        link_whole[at(16 * link + LAST)] = last
    missing = wide(open_[at(4 * link + count)]) - link_whole[at(16 * link + OWN)]
    for place in range(first, last):
        f = wide(listed[at(place)])
        group = group_of[at(f)]
        if group == ENDED:
            continue
        if group != link and not _is_fixed(flow_whole, group_of, link_whole, f, links, number):
            left = _exit(
                route, flow_whole, group_of, flow_real, link_whole, link_real, crossing, neighbours, shared, shared_weight, f, links,
                weighted
            )
            _enter(
                route, flow_whole, group_of, flow_real, link_whole, link_real, crossing, neighbours, shared, shared_weight, f, link,
                left, links, weighted
            )
            counts[MOVES] += 1
            missing -= 1
            if missing == 0:
                return


@merged
def _fix(
    link_whole: Whole32, open_: Floats, neighbours: Whole32, shared: Whole32, shared_weight: Floats, before: Floats, link: int,
    level: float, weighted: bool
) -> bool:
    """Take what the flows of a group use at a level off the other links that they cross.

    Returns true if a link that is no candidate may have less than nothing left.
    """
    near, flows, had = neighbours[at(link)], shared[at(link)], before[at(link)]
    short = False
    if not weighted:
        least = 0.0
        for place in range(link_whole[at(16 * link + NEIGHBOURS)]):
            c, many = near[at(place)], float(flows[at(place)])
            left = open_[at(4 * c + LEFT)]
            had[at(place)] = left
            left -= many * level
            open_[at(4 * c + WEIGHTS)] -= many
            open_[at(4 * c + LEFT)] = left
            least = min(least, left)
        return least < 0.0
    for place in range(link_whole[at(16 * link + NEIGHBOURS)]):
        c = near[place]
        left = open_[at(4 * c + LEFT)]
        open_[at(4 * c + WEIGHTS)] -= shared_weight[link, place]
        open_[at(4 * c + COUNT)] -= flows[place]
        left -= shared_weight[link, place] * level
        open_[at(4 * c + LEFT)] = left
        if left < 0.0 and link_whole[at(16 * c + CANDIDATE)] == 0:
            short = True
    return short


@merged
def _undo(
    link_whole: Whole32, link_real: Floats, fixed: Floats, open_: Floats, neighbours: Whole32, shared: Whole32, before: Floats,
    candidates: Whole32, part_whole: Ints, part: int, level: float
) -> None:
    """Take the levels of all groups at ``level`` and above back, from the last to the first, to the last bit; all weights are 1."""
    begin = part_whole[BEGIN, at(part)]
    last = begin + part_whole[FILLED, at(part)] - 1
    while last >= begin and link_real[at(8 * candidates[at(last)] + LEVEL)] >= level:
        link = candidates[at(last)]
        link_real[at(8 * link + SERVICE)] = fixed[FIXED_SERVICE, at(last)]
        near, flows, had = neighbours[at(link)], shared[at(link)], before[at(link)]
        for place in range(link_whole[at(16 * link + NEIGHBOURS)]):
            c, many = near[at(place)], float(flows[at(place)])
            open_[at(4 * c + LEFT)] = had[at(place)]
            open_[at(4 * c + WEIGHTS)] += many
        link_whole[at(16 * link + FIXED)] = 0
        last -= 1
    part_whole[FILLED, at(part)] = last + 1 - begin


@inside
def _lower(
    link_whole: Whole32, link_real: Floats, fixed: Floats, open_: Floats, neighbours: Whole32, shared: Whole32, before: Floats,
    candidates: Whole32, part_whole: Ints, part: int, link: int
) -> None:
    """Take levels back until a link, of which more is asked now, has at least as much for each flow as the highest level that is left.

    Filling would come to all levels that are left as before: what a link has for each flow grows while levels below it are fixed, and falls
    while levels above it are, so a link that has enough after the last of them had enough at each. All weights are 1.
    """
    last = part_whole[BEGIN, at(part)] + part_whole[FILLED, at(part)] - 1
    while last >= part_whole[BEGIN, at(part)] and (
        link_whole[at(16 * link + FIXED)] != 0
        or fixed[FIXED_LEVEL, at(last)] > open_[at(4 * link + LEFT)] / open_[at(4 * link + WEIGHTS)]
    ):
        _undo(link_whole, link_real, fixed, open_, neighbours, shared, before, candidates, part_whole, part, fixed[FIXED_LEVEL, at(last)])
        last = part_whole[BEGIN, at(part)] + part_whole[FILLED, at(part)] - 1


@merged
def _put_back(link_real: Floats, fixed: Floats, candidates: Whole32, part_whole: Ints, part: int) -> None:
    """Say for each group of a component what its virtual time is; their levels are to be found anew."""
    for place in range(part_whole[BEGIN, at(part)], part_whole[BEGIN, at(part)] + part_whole[FILLED, at(part)]):
        link_real[at(8 * candidates[at(place)] + SERVICE)] = fixed[FIXED_SERVICE, at(place)]
    part_whole[FILLED, at(part)] = 0


@merged
def _clear(link_whole: Whole32, link_real: Floats, open_: Floats, members: Whole32, part_whole: Ints, part: int) -> None:
    """Take all levels of a component back."""
    for place in range(part_whole[BEGIN, at(part)], part_whole[END, at(part)]):
        link = members[at(place)]
        open_[at(4 * link + LEFT)] = link_real[at(8 * link + CAPACITY)]
        open_[at(4 * link + WEIGHTS)] = link_real[at(8 * link + TOTAL)]
        open_[at(4 * link + COUNT)] = link_whole[at(16 * link + FLOWS)]
        link_whole[at(16 * link + FIXED)] = 0
    part_whole[FILLED, at(part)] = 0


@merged
def _heap_up(
    link_whole: Whole32, open_: Floats, candidates: Whole32, part_whole: Ints, key: Floats, entry: Whole32, part: int, count: int
) -> int:
    """Make a heap of the candidates whose levels are not fixed, by their shares; return its size."""
    begin = part_whole[BEGIN, at(part)]
    size = wide(0)
    for place in range(begin + part_whole[FILLED, at(part)], begin + part_whole[CANDIDATES, at(part)]):
        link = candidates[at(place)]
        if open_[at(4 * link + count)] > 0:
            key[at(size)], entry[at(size)] = open_[at(4 * link + LEFT)] / open_[at(4 * link + WEIGHTS)], link
            size += 1
        else:
            link_whole[at(16 * link + CANDIDATE)] = 0
    if size > FEW:
        for place in range(size // 2 - 1, -1, -1):
            _sift(key, entry, size, place, key[place], wide(entry[at(place)]))
    return size


@merged
def _scarcest(link_whole: Whole32, open_: Floats, key: Floats, entry: Whole32, size: int, level: float, count: int) -> tuple[int, float]:
    """Bring the link with the smallest share to the top of the heap; return the heap's size and that share."""
    while size > FEW:
        link = wide(entry[0])
        if open_[at(4 * link + count)] > 0:
            # Rounding must not let a level fall below the one before it.
            share = max(open_[at(4 * link + LEFT)] / open_[at(4 * link + WEIGHTS)], level)
            if share <= key[0] * (1 + SAME):
                return size, share
            _sift(key, entry, size, wide(0), share, link)
            continue
        link_whole[at(16 * link + CANDIDATE)] = 0
        size = _strike(key, entry, size)
    least, under, over, scarcest, place = np.inf, np.inf, np.inf, wide(0), wide(0)
    while place < size:
        if key[at(place)] > over:  # what a link has for each flow has only grown since
            place += 1
            continue
        link = entry[at(place)]
        if open_[at(4 * link + count)] > 0:
            share = open_[at(4 * link + LEFT)] / open_[at(4 * link + WEIGHTS)]
            key[at(place)] = share
            if share < under or (share <= over and link < entry[at(scarcest)]):
                least, under, over, scarcest = share, share * (1 - SAME), share * (1 + SAME), place
            place += 1
        else:
            link_whole[at(16 * link + CANDIDATE)] = 0
            size -= 1
            key[at(place)], entry[at(place)] = key[at(size)], entry[at(size)]
    if size > 0:
        key[at(scarcest)], key[0] = key[0], least
        entry[0], entry[at(scarcest)] = entry[at(scarcest)], entry[0]
    return size, max(least, level)


@merged
def _pop(key: Floats, entry: Whole32, size: int) -> int:
    """Take the top off a heap; return its size."""
    size -= 1
    if size > 0:
        _sift(key, entry, size, wide(0), key[at(size)], wide(entry[at(size)]))
    return size


@merged
def _strike(key: Floats, entry: Whole32, size: int) -> int:
    """Take the first of the candidates away; return how many are left."""
    size -= 1
    if size > FEW:
        _sift(key, entry, size, wide(0), key[at(size)], wide(entry[at(size)]))
    elif size > 0:
        key[0], entry[0] = key[at(size)], entry[at(size)]
    return size


@inside
def _fill(
    route: Whole32, flow_whole: Whole32, group_of: Whole32, flow_real: Floats, link_whole: Whole32, link_real: Floats, fixed: Floats,
    open_: Floats, crossing: Whole16, neighbours: Whole32, shared: Whole32, shared_weight: Floats, before: Floats, listed: Whole32,
    members: Whole32, candidates: Whole32, part_whole: Ints, part_real: Floats, capped: Whole32, key: Floats, entry: Whole32, counts: Ints,
    part: int, weighted: bool
) -> None:
    """Find the levels of a component, and when its next flow ends.

    Only links that were bottlenecks before (the candidates) are looked at; if another one would carry more than it can, it becomes a
    candidate too and the filling starts again. When a flow ends, the levels below its own stay as they are: up to there, filling meets
    the same links with the same shares, for a link on its route that was scarcer would have limited it. So a partial filling keeps these.
    """
    begin = part_whole[BEGIN, at(part)]
    count = COUNT if weighted else WEIGHTS
    links = crossing.shape[0]
    if part_whole[DIRTY, at(part)] == WHOLLY:
        _clear(link_whole, link_real, open_, members, part_whole, part)
    short = True
    while short:
        counts[FILLS] += 1
        number = int(counts[FILLS] % 2147483647)
        filled = begin + part_whole[FILLED, at(part)]
        level = link_real[at(8 * (candidates[filled - 1]) + LEVEL)] if filled > begin else 0.0
        size = _heap_up(link_whole, open_, candidates, part_whole, key, entry, part, count)
        next_capped = 0
        short = False
        while True:
            size, share = _scarcest(link_whole, open_, key, entry, size, level, count)
            if next_capped < len(capped):
                f = wide(capped[next_capped])
                reached = flow_real[at(16 * f + CAP)] / flow_real[at(16 * f + WEIGHT)]
                if reached <= share:
                    next_capped += 1
                    mine = link_whole[at(16 * route[at(f), 0] + COMPONENT)] == part
                    if flow_whole[at(32 * f + ALIVE)] != 0 and mine and not _is_fixed(flow_whole, group_of, link_whole, f, links, number):
                        level = max(level, reached)
                        short = (
                            _at_cap(
                                route, flow_whole, group_of, flow_real, link_whole, link_real, open_, crossing, neighbours, shared,
                                shared_weight, counts, f, part, links, number, weighted
                            )
                            or short
                        )
                    continue
            if size == 0:
                break
            link, level = wide(entry[0]), share
            if open_[at(4 * link + count)] > link_whole[at(16 * link + OWN)]:
                _gather(
                    route, flow_whole, group_of, flow_real, link_whole, link_real, open_, crossing, neighbours, shared,
                    shared_weight, listed, counts, link, links, number, weighted, count
                )
            link_real[at(8 * link + LEVEL)] = level
            link_whole[at(16 * link + FIXED)] = 1
            fixed[FIXED_LEVEL, at(filled)] = level
            fixed[FIXED_SERVICE, at(filled)] = link_real[at(8 * link + SERVICE)]
            fixed[FIXED_TAG, at(filled)] = flow_real[at(16 * (link_whole[at(16 * link + HEAP)]) + TAG)]
            short = _fix(link_whole, open_, neighbours, shared, shared_weight, before, link, level, weighted) or short
            candidates[at(filled)] = link
            filled += 1
            size = _strike(key, entry, size)
        part_whole[CANDIDATES, at(part)] = part_whole[FILLED, at(part)] = filled - begin
        if short:
            known = part_whole[CANDIDATES, at(part)]
            short = _more_candidates(link_whole, link_real, open_, members, candidates, part_whole, part)
            if short and not weighted and len(capped) == 0:
                for place in range(begin + known, begin + part_whole[CANDIDATES, at(part)]):
                    _lower(
                        link_whole, link_real, fixed, open_, neighbours, shared, before, candidates, part_whole, part,
                        wide(candidates[at(place)])
                    )
            elif short:
                _put_back(link_real, fixed, candidates, part_whole, part)
                _clear(link_whole, link_real, open_, members, part_whole, part)
    _plan_end(flow_real, link_whole, link_real, fixed, crossing, part_whole, part_real, part)


@merged
def _plan_end(
    flow_real: Floats, link_whole: Whole32, link_real: Floats, fixed: Floats, crossing: Whole16, part_whole: Ints,
    part_real: Floats, part: int
) -> None:
    """Work out when the next flow of a component ends at the present levels."""
    begin = part_whole[BEGIN, at(part)]
    step = np.inf
    levels, services, tags, waits = fixed[FIXED_LEVEL], fixed[FIXED_SERVICE], fixed[FIXED_TAG], fixed[FIXED_WAIT]
    for place in range(np.uint64(begin), np.uint64(begin + part_whole[FILLED, at(part)])):
        waits[place] = (tags[place] - services[place]) / levels[place]
    for place in range(np.uint64(begin), np.uint64(begin + part_whole[FILLED, at(part)])):
        step = min(step, waits[place])
    own = crossing.shape[0] + part
    link_real[at(8 * own + LEVEL)] = 1.0
    if link_whole[at(16 * own + HEAP)] >= 0:
        step = min(step, flow_real[at(16 * (link_whole[at(16 * own + HEAP)]) + TAG)] - link_real[at(8 * own + SERVICE)])
    part_real[STEP, at(part)] = max(step, 0.0)
    part_real[NEXT_END, at(part)] = part_real[TIME, at(part)] + part_real[STEP, at(part)]
    part_whole[DIRTY, at(part)] = CLEAN


@merged
def _more_candidates(
    link_whole: Whole32, link_real: Floats, open_: Floats, members: Whole32, candidates: Whole32, part_whole: Ints, part: int
) -> bool:
    """Make candidates of the links that would carry more than they can; return whether there are any."""
    more = False
    begin = part_whole[BEGIN, at(part)]
    for place in range(begin, part_whole[END, at(part)]):
        link = members[at(place)]
        if link_whole[at(16 * link + CANDIDATE)] == 0 and open_[at(4 * link + LEFT)] < -OVERFULL * link_real[at(8 * link + CAPACITY)]:
            link_whole[at(16 * link + CANDIDATE)] = 1
            candidates[begin + part_whole[CANDIDATES, at(part)]] = link
            part_whole[CANDIDATES, at(part)] += 1
            more = True
    return more


@merged
def _pass_time(
    link_real: Floats, fixed: Floats, crossing: Whole16,
    part_whole: Ints, part_real: Floats, part: int, step: float, now: float
) -> None:
    """Let a component run at its present levels until ``now``, ``step`` seconds after its own time."""
    begin = part_whole[BEGIN, at(part)]
    if step > 0:
        levels, services = fixed[FIXED_LEVEL], fixed[FIXED_SERVICE]
        for place in range(np.uint64(begin), np.uint64(begin + part_whole[FILLED, at(part)])):
            services[place] += levels[place] * step
        link_real[at(8 * (crossing.shape[0] + part) + SERVICE)] += step
    part_real[TIME, at(part)] = now


@merged
def _off(
    route: Whole32, flow_whole: Whole32, group_of: Whole32, flow_real: Floats, link_whole: Whole32, link_real: Floats,
    open_: Floats, part_whole: Ints, carried: Floats, f: int, left: float, owed: float, now: float, pending: Ints, woken: Ints, woke: int,
    weighted: bool
) -> int:
    """Take a flow that is in no group any more off its links and counters; return how many counters have reached zero so far."""
    brought = flow_real[at(16 * f + ASKED)] - left
    gone = flow_real[at(16 * f + ASKED)] - owed - flow_real[at(16 * f + BOOKED)]
    weight = flow_real[at(16 * f + WEIGHT)] if weighted else 1.0
    flow_whole[at(32 * f + ALIVE)] = 0
    group_of[at(f)] = ENDED
    carried[at(flow_whole[at(32 * f + PAIR)])] += brought
    part_whole[PART_FLOWS, at(link_whole[at(16 * route[at(f), 0] + COMPONENT)])] -= 1
    for h in range(route.shape[1]):
        link = route[at(f), at(h)]
        if link < 0:
            break
        link_real[at(8 * link + THROUGH)] += gone
        if h < flow_whole[at(32 * f + BINDING)]:
            link_whole[at(16 * link + FLOWS)] -= 1
            # What is left of a sum of weights when the last of them has gone is rounding.
            link_real[at(8 * link + TOTAL)] = link_real[at(8 * link + TOTAL)] - weight if link_whole[at(16 * link + FLOWS)] > 0 else 0.0
            open_[at(4 * link + WEIGHTS)] -= weight
            open_[at(4 * link + COUNT)] -= 1.0
            if link_whole[at(16 * link + FLOWS)] == 0:
                link_real[at(8 * link + BUSY)] += now - link_real[at(8 * link + SINCE)]
        else:
            link_whole[at(16 * link + ELSEWHERE)] -= 1
            if link_whole[at(16 * link + ELSEWHERE)] == 0:
                link_real[at(8 * link + BUSY)] += now - link_real[at(8 * link + SINCE)]
    return _count_down(flow_whole, f, pending, woken, woke)


@merged
def _count_down(flow_whole: Whole32, f: int, pending: Ints, woken: Ints, woke: int) -> int:
    """Take a flow off its two counters; return how many counters have reached zero so far."""
    for counter in (flow_whole[at(32 * f + SOURCE)], flow_whole[at(32 * f + DESTINATION)]):
        pending[at(counter)] -= 1
        if pending[at(counter)] == 0:
            woken[woke] = counter
            woke += 1
    return woke


@merged
def _end_flows(
    route: Whole32, flow_whole: Whole32, group_of: Whole32, flow_real: Floats, link_whole: Whole32, link_real: Floats, fixed: Floats,
    open_: Floats, crossing: Whole16, neighbours: Whole32, shared: Whole32, shared_weight: Floats, before: Floats,
    candidates: Whole32, part_whole: Ints, part_real: Floats, capped: Whole32, carried: Floats, entry: Whole32, counts: Ints, part: int,
    pending: Ints, woken: Ints, weighted: bool
) -> int:
    """Let the flows end that end next in a component; return how many counters have reached zero."""
    links = crossing.shape[0]
    now, step = part_real[NEXT_END, at(part)], part_real[STEP, at(part)]
    begin = part_whole[BEGIN, at(part)]
    within = step * (1 + TIE) + 4e-16 * now
    # Who ends is decided before time passes: afterwards what is left is lost in rounding.
    ended = 0
    lowest = np.inf
    last = begin + part_whole[FILLED, at(part)]
    for place in range(begin, last + 1):
        if place < last:
            if fixed[FIXED_WAIT, at(place)] > within:
                continue
            group, service = candidates[at(place)], fixed[FIXED_SERVICE, at(place)]
        else:
            group, service = links + part, link_real[at(8 * (links + part) + SERVICE)]
        level = link_real[at(8 * group + LEVEL)]
        while link_whole[at(16 * group + HEAP)] >= 0:
            f = wide(link_whole[at(16 * group + HEAP)])
            if (flow_real[at(16 * f + TAG)] - service) / level > within:
                break
            _unheap(flow_whole, group_of, flow_real, link_whole, link_real, f, links, weighted)
            entry[at(ended)] = f
            ended += 1
            lowest = min(lowest, level)
    _pass_time(link_real, fixed, crossing, part_whole, part_real, part, step, now)
    if weighted or len(capped) > 0:
        _put_back(link_real, fixed, candidates, part_whole, part)
        part_whole[DIRTY, at(part)] = WHOLLY
    else:
        _undo(link_whole, link_real, fixed, open_, neighbours, shared, before, candidates, part_whole, part, lowest)
    woke = wide(0)
    for place in range(ended):
        counts[ENDS] += 1
        f = wide(entry[at(place)])
        # What links carry is counted by what virtual time says, and not by what was asked: they differ by rounding, or something is wrong.
        group = wide(group_of[at(f)])
        owed = (flow_real[at(16 * f + TAG)] - link_real[at(8 * group + SERVICE)]) * _speed(flow_real, f, group, links, weighted)
        _discount(route, flow_whole, group_of, flow_real, link_whole, crossing, neighbours, shared, shared_weight, f, links, weighted)
        woke = _off(
            route, flow_whole, group_of, flow_real, link_whole, link_real, open_, part_whole, carried, f, 0.0, owed, now, pending,
            woken, woke, weighted
        )
    part_whole[DIRTY, at(part)] = max(part_whole[DIRTY, at(part)], PARTLY)
    return woke


@inside
def _reach(
    route: Whole32, flow_whole: Whole32, group_of: Whole32, flow_real: Floats, link_whole: Whole32, link_real: Floats, fixed: Floats,
    open_: Floats, crossing: Whole16, neighbours: Whole32, shared: Whole32, shared_weight: Floats, before: Floats, listed: Whole32,
    members: Whole32, candidates: Whole32, part_whole: Ints, part_real: Floats, capped: Whole32, key: Floats, entry: Whole32, counts: Ints,
    part: int, now: float, weighted: bool
) -> None:
    """Let a component run to ``now`` at its present levels, because flows join it or leave it."""
    step = now - part_real[TIME, at(part)]
    if part_whole[PART_FLOWS, at(part)] > 0 and step > 0:
        if part_whole[DIRTY, at(part)] != CLEAN:
            _fill(
                route, flow_whole, group_of, flow_real, link_whole, link_real, fixed, open_, crossing, neighbours, shared, shared_weight,
                before, listed, members, candidates, part_whole, part_real, capped, key, entry, counts, part, weighted
            )
        _pass_time(link_real, fixed, crossing, part_whole, part_real, part, step, now)
    part_real[TIME, at(part)] = now


@merged
def _give_up(link_real: Floats, fixed: Floats, candidates: Whole32, part_whole: Ints, part: int) -> None:
    """Have all levels of a component found anew."""
    _put_back(link_real, fixed, candidates, part_whole, part)
    part_whole[DIRTY, at(part)] = WHOLLY


@from_python
def bring(
    route: Whole32, flow_whole: Whole32, group_of: Whole32, flow_real: Floats, link_whole: Whole32, link_real: Floats, fixed: Floats,
    open_: Floats, crossing: Whole16, neighbours: Whole32, shared: Whole32, shared_weight: Floats, before: Floats, listed: Whole32,
    members: Whole32, candidates: Whole32, part_whole: Ints, part_real: Floats, capped: Whole32, key: Floats, entry: Whole32, counts: Ints,
    part: int, now: float, weighted: bool
) -> None:
    """Let a component run to ``now`` at its present levels, because something about it is going to change."""
    _reach(
        route, flow_whole, group_of, flow_real, link_whole, link_real, fixed, open_, crossing, neighbours, shared, shared_weight, before,
        listed, members, candidates, part_whole, part_real, capped, key, entry, counts, part, now, weighted
    )
    _give_up(link_real, fixed, candidates, part_whole, part)


@inside
def _root(joined: Whole32, part: int) -> int:
    while joined[part] != part:
        joined[part] = joined[joined[part]]
        part = wide(joined[part])
    return part


@merged
def _connect(
    route: Whole32, flow_whole: Whole32, group_of: Whole32, flow_real: Floats, link_whole: Whole32, link_real: Floats, fixed: Floats,
    open_: Floats, crossing: Whole16, neighbours: Whole32, shared: Whole32, shared_weight: Floats, before: Floats, listed: Whole32,
    members: Whole32, candidates: Whole32, part_whole: Ints, part_real: Floats, capped: Whole32, key: Floats, entry: Whole32,
    joined: Whole32, counts: Ints, flows: Whole32, first: int, last: int, now: float, weighted: bool
) -> None:
    """Bring the components that new flows touch to ``now``, and make one of those that a flow joins."""
    parts = counts[PARTS]
    apart = False
    for index in range(last - 1, first - 1, -1):
        f = flows[index]
        home = link_whole[at(16 * route[at(f), 0] + COMPONENT)]
        for h in range(flow_whole[at(32 * f + BINDING)]):
            part = wide(link_whole[at(16 * route[at(f), at(h)] + COMPONENT)])
            apart = apart or part < 0 or part != home
            if part >= 0 and part_real[TIME, at(part)] != now:
                _reach(
                    route, flow_whole, group_of, flow_real, link_whole, link_real, fixed, open_, crossing, neighbours, shared,
                    shared_weight, before, listed, members, candidates, part_whole, part_real, capped, key, entry, counts, part, now,
                    weighted
                )
            if part >= 0 and (weighted or len(capped) > 0) and part_whole[DIRTY, at(part)] != WHOLLY:
                _give_up(link_real, fixed, candidates, part_whole, part)
    if not apart:
        return
    for part in range(parts):
        joined[part] = part
    for index in range(last - 1, first - 1, -1):
        f = flows[index]
        home = wide(-1)
        for h in range(flow_whole[at(32 * f + BINDING)]):
            part = wide(link_whole[at(16 * route[at(f), at(h)] + COMPONENT)])
            if part >= 0:
                part = _root(joined, part)
                if home >= 0 and part != home:
                    _give_up(link_real, fixed, candidates, part_whole, part)
                    _give_up(link_real, fixed, candidates, part_whole, home)
                    joined[max(part, home)] = min(part, home)
                    part = min(part, home)
                home = part
        if home < 0:
            home = parts
            joined[home] = home
            part_whole[PART_FLOWS, home] = 0
            part_whole[FILLED, home] = 0
            part_real[TIME, home] = now
            part_whole[DIRTY, home] = WHOLLY
            parts += 1
        for h in range(flow_whole[at(32 * f + BINDING)]):
            if link_whole[at(16 * route[at(f), at(h)] + COMPONENT)] < 0:
                link = route[at(f), at(h)]
                link_whole[at(16 * link + COMPONENT)] = home
                link_whole[at(16 * link + FIXED)] = 0
                open_[at(4 * link + LEFT)] = link_real[at(8 * link + CAPACITY)]
                open_[at(4 * link + WEIGHTS)] = open_[at(4 * link + COUNT)] = 0.0
    counts[PARTS] = _renumber(
        route, flow_whole, group_of, flow_real, link_whole, link_real, fixed, crossing, neighbours, shared, shared_weight, members,
        candidates, part_whole, part_real, capped, parts, joined, weighted
    )


@merged
def _leave_caps(
    route: Whole32, flow_whole: Whole32, group_of: Whole32, flow_real: Floats, link_whole: Whole32, link_real: Floats,
    crossing: Whole16, neighbours: Whole32, shared: Whole32, shared_weight: Floats, capped: Whole32, weighted: bool
) -> None:
    """Take the flows that run at their caps out of their groups, until :func:`_return_to_caps`; their tags are what they have to go."""
    links = crossing.shape[0]
    for place in range(len(capped)):
        f = wide(capped[place])
        if flow_whole[at(32 * f + ALIVE)] != 0 and group_of[at(f)] >= links:
            flow_real[at(16 * f + TAG)] = _exit(
                route, flow_whole, group_of, flow_real, link_whole, link_real, crossing, neighbours, shared, shared_weight, f, links,
                weighted
            )
            group_of[at(f)] = NOWHERE


@merged
def _put_aside(
    crossing: Whole16, fixed: Floats, candidates: Whole32, part_whole: Ints, part_real: Floats, parts: int,
    joined: Whole32
) -> int:
    """Copy what is known of components, and give new numbers to those that remain; return how many these are."""
    # Loops and not slices: these take seconds to compile.
    links = crossing.shape[0]
    for place in range(links):
        candidates[links + place] = candidates[at(place)]
        for row in range(FIXED_LEVEL, FIXED_WAIT + 1):
            fixed[row, links + place] = fixed[row, place]
    kept = wide(0)
    part_whole[SIZE, 0] = 0
    for part in range(parts):
        for row in range(PART_ROWS):
            part_whole[OLD + row, part] = part_whole[row, at(part)]
        for row in range(PART_TIMES):
            part_real[OLD_TIMES + row, part] = part_real[row, at(part)]
        if joined[part] == part:
            part_whole[NUMBER, at(part)] = kept
            kept += 1
            part_whole[SIZE, kept] = 0
    return kept


@merged
def _renumber(
    route: Whole32, flow_whole: Whole32, group_of: Whole32, flow_real: Floats, link_whole: Whole32, link_real: Floats, fixed: Floats,
    crossing: Whole16, neighbours: Whole32, shared: Whole32, shared_weight: Floats, members: Whole32, candidates: Whole32, part_whole: Ints,
    part_real: Floats, capped: Whole32, parts: int, joined: Whole32, weighted: bool
) -> int:
    """Give the joined components the numbers 0, 1 …, and each its links in one row; return how many there are.

    Components that were not touched, and so need not be filled anew, keep their candidates in the order in which these were fixed.
    """
    links = crossing.shape[0]
    # Flows at their caps leave their old groups before the numbers change.
    _leave_caps(
        route, flow_whole, group_of, flow_real, link_whole, link_real, crossing, neighbours, shared, shared_weight, capped, weighted
    )
    kept = _put_aside(crossing, fixed, candidates, part_whole, part_real, parts, joined)
    for link in range(links):
        if link_whole[at(16 * link + COMPONENT)] >= 0:
            to = part_whole[NUMBER, _root(joined, wide(link_whole[at(16 * link + COMPONENT)]))]
            link_whole[at(16 * link + COMPONENT)] = to
            part_whole[SIZE, to + 1] += 1
    for part in range(kept):
        part_whole[SIZE, part + 1] += part_whole[SIZE, at(part)]
        part_whole[PART_FLOWS, at(part)] = 0
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
                old = links + part_whole[OLD + BEGIN, part] + place
                candidates[begin + place] = candidates[at(old)]
                for row in range(FIXED_LEVEL, FIXED_WAIT + 1):
                    fixed[row, begin + place] = fixed[row, old]
    for link in range(links):
        part = link_whole[at(16 * link + COMPONENT)]
        if part < 0:
            continue
        members[part_whole[END, at(part)]] = link
        part_whole[END, at(part)] += 1
        if link_whole[at(16 * link + CANDIDATE)] != 0 and part_whole[DIRTY, at(part)] == WHOLLY:
            candidates[part_whole[BEGIN, at(part)] + part_whole[CANDIDATES, at(part)]] = link
            part_whole[CANDIDATES, at(part)] += 1
    _return_to_caps(
        route, flow_whole, group_of, flow_real, link_whole, link_real, crossing, neighbours, shared, shared_weight, capped, kept,
        weighted
    )
    return kept


@merged
def _return_to_caps(
    route: Whole32, flow_whole: Whole32, group_of: Whole32, flow_real: Floats, link_whole: Whole32, link_real: Floats,
    crossing: Whole16, neighbours: Whole32, shared: Whole32, shared_weight: Floats, capped: Whole32, parts: int, weighted: bool
) -> None:
    """Put the flows that :func:`_leave_caps` took out into the groups of their components' new numbers."""
    links = crossing.shape[0]
    for part in range(parts):
        link_whole[at(16 * (links + part) + HEAP)] = -1
        link_whole[at(16 * (links + part) + OWN)] = 0
        link_real[at(8 * (links + part) + LEVEL)] = 1.0
        link_real[at(8 * (links + part) + SERVICE)] = 0.0
    for place in range(len(capped)):
        f = wide(capped[place])
        if flow_whole[at(32 * f + ALIVE)] != 0 and group_of[at(f)] == NOWHERE:
            _enter(
                route, flow_whole, group_of, flow_real, link_whole, link_real, crossing, neighbours, shared, shared_weight, f,
                links + wide(link_whole[at(16 * route[at(f), 0] + COMPONENT)]), flow_real[at(16 * f + TAG)], links, weighted
            )


@inside
def _start(
    route: Whole32, flow_whole: Whole32, group_of: Whole32, flow_real: Floats, link_whole: Whole32, link_real: Floats, fixed: Floats,
    open_: Floats, crossing: Whole16, neighbours: Whole32, shared: Whole32, shared_weight: Floats, before: Floats, listed: Whole32,
    members: Whole32, candidates: Whole32, part_whole: Ints, part_real: Floats, capped: Whole32, key: Floats, entry: Whole32,
    joined: Whole32, counts: Ints, flows: Whole32, first: int, last: int, now: float, weighted: bool
) -> None:
    """Let flows that stand in the tables move: on their links, and in the group of the link that looks scarcest.

    They are ``flows[first:last]``, from the last to the first; their tags are the bytes that they have to go.
    """
    _connect(
        route, flow_whole, group_of, flow_real, link_whole, link_real, fixed, open_, crossing, neighbours, shared, shared_weight, before,
        listed, members, candidates, part_whole, part_real, capped, key, entry, joined, counts, flows, first, last, now, weighted
    )
    links = crossing.shape[0]
    for index in range(last - 1, first - 1, -1):
        f = wide(flows[index])
        flow_whole[at(32 * f + ALIVE)] = 1
        flow_whole[at(32 * f + WAITING)] = 0
        flow_whole[at(32 * f + SETTLED)] = 0
        for row in (CHILD, NEXT, PREVIOUS):
            flow_whole[at(32 * f + row)] = -1
        scarcest, least = wide(-1), np.inf
        for h in range(route.shape[1]):
            link = route[at(f), at(h)]
            if link < 0:
                break
            if h >= flow_whole[at(32 * f + BINDING)]:
                if link_whole[at(16 * link + ELSEWHERE)] == 0:
                    link_real[at(8 * link + SINCE)] = now
                link_whole[at(16 * link + ELSEWHERE)] += 1
                continue
            if link_whole[at(16 * link + FLOWS)] == 0:
                link_real[at(8 * link + SINCE)] = now
            link_whole[at(16 * link + FLOWS)] += 1
            link_whole[at(16 * link + RESERVED)] -= 1
            link_real[at(8 * link + TOTAL)] += flow_real[at(16 * f + WEIGHT)] if weighted else 1.0
            listed[at(link_whole[at(16 * link + LAST)])] = f
            link_whole[at(16 * link + LAST)] += 1
            share = link_real[at(8 * link + CAPACITY)] / link_real[at(8 * link + TOTAL)]
            if share < least:
                scarcest, least = wide(link), share
        part = wide(link_whole[at(16 * scarcest + COMPONENT)])
        part_whole[PART_FLOWS, at(part)] += 1
        if part_whole[DIRTY, at(part)] != WHOLLY:
            part_whole[DIRTY, at(part)] = PARTLY
            for h in range(flow_whole[at(32 * f + BINDING)]):
                link = wide(route[at(f), at(h)])
                open_[at(4 * link + WEIGHTS)] += 1.0
                open_[at(4 * link + COUNT)] += 1.0
                _lower(link_whole, link_real, fixed, open_, neighbours, shared, before, candidates, part_whole, part, link)
        if link_whole[at(16 * scarcest + CANDIDATE)] == 0:
            link_whole[at(16 * scarcest + CANDIDATE)] = 1
            candidates[part_whole[BEGIN, at(part)] + part_whole[CANDIDATES, at(part)]] = scarcest
            part_whole[CANDIDATES, at(part)] += 1
        _enter(
            route, flow_whole, group_of, flow_real, link_whole, link_real, crossing, neighbours, shared, shared_weight, f, scarcest,
            flow_real[at(16 * f + TAG)], links, weighted
        )


@from_python
def start(
    route: Whole32, flow_whole: Whole32, group_of: Whole32, flow_real: Floats, link_whole: Whole32, link_real: Floats, fixed: Floats,
    open_: Floats, crossing: Whole16, neighbours: Whole32, shared: Whole32, shared_weight: Floats, before: Floats, listed: Whole32,
    members: Whole32, candidates: Whole32, part_whole: Ints, part_real: Floats, capped: Whole32, key: Floats, entry: Whole32,
    joined: Whole32, counts: Ints, flows: Whole32, now: float, weighted: bool
) -> None:
    """Let flows that stand in the tables move, from the last to the first; their tags are the bytes that they have to go."""
    _start(
        route, flow_whole, group_of, flow_real, link_whole, link_real, fixed, open_, crossing, neighbours, shared, shared_weight, before,
        listed, members, candidates, part_whole, part_real, capped, key, entry, joined, counts, flows, wide(0), len(flows), now, weighted
    )


@merged
def _start_queued(
    route: Whole32, flow_whole: Whole32, group_of: Whole32, flow_real: Floats, link_whole: Whole32, link_real: Floats, fixed: Floats,
    open_: Floats, crossing: Whole16, neighbours: Whole32, shared: Whole32, shared_weight: Floats, before: Floats, listed: Whole32,
    members: Whole32, candidates: Whole32, part_whole: Ints, part_real: Floats, capped: Whole32, key: Floats, entry: Whole32,
    start_key: Floats, start_entry: Whole32, joined: Whole32, counts: Ints, now: float, weighted: bool
) -> None:
    """Start the flows whose time has come. They are put where the queue ends, which gets shorter, each before the one that was there."""
    last = counts[QUEUED]
    first, size = last, last
    while size > 0 and start_key[0] == now:
        f = wide(start_entry[0])
        size -= 1
        if size > 0:
            _sift(start_key, start_entry, size, wide(0), start_key[size], wide(start_entry[size]))
        if flow_whole[at(32 * f + WAITING)] != 0:  # otherwise it was cancelled
            first -= 1
            start_entry[first] = f
            flow_real[at(16 * f + TAG)] = flow_real[at(16 * f + ASKED)]
    counts[QUEUED] = size
    _start(
        route, flow_whole, group_of, flow_real, link_whole, link_real, fixed, open_, crossing, neighbours, shared, shared_weight, before,
        listed, members, candidates, part_whole, part_real, capped, key, entry, joined, counts, start_entry, first, last, now, weighted
    )


@from_python
def advance(
    route: Whole32, flow_whole: Whole32, group_of: Whole32, flow_real: Floats, link_whole: Whole32, link_real: Floats, fixed: Floats,
    open_: Floats, crossing: Whole16, neighbours: Whole32, shared: Whole32, shared_weight: Floats, before: Floats, listed: Whole32,
    members: Whole32, candidates: Whole32, part_whole: Ints, part_real: Floats, capped: Whole32, carried: Floats, key: Floats,
    entry: Whole32, start_key: Floats, start_entry: Whole32, joined: Whole32, counts: Ints, horizon: float, now: float, pending: Ints,
    woken: Ints, weighted: bool
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
            if part_whole[PART_FLOWS, at(part)] == 0:
                continue
            if part_whole[DIRTY, at(part)] != CLEAN:
                _fill(
                    route, flow_whole, group_of, flow_real, link_whole, link_real, fixed, open_, crossing, neighbours, shared,
                    shared_weight, before, listed, members, candidates, part_whole, part_real, capped, key, entry, counts, part, weighted
                )
            soon[size], whose[size] = part_real[NEXT_END, at(part)], part
            size += 1
        for place in range(size // 2 - 1, -1, -1):
            _sift(soon, whose, size, place, soon[at(place)], wide(whose[at(place)]))
        while True:
            soonest = soon[0] if size > 0 else np.inf
            if counts[QUEUED] > 0 and start_key[0] < soonest:
                if start_key[0] > horizon:
                    return horizon, 0
                now = start_key[0]
                _start_queued(
                    route, flow_whole, group_of, flow_real, link_whole, link_real, fixed, open_, crossing, neighbours, shared,
                    shared_weight, before, listed, members, candidates, part_whole, part_real, capped, key, entry, start_key, start_entry,
                    joined, counts, now, weighted
                )
                break
            if size == 0:
                return (horizon if horizon < np.inf else now), 0
            if soonest > horizon:
                return horizon, 0
            now, first = soonest, wide(whose[0])
            woke = _end_flows(
                route, flow_whole, group_of, flow_real, link_whole, link_real, fixed, open_, crossing, neighbours, shared, shared_weight,
                before, candidates, part_whole, part_real, capped, carried, entry, counts, first, pending, woken, weighted
            )
            if woke:
                return now, woke
            if part_whole[PART_FLOWS, first] == 0:
                size = _pop(soon, whose, size)
                continue
            _fill(
                route, flow_whole, group_of, flow_real, link_whole, link_real, fixed, open_, crossing, neighbours, shared, shared_weight,
                before, listed, members, candidates, part_whole, part_real, capped, key, entry, counts, first, weighted
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
    route: Whole32, flow_whole: Whole32, flow_real: Floats, link_whole: Whole32, start_key: Floats, start_entry: Whole32,
    counts: Ints, f: int, paths: Whole32, path: int, binding: Bools, pair: int, size: float, weight: float, cap: float, source: int,
    destination: int, time: float
) -> bool:
    """Write a new flow into the tables and into the queue of those that will start, at ``time``.

    Its links are ``paths[path]``; in the tables those that may become full come first. Returns whether their lists have room for it.
    """
    fits = True
    many = 0
    for h in range(paths.shape[1]):
        link = paths[path, h]
        if link >= 0 and binding[link]:
            route[at(f), many] = link
            many += 1
            link_whole[at(16 * link + RESERVED)] += 1
            used = link_whole[at(16 * link + LAST)] - link_whole[at(16 * link + FIRST)] + link_whole[at(16 * link + RESERVED)]
            fits = fits and used <= link_whole[at(16 * link + ROOM)]
    flow_whole[at(32 * f + BINDING)] = many
    for h in range(paths.shape[1]):
        link = paths[path, h]
        if link >= 0 and not binding[link]:
            route[at(f), many] = link
            many += 1
    for h in range(many, paths.shape[1]):
        route[at(f), at(h)] = -1
    flow_whole[at(32 * f + SOURCE)], flow_whole[at(32 * f + DESTINATION)] = source, destination
    flow_whole[at(32 * f + PAIR)] = pair
    flow_whole[at(32 * f + ALIVE)], flow_whole[at(32 * f + WAITING)] = 0, 1
    flow_real[at(16 * f + ASKED)], flow_real[at(16 * f + BOOKED)] = size, 0.0
    flow_real[at(16 * f + WEIGHT)] = weight
    flow_real[at(16 * f + CAP)] = cap
    _queue(start_key, start_entry, counts, f, time)
    return fits


@from_python
def admit(
    route: Whole32, flow_whole: Whole32, flow_real: Floats, link_whole: Whole32, start_key: Floats, start_entry: Whole32,
    counts: Ints, flows: Ints, now: float, path: Whole32, binding: Bools, pair: Ints, size: Floats, weight: Floats, cap: Floats,
    watch: Whole32, delay: Floats
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
            route, flow_whole, flow_real, link_whole, start_key, start_entry, counts, flows[index], path, index, binding,
            pair[index], size[index], weight[index] if len(weight) else 1.0, cap[index] if len(cap) else np.inf, wide(watch[index, 0]),
            wide(watch[index, 1]), now + delay[index] if len(delay) else now
        )
        fits = fits and listed
    return fits


@from_python
def stop(
    route: Whole32, flow_whole: Whole32, group_of: Whole32, flow_real: Floats, link_whole: Whole32, link_real: Floats,
    open_: Floats, crossing: Whole16, neighbours: Whole32, shared: Whole32, shared_weight: Floats, part_whole: Ints, carried: Floats,
    flows: Ints, now: float, pending: Ints, woken: Ints, left: Floats, weighted: bool
) -> int:
    """Take flows away before they end (``left`` is written: their bytes to go); return how many counters have reached zero."""
    links = crossing.shape[0]
    woke = wide(0)
    for index in range(len(flows)):
        f = flows[index]
        if flow_whole[at(32 * f + WAITING)] != 0:
            left[index] = flow_real[at(16 * f + ASKED)]
            flow_whole[at(32 * f + WAITING)] = 0
            for h in range(flow_whole[at(32 * f + BINDING)]):
                link_whole[at(16 * route[at(f), at(h)] + RESERVED)] -= 1
            woke = _count_down(flow_whole, f, pending, woken, woke)
            continue
        going = _exit(
            route, flow_whole, group_of, flow_real, link_whole, link_real, crossing, neighbours, shared, shared_weight, f, links,
            weighted
        )
        left[index] = min(max(going, 0.0), flow_real[at(16 * f + ASKED)])
        woke = _off(
            route, flow_whole, group_of, flow_real, link_whole, link_real, open_, part_whole, carried, f, left[index], left[index],
            now, pending, woken, woke, weighted
        )
    return woke


@from_python
def list_anew(flow_whole: Whole32, link_whole: Whole32, listed: Whole32, old: Whole32, first: Ints) -> None:
    """Write the flows of every link from ``old`` to ``listed``, where those of link k stand from ``first[k]`` on.

    Flows that have ended are left out, so that their numbers may be used again.
    """
    for link in range(len(first)):
        to = first[link]
        for place in range(link_whole[at(16 * link + FIRST)], link_whole[at(16 * link + LAST)]):
            f = old[place]
            if flow_whole[at(32 * f + ALIVE)] != 0:
                listed[to] = f
                to += 1
        link_whole[at(16 * link + FIRST)], link_whole[at(16 * link + LAST)] = first[link], to


@from_python
def so_far(
    route: Whole32, flow_whole: Whole32, group_of: Whole32, flow_real: Floats, link_whole: Whole32, link_real: Floats, fixed: Floats,
    open_: Floats, crossing: Whole16, neighbours: Whole32, shared: Whole32, shared_weight: Floats, before: Floats, listed: Whole32,
    members: Whole32, candidates: Whole32, part_whole: Ints, part_real: Floats, capped: Whole32, key: Floats, entry: Whole32, counts: Ints,
    part: int, now: float, busy: Floats, weighted: bool
) -> None:
    """Add to copies of busy seconds and bytes what the links of a component did since these were counted last."""
    if part_whole[PART_FLOWS, at(part)] == 0:
        return
    if part_whole[DIRTY, at(part)] != CLEAN:
        _fill(
            route, flow_whole, group_of, flow_real, link_whole, link_real, fixed, open_, crossing, neighbours, shared, shared_weight,
            before, listed, members, candidates, part_whole, part_real, capped, key, entry, counts, part, weighted
        )
    for place in range(part_whole[BEGIN, at(part)], part_whole[END, at(part)]):
        link = wide(members[at(place)])
        if link_whole[at(16 * link + FLOWS)] > 0:
            busy[link] += now - link_real[at(8 * link + SINCE)]
    # The virtual times of groups, as of the component's own time.
    for place in range(part_whole[BEGIN, at(part)], part_whole[BEGIN, at(part)] + part_whole[FILLED, at(part)]):
        link_real[at(8 * candidates[at(place)] + SERVICE)] = fixed[FIXED_SERVICE, at(place)]


@from_python
def so_far_elsewhere(
    route: Whole32, flow_whole: Whole32, group_of: Whole32, flow_real: Floats, link_whole: Whole32, link_real: Floats,
    crossing: Whole16, part_real: Floats, now: float, busy: Floats, through: Floats, weighted: bool
) -> None:
    """Add to copies what the links that can never be full did for the flows that are on their way; :func:`so_far` comes first."""
    links = crossing.shape[0]
    for link in range(links):
        if link_whole[at(16 * link + ELSEWHERE)] > 0:
            busy[link] += now - link_real[at(8 * link + SINCE)]
    for f in range(route.shape[0]):
        if flow_whole[at(32 * f + ALIVE)] == 0:
            continue
        group = wide(group_of[at(f)])
        part = link_whole[at(16 * route[at(f), 0] + COMPONENT)]
        service = link_real[at(8 * group + SERVICE)] + link_real[at(8 * group + LEVEL)] * (now - part_real[TIME, at(part)])
        left = (flow_real[at(16 * f + TAG)] - service) * _speed(flow_real, f, group, links, weighted)
        for h in range(route.shape[1]):
            link = route[at(f), at(h)]
            if link < 0:
                break
            through[link] += flow_real[at(16 * f + ASKED)] - left - flow_real[at(16 * f + BOOKED)]
