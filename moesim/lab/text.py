"""Measurements as text for a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from moesim.base.units import format_quantity


def shown(measured: Mapping[str, Any]) -> str:
    """Return the table of a measurement: one line per case, medians and quartiles."""
    makers = {"compute": _compute, "exchange": _exchange, "layer": _layer, "overlap": _overlap}
    environment = measured["environment"]
    device = environment.get("gpu", {}).get("name") or environment.get("processor") or "unknown device"
    torch = environment.get("torch", {}).get("version", "?")
    ranks = "1 rank" if measured["ranks"] == 1 else f"{measured['ranks']} ranks"
    head = f"{measured['kind']} on {measured['system']}: {ranks}, {device}, PyTorch {torch}, {measured['made']}"
    header, rows = makers[measured["kind"]]([case for case in measured["cases"] if "results" in case])
    lines = [head, "", *_aligned(header, rows)]
    for why, of in errors(measured).items():
        lines.append(f"not measured: {of[0]}{f' and {len(of) - 1} more' if len(of) > 1 else ''}: {why}")
    if measured["partial"]:
        lines += ["", f"PARTIAL: {measured['why']}"]
    return "\n".join(lines) + "\n"


def errors(measured: Mapping[str, Any]) -> dict[str, list[str]]:
    """Return the names of the cases that could not be measured, by reason."""
    found: dict[str, list[str]] = {}
    for case in measured["cases"]:
        if "error" in case:
            found.setdefault(case["error"], []).append(case["name"])
    return found


def _aligned(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    return ["  ".join([row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]).rstrip()
            for row in (header, *rows)]  # fmt: skip


def _time(seconds: float) -> str:
    return format_quantity(seconds, "s")


def _spread(result: Mapping[str, Any]) -> list[str]:
    return [_time(result["median"]), _time(result["q25"]), _time(result["q75"]), _time(result["min"]), str(result["n"])]


def _compute(cases: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[str]]]:
    rows = []
    for case in cases:
        facts, result = case["facts"], case["results"]["time"]
        rate = f"{facts['flop'] / result['median'] / 1e12:.3g}" if facts["flop"] else ""
        rows.append(
            [case["name"], facts["kernel"], str(facts["rows"]), *_spread(result), rate, f"{facts['bytes'] / result['median'] / 1e9:.3g}"]
        )
    return ["case", "kernel", "rows", "median", "q25", "q75", "min", "n", "Tflop/s", "GB/s"], rows


def _exchange(cases: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[str]]]:
    rows = [
        [case["name"], *_spread(case["results"]["rank_time"]), _time(case["results"]["completion"]["median"]),
         f"{case['facts']['algbw'] / 1e9:.4g}", f"{case['facts']['busbw'] / 1e9:.4g}", "yes" if case["facts"]["correct"] else "WRONG DATA"]
        for case in cases
    ]  # fmt: skip
    return ["case", "time", "q25", "q75", "min", "n", "completion", "algbw GB/s", "busbw GB/s", "correct"], rows


def _layer(cases: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[str]]]:
    rows = []
    for case in cases:
        facts, results = case["facts"], case["results"]
        over = facts["max_rank_load"] / facts["mean_rank_load"] if facts["mean_rank_load"] else 1.0
        whole = _time(results["step"]["median"]) if case["parameters"]["backward"] else ""
        skew = results.get("skew_combine", {"median": 0.0})["median"]
        rows.append(
            [
                case["name"],
                *_spread(results["forward"]),
                whole,
                f"{sum(facts['dropped']) / facts['routes']:.4f}",
                f"{over:.3f}",
                _time(skew),
                facts["kernel"],
            ]
        )
    return ["case", "forward", "q25", "q75", "min", "n", "with backward", "drop rate", "rank max/mean", "skew at combine", "kernel"], rows


def _overlap(cases: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[str]]]:
    rows = []
    for case in cases:
        results = case["results"]
        alone = results["compute"]["median"] + results["exchange"]["median"]
        parts = [_time(results[name]["median"]) for name in ("compute", "exchange", "compute_beside", "exchange_beside")]
        hidden = f"{100 * (1 - results['overlapped']['median'] / alone):.0f} %"
        rows.append([case["name"], *_spread(results["overlapped"]), *parts, hidden, case["facts"]["kernel"]])
    head = ["case", "overlapped", "q25", "q75", "min", "n", "experts alone", "exchange alone", "experts beside", "exchange beside"]
    return [*head, "saved", "kernel"], rows
