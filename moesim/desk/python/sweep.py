"""``moesim.sweep``."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moesim.desk.python.study import Row, Study
from moesim.desk.report.page import Sheet
from moesim.desk.summary import plain
from moesim.desk.sweep_cells import Plan, plan_sweep
from moesim.desk.sweep_files import NAMES, summarise, write_sweep
from moesim.desk.sweep_run import Progress, prepare, run_sweep
from moesim.facts.record import Table
from moesim.study.cell import Answer
from moesim.study.sweep import Sweep


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class SweepStudy(Study):
    """What :func:`sweep` found.

    Parameters
    ----------
    plan : Plan
        What was asked.
    sweep : Sweep
        Every cell.
    meta : mapping
        How it was played.
    """

    plan: Plan
    sweep: Sweep
    meta: Mapping[str, Any]

    @property
    def axes(self) -> tuple[str, ...]:
        """The keys that were changed."""
        return self.sweep.axes

    @property
    def cells(self) -> tuple[Answer, ...]:
        """All cells, failed ones too: ``metrics``, ``samples``, ``axes``, ``error`` of each."""
        return self.sweep.answers

    @property
    def failed(self) -> tuple[Answer, ...]:
        """The cells that have no metrics."""
        return self.sweep.failed

    @property
    def front(self) -> tuple[Answer, ...]:
        """The cells that no other beats in step time and drop rate at once."""
        return self.sweep.front()

    @property
    def table(self) -> Table:
        """One row per cell: its place on every axis, and every metric with its interval."""
        return self.sweep.table()

    @property
    def answer(self) -> str:
        """The outcome in a few sentences."""
        from moesim.desk.report.study.sweep import answer

        return answer(self.sweep)

    def _page(self) -> str:
        from moesim.desk.report.study.sweep import page
        from moesim.desk.scenario_text import dump

        return page(self.content, dump(self.plan.base))

    @property
    def _files(self) -> frozenset[str]:
        return NAMES

    def _deliver(self, folder: Path) -> None:
        write_sweep(self.plan, self.sweep, folder, self.meta)

    def _rows(self) -> Mapping[str, Callable[[], Sequence[Row]]]:
        return {"cells": self._of_cells}

    def _of_cells(self) -> Sequence[Row]:
        columns = {name: column.tolist() for name, column in self.table.columns.items()}
        return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]

    def _sheet(self) -> Sheet:
        from moesim.desk.report.study.sweep import cells

        return cells(self.sweep)


def sweep(
    file: str | os.PathLike[str],
    words: Iterable[str] = (),
    *,
    folder: str | os.PathLike[str] | None = None,
    executor: str = "inline",
    jobs: int | None = None,
    on_change: Callable[[Progress], object] | None = None,
) -> SweepStudy:
    """Simulate every combination of the values in the matrix of a scenario; nothing is printed.

    Parameters
    ----------
    file : path
        A scenario file; its ``matrix:`` gives axes.
    words : iterable of str
        ``key=a,b,c`` or ``key=from..to:step`` is an axis, ``key=value`` an override.
    folder : path, optional
        Where cells are kept as they finish, so that a sweep that stopped goes on there, and where its files go. Without it the cells pass
        through a temporary folder, and nothing is left.
    executor, jobs
        As in :func:`moesim.compare`.
    on_change : callable, optional
        Called with the progress after every cell.

    Returns
    -------
    SweepStudy
        Cells that failed are among its cells, and say why.

    Raises
    ------
    ScenarioError, UsageError
        If the file or a word is wrong, or the folder holds something else.
    """
    plan = plan_sweep(file, words)
    progress = Progress(len(plan), on_change=on_change)
    if folder is not None:
        kept = Path(folder)
        prepare(kept)
        found, meta = run_sweep(plan, kept, executor=executor, jobs=jobs or 1, progress=progress)
        write_sweep(plan, found, kept, meta)
    else:
        with tempfile.TemporaryDirectory(prefix="moesim-sweep-") as passing:
            prepare(Path(passing))
            found, meta = run_sweep(plan, Path(passing), executor=executor, jobs=jobs or 1, progress=progress)
    content: Any = plain(summarise(plan, found, pictures=[], files={}))
    warnings = tuple(warning["text"] for warning in content["warnings"])
    failed = tuple(f"{cell.name} failed: {cell.error}" for cell in found.failed)
    return SweepStudy(name=plan.base.name, content=content, warnings=failed + warnings, plan=plan, sweep=found, meta=meta)
