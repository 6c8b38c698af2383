"""A machine as it was described: vertices and links with what is known of them, before any default is filled in."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

import networkx as nx

from moesim.base.errors import FieldError
from moesim.base.fields import BytesPerSecond, CountOrZero, Flag, Seconds, Text, Whole, section
from moesim.models.topology.fabric_parts import Graph, at_most
from moesim.models.topology.flatten import HEAVIEST, natural

MOST_LINKS = 8000
"""A scenario with its links written out must stay a file that the loader reads (100,000 values, about twelve of them for a link)."""

GPU_NAME = re.compile(r"gpu:(0|[1-9][0-9]{0,6})")


@section
@dataclass(frozen=True, slots=True, kw_only=True)
class Vertex:
    """One device.

    Parameters
    ----------
    kind : str or None
        ``gpu``, ``nvswitch``, ``leaf``, ``spine``, ``nic`` …; if left out, what its name has before the colon.
    node : int or None
        Of a GPU: its node; if left out, 0.
    nic : str or None
        Of a GPU: the vertex through which its bytes leave the node when the machine is copied (``nodes``).
    rate : bandwidth or None
        Of a network card: its line rate, one way; if left out, the GPU's data sheet.
    """

    kind: Text | None = None
    node: CountOrZero | None = None
    nic: Text | None = None
    rate: BytesPerSecond | None = None


@section
@dataclass(frozen=True, slots=True, kw_only=True)
class WiredLink:
    """One cable, bus or trace between two vertices.

    Parameters
    ----------
    ends : list of two str
        From where to where.
    link_class : str or None
        ``nvlink``, ``pcie``, ``nic`` …; if left out, it follows from the kinds of the ends.
    name : str or None
        If left out, ``CLASS:FROM>TO``. With both ways the name stands for the way there, and ``NAME:back`` for the way back.
    bandwidth : bandwidth or None
        What it achieves, one way, taken as it is.
    rate : bandwidth or None
        What its data sheet says, one way; the share that its class achieves applies.
    lanes : int or None
        How many NVLinks or PCIe lanes it bundles.
    latency : time or None
        If left out, that of its class.
    weight : int
        What it adds to the length of a route; the shortest route is taken.
    both_ways : bool
        Whether there is an equal link back (full duplex).
    """

    ends: tuple[Text, Text]
    link_class: Text | None = None
    name: Text | None = None
    bandwidth: BytesPerSecond | None = None
    rate: BytesPerSecond | None = None
    lanes: Annotated[int, Whole(1, 1024)] | None = None
    latency: Seconds | None = None
    weight: Annotated[int, Whole(1, HEAVIEST)] = 1
    both_ways: Flag = True

    def __post_init__(self) -> None:
        if self.ends[0] == self.ends[1]:
            raise FieldError("ends", f"the link joins {self.ends[0]} to itself")
        if self.bandwidth is not None and (self.rate is not None or self.lanes is not None):
            raise FieldError("bandwidth", "a link has either a bandwidth (taken as it is) or a rate or lanes (of a data sheet)")

    def ways(self) -> list[tuple[str, str, str | None]]:
        """Return (tail, head, name) of the directed links it stands for."""
        tail, head = self.ends
        there = (tail, head, self.name)
        return [there, (head, tail, None if self.name is None else f"{self.name}:back")] if self.both_ways else [there]


@section
@dataclass(frozen=True, slots=True, kw_only=True)
class Wiring:
    """Vertices and links of a machine.

    Parameters
    ----------
    source : str
        Where it comes from, for people.
    vertices : mapping
        By name; a GPU is ``gpu:0``, ``gpu:1`` …. What only appears at the end of a link needs no entry.
    links : list
        In any order.
    """

    source: Text = "the scenario"
    vertices: Mapping[str, Vertex] = field(default_factory=dict)
    links: tuple[WiredLink, ...] = ()

    def __post_init__(self) -> None:
        if not self.gpus():
            raise FieldError("vertices", "there is no GPU: GPUs are vertices called gpu:0, gpu:1 …")
        problem = misnumbered(self.gpus())
        if problem:
            raise FieldError("vertices", problem)
        for name, vertex in self.vertices.items():
            if vertex.kind == "gpu" and not GPU_NAME.fullmatch(name):
                raise FieldError("vertices", f"the vertex {name!r} has kind gpu: call it gpu:0, gpu:1 …")
            if vertex.nic is not None and vertex.nic not in self.names():
                raise FieldError("vertices", f"{name} leaves the node through {vertex.nic!r}, which is no vertex")
            if vertex.nic is not None and self.kind_of(vertex.nic) == "gpu" and vertex.nic != name:
                raise FieldError("vertices", f"{name} leaves the node through {vertex.nic}, but GPUs do not forward")
        if len(self.links) > MOST_LINKS:
            raise FieldError("links", f"{len(self.links)} links are too many: at most {MOST_LINKS:,} can be described link by link")
        at_most("vertices", len(self.gpus()))
        repeated = twice(self.links)
        if repeated:
            raise FieldError("links", repeated[1])

    def names(self) -> list[str]:
        """Return the name of every vertex, sorted with numbers as numbers."""
        return sorted({*self.vertices, *(end for link in self.links for end in link.ends)}, key=natural)

    def gpus(self) -> list[int]:
        """Return the numbers of the GPUs, sorted."""
        return sorted(int(match[1]) for name in self.names() if (match := GPU_NAME.fullmatch(name)))

    def kind_of(self, name: str) -> str:
        """Return the kind of a vertex: what it says, or what its name has before the colon."""
        vertex = self.vertices.get(name)
        return vertex.kind if vertex is not None and vertex.kind is not None else name.split(":", 1)[0]


def misnumbered(gpus: list[int]) -> str:
    """Return what is wrong with the numbers of the GPUs (a gap), or an empty string."""
    for expected, number in enumerate(sorted(gpus)):
        if number != expected:
            return f"there is a gpu:{number} but no gpu:{expected}: number the {len(gpus)} GPUs from 0 without gaps"
    return ""


def twice(links: tuple[WiredLink, ...] | list[WiredLink]) -> tuple[int, str] | None:
    """Return the index of the first link that repeats an earlier one, by its name or by its ends, and what to say; None if none does."""
    names: Counter[str] = Counter()
    joined: set[tuple[str, str]] = set()
    for index, link in enumerate(links):
        for tail, head, name in link.ways():
            if (tail, head) in joined:
                return index, f"a second link from {tail} to {head}: write one link with the bandwidths added"
            if name is not None and names[name]:
                return index, f"two links are called {name!r}: names of links must be unique"
            joined.add((tail, head))
            names[name or ""] += 1
    return None


def wiring_of(graph: Graph, *, source: str = "a graph") -> Wiring:
    """Return the wiring of a finished graph, each link one way, so that ``graph`` as a topology is the same cluster.

    Parameters
    ----------
    graph : networkx.DiGraph
        What ``graph()`` of a topology returns.
    source : str
        Where it comes from.
    """
    vertices = {str(name): Vertex(kind=data.get("kind"), node=data.get("node")) for name, data in graph.nodes(data=True)}
    links = [
        WiredLink(ends=(str(tail), str(head)), both_ways=False, **{key: data[key] for key in _KEPT if key in data})
        for tail, head, data in graph.edges(data=True)
    ]
    return Wiring(source=source, vertices=vertices, links=tuple(links))


_KEPT = ("name", "link_class", "bandwidth", "latency", "weight")


def drawn(wiring: Wiring, attributes: dict[tuple[str, str], dict[str, Any]], *, basis: str) -> Graph:
    """Return the graph of a wiring with the attributes of its directed links filled in."""
    graph: Graph = nx.DiGraph(basis=basis)
    for name in wiring.names():
        vertex = wiring.vertices.get(name, Vertex())
        node = {"node": vertex.node or 0} if GPU_NAME.fullmatch(name) else {}
        graph.add_node(name, kind=wiring.kind_of(name), **node)
    for (tail, head), data in attributes.items():
        graph.add_edge(tail, head, **data)
    return graph
