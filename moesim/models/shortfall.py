"""Why traffic takes longer than its ports need: a chain of bounds, each at least as large as the one before it."""

from __future__ import annotations

from collections.abc import Hashable

import networkx as nx
import numpy as np
from numpy.typing import ArrayLike

from moesim.facts.arrays import Floats, Ints
from moesim.facts.cluster import Cluster
from moesim.facts.network import Shortfall
from moesim.models.bounds import link_bytes, port_links

FACTORS = ("skew", "oversubscription", "collisions", "sharing", "latency")
"""In the order in which the bounds grow."""


def side_by_side(graph: nx.DiGraph, cluster: Cluster) -> Ints:
    """Return int[K]: links with equal numbers could share their bytes if routes were chosen freely.

    These are a leaf's links up to its spines, or those of the spines down to one leaf; above, a pod's links to and from the cores. The
    links of a spine down to different leaves are not: no choice of routes brings bytes to another leaf. Between switches as far from the
    next GPU as each other, only links between the same two are.

    Parameters
    ----------
    graph : networkx.DiGraph
        What ``graph()`` of the topology returns.
    cluster : Cluster
        What ``build()`` of the same topology returns.
    """
    either = nx.Graph(graph)
    gpus = {vertex for vertex, kind in graph.nodes(data="kind") if kind == "gpu"}
    hops = nx.multi_source_dijkstra_path_length(either, gpus, weight=None) if gpus else {}
    levels = {vertex: int(hops.get(vertex, 0)) for vertex in graph}
    under = _under(either, levels)
    number: dict[Hashable, int] = {}
    of_link = {}
    for tail, head, data in graph.edges(data=True):
        low, high = levels[tail], levels[head]
        between: Hashable = (tail, head) if low == high else ("up", under[tail]) if low < high else ("down", under[head])
        of_link[str(data["name"])] = number.setdefault((between, str(data["link_class"])), len(number))
    return np.array([of_link[name] for name in cluster.link_names], dtype=np.int64)


def _under(graph: nx.Graph, levels: dict[Hashable, int]) -> dict[Hashable, Hashable]:
    """Return for each vertex what stands for it and those it can be swapped for: itself, or one of the switches of its pod."""
    found: dict[Hashable, Hashable] = {vertex: vertex for vertex in graph}
    for level in range(2, max(levels.values(), default=0)):
        below = graph.subgraph([vertex for vertex in graph if 1 <= levels[vertex] <= level])
        for pod in nx.connected_components(below):
            first = next(vertex for vertex in graph if vertex in pod)
            found.update((vertex, first) for vertex in pod if levels[vertex] == level)
    return found


def head_start(bytes_: ArrayLike, cluster: Cluster, link: int) -> tuple[float, Ints]:
    """Return the least latency, in s, of the routes that bring bytes over a link, and their pairs (source * G + destination).

    A flow starts to move after the latency of its route, so a link is idle at least so long.
    """
    hops = np.flatnonzero(cluster.route_link == link)
    pairs = np.unique(np.searchsorted(cluster.route_start, hops, side="right") - 1)
    asked = np.asarray(bytes_, dtype=np.float64).ravel()
    pairs = pairs[(asked[pairs] > 0) & (pairs // cluster.gpus != pairs % cluster.gpus)]
    if not pairs.size:
        return 0.0, pairs
    return float(cluster.route_latency().ravel()[pairs].min()), pairs


def floor(bytes_: ArrayLike, cluster: Cluster) -> float:
    """Return the least time, in s, in which traffic that starts at 0 can end (law L7); 0 if nothing is sent.

    The busiest link cannot begin before its head start (:func:`head_start`) and then has to carry its bytes; and no flow ends before the
    latency of its own route.
    """
    seconds = link_bytes(bytes_, cluster) / cluster.bandwidth
    if not seconds.any():
        return 0.0
    bottleneck = int(np.argmax(seconds))
    sent = np.array(bytes_, dtype=np.float64) > 0
    np.fill_diagonal(sent, val=False)
    return max(head_start(bytes_, cluster, bottleneck)[0] + float(seconds[bottleneck]), float(cluster.route_latency()[sent].max()))


def shortfall(bytes_: ArrayLike, cluster: Cluster, finish: float, *, beside: Ints | None = None) -> Shortfall | None:
    r"""Split the time that traffic took into factors, each at least 1, whose product is its slowdown.

    Write :math:`b_l` for the bytes over link :math:`l` and :math:`C_l` for its bandwidth. The chain runs

    .. math:: t_\text{ideal} \le t_\text{port} \le t_\text{even} \le t_\text{link} \le T - \lambda < T

    with the mean over the ports of one class, largest of all classes, :math:`t_\text{ideal} = \operatorname{mean} b_l / C_l`; the
    busiest port, :math:`t_\text{port} = \max b_l / C_l` over ports; the busiest *group* of parallel links,
    :math:`t_\text{even} = \max(t_\text{port}, \max \sum b_l / \sum C_l)`; the busiest link, :math:`t_\text{link} = \max b_l / C_l`; the
    time taken :math:`T`; and the time :math:`\lambda` before any byte could cross that link. Each quotient of neighbours is a factor:
    ``skew``, ``oversubscription``, ``collisions``, ``sharing`` (shares that leave the busiest link idle, and stages that wait for each
    other) and ``latency``. The decomposition is this project's own; its bounds are those of :mod:`moesim.models.bounds`.

    Parameters
    ----------
    bytes_ : float[G, G]
        From source (row) to destination; the diagonal is ignored.
    cluster : Cluster
        For its routes and bandwidths.
    finish : float
        T, in s.
    beside : int[K], optional
        :func:`side_by_side`; without it, no two links are parallel and ``collisions`` is 1.

    Returns
    -------
    Shortfall or None
        None if nothing was sent.

    Raises
    ------
    UsageError
        If the matrix does not fit the cluster.
    """
    carried = link_bytes(bytes_, cluster)
    if not carried.any():
        return None
    seconds = carried / cluster.bandwidth
    ports = port_links(cluster)
    if not carried[ports].any():
        ports = np.ones(cluster.links, dtype=np.bool_)
    classes = np.array(cluster.link_class)
    means = {name: float(seconds[ports & (classes == name)].mean()) for name in sorted(set(classes[ports].tolist()))}
    port_class = max(means, key=lambda name: means[name])
    port_bound, bottleneck = float(seconds[ports].max()), int(np.argmax(seconds))
    even = max(port_bound, _even(carried, cluster, beside))
    even = min(even, float(seconds[bottleneck]))  # a quotient of two sums may round above the largest quotient
    latency, pairs = head_start(bytes_, cluster, bottleneck)
    steps = (means[port_class], port_bound, even, float(seconds[bottleneck]), finish - latency, finish)
    return Shortfall(
        port_class=port_class,
        port_bandwidth=float(cluster.bandwidth[ports & (classes == port_class)].mean()),
        ideal=steps[0],
        port_bound=port_bound,
        link_bound=steps[3],
        bottleneck=bottleneck,
        flows=len(pairs),
        sources=len(np.unique(pairs // cluster.gpus)),
        destinations=len(np.unique(pairs % cluster.gpus)),
        factors={name: larger / smaller for name, smaller, larger in zip(FACTORS, steps[:-1], steps[1:], strict=True)},
    )


def _even(carried: Floats, cluster: Cluster, beside: Ints | None) -> float:
    """Return the seconds of the busiest group of parallel links if each group shared its bytes perfectly."""
    group = np.arange(cluster.links) if beside is None else beside
    return float((np.bincount(group, weights=carried) / np.bincount(group, weights=cluster.bandwidth)).max())
