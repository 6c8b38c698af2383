"""Layers that are drawn when they are asked for: a step of a large model need not fit in memory at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import overload

from moesim.facts.routing import LayerRouting


class LayersOnDemand(Sequence[LayerRouting]):
    """A sequence that makes layer ``l`` with ``make(l)`` and remembers the last one it made.

    Parameters
    ----------
    make : callable
        From the index of a MoE layer to its routing; the same for the same index whatever the order of the calls.
    count : int
        L, how many MoE layers there are.
    """

    __slots__ = ("_count", "_last", "_make")

    def __init__(self, make: Callable[[int], LayerRouting], count: int) -> None:
        self._make = make
        self._count = count
        self._last: tuple[int, LayerRouting] | None = None

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, index: int) -> LayerRouting: ...

    @overload
    def __getitem__(self, index: slice) -> list[LayerRouting]: ...

    def __getitem__(self, index: int | slice) -> LayerRouting | list[LayerRouting]:
        if isinstance(index, slice):
            return [self[each] for each in range(*index.indices(self._count))]
        if not -self._count <= index < self._count:
            raise IndexError(f"layer {index} does not exist: there are {self._count}")
        layer = index % self._count
        if self._last is None or self._last[0] != layer:
            self._last = (layer, self._make(layer))
        return self._last[1]

    def __iter__(self) -> Iterator[LayerRouting]:
        return (self[layer] for layer in range(self._count))
