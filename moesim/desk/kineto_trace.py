"""Traces of torch.profiler: which kernels ran for how long, and those all-to-alls whose sizes the trace states."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from moesim.base.errors import CalibrationError
from moesim.desk.measured_tables import MeasuredTable, Refused
from moesim.facts.model import DTYPE_BYTES

CLASSES = (
    ("all-to-all", ("sendrecv", "alltoall", "all_to_all", "deep_ep", "dispatch", "combine")),
    ("other collectives", ("nccl", "rccl", "all_reduce", "allreduce", "allgather", "reduce_scatter", "reducescatter")),
    ("grouped GEMM", ("grouped_gemm", "groupedgemm", "group_gemm", "grouped_mm", "fused_moe", "moe_gemm", "moegemm", "masked_gemm")),
    ("routing and permutation", ("topk", "top_k", "permute", "moe_align", "scatter", "gather", "index_select", "sort")),
    ("attention", ("flash", "attention", "fmha")),
    ("GEMM", ("gemm", "cutlass", "matmul", "cublas", "nvjet", "wgrad", "dgrad")),
)  # fmt: skip
"""Classes of kernels, and what their names contain; the first that fits."""

WIDTHS = {
    "float": 4, "float32": 4, "half": 2, "float16": 2, "bfloat16": 2, "double": 8, "float64": 8, "byte": 1, "uint8": 1, "char": 1,
    "int8": 1, "int": 4, "int32": 4, "long": 8, "int64": 8, "bool": 1, "float8_e4m3fn": 1, "float8_e5m2": 1,
}  # fmt: skip
"""Bytes of an element, as PyTorch names its types in traces."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelClass:
    """Kernels of one class: how many, and the microseconds that they took together and at the median."""

    name: str
    kernels: int
    total_us: float
    median_us: float


def is_trace(document: Any) -> bool:
    """Tell whether a JSON document is a Chrome trace."""
    return isinstance(document, Mapping) and isinstance(document.get("traceEvents"), list)


def class_of(kernel: str) -> str:
    """Return the class of a kernel by its name.

    Examples
    --------
    >>> class_of("ncclDevKernel_SendRecv(ncclDevKernelArgsStorage<4096ul>)"), class_of("sm90_xmma_gemm_bf16")
    ('all-to-all', 'GEMM')
    """
    name = kernel.lower()
    return next((found for found, signs in CLASSES if any(sign in name for sign in signs)), "other kernels")


def kernels_of(document: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the kernel events of a trace that have a duration above 0.

    Raises
    ------
    CalibrationError
        If there is none.
    """
    found = [
        event
        for event in document["traceEvents"]
        if isinstance(event, Mapping) and event.get("ph") == "X" and event.get("cat") == "kernel" and _duration(event) > 0
    ]
    if not found:
        raise CalibrationError("the trace holds no GPU kernel: record it with ProfilerActivity.CUDA on a machine with a GPU")
    return found


def _duration(event: Mapping[str, Any]) -> float:
    value = event.get("dur")
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else 0.0


def classes(document: Mapping[str, Any]) -> list[KernelClass]:
    """Return the classes of kernels of a trace, the longest together first."""
    times: dict[str, list[float]] = {}
    for event in kernels_of(document):
        times.setdefault(class_of(str(event.get("name", ""))), []).append(_duration(event))
    found = [
        KernelClass(name=name, kernels=len(values), total_us=float(np.sum(values)), median_us=float(np.median(values)))
        for name, values in times.items()
    ]
    return sorted(found, key=lambda item: (-item.total_us, item.name))


def said(found: list[KernelClass]) -> str:
    """Return the classes in one line."""
    return "; ".join(f"{item.name}: {item.kernels} kernels, {item.total_us / 1e3:.4g} ms, median {item.median_us:.4g} us" for item in found)


def read_trace_kernels(document: Mapping[str, Any], name: str, *, gpu: str = "") -> MeasuredTable:
    """Return the all-to-alls of a trace as rows of the table of all-to-alls: one row for each size, with the median of its kernels.

    A kernel of NCCL states its operation, the elements that a rank sends, their type and the size of its group. All-to-alls with unequal
    splits, groups that a trace of one rank cannot place in one node, and kernels that state none of this are told.

    Parameters
    ----------
    document : mapping
        The trace.
    name : str
        Its file.
    gpu : str
        The GPU, where the trace does not name it or is to be overruled.

    Raises
    ------
    CalibrationError
        If no kernel of the trace can be used; the message says what kernels there were.

    Notes
    -----
    Source of the keys: pytorch/pytorch, ``torch/csrc/distributed/c10d/ParamCommsUtils.hpp`` and libkineto's output of
    ``record_param_comms``.
    """
    kernels = kernels_of(document)
    system = gpu or _device(document)
    samples: dict[tuple[int, int], list[float]] = {}
    lost = {"does not state its size": 0, "has unequal splits": 0, "is another operation": 0}
    for event in kernels:
        if class_of(str(event.get("name", ""))) != "all-to-all":
            continue
        stated = event.get("args")
        key = _size(stated if isinstance(stated, Mapping) else {})
        if isinstance(key, str):
            lost[key] += 1
        else:
            samples.setdefault(key, []).append(_duration(event))
    what = said(classes(document))
    if not samples:
        odd = ", ".join(f"{count} all-to-all kernels: each {reason}" for reason, count in lost.items() if count)
        raise CalibrationError(f"no kernel of the trace can be fitted ({odd or 'no all-to-all among them'}); it holds {what}")
    if not system:
        raise CalibrationError(f"the trace does not name the GPU: say which with --gpu; it holds {what}")
    keys = sorted(samples)
    folder, _, last = name.rpartition("/")
    return MeasuredTable(
        name=f"{folder}/" * bool(folder) + f"nccl_alltoall_intranode.{last}.csv",
        rows={
            "system": np.asarray([system] * len(keys)),
            "nccl": np.asarray([""] * len(keys)),
            "num_gpus": np.asarray([group for group, _ in keys], dtype=np.int64),
            "bytes_per_rank": np.asarray([size for _, size in keys], dtype=np.int64),
            "time_us": np.asarray([float(np.median(samples[key])) for key in keys]),
        },
        lines=np.arange(1, len(keys) + 1),
        notes=(f"trace: {what}",),
        refused=tuple(Refused(rows=count, line=0, reason=f"an all-to-all kernel {reason}") for reason, count in lost.items() if count),
    )


def _size(stated: Mapping[str, Any]) -> tuple[int, int] | str:
    """Return (ranks, bytes of a rank's buffer), or why the kernel does not tell."""
    operation = str(stated.get("Collective name", "")).lower().replace("_", "")
    elements, group, width = stated.get("In msg nelems"), stated.get("Group size"), _width(str(stated.get("dtype", "")))
    whole = all(isinstance(item, int) and not isinstance(item, bool) and item > 0 for item in (elements, group))
    if not operation or not whole or not width or not isinstance(elements, int) or not isinstance(group, int) or group < 2:
        return "does not state its size"
    if not operation.startswith("alltoall"):
        return "is another operation"
    splits = [str(stated.get(key, "[]")).strip("[] ") for key in ("In split size", "Out split size")]
    parts = [text.replace(",", " ").split() for text in splits]
    if any("..." in text for text in splits) or any(len(set(row)) > 1 for row in parts):
        return "has unequal splits"
    return group, elements * width


def _width(dtype: str) -> int:
    name = dtype.rpartition("::")[2].lower()
    return WIDTHS.get(name, int(DTYPE_BYTES.get(name, 0)))


def _device(document: Mapping[str, Any]) -> str:
    devices = document.get("deviceProperties")
    if isinstance(devices, list) and devices and isinstance(devices[0], Mapping):
        return str(devices[0].get("name", ""))
    return ""
