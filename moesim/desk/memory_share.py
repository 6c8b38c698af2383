"""How much memory a worker process may hold, so that all of them together leave the machine some."""

from __future__ import annotations

import os
from pathlib import Path

SHARE = 0.8
"""Of the machine's memory, for all workers together: the rest is for the system and the process that hands out work."""

LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
"""Where Linux says what a container may hold (cgroups v2 and v1)."""


def memory_share(jobs: int) -> int | None:
    """Return bytes per worker: its part of :data:`SHARE` of the machine's memory, or of the container's; None where that is not known."""
    whole = memory_of_machine()
    return None if whole is None else int(SHARE * whole / jobs)


def memory_of_machine() -> int | None:
    """Return the bytes of memory that this machine has, or that its container may hold."""
    try:
        whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # Windows
        return None
    for path in LIMITS:
        try:
            text = Path(path).read_text().strip()
        except OSError:
            continue
        if text.isdigit() and int(text) > 0:
            whole = min(whole, int(text))
    return whole if whole > 0 else None
