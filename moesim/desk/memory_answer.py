"""The answer of ``moesim memory``: as data for scripts, and as text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from moesim.base.units import format_quantity
from moesim.desk.network_text import aligned
from moesim.engine.warnings import left_alone
from moesim.facts.scenario import Scenario
from moesim.study.memory import MemoryNeed

SHOWN = 16
WORDS = {"p50": "in half of the steps", "p99": "in 99 %", "max": "at most"}


def answer(scenario: Scenario, need: MemoryNeed) -> dict[str, Any]:
    """Return everything in SI units."""
    return {"schema": 1, "name": scenario.name, "seed": scenario.seed, **asdict(need), "warnings": left_alone(scenario)}


def text(told: Mapping[str, Any]) -> str:
    """Return the answer as text."""
    repeated = "" if told["independent"] == told["steps"] else f", {told['independent']} of them with tokens of their own"
    lines = [f"{told['name']}: memory over {told['steps']} step{'' if told['steps'] == 1 else 's'}{repeated}", ""]
    most = {name: _bytes(told["any_gpu"][name]) for name in WORDS}
    lines.append("The GPU that needs most in a step: " + ", ".join(f"{most[name]} {words}" for name, words in WORDS.items()))
    buffer, mean = told["buffer_rows"], told["mean_rows"]
    times = {name: f"{buffer[name]:,.0f} rows ({buffer[name] / mean if mean else 0:.2f} x the mean)" for name in WORDS}
    factors = ", ".join(f"{times[name]} {words}" for name, words in WORDS.items())
    lines.append(f"The fullest receive buffer of any layer: {factors}")
    if told["limit"] is not None:
        chance = told["out_of_memory"]
        lines.append(
            f"More than {_bytes(told['limit'])} on some GPU: {100 * chance['value']:.3g} % of the steps "
            f"(between {100 * chance['low']:.3g} % and {100 * chance['high']:.3g} % at 95 %)"
        )
    lines += ["", "GPU by GPU"]
    head = ["GPU", "weights", "rows p50", "p99", "max", "buffer max", "activations max", "total p50", "p99", "max"]
    if told["limit"] is not None:
        head.append("runs out")
    rows = []
    order = sorted(told["gpus"], key=lambda gpu: (-gpu["total"]["max"], gpu["gpu"]))
    for gpu in order[:SHOWN]:
        row = [str(gpu["gpu"]), _bytes(gpu["weights"]), *(f"{gpu['rows'][name]:,.0f}" for name in ("p50", "p99", "max"))]
        row += [
            _bytes(gpu["buffer"]["max"]),
            _bytes(gpu["activations"]["max"]),
            *(_bytes(gpu["total"][name]) for name in ("p50", "p99", "max")),
        ]
        if told["limit"] is not None:
            row.append(f"{100 * gpu['out_of_memory']['value']:.3g} %")
        rows.append(row)
    lines += aligned([head, *rows], left=set(), indent="  ")
    if len(order) > SHOWN:
        lines.append(f"  and {len(order) - SHOWN} GPUs that need less")
    lines += [f"Warning: {warning}" for warning in told["warnings"]]
    return "\n".join(lines) + "\n"


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
