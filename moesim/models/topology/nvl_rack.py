"""Racks in which every GPU reaches every other by NVLink: GB200 NVL72 and its kin."""

from __future__ import annotations

from dataclasses import dataclass, field

from moesim.base.errors import FieldError
from moesim.base.fields import BytesPerSecond, Count, Efficiency, Seconds
from moesim.base.registry import register
from moesim.facts.cluster import Cluster
from moesim.facts.gpu_presets import GpuField, gpu_presets
from moesim.models.topology.fabric_parts import Graph, ScaleOut, at_most, gpus_on, scale_up, shared_leaves
from moesim.models.topology.flatten import flatten


@register("topology", "nvl_rack")
@dataclass(frozen=True, slots=True, kw_only=True)
class NvlRack(ScaleOut):
    """One flat NVLink domain per rack; racks are joined by network cards, a leaf per rack and a spine.

    A *node* is a tray: ``cross_node_bytes`` counts what leaves a tray, though inside a rack it travels by NVLink as fast as
    within the tray. The classes of links tell apart what leaves a rack (``nic``, ``uplink``).

    Parameters
    ----------
    gpu : Gpu
        A preset's name or a mapping.
    racks : int
        With one rack there are no network links.
    gpus : int
        Per rack.
    gpus_per_tray : int
        Divides ``gpus``.
    nvlink : bandwidth or None
        Out of (and, separately, into) a GPU; if left out, its data sheet.
    nvlink_latency : time or None
        From GPU to GPU of a rack; if left out, 936.25 ns (fitted for 8 H100 by ASTRA-sim).
    nvlink_efficiency : fraction or None
        What share of ``nvlink`` is achieved; if left out, 0.66 of the data sheet (fitted to dispatch on GB200), or all of a written
        ``nvlink``.

    Notes
    -----
    The other fields are those of :class:`~moesim.models.topology.fabric_parts.ScaleOut`.
    """

    gpu: GpuField = field(default_factory=lambda: gpu_presets()["gb200-nvl72"])
    racks: Count = 1
    gpus: Count = 72
    gpus_per_tray: Count = 4
    nvlink: BytesPerSecond | None = None
    nvlink_latency: Seconds | None = None
    nvlink_efficiency: Efficiency | None = None

    def __post_init__(self) -> None:
        at_most("racks" if self.racks > 1 else "gpus", self.racks * self.gpus)
        if self.gpus % self.gpus_per_tray:
            raise FieldError("gpus_per_tray", f"the {self.gpus} GPUs of a rack do not divide into trays of {self.gpus_per_tray}")

    def graph(self) -> Graph:
        """Return racks as stars around their NVSwitch and, with more than one, leaves and the spine."""
        graph = gpus_on([number // self.gpus_per_tray for number in range(self.racks * self.gpus)])
        for rack in range(self.racks):
            scale_up(
                graph,
                f"nvswitch:{rack}",
                range(rack * self.gpus, (rack + 1) * self.gpus),
                self.gpu,
                bandwidth=self.nvlink,
                latency=self.nvlink_latency,
                efficiency=self.nvlink_efficiency,
            )
        if self.racks > 1:
            self.join(graph, self.gpu, shared_leaves(self.gpus, self.racks, 1))
        return graph

    def build(self) -> Cluster:
        """Return the arrays."""
        return flatten(self.graph(), gpu=self.gpu)
