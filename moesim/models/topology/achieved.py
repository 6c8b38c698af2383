"""What links carry of what their data sheet promises, and how long a byte is under way: every default with its evidence.

The bandwidth of a :class:`~moesim.facts.cluster.Cluster` is the achievable one. A bandwidth that comes from a GPU's data sheet is
multiplied by the share below, which follows from the all-to-all figures of :mod:`moesim.facts.gpu_figures`. A bandwidth that the user
writes is taken as it stands, for only the user knows whether it is a line rate or a measurement. An efficiency that the user writes
always applies.
"""

from __future__ import annotations

from dataclasses import dataclass

from moesim.facts.evidence import weakest
from moesim.facts.gpu import Gpu
from moesim.facts.gpu_figures import ALL_TO_ALL
from moesim.facts.gpu_presets import achievable, gpu_presets


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """A fraction of a peak bandwidth, how well it is known, and from what."""

    value: float
    basis: str
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Delay:
    """A latency in s, how well it is known, and from what."""

    value: float
    basis: str
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """What a link achieves: bandwidth in B/s, latency in s, and the weakest evidence behind the two."""

    bandwidth: float
    latency: float
    basis: str


LINKS_OF_A_GPU = 7
"""The scale-up bandwidth of a mesh's data sheet is that of the seven links of an 8-GPU board together."""

DIGITS = 2
"""Of a share: two measurements of the same links differ by more than the third."""


def datasheet_of(link_class: str, gpu: Gpu) -> float:
    """Return what a GPU's data sheet says of a class of links (``nvlink``, ``nic`` or ``mesh``), one way, in B/s."""
    return {"nvlink": gpu.nvlink, "nic": gpu.nic, "mesh": gpu.nvlink / LINKS_OF_A_GPU}[link_class]


def _from_figures(link_class: str) -> dict[str, Share]:
    """Return the share of every preset of which an all-to-all figure is known; figures of other experiments do not count."""
    known: dict[str, Share] = {}
    for name, gpu in gpu_presets().items():
        figure = achievable(name, link_class)
        if figure is not None and figure.experiment == ALL_TO_ALL:
            datasheet = datasheet_of(link_class, gpu)
            told = f"{figure.value / 1e9:.4g} of {datasheet / 1e9:.4g} GB/s: {figure.source}"
            known[name] = Share(value=round(figure.value / datasheet, DIGITS), basis=figure.basis, source=told)
    return known


SHARES: dict[str, dict[str, Share]] = {link_class: _from_figures(link_class) for link_class in ("nvlink", "nic", "mesh")}
SHARES["torus"] = {}
"""By class of link and GPU preset: what the figures of :mod:`moesim.facts.gpu_figures` say, and nothing else."""


def _carried(link_class: str, name: str, whose: str) -> Share:
    own = SHARES[link_class][name]
    return Share(value=own.value, basis="assumed", source=f"the share of {whose}, carried over; there: {own.source}")


ELSEWHERE: dict[str, Share] = {
    "nvlink": _carried("nvlink", "h200-sxm", "H200"),
    "nic": _carried("nic", "h200-sxm", "Hopper nodes with 400 Gb/s cards"),
    "mesh": _carried("mesh", "mi300x", "MI300X"),
    "torus": _carried("mesh", "mi300x", "the direct links of MI300X"),
}
"""For GPUs of which no all-to-all was measured: H100, whose NVLink is that of H200, and all others."""

DELAYS: dict[str, Delay] = {
    "nvlink": Delay(
        value=936.25e-9,
        basis="fitted",
        source="astra-sim/astra-sim@3aaa79b examples/network/analytical/HGX-H100-validated.yml: GPU to GPU through the switch of 8 H100",
    ),
    "nic": Delay(
        value=2e-6, basis="assumed", source="the usual figure of a one-sided RDMA write through one switch; GPU memory at both ends"
    ),
    "switch": Delay(
        value=300e-9, basis="assumed", source="between cut-through InfiniBand (about 130 ns) and Ethernet (400 to 600 ns), with cable"
    ),
    "mesh": Delay(value=936.25e-9, basis="assumed", source="that of NVLink, carried over to a direct link"),
    "torus": Delay(
        value=1e-6, basis="assumed", source="a round figure for one hop over a direct link, forwarding included; nothing was measured"
    ),
    "global": Delay(
        value=800e-9, basis="assumed", source="one more switch (300 ns, as above) and 100 m of fibre, in which light takes 5 ns a metre"
    ),
}
"""From GPU to GPU (``nvlink``, ``nic``, ``mesh``; ``torus``: to a neighbour), or added by one more switch and its cable (``switch``;
``global``: between groups of a dragonfly)."""


def share_of(link_class: str, gpu: Gpu) -> Share:
    """Return what a class of links achieves by default with a GPU, as a fraction of its data sheet.

    Parameters
    ----------
    link_class : str
        ``nvlink``, ``nic``, ``mesh`` or ``torus``.
    gpu : Gpu
        A preset that was measured gets its own figure; any other GPU that of its nearest kin, marked ``assumed``.
    """
    own = SHARES[link_class].get(gpu.name)
    return own if own is not None and gpu_presets().get(gpu.name) == gpu else ELSEWHERE[link_class]


def link_of(link_class: str, gpu: Gpu, *, written: float | None, datasheet: float, efficiency: float | None, latency: float | None) -> Link:
    """Return what a link achieves, with its evidence.

    Parameters
    ----------
    link_class : str
        ``nvlink``, ``nic``, ``mesh`` or ``torus``.
    gpu : Gpu
        Whose data sheet and measurements apply.
    written : float or None
        The bandwidth that the user wrote, in B/s; None for the data sheet's.
    datasheet : float
        What the data sheet says, in B/s.
    efficiency : float or None
        What the user wrote; None for the default: :func:`share_of` for a data-sheet bandwidth, 1 for a written one.
    latency : float or None
        From GPU to GPU, in s; None for the default of ``DELAYS``.

    Examples
    --------
    >>> from moesim.facts.gpu_presets import gpu_presets
    >>> link_of("nic", gpu_presets()["h100-sxm"], written=None, datasheet=50e9, efficiency=None, latency=None)
    Link(bandwidth=44000000000.0, latency=2e-06, basis='assumed')
    """
    seconds, basis = delay(link_class, latency)
    if written is not None:
        return Link(bandwidth=written * (1.0 if efficiency is None else efficiency), latency=seconds, basis="assumed")
    if efficiency is not None:
        return Link(bandwidth=datasheet * efficiency, latency=seconds, basis="assumed")
    share = share_of(link_class, gpu)
    sheet = "datasheet" if gpu_presets().get(gpu.name) == gpu else "assumed"
    return Link(bandwidth=datasheet * share.value, latency=seconds, basis=weakest([sheet, share.basis, basis]))


def delay(kind: str, written: float | None) -> tuple[float, str]:
    """Return a latency in s and its evidence: what the user wrote, or the default of ``DELAYS``."""
    return (DELAYS[kind].value, DELAYS[kind].basis) if written is None else (written, "assumed")
