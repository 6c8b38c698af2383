"""NVLink nodes below a fat tree whose switches hash: leaves, spines and, between pods, cores."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from moesim.base.errors import FieldError
from moesim.base.fields import Count, Flag
from moesim.base.registry import register
from moesim.facts.gpu import Gpu
from moesim.models.topology.achieved import Link
from moesim.models.topology.fabric_parts import Graph, Oversubscription, connect, links_at_most, rail_leaves, shared_leaves
from moesim.models.topology.nvlink_nodes import NvlinkNodes


@register("topology", "fat_tree")
@dataclass(frozen=True, slots=True, kw_only=True)
class FatTree(NvlinkNodes):
    """Nodes of GPUs behind an NVSwitch, joined by a fat tree of two or three tiers whose switches hash (ECMP).

    Each leaf has a link each way to every spine of its pod, and all bytes from one GPU to another take one spine (and one core),
    which a hash of the two GPUs and ``ecmp_seed`` picks. So some links carry more than others although they would be enough together.

    Parameters
    ----------
    nodes : int
        8 if left out.
    nodes_per_leaf : int or None
        If left out, 32 with rails; without, 4, or half of the nodes when fewer than eight would leave no second leaf.
    spines : int or None
        Of a pod. If left out, as many as make one uplink as fast as one card: the cards below a leaf over ``oversubscription``.
    spread : bool
        If true, nothing is hashed: all spines of a pod are one, and all cores, as if every packet took another.
    leaves_per_pod : int or None
        If left out, all leaves are in one pod and there are no cores: two tiers.
    cores_per_spine : int or None
        How many cores each spine has a link each way to. Core c of spine s joins the spines s of all pods. If left out, as many as
        make one of these links as fast as an uplink of a leaf: ``leaves_per_pod`` over ``core_oversubscription``.
    core_oversubscription : float
        Sum of the uplinks below a spine over the spine's capacity to the cores, at least 1. It acts only on bytes that leave a pod.

    Notes
    -----
    The other fields are those of :class:`~moesim.models.topology.nvlink_nodes.NvlinkNodes`. Three tiers are those of M. Al-Fares,
    A. Loukissas and A. Vahdat, "A scalable, commodity data center network architecture", SIGCOMM 2008. Two parallel cables to one spine
    are two spines here.
    """

    nodes: Count = 8
    spines: Count | None = None
    spread: Flag = False
    leaves_per_pod: Count | None = None
    cores_per_spine: Count | None = None
    core_oversubscription: Oversubscription = 1.0

    def __post_init__(self) -> None:
        NvlinkNodes.__post_init__(self)
        for name in ("spines", "cores_per_spine"):
            written = getattr(self, name)
            if self.spread and written is not None:
                message = f"spread: true makes all switches of a tier one, so {name} ({written}) says nothing: write one of the two"
                raise FieldError(name, message)
        for name, idle in (("cores_per_spine", None), ("core_oversubscription", 1.0)):
            written = getattr(self, name)
            if self.leaves_per_pod is None and written != idle:
                raise FieldError(name, f"{name} ({written:g}) is about cores, which join pods: write leaves_per_pod as well")
        pods = -(-len(self.leaves()) // self.leaves_per_pod) if self.leaves_per_pod else 1
        if pods > 1:
            links = 2 * pods * self._spines() * self._cores()
            links_at_most("cores_per_spine", links, fewer="write fewer spines and cores, or larger pods")

    def check_spines(self, leaves: int) -> None:
        """Refuse more spines than can be searched, and a seed that has nothing to choose from."""
        if self.spread and self.ecmp_seed:
            message = f"spread: true hashes nothing, so ecmp_seed ({self.ecmp_seed}) says nothing: write one of the two"
            raise FieldError("ecmp_seed", message)
        links_at_most("spines", 2 * leaves * self._spines(), fewer="write fewer spines, or more nodes per leaf")

    def leaves(self) -> Mapping[str, range]:
        """Return the GPUs below each leaf."""
        if self.rail_optimised:
            return rail_leaves(self.gpus_per_node, self.nodes, self.nodes_per_leaf or 32)
        return shared_leaves(self.gpus_per_node, self.nodes, self.nodes_per_leaf or min(4, -(-self.nodes // 2)))

    def hash_seed(self) -> int | None:
        """Return the seed of the hash; None where nothing is hashed."""
        return None if self.spread else self.ecmp_seed

    def join(self, graph: Graph, gpu: Gpu, leaves: Mapping[str, Sequence[int]]) -> None:
        """Give every GPU a card and join the leaves of a pod through its spines, and pods through cores; see the class."""
        path = self.hang(graph, gpu, leaves)
        if len(leaves) == 1:
            return
        names = list(leaves)
        size = self.leaves_per_pod or len(names)
        pods = [names[first : first + size] for first in range(0, len(names), size)]
        for pod, members in enumerate(pods):
            spines = [f"spine:{spine}" if len(pods) == 1 else f"spine:{pod}-{spine}" for spine in range(self._spines())]
            graph.add_nodes_from(spines, kind="spine")
            uplinks = [self.lift(graph, path, leaf, len(leaves[leaf]), spines) for leaf in members]
            if len(pods) > 1:
                self._reach_cores(graph, pod, spines, uplinks)

    def _reach_cores(self, graph: Graph, pod: int, spines: list[str], uplinks: list[Link]) -> None:
        bandwidth = math.fsum(uplink.bandwidth for uplink in uplinks) / self.core_oversubscription / self._cores()
        link = replace(uplinks[0], bandwidth=bandwidth)
        for number, spine in enumerate(spines):
            for core in range(self._cores()):
                above, which = f"core:{number}-{core}", f"pod{pod}-spine{number}-core{core}"
                graph.add_node(above, kind="core")
                connect(graph, spine, above, name=f"core-up:{which}", link_class="core", link=link)
                connect(graph, above, spine, name=f"core-down:{which}", link_class="core", link=link)

    def _spines(self) -> int:
        cards = max(map(len, self.leaves().values()))
        return 1 if self.spread else self.spines or math.ceil(cards / self.oversubscription)

    def _cores(self) -> int:
        return 1 if self.spread else self.cores_per_spine or math.ceil((self.leaves_per_pod or 1) / self.core_oversubscription)
