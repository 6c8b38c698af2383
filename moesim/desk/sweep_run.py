"""Play the cells of a sweep into a folder; what is finished there already is not played again."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from moesim.base.errors import MoesimError, Problem, ResultError, ScenarioError
from moesim.desk import folder as places
from moesim.desk.cell_files import file_of, read_answer, write_answer
from moesim.desk.study_cells import play
from moesim.desk.study_folder import CELLS, begin, meta
from moesim.desk.sweep_cells import Plan
from moesim.desk.sweep_files import NAMES
from moesim.desk.worker import ready
from moesim.study.cell import FAILED, Answer, Cell
from moesim.study.pool import PROCESSES, play_all
from moesim.study.sweep import Sweep


@dataclass(slots=True)
class Progress:
    """How far a sweep is; ``on_change`` is called after every change.

    Parameters
    ----------
    total : int
        Cells.
    kept : int
        Cells that were finished before the sweep began, by an earlier call or by other cells that mean the same.
    played, failed : int
        Cells that were played now: finished, and not finished.
    newest : Answer or None
        The last one.
    """

    total: int
    on_change: Callable[[Progress], object] | None = None
    kept: int = 0
    played: int = 0
    failed: int = 0
    newest: Answer | None = None

    @property
    def known(self) -> int:
        """Cells that need no more work."""
        return self.kept + self.played + self.failed

    def take(self, answer: Answer, *, kept: bool = False) -> None:
        """Count one answer."""
        self.newest = answer
        if not answer.done:
            self.failed += 1
        elif kept:
            self.kept += 1
        else:
            self.played += 1
        if self.on_change is not None:
            self.on_change(self)


@dataclass(slots=True)
class _Run:
    """The cells of one sweep on their way."""

    plan: Plan
    folder: Path
    progress: Progress
    answers: dict[int, Answer] = field(default_factory=dict)
    cells: dict[int, Cell] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    seen: set[str] = field(default_factory=set)

    def supply(self) -> Iterator[Cell]:
        """Yield the cells that have to be played; note the others."""
        for index in range(len(self.plan)):
            try:
                cell = self.cells[index] = self.plan.cell(index)
            except MoesimError as error:
                self.refuse(index, error)
                continue
            if cell.digest in self.seen:
                continue
            self.seen.add(cell.digest)
            kept = _kept(self.folder, cell)
            if kept is None:
                yield cell
                continue
            self.answers[index] = kept
            self.progress.take(kept, kept=True)

    def refuse(self, index: int, error: MoesimError) -> None:
        """Note that a cell cannot be played at all."""
        self.problems += error.problems if isinstance(error, ScenarioError) else [Problem(file=self.plan.file, message=str(error))]
        answer = Answer(name=self.plan.name(index), digest="", axes=self.plan.place(index), status=FAILED, error=str(error))
        self.answers[index] = answer
        self.progress.take(answer)

    def finish(self, played: dict[str, Answer]) -> tuple[Answer, ...]:
        """Return the answer of every cell."""
        by_digest = {answer.digest: answer for answer in self.answers.values()} | played
        for index, cell in self.cells.items():
            if index not in self.answers:
                self.answers[index] = by_digest[cell.digest].as_of(cell)
        return tuple(self.answers[index] for index in range(len(self.plan)))


def prepare(folder: Path) -> str:
    """See to it that a sweep can be written into a folder; return what should be said about what is there.

    Raises
    ------
    UsageError
        If the folder holds something else, or cannot be written.
    """
    said = begin(folder, NAMES, "sweep")
    places.make(folder / CELLS)
    return said


def run_sweep(
    plan: Plan,
    folder: Path,
    *,
    executor: str = PROCESSES,
    jobs: int = 1,
    memory: int | None = None,
    progress: Progress | None = None,
) -> tuple[Sweep, dict[str, Any]]:
    """Play every cell of a sweep that is not finished in a folder yet.

    Parameters
    ----------
    plan : Plan
        From :func:`moesim.desk.sweep_cells.plan_sweep`.
    folder : Path
        From :func:`prepare`; every finished cell is written there at once.
    executor, jobs
        As in :func:`moesim.study.pool.play_all`.
    memory : int, optional
        Bytes that one worker process may hold.
    progress : Progress, optional
        Counts cells.

    Returns
    -------
    sweep : Sweep
    meta : dict
        How it was played: what may differ between two sweeps with the same answers.

    Raises
    ------
    ScenarioError
        If not a single cell can be read: with every problem of all of them.
    ResultError
        If an answer cannot be written; those before it are there.
    """
    began = time.perf_counter()
    run = _Run(plan, folder / CELLS, progress or Progress(len(plan)))

    def keep(answer: Answer) -> None:
        if answer.done:
            try:
                write_answer(run.folder, answer)
            except ResultError as error:
                count = run.progress.kept + run.progress.played
                raise ResultError(
                    f"{error}. {count} of {len(plan)} cells are finished and kept: the same command goes on from there"
                ) from None
        run.progress.take(answer)

    answers = play_all(
        run.supply(), play, executor=executor, on_answer=keep, jobs=jobs, ready=partial(ready, memory), memory=memory
    )  # fmt: skip
    found = run.finish({answer.digest: answer for answer in answers})
    if len(run.problems) and not run.cells:
        raise ScenarioError(list(dict.fromkeys(run.problems)))
    sweep = Sweep(name=plan.base.name, axes=plan.axes, answers=found)
    about = {"executor": executor, "jobs": jobs, "memory_per_worker_bytes": memory, "cells": len(found), "played": len(answers)}
    return sweep, {**meta("sweep"), **about, "wall_s": time.perf_counter() - began}


def _kept(folder: Path, cell: Cell) -> Answer | None:
    """Return the answer of a cell that an earlier call finished; None where there is none that is whole."""
    path = file_of(folder, cell.digest)
    if not path.is_file():
        return None
    try:
        answer = read_answer(path)
    except ResultError:
        return None  # damaged, as by a power cut: it is played again, and the file replaced
    return answer.as_of(cell) if answer.done else None
