"""Racks in which every GPU reaches every other by NVLink: GB200 NVL72 and its kin."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from moesim.base.errors import FieldError
from moesim.base.fields import BytesPerSecond, Count, Efficiency, Flag, Seconds
from moesim.base.registry import register
from moesim.facts.cluster import Cluster
from moesim.facts.gpu_presets import GpuField, gpu_presets
from moesim.models.topology.fabric_parts import Graph, at_most, gpus_on, rail_leaves, scale_up, shared_leaves
from moesim.models.topology.flatten import flatten
from moesim.models.topology.forwarding import check_pxn, forwarded, rail_peers
from moesim.models.topology.leaf_spine import LeafSpine


@register("topology", "nvl_rack")
@dataclass(frozen=True, slots=True, kw_only=True)
class NvlRack(LeafSpine):
    """One flat NVLink domain per rack; racks are joined by network cards, leaves and a spine.

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
    rail_optimised : bool
        If false, each rack has a leaf, to which all of its cards go. If true, each block of ``racks_per_leaf`` racks has one leaf per GPU
        of a tray: card r of every tray goes to the leaf of rail r.
    racks_per_leaf : int or None
        If left out, 1; with rails 4, for four racks of 18 trays have 72 cards on a rail, half of a switch of 144 ports.
    pxn : bool
        Only with rails. If true, bytes to another rail of another rack go over NVLink to the GPU of that rail in the own tray and leave
        through its card.

    Notes
    -----
    The other fields are those of :class:`~moesim.models.topology.leaf_spine.LeafSpine`.
    """

    gpu: GpuField = field(default_factory=lambda: gpu_presets()["gb200-nvl72"])
    racks: Count = 1
    gpus: Count = 72
    gpus_per_tray: Count = 4
    nvlink: BytesPerSecond | None = None
    nvlink_latency: Seconds | None = None
    nvlink_efficiency: Efficiency | None = None
    rail_optimised: Flag = False
    racks_per_leaf: Count | None = None
    pxn: Flag = False

    def __post_init__(self) -> None:
        at_most("racks" if self.racks > 1 else "gpus", self.racks * self.gpus)
        if self.gpus % self.gpus_per_tray:
            raise FieldError("gpus_per_tray", f"the {self.gpus} GPUs of a rack do not divide into trays of {self.gpus_per_tray}")
        check_pxn(pxn=self.pxn, rail_optimised=self.rail_optimised)
        self.check_spines(len(self.leaves()))

    def leaves(self) -> Mapping[str, range]:
        """Return the GPUs below each leaf."""
        racks = self.racks_per_leaf or (4 if self.rail_optimised else 1)
        if not self.rail_optimised:
            return shared_leaves(self.gpus, self.racks, racks)
        trays = self.gpus // self.gpus_per_tray
        return rail_leaves(self.gpus_per_tray, self.racks * trays, racks * trays)

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
            self.join(graph, self.gpu, self.leaves())
        return graph

    def build(self) -> Cluster:
        """Return the arrays."""
        cluster = flatten(self.graph(), gpu=self.gpu, ecmp_seed=self.hash_seed())
        return forwarded(cluster, rail_peers(np.arange(cluster.gpus) // self.gpus, self.gpus_per_tray)) if self.pxn else cluster
