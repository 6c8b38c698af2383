"""What a described link carries: what was written, or the default of its class, with its evidence."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from moesim.base.errors import PluginError
from moesim.facts.evidence import weakest
from moesim.facts.gpu import Gpu
from moesim.facts.gpu_presets import gpu_presets
from moesim.models.topology.achieved import DELAYS, Link, datasheet_of, share_of
from moesim.models.topology.wiring import WiredLink, Wiring

CLASSES = {
    frozenset({"gpu"}): "nvlink",
    frozenset({"gpu", "nvswitch"}): "nvlink",
    frozenset({"gpu", "leaf"}): "nic",
    frozenset({"nic", "leaf"}): "nic",
    frozenset({"leaf", "spine"}): "uplink",
}
"""The class of a link that says none, by the kinds of its ends; any other link is of class ``link``."""

SHARED = ("nvlink", "nic", "mesh")
"""Classes of which it is known what share of their data sheet all-to-alls achieve."""

PCIE_LANE = {"a100-sxm-80": 1.5e9}
PCIE_LANE_ELSEWHERE = 3.0e9
"""B/s of a PCIe lane, one way, after protocol: 24 Gb/s (generation 5) and, for A100, 12 Gb/s (generation 4);
NVIDIA/nccl@069a3d4 src/graph/topo.cc, kvDictPciGen."""
PCIE_LANES = 16
PCIE_LATENCY = 100e-9
"""s of one PCIe link with the switch or bridge behind it; assumed, the usual figure of a PCIe switch is 100 to 150 ns."""

NVLINK_LANE = 25e9
NVLINK5_LANE = 50e9
"""B/s of one NVLink, one way: generations 2 to 4, and 5. The GPUs of generation 5 are those with 900 GB/s or more one way (18 links)."""

SOCKET = 22e9
"""B/s between two CPU sockets, one way: NVIDIA/nccl@069a3d4 src/graph/topo.h, SRP_QPI_BW (Sapphire Rapids)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Defaults:
    """What stands for what a description leaves out; None takes the figures of this module."""

    gpu: Gpu
    nvlink_lane: float | None = None
    nvlink_efficiency: float | None = None
    pcie_lane: float | None = None
    socket: float | None = None

    def rate(self, link_class: str, lanes: int | None) -> float | None:
        """Return the data sheet's bandwidth of a class, one way, in B/s; None where there is no default."""
        if link_class == "nvlink":
            lane = self.nvlink_lane or (NVLINK5_LANE if self.gpu.nvlink >= 18 * NVLINK5_LANE else NVLINK_LANE)
            return self.gpu.nvlink if lanes is None else lanes * lane
        if link_class == "pcie":
            lane = self.pcie_lane or PCIE_LANE.get(self.gpu.name, PCIE_LANE_ELSEWHERE)
            return (lanes or PCIE_LANES) * lane
        if link_class == "socket":
            return self.socket or SOCKET
        return datasheet_of(link_class, self.gpu) if link_class in SHARED else None

    def share(self, link_class: str) -> tuple[float, str]:
        """Return what a class achieves of its data sheet, and how well that is known."""
        if link_class == "nvlink" and self.nvlink_efficiency is not None:
            return self.nvlink_efficiency, "assumed"
        if link_class not in SHARED:
            return 1.0, "assumed"
        share = share_of(link_class, self.gpu)
        sheet = "datasheet" if gpu_presets().get(self.gpu.name) == self.gpu else "assumed"
        return share.value, weakest([share.basis, sheet])


def class_of(wiring: Wiring, link: WiredLink) -> str:
    """Return the class of a link: what it says, or what follows from the kinds of its ends."""
    return link.link_class or CLASSES.get(frozenset(wiring.kind_of(end) for end in link.ends), "link")


def figures_of(link: WiredLink, link_class: str, defaults: Defaults, *, direct: bool) -> Link:
    """Return what a link achieves.

    Parameters
    ----------
    link : WiredLink
        What is known of it.
    link_class : str
        Its class.
    defaults : Defaults
        For what it does not say.
    direct : bool
        Whether both ends are GPUs. A latency of ``DELAYS`` is from GPU to GPU: all of it for a direct link, else half.

    Raises
    ------
    PluginError
        If it has no bandwidth and its class no default.
    """
    seconds, evidence = link.latency, "assumed"
    if seconds is None:
        if link_class in SHARED:
            seconds, evidence = DELAYS[link_class].value / (1 if direct else 2), DELAYS[link_class].basis
        elif link_class in {"pcie", "socket"}:
            seconds = PCIE_LATENCY
        else:
            seconds, evidence = DELAYS["switch"].value, DELAYS["switch"].basis
    if link.bandwidth is not None:
        return Link(bandwidth=link.bandwidth, latency=seconds, basis="assumed")
    rate = link.rate if link.rate is not None else defaults.rate(link_class, link.lanes)
    if rate is None:
        tail, head = link.ends
        text = f"the link {tail} - {head} of class {link_class!r} has no bandwidth"
        raise PluginError(f"{text}: only links of the classes mesh, nic, nvlink, pcie and socket can do without")
    share, basis = defaults.share(link_class)
    return Link(bandwidth=rate * share, latency=seconds, basis=weakest([basis, evidence]))


def directed(wiring: Wiring, defaults: Defaults) -> tuple[dict[tuple[str, str], dict[str, Any]], str]:
    """Return the attributes of every directed link by its ends, and the weakest evidence of all."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    bases = ["exact"]
    for link in wiring.links:
        link_class = class_of(wiring, link)
        direct = all(wiring.kind_of(end) == "gpu" for end in link.ends)
        figures = figures_of(link, link_class, defaults, direct=direct)
        bases.append(figures.basis)
        for tail, head, name in link.ways():
            found[tail, head] = {
                "name": name or f"{link_class}:{tail}>{head}",
                "link_class": link_class,
                "bandwidth": figures.bandwidth,
                "latency": figures.latency,
                "weight": link.weight,
            }
    return found, weakest(bases)
