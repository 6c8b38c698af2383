"""``moesim validate``."""

from __future__ import annotations

import sys

import click

from moesim.base.errors import UsageError

HELP = """Hold predictions against measured tables: errors by table and regime, bias, a simple rule beside each, and what was not predicted.

DIR holds tables as CSV, JSON lines or NPZ, also in folders. A table is known by the name of its file; the manual lists names and columns.
Predictions come from the shipped profiles, and from those that --profile names; a machine without a profile is predicted from the data
sheet's ratios to one that has been measured, and flagged.

\b
  moesim validate measured/
  moesim validate measured/ --format json
  moesim validate measured/ --profile mine.yaml -o out/validation
"""


@click.command(name="validate", short_help="Hold predictions against measured tables.", help=HELP)
@click.argument("folder", metavar="DIR", type=click.Path())
@click.option(
    "--format", "form", type=click.Choice(["table", "json", "csv"]), default="table", show_default=True, help="How to print the answer."
)
@click.option(
    "--profile", "named", multiple=True, metavar="FILE", help="A profile of your own, laid over the shipped ones; may be repeated."
)
@click.option("-o", "--out", metavar="FOLDER", help="Write the answer, the scores and every single case there.")
@click.option("--quiet", is_flag=True, help="Print no progress and no warnings.")
def command(*, folder: str, form: str, named: tuple[str, ...], out: str | None, quiet: bool) -> None:
    """Read the tables, predict them, print by how much the predictions are off."""
    from pathlib import Path

    from moesim.desk import folder as places
    from moesim.desk import validation_files as files
    from moesim.study.validate import validate

    if out is not None and not out.strip():
        raise UsageError("-o names no folder")
    if out is not None:
        places.prepare(Path(out), files.NAMES)
    tables, unreadable = files.read_folder(Path(folder))
    say = (lambda name: click.echo(f"predicting {name}", err=True)) if not quiet and sys.stderr.isatty() else None
    found = validate(tables, files.profiles_for(named), unreadable=unreadable, progress=say)
    if form == "json":
        from moesim.desk.summary import to_json

        printed = to_json(files.answer(found))
    elif form == "csv":
        printed = files.scores_csv(found)
    else:
        from moesim.desk.validation_text import text

        printed = text(found)
    if out is not None:
        files.write_folder(Path(out), found)
    click.echo(printed, nl=False)
    sys.stdout.flush()
    if not quiet:
        for warning in found.warnings:
            click.echo(f"Warning: {warning}", err=True)
        if out is not None:
            click.echo(f"Results in {out}", err=True)
    if not found.cases:
        raise UsageError(f"{folder} holds no table that could be predicted; the reasons stand above")
