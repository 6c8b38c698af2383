"""``moesim place``."""

from __future__ import annotations

import sys
from typing import Any

import click

from moesim.base.errors import UsageError

EXPORTS = ("sglang", "tensorrt-llm", "vllm-ascend")

HELP = """Plan which GPU holds which experts, from loads alone: what it would give, and the file that an engine loads.

SOURCE is where the loads come from: a NumPy array or a CSV of numbers, [layers, experts]; SGLang's JSON with logical_count; a recording,
whose routes are counted; or the folder of a finished run, whose scenario then says what is left out here. --loads says the same.

\b
  moesim place loads.npy --slots 288 --gpus 32 --nodes 4 --groups 8
  moesim place trace.npz --gpus 8 --slots 72 --kind greedy
  moesim place out/my-run --slots 72 --format json
  moesim place loads.npy --gpus 8 --model deepseek-v3 --slots 288 --export sglang -o placement.json

The load of an expert is taken to split evenly over its replicas. `in order` is what experts 0, 1, 2 ... without replicas would give.
"""


@click.command(name="place", short_help="Plan a placement of experts from their loads.", help=HELP)
@click.argument("source", required=False, type=click.Path())
@click.option("--loads", type=click.Path(), metavar="LOADS", help="The loads, instead of SOURCE.")
@click.option("--kind", default="eplb", show_default=True, metavar="KIND", help="Of the planner; a wrong one lists all.")
@click.option("--slots", type=click.IntRange(1, 2**17), metavar="N", help="Physical experts of a layer; one for each expert if not given.")
@click.option("--gpus", type=click.IntRange(1, 2**17), metavar="G", help="Ranks that share them; those of the run, if SOURCE is one.")
@click.option("--nodes", type=click.IntRange(min=1), metavar="M", help="Nodes of these GPUs; 1, or those of the run.")
@click.option("--groups", type=click.IntRange(min=1), metavar="Q", help="Groups of experts; 1, or those of the model.")
@click.option("--experts", type=click.IntRange(min=1), metavar="E", help="How many there are, where a recording does not say.")
@click.option("--task", metavar="TASK", help="Which task of a CSV that holds several.")
@click.option("--model", metavar="MODEL", help="A preset's name or a config.json: for memory, groups and numbers of layers.")
@click.option("--export", type=click.Choice(EXPORTS), help="Write the placement as this engine loads it; needs -o.")
@click.option("-o", "--out", type=click.Path(dir_okay=False), metavar="FILE", help="Where --export writes.")
@click.option("--time", "timed", is_flag=True, help="Also measure how long planning takes here: policy.rebalance.planner_time.")
@click.option(
    "--format", "form", type=click.Choice(["table", "json", "csv"]), default="table", show_default=True, help="How to print the answer."
)
def command(
    *,
    source: str | None,
    loads: str | None,
    kind: str,
    task: str | None,
    model: str | None,
    export: str | None,
    out: str | None,
    timed: bool,
    form: str,
    **sizes: int | None,
) -> None:
    """Read the loads, plan, print, and write what an engine loads."""
    path = _path(source, loads)
    _check_export(export, out)
    from moesim.desk.place_loads import model_named, read_loads
    from moesim.desk.place_plan import Sizes, place, to_export

    known = None if model is None else model_named(model)
    placed = place(read_loads(path, task=task), kind, Sizes(**sizes), known)
    notes = list(placed.notes)
    content = None
    if export is not None:
        from moesim.desk.placement_files import exported

        planned, more = to_export(placed, export)
        content = exported(planned, export)
        notes += more
    for note in notes:
        click.echo(f"Warning: {note}", err=True)
    click.echo(_printed(placed, form), nl=False)
    sys.stdout.flush()
    if timed:
        click.echo(_timed(placed), err=True)
    if content is not None and out is not None:
        from pathlib import Path

        from moesim.desk.folder import put

        put(Path(out), content.encode())
        click.echo(f"Placement for {export} in {out}", err=True)


def _path(source: str | None, loads: str | None) -> str:
    if source is not None and loads is not None:
        raise UsageError(f"SOURCE ({source}) and --loads ({loads}) are the same thing; leave one out")
    path = loads if source is None else source
    if path is None:
        raise UsageError("there is nothing to plan by: name loads, a recording or the folder of a run, for example moesim place loads.npy")
    return path


def _check_export(export: str | None, out: str | None) -> None:
    if (export is None) != (out is None):
        missing = "-o FILE says where --export writes" if out is None else f"--export says what -o {out} shall hold: {', '.join(EXPORTS)}"
        raise UsageError(f"--export and -o go together: {missing}")
    if out is not None and not out.strip():
        raise UsageError("-o names no file")
    if export == "sglang" and out is not None and not out.endswith(".json"):
        raise UsageError(f"-o {out}: SGLang takes a path for a file only if it ends in .json")


def _timed(placed: Any) -> str:
    """Say how long planning takes, in the words of a scenario; a clock's reading never enters the answer itself."""
    from moesim.base.units import format_quantity
    from moesim.desk.place_plan import TIMED, planning_seconds

    took = format_quantity(planning_seconds(placed), "s")
    return f"Planning took {took} on this machine (median of {TIMED}): policy.rebalance.planner_time='{took}'"


def _printed(placed: Any, form: str) -> str:
    from moesim.desk import place_answer

    if form == "json":
        return place_answer.text_of(place_answer.answer(placed))
    return place_answer.rows(placed) if form == "csv" else place_answer.table(placed) + "\n"
