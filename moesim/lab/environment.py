"""What a measurement ran on: device, versions, clocks, load. Nothing that names a person, a host or an address."""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch

import moesim
from moesim.lab.device import Device

TELLING = (
    "OMP_",
    "MKL_",
    "NCCL_",
    "TORCH_NCCL_",
    "GLOO_SOCKET_IFNAME",
    "CUDA_VISIBLE_DEVICES",
    "CUDA_DEVICE_",
    "KMP_",
    "PYTORCH_CUDA_ALLOC_CONF",
)
"""Variables whose setting changes times."""

SMI = ("clocks.sm", "clocks.mem", "clocks.max.sm", "clocks.max.mem", "power.limit", "temperature.gpu", "persistence_mode", "driver_version")


def describe(device: Device) -> dict[str, Any]:
    """Return the environment of this process as plain data.

    Parameters
    ----------
    device : Device
        Where it computes.

    Returns
    -------
    dict
        ``moesim``, ``python``, ``torch``, ``system``, ``processor``, ``cores``, ``load`` (1, 5 and 15 minutes), ``governor``, ``clock_hz``,
        ``threads``, ``variables``; on a GPU also ``gpu``. What cannot be found out is None.
    """
    found: dict[str, Any] = {
        "moesim": moesim.__version__,
        "python": platform.python_version(),
        "torch": {
            "version": torch.__version__,
            "cuda": torch.version.cuda,
            "blas_threads": torch.get_num_threads(),
            "deterministic": torch.are_deterministic_algorithms_enabled(),
            "float32_matmul_precision": torch.get_float32_matmul_precision(),
            "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        },
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "processor": _processor(),
        "cores": os.cpu_count(),
        "usable_cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
        "quota": _first_line("/sys/fs/cgroup/cpu.max"),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else None,
        "load": [round(item, 2) for item in os.getloadavg()] if hasattr(os, "getloadavg") else None,
        "governor": _first_line("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        "clock_hz": _clock(),
        "threads": torch.get_num_threads(),
        "niceness": os.nice(0) if hasattr(os, "nice") else None,
        "variables": {name: value for name, value in sorted(os.environ.items()) if name.startswith(TELLING)},
    }
    if device.on_gpu:
        found["gpu"] = _gpu(device)
    return found


def _first_line(path: str) -> str | None:
    try:
        return Path(path).read_text(encoding="utf-8").split("\n", maxsplit=1)[0].strip()
    except (OSError, UnicodeDecodeError):
        return None


def _of_cpuinfo(key: str) -> str | None:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    lines = (line.partition(":") for line in text.splitlines())
    return next((value.strip() for name, _, value in lines if name.strip() == key), None)


def _processor() -> str | None:
    return _of_cpuinfo("model name") or platform.processor() or None


def _clock() -> float | None:
    text = _of_cpuinfo("cpu MHz")
    try:
        return None if text is None else float(text) * 1e6
    except ValueError:
        return None


def _gpu(device: Device) -> dict[str, Any]:
    properties = torch.cuda.get_device_properties(device.index)
    nccl = torch.cuda.nccl.version() if torch.distributed.is_nccl_available() else None
    found: dict[str, Any] = {
        "name": properties.name,
        "capability": list(torch.cuda.get_device_capability(device.index)),
        "memory_bytes": properties.total_memory,
        "sms": properties.multi_processor_count,
        "gpus": torch.cuda.device_count(),
        "nccl": ".".join(map(str, nccl)) if isinstance(nccl, tuple) else nccl,
    }
    try:
        done = subprocess.run(  # noqa: S603 - the arguments are our own
            ["nvidia-smi", f"--id={_smi_id(properties, device.index)}",  # noqa: S607 - where it is differs
             f"--query-gpu={','.join(SMI)}", "--format=csv,noheader"],
            capture_output=True, text=True, timeout=10, check=True,
        )  # fmt: skip
        found |= {name.replace(".", "_"): value.strip() for name, value in zip(SMI, done.stdout.split(","), strict=False)}
    except (OSError, subprocess.SubprocessError):
        found["clocks_sm"] = None  # no nvidia-smi: the clocks stay unknown
    return found


def _smi_id(properties: Any, index: int) -> str:
    """Return the GPU as nvidia-smi names it: by its UUID, with the prefix that PyTorch leaves out; both may count GPUs differently."""
    uuid = str(getattr(properties, "uuid", ""))
    if not uuid:
        return str(index)
    return uuid if uuid.startswith(("GPU-", "MIG-")) else f"GPU-{uuid}"
