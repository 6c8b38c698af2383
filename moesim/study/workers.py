"""Worker processes that Ctrl-C does not reach, and that can be ended at once without a trace."""

from __future__ import annotations

import multiprocessing
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from typing import Any


class Workers(ProcessPoolExecutor):
    """A pool of processes for one study.

    Parameters
    ----------
    jobs : int
        Processes.
    ready : callable, optional
        What each does before its first cell.
    """

    def __init__(self, jobs: int, ready: Callable[[], object] | None = None) -> None:
        # Spawned and not forked: this process may have threads by now, and a forked one would inherit their locks.
        super().__init__(max_workers=jobs, mp_context=multiprocessing.get_context("spawn"), initializer=ready)

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Hand something out; worker processes that are started for it never see Ctrl-C."""
        with undisturbed():
            return super().submit(fn, *args, **kwargs)

    def end_now(self) -> None:
        """Kill the processes, whatever they are doing. Futures that are left get the error of a broken pool.

        No future is cancelled here or by callers. The thread that looks after the processes hands that error to every future that is left,
        and up to Python 3.12 it dies of one that is cancelled already, with a traceback on the terminal.
        """
        # There is no public way to end processes before Python 3.14.
        mine: Any = self
        workers = list((mine._processes or {}).values())  # noqa: SLF001
        # Nobody is left at the other ends of these pipes: a thread of this process that reads half an answer there, or writes to a full
        # pipe, would wait for ever and keep the program from ending.
        ends = [getattr(mine._call_queue, "_reader", None), getattr(mine._result_queue, "_writer", None)]  # noqa: SLF001
        for worker in workers:
            worker.kill()
        for end in ends:
            if end is not None:
                end.close()
        self.shutdown(wait=False)


@contextmanager
def undisturbed() -> Iterator[None]:
    """Hold Ctrl-C back for a moment. Processes that are started meanwhile inherit that, and are never interrupted.

    A terminal sends Ctrl-C to all processes of a command. A worker that is still loading, and cannot have said yet that it leaves
    interruptions to the process that started it, would die of it with a traceback.
    """
    hold = getattr(signal, "pthread_sigmask", None)
    if hold is None:  # Windows
        yield
        return
    # The mask is what processes inherit. Another thread of this one may still take the signal, and Python would then run the handler here,
    # in the middle of starting a process: so it is only noted, and sent again afterwards.
    here = threading.current_thread() is threading.main_thread()
    arrived: list[int] = []
    usual = signal.signal(signal.SIGINT, lambda number, _: arrived.append(number)) if here else None
    before = hold(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        hold(signal.SIG_SETMASK, before)  # what was held back arrives here
        if usual is not None:
            signal.signal(signal.SIGINT, usual)
        if arrived:
            signal.raise_signal(signal.SIGINT)
