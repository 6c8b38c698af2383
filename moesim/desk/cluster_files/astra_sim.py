"""The network file of ASTRA-sim's analytical backend: a shape, a size, a bandwidth and a latency for each dimension.

Keys and shapes are those of astra-sim/astra-network-analytical@0f6d65e, common/network-parser/NetworkParser.cc. Its GB/s are 2**30 bytes
per second (common/NetworkFunction.cc, bw_GBps_to_Bpns), its latencies nanoseconds for each link.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import combinations
from typing import Any

from moesim.base.errors import did_you_mean
from moesim.base.fields import BOUNDS
from moesim.desk.cluster_files.attributes import RATE, TIME
from moesim.desk.cluster_files.faults import Fault, Source
from moesim.desk.yaml_tree import Node, parse_yaml
from moesim.models.topology.fabric_parts import MOST_GPUS
from moesim.models.topology.wiring import MOST_LINKS, Vertex, WiredLink, Wiring

KEYS = ("topology", "npus_count", "bandwidth", "latency")
SHAPES = ("Ring", "Switch", "FullyConnected")
GIGABYTE = 2.0**30


def read(source: Source) -> Wiring:
    """Read the dimensions into GPUs and links.

    The first dimension is the innermost: NPUs that differ only in it are neighbours by number, and, with several dimensions, one node.
    Every link has the bandwidth each way, as in ASTRA-sim: two links of a ring beside each NPU, one to every peer of a fully connected
    dimension, one to the switch. In a ring, or with more than one dimension, bytes pass through other NPUs: each NPU then has a
    router, joined to its GPU by a port as wide as its links together. Of equally short routes the destination chooses.

    Raises
    ------
    Fault
        With the line.
    """
    lists = _lists(source)
    counts = [_count(source, node) for node in lists["npus_count"]]
    bandwidths = [_number(source, node, RATE, GIGABYTE) for node in lists["bandwidth"]]
    latencies = [_number(source, node, TIME, 1e-9) for node in lists["latency"]]
    shapes = [str(node.value) for node in lists["topology"]]
    total = math.prod(counts)
    if total > MOST_GPUS:
        first = lists["npus_count"][0].place
        raise source.fault(f"{total} NPUs are too many: at most {MOST_GPUS} can be simulated", line=first.line, column=first.column)
    forwards = len(counts) > 1 or (shapes[0] == "Ring" and counts[0] > 3)
    links: list[WiredLink] = []
    beside = [0.0] * total
    step = 1
    for dimension, (shape, count) in enumerate(zip(shapes, counts, strict=True)):
        for start in range(total):
            if start // step % count:
                continue
            line = [start + step * place for place in range(count)]
            ends = _ends(shape, line, switch=f"switch:{dimension + 1}.{start}", router="npu" if forwards else "gpu")
            links += [
                WiredLink(ends=pair, link_class=f"dim{dimension + 1}", bandwidth=bandwidths[dimension], latency=latencies[dimension])
                for pair in ends
            ]
            for npu in line:
                beside[npu] += bandwidths[dimension] * sum(pair.count(f"{'npu' if forwards else 'gpu'}:{npu}") for pair in ends)
            if len(links) > MOST_LINKS:
                place = lists["npus_count"][dimension].place
                raise source.fault(f"this makes more than {MOST_LINKS:,} links", line=place.line, column=place.column)
        step *= count
    if forwards:
        links += [
            WiredLink(ends=(f"gpu:{npu}", f"npu:{npu}"), link_class="port", bandwidth=min(beside[npu], BOUNDS["B/s"][1]), latency=0.0)
            for npu in range(total)
        ]
    inner = counts[0] if len(counts) > 1 else total
    vertices = {f"gpu:{npu}": Vertex(kind="gpu", node=npu // inner) for npu in range(total)}
    return Wiring(source=f"{source.name} (ASTRA-sim)", vertices=vertices, links=tuple(links))


def _ends(shape: str, line: list[int], *, switch: str, router: str) -> list[tuple[str, str]]:
    """Return the two-way links of one line of NPUs."""
    names = [f"{router}:{npu}" for npu in line]
    if shape == "Switch":
        return [(name, switch) for name in names]
    if shape == "FullyConnected" or len(names) < 3:
        return list(combinations(names, 2))
    return [(names[place], names[(place + 1) % len(names)]) for place in range(len(names))]


def _lists(source: Source) -> dict[str, list[Node]]:
    tree, problems = parse_yaml(source.text, source.path)
    if problems:
        raise Fault(problems)
    if tree is None or not isinstance(tree.value, dict):
        raise source.fault(f"expected the keys {', '.join(KEYS)}")
    for key, node in tree.value.items():
        if key not in KEYS:
            raise source.fault(f"unknown key {key!r}{did_you_mean(key, KEYS)}", line=node.key.line, column=node.key.column)
    lists: dict[str, list[Node]] = {}
    for key in KEYS:
        node = tree.child(key)
        if node is None:
            raise source.fault(f"the key {key!r} is missing")
        if not isinstance(node.value, list) or not node.value:
            raise source.fault(f"{key} is a list with one entry for each dimension", line=node.place.line, column=node.place.column)
        lists[key] = node.value
        if len(node.value) != len(lists["topology"]):
            text = f"{key} has {len(node.value)} entries for {len(lists['topology'])} dimensions"
            raise source.fault(text, line=node.place.line, column=node.place.column)
    for node in lists["topology"]:
        if node.value not in SHAPES:
            hint = did_you_mean(str(node.value), SHAPES)
            raise source.fault(f"unknown topology {node.value!r}{hint}", line=node.place.line, column=node.place.column)
    return lists


def _count(source: Source, node: Node) -> int:
    value: Any = node.value
    if isinstance(value, bool) or not isinstance(value, int) or not 1 < value <= MOST_GPUS:
        text = f"{value!r} is no number of NPUs: a whole number from 2 to {MOST_GPUS}"
        raise source.fault(text, line=node.place.line, column=node.place.column)
    return value


def _number(source: Source, node: Node, read: Callable[[Any], Any], unit: float) -> float:
    value: Any = node.value
    if isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e12:
        try:
            return float(read(value * unit))
        except ValueError as error:
            reason = str(error)
    else:
        reason = "not a number"
    text = f"{value!r} cannot be used (GB/s for bandwidth, ns for latency): {reason}"
    raise source.fault(text, line=node.place.line, column=node.place.column)
