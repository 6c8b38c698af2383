"""What links carry of what their data sheet promises, and how long a byte is under way: every default with its evidence.

The bandwidth of a :class:`~moesim.facts.cluster.Cluster` is the achievable one. A bandwidth that comes from a GPU's data sheet is
multiplied by the share below; a bandwidth that the user writes is taken as it stands, for only the user knows whether it is a
line rate or a measurement. An efficiency that the user writes always applies.
"""

from __future__ import annotations

from dataclasses import dataclass

from moesim.facts.evidence import weakest
from moesim.facts.gpu import Gpu
from moesim.facts.gpu_presets import gpu_presets


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


_NCCL = "ai-dynamo/aiconfigurator@095f58a nccl_perf.parquet (Apache-2.0): all-to-all bus bandwidth at 512 MiB per rank"
_DEEPEP = (
    "ai-dynamo/aiconfigurator@095f58a wideep_deepep_normal_perf.parquet (Apache-2.0): dispatch of 131072 FP8 tokens, 2 nodes, 24 SMs; "
    "7392 B of each token cross with probability 0.997, 44.0 of 50 GB/s. Rail-aligned EFA reaches 43.7 of 50 "
    "(uccl-project/uccl@da914a2 efa_alltoall_results.md)"
)

SHARES: dict[str, dict[str, Share]] = {
    "nvlink": {
        "a100-sxm-80": Share(value=0.65, basis="measured", source=f"{_NCCL}, 4 GPUs: 195.5 of 300 GB/s"),
        "h100-sxm": Share(value=0.69, basis="measured", source=f"{_NCCL}, 8 H200 with the same NVLink: 311.8 of 450 GB/s"),
        "h200-sxm": Share(value=0.69, basis="measured", source=f"{_NCCL}, 8 GPUs: 311.8 of 450 GB/s"),
        "h800-sxm": Share(
            value=0.79, basis="measured", source="deepseek-ai/DeepEP@dd758ca docs/legacy.md (MIT): normal combine, 158 of 200 GB/s"
        ),
        "gb200-nvl72": Share(
            value=0.66,
            basis="fitted",
            source="ai-dynamo/aiconfigurator@095f58a trtllm_alltoall_perf.parquet (Apache-2.0): dispatch of 65536 BF16 tokens of 7168 in "
            "11.07 ms at EP 8, 594 of 900 GB/s if the balanced routing of the benchmark sends every token to all 8 ranks",
        ),
    },
    "nic": {name: Share(value=0.88, basis="measured", source=_DEEPEP) for name in ("h100-sxm", "h200-sxm", "h800-sxm")},
    "mesh": {
        "mi300x": Share(
            value=0.61,
            basis="measured",
            source="ROCm/mori@624002c tuning_configs (MIT): BF16 combine, EP 4, 4096 tokens: 157.2 GB/s with local copies, so 39.3 of "
            "64 GB/s on each of three links",
        ),
    },
}
"""By class of link and GPU preset."""

ELSEWHERE: dict[str, Share] = {
    "nvlink": Share(value=0.69, basis="assumed", source="the share of H200, carried over"),
    "nic": Share(value=0.88, basis="assumed", source="the share of Hopper nodes with 400 Gb/s cards, carried over"),
    "mesh": Share(value=0.61, basis="assumed", source="the share of MI300X, carried over"),
}
"""For GPUs that nobody measured."""

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
}
"""From GPU to GPU (``nvlink``, ``nic``, ``mesh``), or added by one more switch and its cable (``switch``)."""


def share_of(link_class: str, gpu: Gpu) -> Share:
    """Return what a class of links achieves by default with a GPU, as a fraction of its data sheet.

    Parameters
    ----------
    link_class : str
        ``nvlink``, ``nic`` or ``mesh``.
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
        ``nvlink``, ``nic`` or ``mesh``.
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
