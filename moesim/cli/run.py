"""``moesim run``."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Any

import click

from moesim.cli.group import debugging

if TYPE_CHECKING:
    from pathlib import Path

    from moesim.desk.result_files import Parcel
    from moesim.facts.scenario import Scenario
    from moesim.facts.trace import Trace

PATIENCE = 1.0
"""Seconds before a progress bar appears: short runs need none."""


@click.command(name="run", short_help="Simulate a scenario.")
@click.argument("file", type=click.Path())
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("-o", "--out", metavar="FOLDER", help="Where results go; out/<name of the scenario> if not given.")
@click.option(
    "--format", "form", type=click.Choice(["table", "json", "csv"]), default="table", show_default=True, help="How to print the result."
)
@click.option("--spans", is_flag=True, help="Write the span of every task of every step (Parquet, or CSV without pyarrow).")
@click.option("--trace", is_flag=True, help="Write a timeline for Perfetto and chrome://tracing.")
@click.option(
    "--trace-steps", type=click.IntRange(min=1), default=1, show_default=True, help="How many steps the timeline of --trace holds."
)
@click.option("--save-routing", is_flag=True, help="Write the routing that was used, to replay it.")
@click.option("--no-report", is_flag=True, help="Do not draw report.html.")
@click.option("--quiet", is_flag=True, help="Print no progress and no warnings.")
def command(
    *,
    file: str,
    overrides: tuple[str, ...],
    out: str | None,
    form: str,
    spans: bool,
    trace: bool,
    trace_steps: int,
    save_routing: bool,
    no_report: bool,
    quiet: bool,
) -> None:
    """Simulate the scenario in FILE, print what it predicts, and write a folder of results.

    KEY=VALUE lays a value over the file, for example policy.capacity.factor=1.1. The folder holds the resolved scenario, tables, a
    summary for scripts and a page with pictures; the manual says what is in every file.
    """
    import gc

    # Nearly everything that a run makes lives to its end; looking for garbage among it over and over took a tenth of a short run.
    gc.set_threshold(100_000, 50, 50)
    from functools import cache
    from pathlib import Path

    from moesim.base.errors import ResultError, UsageError
    from moesim.desk.report.press import Press

    if out is not None and not out.strip():
        raise UsageError("-o names no folder")

    @cache
    def read(path: str, **task: Any) -> Trace:
        from moesim.desk.trace_files import read_trace

        return read_trace(path, **task)

    def load() -> Scenario:
        from moesim.desk.scenario_file import load_scenario

        return load_scenario(file, overrides, read_trace=read)

    # With --debug the scenario is read here, so that a traceback leads to where it went wrong.
    with closing(Press(None if debugging(click.get_current_context()) else load, report=not no_report)) as press:
        if press.reads:
            from moesim.engine.ready import get_ready

            get_ready()
            scenario = press.scenario()
        else:
            scenario = load()
        from moesim.desk import folder as places
        from moesim.desk.result_files import NAMES, deliver, pack
        from moesim.study.uncertainty import simulate_uncertain

        folder = Path(out) if out is not None else Path("out") / places.slug(scenario.name)
        places.prepare(folder, NAMES)
        _announce_compiling(quiet=quiet)
        with _progress(quiet=quiet) as progress:
            keep_spans = spans or (trace and trace_steps > 1)
            result = simulate_uncertain(scenario, read_trace=read, progress=progress, keep_spans=keep_spans, keep_routing=save_routing)
        if not no_report:
            press.begin(result)
        parcel = pack(result, folder, spans=spans)
        # The answer is printed before anything is written: neither a full disk nor a closed pipe may cost the other.
        broken = _print(parcel, form)
        if not quiet:
            for warning in result.warnings:
                click.echo(f"Warning: {warning}", err=True)
        deliver(parcel, report=not no_report, trace_steps=trace_steps if trace else 0, draw=press.draw)
    if isinstance(broken, BrokenPipeError):
        raise broken
    if broken is not None:
        raise ResultError(f"cannot print the result: {(broken.strerror or str(broken)).lower()}; it is in {folder}")


def _announce_compiling(*, quiet: bool) -> None:
    from moesim.models.sharing.core import needs_compiling

    if not quiet and needs_compiling():
        click.echo("Compiling the link-sharing core; this happens once.", err=True)


def _print(parcel: Parcel, form: str) -> OSError | None:
    """Print the result; return what kept it from being printed, so that it can be written first and complained about then."""
    if form == "json":
        text = parcel.summary_text
    elif form == "csv":
        from moesim.desk.summary import metrics_csv

        text = metrics_csv(parcel.result)
    else:
        text = _table(parcel, parcel.folder)
    try:
        _echo(text)
    except OSError as error:
        return error
    return None


def _echo(text: str) -> None:
    click.echo(text, nl=False)
    sys.stdout.flush()


def _table(parcel: Parcel, folder: Path) -> str:
    import os
    import shutil

    from moesim.desk import terminal

    screen = sys.stdout.isatty()
    width = max(shutil.get_terminal_size().columns, 60) if screen else 160
    colour = screen and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    return terminal.plain(terminal.table(parcel.result, folder, width=width, colour=colour), getattr(sys.stdout, "encoding", None))


@contextmanager
def _progress(*, quiet: bool) -> Iterator[Callable[[int, int], None] | None]:
    """Give a function that shows progress on a terminal once a run has lasted a while, and clear the line at the end."""
    if quiet or not sys.stderr.isatty():
        yield None
        return
    import time

    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    began = time.monotonic()
    bar = Progress(
        TextColumn("simulating"), BarColumn(), MofNCompleteColumn(), TextColumn("steps"), TimeRemainingColumn(),
        console=Console(stderr=True), transient=True,
    )  # fmt: skip
    task = bar.add_task("steps", total=None)

    def progress(done: int, total: int) -> None:
        if not bar.live.is_started:
            if time.monotonic() - began < PATIENCE:
                return
            bar.start()
        bar.update(task, completed=done, total=total)

    try:
        yield progress
    finally:
        if bar.live.is_started:
            bar.stop()
