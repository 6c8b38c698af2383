"""How far approximate sharing is off: a sample of busy periods, played again exactly."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.facts.arrays import Floats, Ints
from moesim.models.sharing.core import Core


@dataclass(slots=True)
class Inputs:
    """Flows that began to move at one instant of a period, as a core takes them."""

    now: float
    route: NDArray[np.int32]
    pair: Ints
    size: Floats
    weight: Floats | None
    cap: Floats | None
    watch: NDArray[np.int32]
    delay: Floats | None


@dataclass(slots=True)
class Verifying:
    """Compares approximate with exact ends, period by period; periods 0, 1, 3, 7, 15 … are looked at.

    What is compared is the time from a counter's first flow to the instant at which none of its flows was left, counter by counter, each
    time that this happened: that is what the ranks of a collective see.
    """

    exact: Core
    number: int = -1
    inputs: list[Inputs] = field(default_factory=list)
    seen: list[tuple[float, list[int]]] = field(default_factory=list)
    makespan: list[float] = field(default_factory=list)
    finishes: list[Floats] = field(default_factory=list)
    of_whole: list[float] = field(default_factory=list)

    @property
    def watching(self) -> bool:
        """Return whether the present period is one of the sample."""
        return self.number >= 0 and (self.number + 1) & self.number == 0

    def begin(self) -> None:
        """Count a new period."""
        self.number += 1
        self.inputs, self.seen = [], []

    def spoil(self) -> None:
        """Leave the present period out: something happened in it that cannot be played again."""
        self.inputs, self.seen = [], []

    def finish(self) -> None:
        """Play the period again and note by how much it was off."""
        if not self.inputs:
            return
        most = int(max(one.watch.max() for one in self.inputs)) + 1
        pending: Ints = np.zeros(most, dtype=np.int64)
        woken: Ints = np.empty(most, dtype=np.int64)
        exact: list[tuple[float, list[int]]] = []
        self.exact.reset()
        for place, one in enumerate(self.inputs):
            np.add.at(pending, one.watch.ravel(), 1)
            self.exact.join(one.now, one.route, one.pair, one.size, one.weight, one.cap, one.watch, pending, one.delay)
            until = self.inputs[place + 1].now if place + 1 < len(self.inputs) else np.inf
            while True:
                now, woke = self.exact.advance(until, pending, woken)
                if not woke:
                    break
                exact.append((now, woken[:woke].tolist()))
        begun: dict[int, float] = {}
        for one in self.inputs:
            for counter in np.unique(one.watch).tolist():
                begun.setdefault(counter, one.now)
        # A counter may reach zero more often in one of the two, between inputs: its last time is what counts.
        last_seen = {counter: now for now, counters in self.seen for counter in counters}
        last_exact = {counter: now for now, counters in exact for counter in counters}
        both = sorted(last_seen.keys() & last_exact.keys())
        took = np.array([last_exact[counter] - begun[counter] for counter in both])
        off = np.array([last_seen[counter] - last_exact[counter] for counter in both])
        self.makespan.append(abs(max(last_seen.values()) / max(last_exact.values()) - 1.0))
        self.finishes.append(np.abs(np.divide(off, took, out=np.zeros_like(off), where=took > 0)))
        self.of_whole.append(float(np.abs(off).max(initial=0.0)) / max(last_exact.values()))
        self.spoil()

    def report(self) -> dict[str, Any]:
        """Return the largest and mean errors over the sample, relative."""
        finishes = np.concatenate(self.finishes) if self.finishes else np.zeros(0)
        return {
            "periods": len(self.makespan),
            "makespan": max(self.makespan, default=None),
            "rank_mean": float(finishes.mean()) if finishes.size else None,
            "rank_worst": float(finishes.max()) if finishes.size else None,
            "rank_of_whole": max(self.of_whole, default=None),
        }
