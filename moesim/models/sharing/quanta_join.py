"""Let flows join: their numbers, their places on the lists of links, and the parts that they connect."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from moesim.facts.arrays import Bools, Floats, Ints
from moesim.models.sharing.compiled import at, making_arrays
from moesim.models.sharing.quanta_carry import bring_all
from moesim.models.sharing.quanta_parts import attach, forget, found, merge
from moesim.models.sharing.quanta_state import (
    ASKED,
    CHECKED,
    DESTINATION,
    ENDED,
    FLOWS,
    HEAD_LENGTH,
    JOINED,
    LEFT,
    LENGTH,
    LOAD,
    MANY,
    MARK,
    PAIR,
    PART,
    ROOM,
    SOON,
    SOURCE,
    START,
    UNTIL,
    WEIGHT,
    State,
    enlist,
)

Whole32 = NDArray[np.int32]


class Plan(NamedTuple):
    """What a join needs at hand: flows that lists get, which lists, pairs of parts (small, large) of which one took in the other."""

    more: Ints  # [2 K + 2], zero between joins
    load: Floats  # [2 K + 2], bytes that links get, zero between joins
    touched: Ints  # [2 K + 2]
    absorbed: Ints  # [2 K + 2]
    merged: Ints  # [1], how many pairs
    links: Ints  # [1], how many links the flows of a join cross
    twice: Ints  # [1], whether a route of the last join crosses a link twice


@making_arrays
def _room_for(length: int, more: int) -> int:
    """Return how long a list may grow that has and gets some flows."""
    return length + more if length == 0 or more == 0 else (length + more) * 5 // 4 + 4


@making_arrays
def repack(s: State, more: Ints, pool: NDArray[np.int32]) -> int:
    """Move all lists to another pool, without flows that ended, each with room for ``more`` and some spare; return how much is used."""
    mark = s.route.shape[1] - 1
    to = 0
    for which in range(len(s.list)):
        first, length = s.list[which, START], s.list[which, LENGTH]
        s.list[which, START] = to
        kept = to
        head = first + s.place[which, HEAD_LENGTH] if which < len(s.place) else first
        soon = first + s.place[which, SOON] if which < len(s.place) else first
        for i in range(first, first + length):
            if s.route[s.pool[i], mark] != ENDED:
                pool[kept] = s.pool[i]
                kept += 1
            elif i < head:
                s.place[which, HEAD_LENGTH] -= 1
                s.place[which, SOON] -= i < soon
        s.list[which, LENGTH] = kept - to
        s.list[which, ROOM] = _room_for(kept - to, more[which])
        to += s.list[which, ROOM]
    return to


@making_arrays
def _write(
    s: State, ids: Whole32, route: NDArray[np.int32], binding: NDArray[np.bool_], pair: Ints, size: Floats, watch: NDArray[np.int32]
) -> bool:
    """Write new flows; links that may be full come first on a route, and a flow that crosses none gets the link that stands for none.

    Returns whether any route crosses a link twice.
    """
    hops, last = route.shape[1], s.route.shape[1] - 1
    twice = False
    for i in range(len(ids)):
        f = ids[i]
        many = 0
        for h in range(hops):
            k = route[at(i), h]
            if k >= 0 and binding[k]:
                for before in range(many):
                    twice = twice or s.route[at(f), before] == k
                s.route[at(f), many] = k
                many += 1
        if many == 0:
            s.route[at(f), 0] = len(s.place) - 1
            many = 1
        for h in range(hops):
            k = route[at(i), h]
            if k >= 0 and not binding[k]:
                s.route[at(f), many] = -2 - k
                many += 1
        for h in range(many, last):  # a slice is an object of its own, which takes longer than what it is for
            s.route[at(f), h] = -1
        s.route[at(f), last] = 1  # on its way
        s.amount[at(f), ASKED] = s.amount[at(f), LEFT] = size[at(i)]
        s.number[at(f), PAIR] = pair[at(i)]
        s.number[at(f), SOURCE], s.number[at(f), DESTINATION] = watch[at(i), 0], watch[at(i), 1]
    return twice


@making_arrays
def _links_wanted(s: State, ids: Whole32, more: Ints, touched: Ints) -> int:
    """Count how many flows the list of each link gets; write the links, and return how many there are."""
    count = 0
    for f in ids:
        for h in range(s.route.shape[1] - 2):
            k = s.route[at(f), h]
            if k < 0:
                break
            if more[at(k)] == 0:
                touched[count] = k
                count += 1
            more[at(k)] += 1
    return count


@making_arrays
def _make_room(s: State, touched: Ints, more: Ints, used: int) -> int:
    """Move lists that grow too long to the end of the pool; return how much of it is used, or -1 if it is too small."""
    need = 0
    for which in touched:
        if s.list[which, LENGTH] + more[which] > s.list[which, ROOM]:
            need += _room_for(s.list[which, LENGTH], more[which])
    if used + need > len(s.pool):
        return -1
    for which in touched:
        first, length = s.list[which, START], s.list[which, LENGTH]
        if length + more[which] > s.list[which, ROOM]:
            s.pool[used : used + length] = s.pool[first : first + length]
            s.list[which, START], s.list[which, ROOM] = used, _room_for(length, more[which])
            used += s.list[which, ROOM]
    return used


@making_arrays
def _enlist_all(s: State, ids: Whole32, more: Ints, load: Floats, touched: Ints) -> None:
    """Put new flows on the lists of their links, which must have room.

    What changes with each flow are two narrow arrays, which stay in the processor's nearest memory; rows of links are touched once.
    """
    weighted = s.weight.size > 0
    for k in touched:
        more[at(k)] = s.list[k, START] + s.list[k, LENGTH]
    for f in ids:
        size = s.amount[at(f), LEFT]
        for h in range(s.route.shape[1] - 2):
            k = s.route[at(f), h]
            if k < 0:
                break
            s.pool[at(more[at(k)])] = f
            more[at(k)] += 1
            load[at(k)] += size
            if weighted:
                s.link[k, WEIGHT] += s.weight[f]
    for k in touched:
        new = more[at(k)] - s.list[k, START] - s.list[k, LENGTH]
        s.list[k, LENGTH] += new
        s.place[k, FLOWS] += new
        s.link[k, LOAD] += load[at(k)]
        if not weighted:
            s.link[k, WEIGHT] += new
        more[at(k)], load[at(k)] = 0, 0.0


@making_arrays
def _connect(s: State, ids: Whole32, now: float, absorbed: Ints) -> int:
    """Make one part of those that new flows connect.

    Writes pairs (part, part that took it in) and returns how many: see :func:`_gather`.
    """
    count = 0
    for f in ids:
        p = -1
        for h in range(s.route.shape[1] - 2):
            k = s.route[at(f), h]
            if k == -1:
                break
            if k < 0:  # a link that cannot be full
                if s.place[-2 - k, FLOWS] == 0:
                    s.link[-2 - k, UNTIL] = now
                s.place[-2 - k, FLOWS] += 1
                continue
            other = s.place[at(k), PART]
            if other < 0 and p < 0:
                found(s, k, now, now, now)
                p = k
            elif other < 0:
                attach(s, k, p)
            elif p < 0:
                p = other
            elif other != p:
                larger = merge(s, p, other)
                absorbed[2 * count] = other if larger == p else p
                absorbed[2 * count + 1] = larger
                count += 1
                p = larger
        s.part[at(p), MANY] += 1
        s.span[at(p), JOINED] = now
    return count


@making_arrays
def _parts_wanted(s: State, ids: Whole32, absorbed: Ints, count: int, more: Ints, touched: Ints) -> int:
    """Count how many flows the list of each part gets; write these lists, and return how many there are."""
    links = len(s.place)
    many = 0
    for i in range(count):
        small, large = links + absorbed[2 * i], links + absorbed[2 * i + 1]
        if more[large] == 0 and (s.list[small, LENGTH] > 0 or more[small] > 0):
            touched[many] = large
            many += 1
        more[large] += s.list[small, LENGTH] + more[small]
    for f in ids:
        which = links + s.place[at(s.route[at(f), 0]), PART]
        if more[at(which)] == 0:
            touched[many] = which
            many += 1
        more[at(which)] += 1
    return many


@making_arrays
def _gather(s: State, ids: Whole32, absorbed: Ints, count: int) -> None:
    """Give parts the flows of parts that they took in, then new ones; their lists must have room."""
    links = len(s.place)
    for i in range(count):
        small, large = absorbed[2 * i], absorbed[2 * i + 1]
        first = s.list[links + small, START]
        for j in range(first, first + s.list[links + small, LENGTH]):
            f = s.pool[j]
            if s.route[at(f), -1] != ENDED:
                s.route[at(f), -1] = s.part[large, MARK]
                enlist(s, links + large, f)
        forget(s, small)
    p, which, mark = -1, -1, 0
    for f in ids:
        if s.place[at(s.route[at(f), 0]), PART] != p:
            p = s.place[at(s.route[at(f), 0]), PART]
            which, mark = links + p, s.part[p, MARK]
            s.part[p, CHECKED] = max(s.part[p, CHECKED], s.part[p, MANY])
        s.route[at(f), -1] = mark
        enlist(s, which, f)


@making_arrays
def connect_anew(s: State, stage: int, now: float, ids: Whole32, plan: Plan, used: int) -> tuple[int, int, int]:
    """Put flows that are written down on their links and into parts.

    Returns 3, or the stage at which the pool was too small for ``plan.more`` flows on the first lists of ``plan.touched``, with their
    number: repack and call again with that stage. The last number is how much of the pool is used.
    """
    if stage == 0:
        count = _links_wanted(s, ids, plan.more, plan.touched)
        bring_all(s, plan.touched[:count], now)
        plan.links[0] = count
        room = _make_room(s, plan.touched[:count], plan.more, used)
        if room < 0:
            return 1, count, used
        used = room
    if stage <= 1:
        _enlist_all(s, ids, plan.more, plan.load, plan.touched[: plan.links[0]])
        plan.merged[0] = _connect(s, ids, now, plan.absorbed)
        count = _parts_wanted(s, ids, plan.absorbed, plan.merged[0], plan.more, plan.touched)
        room = _make_room(s, plan.touched[:count], plan.more, used)
        if room < 0:
            return 2, count, used
        plan.more[plan.touched[:count]] = 0
        used = room
    _gather(s, ids, plan.absorbed, plan.merged[0])
    return 3, 0, used


@making_arrays
def admit(
    s: State,
    stage: int,
    now: float,
    ids: Whole32,
    route: NDArray[np.int32],
    binding: Bools,
    pair: Ints,
    size: Floats,
    watch: NDArray[np.int32],
    plan: Plan,
    used: int,
) -> tuple[int, int, int]:
    """Let flows join, with numbers that are theirs; otherwise as :func:`connect_anew`."""
    if stage == 0:
        plan.twice[0] = _write(s, ids, route, binding, pair, size, watch)
    return connect_anew(s, stage, now, ids, plan, used)
