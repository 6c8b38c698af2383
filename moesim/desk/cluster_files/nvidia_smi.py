"""The matrix of ``nvidia-smi topo -m``: which bus or how many NVLinks join each pair of GPUs and network cards of one server.

The words of the matrix are explained in the legend below it. It says nothing of speeds: PCIe slots are taken as sixteen lanes, and the
rates of NVLinks, lanes, sockets and cards are the defaults of the ``graph`` topology.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from itertools import combinations

import networkx as nx

from moesim.base.errors import did_you_mean
from moesim.desk.cluster_files.faults import Source
from moesim.desk.cluster_files.host import DISTANCE, NEAR, Card, Host
from moesim.models.topology.wiring import Wiring, misnumbered

MOST_NVLINKS = 18
"""No GPU so far has more: H100, H200, B200 and GB200. Where a GPU would need more to reach all its peers, a switch joins them."""

COLOUR = re.compile(r"\x1b\[[0-9;]*m")
GPU = re.compile(r"GPU(\d{1,6})")
BONDED = re.compile(r"NV(\d{1,4})")


@dataclass(slots=True, kw_only=True)
class Matrix:
    """Devices in order, and for each pair what the matrix says."""

    devices: list[str] = field(default_factory=list)
    cells: dict[tuple[str, str], str] = field(default_factory=dict)
    affinity: dict[str, tuple[str, ...]] = field(default_factory=dict)
    line: dict[str, int] = field(default_factory=dict)

    @property
    def gpus(self) -> list[str]:
        """The GPUs, by number."""
        return sorted((device for device in self.devices if GPU.fullmatch(device)), key=lambda device: int(device[3:]))

    @property
    def cards(self) -> list[str]:
        """Everything else: network cards, in the order of the matrix."""
        return [device for device in self.devices if not GPU.fullmatch(device)]


def read(source: Source) -> Wiring:
    """Read the matrix into a server.

    Devices at distance PIX or PXB hang on one PCIe switch, which has one uplink to its NUMA node; devices at PHB or NODE hang on the
    same NUMA node; SYS joins NUMA nodes. NVLinks between GPUs that all see the same number of links, more in sum than a GPU has, go
    through an NVSwitch; others go directly from GPU to GPU. NVLinks hide how far two GPUs are apart on PCIe: then equal CPU
    and NUMA affinity put them on one NUMA node.

    Raises
    ------
    Fault
        With the line.
    """
    matrix = _matrix(source)
    host = Host(source=f"{source.name} (nvidia-smi topo -m)")
    _nvlinks(matrix, host)
    parents = _buses(matrix, host)
    for device in matrix.gpus:
        host.bus(f"gpu:{device[3:]}", parents[device])
    cards = {number: Card(parent=parents[card]) for number, card in enumerate(matrix.cards)}
    far = {int(gpu[3:]): {number: DISTANCE[matrix.cells[gpu, card]] for number, card in enumerate(matrix.cards)} for gpu in matrix.gpus}
    return host.finished([int(gpu[3:]) for gpu in matrix.gpus], cards, far)


def _matrix(source: Source) -> Matrix:
    lines = [(number, COLOUR.sub("", line).split()) for number, line in enumerate(source.text.splitlines(), start=1)]
    # Whatever a shell or a log says before the matrix does not count.
    head = next((place for place, (_, words) in enumerate(lines) if words[:1] and GPU.fullmatch(words[0]) and "X" not in words), None)
    if head is None:
        raise source.fault("there is no matrix: the line that starts with GPU0 is missing; 'nvidia-smi topo -m > topo.txt' writes it")
    number, words = lines[head]
    matrix = Matrix(devices=words[: words.index("CPU")] if "CPU" in words else words)
    repeated = sorted({device for device in matrix.devices if matrix.devices.count(device) > 1})
    if repeated:
        raise source.fault(f"two columns are called {repeated[0]}", line=number)
    gap = misnumbered([int(device[3:]) for device in matrix.gpus])
    if gap:
        raise source.fault(f"{gap} (is CUDA_VISIBLE_DEVICES or a container hiding some?)", line=number)
    last = number
    for number, words in lines[head + 1 :]:
        if not words or words[0] not in matrix.devices:
            if words and not matrix.line.keys() >= set(matrix.devices) and re.fullmatch(r"(GPU|NIC)\d+", words[0]):
                raise source.fault(f"the row {words[0]} has no column", line=number)
            if matrix.line:
                break
            continue
        _row(source, matrix, number, words)
        last = number
    missing = [device for device in matrix.devices if device not in matrix.line]
    if missing:
        raise source.fault(f"the matrix is cut off: there is no row for {missing[0]}", line=last)
    for one, other in combinations(matrix.devices, 2):
        there, back = matrix.cells[one, other], matrix.cells[other, one]
        if there != back:
            text = f"{one} and {other} are joined by {there} in one direction and {back} in the other"
            raise source.fault(text, line=matrix.line[other])
    return matrix


def _row(source: Source, matrix: Matrix, line: int, words: list[str]) -> None:
    device, cells = words[0], words[1 : 1 + len(matrix.devices)]
    if device in matrix.line:
        raise source.fault(f"a second row {device} (first in line {matrix.line[device]})", line=line)
    if len(cells) < len(matrix.devices):
        raise source.fault(f"the row {device} is cut off: {len(cells)} of {len(matrix.devices)} columns", line=line)
    for other, word in zip(matrix.devices, cells, strict=True):
        known = "SYS" if word == "SOC" else word
        gpus = GPU.fullmatch(device) and GPU.fullmatch(other)
        bonded = BONDED.fullmatch(known)
        if (known == "X") != (device == other):
            raise source.fault(f"{device} to {other} says {word!r}: X belongs on the diagonal, and only there", line=line)
        if known != "X" and known not in DISTANCE and not (bonded and gpus and 0 < int(bonded[1]) <= 1024):
            hint = did_you_mean(word, [*DISTANCE, "NV#"])
            raise source.fault(f"{device} to {other}: unknown connection {word!r}{hint}", line=line)
        matrix.cells[device, other] = known
    matrix.line[device] = line
    matrix.affinity[device] = tuple(words[1 + len(matrix.devices) :])


def _nvlinks(matrix: Matrix, host: Host) -> None:
    graph: nx.Graph = nx.Graph()
    for one, other in combinations(matrix.gpus, 2):
        bonded = BONDED.fullmatch(matrix.cells[one, other])
        if bonded:
            graph.add_edge(one, other, lanes=int(bonded[1]))
    for number, island in enumerate(sorted(nx.connected_components(graph), key=lambda members: min(int(gpu[3:]) for gpu in members))):
        members = sorted(island, key=lambda gpu: int(gpu[3:]))
        lanes = {graph.edges[pair]["lanes"] if pair in graph.edges else 0 for pair in combinations(members, 2)}
        bundle = max(lanes)
        if len(lanes) == 1 and bundle * (len(members) - 1) > MOST_NVLINKS:
            for gpu in members:
                host.nvlink(f"gpu:{gpu[3:]}", f"nvswitch:{number}", lanes=bundle)
            continue
        for one, other in combinations(members, 2):
            if (one, other) in graph.edges:
                host.nvlink(f"gpu:{one[3:]}", f"gpu:{other[3:]}", lanes=graph.edges[one, other]["lanes"])


def _buses(matrix: Matrix, host: Host) -> dict[str, str]:
    """Draw PCIe switches, NUMA nodes and sockets; return the vertex that each device hangs on."""
    switches: nx.Graph = nx.Graph()
    switches.add_nodes_from(matrix.devices)
    domains: nx.Graph = nx.Graph()
    domains.add_nodes_from(matrix.devices)
    for one, other in combinations(matrix.devices, 2):
        word = matrix.cells[one, other]
        if word not in DISTANCE:
            if matrix.affinity[one] and matrix.affinity[one] == matrix.affinity[other]:
                domains.add_edge(one, other)
            continue
        if DISTANCE[word] <= NEAR:
            switches.add_edge(one, other)
        if word != "SYS":
            domains.add_edge(one, other)
    order = {device: place for place, device in enumerate(matrix.devices)}

    def members(graph: nx.Graph) -> list[list[str]]:
        return sorted((sorted(part, key=order.__getitem__) for part in nx.connected_components(graph)), key=lambda part: order[part[0]])

    parents: dict[str, str] = {}
    for number, part in enumerate(members(domains)):
        parents |= dict.fromkeys(part, f"numa:{number}")
        for before in range(number):
            host.bus(f"numa:{before}", f"numa:{number}", link_class="socket")
    shared = [part for part in members(switches) if len(part) > 1]
    for number, part in enumerate(shared):
        host.bus(f"pcie:{number}", parents[part[0]])
        parents |= dict.fromkeys(part, f"pcie:{number}")
    return parents
