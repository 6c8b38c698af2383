"""``moesim measure``: run real kernels, real exchanges and real layers with PyTorch, and write down what they take."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from moesim.base.errors import UsageError
from moesim.cli.measure_options import (
    DTYPES,
    KERNELS,
    OPERATIONS,
    PATTERNS,
    POSTINGS,
    common,
    factor,
    number,
    seconds,
    settings,
    shapes,
    sizes_of,
    whole,
    words,
)
from moesim.cli.measure_testbed import testbed
from moesim.cli.measure_training import printed, training

if TYPE_CHECKING:
    from moesim.lab.job import Job

HELP = """Measure kernels, exchanges and layers with PyTorch, on whatever device is there.

\b
  moesim measure suite                  every kernel and a whole layer on one device
  moesim measure compute                experts, grouped GEMM, gate, permute
  moesim measure exchange --ranks 4     all-to-alls between 4 ranks
  moesim measure layer --ranks 4        an expert-parallel layer, forward and backward
  moesim measure overlap --ranks 4      experts beside an all-to-all, and each alone
  moesim measure training               routers of small language models, under each strategy
  moesim measure show layer.json        print a measurement again

Needs the extra "measure" (PyTorch). Each writes a JSON file and tidy tables; --quick takes seconds. Under torchrun the processes that it
has started are the ranks.
"""


@click.group(name="measure", short_help="Measure kernels, exchanges and layers with PyTorch.", help=HELP)
def command() -> None:
    """Do nothing by itself: the commands do."""


command.add_command(testbed)
command.add_command(training)


@command.command()
@common
@click.option("--shape", "shapes", metavar="HxWxExK,...", help="Hidden size, expert width, experts, top-k; for example 2048x1408x64x6.")
@click.option("--tokens", metavar="N,N,...", help="Tokens of the whole expert-parallel group.")
@click.option("--ep", metavar="W,W,...", help="Play the most loaded of so many ranks.")
@click.option("--dtype", "dtypes", metavar="T,T,...", help=f"Of {', '.join(DTYPES)}.")
@click.option(
    "--distribution", "distributions", metavar="D,D,...", default="balanced,power_law_1.2", show_default=True, help="Load of experts."
)
@click.option("--operations", metavar="O,O,...", default=",".join(OPERATIONS), show_default=True, help="What to time.")
@click.option(
    "--kernel", "kernels", metavar="K,K,...", default="auto", show_default=True, help=f"How experts are computed: {', '.join(KERNELS)}."
)
@click.option("--cold", is_flag=True, help="Empty the caches before every call.")
@click.option("--graph/--no-graph", default=None, help="Replay CUDA graphs; on by default on a GPU.")
def compute(**options: Any) -> None:
    """Measure kernels of an MoE layer on one device."""
    device = _alone(options["device"])
    from moesim.lab.job import Job
    from moesim.lab.loads import exponent_of
    from moesim.lab.plans import compute_cases, defaults

    sizes = defaults(device, quick=options["quick"])
    distributions = options["distributions"].split(",")
    for name in distributions:
        exponent_of(name)
    cases = compute_cases(
        shapes(options["shapes"]) or sizes.shapes,
        tokens=whole("--tokens", options["tokens"]) or sizes.tokens,
        ep=whole("--ep", options["ep"]) or sizes.ep,
        dtypes=words("--dtype", options["dtypes"], DTYPES) or sizes.dtypes,
        distributions=distributions,
        operations=words("--operations", options["operations"], OPERATIONS),
        kernels=words("--kernel", options["kernels"], KERNELS),
    )
    graph = device == "cuda" if options["graph"] is None else options["graph"]
    job = Job(kind="compute", cases=cases, **settings(options, device, sizes.repeats), cold=options["cold"], graph=graph)
    _measure([job], 1, options)


@command.command()
@common
@click.option("--ranks", type=click.IntRange(1, 1024), help="Processes; by default one per GPU, or one per core, at most 4.")
@click.option("--patterns", metavar="P,P,...", default=",".join(PATTERNS), show_default=True, help="Who sends how much to whom.")
@click.option("--sizes", metavar="S,S,...", help="Bytes of a rank's buffer, such as 64K,1M (powers of 1024, as in nccl-tests).")
@click.option("--matrix", "matrices", multiple=True, type=click.Path(), metavar="BYTES.csv", help="Your own matrix, instead of patterns.")
@click.option(
    "--posting", type=click.Choice(["both", *POSTINGS]), default="both", show_default=True, help="Own or the library's all-to-all."
)
@click.option("--backend", type=click.Choice(["auto", "gloo", "nccl"]), default="auto", show_default=True, help="What moves bytes.")
@click.option("--flows", is_flag=True, help="Note the end of every single message (CPU, receives first).")
@click.option("--port", type=click.IntRange(0, 65535), default=0, help="Where ranks meet; by default a free port.")
def exchange(**options: Any) -> None:
    """Measure all-to-alls between ranks."""
    _need()
    ranks, device = _ranks(options)
    from moesim.lab.job import Job
    from moesim.lab.plans import defaults, exchange_cases

    sizes = defaults(device, quick=options["quick"])
    cases = exchange_cases(
        ranks,
        patterns=() if options["matrices"] else words("--patterns", options["patterns"], PATTERNS),
        sizes=sizes_of(options["sizes"]) or sizes.sizes,
        postings=POSTINGS if options["posting"] == "both" else (options["posting"],),
        matrices=options["matrices"],
        seed=options["seed"],
    )
    job = Job(kind="exchange", cases=cases, **settings(options, device, sizes.repeats), backend=options["backend"], flows=options["flows"])
    _measure([job], ranks, options)


@command.command()
@common
@click.option("--ranks", type=click.IntRange(1, 1024), help="Processes; by default one per GPU, or one per core, at most 4.")
@click.option("--shape", metavar="HxWxExK", help="Hidden size, expert width, experts, top-k; for example 2048x1408x64x6.")
@click.option("--tokens", metavar="N", help="Tokens of a rank.")
@click.option(
    "--skew", "skews", metavar="A,A,...", default="0,0.6,1.2", show_default=True, help="Popularity of experts: rank to the power -A."
)
@click.option(
    "--capacity-factor",
    "factors",
    metavar="F,F,...",
    default="none,1,1.25,2",
    show_default=True,
    help="Capacity factors; none is dropless.",
)
@click.option("--drop", type=click.Choice(["probs", "position"]), default="probs", show_default=True, help="What survives a full expert.")
@click.option("--hottest-first", is_flag=True, help="Popularity falls with the number of the expert, so that rank 0 is the hottest.")
@click.option("--dtype", type=click.Choice(DTYPES[:3]), help="Number format; float32 on a CPU, bfloat16 on a GPU.")
@click.option("--kernel", type=click.Choice(KERNELS[:4]), default="auto", show_default=True, help="How experts are computed.")
@click.option(
    "--posting", type=click.Choice(POSTINGS), default="receives_first", show_default=True, help="Own or the library's all-to-all."
)
@click.option("--forward-only", is_flag=True, help="Leave out the backward pass.")
@click.option("--backend", type=click.Choice(["auto", "gloo", "nccl"]), default="auto", show_default=True, help="What moves bytes.")
@click.option("--port", type=click.IntRange(0, 65535), default=0, help="Where ranks meet; by default a free port.")
def layer(**options: Any) -> None:
    """Measure an expert-parallel MoE layer, forward and backward."""
    _need()
    ranks, device = _ranks(options)
    from moesim.lab.job import Job
    from moesim.lab.plans import defaults, layer_cases

    sizes = defaults(device, quick=options["quick"])
    asked = shapes(options["shape"]) or (sizes.layer_shape,)
    tokens = whole("--tokens", options["tokens"]) or (sizes.layer_tokens,)
    if len(asked) > 1 or len(tokens) > 1:
        raise UsageError("measure layer takes one --shape and one --tokens; run it once for each")
    cases = layer_cases(
        asked[0],
        tokens=tokens[0],
        skews=[number("--skew", word, least=0.0) for word in options["skews"].split(",")],
        factors=[None if word.strip() == "none" else factor(word) for word in options["factors"].split(",")],
        drop=options["drop"],
        popularity="in_order" if options["hottest_first"] else "shuffled",
        dtype=options["dtype"] or ("bfloat16" if device == "cuda" else "float32"),
        kernel=options["kernel"],
        posting=options["posting"],
        backward=not options["forward_only"],
    )
    _measure([Job(kind="layer", cases=cases, **settings(options, device, sizes.repeats), backend=options["backend"])], ranks, options)


@command.command()
@common
@click.option("--ranks", type=click.IntRange(2, 1024), help="Processes; by default one per GPU, or one per core, at most 4.")
@click.option("--shape", metavar="HxWxExK", help="Hidden size, expert width, experts of all ranks, top-k (which does not matter here).")
@click.option("--rows", metavar="N,N,...", help="Rows that a rank computes.")
@click.option("--sizes", metavar="S,S,...", help="Bytes that a rank sends, such as 1M,16M.")
@click.option("--dtype", type=click.Choice(DTYPES[:3]), help="Number format; float32 on a CPU, bfloat16 on a GPU.")
@click.option("--kernel", type=click.Choice(KERNELS[:4]), default="auto", show_default=True, help="How experts are computed.")
@click.option(
    "--posting", type=click.Choice(POSTINGS), default="receives_first", show_default=True, help="Own or the library's all-to-all."
)
@click.option("--backend", type=click.Choice(["auto", "gloo", "nccl"]), default="auto", show_default=True, help="What moves bytes.")
@click.option("--port", type=click.IntRange(0, 65535), default=0, help="Where ranks meet; by default a free port.")
def overlap(**options: Any) -> None:
    """Measure how much experts and an all-to-all slow each other down."""
    _need()
    ranks, device = _ranks(options)
    from moesim.lab.job import Job
    from moesim.lab.plans import defaults, overlap_cases

    sizes = defaults(device, quick=options["quick"])
    asked = shapes(options["shape"]) or (sizes.layer_shape,)
    if len(asked) > 1:
        raise UsageError("measure overlap takes one --shape; run it once for each")
    cases = overlap_cases(
        asked[0],
        ranks,
        rows=whole("--rows", options["rows"]) or sizes.overlap_rows,
        sizes=sizes_of(options["sizes"]) or sizes.overlap_sizes,
        dtype=options["dtype"] or ("bfloat16" if device == "cuda" else "float32"),
        kernel=options["kernel"],
        posting=options["posting"],
    )
    _measure([Job(kind="overlap", cases=cases, **settings(options, device, sizes.repeats), backend=options["backend"])], ranks, options)


@command.command()
@common
def suite(**options: Any) -> None:
    """Measure every kernel, and a whole layer on one device, under skew and capacity factors."""
    device = _alone(options["device"])
    import dataclasses

    from moesim.lab.plans import defaults
    from moesim.lab.plans import suite as jobs

    said = settings(options, device, defaults(device, quick=options["quick"]).repeats)
    planned = jobs(device, quick=options["quick"], seed=options["seed"], threads=options["threads"])
    _measure([dataclasses.replace(job, **said) for job in planned], 1, options)


@command.command()
@click.argument("file", type=click.Path())
@click.option("--format", "form", type=click.Choice(["table", "json", "csv"]), default="table", show_default=True, help="What to print.")
def show(file: str, form: str) -> None:
    """Print the measurement in FILE, made on this machine or another."""
    from pathlib import Path

    from moesim.desk.training_record import is_recording, read_recording
    from moesim.lab.files import read_measurement

    if is_recording(Path(file)):
        click.echo(printed([read_recording(Path(file))], form), nl=False)
        return
    click.echo(_printed([read_measurement(Path(file))], form), nl=False)


def _need() -> None:
    from moesim.lab.needs import need_torch

    need_torch()


def _alone(wanted: str) -> str:
    """Return the device of what is measured on one device."""
    _need()
    if _torchrun():
        raise UsageError("this measures one device: start it without torchrun (measure exchange and measure layer take several)")
    return _device(wanted, 1)


def _device(wanted: str, ranks: int) -> str:
    from moesim.lab.device import device_for

    return device_for(wanted, ranks, under_torchrun=_torchrun())


def _torchrun() -> bool:
    from moesim.lab.launch import under_torchrun

    return under_torchrun(os.environ)


def _ranks(options: dict[str, Any]) -> tuple[int, str]:
    """Return how many ranks there are, and their device."""
    from moesim.lab.device import default_ranks

    asked: int | None = options["ranks"]
    if _torchrun():
        from moesim.lab.rank import place_of

        _, world = place_of(os.environ)
        if asked not in (None, world):
            raise UsageError(f"--ranks {asked}, but torchrun has started {world}; leave --ranks out")
        return world, _device(options["device"], world)
    if options["backend"] == "nccl" and options["device"] == "cpu":
        raise UsageError("NCCL moves tensors of GPUs only: --backend nccl and --device cpu exclude each other")
    wanted = (
        "cuda"
        if options["backend"] == "nccl"
        else "cpu"
        if options["backend"] == "gloo" and options["device"] == "auto"
        else options["device"]
    )
    ranks = asked if asked is not None else default_ranks(wanted)
    options["device"] = wanted
    return ranks, _device(wanted, ranks)


def _measure(jobs: Sequence[Job], ranks: int, options: dict[str, Any]) -> None:
    """Run jobs one after the other; write and print what each has measured, also when it did not come to its end."""
    from pathlib import Path

    from moesim.base.errors import MeasurementError
    from moesim.lab.files import document, prepare, system_name, write
    from moesim.lab.launch import run_as_rank, run_ranks

    if not options["out"].strip():
        raise UsageError("-o names no folder")
    folder = Path(options["out"])
    first = not _torchrun() or os.environ.get("RANK") == "0"
    for job in jobs:
        job.check(ranks)
        if first:
            prepare(folder, job.kind)
    measured: list[dict[str, Any]] = []
    for job in jobs:
        if _torchrun():
            outcome = run_as_rank(job)
        else:
            with _progress(job.kind, quiet=options["quiet"]) as progress:
                outcome = run_ranks(job, ranks, timeout_s=seconds(options["timeout"]), port=options.get("port", 0), progress=progress)
        if outcome is None:
            continue
        found = document(job, outcome, system=system_name(options["system"]) if options["system"] else "", licence=options["licence"])
        useful = any("results" in case for case in found["cases"])
        if useful or not outcome.why:
            write(folder, found)
            measured.append(found)
        if outcome.why:
            if measured:
                click.echo(_printed(measured, options["form"]), nl=False)
            _give_up(outcome.why, interrupted=outcome.interrupted, code=outcome.exit_code, kept=str(folder) if useful else "")
        wrong = [case["name"] for case in found["cases"] if case.get("facts", {}).get("correct") is False]
        if wrong:
            click.echo(_printed(measured, options["form"]), nl=False)
            raise MeasurementError(f"{wrong[0]}: ranks received other bytes than were sent; the times are in {folder}, do not rely on them")
    if first:
        click.echo(_printed(measured, options["form"]), nl=False)
        sys.stdout.flush()
        click.echo(f"Files in {folder}", err=True)


def _give_up(why: str, *, interrupted: bool, code: int, kept: str) -> None:
    from moesim.base.errors import MeasurementError

    tail = f"; what was measured is in {kept}, marked partial" if kept else "; nothing was measured"
    if interrupted:
        click.echo(f"interrupted{tail}", err=True)
        raise click.exceptions.Exit(130)
    if code == 2:
        raise UsageError(f"{why}{tail if kept else ''}")
    raise MeasurementError(f"{why}{tail}")


def _printed(measured: Sequence[dict[str, Any]], form: str) -> str:
    if form == "json":
        from moesim.desk.summary import to_json

        return to_json(measured[0] if len(measured) == 1 else list(measured))
    if form == "csv":
        from moesim.lab.tables import tables

        return "\n".join(tables(item).get(f"{item['kind']}.csv", "") for item in measured)
    from moesim.lab.text import shown

    return "\n".join(map(shown, measured))


@contextmanager
def _progress(kind: str, *, quiet: bool) -> Iterator[Callable[[int, int], None] | None]:
    """Show how many repeats are measured, on a terminal."""
    if quiet or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn(f"measuring {kind}"), BarColumn(), MofNCompleteColumn(), TextColumn("repeats"), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(kind, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
