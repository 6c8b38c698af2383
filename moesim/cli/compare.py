"""``moesim compare``."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from pathlib import Path

    from moesim.desk.comparing import Outcome
    from moesim.study.cell import Answer, Cell

PATIENCE = 4.0
"""Seconds of work left, after the first run, from which on worker processes are worth their start."""


@click.command(name="compare", short_help="Play policies with the same tokens and say which is better.")
@click.argument("file", type=click.Path())
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option(
    "--variant", "variants", multiple=True, metavar="NAME:KEY=VALUE[,KEY=VALUE...]", help="A further variant, which may change any key."
)
@click.option("--baseline", metavar="NAME", help="What the others are compared with; the first variant if not given.")
@click.option("--by", default="step_time", show_default=True, metavar="METRIC", help="What decides who wins.")
@click.option(
    "--replicates", type=click.IntRange(min=1), default=5, show_default=True, help="Seeds of each variant, or stretches of a recording."
)
@click.option("-o", "--out", metavar="FOLDER", help="Where results go; out/<name of the scenario>-compared if not given.")
@click.option(
    "--format", "form", type=click.Choice(["table", "json", "csv"]), default="table", show_default=True, help="How to print the result."
)
@click.option("--jobs", type=click.IntRange(min=1), help="Worker processes; as many as there are cores if not given.")
@click.option(
    "--executor",
    default="auto",
    show_default=True,
    metavar="KIND",
    help="Where runs are played: inline, processes, dask, dask://host:port, or auto (inline if the rest takes a few seconds only).",
)
@click.option("--no-report", is_flag=True, help="Do not draw report.html.")
@click.option("--quiet", is_flag=True, help="Print no progress and no warnings.")
def command(
    *,
    file: str,
    overrides: tuple[str, ...],
    variants: tuple[str, ...],
    baseline: str | None,
    by: str,
    replicates: int,
    out: str | None,
    form: str,
    jobs: int | None,
    executor: str,
    no_report: bool,
    quiet: bool,
) -> None:
    """Play the variants of FILE with the same tokens, and say which is better, worse or not distinguishable.

    Variants are those under compare: in FILE. KEY=VALUE lays a value over all of them; KEY=VALUE,VALUE makes a variant of each value
    instead. The folder holds the comparison for scripts, two tables, every variant's scenario, and a page with the variants side by side.
    """
    from pathlib import Path

    from moesim.base.errors import ResultError, UsageError
    from moesim.desk import folder as places
    from moesim.desk.compare_files import NAMES, content, deliver, differences_csv
    from moesim.desk.comparing import ask, conclude
    from moesim.desk.summary import to_json

    if out is not None and not out.strip():
        raise UsageError("-o names no folder")
    question = ask(file, overrides, variants, baseline=baseline, by=by, replicates=replicates)
    folder = Path(out) if out is not None else Path("out") / f"{places.slug(question.name)}-compared"
    places.prepare(folder, NAMES)
    cells = question.cells()
    with _progress(len({cell.digest for cell in cells}), quiet=quiet) as told:
        answers = _play(cells, executor=executor, jobs=jobs, told=told)
    outcome = conclude(question, answers)
    # The answer is printed before anything is written: neither a full disk nor a closed pipe may cost the other.
    broken: OSError | None = None
    try:
        if form == "json":
            text = to_json(content(outcome))
        elif form == "csv":
            text = differences_csv(outcome)
        else:
            text = _table(outcome, folder)
        click.echo(text, nl=False)
        sys.stdout.flush()
    except OSError as error:
        broken = error
    if not quiet:
        for warning in outcome.warnings:
            click.echo(f"Warning: {warning}", err=True)
    deliver(outcome, folder)
    if not no_report:
        from moesim.desk.report.comparison.page import draw

        places.put(folder / "report.html", draw(outcome))
    if isinstance(broken, BrokenPipeError):
        raise broken
    if broken is not None:
        raise ResultError(f"cannot print the result: {(broken.strerror or str(broken)).lower()}; it is in {folder}")
    if outcome.failed:
        click.get_current_context().exit(1)


def _play(cells: list[Cell], *, executor: str, jobs: int | None, told: Callable[[Answer], None]) -> list[Answer]:
    """Play all cells; where they are played changes nothing in the answers."""
    import time

    from moesim.desk.study_cells import play
    from moesim.desk.worker import cores, ready
    from moesim.study.pool import INLINE, PROCESSES, play_all

    if executor != "auto":
        return play_all(cells, play, executor=executor, on_answer=told, jobs=jobs, ready=ready)
    began = time.monotonic()
    (first,) = play_all(cells[:1], play, executor=INLINE, on_answer=told)
    spent = time.monotonic() - began
    rest = [cell for cell in cells[1:] if cell.digest != first.digest]
    many = (jobs or cores()) > 1 and spent * len({cell.digest for cell in rest}) > PATIENCE
    others = play_all(rest, play, executor=PROCESSES if many else INLINE, on_answer=told, jobs=jobs or cores(), ready=ready)
    by_digest = {answer.digest: answer for answer in [first, *others]}
    return [by_digest[cell.digest].as_of(cell) for cell in cells]


def _table(outcome: Outcome, folder: Path) -> str:
    import os
    import shutil

    from moesim.desk import compare_text, terminal

    screen = sys.stdout.isatty()
    width = max(shutil.get_terminal_size().columns, 60) if screen else 160
    colour = screen and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    return terminal.plain(compare_text.table(outcome, folder, width=width, colour=colour), getattr(sys.stdout, "encoding", None))


@contextmanager
def _progress(total: int, *, quiet: bool) -> Iterator[Callable[[Answer], None]]:
    """Give a function that counts finished runs on a terminal."""
    if quiet or not sys.stderr.isatty():
        yield lambda _: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    with Progress(
        TextColumn("comparing"), BarColumn(), MofNCompleteColumn(), TextColumn("runs"), TimeRemainingColumn(),
        console=Console(stderr=True), transient=True,
    ) as bar:  # fmt: skip
        task = bar.add_task("runs", total=total)
        yield lambda _: bar.advance(task)
