"""``moesim init``."""

from __future__ import annotations

import click

from moesim.base.errors import UsageError, did_you_mean


@click.command(name="init", short_help="Write a scenario to start from.")
@click.argument("path", default="scenario.yaml", type=click.Path(), metavar="[PATH]")
@click.option("--preset", default="small", show_default=True, help="Which one; --preset list shows them.")
@click.option("--force", is_flag=True, help="Write over a file that is there.")
def command(path: str, preset: str, force: bool) -> None:
    """Write a commented scenario to PATH (scenario.yaml), or to stdout if PATH is -.

    It needs no trace and runs as it is.
    """
    from moesim.desk.starter import starter_text, starters, write_starter

    if preset == "list":
        for name, line in starters().items():
            click.echo(f"{name:<10} {line}")
        return
    if preset not in starters():
        raise UsageError(f"there is no starter {preset!r}{did_you_mean(preset, starters())}")
    if path == "-":
        click.echo(starter_text(preset), nl=False)
        return
    write_starter(path, preset, force=force)
    click.echo(f"wrote {path}; next: moesim run {path}")
