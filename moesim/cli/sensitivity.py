"""``moesim sensitivity``."""

from __future__ import annotations

import click

HELP = """Vary the inputs of FILE and say which move the answer, and which change nothing.

Every input goes to its low and its high end alone, the others staying where they are. Without ranges these are all bandwidths, latencies,
efficiencies, factors and tokens of the scenario, 20 % down and up. With --samples all inputs that moved the answer vary together, and their
shares in its variance are Sobol indices. If FILE has variants under "compare:", the answer also says whether their winner would change.

\b
  moesim sensitivity scenario.yaml
  moesim sensitivity scenario.yaml cluster.nic='40 GB/s..50 GB/s' policy.capacity.factor=1.0..1.5 --samples 32
  moesim sensitivity scenario.yaml --metric drop_rate --spread 0.5
"""


@click.command(name="sensitivity", short_help="Say which inputs move the answer, and which change nothing.", help=HELP)
@click.argument("file", type=click.Path())
@click.argument("overrides", nargs=-1, metavar="[KEY=LOW..HIGH | KEY=VALUE]...")
@click.option("--metric", metavar="METRIC", help="What is looked at; step_time if not said.")
@click.option("--spread", type=click.FloatRange(0.0, 0.99, min_open=True), help="How far inputs without a range go; 0.2 if not said.")
@click.option("--samples", type=click.IntRange(min=0), help="Base samples of the Sobol indices, a power of two; none if not said.")
@click.option("-o", "--out", metavar="FOLDER", help="Where results go; out/<name of the scenario>-sensitivity if not given.")
@click.option(
    "--format", "form", type=click.Choice(["table", "json", "csv"]), default="table", show_default=True, help="How to print the result."
)
@click.option("--jobs", type=click.IntRange(min=1), help="Worker processes; as many as there are cores if not given.")
@click.option(
    "--executor", default="auto", show_default=True, metavar="KIND",
    help="Where runs are played: inline, processes, dask, dask://host:port, or auto (inline if the rest takes a few seconds only).",
)  # fmt: skip
@click.option("--no-report", is_flag=True, help="Do not draw report.html.")
@click.option("--quiet", is_flag=True, help="Print no progress and no warnings.")
def command(
    *,
    file: str,
    overrides: tuple[str, ...],
    metric: str | None,
    spread: float | None,
    samples: int | None,
    out: str | None,
    form: str,
    jobs: int | None,
    executor: str,
    no_report: bool,
    quiet: bool,
) -> None:
    """Say which inputs move the answer, and which change nothing."""
    from pathlib import Path

    from moesim.base.errors import UsageError
    from moesim.cli.study_output import counted, say
    from moesim.desk import folder as places
    from moesim.desk.cell_store import Store
    from moesim.desk.sensitivity_ask import ask, study
    from moesim.desk.sensitivity_words import NAMES, content, csv_text, deliver, table
    from moesim.desk.summary import to_json

    if out is not None and not out.strip():
        raise UsageError("-o names no folder")
    question = ask(file, overrides, metric=metric, spread=spread, samples=samples)
    folder = Path(out) if out is not None else Path("out") / f"{places.slug(question.scenario.name)}-sensitivity"
    places.prepare(folder, NAMES)
    with counted("varying", quiet=quiet) as told:
        found = study(question, Store(folder / "cells", executor=executor, jobs=jobs, told=told))

    def text(width: int, colour: bool) -> str:
        if form == "json":
            return to_json(content(found))
        return csv_text(found) if form == "csv" else table(found, folder, width=width, colour=colour)

    say(text, found.warnings, lambda: deliver(found, folder, report=not no_report), folder=folder, quiet=quiet)
