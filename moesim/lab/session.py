"""One rank among its peers: the process group, the common clock, the common start."""

from __future__ import annotations

import hashlib
import os
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from moesim.base.errors import UsageError
from moesim.lab.device import Device, choose_device
from moesim.lab.job import Job
from moesim.lab.rank import place_of

PINGS = 64
LEAST_LEAD, MOST_LEAD = 2e-3, 0.25
"""Bounds of the time between agreeing on a start and starting, in s."""

SPIN = 2e-4
"""A rank sleeps until so long before the start, then looks at the clock without pause: a sleeping process wakes late."""


def machine() -> str:
    """Return a name of this boot of this machine that tells nothing else: processes of one machine share its monotonic clock."""
    try:
        text = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii")
    except OSError:
        import uuid

        text = f"{uuid.getnode()}"
    return hashlib.sha256(text.encode()).hexdigest()[:12]


class Session:
    """A rank that has joined its peers.

    Attributes
    ----------
    rank, world : int
        Who this is, of how many.
    device : Device
        Where it computes.
    backend : str
        ``gloo`` or ``nccl``: what moves tensors of the device.
    store : torch.distributed.Store
        What ranks can leave texts in for each other.
    offset, offset_error : float
        What to add to this machine's clock to get that of rank 0, and how wrong that may be, in s; 0 on the machine of rank 0.
    lead : float
        Time between agreeing on a start and starting, in s.
    """

    def __init__(self, job: Job) -> None:
        self.rank, self.world = place_of(os.environ)
        job.check(self.world)
        local = int(os.environ.get("LOCAL_RANK", self.rank))
        self.device = choose_device(job.device, local)
        self.backend = _backend(job.backend, self.device)
        timeout = timedelta(seconds=job.timeout_s)
        self.store, _, _ = next(dist.rendezvous("env://", timeout=timeout))
        # One group for both: tensors of the CPU, such as the common start, always travel by gloo.
        both = "gloo" if self.backend == "gloo" else "cpu:gloo,cuda:nccl"
        store = dist.PrefixStore("moesim/group", self.store)
        dist.init_process_group(both, store=store, rank=self.rank, world_size=self.world, timeout=timeout)
        self._same_job(job)
        self.meet()  # the first exchange makes every connection
        if self.backend == "nccl":
            dist.all_reduce(torch.zeros(1, device=self.device.place))
            self.device.wait()
        self.offset, self.offset_error = self._clock()
        self.lead = self._lead()

    def _same_job(self, job: Job) -> None:
        mine = torch.tensor(list(bytes.fromhex(job.digest())), dtype=torch.uint8)
        first = mine.clone()
        dist.broadcast(first, 0)
        same = torch.tensor([int(torch.equal(mine, first))])
        dist.all_reduce(same, op=dist.ReduceOp.MIN)
        if not int(same):
            raise UsageError("the ranks were given different jobs: start all of them with the same arguments and versions")

    def meet(self) -> None:
        """Wait until every rank is here."""
        if self.world > 1:
            dist.all_reduce(torch.zeros(1))

    def _clock(self) -> tuple[float, float]:
        """Measure the clock of rank 0 from here: the quickest of many pings says most, as in NTP."""
        names = torch.zeros(self.world, 12, dtype=torch.uint8)
        names[self.rank] = torch.tensor(list(machine().encode()), dtype=torch.uint8)
        if self.world > 1:
            dist.all_reduce(names)
        offset, error = 0.0, 0.0
        for peer in range(1, self.world):
            if torch.equal(names[peer], names[0]):
                continue
            now = torch.zeros(1, dtype=torch.float64)
            best = float("inf")
            for _ in range(PINGS):
                if self.rank == peer:
                    before = time.monotonic()
                    dist.send(now, 0)
                    dist.recv(now, 0)
                    after = time.monotonic()
                    if after - before < best:
                        best, offset, error = after - before, float(now) - (before + after) / 2, (after - before) / 2
                elif self.rank == 0:
                    dist.recv(now, peer)
                    now[0] = time.monotonic()
                    dist.send(now, peer)
        return offset, error

    def _lead(self) -> float:
        """Return three times what the agreement itself takes at worst."""
        if self.world == 1:
            return 0.0
        longest = 0.0
        for _ in range(6):
            begun = time.monotonic()
            self.meet()
            dist.broadcast(torch.zeros(1, dtype=torch.float64), 0)
            longest = max(longest, time.monotonic() - begun)
        agreed = torch.tensor([longest], dtype=torch.float64)
        dist.all_reduce(agreed, op=dist.ReduceOp.MAX)
        return min(max(3.0 * float(agreed), LEAST_LEAD), MOST_LEAD)

    def agree(self) -> float:
        """Let all ranks agree on the next start, and return it on this machine's monotonic clock, in s."""
        self.device.wait()
        if self.world == 1:
            return time.monotonic()
        self.meet()
        start = torch.tensor([time.monotonic() + self.lead], dtype=torch.float64)
        dist.broadcast(start, 0)
        return float(start) - self.offset

    def gather(self, numbers: Any) -> Any:
        """Return int64[world, n] from int64[n] of every rank, on the rank's own device."""
        if self.world == 1:
            return numbers.unsqueeze(0)
        out = numbers.new_empty(self.world * numbers.numel())
        # PyTorch 2.13 gave the call a new name and will drop the old one.
        call = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
        call(out, numbers.contiguous())
        return out.view(self.world, -1)

    def close(self) -> None:
        """Leave the group."""
        if dist.is_initialized():
            dist.destroy_process_group()


def wait_until(instant: float) -> float:
    """Wait for an instant of the monotonic clock; return how late it was when that was noticed, in s."""
    while True:
        left = instant - time.monotonic()
        if left <= 0:
            return -left
        if left > SPIN:
            time.sleep(left - SPIN)


def _backend(wanted: str, device: Device) -> str:
    if wanted == "nccl" and not device.on_gpu:
        raise UsageError("NCCL moves tensors of GPUs only, and this rank computes on the CPU; leave out --backend nccl, or give it a GPU")
    if wanted == "nccl" or (wanted == "auto" and device.on_gpu):
        if not dist.is_nccl_available():
            raise UsageError("this PyTorch was built without NCCL; --device cpu measures with gloo")
        return "nccl"
    if device.on_gpu:
        raise UsageError("gloo is measured with tensors of the CPU: add --device cpu to --backend gloo")
    return "gloo"
