"""Where the time of a step goes. Phase times are means over GPUs; forward and backward are added."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from moesim.base.registry import register
from moesim.facts.arrays import Floats
from moesim.facts.contracts import Record
from moesim.measure.columns import ratio, step_column, where_any


@register("metric", "step_time")
@dataclass(frozen=True, slots=True, kw_only=True)
class StepTime:
    """Time from the start of a step until its last GPU is done."""

    unit: ClassVar[str] = "s"
    better: ClassVar[str] = "lower"
    rests_on: ClassVar[tuple[str, ...]] = ("compute", "network", "routing")

    def measure(self, record: Record) -> Floats:
        """Return float[steps], in s."""
        return step_column(record, "step_time_s")


@register("metric", "tokens_per_second")
@dataclass(frozen=True, slots=True, kw_only=True)
class TokensPerSecond:
    """Tokens of all GPUs in a step divided by the step time."""

    unit: ClassVar[str] = "tokens/s"
    better: ClassVar[str] = "higher"
    rests_on: ClassVar[tuple[str, ...]] = ("compute", "network", "routing")

    def measure(self, record: Record) -> Floats:
        """Return float[steps], in tokens/s."""
        return ratio(step_column(record, "tokens"), step_column(record, "step_time_s"))


@register("metric", "dispatch_transfer_time")
@dataclass(frozen=True, slots=True, kw_only=True)
class DispatchTransferTime:
    """Time in a step that a GPU spends in dispatches without waiting for peers (launch, and its bytes moving), mean over GPUs."""

    unit: ClassVar[str] = "s"
    better: ClassVar[str] = "lower"
    rests_on: ClassVar[tuple[str, ...]] = ("network", "routing")

    def measure(self, record: Record) -> Floats:
        """Return float[steps], in s."""
        return step_column(record, "dispatch_transfer_s")


@register("metric", "combine_transfer_time")
@dataclass(frozen=True, slots=True, kw_only=True)
class CombineTransferTime:
    """Time in a step that a GPU spends in combines without waiting for peers (launch, and its bytes moving), mean over GPUs."""

    unit: ClassVar[str] = "s"
    better: ClassVar[str] = "lower"
    rests_on: ClassVar[tuple[str, ...]] = ("network", "routing")

    def measure(self, record: Record) -> Floats:
        """Return float[steps], in s."""
        return step_column(record, "combine_transfer_s")


@register("metric", "waiting_time")
@dataclass(frozen=True, slots=True, kw_only=True)
class WaitingTime:
    """Time in a step that a GPU spends in a collective while none of its bytes move, mean over GPUs."""

    unit: ClassVar[str] = "s"
    better: ClassVar[str] = "lower"
    rests_on: ClassVar[tuple[str, ...]] = ("compute", "network", "routing")

    def measure(self, record: Record) -> Floats:
        """Return float[steps], in s."""
        return step_column(record, "waiting_s")


@register("metric", "waiting_share")
@dataclass(frozen=True, slots=True, kw_only=True)
class WaitingShare:
    """Waiting time divided by step time."""

    unit: ClassVar[str] = ""
    better: ClassVar[str] = "lower"
    rests_on: ClassVar[tuple[str, ...]] = ("compute", "network", "routing")

    def measure(self, record: Record) -> Floats:
        """Return float[steps]."""
        return ratio(step_column(record, "waiting_s"), step_column(record, "step_time_s"))


@register("metric", "expert_time")
@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertTime:
    """Time in a step that a GPU computes routed experts, mean over GPUs."""

    unit: ClassVar[str] = "s"
    better: ClassVar[str] = "lower"
    rests_on: ClassVar[tuple[str, ...]] = ("compute", "routing")

    def measure(self, record: Record) -> Floats:
        """Return float[steps], in s."""
        return step_column(record, "expert_s")


@register("metric", "expert_time_slowest")
@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertTimeSlowest:
    """Time in a step that the busiest GPU computes routed experts."""

    unit: ClassVar[str] = "s"
    better: ClassVar[str] = "lower"
    rests_on: ClassVar[tuple[str, ...]] = ("compute", "routing")

    def measure(self, record: Record) -> Floats:
        """Return float[steps], in s."""
        return step_column(record, "expert_slowest_s")


@register("metric", "attention_time")
@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionTime:
    """Time in a step that a GPU computes attention, mean over GPUs."""

    unit: ClassVar[str] = "s"
    better: ClassVar[str] = "lower"
    rests_on: ClassVar[tuple[str, ...]] = ("compute",)

    def measure(self, record: Record) -> Floats:
        """Return float[steps], in s."""
        return step_column(record, "attention_s")


@register("metric", "gradient_time")
@dataclass(frozen=True, slots=True, kw_only=True)
class GradientTime:
    """Time in a step in which operations on gradients or weights are under way on a GPU, mean over GPUs; most of it may be hidden."""

    unit: ClassVar[str] = "s"
    better: ClassVar[str] = "lower"
    rests_on: ClassVar[tuple[str, ...]] = ("compute", "network", "routing")

    def measure(self, record: Record) -> Floats:
        """Return float[steps], in s; NaN in a step without such operations."""
        return where_any(step_column(record, "gradient_s"), step_column(record, "gradient_s"))


@register("metric", "gradient_time_exposed")
@dataclass(frozen=True, slots=True, kw_only=True)
class GradientTimeExposed:
    """Part of ``gradient_time`` in which nothing is computed and no token is on its way: what the step would be shorter by."""

    unit: ClassVar[str] = "s"
    better: ClassVar[str] = "lower"
    rests_on: ClassVar[tuple[str, ...]] = ("compute", "network", "routing")

    def measure(self, record: Record) -> Floats:
        """Return float[steps], in s; NaN in a step without such operations."""
        return where_any(step_column(record, "gradient_exposed_s"), step_column(record, "gradient_s"))


@register("metric", "exposed_communication")
@dataclass(frozen=True, slots=True, kw_only=True)
class ExposedCommunication:
    """Time in a step that a GPU communicates or waits for peers without computing, mean over GPUs."""

    unit: ClassVar[str] = "s"
    better: ClassVar[str] = "lower"
    rests_on: ClassVar[tuple[str, ...]] = ("compute", "network", "routing")

    def measure(self, record: Record) -> Floats:
        """Return float[steps], in s."""
        return step_column(record, "exposed_communication_s")
