"""``moesim list``."""

from __future__ import annotations

import dataclasses
import json
import textwrap
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from moesim.desk.catalogue import Entry, Group, Key

WIDTH = 110


@click.command(name="list", short_help="Show what a scenario can be built from.")
@click.argument("what", nargs=-1, metavar="[placements|gates|models|gpus|...]...")
@click.option("--format", "form", type=click.Choice(["text", "json"]), default="text", show_default=True, help="How to print the answer.")
def command(what: tuple[str, ...], form: str) -> None:
    """Show plug-ins with their keys, units and defaults; models; GPUs.

    Without a word: everything, but without the notes on each key.
    """
    from moesim.base.registry import broken_packages
    from moesim.desk.catalogue import catalogue, group_names

    groups = [catalogue(name) for name in what or group_names()]
    if form == "json":
        click.echo(json.dumps({"schema": 1, "groups": [dataclasses.asdict(group) for group in groups]}, indent=2, ensure_ascii=False))
    else:
        click.echo("\n\n".join(described(group, notes=bool(what)) for group in groups))
    for said in broken_packages():
        click.echo(f"Warning: {said}", err=True)


def described(group: Group, *, notes: bool) -> str:
    """Return a group as text: its heading, then every entry with its keys, and on request what each key means."""
    heading = click.style(group.name, bold=True) + (f"   {group.written}" if group.written else "")
    return "\n".join([heading, *(_entry(entry, notes=notes) for entry in group.entries)])


def _entry(entry: Entry, *, notes: bool) -> str:
    lines = textwrap.wrap(entry.summary, WIDTH - 4, initial_indent="    ", subsequent_indent="    ")
    return "\n".join([f"  {click.style(entry.name, bold=True)}", *lines, *(_key(key, notes=notes) for key in entry.keys)])


def _key(key: Key, *, notes: bool) -> str:
    default = "required" if key.required else f"default {json.dumps(key.default, ensure_ascii=False)}"
    return "\n".join(
        textwrap.wrap(f"- {key.name}: {key.takes}; {default}", WIDTH, initial_indent="      ", subsequent_indent="          ")
        + textwrap.wrap(key.note if notes else "", WIDTH, initial_indent="          ", subsequent_indent="          ")
    )
