"""From a graph of GPUs, switches and links to the arrays of a cluster."""

from __future__ import annotations

import math
import re
from collections.abc import Hashable
from dataclasses import dataclass
from itertools import pairwise

import networkx as nx
import numpy as np
from numpy.typing import NDArray

from moesim.base.errors import PluginError
from moesim.facts.arrays import Bools, Floats, Ints
from moesim.facts.cluster import Cluster
from moesim.facts.gpu import Gpu
from moesim.models.topology.ecmp import flow_hash
from moesim.models.topology.fabric_parts import Graph
from moesim.models.topology.walks import Walks, routes_of_walks

LINK_ATTRIBUTES = ("name", "link_class", "bandwidth", "latency")
HEAVIEST = 1_000_000
"""Weight of a link: sums over any route stay whole numbers that floats hold exactly, so equally long routes compare equal."""


def flatten(graph: Graph, *, gpu: Gpu, basis: str | None = None, ecmp_seed: int | None = None, walks: Walks | None = None) -> Cluster:
    """Build the arrays of a cluster from its graph.

    Parameters
    ----------
    graph : networkx.DiGraph
        Nodes ``gpu:0`` to ``gpu:<G-1>`` with ``kind="gpu"`` and ``node``; every other node is a switch. Every edge is a link and carries
        ``name`` (unique), ``link_class``, ``bandwidth`` (B/s) and ``latency`` (s); it may carry ``weight``, a whole number from 1 (as
        which a link without it counts).
    gpu : Gpu
        What every GPU is.
    basis : str or None
        Evidence behind the links; None for the graph's own attribute ``basis``, or ``assumed`` if it has none.
    ecmp_seed : int or None
        If given, a hash of source, destination and this seed chooses at forks
        (:func:`~moesim.models.topology.ecmp.flow_hash`), as switches do that know nothing of the load (equal-cost multi-path).
    walks : callable or None
        For a network with a routing rule of its own: given the number of a source GPU, it returns int[G, W], the vertices that the bytes
        to each destination pass, in order, by their numbers in :func:`vertex_numbers`, from the source to the destination; -1 is
        skipped, and the source's own row is not read. GPUs may forward here. Nothing is then searched: every step must be a link.

    Returns
    -------
    Cluster
        Links are numbered by class, then by name, numbers in names as numbers. The order in which a graph was made plays no part.

    Raises
    ------
    PluginError
        If a pair of GPUs has no route, a walk uses a link that is not there, or an attribute is missing or out of range; the message
        names where.

    Notes
    -----
    Without ``walks``, a route has the fewest links (with weights, the least sum of them); no route passes through a third GPU, for GPUs
    do not forward. Of equally short routes through different networks (switches that reach each other), the network that joins fewer GPUs
    carries the bytes: NVLink before the leaf that two GPUs of a node share. Where several links of one network start equally short
    routes, the destination chooses: at each such fork the
    next digit of its number (among the GPUs below the same switch) picks one, which is the destination-modulo rule of fat trees
    (E. Zahavi, "Fat-tree routing and node ordering providing contention free traffic for MPI global collectives", J. Parallel Distrib.
    Comput. 72, 2012). Equal spines are so loaded evenly. With ``ecmp_seed`` the digits of the hash take the place of the number's.
    """
    node_of = _nodes_of_gpus(graph)
    fabric = _fabric(graph, gpus=len(node_of))
    if walks is None:
        route_start, route_link = _routes(fabric, _distances(graph, fabric), ecmp_seed)
    else:
        route_start, route_link = routes_of_walks(walks, gpus=fabric.gpus, tail=fabric.tail, head=fabric.head, vertices=fabric.vertices)
    return Cluster(
        gpu=gpu,
        node_of=node_of,
        bandwidth=fabric.bandwidth,
        latency=fabric.latency,
        link_names=fabric.names,
        link_class=fabric.classes,
        route_start=route_start,
        route_link=route_link,
        basis=graph.graph.get("basis", "assumed") if basis is None else basis,
    )


def natural(name: object) -> tuple[tuple[int, int, str], ...]:
    """Return a sorting key that puts ``gpu:9`` before ``gpu:10``.

    Examples
    --------
    >>> sorted(["gpu:10", "gpu:9"], key=natural)
    ['gpu:9', 'gpu:10']
    """
    parts = re.findall(r"\d+|\D+", str(name))
    return tuple((0, int(part), "") if part.isdecimal() else (1, 0, part) for part in parts)


def vertex_numbers(graph: Graph) -> dict[Hashable, int]:
    """Return the number of every vertex: GPUs by their own numbers, then switches in the natural order of their names."""
    gpus = [vertex for vertex, data in graph.nodes(data=True) if data.get("kind") == "gpu"]
    switches = sorted((vertex for vertex, data in graph.nodes(data=True) if data.get("kind") != "gpu"), key=natural)
    return {vertex: index for index, vertex in enumerate([*sorted(gpus, key=natural), *switches])}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Fabric:
    """Links by number; vertices 0 to G - 1 are the GPUs, the others switches."""

    gpus: int
    vertices: tuple[str, ...]
    tail: Ints
    head: Ints
    bandwidth: Floats
    latency: Floats
    names: tuple[str, ...]
    classes: tuple[str, ...]
    weight: Ints


@dataclass(frozen=True, slots=True, kw_only=True)
class _Distances:
    """Between switches.

    ``hops`` is float[switches, switches], weights along the way, inf where unreachable; ``joins`` is int[switches], the GPUs on the
    network of each switch.
    """

    hops: Floats
    joins: Ints


def _nodes_of_gpus(graph: Graph) -> Ints:
    node_of = {vertex: data.get("node") for vertex, data in graph.nodes(data=True) if data.get("kind") == "gpu"}
    expected = [f"gpu:{number}" for number in range(len(node_of))]
    if not node_of:
        raise PluginError("the graph has no GPU: name its GPUs 'gpu:0', 'gpu:1' … and give them kind='gpu' and node=0 …")
    strange = sorted((str(vertex) for vertex in node_of.keys() - set(expected)), key=natural)
    if strange:
        raise PluginError(f"a GPU of the graph is called {strange[0]!r}: its {len(node_of)} GPUs must be 'gpu:0' to {expected[-1]!r}")
    for vertex in expected:
        node = node_of[vertex]
        if isinstance(node, bool) or not isinstance(node, (int, np.integer)) or node < 0:
            raise PluginError(f"{vertex} has node={node!r}: a node is a whole number from 0")
    nodes = np.array([node_of[vertex] for vertex in expected], dtype=np.int64)
    empty = np.flatnonzero(np.bincount(nodes) == 0)
    if empty.size:
        raise PluginError(f"node {int(empty[0])} has no GPU: number the nodes from 0 without gaps")
    return nodes


def _fabric(graph: Graph, *, gpus: int) -> _Fabric:
    number = vertex_numbers(graph)
    for tail, head, data in graph.edges(data=True):
        _check_link(f"the link {tail} -> {head}", data)
    links = sorted(graph.edges(data=True), key=lambda link: (natural(link[2]["link_class"]), natural(link[2]["name"])))
    names = tuple(str(data["name"]) for _, _, data in links)
    for before, after in pairwise(sorted(names)):
        if before == after:
            raise PluginError(f"two links are called {after!r}: names of links must be unique")
    return _Fabric(
        gpus=gpus,
        vertices=tuple(map(str, number)),
        tail=np.array([number[tail] for tail, _, _ in links], dtype=np.int64),
        head=np.array([number[head] for _, head, _ in links], dtype=np.int64),
        bandwidth=np.array([data["bandwidth"] for _, _, data in links], dtype=np.float64),
        latency=np.array([data["latency"] for _, _, data in links], dtype=np.float64),
        names=names,
        classes=tuple(str(data["link_class"]) for _, _, data in links),
        weight=np.array([data.get("weight", 1) for _, _, data in links], dtype=np.int64),
    )


def _distances(graph: Graph, fabric: _Fabric) -> _Distances:
    gpus, number = fabric.gpus, vertex_numbers(graph)
    switches = len(number) - gpus
    hops = np.full((switches, switches), np.inf)
    between: Graph = nx.DiGraph()
    between.add_nodes_from(vertex for vertex, index in number.items() if index >= gpus)
    between.add_edges_from(
        (tail, head, {"weight": data.get("weight", 1)})
        for tail, head, data in graph.edges(data=True)
        if number[tail] >= gpus and number[head] >= gpus
    )
    # Counting links is many times faster than adding weights.
    lengths_from = nx.all_pairs_dijkstra_path_length if (fabric.weight > 1).any() else nx.all_pairs_shortest_path_length
    for vertex, lengths in lengths_from(between):
        for other, length in lengths.items():
            hops[number[vertex] - gpus, number[other] - gpus] = length
    joins = np.zeros(switches, dtype=np.int64)
    for network in nx.weakly_connected_components(between):
        near = {vertex for switch in network for vertex in (*graph.pred[switch], *graph.succ[switch]) if number[vertex] < gpus}
        joins[[number[switch] - gpus for switch in network]] = len(near)
    return _Distances(hops=hops, joins=joins)


def _check_link(which: str, data: dict[str, object]) -> None:
    missing = [name for name in LINK_ATTRIBUTES if name not in data]
    if missing:
        raise PluginError(f"{which} has no {missing[0]!r}: a link carries {', '.join(LINK_ATTRIBUTES)}")
    for name, lowest in (("bandwidth", "more than 0"), ("latency", "at least 0")):
        value = data[name]
        good = isinstance(value, (int, float)) and math.isfinite(value) and (value > 0 if name == "bandwidth" else value >= 0)
        if not good:
            raise PluginError(f"{which} has {name}={value!r}: it must be a finite number, {lowest}")
    weight = data.get("weight", 1)
    if isinstance(weight, bool) or not isinstance(weight, int) or not 1 <= weight <= HEAVIEST:
        raise PluginError(f"{which} has weight={weight!r}: it must be a whole number from 1 to {HEAVIEST:,}")


def _routes(fabric: _Fabric, distances: _Distances, ecmp_seed: int | None) -> tuple[Ints, Ints]:
    """Return the shortest routes between all pairs as ``route_start`` int[G * G + 1] and ``route_link``."""
    gpus = fabric.gpus
    by_tail = np.lexsort((np.arange(len(fabric.tail)), fabric.tail))
    sorted_tail = fabric.tail[by_tail]
    first = np.flatnonzero(np.diff(sorted_tail, prepend=-1))
    group = np.full(len(fabric.vertices), -1, dtype=np.int64)
    group[sorted_tail[first]] = np.arange(len(first))
    if gpus > 1 and (group[:gpus] < 0).any():
        _refuse(int(np.argmax(group[:gpus] < 0)), int(group[0] < 0))
    digits = _digits(fabric, distances)
    # Less than one hop, so that it only decides between networks of equal distance; inside a network there is nothing to decide.
    wider = np.concatenate((np.zeros(gpus), distances.joins / (gpus + 1)))[fabric.head[by_tail]] * (sorted_tail < gpus)
    tables: list[NDArray[np.int32]] = []
    for destination in range(gpus) if gpus > 1 else ():
        reach = fabric.weight[by_tail] + _hops_to(fabric, distances, destination)[fabric.head[by_tail]] + wider
        best = np.minimum.reduceat(reach, first)
        shortest = np.isfinite(reach) & (reach == np.repeat(best, np.diff(first, append=len(reach))))
        forks = np.add.reduceat(shortest, first, dtype=np.int64)
        choices = by_tail[shortest]
        choices_start = np.cumsum(forks) - forks
        source = np.delete(np.arange(gpus), destination)
        lost = source[forks[group[source]] == 0]
        if lost.size:
            _refuse(int(lost[0]), destination)
        at, steps = source, []
        digit = np.full(len(source), digits[destination]) if ecmp_seed is None else flow_hash(source, destination, ecmp_seed)
        while source.size:
            fork = group[at]
            link = choices[choices_start[fork] + digit % forks[fork]]
            steps.append((source, link))
            digit, at = digit // forks[fork], fabric.head[link]
            going: Bools = at != destination
            source, at, digit = source[going], at[going], digit[going]
        table = np.full((gpus, len(steps)), -1, dtype=np.int32)
        for hop, (sources, links) in enumerate(steps):
            table[sources, hop] = links
        tables.append(table)
    return _by_source(tables, gpus)


def _by_source(tables: list[NDArray[np.int32]], gpus: int) -> tuple[Ints, Ints]:
    """Return ``route_start`` and ``route_link`` from int32[G, longest route] for each destination; -1 where no link is left."""
    routes = np.full((gpus, gpus, max((table.shape[1] for table in tables), default=0)), -1, dtype=np.int32)
    for destination, table in enumerate(tables):
        routes[:, destination, : table.shape[1]] = table
    used = routes >= 0
    start = np.zeros(gpus * gpus + 1, dtype=np.int64)
    np.cumsum(used.sum(axis=2).ravel(), out=start[1:])
    return start, routes[used].astype(np.int64)


def _hops_to(fabric: _Fabric, distances: _Distances, destination: int) -> Floats:
    """Return float[vertices], the weight from each switch to a GPU; inf for the other GPUs, which do not forward."""
    hops = np.full(len(fabric.vertices), np.inf)
    last = np.flatnonzero((fabric.head == destination) & (fabric.tail >= fabric.gpus))
    if last.size:
        hops[fabric.gpus :] = (distances.hops[:, fabric.tail[last] - fabric.gpus] + fabric.weight[last]).min(axis=1)
    hops[destination] = 0
    return hops


def _entries(fabric: _Fabric, gpu: int) -> Ints:
    """Return the switches (counted from 0) that have a link into a GPU."""
    tails = fabric.tail[fabric.head == gpu]
    return np.sort(tails[tails >= fabric.gpus]) - fabric.gpus


def _digits(fabric: _Fabric, distances: _Distances) -> Ints:
    """Return int[G], the number of each GPU among those below the same switch: its switch in the widest network it is part of."""
    seen: dict[int, int] = {}
    digits = np.zeros(fabric.gpus, dtype=np.int64)
    for gpu in range(fabric.gpus):
        entry = _entries(fabric, gpu)
        if entry.size:
            switch = int(entry[np.argmax(distances.joins[entry])])
            digits[gpu] = seen.get(switch, 0)
            seen[switch] = seen.get(switch, 0) + 1
    return digits


def _refuse(source: int, destination: int) -> None:
    raise PluginError(f"gpu:{source} has no route to gpu:{destination}: connect them through links and switches (GPUs do not forward)")
