"""Everything that differs between a CPU and a GPU: the device of a rank, its clock, its kernels.

Times of a GPU are taken by CUDA events, because launching returns long before the kernel has run. They are put on the host's clock by one
event that is recorded and waited for at the start of a measurement; that ties the two clocks to about ten microseconds. Differences of
events of one rank are not affected.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from moesim.base.errors import UsageError

DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float8_e4m3fn": getattr(torch, "float8_e4m3fn", None),
}


class Marks(Protocol):
    """A list of instants, read once everything has run."""

    def mark(self) -> None:
        """Note that everything given to the device so far is to be finished at this instant."""

    def seconds(self) -> list[float]:
        """Return the instants on the host's monotonic clock, in s; waits for the device."""


class HostMarks:
    """Instants of a CPU, which has finished what it was told when the call returns."""

    def __init__(self) -> None:
        self.at: list[float] = []

    def mark(self) -> None:
        """Note the time."""
        self.at.append(time.monotonic())

    def seconds(self) -> list[float]:
        """Return the times."""
        return list(self.at)


class CudaMarks:
    """Instants of a CUDA stream."""

    def __init__(self) -> None:
        torch.cuda.synchronize()
        self.zero = torch.cuda.Event(enable_timing=True)
        self.zero.record()
        self.zero.synchronize()
        self.host = time.monotonic()
        self.events: list[Any] = []

    def mark(self) -> None:
        """Put an event into the stream."""
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        self.events.append(event)

    def seconds(self) -> list[float]:
        """Wait for the stream and return when each event passed."""
        torch.cuda.synchronize()
        return [self.host + self.zero.elapsed_time(event) / 1e3 for event in self.events]


@dataclass(frozen=True, slots=True)
class Device:
    """Where a rank computes; ``index`` counts the GPUs of this machine."""

    kind: str
    index: int = 0

    @property
    def place(self) -> Any:
        """The device as PyTorch names it."""
        return torch.device(self.kind, self.index) if self.kind == "cuda" else torch.device("cpu")

    @property
    def on_gpu(self) -> bool:
        """Tell whether kernels run beside the host."""
        return self.kind == "cuda"

    def marks(self) -> Marks:
        """Return a fresh list of instants."""
        return CudaMarks() if self.on_gpu else HostMarks()

    def wait(self) -> None:
        """Wait until everything has run."""
        if self.on_gpu:
            torch.cuda.synchronize()

    def generator(self, seed: int) -> Any:
        """Return a random generator of the CPU: every device is given the same numbers."""
        return torch.Generator().manual_seed(seed % 2**63)

    def local_generator(self, seed: int) -> Any:
        """Return a random generator of the device itself, for numbers that a CPU would take minutes to draw."""
        return torch.Generator(device=self.place).manual_seed(seed % 2**63)

    def flush(self, scratch: Any) -> None:
        """Push everything else out of the caches by overwriting ``scratch``, larger than they are."""
        scratch.add_(1)
        self.wait()

    def cache_bytes(self) -> int:
        """Return a size that exceeds the last cache: twice the L2 of a GPU, 64 MiB on a CPU, where a core shares more with others."""
        if self.on_gpu:
            return 2 * int(getattr(torch.cuda.get_device_properties(self.index), "L2_cache_size", 64 << 20))
        return 64 << 20


def choose_device(kind: str, local_rank: int = 0) -> Device:
    """Return the device of a rank.

    Parameters
    ----------
    kind : str
        ``auto``, ``cpu`` or ``cuda``.
    local_rank : int
        Number of the rank on this machine: the GPU that it takes.

    Raises
    ------
    UsageError
        If a GPU is asked for that is not there.
    """
    there = gpus()
    # Some launchers show every rank one GPU, its own.
    index = 0 if there == 1 and os.environ.get("CUDA_VISIBLE_DEVICES") else local_rank
    if kind == "cuda" and there <= index:
        what = "PyTorch sees no CUDA device" if there == 0 else f"PyTorch sees {there} CUDA devices, but rank {local_rank} needs its own"
        raise UsageError(f"{what}; take fewer ranks, or --device cpu")
    if kind == "cuda" or (kind == "auto" and there > index):
        torch.cuda.set_device(index)
        return Device("cuda", index)
    return Device("cpu")


def kernels_of(device: Device, dtype: str) -> tuple[str, ...]:
    """Return the ways of computing experts that this device offers for a number format, best first.

    Parameters
    ----------
    device : Device
        Where.
    dtype : str
        ``float32``, ``bfloat16``, ``float16`` or ``float8_e4m3fn``.

    Notes
    -----
    PyTorch's documentation of ``torch.nn.functional.grouped_mm`` asks for bfloat16 on CUDA with compute capability 8.0 or more. Its
    row-wise scaled grouped product needs 9.0. On a CPU ``grouped_mm`` is a loop inside PyTorch, and no better than a loop outside.
    """
    if dtype == "float8_e4m3fn":
        grouped = device.on_gpu and hasattr(torch, "_scaled_grouped_mm") and torch.cuda.get_device_capability(device.index) >= (9, 0)
        single = ("scaled_mm_loop",) if hasattr(torch, "_scaled_mm") else ()
        return (("scaled_grouped_mm",) if grouped else ()) + single
    there = hasattr(torch, "_grouped_mm")
    if device.on_gpu:
        good = there and dtype == "bfloat16" and torch.cuda.get_device_capability(device.index) >= (8, 0)
        return (("grouped_mm",) if good else ()) + ("loop", "bmm")
    return ("loop", "bmm") + (("grouped_mm",) if there else ())


def choose_kernel(kernel: str, device: Device, dtype: str) -> str:
    """Return the kernel to use for experts.

    Raises
    ------
    UsageError
        If the device does not offer it for that number format.
    """
    offered = kernels_of(device, dtype)
    if not offered:
        raise UsageError(f"this PyTorch cannot multiply {dtype} on {device.kind}")
    if kernel == "auto":
        return offered[0]
    if kernel not in offered:
        raise UsageError(f"kernel {kernel!r} does not work with {dtype} on {device.kind} here (what does: {', '.join(offered)})")
    return kernel


def per_call(call: Callable[[], Any], device: Device, iterations: int) -> float:
    """Return the time of one of ``iterations`` calls in a row, in s."""
    marks = device.marks()
    marks.mark()
    for _ in range(iterations):
        call()
    marks.mark()
    begun, ended = marks.seconds()
    return (ended - begun) / iterations


def as_graph(call: Callable[[], Any], device: Device) -> tuple[bool, Callable[[], Any]]:
    """Return True and a function that replays a CUDA graph of ``call``, or False and ``call`` where it cannot be captured, as on a CPU."""
    if not device.on_gpu:
        return False, call
    try:
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):  # capturing wants a stream on which everything has run before
            for _ in range(3):
                call()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            call()
    except RuntimeError:  # something in it waits for the host
        torch.cuda.synchronize()
        return False, call
    return True, graph.replay


def gpus() -> int:
    """Return how many CUDA devices PyTorch can use."""
    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def device_for(wanted: str, ranks: int, *, under_torchrun: bool = False) -> str:
    """Return ``cpu`` or ``cuda`` for ranks of this machine.

    Parameters
    ----------
    wanted : str
        ``auto``, ``cpu`` or ``cuda``.
    ranks : int
        Processes, each with a GPU of its own if they use any.
    under_torchrun : bool
        The ranks may be on other machines; each then looks after its own GPU.

    Raises
    ------
    UsageError
        If there are fewer GPUs than ranks.
    """
    there = gpus()
    if wanted == "cpu" or (wanted == "auto" and there == 0):
        return "cpu"
    if there == 0:
        raise UsageError(
            "PyTorch sees no CUDA device on this machine: NCCL and --device cuda need one; leave them out, or say --device cpu"
        )
    if not under_torchrun and ranks > there:
        raise UsageError(f"{ranks} ranks need {ranks} GPUs, and this machine has {there}: --ranks {there}, or --device cpu")
    return "cuda"


def default_ranks(wanted: str) -> int:
    """Return one rank per GPU, or one per core that this process may use, but no more than 4 and no fewer than 2."""
    there = 0 if wanted == "cpu" else gpus()
    if there or wanted == "cuda":
        return max(there, 1)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(max(cores, 2), 4)
