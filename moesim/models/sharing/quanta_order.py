"""Put flows in the order of their ends, in a time that grows with their number only."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from moesim.facts.arrays import Floats, Ints
from moesim.models.sharing.compiled import at, lean, making_arrays

FEW = 24
"""So many are put in order by insertion."""


@lean
def _insert(keys: Floats, order: NDArray[np.int32], first: int, last: int) -> None:
    for i in range(first + 1, last):
        item = order[i]
        j = i
        while j > first and keys[order[j - 1]] > keys[item]:
            order[j] = order[j - 1]
            j -= 1
        order[j] = item


@making_arrays
def in_order(keys: Floats) -> NDArray[np.int32]:
    """Return the stable order of finite ``keys``.

    Ends within a quantum are spread almost evenly, so dealing them into as many boxes as there are keys leaves one or two in each. Where
    they are not, boxes that hold many are sorted the ordinary way.
    """
    count = len(keys)
    order = np.empty(count, dtype=np.int32)
    for i in range(count):
        order[i] = i
    if count <= FEW:
        _insert(keys, order, 0, count)
        return order
    low, high = keys.min(), keys.max()
    scale = (count - 1) / (high - low) if high > low else 0.0
    if not np.isfinite(scale):
        return np.argsort(keys, kind="mergesort").astype(np.int32)
    start = np.zeros(count + 1, dtype=np.int32)
    _deal(keys, order, start, np.empty(count, dtype=np.int32), low, scale)
    for b in range(count):
        first, last = start[b], start[b + 1]
        if last - first > FEW:
            mine = order[first:last].copy()
            order[first:last] = mine[np.argsort(keys[mine], kind="mergesort")]
    return order


@lean
def _deal(keys: Floats, order: NDArray[np.int32], start: NDArray[np.int32], box: NDArray[np.int32], low: float, scale: float) -> None:
    """Deal keys into boxes, and sort those that hold few; ``start`` says where each begins in ``order``."""
    count = len(keys)
    for i in range(count):
        box[at(i)] = int((keys[at(i)] - low) * scale)
        start[at(box[at(i)] + 1)] += 1
    for i in range(count):
        start[at(i + 1)] += start[at(i)]
    for i in range(count - 1, -1, -1):
        start[at(box[at(i)] + 1)] -= 1
        order[at(start[at(box[at(i)] + 1)])] = i
    # Dealing from the back has left the beginning of each box one place too far on.
    for i in range(count):
        start[at(i)] = start[at(i + 1)]
    start[count] = count
    for b in range(count):
        if 1 < start[b + 1] - start[b] <= FEW:
            _insert(keys, order, start[b], start[b + 1])


@lean
def sink(key: Floats, heap: Ints, count: int, place: int, value: float, item: int) -> None:
    """Put an item at a place of a heap, or below."""
    while True:
        child = 2 * place + 1
        if child >= count:
            break
        if child + 1 < count and key[at(child + 1)] < key[at(child)]:
            child += 1
        if key[at(child)] >= value:
            break
        key[at(place)], heap[at(place)] = key[at(child)], heap[at(child)]
        place = child
    key[at(place)], heap[at(place)] = value, item
