"""Many copies of one machine, joined by its network cards: the graph, and the arrays without looking for every route again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import pairwise

import networkx as nx
import numpy as np

from moesim.base.errors import PluginError
from moesim.facts.arrays import Ints
from moesim.facts.cluster import Cluster
from moesim.facts.evidence import weakest
from moesim.models.topology.achieved import Link
from moesim.models.topology.fabric_parts import Graph, connect, gpus_on
from moesim.models.topology.flatten import flatten, natural


@dataclass(frozen=True, slots=True, kw_only=True)
class Copies:
    """A machine and the network that joins its copies.

    Parameters
    ----------
    machine : networkx.DiGraph
        GPUs ``gpu:0`` … and switches, all on one node.
    exits : tuple of str
        The vertex through which the bytes of each GPU leave the machine: a network card, or the GPU itself.
    cards : mapping of str to Link
        What each exit achieves, one way; the latency is that from GPU to GPU through one leaf.
    nodes : int
        How many copies.
    nodes_below_leaf : int
        How many neighbouring copies share a leaf.
    oversubscription : float
        Sum of the cards below a leaf over the leaf's capacity to the spine.
    uplink : tuple of (float, str)
        Latency of a link to or from the spine, in s, and its evidence.
    """

    machine: Graph
    exits: tuple[str, ...]
    cards: Mapping[str, Link]
    nodes: int
    nodes_below_leaf: int
    oversubscription: float
    uplink: tuple[float, str]

    def network(self) -> Graph:
        """Return the network, in which card k (cards of copy 0 first, each copy's sorted by name) is called ``gpu:k``."""
        each = sorted(self.cards, key=natural)
        graph = gpus_on([number // len(each) for number in range(self.nodes * len(each))])
        leaves = range(-(-self.nodes // self.nodes_below_leaf))
        for leaf in leaves:
            graph.add_node(f"leaf:{leaf}", kind="leaf")
            first = leaf * self.nodes_below_leaf
            copies = range(first, min(first + self.nodes_below_leaf, self.nodes))
            for copy in copies:
                for place, card in enumerate(each):
                    number, link = copy * len(each) + place, self.cards[card]
                    half = replace(link, latency=link.latency / 2)
                    connect(graph, f"gpu:{number}", f"leaf:{leaf}", name=f"nic-out:{number}", link_class="nic", link=half)
                    connect(graph, f"leaf:{leaf}", f"gpu:{number}", name=f"nic-in:{number}", link_class="nic", link=half)
            if len(leaves) > 1:
                graph.add_node("spine:0", kind="spine")
                seconds, basis = self.uplink
                total = sum(link.bandwidth for link in self.cards.values()) * len(copies) / self.oversubscription
                both = Link(bandwidth=total, latency=seconds, basis=weakest([basis, *(link.basis for link in self.cards.values())]))
                connect(graph, f"leaf:{leaf}", "spine:0", name=f"uplink:leaf{leaf}", link_class="uplink", link=both)
                connect(graph, "spine:0", f"leaf:{leaf}", name=f"downlink:leaf{leaf}", link_class="uplink", link=both)
        return graph

    def graph(self) -> Graph:
        """Return all copies and the network between them."""
        gpus = len(self.exits)
        whole: Graph = nx.DiGraph(basis=self.machine.graph["basis"])
        for copy in range(self.nodes):
            called = {vertex: _called(vertex, copy, gpus) for vertex in self.machine}
            for vertex, data in self.machine.nodes(data=True):
                whole.add_node(called[vertex], **data | ({"node": copy} if "node" in data else {}))
            for tail, head, data in self.machine.edges(data=True):
                whole.add_edge(called[tail], called[head], **data | {"name": f"n{copy}/{data['name']}"})
        each = sorted(self.cards, key=natural)
        network = self.network()
        cards = {
            f"gpu:{copy * len(each) + place}": _called(card, copy, gpus) for copy in range(self.nodes) for place, card in enumerate(each)
        }
        whole.add_nodes_from((vertex, data) for vertex, data in network.nodes(data=True) if vertex not in cards)
        for tail, head, data in network.edges(data=True):
            whole.add_edge(cards.get(tail, tail), cards.get(head, head), **data)
        whole.graph["basis"] = weakest([self.machine.graph["basis"], network.graph["basis"]])
        return whole

    def build(self, machine: Cluster) -> Cluster:
        """Return the arrays of all copies.

        Parameters
        ----------
        machine : Cluster
            The arrays of one copy.

        Returns
        -------
        Cluster
            Inside a copy the routes are those of the machine. Between copies they go from the GPU to its exit, over the network and from
            the other GPU's exit to it, each by its shortest route: which card carries a byte depends on its GPU alone.
        """
        network = flatten(self.network(), gpu=machine.gpu)
        out, back = self._legs(machine)
        each = sorted(self.cards, key=natural)
        gpus, copies = machine.gpus, np.arange(self.nodes)
        card = (copies[:, None] * len(each) + np.array([each.index(exit_) for exit_ in self.exits])[None, :]).ravel()
        between = _table(network.route_start, network.route_link, network.gpus)
        inside = _table(machine.route_start, machine.route_link, gpus)
        shift = self.nodes * machine.links  # links of the network come after those of all copies
        hops = np.full((gpus * self.nodes, max(inside.shape[-1], out.shape[1] + between.shape[-1] + back.shape[1])), -1, dtype=np.int64)
        starts, links = [np.zeros(1, dtype=np.int64)], []
        for source in range(gpus * self.nodes):
            copy, local = divmod(source, gpus)
            hops[:] = -1
            first, middle = out.shape[1], between.shape[-1]
            hops[:, :first] = _moved(out[local], copy * machine.links)
            hops[:, first : first + middle] = _moved(between[card[source], card], shift)
            hops[:, first + middle : first + middle + back.shape[1]] = _moved(
                np.tile(back, (self.nodes, 1)), np.repeat(copies, gpus)[:, None] * machine.links
            )
            own = slice(copy * gpus, (copy + 1) * gpus)
            hops[own] = -1
            hops[own, : inside.shape[-1]] = _moved(inside[local], copy * machine.links)
            used = hops >= 0
            starts.append(used.sum(axis=1))
            links.append(hops[used])
        names = [f"n{copy}/{name}" for copy in range(self.nodes) for name in machine.link_names] + list(network.link_names)
        classes = list(machine.link_class) * self.nodes + list(network.link_class)
        order = sorted(range(len(names)), key=lambda link: (natural(classes[link]), natural(names[link])))
        place = np.empty(len(order), dtype=np.int64)
        place[order] = np.arange(len(order))
        return Cluster(
            gpu=machine.gpu,
            node_of=np.repeat(copies, gpus),
            bandwidth=np.concatenate([np.tile(machine.bandwidth, self.nodes), network.bandwidth])[order],
            latency=np.concatenate([np.tile(machine.latency, self.nodes), network.latency])[order],
            link_names=tuple(names[link] for link in order),
            link_class=tuple(classes[link] for link in order),
            route_start=np.cumsum(np.concatenate(starts)),
            route_link=place[np.concatenate(links)],
            basis=weakest([machine.basis, network.basis]),
        )

    def _legs(self, machine: Cluster) -> tuple[Ints, Ints]:
        """Return int[G, hops] twice: the links from each GPU to its exit and from the exit to it; -1 where a leg is shorter."""
        number = {name: index for index, name in enumerate(machine.link_names)}
        ordered: Graph = nx.DiGraph()  # in an order of its own, so that which of two equal routes is taken does not hang on the file
        ordered.add_nodes_from(sorted(self.machine, key=natural))
        ordered.add_edges_from(sorted(self.machine.edges(data=True), key=lambda link: (natural(link[0]), natural(link[1]))))
        others = [vertex for vertex, data in self.machine.nodes(data=True) if data.get("kind") == "gpu"]
        out: list[list[int]] = []
        back: list[list[int]] = []
        for gpu, exit_ in enumerate(self.exits):
            alone = nx.restricted_view(ordered, [vertex for vertex in others if vertex != f"gpu:{gpu}"], [])
            for legs, tail, head in ((out, f"gpu:{gpu}", exit_), (back, exit_, f"gpu:{gpu}")):
                try:
                    path = nx.dijkstra_path(alone, tail, head, weight=lambda _tail, _head, data: data.get("weight", 1))
                except nx.NetworkXNoPath:
                    text = f"{tail} has no route to {head}, through which the bytes of gpu:{gpu} leave the node"
                    raise PluginError(f"{text}: connect them through links and switches") from None
                legs.append([number[ordered.edges[step]["name"]] for step in pairwise(path)])
        return _padded(out), _padded(back)


def _called(vertex: str, copy: int, gpus: int) -> str:
    kind, _, number = vertex.partition(":")
    return f"gpu:{copy * gpus + int(number)}" if kind == "gpu" else f"n{copy}/{vertex}"


def _padded(rows: list[list[int]]) -> Ints:
    table = np.full((len(rows), max(map(len, rows), default=0)), -1, dtype=np.int64)
    for row, links in enumerate(rows):
        table[row, : len(links)] = links
    return table


def _table(start: Ints, link: Ints, gpus: int) -> Ints:
    """Return int[G, G, longest route], the links of every route; -1 where a route is shorter."""
    length = np.diff(start)
    table = np.full((gpus * gpus, int(length.max(initial=0))), -1, dtype=np.int64)
    table[np.arange(table.shape[1])[None, :] < length[:, None]] = link
    return table.reshape(gpus, gpus, -1)


def _moved(links: Ints, shift: int | Ints) -> Ints:
    return np.where(links < 0, -1, links + shift)
