"""What unequal ranks cost: waiting for those that have more tokens, or longer contexts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from moesim.base.registry import register
from moesim.facts.arrays import Floats
from moesim.facts.contracts import Record
from moesim.measure.columns import step_column


@register("metric", "unequal_ranks_time")
@dataclass(frozen=True, slots=True, kw_only=True)
class UnequalRanksTime:
    """Time in a step by which a GPU is ready for exchanges before the slowest of its group, who has more to compute, mean over GPUs."""

    unit: ClassVar[str] = "s"
    better: ClassVar[str] = "lower"
    rests_on: ClassVar[tuple[str, ...]] = ("compute", "routing")

    def measure(self, record: Record) -> Floats:
        """Return float[steps], in s, experts left out; 0 where all GPUs have equally many tokens and equal contexts."""
        return step_column(record, "unequal_ranks_s")
