"""A second process for desk work: it reads the scenario while this one loads the engine, then loads matplotlib and draws the page.

Each of these takes longer than many a simulation. Wherever the press cannot be had, or fails, this process does the same work itself.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING

from moesim.base.errors import MoesimError

if TYPE_CHECKING:
    from moesim.desk.result_files import Parcel
    from moesim.facts.record import Result
    from moesim.facts.scenario import Scenario


class Press:
    """Starts at once; :meth:`scenario` gives what it read, :meth:`draw` the page of a parcel. Close it, whatever happened.

    Parameters
    ----------
    read : callable, optional
        Reads the scenario; the process does it first.
    report : bool
        Whether a page will be asked for.
    """

    def __init__(self, read: Callable[[], Scenario] | None = None, *, report: bool = True) -> None:
        self._read = read
        self._report = report
        self._pipe: Connection | None = None
        self._begun: Result | None = None
        if _worth_it():
            context = multiprocessing.get_context("fork")
            self._pipe, theirs = context.Pipe()
            self._process = context.Process(target=_work, args=(theirs, self._pipe, read, report))  # no daemon: it has a child
            self._process.start()
            theirs.close()

    @property
    def reads(self) -> bool:
        """Whether the scenario is being read by the other process, so that this one has time for something else."""
        return self._pipe is not None and self._read is not None

    def scenario(self) -> Scenario:
        """Return what ``read`` returns, or raise what it raises."""
        if self._read is None:
            raise ValueError("this press was given nothing to read")
        if self._pipe is not None:
            try:
                answer = self._pipe.recv()
            except Exception:  # noqa: BLE001 - it died, or it sends a plug-in whose file this process has not run
                answer = None
            if not self._report:
                self.close()
            if isinstance(answer, MoesimError):
                raise answer
            if answer is not None:
                found: Scenario = answer
                return found
        return self._read()

    def begin(self, result: Result) -> None:
        """Hand the result over, so that its figures are drawn while this process packs, prints and writes."""
        if self._pipe is not None and self._begun is not result:
            try:
                self._pipe.send(result)
                self._begun = result
            except Exception:  # noqa: BLE001 - sending runs code of plug-ins, which may raise anything
                self.close()  # the process died, or a plug-in of the scenario cannot be sent: the page is drawn here

    def draw(self, parcel: Parcel) -> bytes:
        """Return the page."""
        self.begin(parcel.result)
        if self._pipe is not None:
            try:
                self._pipe.send((parcel.summary, parcel.scenario_text))
                return self._pipe.recv_bytes()
            except (OSError, EOFError):
                self.close()  # it failed: draw here, and fail here if it must fail
        from moesim.desk.report.page import draw

        return draw(parcel)

    def close(self) -> None:
        """End the process, whatever it is doing."""
        if self._pipe is not None:
            self._pipe.close()
            self._process.kill()
            self._process.join()
            self._pipe = None


def _worth_it() -> bool:
    """Tell whether a second process helps.

    A forked process has all modules of this one; a spawned one would load them again. With one core there is nothing to gain, and where
    matplotlib is loaded already there is nothing to wait for.
    """
    return sys.platform == "linux" and len(os.sched_getaffinity(0)) > 1 and "matplotlib" not in sys.modules


def _work(pipe: Connection, other_end: Connection, read: Callable[[], Scenario] | None, report: bool) -> None:
    """Read, load what drawing needs, then draw one parcel; an error ends the process, and the other one does the work."""
    other_end.close()  # inherited; while it is open here, this process would never learn that the other one is gone
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches both, and the other one ends this one
    sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115 - the process that asked prints, and reports what goes wrong
    if read is not None:
        _answer(pipe, read)
    if not report:
        return
    from moesim.desk.report.figures.in_two import draw_in_two
    from moesim.desk.report.page import get_ready, page

    get_ready()
    try:
        result = pipe.recv()
        drawings = draw_in_two(result)
        summary, scenario_text = pipe.recv()
    except EOFError:
        return
    pipe.send_bytes(page(result, summary=summary, scenario_text=scenario_text, drawings=drawings).encode())


def _answer(pipe: Connection, read: Callable[[], Scenario]) -> None:
    """Send what was read or what is wrong with it; nothing, if it must be done where an error can be traced or a plug-in is at home."""
    answer: object
    try:
        answer = read()
    except MoesimError as error:
        answer = error
    except Exception:  # noqa: BLE001 - a defect: the other process meets it too, and shows where
        answer = None
    try:
        pipe.send(answer)
    except Exception:  # noqa: BLE001 - sending runs code of plug-ins, which may raise anything
        pipe.send(None)
