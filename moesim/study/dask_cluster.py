"""Play cells on a Dask cluster. It needs the package ``distributed``; everything else of a study does without."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from moesim.base.errors import SimulationError, UsageError
from moesim.study.cell import Answer, Cell, failure
from moesim.study.pool import AHEAD, Play, Queue, Take, drain

PATIENCE = 5.0
"""Seconds to wait for a scheduler to answer, and then for its first worker."""

ROUNDS_WITHOUT_WORKERS = 12
"""How often in a row nothing may end for ``PATIENCE`` seconds while the cluster has no worker at all: a minute, then the study stops."""

LEAST_IN_FLIGHT = 64
"""Cells that are handed to the cluster at least, so that workers that join later find something to do."""


def on_dask(queue: Queue, play: Play, take: Take, *, address: str, jobs: int, memory: int | None) -> None:
    """Play cells on a cluster; a cell whose worker dies goes to another one, as Dask sees to it.

    Parameters
    ----------
    queue, play, take
        What to play, with what, and who gets each answer.
    address : str
        ``host:port`` of a scheduler; empty for a cluster of ``jobs`` processes that is started here and ended with the study.
    jobs : int
        Processes, of a cluster that is started here.
    memory : int, optional
        Bytes of each of these.

    Raises
    ------
    UsageError
        If ``distributed`` is not installed, the scheduler does not answer or has no worker.
    SimulationError
        If the scheduler, or every worker, is lost in the middle.
    """
    with _client(address, jobs, memory) as client:
        _wait_for_a_worker(client, address)
        deserted = 0

        def waiting() -> None:
            nonlocal deserted
            deserted = 0 if _threads(client) else deserted + 1
            if deserted > ROUNDS_WITHOUT_WORKERS:
                raise SimulationError(f"{_cluster(address)} has no workers left; start some, then run the same command to go on")

        window = max(LEAST_IN_FLIGHT, AHEAD * _threads(client))
        executor = client.get_executor(pure=False, retries=0)
        for cell, future in drain(executor, queue, play, window=window, patience=PATIENCE, waiting=waiting, cancel=True):
            deserted = 0
            take(_answer_of(cell, future, address))


def _answer_of(cell: Cell, future: Any, address: str) -> Answer:
    from concurrent.futures import CancelledError

    from distributed import KilledWorker

    try:
        answer = future.result()
    except KilledWorker:
        return failure(cell, "every worker process that took it died: out of memory, or killed")
    except CancelledError:
        raise SimulationError(f"{_cluster(address)} was lost; start it again, then run the same command to go on") from None
    except Exception as error:  # noqa: BLE001 - a worker that cannot run the cell at all, as one without moesim
        return failure(cell, f"{type(error).__name__}: {error}")
    if not isinstance(answer, Answer):
        return failure(cell, f"a worker answered with {type(answer).__name__}: it runs another version of moesim")
    return answer


@contextmanager
def _client(address: str, jobs: int, memory: int | None) -> Iterator[Any]:
    """Give a client of a cluster; end it, and a cluster of our own, whatever happened."""
    try:
        import distributed
    except ImportError:
        raise UsageError("the executor 'dask' needs the package distributed: pip install 'moesim[dask]'") from None
    untyped: Any = distributed
    if address and "://" not in address:
        host, _, port = address.rpartition(":")
        if not host or not port.isdigit() or not 0 < int(port) < 65536:
            raise UsageError(f"dask://{address} is no address of a scheduler; write dask://host:port, such as dask://127.0.0.1:8786")
    if not address:
        sizes = {"n_workers": jobs, "threads_per_worker": 1, "memory_limit": memory or "auto"}
        with untyped.LocalCluster(**sizes, dashboard_address=None, silence_logs=50) as cluster, untyped.Client(cluster) as client:
            yield client
        return
    try:
        client = untyped.Client(f"tcp://{address}" if "://" not in address else address, timeout=PATIENCE, name="moesim")
    except (OSError, TimeoutError) as error:
        raise UsageError(f"{_cluster(address)} does not answer ({_first_line(error)}); is 'dask scheduler' running there?") from None
    except (ValueError, TypeError) as error:
        raise UsageError(f"dask://{address} is no address of a scheduler: {_first_line(error)}; write dask://host:port") from None
    try:
        yield client
    finally:
        with suppress(Exception):
            client.close(timeout=PATIENCE)


def _wait_for_a_worker(client: Any, address: str) -> None:
    try:
        client.wait_for_workers(1, timeout=PATIENCE)
    except TimeoutError:
        raise UsageError(f"{_cluster(address)} has no workers; start some with 'dask worker {address or 'host:port'}'") from None


def _threads(client: Any) -> int:
    return sum(client.nthreads().values())


def _cluster(address: str) -> str:
    return f"the Dask scheduler at {address}" if address else "the Dask cluster of this machine"


def _first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0].strip(" .")
