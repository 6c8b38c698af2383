"""A machine of any shape, from a file: a graph of one's own, or what a tool says of the machine one has."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

from moesim.base.errors import FieldError, PluginError
from moesim.base.fields import BytesPerSecond, Choice, Count, Efficiency, ReadFile
from moesim.base.registry import register
from moesim.facts.cluster import Cluster
from moesim.facts.gpu_presets import GpuField, gpu_presets
from moesim.models.topology.achieved import Link, delay, link_of
from moesim.models.topology.copies import Copies
from moesim.models.topology.fabric_parts import Graph, ScaleOut, at_most, nodes_below_leaf
from moesim.models.topology.flatten import flatten
from moesim.models.topology.wired_links import Defaults, directed
from moesim.models.topology.wiring import Vertex, Wiring, drawn

FORMATS = ("auto", "yaml", "graphml", "node-link", "nvidia-smi", "nccl", "astra-sim")


@register("topology", "graph")
@dataclass(frozen=True, slots=True, kw_only=True)
class GraphTopology(ScaleOut):
    """GPUs, switches and links as a file describes them.

    The file is read when the scenario is loaded, and the resolved scenario holds what was in it as ``wiring``. Routes are the shortest
    ones by ``weight`` (the fewest links, where no link says otherwise), and GPUs do not forward. A machine with one node can be copied:
    the bytes of each GPU leave its node through the network card that the file puts nearest to it, and a GPU without one gets a card of
    its own.

    Parameters
    ----------
    file : path or None
        GraphML, node-link JSON, moesim's own YAML, ``nvidia-smi topo -m``, an NCCL topology XML or an ASTRA-sim network.
    format : str
        ``auto`` tells formats by the file's ending, and XML and YAML by what they hold.
    wiring : section or None
        The vertices and links themselves, instead of a file.
    gpu : Gpu
        A preset's name or a mapping.
    nodes : int
        How many copies of the described machine there are.
    nodes_per_leaf : int or None
        How many neighbouring copies share a leaf; if left out, 4, or half of the copies when four or fewer ask for oversubscription.
    nvlink_lane : bandwidth or None
        Of one NVLink, one way; if left out, 25 GB/s, or 50 GB/s for GPUs with 900 GB/s or more in all.
    nvlink_efficiency : fraction or None
        What share of the NVLinks' data sheet is achieved; if left out, the share that all-to-alls reached.
    pcie_lane : bandwidth or None
        What one PCIe lane carries, one way, where the file does not say; if left out, 3 GB/s (generation 5), or 1.5 GB/s for A100.
    socket : bandwidth or None
        Between two CPU sockets, one way, where the file does not say; if left out, 22 GB/s (NCCL's figure for Sapphire Rapids).

    Notes
    -----
    The other fields are those of :class:`~moesim.models.topology.fabric_parts.ScaleOut`; a written ``nic`` replaces the rates that the
    file has for network cards.
    """

    file: Annotated[str, ReadFile(reader="wiring", into="wiring")] | None = None
    format: Annotated[str, Choice(FORMATS)] = "auto"
    wiring: Wiring | None = None
    gpu: GpuField = field(default_factory=lambda: gpu_presets()["h100-sxm"])
    nodes: Count = 1
    nodes_per_leaf: Count | None = None
    nvlink_lane: BytesPerSecond | None = None
    nvlink_efficiency: Efficiency | None = None
    pcie_lane: BytesPerSecond | None = None
    socket: BytesPerSecond | None = None

    def __post_init__(self) -> None:
        if self.wiring is None:
            if self.file is None:
                raise FieldError("file", "a graph needs a file that describes it, or the vertices and links as wiring")
            return
        if self.file is not None:
            raise FieldError("file", "a graph has either a file or a wiring, not both")
        at_most("nodes", self.nodes * len(self.wiring.gpus()))
        described = {vertex.node or 0 for name, vertex in self.wiring.vertices.items() if self.wiring.kind_of(name) == "gpu"} | {0}
        if self.nodes > 1 and len(described) > 1:
            raise FieldError("nodes", f"only a machine with one node can be copied, and {self.wiring.source} describes {len(described)}")

    def graph(self) -> Graph:
        """Return the described graph or, with more than one node, its copies with leaves and the spine."""
        return self._machine() if self.nodes == 1 else self._copies().graph()

    def build(self) -> Cluster:
        """Return the arrays."""
        machine = flatten(self._machine(), gpu=self.gpu)
        return machine if self.nodes == 1 else self._copies().build(machine)

    def _wiring(self) -> Wiring:
        if self.wiring is None:
            raise PluginError(f"{self.file} was not read: load the scenario with load_scenario, or give the wiring itself")
        return self.wiring

    def _machine(self) -> Graph:
        defaults = Defaults(
            gpu=self.gpu,
            nvlink_lane=self.nvlink_lane,
            nvlink_efficiency=self.nvlink_efficiency,
            pcie_lane=self.pcie_lane,
            socket=self.socket,
        )
        attributes, basis = directed(self._wiring(), defaults)
        return drawn(self._wiring(), attributes, basis=basis)

    def _copies(self) -> Copies:
        wiring = self._wiring()
        exits = tuple(wiring.vertices.get(f"gpu:{number}", Vertex()).nic or f"gpu:{number}" for number in wiring.gpus())
        return Copies(
            machine=self._machine(),
            exits=exits,
            cards={exit_: self._card(wiring.vertices.get(exit_, Vertex())) for exit_ in exits},
            nodes=self.nodes,
            nodes_below_leaf=nodes_below_leaf(self.nodes_per_leaf, nodes=self.nodes, oversubscription=self.oversubscription),
            oversubscription=self.oversubscription,
            uplink=delay("switch", self.switch_latency),
        )

    def _card(self, card: Vertex) -> Link:
        return link_of(
            "nic",
            self.gpu,
            written=self.nic,
            datasheet=card.rate or self.gpu.nic,
            efficiency=self.nic_efficiency,
            latency=self.nic_latency,
        )
