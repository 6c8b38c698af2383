"""Groups of switches with a link between every two groups: Slingshot systems such as Frontier and Alps."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from itertools import permutations
from typing import Annotated

import numpy as np

from moesim.base.errors import FieldError
from moesim.base.fields import BytesPerSecond, Choice, Count, Efficiency, Seconds, Seed
from moesim.base.registry import register
from moesim.facts.cluster import Cluster
from moesim.facts.evidence import weakest
from moesim.facts.gpu_presets import GpuField, gpu_presets
from moesim.models.topology.achieved import Link, delay
from moesim.models.topology.dragonfly_walks import DragonflyWiring, global_ends, walk
from moesim.models.topology.fabric_parts import Cards, Graph, at_most, connect, gpus_on, links_at_most, scale_up, star
from moesim.models.topology.flatten import flatten, vertex_numbers


@register("topology", "dragonfly")
@dataclass(frozen=True, slots=True, kw_only=True)
class Dragonfly(Cards):
    """Groups of routers: all routers of a group are joined pair by pair, and so are all groups.

    Bytes between nodes go GPU → router → … → router → GPU. Minimal routes cross at most one link inside the sender's group, one between
    the groups, and one inside the receiver's. Valiant routes between groups pass a third group, which a hash picks: they load twice
    as many links, but bytes that all want the one link between two groups spread over others.

    Parameters
    ----------
    gpu : Gpu
        A preset's name or a mapping.
    groups : int
        g; at most ``routers_per_group * global_links + 1``.
    routers_per_group : int
        a.
    gpus_per_router : int
        p.
    global_links : int
        h, per router. A group has a h of them, and each pair of groups ``a h // (g - 1)``; what does not divide stays unused. Two routers
        that have several of these links between them have one link of their bandwidth together.
    gpus_per_node : int
        Divides ``gpus_per_router``: a node has all of its cards on one router, and with more than one GPU an NVSwitch.
    routing : str
        ``minimal`` or ``valiant``.
    valiant_seed : int
        Of the hash that picks the third group.
    local_link : bandwidth or None
        Of a link between two routers of a group, one way; if left out, as fast as a card achieves.
    global_link : bandwidth or None
        Of a link between two groups; if left out, as fast as a card achieves.
    global_latency : time or None
        Added by a link between two groups; if left out, 800 ns (assumed: a switch and 100 m of fibre).
    nvlink : bandwidth or None
        Out of (and, separately, into) a GPU; if left out, its data sheet.
    nvlink_latency : time or None
        From GPU to GPU of a node; if left out, 936.25 ns (fitted for 8 H100 by ASTRA-sim).
    nvlink_efficiency : fraction or None
        What share of ``nvlink`` is achieved; if left out, that of all-to-alls, or all of a written ``nvlink``.

    Notes
    -----
    J. Kim, W. J. Dally, S. Scott and D. Abts, "Technology-driven, highly-scalable dragonfly topology", ISCA 2008, whose example of 72
    GPUs (p = h = 2, a = 4, g = 9) is the default. Its adaptive routing, which looks at queues, is not modelled. Links
    between groups in :func:`~moesim.models.topology.dragonfly_walks.global_ends`. The other fields are those of
    :class:`~moesim.models.topology.fabric_parts.Cards`.
    """

    gpu: GpuField = field(default_factory=lambda: gpu_presets()["h100-sxm"])
    groups: Count = 9
    routers_per_group: Count = 4
    gpus_per_router: Count = 2
    global_links: Count = 2
    gpus_per_node: Count = 2
    routing: Annotated[str, Choice(("minimal", "valiant"))] = "minimal"
    valiant_seed: Seed = 0
    local_link: BytesPerSecond | None = None
    global_link: BytesPerSecond | None = None
    global_latency: Seconds | None = None
    nvlink: BytesPerSecond | None = None
    nvlink_latency: Seconds | None = None
    nvlink_efficiency: Efficiency | None = None

    def __post_init__(self) -> None:
        groups, routers, ports = self.groups, self.routers_per_group, self.routers_per_group * self.global_links
        at_most("groups" if groups > 1 else "routers_per_group", groups * routers * self.gpus_per_router)
        if groups > ports + 1:
            message = f"{groups} groups need {groups - 1} links out of each, but {routers} routers with {self.global_links} have {ports}"
            raise FieldError("groups", f"{message}: write at most {ports + 1} groups, or more global_links or routers_per_group")
        if self.gpus_per_router % self.gpus_per_node:
            message = f"the {self.gpus_per_router} GPUs of a router do not divide into nodes of {self.gpus_per_node}"
            raise FieldError("gpus_per_node", message)
        links_at_most("routers_per_group", groups * routers * (routers - 1), fewer="write smaller groups")
        if groups > 1:
            links_at_most("global_links", groups * (ports // (groups - 1)) * (groups - 1), fewer="write fewer global_links")
        if self.routing == "valiant" and groups < 3:
            raise FieldError("routing", f"valiant routes pass a third group, and there are only {groups}: write more groups, or minimal")
        if self.routing == "minimal" and self.valiant_seed:
            message = f"valiant_seed ({self.valiant_seed}) says nothing with minimal routing: write routing: valiant, or leave it out"
            raise FieldError("valiant_seed", message)

    def graph(self) -> Graph:
        """Return nodes, routers, and the links inside and between groups."""
        each, routers = self.gpus_per_router, self.routers_per_group
        gpus = self.groups * routers * each
        graph = gpus_on([number // self.gpus_per_node for number in range(gpus)])
        if self.gpus_per_node > 1:
            for node, first in enumerate(range(0, gpus, self.gpus_per_node)):
                members = range(first, first + self.gpus_per_node)
                speed = {"bandwidth": self.nvlink, "latency": self.nvlink_latency, "efficiency": self.nvlink_efficiency}
                scale_up(graph, f"nvswitch:{node}", members, self.gpu, **speed)
        path = self.card(self.gpu)
        for router in range(self.groups * routers):
            name = _router(router // routers, router % routers)
            star(graph, name, kind="router", gpus=range(router * each, (router + 1) * each), link_class="nic", path=path)
        local = _channel(path, self.local_link, *delay("switch", self.switch_latency))
        for group in range(self.groups):
            for tail, head in permutations(range(routers), 2):
                name = f"local:{group}-{tail}-{head}"
                connect(graph, _router(group, tail), _router(group, head), name=name, link_class="local", link=local)
        far = _channel(path, self.global_link, *delay("global", self.global_latency))
        for ((group, port), (other, end)), cables in sorted(self._cables().items()):
            link, name = replace(far, bandwidth=far.bandwidth * cables), f"global:{group}-{port}-to-{other}-{end}"
            connect(graph, _router(group, port), _router(other, end), name=name, link_class="global", link=link)
        return graph

    def build(self) -> Cluster:
        """Return the arrays."""
        graph = self.graph()
        wiring = self._wiring(vertex_numbers(graph))
        seed = self.valiant_seed if self.routing == "valiant" else None
        return flatten(graph, gpu=self.gpu, walks=lambda source: walk(wiring, source, valiant_seed=seed))

    def _cables(self) -> Counter[tuple[tuple[int, int], tuple[int, int]]]:
        """Return how many cables join every two routers of different groups, each way."""
        ends = global_ends(self.groups, self.routers_per_group, self.global_links)
        pairs = permutations(range(self.groups), 2)
        return Counter(
            ((one, int(out)), (other, int(into)))
            for one, other in pairs
            for out, into in zip(ends[one, other], ends[other, one], strict=True)
        )

    def _wiring(self, number: dict[object, int]) -> DragonflyWiring:
        gpus = np.arange(self.groups * self.routers_per_group * self.gpus_per_router)
        node = gpus // self.gpus_per_node
        routers = [[number[_router(group, router)] for router in range(self.routers_per_group)] for group in range(self.groups)]
        home = gpus // self.gpus_per_router
        return DragonflyWiring(
            group=home // self.routers_per_group,
            home=home % self.routers_per_group,
            node=node,
            nvswitch=np.array([number[f"nvswitch:{which}"] for which in node]) if self.gpus_per_node > 1 else node,
            router=np.array(routers),
            ends=global_ends(self.groups, self.routers_per_group, self.global_links),
        )


def _router(group: int, router: int) -> str:
    return f"router:{group}-{router}"


def _channel(path: Link, written: float | None, latency: float, basis: str) -> Link:
    """Return a link between routers: as written, or as fast as a card."""
    bandwidth, known = (path.bandwidth, path.basis) if written is None else (written, "assumed")
    return Link(bandwidth=bandwidth, latency=latency, basis=weakest([known, basis]))
