"""How much communication a schedule hides behind computing, and how much of that was worth it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from moesim.base.registry import register
from moesim.facts.arrays import Floats
from moesim.facts.contracts import Record
from moesim.measure.columns import ratio, step_column


def communication(record: Record) -> Floats:
    """Return float[steps], seconds that a GPU spends in collectives, waiting included, mean over GPUs."""
    names = ("dispatch_transfer_s", "combine_transfer_s", "waiting_s", "gradient_s", "tensor_s")
    return np.asarray(sum((step_column(record, name) for name in names), np.zeros(len(record.steps))))


def hidden(record: Record) -> Floats:
    """Return float[steps], seconds of :func:`communication` with something computed beside it."""
    return np.maximum(communication(record) - step_column(record, "exposed_communication_s"), 0.0)


@register("metric", "overlap_scheduled")
@dataclass(frozen=True, slots=True, kw_only=True)
class OverlapScheduled:
    """Share of the time in collectives with something computed beside it, mean over GPUs: what a schedule hides."""

    unit: ClassVar[str] = ""
    better: ClassVar[str] = "higher"
    rests_on: ClassVar[tuple[str, ...]] = ("compute", "network", "routing")

    def measure(self, record: Record) -> Floats:
        """Return float[steps]; NaN where there is no communication."""
        return ratio(hidden(record), communication(record))


@register("metric", "overlap_realised")
@dataclass(frozen=True, slots=True, kw_only=True)
class OverlapRealised:
    """Share of the time in collectives that was really saved: what is hidden, less what kernels lost to SMs that were held meanwhile."""

    unit: ClassVar[str] = ""
    better: ClassVar[str] = "higher"
    rests_on: ClassVar[tuple[str, ...]] = ("compute", "network", "routing")

    def measure(self, record: Record) -> Floats:
        """Return float[steps]; NaN where there is no communication."""
        return ratio(hidden(record) - step_column(record, "slowed_s"), communication(record))
