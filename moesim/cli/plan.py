"""``moesim plan``."""

from __future__ import annotations

import click

HELP = """Find the cheapest candidate that meets the targets, and say what keeps cheaper ones out.

Candidates, targets and prices are in the section "plan:" of FILE, or on the command line: KEY=VALUE lays a value over the file,
KEY=VALUE,VALUE makes candidates of the values. Candidates that a bound rules out are not simulated; the others are, the cheapest first,
until all that cost less than a plan that meets every target are decided. A plan that was interrupted goes on where it was.

\b
  moesim plan scenario.yaml
  moesim plan scenario.yaml cluster.nodes=1,2,4 --target 'step_time <= 60 ms' --target 'drop_rate <= 1 %'
  moesim plan scenario.yaml --price h100-sxm=2.5 --minimise cost_per_million_tokens

Exit code 3 if no candidate meets the targets; then the nearest miss is named.
"""


@click.command(name="plan", short_help="Find the cheapest cluster or policy that meets targets.", help=HELP)
@click.argument("file", type=click.Path())
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE[,VALUE...]]...")
@click.option("--target", "targets", multiple=True, metavar="TEXT", help="Such as 'step_time <= 60 ms'; as often as needed.")
@click.option("--price", "prices", multiple=True, metavar="GPU=NUMBER", help="What an hour of a GPU costs.")
@click.option("--minimise", type=click.Choice(["cost_per_hour", "cost_per_million_tokens", "gpus"]), help="What must be small.")
@click.option("--confidence", type=click.FloatRange(0.5, 0.999999), help="With which a target must be met; 0.95 if not said.")
@click.option("--replicates", type=click.IntRange(1, 1000), help="Seeds that each candidate is played with.")
@click.option("--all", "everything", is_flag=True, help="Simulate dearer candidates too, for the whole Pareto front.")
@click.option("-o", "--out", metavar="FOLDER", help="Where results go; out/<name of the scenario>-planned if not given.")
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
    targets: tuple[str, ...],
    prices: tuple[str, ...],
    minimise: str | None,
    confidence: float | None,
    replicates: int | None,
    everything: bool,
    out: str | None,
    form: str,
    jobs: int | None,
    executor: str,
    no_report: bool,
    quiet: bool,
) -> None:
    """Find the cheapest candidate that meets the targets."""
    from pathlib import Path

    from moesim.base.errors import SimulationError, UsageError
    from moesim.cli.study_output import counted, say
    from moesim.desk import folder as places
    from moesim.desk.cell_store import Store
    from moesim.desk.plan_ask import ask, summaries
    from moesim.desk.plan_files import NAMES, candidates_csv, content, deliver
    from moesim.desk.plan_words import table
    from moesim.desk.summary import to_json
    from moesim.study.plan import find

    if out is not None and not out.strip():
        raise UsageError("-o names no folder")
    asked = ask(
        file, overrides, targets=targets, prices=prices, minimise=minimise, confidence=confidence, replicates=replicates
    )  # fmt: skip
    if asked.first_problem:
        raise UsageError(f"none of the {len(asked.candidates)} candidates can be played: {asked.candidates[0].name}: {asked.first_problem}")
    folder = Path(out) if out is not None else Path("out") / f"{places.slug(asked.name)}-planned"
    places.prepare(folder, NAMES)
    with counted("planning", quiet=quiet) as told:
        store = Store(folder / "cells", executor=executor, jobs=jobs, told=told)
        found = find(
            asked.candidates, asked.plan.targets, store, objective=asked.plan.objective, confidence=asked.plan.confidence,
            summaries=summaries(), everything=everything,
        )  # fmt: skip

    def text(width: int, colour: bool) -> str:
        if form == "json":
            return to_json(content(asked, found))
        return candidates_csv(asked, found) if form == "csv" else table(asked.name, found, asked.plan, folder, width=width, colour=colour)

    say(text, asked.warnings, lambda: deliver(asked, found, folder, report=not no_report), folder=folder, quiet=quiet)
    if found.chosen is None:
        if found.nearest is None:
            failed = next((one for one in found.judged if one.status == "failed"), None)
            raise SimulationError(f"no candidate could be judged{f'; {failed.candidate.name}: {failed.reason}' if failed else ''}")
        click.get_current_context().exit(3)
