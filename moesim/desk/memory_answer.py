"""The answer of ``moesim memory``: as data for scripts, and as text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from moesim.base.units import DIMENSIONS, format_quantity
from moesim.desk.network_text import aligned
from moesim.desk.words import show
from moesim.engine.warnings import left_alone
from moesim.facts.scenario import Scenario
from moesim.study.memory import MemoryNeed

SHOWN = 16
WIDE = 150
"""From this many columns on, buffers and activations have their quantiles in the table as well."""
WORDS = {"p50": "in half of the steps", "p99": "in 99 %", "max": "at most"}
PARTS = {
    "weights": "weights",
    "gradients": "gradients",
    "optimiser": "optimiser states",
    "activations": "activations of tokens",
    "expert_rows": "rows of experts: dispatch buffers, results, and between",
    "cache": "keys and values",
    "rebalanced": "experts copied for a batch",
}


def answer(scenario: Scenario, need: MemoryNeed) -> dict[str, Any]:
    """Return everything in SI units."""
    return {"schema": 1, "name": scenario.name, "seed": scenario.seed, **asdict(need), "warnings": left_alone(scenario)}


def text(told: Mapping[str, Any], width: int = WIDE) -> str:
    """Return the answer as text; on a narrow terminal the table has less."""
    repeated = "" if told["independent"] == told["steps"] else f", {told['independent']} of them with tokens of their own"
    lines = [f"{told['name']}: memory over {told['steps']} step{'' if told['steps'] == 1 else 's'}{repeated}", ""]
    most = headline(told)
    lines.append("The GPU that needs most in a step: " + ", ".join(f"{most[name]} {words}" for name, words in WORDS.items()))
    buffer, mean = told["buffer_rows"], told["mean_rows"]
    sizes = {name: _bytes(told["buffer"][name]) for name in WORDS}
    times = {name: f"{buffer[name]:,.0f} rows, {sizes[name]} ({buffer[name] / mean if mean else 0:.2f} x the mean)" for name in WORDS}
    factors = ", ".join(f"{times[name]} {words}" for name, words in WORDS.items())
    lines.append(f"The fullest receive buffer of any layer: {factors}")
    if told["limit"] is not None:
        chance = told["out_of_memory"]
        lines.append(
            f"More than {most['limit']} on some GPU: {100 * chance['value']:.3g} % of the steps "
            f"(between {100 * chance['low']:.3g} % and {100 * chance['high']:.3g} % at 95 %)"
        )
    lines += [*limits(told), "", *_breakdown(told["fullest"]), "", "GPU by GPU"]
    parts = ("buffer", "activations", "total")
    shown = {name: ("p50", "p99", "max") if width >= WIDE or name == "total" else ("max",) for name in parts}
    head = ["GPU", "weights", "rows p50", "p99", "max"]
    for name in parts:
        head += [f"{name} {shown[name][0]}", *shown[name][1:]]
    if told["limit"] is not None:
        head.append("runs out")
    rows = []
    order = sorted(told["gpus"], key=lambda gpu: (-gpu["total"]["max"], gpu["gpu"]))
    for gpu in order[:SHOWN]:
        row = [str(gpu["gpu"]), _bytes(gpu["weights"]), *(f"{gpu['rows'][name]:,.0f}" for name in ("p50", "p99", "max"))]
        row += [_bytes(gpu[name][quantile]) for name in parts for quantile in shown[name]]
        if told["limit"] is not None:
            row.append(f"{100 * gpu['out_of_memory']['value']:.3g} %")
        rows.append(row)
    lines += aligned([head, *rows], left=set(), indent="  ")
    if len(order) > SHOWN:
        lines.append(f"  and {len(order) - SHOWN} GPUs that need less")
    lines += [f"Warning: {warning}" for warning in told["warnings"]]
    return "\n".join(lines) + "\n"


def _breakdown(fullest: Mapping[str, Any]) -> list[str]:
    """Return what the GPU that needs most holds."""
    known = {words: float(fullest[name]) for name, words in PARTS.items() if fullest[name] > 0}
    total = sum(known.values())
    rows = [[words, _bytes(size), f"{100 * size / total:.1f} %"] for words, size in known.items()]
    head = f"What GPU {fullest['gpu']} holds, which needs most, in step {fullest['step']}"
    return [head, *aligned([*rows, ["together", _bytes(total), ""]], left={0}, indent="  ")]


def headline(told: Mapping[str, Any]) -> dict[str, str]:
    """Return ``p50``, ``p99`` and ``max`` of the GPU that needs most, and the limit, with as many digits as tell them apart.

    Examples
    --------
    >>> headline({"any_gpu": {"p50": 2.151e9, "p99": 2.153e9, "max": 2.153e9}, "limit": None})
    {'p50': '2.151 GB', 'p99': '2.153 GB', 'max': '2.153 GB'}
    """
    values = {name: float(told["any_gpu"][name]) for name in WORDS}
    if told["limit"] is not None:
        values["limit"] = float(told["limit"])
    found = {name: show(value, "B") for name, value in values.items()}
    for digits in (4, 5, 6):
        if len(set(found.values())) == len(set(values.values())):
            break
        sizes = {name: (value, _bytes(value).split()[1]) for name, value in values.items()}
        found = {name: f"{value / DIMENSIONS['B'].units[unit]:.{digits}g} {unit}" for name, (value, unit) in sizes.items()}
    return found


def limits(told: Mapping[str, Any]) -> list[str]:
    """Return what makes a limit pointless: that weights alone do not fit, or that a GPU has less."""
    limit = told["limit"]
    if limit is None:
        return []
    weights = max(gpu["weights"] for gpu in told["gpus"])
    if weights > limit:
        return [f"Weights alone take {_bytes(weights)} on some GPU: whatever is routed, they do not fit into {_bytes(limit)}"]
    if limit > told["gpu_memory"]:
        return [f"A GPU has {_bytes(told['gpu_memory'])}: the limit of {_bytes(limit)} is more than that"]
    return []


def _bytes(value: float) -> str:
    return format_quantity(value, "B")


def sheet(told: Mapping[str, Any]) -> str:
    """Return one row per GPU as CSV."""
    import csv
    import io

    stream = io.StringIO()
    names = [f"{what}_{name}" for what in ("rows", "buffer", "activations", "total") for name in ("mean", "p50", "p99", "max")]
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["gpu", "weights_bytes", *names, "out_of_memory", "out_of_memory_low", "out_of_memory_high"])
    for gpu in told["gpus"]:
        spreads = [gpu[what][name] for what in ("rows", "buffer", "activations", "total") for name in ("mean", "p50", "p99", "max")]
        risk = gpu["out_of_memory"] or {"value": "", "low": "", "high": ""}
        writer.writerow([gpu["gpu"], gpu["weights"], *spreads, risk["value"], risk["low"], risk["high"]])
    return stream.getvalue()
