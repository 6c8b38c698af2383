"""What moving experts during a run costs, and whether it pays."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from moesim.base.registry import register
from moesim.facts.arrays import Floats
from moesim.facts.contracts import Record
from moesim.measure.columns import step_column


def _by_step(record: Record, column: str) -> Floats:
    """Return float[steps], the sum of a column of ``rebalances`` over those decided before each measured step; NaN without any."""
    table = record.tables.get("rebalances")
    if table is None or not len(table):
        return np.full(len(record.steps), np.nan)
    out = np.zeros(len(record.steps))
    inside = np.isin(table["step"], record.steps)
    np.add.at(out, np.searchsorted(record.steps, table["step"][inside]), table[column][inside])
    return out


@register("metric", "rebalance_stall")
@dataclass(frozen=True, slots=True, kw_only=True)
class RebalanceStall:
    """Seconds per step in which nothing runs because experts are planned or moved; empty if the placement never changes."""

    unit: ClassVar[str] = "s"
    better: ClassVar[str] = "lower"
    rests_on: ClassVar[tuple[str, ...]] = ("network", "routing")

    def measure(self, record: Record) -> Floats:
        """Return float[steps], in s."""
        return _by_step(record, "stall_s")


@register("metric", "net_step_time")
@dataclass(frozen=True, slots=True, kw_only=True)
class NetStepTime:
    """Step time plus what rebalances before the step stalled: what a policy that moves experts costs from one step to the next."""

    unit: ClassVar[str] = "s"
    better: ClassVar[str] = "lower"
    rests_on: ClassVar[tuple[str, ...]] = ("compute", "network", "routing")

    def measure(self, record: Record) -> Floats:
        """Return float[steps], in s; the step time itself where nothing was ever moved."""
        return step_column(record, "step_time_s") + np.nan_to_num(_by_step(record, "stall_s"))


@register("metric", "migrated_bytes")
@dataclass(frozen=True, slots=True, kw_only=True)
class MigratedBytes:
    """Bytes of experts that move per step because of new placements; empty if the placement never changes."""

    unit: ClassVar[str] = "B"
    better: ClassVar[str] = "lower"
    rests_on: ClassVar[tuple[str, ...]] = ("routing", "accounting")

    def measure(self, record: Record) -> Floats:
        """Return float[steps], in B."""
        return _by_step(record, "bytes")


@register("metric", "rebalance_break_even")
@dataclass(frozen=True, slots=True, kw_only=True)
class RebalanceBreakEven:
    """Steps after which the first rebalance has paid for itself; empty if steps did not become shorter, or there was none.

    Its price is its stall and what the steps take longer in which its weights are on their way. The gain of a step is the mean step time
    before the first rebalance of the measured steps, less the mean from the step on from which all of its layers are in place to the next
    rebalance. Loads drift, so this is a measure of this run and no promise.
    """

    unit: ClassVar[str] = ""
    better: ClassVar[str] = "lower"
    rests_on: ClassVar[tuple[str, ...]] = ("compute", "network", "routing")
    summary: ClassVar[str] = "whole"

    def measure(self, record: Record) -> Floats:
        """Return float[steps], the same number for all."""
        nothing = np.full(len(record.steps), np.nan)
        table = record.tables.get("rebalances")
        if table is None:
            return nothing
        time = step_column(record, "step_time_s")
        inside = np.flatnonzero((table["step"] > record.steps[0]) & (table["in_place_step"] >= 0))
        if not len(inside):
            return nothing
        first = int(inside[0])
        until = table["step"][first + 1] if first + 1 < len(table["step"]) else record.steps[-1] + 1
        before = time[record.steps < table["step"][first]]
        after = time[(record.steps >= table["in_place_step"][first]) & (record.steps < until)]
        if not len(before) or not len(after) or before.mean() <= after.mean():
            return nothing
        between = time[(record.steps >= table["step"][first]) & (record.steps < table["in_place_step"][first])]
        price = table["stall_s"][first] + max(float((between - before.mean()).sum()), 0.0)
        return np.full(len(record.steps), price / (before.mean() - after.mean()))
