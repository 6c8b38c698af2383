"""``moesim plan``."""

from __future__ import annotations

from typing import Any

import click

from moesim.cli.study_options import Options, give, playing, study_options

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
@study_options("planned")
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
    **shared: Any,
) -> None:
    """Find the cheapest candidate that meets the targets."""
    from moesim.base.errors import SimulationError
    from moesim.desk.plan_ask import ask, playable, summaries
    from moesim.desk.plan_files import NAMES, candidates_csv, content, deliver
    from moesim.desk.plan_words import table
    from moesim.study.plan import find

    options = Options(**shared)
    options.check()
    asked = playable(
        ask(file, overrides, targets=targets, prices=prices, minimise=minimise, confidence=confidence, replicates=replicates)
    )  # fmt: skip
    folder = options.folder(asked.name, "planned")
    with playing(options, folder, NAMES, "plan") as store:
        found = find(
            asked.candidates, asked.plan.targets, store, objective=asked.plan.objective, confidence=asked.plan.confidence,
            summaries=summaries(), everything=everything,
        )  # fmt: skip
    give(
        options,
        folder,
        store,
        content=lambda: content(asked, found),
        sheet=lambda: candidates_csv(asked, found),
        table=lambda width, colour: table(asked.name, found, asked.plan, folder, width=width, colour=colour),
        warnings=asked.warnings,
        deliver=lambda: deliver(asked, found, folder, report=not options.no_report),
    )
    if found.chosen is None:
        if found.nearest is None:
            failed = next((one for one in found.judged if one.status == "failed"), None)
            raise SimulationError(f"no candidate could be judged{f'; {failed.candidate.name}: {failed.reason}' if failed else ''}")
        click.get_current_context().exit(3)
