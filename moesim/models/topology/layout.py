"""Where to draw what: a tidy layered picture of a cluster, as plain numbers."""

from __future__ import annotations

import math
from collections.abc import Hashable

from moesim.models.topology.fabric_parts import Graph
from moesim.models.topology.flatten import natural
from moesim.models.topology.layout_shapes import place_dragonfly, place_torus, torus_sizes

LAYERS = {"gpu": 0.0, "nvswitch": 1.0, "leaf": 2.0, "spine": 3.0, "core": 4.0}
GAP = 1.5
"""Between the last GPU of a node and the first of the next; GPUs of a node are 1 apart."""
ROOMY = 0.08
"""Share of the drawing's width between spines, if there are few of them."""


def layout(graph: Graph) -> dict[Hashable, tuple[float, float]]:
    """Place GPUs at the bottom, node beside node, and switches above, each over the middle of what it joins.

    A torus is drawn as its grid, and a dragonfly (switches of the kind ``router``) as rings; see
    :mod:`moesim.models.topology.layout_shapes`.

    Parameters
    ----------
    graph : networkx.DiGraph
        What ``graph()`` of a topology returns.

    Returns
    -------
    dict
        (x, y) of every vertex, in units of the distance between two GPUs; no two vertices share a place. GPUs of one node that have
        direct links stand on a circle, so that their links do not hide each other. A switch stands as many layers up as it is links away
        from the nearest GPU, or as ``LAYERS`` says of its kind where that is higher.
    """
    if any(data.get("kind") == "router" for _, data in graph.nodes(data=True)):
        return place_dragonfly(graph)
    sizes = torus_sizes(graph)
    if sizes is not None and len(graph) > 2:
        return place_torus(sizes)
    places = _place_gpus(graph)
    neighbours = graph.to_undirected(as_view=True)
    gpus = [vertex for vertex, data in graph.nodes(data=True) if data.get("kind") == "gpu"]
    distance: dict[Hashable, float] = dict.fromkeys(gpus, 0.0)
    reached: list[Hashable] = list(gpus)
    for vertex in reached:  # grows while it is read: breadth first
        new = [other for other in neighbours.adj[vertex] if other not in distance]
        distance |= dict.fromkeys(new, distance[vertex] + 1)
        reached += new
    layer_of = {
        vertex: max(LAYERS.get(str(data.get("kind")), 0.0), distance.get(vertex, float(len(graph))))
        for vertex, data in graph.nodes(data=True)
        if vertex not in places
    }
    bottom = max((y for _, y in places.values()), default=0.0)
    right = max((x for x, _ in places.values()), default=0.0)
    height = max(1.0, 0.15 * right)
    for layer in sorted(set(layer_of.values())):
        wished: dict[Hashable, float] = {}
        for vertex in sorted((vertex for vertex, own in layer_of.items() if own == layer), key=natural):
            below = [places[other][0] for other in neighbours.adj[vertex] if other in places and layer_of.get(other, 0.0) < layer]
            wished[vertex] = math.fsum(below) / len(below) if below else 0.0
        for vertex, x in _spread(wished, width=right).items():
            places[vertex] = (x, bottom + layer * height)
    return places


def _place_gpus(graph: Graph) -> dict[Hashable, tuple[float, float]]:
    members: dict[int, list[str]] = {}
    for vertex, data in graph.nodes(data=True):
        if data.get("kind") == "gpu":
            members.setdefault(data["node"], []).append(vertex)
    places: dict[Hashable, tuple[float, float]] = {}
    left = 0.0
    for node in sorted(members):
        gpus = sorted(members[node], key=natural)
        inside = set(gpus)
        if len(gpus) > 2 and any(head in inside for head in graph.adj[gpus[0]]):
            radius = 0.5 / math.sin(math.pi / len(gpus))
            for index, vertex in enumerate(gpus):
                angle = 2 * math.pi * index / len(gpus)
                places[vertex] = (left + radius - radius * math.cos(angle), radius * math.sin(angle))
            left += 2 * radius + GAP
        else:
            for index, vertex in enumerate(gpus):
                places[vertex] = (left + index, 0.0)
            left += len(gpus) - 1 + GAP
    return places


def _spread(wished: dict[Hashable, float], *, width: float) -> dict[Hashable, float]:
    """Move vertices of one layer apart until neighbours are 1 apart, keeping their order and their middle.

    Vertices that would all stand at nearly the same place, such as spines that join the same leaves, get more room, so that their links and
    names can be told apart.
    """
    order = sorted(wished, key=lambda vertex: (wished[vertex], natural(vertex)))
    bunched = wished[order[-1]] - wished[order[0]] < len(order) - 1
    step = max(min(ROOMY * width, width / len(order)), 1.0) if bunched else 1.0
    placed: dict[Hashable, float] = {}
    last = -math.inf
    for vertex in order:
        last = max(wished[vertex], last + step)
        placed[vertex] = last
    shift = math.fsum(placed[vertex] - wished[vertex] for vertex in order) / len(order)
    return {vertex: x - shift for vertex, x in placed.items()}
