"""How uneven the router is, in the words of those who train it: auxiliary losses as measured quantities."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from moesim.base.registry import register
from moesim.facts.arrays import Floats
from moesim.facts.contracts import Record
from moesim.measure.columns import mean_over_layers


def layer_mean(record: Record, column: str) -> Floats:
    """Return float[steps], the mean of a column of ``layers`` over MoE layers; NaN where a run does not have it, or not for all layers."""
    values = record.tables["layers"].columns.get(column)
    return np.full(len(record.steps), np.nan) if values is None else mean_over_layers(record, values)


@register("metric", "aux_loss")
@dataclass(frozen=True, slots=True, kw_only=True)
class AuxLoss:
    """Balance loss of the router over the tokens of each GPU, E times the sum of f P, averaged over GPUs and MoE layers: 1 when even."""

    unit: ClassVar[str] = ""
    better: ClassVar[str] = "lower"
    rests_on: ClassVar[tuple[str, ...]] = ("routing",)

    def measure(self, record: Record) -> Floats:
        """Return float[steps]; NaN where the routing has no scores."""
        return layer_mean(record, "aux_loss")


@register("metric", "aux_loss_sequence")
@dataclass(frozen=True, slots=True, kw_only=True)
class AuxLossOfSequences:
    """Balance loss of the router over each sequence of two contexts, averaged over sequences and MoE layers: 1 when even."""

    unit: ClassVar[str] = ""
    better: ClassVar[str] = "lower"
    rests_on: ClassVar[tuple[str, ...]] = ("routing",)

    def measure(self, record: Record) -> Floats:
        """Return float[steps]; NaN where the routing has no scores."""
        return layer_mean(record, "aux_loss_sequence")


@register("metric", "aux_loss_batch")
@dataclass(frozen=True, slots=True, kw_only=True)
class AuxLossOfTheBatch:
    """Balance loss of the router over all tokens of the step, averaged over MoE layers: 1 when even."""

    unit: ClassVar[str] = ""
    better: ClassVar[str] = "lower"
    rests_on: ClassVar[tuple[str, ...]] = ("routing",)

    def measure(self, record: Record) -> Floats:
        """Return float[steps]; NaN where the routing has no scores."""
        return layer_mean(record, "aux_loss_batch")


@register("metric", "aux_loss_device")
@dataclass(frozen=True, slots=True, kw_only=True)
class AuxLossOfDevices:
    """Balance loss of the router over expert-parallel ranks instead of experts, averaged over MoE layers: 1 when even."""

    unit: ClassVar[str] = ""
    better: ClassVar[str] = "lower"
    rests_on: ClassVar[tuple[str, ...]] = ("routing",)

    def measure(self, record: Record) -> Floats:
        """Return float[steps]; NaN where the routing has no scores, or the ranks do not divide the experts."""
        return layer_mean(record, "aux_loss_device")


@register("metric", "router_z_loss")
@dataclass(frozen=True, slots=True, kw_only=True)
class RouterZLoss:
    """Mean over tokens of the squared logarithm of the sum of the exponentials of the router's logits, averaged over MoE layers."""

    unit: ClassVar[str] = ""
    better: ClassVar[str] = "neither"
    rests_on: ClassVar[tuple[str, ...]] = ("routing",)

    def measure(self, record: Record) -> Floats:
        """Return float[steps]; NaN where the routing has no scores."""
        return layer_mean(record, "router_z_loss")
