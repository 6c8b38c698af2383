"""When the flows end that end within a quantum."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.facts.arrays import Floats
from moesim.models.sharing.compiled import at, lean
from moesim.models.sharing.quanta_state import (
    CAPACITY,
    FREE,
    OWN,
    OWN_WEIGHT,
    REST,
    RISERS,
    RISING,
    SERVICE,
    UNTIL,
    USED,
)


@lean
def first_guess(
    flows: NDArray[np.int32],
    keys: Floats,
    route: NDArray[Any],
    left: Floats,
    weights: Floats,
    tide: Floats,
    link: Floats,
) -> None:
    """Write when the flows that end within a quantum would do so if no rate changed."""
    hops, weighted = route.shape[1] - 2, weights.size > 0
    for i in range(len(flows)):
        f = flows[i]
        k = -1 - route[at(f), hops]
        link[at(k), REST] = link[at(k), OWN_WEIGHT]
        room = link[at(k), FREE] = max(tide[at(k), CAPACITY] - (tide[at(k), USED] - link[at(k), OWN]), link[at(k), OWN])
        keys[i] = left[at(f)] / (weights[f] if weighted else 1.0) * (link[at(k), OWN_WEIGHT] / room) if room > 0 else 0.0


@lean
def share_out(
    order: NDArray[np.int32],
    flows: NDArray[np.int32],
    keys: Floats,
    route: NDArray[Any],
    left: Floats,
    weights: Floats,
    caps: Floats,
    tide: Floats,
    link: Floats,
    lasts: float,
) -> None:
    """Write when flows end within a quantum.

    The flows that one link limits share what it has for them (its capacity without what passes for others): each end hands its part to
    those that are left. An end never comes later than if the flow had to share all its links evenly with all flows that cross them, and
    never before each of them could have carried the bytes of all flows that have ended on it.
    """
    hops, weighted, capped = route.shape[1] - 2, weights.size > 0, caps.size > 0
    for j in range(len(order)):
        i = order[j]
        f = flows[at(i)]
        k = -1 - route[at(f), hops]
        weight = weights[f] if weighted else 1.0
        service, room, end = left[at(f)] / weight, link[at(k), FREE], link[at(k), UNTIL]
        if room > 0:
            end += max((service - link[at(k), SERVICE]) * link[at(k), REST] / room, 0.0)
        link[at(k), SERVICE], link[at(k), UNTIL] = service, end
        link[at(k), REST] -= weight
        slowest = 0.0
        for h in range(hops):
            q = route[at(f), h]
            if q < 0:
                break
            slowest = max(slowest, tide[at(q), RISING])
            tide[at(q), RISERS] += left[at(f)]
        end = min(end, service * slowest)
        if capped:
            end = max(end, left[at(f)] / caps[f])
        for h in range(hops):
            q = route[at(f), h]
            if q < 0:
                break
            end = max(end, tide[at(q), RISERS] / tide[at(q), CAPACITY])
        keys[at(i)] = min(end, lasts)


@lean
def chain(order: NDArray[np.int32], flows: NDArray[np.int32], keys: Floats, end: Floats, following_end: NDArray[np.int32]) -> int:
    """Chain flows up in order; return the first."""
    first = -1
    for j in range(len(order) - 1, -1, -1):
        f = flows[order[j]]
        end[f] = keys[order[j]]
        following_end[f] = first
        first = f
    return first
