"""``moesim why``."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from moesim.facts.trace import Trace


@click.command(name="why", short_help="Say why a step takes as long as it does, and what would help.")
@click.argument("file", type=click.Path())
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("-o", "--out", metavar="FOLDER", help="Write why.json and report.html there; nothing is written if not given.")
@click.option(
    "--format", "form", type=click.Choice(["table", "json", "csv"]), default="table", show_default=True, help="How to print the answer."
)
@click.option(
    "--each", type=click.IntRange(min=0), default=3, show_default=True,
    help="How many single links, layers and GPUs are looked at, those with the most time on the critical path; a run each.",
)  # fmt: skip
@click.option("--quiet", is_flag=True, help="Print no progress.")
def command(*, file: str, overrides: tuple[str, ...], out: str | None, form: str, each: int, quiet: bool) -> None:
    """Say why a step of the scenario in FILE takes as long as it does, and what would help.

    Follows the critical path of every step (whose computing, which transfers, over which link), adds up who kept whom waiting, and
    simulates the same steps again with one thing taken away at a time: a class of links or a single link twice as fast, a layer with even
    loads, a GPU whose experts are not late, rebalancing for free. With --format csv it prints these changes.
    """
    from functools import cache

    from moesim.cli.run import _announce_compiling
    from moesim.cli.study_output import ready_folder, tell
    from moesim.desk.scenario_file import load_scenario
    from moesim.desk.trace_files import read_trace
    from moesim.desk.why_answer import answer, text
    from moesim.study.why import explain

    @cache
    def read(path: str, **task: Any) -> Trace:
        return read_trace(path, **task)

    folder = ready_folder(out, "why")
    scenario = load_scenario(file, overrides, read_trace=read)
    _announce_compiling(quiet=quiet)
    screen = sys.stderr.isatty() and not quiet

    def progress(done: int, total: int) -> None:
        if screen:
            click.echo(f"\r{done} of {total} runs" + ("\n" if done == total else ""), nl=False, err=True)

    told = answer(explain(scenario, read_trace=read, progress=progress, each=each))
    if form == "json":
        from moesim.desk.summary import to_json

        said = to_json(told)
    elif form == "csv":
        import csv
        import io

        sheet = io.StringIO()
        writer = csv.DictWriter(sheet, ["name", "step_time", "gain", "gain_share", "sentence", "error"], lineterminator="\n")
        writer.writeheader()
        writer.writerows(told["what_ifs"])
        said = sheet.getvalue()
    else:
        said = text(told)
    tell(said, told, "why", folder)
