"""All GPUs on one switch: the smallest cluster, and the fabric of closed forms."""

from __future__ import annotations

from dataclasses import dataclass, field

from moesim.base.fields import BytesPerSecond, Count, Efficiency, Seconds
from moesim.base.registry import register
from moesim.facts.cluster import Cluster
from moesim.facts.gpu_presets import GpuField, gpu_presets
from moesim.models.topology.fabric_parts import Graph, at_most, gpus_on, scale_up
from moesim.models.topology.flatten import flatten


@register("topology", "one_switch")
@dataclass(frozen=True, slots=True, kw_only=True)
class OneSwitch:
    """GPUs around one switch, each with one link out and one link in; all are on node 0.

    Parameters
    ----------
    gpus : int
        G.
    gpu : Gpu
        A preset's name or a mapping.
    bandwidth : bandwidth or None
        Of each link, one way; if left out, the GPU's NVLink.
    latency : time or None
        From GPU to GPU through the switch; if left out, 936.25 ns (fitted for 8 H100 by ASTRA-sim).
    efficiency : fraction or None
        What share of ``bandwidth`` is achieved; if left out, the share of the data sheet that all-to-alls reached (0.69 for H200
        and, carried over, H100; 0.65 for A100), or all of a written ``bandwidth``.
    """

    gpus: Count = 8
    gpu: GpuField = field(default_factory=lambda: gpu_presets()["h100-sxm"])
    bandwidth: BytesPerSecond | None = None
    latency: Seconds | None = None
    efficiency: Efficiency | None = None

    def __post_init__(self) -> None:
        at_most("gpus", self.gpus)

    def graph(self) -> Graph:
        """Return the switch and its GPUs."""
        graph = gpus_on([0] * self.gpus)
        scale_up(
            graph, "nvswitch:0", range(self.gpus), self.gpu, bandwidth=self.bandwidth, latency=self.latency, efficiency=self.efficiency
        )
        return graph

    def build(self) -> Cluster:
        """Return the arrays."""
        return flatten(self.graph(), gpu=self.gpu)
