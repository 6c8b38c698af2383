"""What happened, by column."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from moesim.engine.collective import Collective
from moesim.facts.arrays import Floats
from moesim.facts.program import Work
from moesim.facts.record import Table

SPAN_COLUMNS = (
    ("step", np.int64),
    ("layer", np.int64),
    ("moe_layer", np.int64),
    ("microbatch", np.int64),
    ("direction", np.str_),
    ("gpu", np.int64),
    ("lane", np.str_),
    ("phase", np.str_),
    ("start_s", np.float64),
    ("end_s", np.float64),
    ("bytes", np.float64),
    ("tokens", np.int64),
    ("waiting_s", np.float64),
    ("waited_for", np.int64),
)
SPAN_UNITS = {"start_s": "s", "end_s": "s", "waiting_s": "s", "bytes": "B"}


@dataclass(frozen=True, slots=True)
class RecordedCollective:
    """A collective with what it was for; its participants' times are filled in by the run."""

    step: int
    work: Work
    group: int
    collective: Collective
    size: Floats


class Recorder:
    """Collects spans of tasks and collectives while a run goes on."""

    def __init__(self) -> None:
        self._spans: list[tuple[object, ...]] = []
        self.step = 0
        self.collectives: list[RecordedCollective] = []

    def span(
        self,
        work: Work,
        gpu: int,
        lane: str,
        start: float,
        end: float,
        *,
        tokens: int,
        size: float = 0.0,
        waiting: float = 0.0,
        waited_for: int = -1,
    ) -> None:
        """Write one task of one GPU down; times in s, ``size`` in B."""
        self._spans.append(
            (
                self.step,
                work.layer,
                work.moe_layer,
                work.microbatch,
                work.direction,
                gpu,
                lane,
                work.phase,
                start,
                end,
                size,
                tokens,
                waiting,
                waited_for,
            )
        )

    def collective(self, step: int, work: Work, group: int, collective: Collective, size: Floats) -> None:
        """Remember a collective; ``size`` is float[G, G], B."""
        self.collectives.append(RecordedCollective(step, work, group, collective, size))

    def spans(self) -> Table:
        """Return all spans in the order in which they ended."""
        columns = list(zip(*self._spans, strict=True)) if self._spans else [()] * len(SPAN_COLUMNS)
        return Table(
            columns={name: np.array(values, dtype=dtype) for (name, dtype), values in zip(SPAN_COLUMNS, columns, strict=True)},
            units=SPAN_UNITS,
        )
