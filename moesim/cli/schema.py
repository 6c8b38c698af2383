"""``moesim schema``."""

from __future__ import annotations

import json

import click

HELP = """Print the JSON Schema of scenario files.

Save it and name it in the first line of a scenario, and editors complete keys and mark mistakes:

\b
  moesim schema > scenario.schema.json
  # yaml-language-server: $schema=scenario.schema.json
"""


@click.command(name="schema", short_help="Print the JSON Schema of scenario files, for editors.", help=HELP)
def command() -> None:
    """Print the schema."""
    from moesim.desk.schema import scenario_schema

    click.echo(json.dumps(scenario_schema(), indent=2, ensure_ascii=False))
