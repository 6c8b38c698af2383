"""Parts that several topologies are built of: GPUs, links, an NVLink domain, network cards, and who shares a leaf."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, TypeAlias

import networkx as nx

from moesim.base.errors import FieldError
from moesim.base.fields import BytesPerSecond, Efficiency, Number, Seconds
from moesim.facts.evidence import weakest
from moesim.facts.gpu import Gpu
from moesim.models.topology.achieved import Link, link_of

Graph: TypeAlias = nx.DiGraph
Oversubscription = Annotated[float, Number(1.0)]


MOST_GPUS = 2048
"""Routes are kept for every pair: 2,048 GPUs make 4 million of them, some hundred megabytes."""


MOST_LINKS = 2**15
"""Between switches: the search for routes takes seconds beyond this, and no network of 2,048 GPUs has as many."""


def at_most(field: str, gpus: int) -> None:
    """Refuse clusters whose routes would not fit in memory.

    Raises
    ------
    FieldError
        At ``field``, with both numbers.
    """
    if gpus > MOST_GPUS:
        raise FieldError(field, f"{gpus} GPUs are too many: routes are kept for every pair, so at most {MOST_GPUS} GPUs can be simulated")


def links_at_most(field: str, links: int, *, fewer: str) -> None:
    """Refuse networks with more links between switches than can be searched.

    Raises
    ------
    FieldError
        At ``field``, with both numbers; ``fewer`` says how to get fewer links.
    """
    if links > MOST_LINKS:
        raise FieldError(field, f"{links} links between switches are too many: at most {MOST_LINKS} can be searched for routes; {fewer}")


def gpus_on(node_of: Sequence[int]) -> Graph:
    """Return a graph that holds only GPUs: ``gpu:0``, ``gpu:1`` … on the given nodes."""
    graph: Graph = nx.DiGraph(basis="exact")
    for number, node in enumerate(node_of):
        graph.add_node(f"gpu:{number}", kind="gpu", node=node)
    return graph


def connect(graph: Graph, tail: Hashable, head: Hashable, *, name: str, link_class: str, link: Link) -> None:
    """Add one directed link; the graph keeps the weakest evidence of all its links."""
    graph.add_edge(tail, head, name=name, link_class=link_class, bandwidth=link.bandwidth, latency=link.latency)
    graph.graph["basis"] = weakest([graph.graph["basis"], link.basis])


def star(graph: Graph, switch: str, *, kind: str, gpus: Sequence[int], link_class: str, path: Link) -> None:
    """Join GPUs to one switch by one link out and one link in each.

    Parameters
    ----------
    graph : networkx.DiGraph
        Changed in place.
    switch, kind : str
        Name and kind of the switch.
    gpus : sequence of int
        Numbers of the GPUs.
    link_class : str
        Class of the links; they are called ``<class>-out:<gpu>`` and ``<class>-in:<gpu>``.
    path : Link
        From GPU to GPU through the switch: either link has its bandwidth and half its latency.
    """
    graph.add_node(switch, kind=kind)
    half = replace(path, latency=path.latency / 2)
    for number in gpus:
        connect(graph, f"gpu:{number}", switch, name=f"{link_class}-out:{number}", link_class=link_class, link=half)
        connect(graph, switch, f"gpu:{number}", name=f"{link_class}-in:{number}", link_class=link_class, link=half)


def scale_up(
    graph: Graph,
    switch: str,
    gpus: Sequence[int],
    gpu: Gpu,
    *,
    bandwidth: float | None,
    latency: float | None,
    efficiency: float | None,
) -> None:
    """Join GPUs by NVLink through one NVSwitch; None takes the default of :mod:`moesim.models.topology.achieved`."""
    path = link_of("nvlink", gpu, written=bandwidth, datasheet=gpu.nvlink, efficiency=efficiency, latency=latency)
    star(graph, switch, kind="nvswitch", gpus=gpus, link_class="nvlink", path=path)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cards:
    """The fields of every topology whose GPUs have network cards, whatever network joins these.

    Parameters
    ----------
    nic : bandwidth or None
        Of one card, one way; if left out, the GPU's data sheet.
    nic_latency : time or None
        From GPU to GPU through one switch; if left out, 2 us (assumed).
    nic_efficiency : fraction or None
        What share of ``nic`` is achieved; if left out, 0.88 of the data sheet (Hopper nodes with 400 Gb/s cards), or all of a written
        ``nic``.
    switch_latency : time or None
        Added by each link between two switches of the network; if left out, 300 ns (assumed).
    """

    nic: BytesPerSecond | None = None
    nic_latency: Seconds | None = None
    nic_efficiency: Efficiency | None = None
    switch_latency: Seconds | None = None

    def card(self, gpu: Gpu) -> Link:
        """Return what a card of this GPU achieves, from GPU to GPU through one switch."""
        return link_of("nic", gpu, written=self.nic, datasheet=gpu.nic, efficiency=self.nic_efficiency, latency=self.nic_latency)


@dataclass(frozen=True, slots=True, kw_only=True)
class ScaleOut(Cards):
    """The fields of every topology whose cards are joined by leaves.

    Parameters
    ----------
    oversubscription : float
        Sum of the cards below a leaf over the leaf's capacity to the spines, at least 1. It acts only on bytes that leave a leaf.
    """

    oversubscription: Oversubscription = 1.0


def nodes_below_leaf(written: int | None, *, nodes: int, oversubscription: float, rails: bool = False) -> int:
    """Return how many nodes share a leaf (or, with rails, a block of leaves).

    None means 32 nodes with rails and 4 without: both are 32 cards of 8-GPU nodes on a 64-port switch. Without rails, four nodes or
    fewer that ask for oversubscription are spread over two leaves, since below a single leaf nothing would be oversubscribed.
    """
    if written is not None:
        return written
    if rails:
        return 32
    return min(4, -(-nodes // 2)) if oversubscription > 1 else 4


def shared_leaves(gpus_per_node: int, nodes: int, nodes_per_leaf: int) -> dict[str, range]:
    """Return the GPUs below each leaf when all cards of ``nodes_per_leaf`` neighbouring nodes share one; the last may have fewer.

    Examples
    --------
    >>> shared_leaves(8, 3, 2)
    {'0': range(0, 16), '1': range(16, 24)}
    """
    below = gpus_per_node * nodes_per_leaf
    total = gpus_per_node * nodes
    return {str(leaf): range(start, min(start + below, total)) for leaf, start in enumerate(range(0, total, below))}


def rail_leaves(gpus_per_node: int, nodes: int, nodes_per_leaf: int) -> dict[str, range]:
    """Return the GPUs below each leaf when card r of ``nodes_per_leaf`` neighbouring nodes goes to the leaf of rail r.

    Examples
    --------
    >>> rail_leaves(2, 3, 2)
    {'0-rail0': range(0, 4, 2), '0-rail1': range(1, 4, 2), '1-rail0': range(4, 6, 2), '1-rail1': range(5, 6, 2)}
    """
    return {
        f"{block}-rail{rail}": range(first * gpus_per_node + rail, min(first + nodes_per_leaf, nodes) * gpus_per_node, gpus_per_node)
        for block, first in enumerate(range(0, nodes, nodes_per_leaf))
        for rail in range(gpus_per_node)
    }
