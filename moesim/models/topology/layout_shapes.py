"""Where to draw networks that are no trees: a torus as a bent grid, a dragonfly as rings."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator

from moesim.models.topology.fabric_parts import Graph
from moesim.models.topology.flatten import natural
from moesim.models.topology.torus import neighbours

Places = dict[Hashable, tuple[float, float]]

BEND = 0.35
"""How far the middle of a row of a torus stands out, so that the link around its ends does not hide the row."""


def torus_sizes(graph: Graph) -> tuple[int, ...] | None:
    """Return the sizes of the torus that a graph is, or None if it is none; of several sizes with these links, the first that fits."""
    gpus = len(graph)
    numbers = {f"gpu:{number}": number for number in range(gpus)}
    if gpus < 2 or numbers.keys() != set(graph):
        return None
    near = {numbers[head] for head in graph.adj["gpu:0"]}
    for sizes in _factors(gpus):
        around = neighbours(sizes)
        if near == set(around[0]) and all({numbers[h] for h in graph.adj[f"gpu:{n}"]} == set(heads) for n, heads in enumerate(around)):
            return sizes
    return None


def place_torus(sizes: tuple[int, ...]) -> Places:
    """Place the GPUs of a torus: a ring on a circle, a grid with bent rows and columns, a cube as grids one behind the other."""
    if len(sizes) == 1:
        radius = 0.5 / math.sin(math.pi / sizes[0])
        turns = [2 * math.pi * number / sizes[0] for number in range(sizes[0])]
        return {f"gpu:{number}": (radius * math.sin(turn), radius * math.cos(turn)) for number, turn in enumerate(turns)}
    behind, down, across = (1, *sizes)[-3:]
    places: Places = {}
    for number in range(behind * down * across):
        layer, row, column = number // (down * across), number // across % down, number % across
        # Grids behind the first peep out between its columns and rows, half a GPU further to the right for each.
        x = column * (behind + 0.5) + layer + BEND * _bulge(row, down)
        y = -row * (0.6 * behind + 0.4) + 0.6 * layer + BEND * _bulge(column, across) + 0.5 * BEND * _bulge(layer, behind)
        places[f"gpu:{number}"] = (x, y)
    return places


def place_dragonfly(graph: Graph) -> Places:
    """Place routers on a ring, group beside group, their GPUs on a ring around it, and NVSwitches outside of their GPUs.

    No three places on a ring are in line, so no link between routers hides another.
    """
    routers = sorted((vertex for vertex, data in graph.nodes(data=True) if data.get("kind") == "router"), key=natural)
    gpus_of = {router: sorted((v for v in graph.succ[router] if graph.nodes[v].get("kind") == "gpu"), key=natural) for router in routers}
    seats: list[Hashable | None] = []
    group = None
    for router in routers:
        own = natural(router)[:2]
        seats += [None, *gpus_of[router]] if own != group else gpus_of[router]
        group = own
    turn = {vertex: 2 * math.pi * (seat + 0.37) / len(seats) for seat, vertex in enumerate(seats) if vertex is not None}
    for router in routers:
        turn[router] = _middle([turn[gpu] for gpu in gpus_of[router]])
    inner = max(0.7 * len(seats) / (2 * math.pi), 1.0)
    outer = max(len(seats) / (2 * math.pi), inner + 1.5)
    places = {vertex: _on_ring(angle, inner if vertex in gpus_of else outer) for vertex, angle in turn.items()}
    for vertex in sorted(set(graph) - set(places), key=natural):
        places[vertex] = _on_ring(_middle([turn[gpu] for gpu in graph.succ[vertex] if gpu in turn]), outer + 1.0)
    return places


def _factors(product: int, most: int = 3) -> Iterator[tuple[int, ...]]:
    """Yield all ways to write a number as up to so many ordered factors of at least 2."""
    yield (product,)
    if most > 1:
        for first in range(2, product // 2 + 1):
            if product % first == 0:
                yield from ((first, *rest) for rest in _factors(product // first, most - 1))


def _bulge(at: int, size: int) -> float:
    """Return 0 at both ends of a line and 1 in its middle; lines of two have no link around, so they are straight."""
    return 4 * at * (size - 1 - at) / (size - 1) ** 2 if size > 2 else 0.0


def _middle(angles: list[float]) -> float:
    return math.fsum(angles) / max(len(angles), 1)


def _on_ring(angle: float, radius: float) -> tuple[float, float]:
    return radius * math.sin(angle), radius * math.cos(angle)
