"""What compare, plan and sensitivity have in common: their options, a folder that goes on where it stopped, and how they end."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import click

from moesim.base.errors import UsageError
from moesim.cli.study_output import counted, say

if TYPE_CHECKING:
    from pathlib import Path

    from moesim.desk.cell_store import Store

Function = TypeVar("Function", bound=Callable[..., Any])

VERBS = {"compare": "comparing", "plan": "planning", "sensitivity": "varying"}
"""What a command does, beside its progress bar."""


def study_options(suffix: str) -> Callable[[Function], Function]:
    """Return a decorator that adds the options to a command; it takes them as the fields of :class:`Options`.

    Parameters
    ----------
    suffix : str
        What the name of the folder ends with if none is given.
    """
    options = (
        click.option("-o", "--out", metavar="FOLDER", help=f"Where results go; out/<name of the scenario>-{suffix} if not given."),
        click.option(
            "--format", "form", type=click.Choice(["table", "json", "csv"]), default="table", show_default=True,
            help="How to print the result.",
        ),
        click.option("--jobs", type=click.IntRange(min=1), help="Worker processes; as many as there are cores if not given."),
        click.option(
            "--executor", default="auto", show_default=True, metavar="KIND",
            help="Where runs are played: inline, processes, dask, dask://host:port, or auto (inline if the rest takes a few seconds only).",
        ),
        click.option("--no-report", is_flag=True, help="Do not draw report.html."),
        click.option("--quiet", is_flag=True, help="Print no progress and no warnings."),
    )  # fmt: skip

    def add(function: Function) -> Function:
        for option in reversed(options):
            function = option(function)
        return function

    return add


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """The values of the options."""

    out: str | None
    form: str
    jobs: int | None
    executor: str
    no_report: bool
    quiet: bool

    def check(self) -> None:
        """Refuse what is wrong before anything is read."""
        if self.out is not None and not self.out.strip():
            raise UsageError("-o names no folder")

    def folder(self, name: str, suffix: str) -> Path:
        """Return where results go, for a scenario of this name."""
        from pathlib import Path

        from moesim.desk.folder import slug

        return Path(self.out) if self.out is not None else Path("out") / f"{slug(name)}-{suffix}"


@contextmanager
def playing(options: Options, folder: Path, names: frozenset[str], study: str, *, total: int | None = None) -> Iterator[Store]:
    """Give what plays cells and keeps their answers in a folder; when interrupted, say what is kept and exit with 130.

    Parameters
    ----------
    options : Options
    folder : Path
    names : frozenset of str
        Files that the study writes there.
    study : str
        The command.
    total : int, optional
        Runs, where that is known.
    """
    from moesim.desk.cell_store import Store
    from moesim.desk.study_folder import CELLS, begin

    said = begin(folder, names, study)
    if said and not options.quiet:
        click.echo(f"Note: {said}", err=True)
    with counted(VERBS[study], quiet=options.quiet, total=total) as told:
        store = Store(folder / CELLS, executor=options.executor, jobs=options.jobs, told=told)
        try:
            yield store
        except KeyboardInterrupt:
            runs = f"{store.kept} finished run{' is' if store.kept == 1 else 's are'} kept in {folder}"
            click.echo(f"interrupted: {runs}; the same command goes on from there", err=True)
            click.get_current_context().exit(130)
    if store.found and not options.quiet:
        click.echo(f"{store.found} run{' was' if store.found == 1 else 's were'} finished already", err=True)


def give(
    options: Options,
    folder: Path,
    store: Store,
    *,
    content: Callable[[], Mapping[str, Any]],
    sheet: Callable[[], str],
    table: Callable[[int, bool], str],
    warnings: Iterable[str],
    deliver: Callable[[], None],
) -> None:
    """Print the answer as it was asked for, then write it.

    Parameters
    ----------
    options : Options
    folder : Path
    store : Store
        Its trouble with the disk is told, if it had any.
    content, sheet : callable
        Return the answer for ``--format json`` and ``csv``.
    table : callable
        Returns it for people, given the columns of the terminal and whether it shows colours.
    warnings : iterable of str
    deliver : callable
        Writes everything.
    """

    def text(width: int, colour: bool) -> str:
        if options.form == "json":
            from moesim.desk.summary import to_json

            return to_json(content())
        return sheet() if options.form == "csv" else table(width, colour)

    say(text, warnings, deliver, folder=folder, quiet=options.quiet)
    if store.unkept:
        click.echo(f"Warning: {store.unkept}; the answer is in {folder}, but some of its runs would be played again", err=True)
