"""Seconds of the processor, and ratios of two of them taken in turns in one run: so what else the machine does disturbs little."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any


def seconds(call: Callable[[], Any]) -> float:
    began = time.process_time()
    call()
    return time.process_time() - began


def median(call: Callable[[], Any], rounds: int) -> float:
    """Return the median seconds of a call, after one that does not count."""
    call()
    return statistics.median(seconds(call) for _ in range(rounds))


def ratio(slow: Callable[[], float], fast: Callable[[], float], rounds: int) -> tuple[float, float, float]:
    """Return median, least and greatest of slow / fast over the rounds; both return their own seconds, ``fast`` is called once before."""
    fast()
    found = sorted(slow() / fast() for _ in range(rounds))
    return statistics.median(found), found[0], found[-1]
