"""The page: what is said, in which order, and the tables beside the figures."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from moesim.desk.columns import definition
from moesim.desk.report import figures
from moesim.desk.report.style import GRADIENT, Drawing
from moesim.desk.result_files import Parcel
from moesim.desk.tables import unit_of
from moesim.desk.words import change, definitions, imbalance, interval, line, show, value_of, waiting_share
from moesim.facts.record import Result, Table
from moesim.models.sharing.told import told

HERE = Path(__file__).parent / "templates"
LONGEST = 64
"""Rows of a table on the page; the CSV beside it has all."""

BASES = {
    "exact": "counted, nothing estimated",
    "measured": "rests on measurements",
    "fitted": "rests on a model fitted to measurements",
    "datasheet": "rests on a data sheet",
    "assumed": "rests on an assumption",
}

NOT_MODELLED = (
    "Loss, accuracy, or any other effect of dropped tokens and balancing on what the model learns.",
    "Congestion control, packet loss and retries, adaptive routing, and traffic of other jobs on the fabric.",
    "Jitter of kernel launches, clock changes, thermal limits, failures.",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tile:
    """One headline number."""

    label: str
    value: str
    note: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Sheet:
    """One table of the page; the first column of a row heads it."""

    name: str
    title: str
    note: str
    columns: tuple[tuple[str, str, bool], ...]
    """Heading, what it means, and whether it holds numbers."""
    rows: tuple[tuple[tuple[str, str], ...], ...]
    """Text of a cell, and what it sorts by."""


@cache
def _template() -> Any:
    """Return the page's template, compiled once with all that it includes."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE), autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.filters["tight"] = tight
    for name in environment.list_templates():
        environment.get_template(name)
    return environment.get_template("page.html.j2")


def get_ready() -> None:
    """Load, before there is a result, what the first page needs: templates and the definitions of metrics."""
    _template()
    definitions({})


def page(result: Result, *, summary: Mapping[str, Any], scenario_text: str, drawings: Mapping[str, Drawing] | None = None) -> str:
    """Return the page as HTML.

    Parameters
    ----------
    result : Result
        A finished run, fresh or read from a folder.
    summary : mapping
        The content of ``summary.json``: digests and version.
    scenario_text : str
        The resolved scenario.
    drawings : mapping, optional
        The figures by name, if they are drawn already.

    Returns
    -------
    str
        One document without a reference to anything outside it; the same for the same result.
    """
    drawings = figures.draw(result) if drawings is None else drawings
    html: str = _template().render(
        name=result.scenario.name,
        subtitle=subtitle(result),
        answer=answer(result),
        tiles=tiles(result),
        figures=drawings,
        no_drops="drops" not in drawings,
        metrics=metrics(result),
        imbalance=imbalance(result),
        sheets=sheets(result),
        warnings=result.warnings,
        alarms=result.facts.get("health", []),
        assumptions=result.assumptions,
        not_modelled=NOT_MODELLED,
        provenance=provenance(result, summary),
        scenario=scenario_text,
        bases=BASES,
        gradient=GRADIENT,
    )  # fmt: skip
    return html


def draw(parcel: Parcel) -> bytes:
    """Return the page of a result that was packed, or read back from its folder."""
    return page(parcel.result, summary=parcel.summary, scenario_text=parcel.scenario_text).encode()


def tight(text: str) -> str:
    """Keep a number and its unit on one line."""
    return re.sub(r"(?<=\d) (?=(?:%|[nµm]?s|[kMGT]?B(?:/s)?|[kMGT] tokens/s|GPUs?|nodes?)\b|%)", "\u00a0", text)


def subtitle(result: Result) -> list[str]:
    """Return what was run, in short pieces."""
    facts, scenario = result.facts, result.scenario
    steps = len(result.tables["steps"])
    pieces = [
        f"{facts.get('model', scenario.model.name)}",
        f"{facts.get('gpus')} × {facts['gpu']}" if facts.get("gpu") else f"{facts.get('gpus')} GPUs",
        _count(facts.get("nodes"), "node"),
        f"EP {scenario.parallel.ep}" + (f" of {scenario.parallel.etp} GPUs each" if scenario.parallel.etp > 1 else ""),
        f"{facts.get('moe_layers')} MoE layers of {facts.get('experts')} experts, top {facts.get('top_k')}",
        f"{scenario.workload.phase}, {facts.get('tokens_per_step', 0):,.0f} tokens a step",
        _count(steps, "measured step"),
    ]
    return [piece for piece in pieces if piece]


def answer(result: Result) -> str:
    """Return the result in a few sentences."""
    step = result.metrics.get("step_time")
    if step is None or step.value is None:
        return "This run has no step time."
    said = [f"A step takes {show(step.value, 's')}" + (f" (95 % interval {between})." if (between := interval(step)) else ".")]
    balanced, free = value_of(result, "step_time_if_balanced"), value_of(result, "step_time_if_no_communication")
    bounds = []
    if balanced is not None:
        # Even loads also undo drops, so that the bound can lie above a step that drops much of its work.
        bounds.append(f"with perfectly even loads it would take {show(balanced, 's')} ({change(step.value, balanced)})")
    if free is not None:
        bounds.append(
            f"{'with' if not bounds else 'and with'} communication that takes no time {show(free, 's')} ({change(step.value, free)})"
        )
    if bounds:
        sentence = ", ".join(bounds) + "."
        said.append(sentence[0].upper() + sentence[1:])
    share, drops = waiting_share(result), value_of(result, "drop_rate")
    rest = []
    if share is not None:
        rest.append(f"GPUs spend {show(share, '', share=True)} of it waiting for slower peers")
    if drops is not None:
        rest.append(f"{show(drops, '', share=True)} of the routes are dropped" if drops else "no route is dropped")
    if rest:
        sentence = "; ".join(rest) + "."
        said.append(sentence[0].upper() + sentence[1:])
    return " ".join(said)


def tiles(result: Result) -> list[Tile]:
    """Return the headline numbers that this run has."""
    metrics, step = result.metrics, value_of(result, "step_time")
    found: list[Tile] = []

    def add(name: str, label: str, note: str = "", *, share: bool = False) -> None:
        value = metrics.get(name)
        if value is not None and value.value is not None:
            found.append(Tile(label=label, value=show(value.value, value.unit, share=share), note=note))

    def between(name: str, *, share: bool = False) -> str:
        value = metrics.get(name)
        return interval(value, share=share) if value is not None else ""

    add("step_time", "step time", between("step_time"))
    for name, label in (("step_time_if_balanced", "if balanced"), ("step_time_if_no_communication", "if communication were free")):
        add(name, label, change(step or 0.0, value_of(result, name) or 0.0))
    add("tokens_per_second", "throughput", between("tokens_per_second"))
    add("drop_rate", "routes dropped", between("drop_rate", share=True), share=True)
    share = waiting_share(result)
    if share is not None:
        found.append(
            Tile(
                label="waiting for peers",
                value=show(share, "", share=True),
                note=f"{show(value_of(result, 'waiting_time'), 's')} of a step",
            )
        )
    balancedness = value_of(result, "balancedness")
    add("rank_max_over_mean", "GPU load, max ÷ mean", "" if balancedness is None else f"balancedness {show(balancedness, '')}")
    add("peak_memory", "peak memory", "of the fullest GPU")
    return found


def metrics(result: Result) -> list[tuple[Any, str, int]]:
    """Return every metric with its definition and the number of steps it was taken from."""
    meaning = definitions(result.metrics)
    return [(line(name, value), meaning[name], value.n) for name, value in result.metrics.items()]


LAYERS = (
    "moe_layer",
    "layer",
    "routes",
    "dropped",
    "expert_max",
    "expert_mean",
    "rank_max",
    "rank_mean",
    "dispatch_bytes",
    "cross_node_bytes",
)
GPUS = (
    "gpu",
    "node",
    "rows",
    "attention_s",
    "expert_s",
    "dispatch_transfer_s",
    "combine_transfer_s",
    "waiting_s",
    "idle_s",
    "peak_memory_bytes",
)


def sheets(result: Result) -> list[Sheet]:
    """Return the tables of layers, GPUs and links."""
    tables = result.tables
    links = tables["links"]
    order = np.lexsort((np.arange(len(links)), -links["utilisation"]))
    fullest = Table(columns={name: column[order] for name, column in links.columns.items()}, units=links.units)
    return [
        _sheet("layers", _layer_means(tables["layers"]), "Layers", "Means of the measured steps.", LAYERS),
        _sheet("gpus", tables["gpus"], "GPUs", "Means per measured step.", GPUS),
        _sheet("links", fullest, "Links", "Means per measured step, the fullest first.", tuple(links.columns)),
    ]


def provenance(result: Result, summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return where the result comes from: enough to repeat it."""
    scenario = result.scenario
    policy = scenario.policy
    rows = [
        ("moesim", str(summary.get("version", ""))),
        ("scenario digest", str(summary.get("scenario_digest", ""))),
        ("seed", str(scenario.seed)),
        ("steps", f"{scenario.steps}, of which {scenario.warmup} warm-up"),
        ("policy", ", ".join(f"{slot} {getattr(policy, slot).kind}" for slot in ("gate", "capacity", "placement", "dispatch"))),
        (
            "models",
            ", ".join(f"{slot} {getattr(scenario, slot).kind}" for slot in ("cluster", "routing", "exchange", "compute", "schedule")),
        ),
    ]
    if "sharing" in result.facts:
        rows.append(("network", told(result.facts["sharing"])))
    trace = result.facts.get("trace")
    if isinstance(trace, Mapping):
        rows.append(("trace", " · ".join(str(trace[key]) for key in ("name", "digest", "origin") if trace.get(key))))
    return rows


def _layer_means(table: Table) -> Table:
    layers, at, count = np.unique(table["moe_layer"], return_inverse=True, return_counts=True)
    columns = {}
    for name, column in table.columns.items():
        if name == "step":
            continue
        mean = np.bincount(at, weights=column.astype(float), minlength=len(layers)) / count
        columns[name] = mean.astype(np.int64) if name in {"moe_layer", "layer"} else mean
    return Table(columns=columns, units=table.units)


def _sheet(name: str, table: Table, title: str, note: str, wanted: Iterable[str]) -> Sheet:
    columns = [column for column in wanted if column in table.columns]
    shown = min(len(table), LONGEST)
    if shown < len(table):
        note += f" {shown} of {len(table)} rows; all are in {name}.csv."
    cells = [[_cell(column, unit_of(column, table.units), item) for item in table[column][:shown].tolist()] for column in columns]
    heads = tuple((_heading(column), definition(name, column), table[column].dtype.kind in "iuf") for column in columns)
    return Sheet(name=name, title=title, note=note, columns=heads, rows=tuple(zip(*cells, strict=True)))


def _heading(column: str) -> str:
    for suffix in ("_s", "_Bps"):
        column = column.removesuffix(suffix)
    return {"gpu": "GPU", "moe_layer": "MoE layer"}.get(column, column.replace("_", " "))


def _cell(column: str, unit: str, item: Any) -> tuple[str, str]:
    if isinstance(item, str):
        return item, item
    if column.endswith("utilisation"):
        return show(item, "", share=True), repr(item)
    if column in {"gpu", "node", "moe_layer", "layer"}:
        return str(item), repr(item)
    return show(item, unit) if unit else f"{item:,.0f}", repr(item)


def _count(number: Any, what: str) -> str:
    return "" if number is None else f"{number:,} {what}{'' if number == 1 else 's'}"
