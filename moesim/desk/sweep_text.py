"""A sweep for the terminal: one line per cell, the best cells marked, what failed."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from pathlib import Path

from moesim.desk.words import SHARES, label, show
from moesim.study.cell import Answer
from moesim.study.sweep import ABSENT, Sweep, short_names, word

SHOWN = ("step_time", "tokens_per_second", "drop_rate", "rank_max_over_mean", "waiting_time", "peak_memory")
"""Metrics that the table shows, where they differ between cells."""

MOST = 60
"""Lines of cells; a longer sweep is read from its files."""


def table(sweep: Sweep, folder: Path, *, metrics: Sequence[str] = (), width: int = 120) -> str:
    """Return a sweep as text.

    Parameters
    ----------
    sweep : Sweep
        To show.
    folder : Path
        Where its files are; named last.
    metrics : sequence of str
        Which metrics; those of :data:`SHOWN` that differ if left out.
    width : int
        Characters of a line. Metrics that were not asked for give way to it; no value is ever cut.
    """
    from rich import box
    from rich.console import Console
    from rich.table import Table

    chosen = tuple(metrics) or tuple(
        name for name in dict.fromkeys([SHOWN[0], sweep.pareto[0], *SHOWN[1:]]) if name == SHOWN[0] or _differs(sweep, name)
    )
    short = short_names(sweep.axes)
    needed = _needed(sweep, chosen)
    left_out: list[str] = []
    if not metrics:
        kept = list(chosen[:1])
        for name in chosen[1:]:
            (kept if needed([*kept, name]) <= width else left_out).append(name)
        chosen = tuple(kept)
    best = {answer.name for answer in sweep.front()}
    grid = Table(box=box.SIMPLE_HEAD, padding=(0, 1), show_edge=False)
    for axis in sweep.axes:
        grid.add_column(short[axis], no_wrap=True)
    for name in chosen:
        grid.add_column(label(name), justify="right", no_wrap=True)
    grid.add_column("", no_wrap=True)
    shown = sweep.answers[:MOST]
    for answer in shown:
        mark = "failed" if not answer.done else "front" if answer.name in best else ""
        grid.add_row(*(word(answer.axes.get(axis, ABSENT)) for axis in sweep.axes), *(_value(answer, name) for name in chosen), mark)
    out = io.StringIO()
    console = Console(file=out, width=max(width, needed(chosen)), highlight=False, markup=False, emoji=False)
    console.print(f"{sweep.name}: {len(sweep.done)} of {len(sweep.answers)} cells")
    console.print()
    console.print(grid)
    if len(sweep.answers) > MOST:
        console.print(f"... and {len(sweep.answers) - MOST} more cells: see cells.csv")
    console.print()
    if left_out:
        console.print(f"no room for: {'; '.join(label(name) for name in left_out)}; see cells.csv", soft_wrap=True)
    for axis in sweep.idle():
        console.print(f"{short[axis]} changed nothing: cells that differ in it alone agree in every metric", soft_wrap=True)
    if not metrics and (same := _same(sweep)):
        console.print(f"the same in all cells: {same}", soft_wrap=True)
    if best:
        console.print(f"front: no other cell is better in {label(sweep.pareto[0])} and {label(sweep.pareto[1])} at once", soft_wrap=True)
    console.print(f"Results in {folder}", soft_wrap=True)
    return "\n".join(row.rstrip() for row in out.getvalue().splitlines()) + "\n"


def failures(sweep: Sweep) -> str:
    """Return what went wrong with which cell, a line each and more where there are several problems; empty if nothing did."""
    lines = []
    for answer in sweep.failed:
        first, *rest = answer.error.splitlines() or [""]
        lines += [f"failed: {answer.name}: {first}", *(f"  {line}" for line in rest)]
    return "\n".join(lines)


def _needed(sweep: Sweep, names: Sequence[str]) -> Callable[[Sequence[str]], int]:
    """Return a function that tells how many characters a line takes which shows some of the metrics."""
    from rich.cells import cell_len

    short = short_names(sweep.axes)
    shown = sweep.answers[:MOST]
    axes = [
        max(cell_len(text) for text in (short[axis], *(word(answer.axes.get(axis, ABSENT)) for answer in shown))) for axis in sweep.axes
    ]
    widths = {name: max(cell_len(text) for text in (label(name), *(_value(answer, name) for answer in shown))) for name in names}

    def needed(some: Sequence[str]) -> int:
        columns = [*axes, *(widths[name] for name in some), len("failed")]
        return sum(columns) + 3 * len(columns)

    return needed


def _same(sweep: Sweep) -> str:
    """Return the metrics that are not shown because all cells agree in them."""
    if len(sweep.done) < 2:
        return ""
    hidden = [name for name in SHOWN[1:] if not _differs(sweep, name) and name in sweep.done[0].metrics]
    return "; ".join(f"{label(name)} {_value(sweep.done[0], name)}" for name in hidden if sweep.done[0].metrics[name].value is not None)


def _differs(sweep: Sweep, name: str) -> bool:
    return len({answer.metrics[name].value for answer in sweep.done if name in answer.metrics}) > 1


def _value(answer: Answer, name: str) -> str:
    value = answer.metrics.get(name)
    return "" if value is None else show(value.value, value.unit, share=name in SHARES and value.unit == "")
