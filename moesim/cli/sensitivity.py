"""``moesim sensitivity``."""

from __future__ import annotations

from typing import Any

import click

from moesim.cli.study_options import Options, give, playing, study_options

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
@study_options("sensitivity")
def command(
    *, file: str, overrides: tuple[str, ...], metric: str | None, spread: float | None, samples: int | None, **shared: Any
) -> None:  # fmt: skip
    """Say which inputs move the answer, and which change nothing."""
    from moesim.desk.sensitivity_ask import ask, study
    from moesim.desk.sensitivity_words import NAMES, content, csv_text, deliver, table

    options = Options(**shared)
    options.check()
    question = ask(file, overrides, metric=metric, spread=spread, samples=samples)
    folder = options.folder(question.scenario.name, "sensitivity")
    with playing(options, folder, NAMES, "sensitivity") as store:
        found = study(question, store)
    give(
        options,
        folder,
        store,
        content=lambda: content(found),
        sheet=lambda: csv_text(found),
        table=lambda width, colour: table(found, folder, width=width, colour=colour),
        warnings=found.warnings,
        deliver=lambda: deliver(found, folder, report=not options.no_report),
    )
