"""The fluid model of flows on links, compiled: max-min rates between ends, many ends in one call.

The plain twin is :mod:`moesim.models.sharing.reference`; tests hold the two against each other and against the max-min
certificate. Compiled code is kept on disk beside this file (or in the user's cache), so only the first run ever pays for it.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numba import njit
from numpy.typing import NDArray

from moesim.facts.arrays import Bools, Floats, Ints

FINISHED = 1e-12
"""A flow with less than this share of its bytes left has finished: rounding of one subtraction per interval stays far below it."""


def needs_compiling() -> bool:
    """Return true if the next run has to compile, which takes some seconds, once."""
    # numba offers no public way to ask where it keeps compiled code.
    folder = Path(str(getattr(run_until, "_cache").cache_path))  # noqa: B009
    return not any(folder.glob("compiled.run_until-*.nbi"))


@njit(cache=True, error_model="numpy")
def _members(route: NDArray[np.int32], links: int) -> tuple[Ints, NDArray[np.int32]]:
    """Return the flows of each link: those of link k are ``members[start[k] : start[k + 1]]``."""
    flows, hops = route.shape
    start = np.zeros(links + 1, dtype=np.int64)
    for f in range(flows):
        for h in range(hops):
            if route[f, h] >= 0:
                start[route[f, h] + 1] += 1
    for k in range(links):
        start[k + 1] += start[k]
    members = np.empty(start[links], dtype=np.int32)
    fill = start[:-1].copy()
    for f in range(flows):
        for h in range(hops):
            k = route[f, h]
            if k >= 0:
                members[fill[k]] = f
                fill[k] += 1
    return start, members


@njit(cache=True, error_model="numpy")
def _fill(
    capacity: Floats,
    route: NDArray[np.int32],
    start: Ints,
    members: NDArray[np.int32],
    used: Ints,
    alive_on: Ints,
    frozen: Bools,
    rate: Floats,
    free: Floats,
    open_on: Ints,
    open_links: Ints,
) -> None:
    """Write max-min ``rate`` of every flow that is not ``frozen``; all flows are frozen afterwards.

    Raise all rates together until a link is full, freeze the flows on it, go on with the rest.
    """
    hops = route.shape[1]
    open_count = 0
    for k in used:
        if alive_on[k] > 0:
            free[k] = capacity[k]
            open_on[k] = alive_on[k]
            open_links[open_count] = k
            open_count += 1
    while open_count > 0:
        full = -1
        level = np.inf
        kept = 0
        for i in range(open_count):
            k = open_links[i]
            if open_on[k] > 0:
                open_links[kept] = k
                kept += 1
                if free[k] / open_on[k] < level:
                    level = free[k] / open_on[k]
                    full = k
        open_count = kept
        if full < 0:
            break
        for j in range(start[full], start[full + 1]):
            f = members[j]
            if not frozen[f]:
                frozen[f] = True
                rate[f] = level
                for h in range(hops):
                    k = route[f, h]
                    if k >= 0:
                        open_on[k] -= 1
                        free[k] = max(free[k] - level, 0.0)


@njit(cache=True, error_model="numpy")
def _end(f: int, route: NDArray[np.int32], watch: NDArray[np.int32], alive_on: Ints, pending: Ints, woken: Ints, count: int) -> int:
    """Take a flow off its links and counters; return how many counters have reached zero so far."""
    for h in range(route.shape[1]):
        if route[f, h] >= 0:
            alive_on[route[f, h]] -= 1
    for side in range(2):
        pending[watch[f, side]] -= 1
        if pending[watch[f, side]] == 0:
            woken[count] = watch[f, side]
            count += 1
    return count


@njit(cache=True, error_model="numpy")
def _leave(ended: Bools, route: NDArray[np.int32], pair: Ints, asked: Floats, left: Floats, watch: NDArray[np.int32]) -> None:
    """Move the flows that are still on their way to the front, in order."""
    to = 0
    for f in range(len(ended)):
        if not ended[f]:
            if to < f:
                route[to] = route[f]
                pair[to], asked[to], left[to] = pair[f], asked[f], left[f]
                watch[to] = watch[f]
            to += 1


@njit(cache=True, error_model="numpy")
def run_until(  # noqa: PLR0917 - numba takes flat arrays, by position
    capacity: Floats,
    route: NDArray[np.int32],
    pair: Ints,
    asked: Floats,
    left: Floats,
    watch: NDArray[np.int32],
    live: int,
    pending: Ints,
    busy: Floats,
    through: Floats,
    carried: Floats,
    woken: Ints,
    now: float,
    horizon: float,
) -> tuple[float, int, int]:
    """Let flows share links fairly until a watched count reaches zero, the horizon is reached, or no flow is left.

    Parameters
    ----------
    capacity : float[K]
        Bandwidth of each link, B/s.
    route : int32[F or more, H]
        Links of each flow, padded with -1. This and the next four are compacted: flows that ended leave.
    pair : int[F or more]
        What ``carried`` is counted by: the number of the flow's pair of GPUs.
    asked, left : float[F or more]
        Bytes of each flow at its start, and now.
    watch : int32[F or more, 2]
        Two counters of each flow that drop by one when it ends (its source's and its destination's).
    live : int
        F, the flows that are on their way.
    pending : int[W]
        The counters; updated. The call returns at the instant at which any of them reaches zero.
    busy : float[K]
        Seconds during which a link carried something; updated.
    through : float[K]
        Bytes that went over each link, from rates and times; updated.
    carried : float[pairs]
        Bytes carried by flows that ended, from their rates and times; updated.
    woken : int[W]
        Written: the counters that reached zero, as many as the call returns.
    now, horizon : float
        Seconds; ``horizon`` may be infinite.

    Returns
    -------
    float, int, int
        The instant reached, how many flows are left, how many counters reached zero.

    Notes
    -----
    Rates are max-min fair: fill all flows equally until a link is full, freeze the flows on it, go on with the rest
    (Bertsekas and Gallager, Data Networks, section 6.5.2). Between two ends rates are constant, so stepping from end to end is exact.
    """
    links = len(capacity)
    start, members = _members(route[:live], links)
    alive_on = start[1:] - start[:-1]
    used = np.flatnonzero(alive_on)
    rate, ended, frozen = np.empty(live), np.zeros(live, dtype=np.bool_), np.empty(live, dtype=np.bool_)
    free, open_on, open_links = np.empty(links), np.empty(links, dtype=np.int64), np.empty(links, dtype=np.int64)
    alive = live
    woke = 0
    while alive > 0 and woke == 0:
        frozen[:] = ended
        _fill(capacity, route, start, members, used, alive_on, frozen, rate, free, open_on, open_links)
        step = np.inf
        for f in range(live):
            if not ended[f]:
                step = min(step, left[f] / rate[f])
        cut = step > horizon - now
        if cut:
            step = horizon - now
        for k in used:
            if alive_on[k] > 0:
                busy[k] += step
        now = horizon if cut else now + step
        for f in range(live):
            if not ended[f]:
                moved = rate[f] * step
                left[f] -= moved
                for h in range(route.shape[1]):
                    if route[f, h] >= 0:
                        through[route[f, h]] += moved
                if left[f] <= FINISHED * asked[f]:
                    ended[f] = True
                    alive -= 1
                    carried[pair[f]] += asked[f] - left[f]
                    woke = _end(f, route, watch, alive_on, pending, woken, woke)
        if cut:
            break
    _leave(ended, route, pair, asked, left, watch)
    return now, alive, woke
