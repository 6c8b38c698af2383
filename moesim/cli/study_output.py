"""What the commands of studies share: a counter of runs on the terminal, and an answer that survives a full disk and a closed pipe."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from moesim.base.errors import ResultError


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


@contextmanager
def counted(what: str, *, quiet: bool, total: int | None = None) -> Iterator[Callable[[object], None] | None]:
    """Give a function that counts finished runs on a terminal."""
    if quiet or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    with Progress(
        TextColumn(what), BarColumn(), MofNCompleteColumn(), TextColumn("runs"), TimeElapsedColumn(),
        console=Console(stderr=True), transient=True,
    ) as bar:  # fmt: skip
        task = bar.add_task("runs", total=total)
        yield lambda _: bar.advance(task)
