"""``moesim network``."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

from moesim.base.errors import UsageError

if TYPE_CHECKING:
    from moesim.desk.network_questions import Found

COLLECTIVES = ("alltoall", "all_reduce", "all_gather", "reduce_scatter", "broadcast", "reduce", "sendrecv")
ALGORITHMS = ("ring", "tree", "hierarchical", "direct")
FIDELITIES = ("pipelined", "steps")
MODES = ("auto", "exact", "fast", "coarse", "bound")

HELP = """Play traffic alone on the cluster of FILE: how long it takes, which link holds it up, and why.

FILE is a scenario, or holds nothing but a section "cluster:". Without a question of its own the command runs an all-to-all of every size
from --from to --to and prints the table of nccl-tests. KEY=VALUE lays a value over the file, for example cluster.oversubscription=2.

\b
  moesim network cluster.yaml                          all-to-all, size by size
  moesim network cluster.yaml --size 64M --skew 0.5    one size, popular destinations
  moesim network cluster.yaml --collective all_reduce  another operation
  moesim network cluster.yaml --nodes 1,2,4,8          what happens with more nodes
  moesim network cluster.yaml --incast 1,2,4,8         many senders, one receiver
  moesim network cluster.yaml --traffic bytes.csv      your own matrix
  moesim network scenario.yaml --layer 3               what an MoE layer really sends

Sizes are the bytes of a GPU's buffer: 64M and 64MiB are 2^26 bytes, as in nccl-tests, 64MB is 64,000,000.
"""


@click.command(name="network", short_help="Play traffic on the cluster alone, and find the bottleneck.", help=HELP)
@click.argument("file", type=click.Path())
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--traffic", type=click.Path(), metavar="MATRIX.csv", help="Bytes from each GPU (row) to each other (column).")
@click.option("--layer", type=click.IntRange(min=0), metavar="L", help="The dispatch of MoE layer L (from 0) of the scenario.")
@click.option("--step", type=click.IntRange(min=0), metavar="N", help="Whose routing --layer takes; 0 if not given.")
@click.option("--incast", metavar="K,K,...", help="So many senders to one receiver.")
@click.option("--receiver", type=click.IntRange(min=0), metavar="GPU", help="Who receives in --incast; 0 if not given.")
@click.option("--nodes", metavar="N,N,...", help="The same all-to-all with so many nodes (cluster.nodes).")
@click.option("--size", metavar="SIZE", help="One size instead of many; 256M for --nodes and --incast.")
@click.option("-b", "--from", "smallest", metavar="SIZE", help="The smallest size; 1K if not given.")
@click.option("-e", "--to", "largest", metavar="SIZE", help="The largest size; 1G if not given.")
@click.option("-f", "--factor", type=click.IntRange(min=2), metavar="F", help="From size to size; 2 if not given.")
@click.option(
    "--ep", type=click.IntRange(min=2), metavar="W", help="Groups of W neighbouring GPUs, all at once; one of all GPUs if not given."
)
@click.option("--collective", type=click.Choice(COLLECTIVES), help="Another operation than alltoall.")
@click.option("--algorithm", type=click.Choice(ALGORITHMS), help="How it is done; ring if not given.")
@click.option("--channels", type=click.IntRange(1, 64), metavar="N", help="Rings or trees side by side; one per network card of a node.")
@click.option("--fidelity", type=click.Choice(FIDELITIES), help="Pieces in a pipeline, or step by step; pipelined if not given.")
@click.option("--skew", type=click.FloatRange(min=0, max=10), metavar="SIGMA", help="Spread of the log-normal popularity of destinations.")
@click.option("--bins", type=click.IntRange(min=1, max=1000), default=24, show_default=True, help="Bins of time, at most.")
@click.option("--mode", type=click.Choice(MODES), help="How exactly links are shared; auto if neither this nor the file says it.")
@click.option("--verify", is_flag=True, help="Play a sample of the traffic again exactly, and say by how much it was off.")
@click.option("-o", "--out", metavar="FOLDER", help="Write the answer, tables and pictures there.")
@click.option(
    "--format", "form", type=click.Choice(["table", "json", "csv"]), default="table", show_default=True, help="How to print the answer."
)
def command(**options: Any) -> None:
    """Read what is asked, play it, print it."""
    form, folder = options.pop("form"), _folder(options.pop("out"))
    from moesim.cli.run import _announce_compiling
    from moesim.desk.network_answer import answer
    from moesim.desk.network_questions import Asked, find

    found = find(Asked(**options), ready=lambda: _announce_compiling(quiet=False))
    told = answer(found.result, found.why, name=found.name, question=found.question, rows=found.rows, notes=found.notes)
    click.echo(_printed(told, found, form), nl=False)
    sys.stdout.flush()
    if folder is not None:
        from moesim.desk.network_files import write_folder
        from moesim.desk.network_picture import pictures

        write_folder(folder, told, found.result, pictures(found.graph, found.result, title=f"{found.name}: {found.question}"))
        click.echo(f"Results in {folder}", err=True)


def _folder(out: str | None) -> Any:
    if out is None:
        return None
    from pathlib import Path

    from moesim.desk import folder as places
    from moesim.desk.network_files import NAMES

    if not out.strip():
        raise UsageError("-o names no folder")
    places.prepare(Path(out), NAMES)
    return Path(out)


def _printed(told: Mapping[str, Any], found: Found, form: str) -> str:
    if form == "json":
        from moesim.desk.summary import to_json

        return to_json(told)
    if form == "csv":
        from moesim.desk.network_files import link_table, rows_table
        from moesim.desk.tables import to_csv

        return to_csv(rows_table(found.rows) if found.rows else link_table(found.result))
    from moesim.desk.network_text import table

    return table(told)
