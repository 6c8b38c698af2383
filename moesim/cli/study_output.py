"""What the commands of studies share: a counter of runs on the terminal, and an answer that survives a full disk and a closed pipe."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from moesim.base.errors import ResultError, UsageError


def say(text: Callable[[int, bool], str], warnings: Iterable[str], deliver: Callable[[], None], *, folder: Path, quiet: bool) -> None:
    """Print an answer and its warnings, then write its files: neither a full disk nor a closed pipe may cost the other.

    Parameters
    ----------
    text : callable
        Given the columns of the terminal and whether it shows colours.
    warnings : iterable of str
    deliver : callable
        Writes the files.
    folder : Path
        Where they go, for the message.
    quiet : bool
        Whether warnings are left out.
    """
    from moesim.desk import terminal

    screen = sys.stdout.isatty()
    width = max(shutil.get_terminal_size().columns, 60) if screen else 200
    colour = screen and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    broken: OSError | None = None
    try:
        click.echo(terminal.plain(text(width, colour), getattr(sys.stdout, "encoding", None)), nl=False)
        sys.stdout.flush()
    except OSError as error:
        broken = error
    if not quiet:
        for warning in warnings:
            click.echo(f"Warning: {warning}", err=True)
    deliver()
    if isinstance(broken, BrokenPipeError):
        raise broken
    if broken is not None:
        raise ResultError(f"cannot print the result: {(broken.strerror or str(broken)).lower()}; it is in {folder}")


def ready_folder(out: str | None, command: str) -> Path | None:
    """Return the folder that ``-o`` names, ready to take the files of a command; None without ``-o``."""
    if out is None:
        return None
    if not out.strip():
        raise UsageError("-o names no folder")
    from moesim.desk import folder as places
    from moesim.desk.answer_files import names

    folder = Path(out)
    places.prepare(folder, names(command))
    return folder


def tell(said: str, told: Mapping[str, Any], command: str, folder: Path | None) -> None:
    """Print an answer, and write it into a folder, if there shall be one, with its page."""
    if folder is None:
        click.echo(said, nl=False)
        return
    from moesim.desk.answer_files import deliver

    say(lambda *_: said, (), lambda: deliver(folder, command, told), folder=folder, quiet=True)


@contextmanager
def counted(what: str, *, quiet: bool, total: int | None = None) -> Iterator[Callable[[object], None] | None]:
    """Give a function that counts finished runs on a terminal; with their number, the bar also shows the time left."""
    if quiet or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    with Progress(
        TextColumn(what), BarColumn(), MofNCompleteColumn(), TextColumn("runs" if total is None else "runs, left:"),
        TimeElapsedColumn() if total is None else TimeRemainingColumn(),
        console=Console(stderr=True), transient=True,
    ) as bar:  # fmt: skip
        task = bar.add_task("runs", total=total)
        yield lambda _: bar.advance(task)
