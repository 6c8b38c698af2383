"""GraphML, as networkx and graph editors write it (http://graphml.graphdrawing.org/specification.html)."""

from __future__ import annotations

from typing import Any

from moesim.desk.cluster_files.attributes import Found, wiring_from
from moesim.desk.cluster_files.faults import Source
from moesim.desk.cluster_files.safe_xml import Element, parse_xml
from moesim.models.topology.wiring import Wiring

Key = tuple[str, str, Any]


def read(source: Source) -> Wiring:
    """Read a graph; numbers are in SI units, text may have a unit of its own.

    ``attr.name`` of a key is the name of the attribute. Edges are two-way unless the graph, or the edge, is directed.

    Raises
    ------
    Fault
        With the line.
    """
    root = parse_xml(source)
    graphs = list(root.named("graph"))
    if root.name != "graphml" or len(graphs) != 1:
        raise source.fault(f"expected <graphml> with one <graph>, found <{root.name}> with {len(graphs)}", line=root.line)
    graph = graphs[0]
    keys: dict[str, Key] = {}
    for key in root.named("key"):
        name, kind = key.attributes.get("attr.name", key.attributes.get("id", "")), key.attributes.get("attr.type", "string")
        default = next((_typed(source, child, kind) for child in key.named("default")), None)
        keys[key.attributes.get("id", "")] = (key.attributes.get("for", "all"), name, (kind, default))
    ways = {_directed(source, edge, graph) for edge in graph.named("edge")} or {True}
    if len(ways) > 1:
        raise source.fault("edges with and without a direction in one graph: write a two-way link as two edges", line=graph.line)
    vertices = [
        Found(ends=(_attribute(source, node, "id"),), data=_data(source, node, keys, "node"), line=node.line)
        for node in graph.named("node")
    ]
    links = [
        Found(
            ends=(_attribute(source, edge, "source"), _attribute(source, edge, "target")),
            data=_data(source, edge, keys, "edge"),
            line=edge.line,
        )
        for edge in graph.named("edge")
    ]
    return wiring_from(source, vertices, links, directed=ways == {True})


def _directed(source: Source, edge: Element, graph: Element) -> bool:
    written = edge.attributes.get("directed")
    if written is None:
        return _attribute(source, graph, "edgedefault") == "directed"
    return written == "true"


def _attribute(source: Source, element: Element, name: str) -> str:
    if not element.attributes.get(name, "").strip():
        raise source.fault(f"<{element.name}> has no {name!r}", line=element.line)
    return element.attributes[name]


def _data(source: Source, element: Element, keys: dict[str, Key], domain: str) -> dict[str, Any]:
    found = {name: default for where, name, (_, default) in keys.values() if where in {domain, "all"} and default is not None}
    for item in element.named("data"):
        key = keys.get(item.attributes.get("key", ""))
        if key is None:
            raise source.fault(f"<data> has the key {item.attributes.get('key')!r}, which no <key> defines", line=item.line)
        found[key[1]] = _typed(source, item, key[2][0])
    return found


def _typed(source: Source, element: Element, kind: str) -> Any:
    text = element.text.strip()
    try:
        if kind in {"int", "long"}:
            return int(text)
        if kind in {"float", "double"}:
            return float(text)
    except ValueError:
        raise source.fault(f"{text!r} is no {kind}", line=element.line) from None
    return text
