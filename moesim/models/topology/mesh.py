"""Nodes whose GPUs are joined pair by pair, without a switch: MI300X boxes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import permutations

from moesim.base.fields import BytesPerSecond, Count, Efficiency, Seconds
from moesim.base.registry import register
from moesim.facts.cluster import Cluster
from moesim.facts.gpu_presets import GpuField, gpu_presets
from moesim.models.topology.achieved import datasheet_of, link_of
from moesim.models.topology.fabric_parts import Graph, at_most, connect, gpus_on, nodes_below_leaf, shared_leaves
from moesim.models.topology.flatten import flatten
from moesim.models.topology.leaf_spine import LeafSpine


@register("topology", "mesh")
@dataclass(frozen=True, slots=True, kw_only=True)
class Mesh(LeafSpine):
    """Nodes in which every pair of GPUs has a link of its own each way, joined by network cards, leaves and a spine.

    A pair's bytes use the pair's link only: a hot pair cannot borrow the links of idle ones, unlike behind a switch.

    Parameters
    ----------
    gpu : Gpu
        A preset's name or a mapping.
    nodes, gpus_per_node : int
        GPU ``i`` is on node ``i // gpus_per_node``. With one node there are no network links.
    link : bandwidth or None
        Of the link from one GPU to one other; if left out, a seventh of the GPU's scale-up bandwidth (64 GB/s for MI300X).
    link_latency : time or None
        If left out, 936.25 ns (assumed).
    link_efficiency : fraction or None
        What share of ``link`` is achieved; if left out, 0.61 of the data sheet (measured with MORI on MI300X), or all of a written
        ``link``.
    nodes_per_leaf : int or None
        How many neighbouring nodes share a leaf; if left out, 4, or half of the nodes when four or fewer ask for oversubscription.

    Notes
    -----
    The other fields are those of :class:`~moesim.models.topology.leaf_spine.LeafSpine`.
    """

    gpu: GpuField = field(default_factory=lambda: gpu_presets()["mi300x"])
    nodes: Count = 1
    gpus_per_node: Count = 8
    link: BytesPerSecond | None = None
    link_latency: Seconds | None = None
    link_efficiency: Efficiency | None = None
    nodes_per_leaf: Count | None = None

    def __post_init__(self) -> None:
        at_most("nodes", self.nodes * self.gpus_per_node)
        self.check_spines(len(self.leaves()))

    def leaves(self) -> Mapping[str, range]:
        """Return the GPUs below each leaf."""
        below = nodes_below_leaf(self.nodes_per_leaf, nodes=self.nodes, oversubscription=self.oversubscription)
        return shared_leaves(self.gpus_per_node, self.nodes, below)

    def graph(self) -> Graph:
        """Return the meshes and, with more than one node, leaves and the spine."""
        each = self.gpus_per_node
        graph = gpus_on([number // each for number in range(self.nodes * each)])
        pair = link_of(
            "mesh",
            self.gpu,
            written=self.link,
            datasheet=datasheet_of("mesh", self.gpu),
            efficiency=self.link_efficiency,
            latency=self.link_latency,
        )
        for node in range(self.nodes):
            for tail, head in permutations(range(node * each, (node + 1) * each), 2):
                connect(graph, f"gpu:{tail}", f"gpu:{head}", name=f"mesh:{tail}-{head}", link_class="mesh", link=pair)
        if self.nodes > 1:
            self.join(graph, self.gpu, self.leaves())
        return graph

    def build(self) -> Cluster:
        """Return the arrays."""
        return flatten(self.graph(), gpu=self.gpu, ecmp_seed=self.hash_seed())
