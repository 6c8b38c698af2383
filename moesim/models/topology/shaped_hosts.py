"""Ranks as processes on hosts whose links are shaped, and who may share the cores: what a testbed of network namespaces is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated

import numpy as np

from moesim.base.errors import FieldError
from moesim.base.fields import BytesPerSecond, Choice, Count, CountOrZero, Efficiency, Flag, Seconds
from moesim.base.registry import register
from moesim.facts.cluster import Cluster
from moesim.facts.gpu import Gpu
from moesim.facts.gpu_presets import GpuField
from moesim.models.topology.achieved import Link
from moesim.models.topology.fabric_parts import Graph, at_most, connect, gpus_on
from moesim.models.topology.flatten import flatten

MTU = 1500
ON_THE_WIRE = MTU + 14
"""Bytes that a shaper of Linux counts for a full packet: the packet and its Ethernet header."""
OF_THE_DATA = MTU - 52
"""Bytes of such a packet that are data: less 20 of IP, 20 of TCP and 12 of TCP's time stamps."""
PAYLOAD = OF_THE_DATA / ON_THE_WIRE
"""Share of a shaped rate that is data, 0.9564."""


def cpu_core() -> Gpu:
    """Return one core of a server as a device that computes: round numbers, of the order of an AVX-512 core's."""
    return Gpu(name="cpu-core", flops={"fp32": 1e11, "bf16": 4e11}, memory=2e9, memory_bandwidth=1e10, nvlink=1.25e9, nic=1.25e9, sms=1)


@register("topology", "shaped_hosts")
@dataclass(frozen=True, slots=True, kw_only=True)
class ShapedHosts:
    """Ranks with one shaped link out and one in, in one star or in nodes with a shared uplink, whose processes may share cores.

    What ``moesim measure testbed`` builds: each rank is a process of one thread in a network namespace of its own, every directed link has
    a rate of its own, and all of it runs on one machine with fewer cores than ranks. It serves as well for containers on hosts that have
    fewer cores, or fewer accelerators, than ranks.

    Parameters
    ----------
    ranks : int
        How many; they are the GPUs of the scenario.
    ranks_per_node : int
        Ranks of a node, whose bytes to other nodes share its uplink; 0 for one switch that all are joined to.
    rank_link : bandwidth
        Between a rank and its switch, each way.
    uplink : bandwidth or None
        Between a node's switch and the core, each way; needed with several nodes.
    rank_links : mapping of int to bandwidth
        Ranks whose link differs from ``rank_link``.
    payload : fraction
        What share of these rates is data; 1448/1514 = 0.956 of a rate that a shaper of Linux counts, with TCP over packets of 1500 B.
    latency : time
        Of each link.
    cores : int
        Of the machine (or of each node, see ``cores_of``); 0 where no rank shares its core with another.
    cores_of : str
        ``cluster``: ``cores`` are those of the one machine on which all ranks run. ``node``: each node has so many.
    pinned : bool
        Rank r (of its machine) runs on core r modulo ``cores`` and nowhere else. If false, the scheduler moves ranks as it likes, and all
        share all cores.
    gpu : Gpu
        What a rank computes with, if the compute model asks; one core by default.
    """

    ranks: Count = 8
    ranks_per_node: CountOrZero = 0
    rank_link: BytesPerSecond = 12.5e6
    uplink: BytesPerSecond | None = None
    rank_links: Mapping[int, BytesPerSecond] = field(default_factory=dict)
    payload: Efficiency = PAYLOAD
    latency: Seconds = 0.0
    cores: CountOrZero = 0
    cores_of: Annotated[str, Choice(("cluster", "node"))] = "cluster"
    pinned: Flag = True
    gpu: GpuField = field(default_factory=cpu_core)

    def __post_init__(self) -> None:
        at_most("ranks", self.ranks)
        if self.ranks_per_node and self.ranks % self.ranks_per_node:
            raise FieldError("ranks_per_node", f"{self.ranks} ranks do not divide into nodes of {self.ranks_per_node}")
        if self.nodes > 1 and self.uplink is None:
            raise FieldError("uplink", f"{self.nodes} nodes need the rate of their uplinks, such as 'uplink: 100 Mb/s'")
        unknown = sorted(rank for rank in self.rank_links if not 0 <= rank < self.ranks)
        if unknown:
            raise FieldError("rank_links", f"there is no rank {unknown[0]}: ranks are 0 to {self.ranks - 1}")

    @property
    def nodes(self) -> int:
        """Nodes that are joined by uplinks; 1 for a star."""
        return self.ranks // self.ranks_per_node if self.ranks_per_node else 1

    def graph(self) -> Graph:
        """Return ranks, a switch per node, and the core switch that joins several nodes."""
        each = self.ranks_per_node or self.ranks
        graph = gpus_on([rank // each for rank in range(self.ranks)])
        for node in range(self.nodes):
            graph.add_node(f"leaf:{node}", kind="leaf")
        if self.nodes > 1:
            graph.add_node("spine:0", kind="spine")
        for rank in range(self.ranks):
            link, switch = self._link(self.rank_links.get(rank, self.rank_link)), f"leaf:{rank // each}"
            connect(graph, f"gpu:{rank}", switch, name=f"rank-out:{rank}", link_class="rank", link=link)
            connect(graph, switch, f"gpu:{rank}", name=f"rank-in:{rank}", link_class="rank", link=link)
        if self.nodes > 1 and self.uplink is not None:
            for node in range(self.nodes):
                link = self._link(self.uplink)
                connect(graph, f"leaf:{node}", "spine:0", name=f"uplink-out:{node}", link_class="uplink", link=link)
                connect(graph, "spine:0", f"leaf:{node}", name=f"uplink-in:{node}", link_class="uplink", link=link)
        return graph

    def build(self) -> Cluster:
        """Return the arrays."""
        cluster = flatten(self.graph(), gpu=self.gpu)
        return cluster if not self.cores else replace(cluster, core_pool=self._pools(cluster), pool_cores=self._pool_sizes())

    def _link(self, rate: float) -> Link:
        # A written rate is what the user says it is; the share of it that is data is arithmetic.
        return Link(bandwidth=rate * self.payload, latency=self.latency, basis="exact")

    def _machines(self) -> int:
        return self.nodes if self.cores_of == "node" else 1

    def _pools(self, cluster: Cluster) -> np.ndarray:
        machine = cluster.node_of if self.cores_of == "node" else np.zeros(self.ranks, dtype=np.int64)
        if not self.pinned:
            return np.asarray(machine)
        of_machine = np.arange(self.ranks) % (self.ranks // self._machines())
        return np.asarray(machine * self.cores + of_machine % self.cores)

    def _pool_sizes(self) -> np.ndarray:
        machines = self._machines()
        return np.full(machines * self.cores, 1.0) if self.pinned else np.full(machines, float(self.cores))
