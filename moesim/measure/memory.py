"""What must fit into a GPU."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from moesim.base.registry import register
from moesim.facts.arrays import Floats
from moesim.facts.contracts import Record
from moesim.measure.columns import whole


@register("metric", "peak_memory")
@dataclass(frozen=True, slots=True, kw_only=True)
class PeakMemory:
    """Most memory that any GPU needs at any time: weights, caches, activations and buffers as the model counts them."""

    unit: ClassVar[str] = "B"
    better: ClassVar[str] = "lower"
    rests_on: ClassVar[tuple[str, ...]] = ("routing", "accounting")
    summary: ClassVar[str] = "max"

    def measure(self, record: Record) -> Floats:
        """Return float[steps], in B, the same number for each."""
        return whole(record, float(np.max(record.tables["gpus"]["peak_memory_bytes"])))
