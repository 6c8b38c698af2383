"""What each way of an exchange puts on which links, and the bandwidth that its library would report."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from moesim.base.registry import register
from moesim.facts.arrays import Floats
from moesim.facts.contracts import Record
from moesim.measure.columns import ratio, step_column, total


@register("metric", "dispatch_bytes_across_nodes")
@dataclass(frozen=True, slots=True, kw_only=True)
class DispatchBytesAcrossNodes:
    """Bytes of dispatch that leave a node in a step, over all MoE layers: what its network cards send."""

    unit: ClassVar[str] = "B"
    better: ClassVar[str] = "lower"
    rests_on: ClassVar[tuple[str, ...]] = ("routing",)

    def measure(self, record: Record) -> Floats:
        """Return float[steps], in B."""
        return total(record, "layers", "dispatch_cross_node_bytes")


@register("metric", "dispatch_bytes_within_nodes")
@dataclass(frozen=True, slots=True, kw_only=True)
class DispatchBytesWithinNodes:
    """Bytes of dispatch between GPUs of one node in a step, over all MoE layers: what NVLink, or the links that are there, carry."""

    unit: ClassVar[str] = "B"
    better: ClassVar[str] = "lower"
    rests_on: ClassVar[tuple[str, ...]] = ("routing",)

    def measure(self, record: Record) -> Floats:
        """Return float[steps], in B."""
        return total(record, "layers", "dispatch_bytes") - total(record, "layers", "dispatch_cross_node_bytes")


@register("metric", "combine_bytes_across_nodes")
@dataclass(frozen=True, slots=True, kw_only=True)
class CombineBytesAcrossNodes:
    """Bytes of combine that leave a node in a step, over all MoE layers: what its network cards send."""

    unit: ClassVar[str] = "B"
    better: ClassVar[str] = "lower"
    rests_on: ClassVar[tuple[str, ...]] = ("routing",)

    def measure(self, record: Record) -> Floats:
        """Return float[steps], in B."""
        return total(record, "layers", "cross_node_bytes") - total(record, "layers", "dispatch_cross_node_bytes")


@register("metric", "combine_bytes_within_nodes")
@dataclass(frozen=True, slots=True, kw_only=True)
class CombineBytesWithinNodes:
    """Bytes of combine between GPUs of one node in a step, over all MoE layers: what NVLink, or the links that are there, carry."""

    unit: ClassVar[str] = "B"
    better: ClassVar[str] = "lower"
    rests_on: ClassVar[tuple[str, ...]] = ("routing",)

    def measure(self, record: Record) -> Floats:
        """Return float[steps], in B."""
        across = total(record, "layers", "cross_node_bytes") - total(record, "layers", "dispatch_cross_node_bytes")
        return total(record, "layers", "combine_bytes") - across


@register("metric", "dispatch_bandwidth")
@dataclass(frozen=True, slots=True, kw_only=True)
class DispatchBandwidth:
    """Bandwidth of dispatch as the library of the exchange defines it: its bytes of a GPU over the time of dispatch without waiting.

    Every library counts other bytes, most of them bytes that never leave a GPU, so figures of different libraries do not compare; the
    plug-in of the exchange says which it is. Forward and backward are taken together, and the launch is part of the time.
    """

    unit: ClassVar[str] = "B/s"
    better: ClassVar[str] = "higher"
    rests_on: ClassVar[tuple[str, ...]] = ("network", "routing")

    def measure(self, record: Record) -> Floats:
        """Return float[steps], in B/s; NaN in a step whose dispatch takes no time."""
        return ratio(total(record, "layers", "dispatch_library_bytes"), step_column(record, "dispatch_transfer_s"))


@register("metric", "combine_bandwidth")
@dataclass(frozen=True, slots=True, kw_only=True)
class CombineBandwidth:
    """Bandwidth of combine as the library of the exchange defines it: its bytes of a GPU over the time of combine without waiting.

    As ``dispatch_bandwidth``, for the way back.
    """

    unit: ClassVar[str] = "B/s"
    better: ClassVar[str] = "higher"
    rests_on: ClassVar[tuple[str, ...]] = ("network", "routing")

    def measure(self, record: Record) -> Floats:
        """Return float[steps], in B/s; NaN in a step whose combine takes no time."""
        return ratio(total(record, "layers", "combine_library_bytes"), step_column(record, "combine_transfer_s"))
