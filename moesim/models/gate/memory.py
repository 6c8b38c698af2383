"""What a gate remembers from step to step: one vector per layer, which the steps before have made."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.facts.contracts import Choose
from moesim.facts.routing import LayerRouting

Vector = NDArray[np.float32]


@dataclass(slots=True)
class Memory:
    """One vector per layer; what is seen in a step changes it from the next step on, once (L12).

    Parameters
    ----------
    size : int
        E; every vector starts with zeros.
    update : callable
        Makes the next vector of the present one, of what was seen, and of the step in which it was.
    """

    size: int
    update: Callable[[Vector, NDArray[Any], int], Vector]
    vectors: dict[int, Vector] = field(default_factory=dict)
    latest: dict[int, tuple[int, NDArray[Any]]] = field(default_factory=dict)
    until: int | None = None
    """The step from which on nothing that is seen counts any more; None for never."""

    def at(self, step: int, moe_layer: int) -> Vector:
        """Return float32[E], what the steps before ``step`` have made of the vector of a layer."""
        vector = self.vectors.get(moe_layer)
        if vector is None:
            vector = np.zeros(self.size, dtype=np.float32)
        seen_at, seen = self.latest.get(moe_layer, (step, None))
        if seen is not None and seen_at < step:
            vector = self.update(vector, seen, seen_at)
            del self.latest[moe_layer]
        self.vectors[moe_layer] = vector
        return vector

    def saw(self, seen: NDArray[Any], *, step: int, moe_layer: int) -> None:
        """Take note of what was seen in a step; a second time in the same step replaces the first."""
        if self.until is None or step < self.until:
            self.latest[moe_layer] = (step, seen)


@dataclass(frozen=True, slots=True)
class Remembering:
    """A gate of one run and its memory, for those who may tell it to learn no more."""

    choose: Choose
    memory: Memory

    def __call__(self, routing: LayerRouting, *, step: int, moe_layer: int) -> LayerRouting:
        """Return what the gate chooses."""
        return self.choose(routing, step=step, moe_layer=moe_layer)
