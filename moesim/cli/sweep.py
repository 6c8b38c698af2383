"""``moesim sweep``."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from moesim.cli.run import PATIENCE

if TYPE_CHECKING:
    from pathlib import Path

    from moesim.desk.sweep_run import Progress
    from moesim.study.sweep import Sweep

LEAST = 256_000_000
"""Bytes that a worker needs: loading the simulator takes about 120 MB of private data, compiling more."""


@click.command(name="sweep", short_help="Simulate a scenario for many values of some keys.")
@click.argument("file", type=click.Path())
@click.argument("words", nargs=-1, metavar="[KEY=VALUES]...")
@click.option("-o", "--out", metavar="FOLDER", help="Where results go; out/<name of the scenario>-sweep if not given.")
@click.option(
    "--format", "form", type=click.Choice(["table", "json", "csv"]), default="table", show_default=True, help="How to print the result."
)
@click.option(
    "--metric",
    "shown",
    multiple=True,
    metavar="NAME",
    help="A metric to show in the table and in the pictures; give it several times for several.",
)
@click.option("-j", "--jobs", type=click.IntRange(min=1), help="Worker processes; as many as there are cores if not given.")
@click.option(
    "--executor",
    default="processes",
    show_default=True,
    metavar="WHERE",
    help="'inline' (in this process), 'processes', 'dask' (a Dask cluster on this machine), or dask://HOST:PORT (a scheduler).",
)
@click.option("--memory", metavar="SIZE", help="What one worker may hold, such as '4 GB'; its share of the machine's memory if not given.")
@click.option("--no-report", is_flag=True, help="Do not draw report.html.")
@click.option("--quiet", is_flag=True, help="Print no progress and no warnings.")
@click.pass_context
def command(
    context: click.Context,
    *,
    file: str,
    words: tuple[str, ...],
    out: str | None,
    form: str,
    shown: tuple[str, ...],
    jobs: int | None,
    executor: str,
    memory: str | None,
    no_report: bool,
    quiet: bool,
) -> None:
    """Simulate every combination of the values in the matrix of FILE and on the command line; write a table and pictures.

    KEY=VALUES is KEY=a,b,c or KEY=FROM..TO:STEP or KEY=FROM..TO:*FACTOR, for example policy.capacity.factor=0.8..2.0:0.1. KEY=VALUE lays
    one value over the file. A cell that is finished in FOLDER is not simulated again: after an interruption, the same command goes on.
    Exits with 1 if a cell failed.
    """
    from dataclasses import replace
    from pathlib import Path

    from moesim.base.errors import ResultError, UsageError
    from moesim.base.units import parse_quantity
    from moesim.desk import folder as places
    from moesim.desk.memory_share import memory_share
    from moesim.desk.sweep_cells import plan_sweep
    from moesim.desk.sweep_files import write_sweep
    from moesim.desk.sweep_run import Progress, prepare, run_sweep
    from moesim.desk.sweep_text import failures
    from moesim.desk.worker import cores, tune_garbage

    tune_garbage()  # with --executor inline, cells are played here

    if out is not None and not out.strip():
        raise UsageError("-o names no folder")
    jobs = jobs or cores()
    try:
        limit = memory_share(jobs) if memory is None else int(parse_quantity(memory, "B"))
    except ValueError as error:
        raise UsageError(f"--memory: {error}") from None
    if limit is not None and limit < LEAST and executor != "inline":
        why = f"{jobs} jobs leave each worker {limit / 1e6:.0f} MB: try fewer" if memory is None else f"--memory {memory} is too little"
        raise UsageError(f"{why}; a worker needs {LEAST // 10**6} MB before it simulates anything")
    plan = plan_sweep(file, words)
    _check_metrics(shown)
    folder = Path(out) if out is not None else Path("out") / f"{places.slug(plan.base.name)}-sweep"
    said = prepare(folder)
    if said and not quiet:
        click.echo(f"Note: {said}", err=True)
    _announce_compiling(quiet=quiet)
    progress = Progress(len(plan))
    try:
        with _shown(progress, quiet=quiet):
            sweep, meta = run_sweep(plan, folder, executor=executor, jobs=jobs, memory=limit, progress=progress)
    except KeyboardInterrupt:
        count = progress.kept + progress.played
        click.echo(
            f"interrupted: {count} of {len(plan)} cells are finished and kept in {folder}; the same command goes on from there", err=True
        )
        context.exit(130)
    if progress.kept and not quiet:
        click.echo(f"{progress.kept} of {len(plan)} cells were finished already", err=True)
    sweep = replace(sweep, shown=shown)
    try:
        write_sweep(plan, sweep, folder, meta, report=not no_report)
    except ResultError:
        if form == "table":  # a full disk costs files, and not the answer; the other two forms are such files
            _print(sweep, folder, form, shown)
        raise
    _print(sweep, folder, form, shown)
    if sweep.failed:
        click.echo(failures(sweep), err=True)
        others = f"; the others are in {folder}" if sweep.done else ""
        click.echo(f"Error: {len(sweep.failed)} of {len(plan)} cells failed{others}", err=True)
        context.exit(1)


def _check_metrics(names: tuple[str, ...]) -> None:
    """Refuse a metric that does not exist before anything is played; by now the plug-ins of the scenario are known."""
    from moesim.base.errors import UsageError, did_you_mean
    from moesim.measure.collect import metrics

    known = metrics()
    for name in names:
        if name not in known:
            raise UsageError(f"there is no metric {name!r}{did_you_mean(name, known)}")


def _announce_compiling(*, quiet: bool) -> None:
    from moesim.models.sharing.core import needs_compiling

    if not quiet and needs_compiling():
        click.echo("Compiling the link-sharing core; this happens once.", err=True)


def _print(sweep: Sweep, folder: Path, form: str, shown: tuple[str, ...]) -> None:
    if form == "json":
        text = (folder / "summary.json").read_text(encoding="utf-8")
    elif form == "csv":
        text = (folder / "cells.csv").read_text(encoding="utf-8")
    else:
        import shutil

        from moesim.desk import terminal
        from moesim.desk.sweep_text import table

        width = max(shutil.get_terminal_size().columns, 60) if sys.stdout.isatty() else 160
        text = terminal.plain(table(sweep, folder, metrics=shown, width=width), getattr(sys.stdout, "encoding", None))
    click.echo(text, nl=False)
    sys.stdout.flush()


@contextmanager
def _shown(progress: Progress, *, quiet: bool) -> Iterator[None]:
    """Show on a terminal how many cells are finished and how long the rest may take, once a sweep has lasted a while."""
    if quiet or not sys.stderr.isatty():
        yield
        return
    import time

    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    began = time.monotonic()
    bar = Bar(
        TextColumn("simulating"), BarColumn(), MofNCompleteColumn(), TextColumn("cells{task.fields[failed]}, left:"), TimeRemainingColumn(),
        console=Console(stderr=True), transient=True, speed_estimate_period=600.0,
    )  # fmt: skip
    task: Any = None

    def change(now: Progress) -> None:
        nonlocal task
        if task is None:
            if time.monotonic() - began < PATIENCE:
                return
            # Cells that were finished before say nothing about how long the others take.
            task = bar.add_task("cells", total=now.total, completed=now.kept, failed="")
            bar.start()
        bar.update(task, completed=now.known, failed=f", {now.failed} failed" if now.failed else "")

    progress.on_change = change
    try:
        yield
    finally:
        progress.on_change = None
        if bar.live.is_started:
            bar.stop()
