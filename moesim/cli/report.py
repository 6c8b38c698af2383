"""``moesim report``."""

from __future__ import annotations

import click


@click.command(name="report", short_help="Draw the report of finished runs.")
@click.argument("folders", nargs=-1, required=True, metavar="FOLDER...", type=click.Path())
def command(folders: tuple[str, ...]) -> None:
    """Draw report.html of every FOLDER again, from its files alone."""
    from moesim.desk import folder as places
    from moesim.desk.report.page import draw
    from moesim.desk.result_files import unpack

    for folder in folders:
        parcel = unpack(folder)
        path = parcel.folder / "report.html"
        places.put(path, draw(parcel))
        click.echo(str(path))
