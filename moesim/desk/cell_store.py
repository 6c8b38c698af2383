"""Play the cells of a study with their answers kept in a folder, so that a study that is run again goes on where it was."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from moesim.base.errors import ResultError
from moesim.desk import folder as places
from moesim.desk.cell_files import file_of, read_answer, write_answer
from moesim.desk.study_cells import play
from moesim.desk.worker import cores, ready
from moesim.engine.ready import get_ready
from moesim.study.cell import Answer, Cell
from moesim.study.pool import INLINE, PROCESSES, play_all

PATIENCE = 4.0
"""Seconds of work left from which on worker processes are worth their start."""


class Store:
    """Plays cells and remembers answers.

    Parameters
    ----------
    folder : Path or None
        Where answers are kept as ``<digest>.json``; None keeps them in memory alone.
    executor : str
        As in :func:`moesim.study.pool.play_all`, or ``auto``: in this process, unless what is left takes more than a few seconds.
    jobs : int, optional
        Worker processes.
    told : callable, optional
        Called with each answer as it comes.

    Attributes
    ----------
    found, kept : int
        Runs whose answers were in the folder already, and those with the ones that were written there since.
    unkept : str
        Why answers are no longer written into the folder; empty as long as they are. The study goes on in memory: a full disk costs the
        runs that would have been kept, and not the answer.
    """

    def __init__(
        self, folder: Path | None, *, executor: str = "auto", jobs: int | None = None, told: Callable[[Answer], object] | None = None
    ) -> None:
        self.folder = folder
        self.executor = executor
        self.jobs = jobs
        self.told = told
        self.found = 0
        self.kept = 0
        self.known: dict[str, Answer] = {}
        self.unkept = ""
        self._each: float | None = None
        if folder is not None:
            places.make(folder)

    def __call__(self, cells: Sequence[Cell]) -> list[Answer]:
        """Return the answers of some cells, in their order; those that are there already are not played again."""
        todo: dict[str, Cell] = {}
        for cell in cells:
            if cell.digest in self.known or cell.digest in todo:
                continue
            kept = self._kept(cell)
            if kept is not None:
                self.known[cell.digest] = kept
                self.found += 1
                self.kept += 1
            else:
                todo[cell.digest] = cell
        if todo:
            self._play(list(todo.values()))
        return [self.known[cell.digest].as_of(cell) for cell in cells]

    def _kept(self, cell: Cell) -> Answer | None:
        """Return the finished answer that an earlier study left; a damaged one is played again."""
        if self.folder is None or not file_of(self.folder, cell.digest).is_file():
            return None
        try:
            answer = read_answer(file_of(self.folder, cell.digest))
        except ResultError:
            return None
        return answer if answer.done else None

    def _take(self, answer: Answer) -> None:
        self.known[answer.digest] = answer
        if self.folder is not None and answer.done and not self.unkept:
            try:
                write_answer(self.folder, answer)
                self.kept += 1
            except ResultError as error:
                self.unkept = str(error)
        if self.told is not None:
            self.told(answer)

    def _play(self, cells: list[Cell]) -> None:
        run = partial(play_all, play=play, on_answer=self._take, jobs=self.jobs or cores(), ready=ready)
        if self.executor != "auto":
            run(cells, executor=self.executor)
            return
        if self._each is None:  # one run says whether worker processes are worth their start
            get_ready()  # compiling and loading happen once, and say nothing about the other runs
            began = time.monotonic()
            run(cells[:1], executor=INLINE)
            self._each = time.monotonic() - began
            cells = cells[1:]
        many = (self.jobs or cores()) > 1 and len(cells) > 1 and self._each * len(cells) > PATIENCE
        run(cells, executor=PROCESSES if many else INLINE)
