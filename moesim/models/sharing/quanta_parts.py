"""Parts: links that live flows connect. Each part has a quantum of its own."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.facts.arrays import Bools, Ints
from moesim.models.sharing.compiled import lean, making_arrays
from moesim.models.sharing.quanta_fill import start_quantum
from moesim.models.sharing.quanta_groups import expel
from moesim.models.sharing.quanta_state import (
    ASKED,
    BEGAN,
    BORN,
    BUSY,
    CHECKED,
    FIRST,
    FLOWS,
    FOLLOWING,
    GONE,
    HEAD,
    HEAD_LENGTH,
    JOINED,
    LASTS,
    LEFT,
    LENGTH,
    LOAD,
    MANY,
    MARK,
    PART,
    ROOM,
    STALE,
    START,
    THEN,
    THROUGH,
    UNTIL,
    USED,
    WEIGHT,
    State,
    enlist,
)


@making_arrays
def found(s: State, p: int, now: float, joined: float, born: float) -> None:
    """Make a part without flows out of nothing; it has one link, after which it is named."""
    s.part[p, HEAD], s.place[p, PART], s.place[p, FOLLOWING] = p, p, -1
    s.part[p, MANY], s.part[p, FIRST], s.part[p, MARK], s.part[p, STALE], s.part[p, CHECKED] = 0, -1, 1, 1, 0
    s.span[p, BEGAN], s.span[p, LASTS], s.span[p, THEN], s.span[p, JOINED], s.span[p, BORN] = now, 0.0, now, joined, born
    s.tide[p, USED] = s.link[p, GONE] = 0.0
    s.list[len(s.place) + p, LENGTH] = 0
    s.active[0] += 1
    s.active[s.active[0]] = p


@making_arrays
def attach(s: State, k: int, p: int) -> None:
    """Add a link that is free to a part."""
    s.place[k, PART], s.place[k, FOLLOWING], s.part[p, HEAD] = p, s.part[p, HEAD], k
    s.tide[k, USED] = s.link[k, GONE] = 0.0


@making_arrays
def forget(s: State, p: int) -> None:
    """Strike a part off the list of parts."""
    for i in range(1, s.active[0] + 1):
        if s.active[i] == p:
            s.active[i] = s.active[s.active[0]]
            s.active[0] -= 1
            break
    s.list[len(s.place) + p, LENGTH] = 0


@making_arrays
def dissolve(s: State, p: int) -> None:
    """Let the links of a part without flows go."""
    k = s.part[p, HEAD]
    while k >= 0:
        following = s.place[k, FOLLOWING]
        s.place[k, PART] = -1
        s.link[k, LOAD] = s.link[k, GONE] = 0.0
        s.list[k, LENGTH] = s.place[k, HEAD_LENGTH] = 0
        k = following
    forget(s, p)


@making_arrays
def merge(s: State, p: int, other: int) -> int:
    """Make one part of two, both brought up to now; return the larger, which takes in the smaller. Lists of flows come later."""
    if s.part[p, MANY] < s.part[other, MANY]:
        p, other = other, p
    k = s.part[other, HEAD]
    while k >= 0:
        following = s.place[k, FOLLOWING]
        s.place[k, PART], s.place[k, FOLLOWING], s.part[p, HEAD] = p, s.part[p, HEAD], k
        k = following
    s.part[p, MANY] += s.part[other, MANY]
    s.span[p, BORN] = min(s.span[p, BORN], s.span[other, BORN])
    s.part[p, CHECKED] = max(s.part[p, CHECKED], s.part[other, CHECKED])
    return int(p)


@making_arrays
def start_over(s: State, ids: NDArray[np.int32], now: float, binding: Bools) -> None:
    """Take all flows, brought up to now, off their links, and see again which of these may be full; they wait to be connected anew."""
    for k in range(len(binding)):
        if s.place[k, PART] < 0 and s.place[k, FLOWS] > 0:
            s.link[k, BUSY] += now - s.link[k, UNTIL]
    for f in ids:
        expel(s, f)
    while s.active[0] > 0:
        dissolve(s, s.active[1])
    s.place[:, FLOWS] = 0
    hops = s.route.shape[1] - 2
    s.link[:, WEIGHT] = 0.0
    old = np.empty(hops, dtype=np.int64)
    for f in ids:
        count = 0
        for h in range(hops):
            k = s.route[f, h]
            if k == -1:
                break
            if k < -1 and binding[-2 - k]:
                s.link[-2 - k, THROUGH] += s.amount[f, ASKED] - s.amount[f, LEFT]
            old[count] = k
            count += 1
        at = 0
        for h in range(count):
            k = -2 - old[h] if old[h] < 0 else old[h]
            if k >= len(binding) or binding[k]:
                s.route[f, at] = k
                at += 1
        for h in range(count):
            k = -2 - old[h]
            if old[h] < 0 and not binding[k]:
                s.route[f, at] = old[h]
                at += 1


@lean
def _root(union: Ints, k: int) -> int:
    while union[k] != k:
        union[k] = union[union[k]]
        k = union[k]
    return k


@lean
def _unite(route: NDArray[Any], flows: NDArray[np.int32], union: Ints, pieces: int) -> int:
    """Unite the links that flows cross, until all are; return how many pieces there are still."""
    for f in flows:
        if pieces == 1:
            break
        root = _root(union, route[f, 0])
        for h in range(1, route.shape[1] - 2):
            if route[f, h] < 0:
                break
            other = _root(union, route[f, h])
            if root != other:
                union[max(root, other)] = min(root, other)
                root = min(root, other)
                pieces -= 1
    return pieces


@making_arrays
def fall_apart(s: State, p: int, share: float, guard: float) -> None:
    """See whether the links of a part are still connected, make parts of the pieces if not, and start their quanta."""
    links = len(s.place)
    which = links + p
    flows = s.pool[s.list[which, START] : s.list[which, START] + s.list[which, LENGTH]]
    union = s.heap  # free between fillings
    pieces = 0
    k = s.part[p, HEAD]
    while k >= 0:
        union[k] = k
        pieces += s.place[k, FLOWS] > 0
        k = s.place[k, FOLLOWING]
    # Flows that joined together come together: a look here and there mostly shows that all links are connected.
    stride = max(len(flows) // 4096, 1)
    for first in range(min(stride, 8)):
        pieces = _unite(s.route, flows[first::stride], union, pieces)
    if stride > 8:
        pieces = _unite(s.route, flows, union, pieces)
    s.part[p, CHECKED] = s.part[p, MANY]
    if pieces == 1:
        start_quantum(s, p, share, guard)
        return
    _break_up(s, p, flows.copy(), union.copy())
    for piece in s.active[1 : 1 + s.active[0]].copy():
        if s.part[piece, STALE] and s.part[piece, CHECKED] == -1:
            s.part[piece, CHECKED] = s.part[piece, MANY]
            start_quantum(s, piece, share, guard)


@making_arrays
def _break_up(s: State, p: int, flows: NDArray[np.int32], union: Ints) -> None:
    """Make one part of each piece; pieces are named after the first of their links, and their flows stay where they are in the pool."""
    links = len(s.place)
    now, joined, born, mark = s.span[p, BEGAN], s.span[p, JOINED], s.span[p, BORN], s.part[p, MARK]
    to = s.list[links + p, START]
    k = s.part[p, HEAD]
    chain = np.empty(links, dtype=np.int64)
    count = 0
    while k >= 0:
        chain[count] = k
        count += 1
        k = s.place[k, FOLLOWING]
    forget(s, p)
    for i in range(count):
        k = chain[i]
        s.place[k, PART] = -1
        if s.place[k, FLOWS] > 0 and _root(union, k) == k:
            found(s, k, now, joined, born)
            s.part[k, CHECKED], s.part[k, MARK] = -1, mark
    for i in range(count):
        k = chain[i]
        if s.place[k, FLOWS] == 0:
            s.list[k, LENGTH] = s.place[k, HEAD_LENGTH] = 0
            s.link[k, LOAD] = 0.0
        elif _root(union, k) != k:
            attach(s, k, _root(union, k))
    for f in flows:
        s.part[_root(union, s.route[f, 0]), MANY] += 1
    s.list[links + p, ROOM] = 0  # what it had is dealt out below
    for i in range(count):
        k = chain[i]
        if s.place[k, PART] == k:
            s.list[links + k, START], s.list[links + k, LENGTH], s.list[links + k, ROOM] = to, 0, s.part[k, MANY]
            to += s.part[k, MANY]
    for f in flows:
        enlist(s, links + _root(union, s.route[f, 0]), f)
