"""The topology that NCCL dumps (``NCCL_TOPO_DUMP_FILE``): CPUs, the PCIe tree, NVLinks and network cards of one server, with speeds.

Names, units and speeds are those of NVIDIA/nccl@069a3d4, src/graph: xml.h, topo.cc and topo.h.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from itertools import combinations

from moesim.desk.cluster_files.faults import Source
from moesim.desk.cluster_files.host import DISTANCE, Card, Host
from moesim.desk.cluster_files.safe_xml import Element, parse_xml
from moesim.models.topology.wiring import Wiring, misnumbered

VERSION = "1"
"""NCCL_TOPO_XML_VERSION. AMD's RCCL writes 2, whose links are not NVLinks."""

LANE = {2.5: 15, 5.0: 30, 8.0: 60, 16.0: 120, 32.0: 240, 64.0: 480}
"""By GT/s of a PCIe lane: what it carries after protocol, in units of 100 Mb/s (topo.cc, kvDictPciGen)."""

UNKNOWN_WIDTH = "255"
"""What Linux says of a PCIe link of which it knows no width (include/linux/pci.h, PCIE_LNK_WIDTH_UNKNOWN): some virtual machines."""

NVSWITCH, CPU = "0x068000", "0x068001"
"""PCI classes of what an NVLink can lead to, besides GPUs (topo.cc, kvDictPciClass)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a device hangs: on its parents up to the CPU, nearest first."""

    above: tuple[str, ...]
    slot: float | None


@dataclass(slots=True, kw_only=True)
class _Tree:
    """What was found on the way through the tree."""

    source: Source
    host: Host
    gpus: dict[int, Place] = field(default_factory=dict)
    elements: dict[int, Element] = field(default_factory=dict)
    bus_of: dict[str, int] = field(default_factory=dict)
    cards: dict[int, Place] = field(default_factory=dict)
    rates: dict[int, float | None] = field(default_factory=dict)
    sockets: dict[str, float | None] = field(default_factory=dict)


def read(source: Source) -> Wiring:
    """Read a dump of one server.

    Bridges become vertices ``pcie:BUSID``, CPUs ``numa:ID``, all NVSwitches together ``nvswitch:0``; a GPU has the number ``dev``.

    Raises
    ------
    Fault
        With the line.
    """
    root = parse_xml(source)
    if root.name != "system":
        raise source.fault(f'expected <system version="1">, found <{root.name}>: this is no topology of NCCL', line=root.line)
    version = root.attributes.get("version")
    if version != VERSION:
        hint = "; version 2 is RCCL's, for AMD GPUs" if version == "2" else ""
        raise source.fault(f"this topology has version {version!r}, and only version {VERSION} can be read{hint}", line=root.line)
    hosts = {cpu.attributes.get("host_hash", "") for cpu in root.named("cpu")}
    if len(hosts) > 1:
        raise source.fault(f"this dump holds {len(hosts)} servers: dump one alone and copy it with 'nodes: {len(hosts)}'", line=root.line)
    tree = _Tree(source=source, host=Host(source=f"{source.name} (NCCL)"))
    for cpu in root.named("cpu"):
        _cpu(tree, cpu)
    if not tree.gpus:
        raise source.fault("there is no <gpu> inside a <pci>: dump the topology from a process that uses the GPUs", line=root.line)
    gap = misnumbered(list(tree.gpus))
    if gap:
        line = next(tree.elements[dev].line for place, dev in enumerate(sorted(tree.gpus)) if dev != place)
        raise source.fault(f"{gap} (dev of <gpu>; is CUDA_VISIBLE_DEVICES hiding some?)", line=line)
    for one, other in combinations(tree.sockets, 2):
        known = [speed for speed in (tree.sockets[one], tree.sockets[other]) if speed is not None]
        tree.host.bus(one, other, link_class="socket", bandwidth=min(known, default=None))
    _nvlinks(tree)
    cards = {dev: Card(parent=place.above[0], rate=tree.rates[dev], slot=place.slot) for dev, place in tree.cards.items()}
    far = {gpu: {dev: _distance(place, card) for dev, card in tree.cards.items()} for gpu, place in tree.gpus.items()}
    return tree.host.finished(sorted(tree.gpus), cards, far)


def _cpu(tree: _Tree, cpu: Element) -> None:
    name = f"numa:{_whole(tree.source, cpu, 'numaid', minimum=-1)}"
    if name in tree.sockets:
        raise tree.source.fault(f"a second <cpu> with numaid {name[5:]}", line=cpu.line)
    tree.sockets[name] = _between_sockets(cpu)
    for child in cpu.children:
        if child.name == "pci":
            _pci(tree, child, (name,))
        elif child.name == "nic":
            _nic(tree, child, Place(above=(name,), slot=None))


def _pci(tree: _Tree, pci: Element, above: tuple[str, ...]) -> None:
    """Walk one PCIe device and what is below it."""
    slot = _slot(tree.source, pci)
    busid = pci.attributes.get("busid", "").lower()
    if not busid:
        raise tree.source.fault("<pci> has no busid", line=pci.line)
    if not re.fullmatch(r"[0-9a-f:.]+", busid):
        raise tree.source.fault(f"busid={busid!r} is not like 0000:18:00.0", line=pci.line)
    gpus, nics = list(pci.named("gpu")), list(pci.named("nic"))
    for gpu in gpus:
        dev = _whole(tree.source, gpu, "dev")
        if dev in tree.gpus:
            raise tree.source.fault(f"a second <gpu> with dev {dev} (first in line {tree.elements[dev].line})", line=gpu.line)
        tree.gpus[dev], tree.elements[dev], tree.bus_of[busid] = Place(above=above, slot=slot), gpu, dev
        if not any(True for _ in gpu.named("c2c")) or len(above) > 1:
            tree.host.bus(f"gpu:{dev}", above[0], bandwidth=slot)
    nets = sum(_counts(net) for nic in nics for net in nic.named("net"))
    below = [child for child in pci.children if child.name == "pci"]
    if not below and nets < 2:
        for nic in nics:
            _nic(tree, nic, Place(above=above, slot=slot))
        return
    name = f"pcie:{busid}"
    tree.host.bus(name, above[0], bandwidth=slot)
    for nic in nics:
        _nic(tree, nic, Place(above=(name, *above), slot=slot))
    for child in below:
        _pci(tree, child, (name, *above))


def _counts(net: Element) -> bool:
    """Tell whether a ``<net>`` is a card that NCCL uses: it has a number, and is not one that was fused into another."""
    return "dev" in net.attributes and net.attributes.get("net", "1") != "0"


def _nic(tree: _Tree, nic: Element, place: Place) -> None:
    for net in nic.named("net"):
        if not _counts(net):
            continue
        dev = _whole(tree.source, net, "dev")
        if dev in tree.cards:
            raise tree.source.fault(f"a second <net> with dev {dev}", line=net.line)
        megabits = _whole(tree.source, net, "speed", minimum=-1, default=-1, maximum=10**8)
        tree.cards[dev], tree.rates[dev] = place, megabits * 1e6 / 8 if megabits > 0 else None


def _nvlinks(tree: _Tree) -> None:
    direct: dict[tuple[int, int], dict[int, int]] = {}
    for dev in sorted(tree.gpus):
        switched = to_cpu = 0
        for link in tree.elements[dev].named("nvlink"):
            count = _whole(tree.source, link, "count", minimum=1, maximum=64)
            target, kind = link.attributes.get("target", "").lower(), link.attributes.get("tclass", "")
            peer = tree.bus_of.get(target)
            if peer is not None and peer != dev:
                seen = direct.setdefault((min(dev, peer), max(dev, peer)), {})
                seen[dev] = seen.get(dev, 0) + count
            elif kind == NVSWITCH or target.startswith("ffff"):
                switched += count
            elif kind == CPU:
                to_cpu += count
            else:
                text = f"the NVLinks of GPU {dev} lead to {target!r}, which is no <gpu> of this file"
                raise tree.source.fault(text, line=link.line)
        if switched:
            tree.host.nvlink(f"gpu:{dev}", "nvswitch:0", lanes=switched)
        chip = sum(
            _whole(tree.source, link, "bw", minimum=1, maximum=10**8) * _whole(tree.source, link, "count", minimum=1, maximum=64)
            for link in tree.elements[dev].named("c2c")
        )
        if chip and len(tree.gpus[dev].above) == 1:
            tree.host.bus(f"gpu:{dev}", tree.gpus[dev].above[-1], link_class="c2c", bandwidth=chip * 1e6)
        elif to_cpu and len(tree.gpus[dev].above) > 1:
            tree.host.nvlink(f"gpu:{dev}", tree.gpus[dev].above[-1], lanes=to_cpu)
    for (one, other), seen in direct.items():
        if len(set(seen.values())) > 1:
            text = f"GPU {one} has {seen[one]} NVLinks to GPU {other}, which has {seen[other]} back"
            raise tree.source.fault(text, line=tree.elements[other].line)
        tree.host.nvlink(f"gpu:{one}", f"gpu:{other}", lanes=max(seen.values()))


def _distance(gpu: Place, card: Place) -> int:
    """Return how far a card is from a GPU, as ``nvidia-smi`` would say it."""
    if gpu.above[-1] != card.above[-1]:
        return DISTANCE["SYS"]
    if len(gpu.above) == 1 or len(card.above) == 1 or gpu.above[-2] != card.above[-2]:
        return DISTANCE["PHB"]
    return DISTANCE["PIX"] if gpu.above == card.above else DISTANCE["PXB"]


def _slot(source: Source, pci: Element) -> float | None:
    """Return what a PCIe link carries one way, in B/s; None where the file does not know, as in virtual machines."""
    match = re.match(r"\s*([0-9]{1,4}(?:\.[0-9]{1,4})?)\s*GT/s", pci.attributes.get("link_speed", ""))
    width = 0 if pci.attributes.get("link_width", "") in {"", UNKNOWN_WIDTH} else _whole(source, pci, "link_width", maximum=32)
    if match is None:
        return None
    speed = LANE.get(float(match[1]))
    if speed is None:
        known = ", ".join(f"{rate:g}" for rate in LANE)
        raise source.fault(f"unknown link_speed {match[1]} GT/s of PCIe (known: {known})", line=pci.line)
    return (width or 16) * speed / 80 * 1e9


def _between_sockets(cpu: Element) -> float | None:
    """Return what NCCL reckons with between CPUs, one way, in B/s (topo.cc, ncclTopoGetInterCpuBw, and topo.h); None for other CPUs."""
    arch, vendor = cpu.attributes.get("arch", ""), cpu.attributes.get("vendor", "")
    family, model = (
        int(text) if (text := cpu.attributes.get(key, "")).isdecimal() and len(text) < 9 else 0 for key in ("familyid", "modelid")
    )
    if arch == "ppc64":
        return 32e9
    if arch == "arm64":
        return 6e9
    if vendor == "GenuineIntel":
        newest = family == 6 and (model >= 0xCF or model in {0xAD, 0xAE, 0xAF})
        return 40e9 if newest else 22e9 if model >= 0x8F else 10e9 if model >= 0x55 else 6e9
    if vendor == "AuthenticAMD":
        return 32e9 if family in {0xBF, 26} else 24e9 if family in {0xAF, 25} else 16e9
    return None


def _whole(source: Source, element: Element, name: str, *, minimum: int = 0, maximum: int = 10**6, default: int | None = None) -> int:
    text = element.attributes.get(name)
    if text is None and default is not None:
        return default
    if text is None:
        raise source.fault(f"<{element.name}> has no {name!r}", line=element.line)
    try:
        value = int(text, 0) if len(text) < 20 else -2
    except ValueError:
        value = -2
    if not minimum <= value <= maximum:
        raise source.fault(f"{name}={text!r} of <{element.name}> is not a whole number from {minimum} to {maximum}", line=element.line)
    return value
