"""What a whole training step has besides layers: pipeline bubbles, tensor parallelism, recomputation, the update of the weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from moesim.base.registry import register
from moesim.facts.arrays import Floats
from moesim.facts.contracts import Record
from moesim.measure.columns import ratio, step_column, where_any


@register("metric", "pipeline_bubble")
@dataclass(frozen=True, slots=True, kw_only=True)
class PipelineBubble:
    """Share of a pipeline's time, before gradients and updates end the step, in which a GPU neither computes nor exchanges tokens."""

    unit: ClassVar[str] = ""
    better: ClassVar[str] = "lower"
    rests_on: ClassVar[tuple[str, ...]] = ("compute", "network", "routing")

    def measure(self, record: Record) -> Floats:
        """Return float[steps]; NaN without a pipeline."""
        return ratio(step_column(record, "bubble_s"), step_column(record, "pipeline_s"))


@register("metric", "recompute_time")
@dataclass(frozen=True, slots=True, kw_only=True)
class RecomputeTime:
    """Time in a step that a GPU computes and exchanges again what it did not keep, mean over GPUs."""

    unit: ClassVar[str] = "s"
    better: ClassVar[str] = "lower"
    rests_on: ClassVar[tuple[str, ...]] = ("compute", "network", "routing")

    def measure(self, record: Record) -> Floats:
        """Return float[steps], in s; NaN without recomputation."""
        return where_any(step_column(record, "recompute_s"), step_column(record, "recompute_s"))


@register("metric", "optimiser_time")
@dataclass(frozen=True, slots=True, kw_only=True)
class OptimiserTime:
    """Time in a step that a GPU updates weights, mean over GPUs."""

    unit: ClassVar[str] = "s"
    better: ClassVar[str] = "lower"
    rests_on: ClassVar[tuple[str, ...]] = ("compute",)

    def measure(self, record: Record) -> Floats:
        """Return float[steps], in s; NaN in a step without an update."""
        return where_any(step_column(record, "optimiser_s"), step_column(record, "optimiser_s"))


@register("metric", "tensor_parallel_time")
@dataclass(frozen=True, slots=True, kw_only=True)
class TensorParallelTime:
    """Time in a step that a GPU gathers tokens and adds up results with its tensor-parallel group, waiting included, mean over GPUs."""

    unit: ClassVar[str] = "s"
    better: ClassVar[str] = "lower"
    rests_on: ClassVar[tuple[str, ...]] = ("compute", "network", "routing")

    def measure(self, record: Record) -> Floats:
        """Return float[steps], in s; NaN without tensor parallelism."""
        return where_any(step_column(record, "tensor_s"), step_column(record, "tensor_s"))
