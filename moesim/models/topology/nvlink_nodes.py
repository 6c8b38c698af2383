"""Servers with NVLink inside and one network card per GPU outside: HGX boxes on a leaf-spine network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from moesim.base.fields import BytesPerSecond, Count, Efficiency, Flag, Seconds
from moesim.base.registry import register
from moesim.facts.cluster import Cluster
from moesim.facts.gpu_presets import GpuField, gpu_presets
from moesim.models.topology.fabric_parts import Graph, at_most, gpus_on, nodes_below_leaf, rail_leaves, scale_up, shared_leaves
from moesim.models.topology.flatten import flatten
from moesim.models.topology.forwarding import check_pxn, forwarded, rail_peers
from moesim.models.topology.leaf_spine import LeafSpine


@register("topology", "nvlink_nodes")
@dataclass(frozen=True, slots=True, kw_only=True)
class NvlinkNodes(LeafSpine):
    """Nodes of GPUs behind an NVSwitch, joined by network cards, leaves and a spine.

    Bytes inside a node go GPU → NVSwitch → GPU. Bytes between nodes go GPU → leaf → GPU below one leaf, and otherwise
    GPU → leaf → spine → leaf → GPU. A GPU forwards for another only with ``pxn``. With one node there are no network links.

    Parameters
    ----------
    gpu : Gpu
        A preset's name or a mapping.
    nodes, gpus_per_node : int
        GPU ``i`` is on node ``i // gpus_per_node``.
    nvlink : bandwidth or None
        Out of (and, separately, into) a GPU; if left out, its data sheet.
    nvlink_latency : time or None
        From GPU to GPU of a node; if left out, 936.25 ns (fitted for 8 H100 by ASTRA-sim).
    nvlink_efficiency : fraction or None
        What share of ``nvlink`` is achieved; if left out, the share of the data sheet that all-to-alls reached (0.69 for H200 and,
        carried over, H100; 0.65 for A100), or all of a written ``nvlink``.
    rail_optimised : bool
        If false, all cards of ``nodes_per_leaf`` neighbouring nodes share a leaf. If true, each block of ``nodes_per_leaf`` nodes has
        one leaf per rail: card r of every node goes to the leaf of rail r, and bytes between rails cross the spine.
    pxn : bool
        Only with rails. If true, bytes to another rail of another node go over NVLink to the GPU of that rail in the own node and leave
        through its card, as NCCL sends them: they load the sender's NVLink out, the forwarding GPU's NVLink in and card out, and the
        receiver's card in, and the spine only between blocks of nodes.
    nodes_per_leaf : int or None
        If left out, 32 with rails and 4 without (both are 32 cards of 8-GPU nodes on a 64-port switch). Four nodes or fewer
        that ask for oversubscription get two leaves by default, since otherwise nothing would be oversubscribed.

    Notes
    -----
    The other fields are those of :class:`~moesim.models.topology.leaf_spine.LeafSpine`.
    """

    gpu: GpuField = field(default_factory=lambda: gpu_presets()["h100-sxm"])
    nodes: Count = 1
    gpus_per_node: Count = 8
    nvlink: BytesPerSecond | None = None
    nvlink_latency: Seconds | None = None
    nvlink_efficiency: Efficiency | None = None
    rail_optimised: Flag = False
    pxn: Flag = False
    nodes_per_leaf: Count | None = None

    def __post_init__(self) -> None:
        at_most("nodes", self.nodes * self.gpus_per_node)
        check_pxn(pxn=self.pxn, rail_optimised=self.rail_optimised)
        self.check_spines(len(self.leaves()))

    def leaves(self) -> Mapping[str, range]:
        """Return the GPUs below each leaf."""
        below = nodes_below_leaf(self.nodes_per_leaf, nodes=self.nodes, oversubscription=self.oversubscription, rails=self.rail_optimised)
        return (rail_leaves if self.rail_optimised else shared_leaves)(self.gpus_per_node, self.nodes, below)

    def graph(self) -> Graph:
        """Return nodes, NVSwitches, leaves and, with more than one leaf, the spine."""
        each = self.gpus_per_node
        graph = gpus_on([number // each for number in range(self.nodes * each)])
        for node in range(self.nodes):
            scale_up(
                graph,
                f"nvswitch:{node}",
                range(node * each, (node + 1) * each),
                self.gpu,
                bandwidth=self.nvlink,
                latency=self.nvlink_latency,
                efficiency=self.nvlink_efficiency,
            )
        if self.nodes > 1:
            self.join(graph, self.gpu, self.leaves())
        return graph

    def build(self) -> Cluster:
        """Return the arrays."""
        cluster = flatten(self.graph(), gpu=self.gpu, ecmp_seed=self.hash_seed())
        return forwarded(cluster, rail_peers(cluster.node_of, self.gpus_per_node)) if self.pxn else cluster
