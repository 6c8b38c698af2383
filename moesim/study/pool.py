"""Play many cells: here, in worker processes, or on a Dask cluster; all through the interface of :mod:`concurrent.futures`."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Executor, Future, wait
from contextlib import contextmanager

from moesim.base.errors import SimulationError, UsageError, did_you_mean
from moesim.study.cell import Answer, Cell, failure
from moesim.study.workers import Workers

Play = Callable[[Cell], Answer]
Take = Callable[[Answer], object]
Ready = Callable[[], object]

INLINE = "inline"
PROCESSES = "processes"
DASK = "dask"
AHEAD = 2
"""Cells in flight per worker: one at work and one that waits for it, so that no worker waits for this process."""

DEATHS = 2
"""A cell with which a worker process died this often has failed."""


def play_all(
    cells: Iterable[Cell],
    play: Play,
    *,
    executor: str = PROCESSES,
    on_answer: Take | None = None,
    jobs: int | None = None,
    ready: Ready | None = None,
    memory: int | None = None,
) -> list[Answer]:
    """Play every cell and return the answers in the order of the cells.

    Cells with the same digest are played once. How many workers there are, and which of them ends first, changes nothing in the answers.

    Parameters
    ----------
    cells : iterable of Cell
        What to play; taken one by one while others are at work, so making them may take its time.
    play : callable
        Plays one cell; a function of a module, so that another process can import it.
    executor : str
        ``inline``: one after the other in this process. ``processes``: in ``jobs`` processes. ``dask://host:port``: on the cluster of that
        scheduler. ``dask``: on a Dask cluster of ``jobs`` processes that is started here.
    on_answer : callable, optional
        Called in this process with each answer as soon as it is there, failed ones too, once per digest. What it raises ends the study.
    jobs : int, optional
        Worker processes; as many as there are cores if left out.
    ready : callable, optional
        What a worker process that is started here does before its first cell; a function of a module, or a partial of one.
    memory : int, optional
        Bytes of one worker of a Dask cluster that is started here; those of other processes are a matter of ``ready``.

    Returns
    -------
    list of Answer
        One per cell. A cell that failed has an answer that says so. A cell with which a worker process died twice has failed.

    Raises
    ------
    UsageError
        If there is no such executor, its scheduler does not answer, or ``jobs`` is no positive number.
    SimulationError
        If no worker process lives long enough to play anything, or a cluster is lost.
    KeyboardInterrupt
        When interrupted: workers are ended, and ``on_answer`` has had every answer that was there.
    """
    jobs = multiprocessing.cpu_count() if jobs is None else jobs
    if jobs < 1:
        raise UsageError(f"jobs is {jobs}; there must be at least 1")
    asked: list[Cell] = []
    answers: dict[str, Answer] = {}

    def take(answer: Answer) -> None:
        answers[answer.digest] = answer
        if on_answer is not None:
            on_answer(answer)

    queue = Queue(_first_of_each(cells, asked))
    if executor == INLINE:
        while (cell := queue.next()) is not None:
            take(play(cell))
    elif executor == PROCESSES:
        _in_processes(queue, play, take, jobs, ready)
    elif executor == DASK or executor.startswith(f"{DASK}://"):
        from moesim.study.dask_cluster import on_dask

        on_dask(queue, play, take, address=executor.removeprefix(DASK).removeprefix("://"), jobs=jobs, memory=memory)
    else:
        known = (INLINE, PROCESSES, DASK, f"{DASK}://host:port")
        raise UsageError(f"there is no executor {executor!r}{did_you_mean(executor, known)}")
    return [answers[cell.digest].as_of(cell) for cell in asked]


def _first_of_each(cells: Iterable[Cell], asked: list[Cell]) -> Iterator[Cell]:
    """Yield the first cell of each digest; note all of them."""
    seen: set[str] = set()
    for cell in cells:
        asked.append(cell)
        if cell.digest not in seen:
            seen.add(cell.digest)
            yield cell


class Queue:
    """Cells that are still to be handed out; one that could not be handed out can be put back."""

    def __init__(self, cells: Iterable[Cell]) -> None:
        self._cells = iter(cells)
        self._back: list[Cell] = []

    def next(self) -> Cell | None:
        """Return a cell, or None when there are no more."""
        return self._back.pop() if self._back else next(self._cells, None)

    def put_back(self, cell: Cell) -> None:
        """Take a cell back: it comes next."""
        self._back.append(cell)


def drain(
    executor: Executor,
    queue: Queue,
    play: Play,
    *,
    window: int,
    patience: float | None = None,
    waiting: Ready | None = None,
    cancel: bool = False,
) -> Iterator[tuple[Cell, Future[Answer]]]:
    """Hand cells out, ``window`` at a time, and yield each with its future as they end.

    ``waiting`` is called whenever nothing has ended for ``patience`` seconds. An executor that is broken is given nothing more: the
    queue keeps the rest. ``cancel`` says whether what is in flight when this ends early shall be cancelled; worker processes of this
    machine are ended instead (:meth:`moesim.study.workers.Workers.end_now`).
    """
    flying: dict[Future[Answer], Cell] = {}
    more = True
    try:
        while True:
            while more and len(flying) < window:
                cell = queue.next()
                if cell is None:
                    more = False
                    break
                try:
                    flying[executor.submit(play, cell)] = cell
                except BrokenExecutor:
                    queue.put_back(cell)
                    more = False
            if not flying:
                return
            ended, _ = wait(flying, timeout=patience, return_when=FIRST_COMPLETED)
            if not ended and waiting is not None:
                waiting()
            for future in ended:
                yield flying.pop(future), future
    finally:
        if cancel:
            for future in flying:
                future.cancel()


def _in_processes(queue: Queue, play: Play, take: Take, jobs: int, ready: Ready | None) -> None:
    """Play cells in processes. When one dies, every cell that was in flight is played alone, so that the culprit is known."""
    lived = False

    def note(answer: Answer) -> None:
        nonlocal lived
        lived = True
        take(answer)

    while suspects := _play_until_a_death(queue, play, note, jobs, ready):
        dead = [cell for cell in suspects if _dies_alone(cell, play, note, ready)]
        if dead and not lived:
            raise SimulationError("no worker process lives long enough to play a cell: out of memory, or killed; try fewer jobs")
        for cell in dead:
            take(failure(cell, f"its worker process died {DEATHS} times: out of memory, or killed; try fewer jobs"))


def _dies_alone(cell: Cell, play: Play, take: Take, ready: Ready | None) -> bool:
    """Play a cell, with which a worker may have died, in a process of its own as often as is left; tell whether that died each time."""
    return all(_play_until_a_death(Queue([cell]), play, take, 1, ready) for _ in range(DEATHS - 1))


def _play_until_a_death(queue: Queue, play: Play, take: Take, jobs: int, ready: Ready | None) -> list[Cell]:
    """Play cells in a new pool, and return those that were in flight when a worker died; none if all went well."""
    suspects: list[Cell] = []
    with _pool(jobs, ready) as pool:
        for cell, future in drain(pool, queue, play, window=AHEAD * jobs):
            error = future.exception()
            if isinstance(error, BrokenExecutor):
                suspects.append(cell)
            elif error is not None:  # such as an answer that cannot be sent
                take(failure(cell, f"{type(error).__name__}: {error}"))
            else:
                take(future.result())
    return suspects


@contextmanager
def _pool(jobs: int, ready: Ready | None) -> Iterator[Workers]:
    """Start worker processes, and end them at once if this one is interrupted."""
    pool = Workers(jobs, ready)
    try:
        yield pool
    except BaseException:
        pool.end_now()
        raise
    pool.shutdown()
