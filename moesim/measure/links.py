"""What the exchanges put on the wires, and how far the fabric slows them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from moesim.base.registry import register
from moesim.facts.arrays import Floats
from moesim.facts.contracts import Record
from moesim.measure.columns import of_tokens, ratio, total, whole
from moesim.measure.drops import unknown_anywhere


@register("metric", "dispatch_bytes")
@dataclass(frozen=True, slots=True, kw_only=True)
class DispatchBytes:
    """Bytes that dispatch sends between GPUs in a step, over all MoE layers."""

    unit: ClassVar[str] = "B"
    better: ClassVar[str] = "lower"
    rests_on: ClassVar[tuple[str, ...]] = ("routing",)

    def measure(self, record: Record) -> Floats:
        """Return float[steps], in B."""
        return total(record, "layers", "dispatch_bytes")


@register("metric", "combine_bytes")
@dataclass(frozen=True, slots=True, kw_only=True)
class CombineBytes:
    """Bytes that combine sends between GPUs in a step, over all MoE layers."""

    unit: ClassVar[str] = "B"
    better: ClassVar[str] = "lower"
    rests_on: ClassVar[tuple[str, ...]] = ("routing",)

    def measure(self, record: Record) -> Floats:
        """Return float[steps], in B."""
        return total(record, "layers", "combine_bytes")


@register("metric", "cross_node_bytes")
@dataclass(frozen=True, slots=True, kw_only=True)
class CrossNodeBytes:
    """Bytes of dispatch and combine that leave a node in a step, over all MoE layers."""

    unit: ClassVar[str] = "B"
    better: ClassVar[str] = "lower"
    rests_on: ClassVar[tuple[str, ...]] = ("routing",)

    def measure(self, record: Record) -> Floats:
        """Return float[steps], in B."""
        return total(record, "layers", "cross_node_bytes")


@register("metric", "copies_per_token")
@dataclass(frozen=True, slots=True, kw_only=True)
class CopiesPerToken:
    """Copies of a token that dispatch sends to other GPUs, mean over tokens and MoE layers."""

    unit: ClassVar[str] = ""
    better: ClassVar[str] = "lower"
    rests_on: ClassVar[tuple[str, ...]] = ("routing",)

    def measure(self, record: Record) -> Floats:
        """Return float[steps]."""
        return ratio(total(record, "layers", "copies"), total(record, "layers", "tokens"))


@register("metric", "nodes_per_token")
@dataclass(frozen=True, slots=True, kw_only=True)
class NodesPerToken:
    """Nodes that compute routed rows of a token, its own among them if it does, mean over tokens and MoE layers; unknown of counts."""

    unit: ClassVar[str] = ""
    better: ClassVar[str] = "lower"
    rests_on: ClassVar[tuple[str, ...]] = ("routing",)

    def measure(self, record: Record) -> Floats:
        """Return float[steps]; NaN in a step with a layer whose single tokens are unknown (-1 in the table)."""
        unknown = unknown_anywhere(record, "nodes")
        return np.where(unknown, np.nan, ratio(total(record, "layers", "nodes"), total(record, "layers", "tokens")))


@register("metric", "all_to_all_contention")
@dataclass(frozen=True, slots=True, kw_only=True)
class AllToAllContention:
    """Transfer time of the GPUs in all-to-alls, divided by what their own bytes would take on links of their own; 1: no contention."""

    unit: ClassVar[str] = ""
    better: ClassVar[str] = "lower"
    rests_on: ClassVar[tuple[str, ...]] = ("compute", "network", "routing")

    def measure(self, record: Record) -> Floats:
        """Return float[steps], at least 1; NaN in a step in which no byte is sent.

        What raises it: a shared uplink, a receiver that many send to, a link narrower than both ends. Waiting for late peers does not
        count. The latency of routes does, so exchanges of little are far above 1 on any fabric.
        """
        return ratio(of_tokens(record, "transfer_s"), of_tokens(record, "alone_s"))


@register("metric", "fabric_bound_ratio")
@dataclass(frozen=True, slots=True, kw_only=True)
class FabricBoundRatio:
    """Time in which all-to-alls had bytes on their way, divided by what their busiest links need; 1: the busiest link never idles."""

    unit: ClassVar[str] = ""
    better: ClassVar[str] = "lower"
    rests_on: ClassVar[tuple[str, ...]] = ("compute", "network", "routing")

    def measure(self, record: Record) -> Floats:
        """Return float[steps], at least 1; NaN in a step in which no byte is sent. Late ranks raise it, since some links wait for them."""
        return ratio(of_tokens(record, "moving_s"), of_tokens(record, "link_bound_s"))


@register("metric", "busiest_link_utilisation")
@dataclass(frozen=True, slots=True, kw_only=True)
class BusiestLinkUtilisation:
    """Bytes of the busiest link divided by what it could carry in the step time, mean over all measured steps."""

    unit: ClassVar[str] = ""
    better: ClassVar[str] = "neither"
    rests_on: ClassVar[tuple[str, ...]] = ("compute", "network", "routing")
    summary: ClassVar[str] = "whole"

    def measure(self, record: Record) -> Floats:
        """Return float[steps], the same number for each; NaN in a cluster without links."""
        used = np.asarray(record.tables["links"]["utilisation"], dtype=np.float64)
        return whole(record, float(used.max()) if used.size else float("nan"))
