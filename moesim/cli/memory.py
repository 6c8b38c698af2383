"""``moesim memory``."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from moesim.facts.trace import Trace


@click.command(name="memory", short_help="Say how much memory GPUs need, and how likely one runs out.")
@click.argument("file", type=click.Path())
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--limit", metavar="SIZE", help="Memory of a GPU that may be used, such as 72GiB; the GPU's own if not given.")
@click.option("-o", "--out", metavar="FOLDER", help="Write memory.json and report.html there; nothing is written if not given.")
@click.option(
    "--format", "form", type=click.Choice(["table", "json", "csv"]), default="table", show_default=True, help="How to print the answer."
)
@click.option("--quiet", is_flag=True, help="Print no progress.")
def command(*, file: str, overrides: tuple[str, ...], limit: str | None, out: str | None, form: str, quiet: bool) -> None:
    """Say how much memory the GPUs of the scenario in FILE need in each step, and how likely an unlucky one runs out.

    Plays routing, gate, capacity rule, placement and dispatch of every step, but no kernels and no network, so it is quick: give it many
    steps (steps=1000). It prints the rows that GPUs receive, their buffers and activations, as quantiles over the steps, and the share of
    steps in which a GPU needs more than the limit.
    """
    from functools import cache

    from moesim.base.errors import UsageError
    from moesim.base.units import parse_quantity
    from moesim.cli.study_output import ready_folder, tell
    from moesim.desk.memory_answer import answer, text
    from moesim.desk.scenario_file import load_scenario
    from moesim.desk.trace_files import read_trace
    from moesim.engine.rows import rows_of_steps
    from moesim.study.memory import memory_need

    @cache
    def read(path: str, **task: Any) -> Trace:
        return read_trace(path, **task)

    most: float | None = None
    if limit is not None:
        try:
            most = parse_quantity(limit, "B")
        except ValueError as error:
            raise UsageError(f"--limit: {error}") from None
        if most <= 0:
            raise UsageError(f"--limit: {limit} is no memory; write for example '72 GiB'")
    folder = ready_folder(out, "memory")
    scenario = load_scenario(file, overrides, read_trace=read)
    if most is None:
        most = scenario.cluster.build().gpu.memory
    screen = sys.stderr.isatty() and not quiet

    def progress(done: int, total: int) -> None:
        if screen:
            click.echo(f"\r{done} of {total} steps" + ("\n" if done == total else ""), nl=False, err=True)

    told = answer(scenario, memory_need(scenario, rows_of_steps(scenario, read_trace=read, progress=progress), limit=most))
    if form == "json":
        from moesim.desk.summary import to_json

        said = to_json(told)
    elif form == "csv":
        from moesim.desk.memory_answer import sheet

        said = sheet(told)
    else:
        import shutil

        said = text(told, shutil.get_terminal_size().columns) if sys.stdout.isatty() else text(told)
    tell(said, told, "memory", folder)
