"""What a fabric was handed, and a busy period that happens again."""

from __future__ import annotations

from dataclasses import dataclass

from moesim.engine.repeats import Period
from moesim.engine.verifying import Inputs
from moesim.facts.arrays import Ints


@dataclass(slots=True, eq=False)
class Ticket:
    """Flows that were handed over together; ``ids`` are the core's numbers of them once it has them."""

    flows: Inputs
    ids: Ints | None = None
    period: int = -1


@dataclass(slots=True)
class Replay:
    """A period that happens again: who is told what when is known."""

    period: Period
    tickets: list[Ticket]
    flows: Inputs
    counters: Ints
    place: int = 0
