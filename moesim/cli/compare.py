"""``moesim compare``."""

from __future__ import annotations

from typing import Any

import click

from moesim.cli.study_options import Options, give, playing, study_options


@click.command(name="compare", short_help="Play policies with the same tokens and say which is better.")
@click.argument("file", type=click.Path())
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option(
    "--variant", "variants", multiple=True, metavar="NAME:KEY=VALUE[,KEY=VALUE...]", help="A further variant, which may change any key."
)
@click.option("--baseline", metavar="NAME", help="What the others are compared with; the first variant if not given.")
@click.option("--by", default="step_time", show_default=True, metavar="METRIC", help="What decides who wins.")
@click.option(
    "--replicates", type=click.IntRange(min=1), default=5, show_default=True, help="Seeds of each variant, or stretches of a recording."
)
@study_options("compared")
def command(
    *,
    file: str,
    overrides: tuple[str, ...],
    variants: tuple[str, ...],
    baseline: str | None,
    by: str,
    replicates: int,
    **shared: Any,
) -> None:
    """Play the variants of FILE with the same tokens, and say which is better, worse or not distinguishable.

    Variants are those under compare: in FILE. KEY=VALUE lays a value over all of them; KEY=VALUE,VALUE makes a variant of each value
    instead. The folder holds the comparison for scripts, two tables, every variant's scenario, and a page with the variants side by side.
    """
    from moesim.desk.compare_files import NAMES, content, deliver, differences_csv
    from moesim.desk.compare_text import table
    from moesim.desk.comparing import ask, conclude

    options = Options(**shared)
    options.check()
    question = ask(file, overrides, variants, baseline=baseline, by=by, replicates=replicates)
    folder = options.folder(question.name, "compared")
    cells = question.cells()
    with playing(options, folder, NAMES, "compare", total=len({cell.digest for cell in cells})) as store:
        answers = store(cells)
    outcome = conclude(question, answers)
    give(
        options,
        folder,
        store,
        content=lambda: content(outcome),
        sheet=lambda: differences_csv(outcome),
        table=lambda width, colour: table(outcome, folder, width=width, colour=colour),
        warnings=outcome.warnings,
        deliver=lambda: deliver(outcome, folder, report=not options.no_report),
    )
    if outcome.failed:
        click.get_current_context().exit(1)
