"""``moesim measure training``: train small language models with PyTorch, and record what their routers do."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from moesim.base.errors import UsageError
from moesim.cli.measure_options import whole

if TYPE_CHECKING:
    from moesim.lab.training import Plan

HELP = """Train a small Mixture-of-Experts language model under each strategy, and record what its routers do.

A byte-level model of attention and routed experts, on text that comes with Python (prose, source code, tables of characters, names of
characters), or on yours. It is small, but everything in it is real: the loss, the optimiser, the router, the drops. A strategy is none,
or words joined by +:

\b
  aux=0.01             balance loss; scope=micro_batch, sequence or batch
  z=0.001              z-loss of the router
  bias=0.001           loss-free bias of this rate (with sigmoid scores)
  noise=0.3            normal noise on every logit
  capacity=1.25        capacity factor; what is above is dropped
  scoring=sigmoid      scores of the router

\b
  moesim measure training --quick
  moesim measure training --strategy none --strategy aux=0.01+capacity=1.25 --seeds 0,1 --steps 2000

For each training there is an NPZ trace of counts, by step, layer and source, which every command replays (routing: {kind: recorded, trace:
FILE}), and a JSON file beside it. Needs the extra "measure" (PyTorch); runs on the CPU.
"""
STANDARD = ("none", "aux=0.001", "aux=0.01", "aux=0.1", "bias=0.001", "aux=0.01+capacity=1.25")


@click.command(name="training", short_help="Train small models, and record their routers.", help=HELP)
@click.option("--strategy", "strategies", multiple=True, metavar="WORDS", help=f"As above; default: {', '.join(STANDARD)}.")
@click.option("--seeds", metavar="N,N,...", default="0", show_default=True, help="Each strategy is trained with each seed.")
@click.option("--steps", type=click.IntRange(1, 1_000_000), help="Of each training; 1500, or 30 with --quick.")
@click.option("--quick", is_flag=True, help="Two strategies and a few steps: to see that it works.")
@click.option("--layers", type=click.IntRange(1, 64), default=4, show_default=True, help="MoE layers.")
@click.option("--experts", type=click.IntRange(2, 1024), default=16, show_default=True, help="Of a layer.")
@click.option("--top-k", type=click.IntRange(1, 64), default=2, show_default=True, help="Experts of a token.")
@click.option("--hidden", type=click.IntRange(8, 4096), default=64, show_default=True, help="Hidden size, and width of an expert.")
@click.option("--sequences", type=click.IntRange(1, 4096), default=16, show_default=True, help="Of a step, 64 bytes each.")
@click.option("--sources", type=click.IntRange(1, 1024), default=4, show_default=True, help="Ranks that have the sequences.")
@click.option("--rate", type=click.FloatRange(1e-6, 1.0), default=2e-3, show_default=True, help="Learning rate of AdamW.")
@click.option("--every", type=click.IntRange(1, 1000), default=1, show_default=True, help="Steps between recorded counts.")
@click.option("--text", "texts", multiple=True, metavar="NAME=PATH", help="A domain of your own: a file, or a folder of files. Repeat it.")
@click.option("--threads", type=click.IntRange(1, 4096), default=1, show_default=True, help="CPU threads.")
@click.option("--licence", default="not stated", show_default=True, help="Licence of the recordings, for those you give them to.")
@click.option("-o", "--out", metavar="FOLDER", default="out/training", show_default=True, help="Where the files go.")
@click.option("--format", "form", type=click.Choice(["table", "json", "csv"]), default="table", show_default=True, help="What to print.")
@click.option("--quiet", is_flag=True, help="Show no progress.")
def training(**options: Any) -> None:
    """Train, record, write."""
    from pathlib import Path

    from moesim.lab.needs import need_torch

    need_torch()
    from moesim.lab.training import train
    from moesim.lab.training_files import environment, prepare, write
    from moesim.lab.training_text import domains_of_files, standard_domains

    if not options["out"].strip():
        raise UsageError("-o names no folder")
    folder = Path(options["out"])
    plans = _plans(options)
    texts = _texts(options["texts"])
    domains = domains_of_files(texts) if texts else standard_domains()
    prepare(folder, plans)
    about = environment()
    found: list[dict[str, Any]] = []
    for plan in plans:
        with _progress(plan, quiet=options["quiet"]) as progress:
            recording = train(plan, domains, progress=progress, threads=options["threads"])
        found.append(write(folder, recording, domains, licence=options["licence"], environment=about))
        if recording.interrupted:
            break
    click.echo(printed(found, options["form"]), nl=False)
    sys.stdout.flush()
    click.echo(f"Files in {folder}", err=True)
    if found[-1]["why"] == "interrupted":
        click.echo(f"interrupted; {len(found)} of {len(plans)} trainings are there, the last one in part", err=True)
        raise click.exceptions.Exit(130)
    broken = [item for item in found if item["partial"]]
    if broken:
        from moesim.base.errors import MeasurementError

        raise MeasurementError(f"{broken[0]['settings']['strategy']['name']}: {broken[0]['why']}; the steps before are in {folder}")


def _plans(options: dict[str, Any]) -> list[Plan]:
    from moesim.lab.training import Plan
    from moesim.lab.training_model import Size
    from moesim.lab.training_strategy import strategy

    quick = options["quick"]
    names = options["strategies"] or (STANDARD[:1] + STANDARD[4:5] if quick else STANDARD)
    hidden = options["hidden"]
    if hidden % 2:
        raise UsageError(f"--hidden {hidden} is odd, and attention has two heads; take an even number")
    size = Size(layers=options["layers"], hidden=hidden, width=hidden, experts=options["experts"], top_k=options["top_k"])
    steps = options["steps"] or (30 if quick else 1500)
    seeds = whole("--seeds", options["seeds"], least=0)
    return [
        Plan(
            strategy=strategy(name), size=size, steps=steps, seed=seed, every=options["every"], sequences=options["sequences"],
            sources=options["sources"], rate=options["rate"], sampled=min(256, options["sequences"] * size.length),
        )
        for name in names for seed in seeds
    ]  # fmt: skip


def _texts(given: Sequence[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for item in given:
        name, sign, path = item.partition("=")
        if not (name and sign and path):
            raise UsageError(f"--text {item!r} is not NAME=PATH")
        if name in found:
            raise UsageError(f"--text: the name {name!r} is there twice")
        found[name] = path
    return found


def printed(found: Sequence[dict[str, Any]], form: str) -> str:
    """Return the table of recordings in a format."""
    from moesim.desk.training_record import as_csv, shown

    if form == "json":
        from moesim.desk.summary import to_json

        return to_json(found[0] if len(found) == 1 else list(found))
    return as_csv(found) if form == "csv" else shown(found)


@contextmanager
def _progress(plan: Plan, *, quiet: bool) -> Iterator[Callable[[int, float], None] | None]:
    """Show the steps of a training, on a terminal."""
    if quiet or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn(f"{plan.strategy.name}, seed {plan.seed}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("steps"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=plan.steps)
        yield lambda done, _: bar.update(task, completed=done)
