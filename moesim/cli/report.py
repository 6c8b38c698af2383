"""``moesim report``."""

from __future__ import annotations

import click


@click.command(name="report", short_help="Draw the report of finished runs and studies.")
@click.argument("folders", nargs=-1, required=True, metavar="FOLDER...", type=click.Path())
def command(folders: tuple[str, ...]) -> None:
    """Draw report.html of every FOLDER again, from its files alone.

    A FOLDER is what run, compare, sweep, plan, sensitivity, why or memory wrote.
    """
    from pathlib import Path

    from moesim.desk import folder as places
    from moesim.desk.report.study.again import draw_again

    for folder in folders:
        drawn = draw_again(folder)
        path = Path(folder) / "report.html"
        places.put(path, drawn)
        click.echo(str(path))
