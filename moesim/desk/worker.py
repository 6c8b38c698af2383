"""What a worker process does before its first cell. Importing this module loads nothing heavy, so that the limits come first."""

from __future__ import annotations

import gc
import os
import signal

ONE_THREAD = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "NUMBA_NUM_THREADS",
)
"""Read by the numerical libraries when they load. The workers keep all cores busy; more threads would only get in their way."""


def ready(memory: int | None = None) -> None:
    """Limit the threads and the memory of this process, leave Ctrl-C to the process that started it, and load the simulator.

    Parameters
    ----------
    memory : int, optional
        Bytes that this process may hold; a run that needs more ends with a MemoryError, and the process lives on.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for name in ONE_THREAD:
        os.environ[name] = "1"
    tune_garbage()
    from moesim.engine.ready import get_ready

    get_ready()
    if memory is not None:
        limit_memory(memory)


def tune_garbage() -> None:
    """Look for garbage less often: nearly everything that a run makes lives to its end, and looking for it took a tenth of a run."""
    gc.set_threshold(100_000, 50, 50)


def limit_memory(memory: int) -> bool:
    """Limit what this process may allocate; return whether the system can do so.

    Parameters
    ----------
    memory : int
        Bytes of private data, as Linux counts them for ``RLIMIT_DATA``.
    """
    try:
        import resource
    except ImportError:  # Windows
        return False
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    least = memory if hard == resource.RLIM_INFINITY else min(memory, hard)
    try:
        resource.setrlimit(resource.RLIMIT_DATA, (least, hard))
    except (ValueError, OSError):
        return False
    return True


def cores() -> int:
    """Return how many cores this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # only Linux has it
        return os.cpu_count() or 1
