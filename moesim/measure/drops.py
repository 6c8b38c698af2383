"""What a capacity rule costs: lost routes, lost tokens, empty rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from moesim.base.registry import register
from moesim.facts.arrays import Floats
from moesim.facts.contracts import Record
from moesim.measure.columns import ratio, sum_by_step, total


@register("metric", "drop_rate")
@dataclass(frozen=True, slots=True, kw_only=True)
class DropRate:
    """Routes (token, choice) that were dropped, divided by all routes, over all MoE layers."""

    unit: ClassVar[str] = ""
    better: ClassVar[str] = "lower"
    rests_on: ClassVar[tuple[str, ...]] = ("routing",)

    def measure(self, record: Record) -> Floats:
        """Return float[steps]."""
        return ratio(total(record, "layers", "dropped"), total(record, "layers", "routes"))


@register("metric", "fully_dropped_tokens")
@dataclass(frozen=True, slots=True, kw_only=True)
class FullyDroppedTokens:
    """Tokens that lost all their routes in a layer, divided by tokens, over all MoE layers."""

    unit: ClassVar[str] = ""
    better: ClassVar[str] = "lower"
    rests_on: ClassVar[tuple[str, ...]] = ("routing",)

    def measure(self, record: Record) -> Floats:
        """Return float[steps]; NaN in a step with a layer whose single tokens are unknown (-1 in the table)."""
        unknown = unknown_anywhere(record, "fully_dropped")
        share = ratio(total(record, "layers", "fully_dropped"), total(record, "layers", "tokens"))
        return np.where(unknown, np.nan, share)


@register("metric", "capacity_utilisation")
@dataclass(frozen=True, slots=True, kw_only=True)
class CapacityUtilisation:
    """Kept routes divided by the rows that the capacity allows, over all experts and MoE layers."""

    unit: ClassVar[str] = ""
    better: ClassVar[str] = "neither"
    rests_on: ClassVar[tuple[str, ...]] = ("routing",)

    def measure(self, record: Record) -> Floats:
        """Return float[steps]; NaN in a step with a layer that has no capacity (-1 in the table)."""
        unlimited = unknown_anywhere(record, "capacity_rows")
        share = ratio(total(record, "layers", "kept"), total(record, "layers", "capacity_rows"))
        return np.where(unlimited, np.nan, share)


@register("metric", "padding_waste")
@dataclass(frozen=True, slots=True, kw_only=True)
class PaddingWaste:
    """Padding rows divided by all rows that are sent and computed, over all MoE layers."""

    unit: ClassVar[str] = ""
    better: ClassVar[str] = "lower"
    rests_on: ClassVar[tuple[str, ...]] = ("routing",)

    def measure(self, record: Record) -> Floats:
        """Return float[steps]."""
        padding = total(record, "layers", "padding")
        return ratio(padding, padding + total(record, "layers", "kept"))


def unknown_anywhere(record: Record, column: str) -> np.ndarray:
    """Return bool[steps]: true in a step where the column of ``layers`` is negative, which means unknown, in any layer."""
    return np.asarray(sum_by_step(record, "layers", record.tables["layers"][column] < 0) > 0)
