"""What the same steps would take if one thing were perfect: how much there is to win."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from moesim.base.registry import register
from moesim.facts.arrays import Floats
from moesim.facts.contracts import Record


@register("metric", "step_time_if_balanced")
@dataclass(frozen=True, slots=True, kw_only=True)
class StepTimeIfBalanced:
    """Step time of the same machine and policy if the routes that were kept were spread evenly over all experts and GPUs."""

    unit: ClassVar[str] = "s"
    better: ClassVar[str] = "lower"
    rests_on: ClassVar[tuple[str, ...]] = ("compute", "network")

    def measure(self, record: Record) -> Floats:
        """Return float[steps], in s."""
        return np.asarray(record.bounds["step_time_if_balanced"], dtype=np.float64)


@register("metric", "step_time_if_no_communication")
@dataclass(frozen=True, slots=True, kw_only=True)
class StepTimeIfNoCommunication:
    """Step time if every byte arrived at once, with the loads as they are and with collectives that still wait for their last GPU."""

    unit: ClassVar[str] = "s"
    better: ClassVar[str] = "lower"
    rests_on: ClassVar[tuple[str, ...]] = ("compute", "routing")

    def measure(self, record: Record) -> Floats:
        """Return float[steps], in s."""
        return np.asarray(record.bounds["step_time_if_no_communication"], dtype=np.float64)
