"""A second process that draws the page: it loads matplotlib on another core while the simulation runs.

Loading matplotlib takes longer than many a simulation. Wherever the press cannot be had, or fails, the page is drawn in this process.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
from multiprocessing.connection import Connection

from moesim.desk.result_files import Parcel


class Press:
    """Starts getting ready at once; :meth:`draw` gives the page of a parcel. Close it, whatever happened."""

    def __init__(self) -> None:
        self._pipe: Connection | None = None
        self._begun: Parcel | None = None
        if _worth_it():
            context = multiprocessing.get_context("fork")
            self._pipe, theirs = context.Pipe()
            self._process = context.Process(target=_work, args=(theirs,), daemon=True)
            self._process.start()
            theirs.close()

    def begin(self, parcel: Parcel) -> None:
        """Hand the parcel over, so that it is drawn while this process prints and writes."""
        if self._pipe is not None and self._begun is not parcel:
            try:
                self._pipe.send(parcel)
                self._begun = parcel
            except Exception:  # noqa: BLE001 - sending runs code of plug-ins, which may raise anything
                self.close()  # the process died, or a plug-in of the scenario cannot be sent: the page is drawn here

    def draw(self, parcel: Parcel) -> bytes:
        """Return the page."""
        self.begin(parcel)
        if self._pipe is not None:
            try:
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


def _work(pipe: Connection) -> None:
    """Load what drawing needs, then draw one parcel; an error ends the process, and the other one draws."""
    sys.stderr = open(os.devnull, "w")  # noqa: SIM115 - the process that asked reports what goes wrong
    from moesim.desk.report.page import draw

    try:
        parcel = pipe.recv()
    except EOFError:
        return
    pipe.send_bytes(draw(parcel))
