"""The two bandwidths that nccl-tests prints."""

from __future__ import annotations

import math
from collections.abc import Callable

from moesim.base.errors import UsageError, did_you_mean

FACTORS: dict[str, Callable[[int], float]] = {
    "all_reduce": lambda ranks: 2 * (ranks - 1) / ranks,
    "all_gather": lambda ranks: (ranks - 1) / ranks,
    "reduce_scatter": lambda ranks: (ranks - 1) / ranks,
    "all_to_all": lambda ranks: (ranks - 1) / ranks,
    "broadcast": lambda ranks: 1.0,  # noqa: ARG005 - the root sends everything, whatever the group
    "reduce": lambda ranks: 1.0,  # noqa: ARG005
    "send": lambda ranks: 1.0,  # noqa: ARG005
}
"""What each GPU must send or receive at least, as a share of S (doc/PERFORMANCE.md of NVIDIA/nccl-tests; ``send`` from src/sendrecv.cu)."""


def algorithm_bandwidth(size: float, seconds: float) -> float:
    """Return ``algbw``, S / t, in B/s.

    Parameters
    ----------
    size : float
        S, bytes of the whole vector. nccl-tests prints S / n per rank times n for all-gather, reduce-scatter and all-to-all.
    seconds : float
        What the operation took, more than 0.

    Raises
    ------
    UsageError
        If a number is out of range.
    """
    if not (math.isfinite(seconds) and seconds > 0):
        raise UsageError(f"an operation took {seconds} s: give a time above 0")
    if not (math.isfinite(size) and size >= 0):
        raise UsageError(f"size is {size} B: give a finite number of bytes, 0 or more")
    return size / seconds


def bus_bandwidth(operation: str, size: float, seconds: float, ranks: int) -> float:
    """Return ``busbw`` in B/s: the speed of the bottleneck, which can be compared with the bandwidth of a link whatever the group.

    ``algbw`` times 2 (n - 1) / n for all-reduce, (n - 1) / n for all-gather, reduce-scatter and all-to-all, and 1 for broadcast, reduce
    and point-to-point (doc/PERFORMANCE.md of NVIDIA/nccl-tests).

    Parameters
    ----------
    operation : str
        One of :data:`~moesim.facts.collective.OPERATIONS`.
    size : float
        S, bytes of the whole vector.
    seconds : float
        What the operation took, more than 0.
    ranks : int
        n, at least 1.

    Raises
    ------
    UsageError
        If the operation is unknown or a number is out of range.

    Examples
    --------
    >>> bus_bandwidth("all_reduce", 8e9, 0.04, 8) / 1e9
    350.0
    """
    if operation not in FACTORS:
        raise UsageError(f"unknown operation {operation!r}{did_you_mean(operation, FACTORS)}")
    if ranks < 1:
        raise UsageError(f"a group has at least one rank, not {ranks}")
    return algorithm_bandwidth(size, seconds) * FACTORS[operation](ranks)
