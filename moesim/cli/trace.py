"""``moesim trace``: look into recorded routing, and write synthetic routing as if it were recorded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

SHOWN = (
    "layer",
    "routes",
    "dropped",
    "drop_rate",
    "fully_dropped",
    "expert_max_over_mean",
    "expert_coefficient_of_variation",
    "dead_experts",
    "rank_max_over_mean",
    "rank_coefficient_of_variation",
)
"""Columns of the table; JSON and CSV have all."""

HEADINGS = {
    "drop_rate": "drop rate",
    "fully_dropped": "fully dropped",
    "expert_max_over_mean": "expert max/mean",
    "expert_coefficient_of_variation": "expert CV",
    "dead_experts": "dead experts",
    "rank_max_over_mean": "rank max/mean",
    "rank_coefficient_of_variation": "rank CV",
}


@click.group()
def command() -> None:
    """Look into recorded routing, or write synthetic routing."""


@command.command()
@click.argument("trace", type=click.Path())
@click.option("--ep", type=click.IntRange(min=1), metavar="W", help="Expert-parallel ranks; default: as recorded, or 1.")
@click.option("--capacity-factor", type=float, metavar="F", help="What --rule allows, in multiples of the mean load; default: no limit.")
@click.option("--rule", metavar="RULE", help="Capacity rule; default: megatron with a capacity factor, dropless without.")
@click.option("--drop", metavar="ORDER", help="Which routes the rule drops first, for example probs or position.")
@click.option("--experts", type=click.IntRange(min=1), metavar="E", help="Experts of a layer, where the file does not say.")
@click.option("--top-k", type=click.IntRange(min=1), metavar="K", help="Choices of a token, where the file does not say.")
@click.option("--task", metavar="NAME", help="Which task, for a CSV that holds several.")
@click.option("--format", "form", type=click.Choice(["table", "json", "csv"]), default="table", show_default=True)
def info(
    trace: str,
    ep: int | None,
    capacity_factor: float | None,
    rule: str | None,
    drop: str | None,
    experts: int | None,
    top_k: int | None,
    task: str | None,
    form: str,
) -> None:
    """Say what TRACE is, how its load is spread, and what a capacity rule would drop of it.

    A trace without source ranks is dealt to the ranks in equal contiguous blocks of ceil(T / W) tokens; a trace without steps is one step.
    In JSON and CSV, expert_* and rank_* are routes before drops, rank_rows_* what a rank computes after them, padding included.
    """
    from moesim.desk.trace_files import read_trace
    from moesim.models.statistics import NO_TOKENS, layer_statistics, questions, ranks_of, why_no_drops, with_shape

    found = with_shape(read_trace(trace, task=task), experts=experts, top_k=top_k)
    ranks = ep or ranks_of(found)
    rule = rule or ("dropless" if capacity_factor is None and drop is None else "megatron")
    given = {key: value for key, value in {"factor": capacity_factor, "drop": drop}.items() if value is not None}
    limits = _build("capacity", rule, given, {"factor": "--capacity-factor", "drop": "--drop"})
    reason = "" if rule == "dropless" else why_no_drops(found, ranks)
    rows = layer_statistics(found, ranks=ranks, begin=None if reason else limits.begin)
    unknown = {}
    if reason:
        unknown = dict.fromkeys(("dropped", "drop_rate", "fully_dropped"), reason)
    elif found.ids is None:
        unknown = {"fully_dropped": NO_TOKENS}
    if found.experts % ranks:
        unknown["rank_*"] = f"{found.experts} experts do not divide over {ranks} ranks"
    elif reason:
        unknown["rank_rows_*"] = reason
    warnings = [found.fits_ranks(ranks)]
    if not found.experts_stated:
        warnings.append(
            f"the trace {found.name} does not state its number of experts: {found.experts} are taken from its largest id, "
            f"{found.experts - 1}, and means and capacities are shares of that; if there are more, give --experts"
        )
    for warning in filter(None, warnings):
        click.echo(f"Warning: {warning}", err=True)
    report = {
        "schema": 1,
        "trace": {
            "name": found.name,
            "digest": found.digest,
            "origin": found.origin,
            "fidelity": str(found.fidelity),
            "tokens": found.tokens or None,
            "layers": found.layers,
            "experts": found.experts,
            "experts_stated": found.experts_stated,
            "top_k": found.top_k or None,
            "conversations": None if found.sample_length is None else len(found.sample_length),
            "recorded_ranks": found.named_ranks,
        },
        "ep": ranks,
        "rule": rule,
        "capacity_factor": capacity_factor,
        "drop": getattr(limits, "drop", None),
        "questions": [
            {"question": each.question, "possible": each.possible, "reason": each.reason * (not each.possible)} for each in questions(found)
        ],
        "unknown": unknown,
        "layers": rows,
    }
    if form == "json":
        import json

        click.echo(json.dumps(report, indent=2, ensure_ascii=False, allow_nan=False))
    elif form == "csv":
        click.echo(_csv(rows), nl=False)
    else:
        click.echo(_table(report))


@command.command()
@click.argument("kind")
@click.argument("fields", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("-o", "--output", required=True, type=click.Path(dir_okay=False), metavar="FILE.npz", help="Where to write.")
@click.option("--experts", required=True, type=click.IntRange(min=1), metavar="E")
@click.option("--top-k", required=True, type=click.IntRange(min=1), metavar="K")
@click.option("--layers", default=1, show_default=True, type=click.IntRange(min=1), metavar="L")
@click.option("--tokens-per-gpu", default=4096, show_default=True, type=click.IntRange(min=1), metavar="T")
@click.option("--gpus", default=8, show_default=True, type=click.IntRange(min=1), metavar="G")
@click.option("--steps", default=1, show_default=True, type=click.IntRange(min=1), metavar="N")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(min=0), metavar="SEED")
def synth(
    kind: str,
    fields: tuple[str, ...],
    output: str,
    experts: int,
    top_k: int,
    layers: int,
    tokens_per_gpu: int,
    gpus: int,
    steps: int,
    seed: int,
) -> None:
    """Draw routing of a source KIND (see `moesim list sources`) and write it as a trace.

    KEY=VALUE are the keys of that source, for example alpha=1.2. The trace holds the step and the source GPU of each token.
    """
    from moesim import __version__
    from moesim.base.errors import FieldError, UsageError
    from moesim.desk.trace_files import read_trace, write_trace
    from moesim.models.bare_setting import bare_setting
    from moesim.models.source.traces import trace_of

    source = _build("source", kind, dict(_pair(field) for field in fields), {})
    try:
        setting = bare_setting(
            gpus=gpus, experts=experts, top_k=top_k, layers=layers, tokens_per_gpu=tokens_per_gpu, seed=seed, read_trace=read_trace
        )
    except FieldError as error:
        raise UsageError(f"--{error.field.replace('_', '-')}: {error}") from error
    draw = source.begin(setting)
    words = " ".join([kind, *fields])
    origin = (
        f"synthetic routing, moesim {__version__}: {words}; experts {experts}, top-k {top_k}, layers {layers}, "
        f"{tokens_per_gpu} tokens on each of {gpus} GPUs, {steps} steps, seed {seed}"
    )
    trace = trace_of(((step, draw(step)) for step in range(steps)), name=output, top_k=top_k, origin=origin)
    write_trace(trace, output)
    click.echo(output)


def _pair(field: str) -> tuple[str, Any]:
    from moesim.base.errors import UsageError
    from moesim.desk.yaml_core import plain

    key, equals, value = field.partition("=")
    if not equals or not key:
        raise UsageError(f"{field!r} is not a key=value pair; write for example alpha=1.2")
    return key, plain(value)


def _build(slot: str, kind: str, keys: Mapping[str, Any], options: Mapping[str, str]) -> Any:
    """Return the plug-in; wrong keys become one error in the words of the command line."""
    from pydantic import ValidationError

    from moesim.base.errors import UsageError
    from moesim.base.registry import SLOTS, build, plugin

    cls = plugin(slot, kind)
    try:
        return build(cls, keys)
    except ValidationError as error:
        told = []
        for problem in error.errors(include_url=False):
            key = str(problem["loc"][0]) if problem["loc"] else getattr(problem.get("ctx", {}).get("error"), "field", "")
            known = ", ".join(getattr(cls, "__dataclass_fields__", {})) or "none"
            message = {
                "missing": "is missing",
                "unexpected_keyword_argument": f"{slot} {kind!r} has no such key (known: {known})",
            }.get(problem["type"], problem["msg"].removeprefix("Value error, "))
            told.append(f"{options.get(key, key)}: {message}")
        raise UsageError(f"{SLOTS[slot].tag} {kind!r}: {'; '.join(told)}") from error


def _csv(rows: list[dict[str, Any]]) -> str:
    import csv
    import io

    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _cell(value: Any) -> str:
    if value is None:
        return "?"
    return f"{value:.4f}" if isinstance(value, float) else str(value)


def _table(report: dict[str, Any]) -> str:
    trace = report["trace"]
    size = [f"{trace['tokens']} tokens"] if trace["tokens"] else []
    size += [f"{trace['layers']} MoE layers", f"{trace['experts']} experts"]
    size += [f"top-{trace['top_k']}"] if trace["top_k"] else []
    size += [f"{trace['conversations']} conversations"] if trace["conversations"] else []
    lines = [f"{trace['name']}: {', '.join(size)}; knows {trace['fidelity']}"]
    if trace["origin"]:
        lines.append(f"origin: {trace['origin']}")
    factor = "" if report["capacity_factor"] is None else f", capacity factor {report['capacity_factor']:g}"
    factor += f", drop {report['drop']}" if report["drop"] else ""
    dealt = "as recorded" if trace["recorded_ranks"] else "dealt in equal blocks"
    lines += [f"{report['ep']} rank{'s' * (report['ep'] != 1)} ({dealt}), capacity rule {report['rule']}{factor}", ""]
    cells = [[HEADINGS.get(name, name) for name in SHOWN], *([_cell(row[name]) for name in SHOWN] for row in report["layers"])]
    widths = [max(len(row[column]) for row in cells) for column in range(len(SHOWN))]
    lines += ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in cells]
    lines.append("")
    lines += [f"? {name}: {reason}" for name, reason in report["unknown"].items()]
    lines += [f"can tell: {each['question']}" for each in report["questions"] if each["possible"]]
    lines += [f"cannot tell: {each['question']} ({each['reason']})" for each in report["questions"] if not each["possible"]]
    return "\n".join(lines)
