"""The answer of ``moesim why``: as data for scripts, and as text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from moesim.base.units import format_quantity
from moesim.desk.network_text import aligned
from moesim.study.why import Explanation

SHARES = {
    "phase": "by what was done",
    "gpu": "by GPU",
    "layer": "by layer",
    "link": "by the fullest link of a transfer",
    "experts": "by experts: the GPU that all waited for, and the expert with the most routes of that layer",
}
SHOWN = 6


def answer(found: Explanation) -> dict[str, Any]:
    """Return everything that was found, in SI units; shares and waits are means over the measured steps."""
    result = found.result
    steps = len(result.tables["steps"])
    base = float(result.tables["steps"]["step_time_s"].mean())
    waiting = found.waiting
    return {
        "schema": 1,
        "name": result.scenario.name,
        "seed": result.scenario.seed,
        "steps": steps,
        "step_time": base,
        "net_step_time": found.seconds,
        "critical_path": {name: dict(shares) for name, shares in found.shares.items()},
        "waiting": [
            {
                "gpu": int(waiting["gpu"][row]),
                "waiting_gpu": int(waiting["waiting_gpu"][row]),
                "seconds": float(waiting["seconds"][row]) / steps,
                "calls": int(waiting["calls"][row]),
                "worst_layer": int(waiting["worst_layer"][row]),
            }
            for row in range(len(waiting))
        ],
        "what_ifs": [
            {
                "name": what_if.name,
                "sentence": what_if.sentence,
                "step_time": what_if.step_time,
                "gain": what_if.gain,
                "gain_share": None if what_if.gain is None else what_if.gain / found.seconds,
                "error": what_if.error,
            }
            for what_if in found.what_ifs
        ],
        "warnings": list(result.warnings),
    }


def text(told: Mapping[str, Any]) -> str:
    """Return the answer as text."""
    base = told["step_time"]
    many = "one step" if told["steps"] == 1 else f"mean of {told['steps']} steps"
    stalls = told["net_step_time"] - base
    # Below a billionth it is rounding.
    also = f", and {format_quantity(stalls, 's')} of stalls while experts move" if stalls > 1e-9 * base else ""
    lines = [f"{told['name']}: a step takes {format_quantity(base, 's')}{also} ({many})", "", "The critical path of a step"]
    for name, heading in SHARES.items():
        shares = told["critical_path"][name]
        if not shares:
            continue
        lines.append(f"  {heading}")
        rows = [[what, format_quantity(seconds, "s"), f"{100 * seconds / base:.1f} %"] for what, seconds in list(shares.items())[:SHOWN]]
        more = len(shares) - len(rows)
        if more > 0:
            rest = sum(list(shares.values())[SHOWN:])
            rows.append([f"{more} more", format_quantity(rest, "s"), f"{100 * rest / base:.1f} %"])
        lines += aligned(rows, left={0}, indent="    ")
    with_stalls = "; stalls included" if also else ""
    lines += ["", f"What it would be worth to take away (the same steps simulated without{with_stalls})"]
    rows = []
    for what_if in told["what_ifs"]:
        if what_if["gain"] is None:
            rows.append([what_if["name"], "-", "-", f"not possible here: {what_if['error']}"])
        else:
            share = 100 * what_if["gain_share"]
            change = "no change" if abs(share) < 0.05 else f"{-share:+.1f} %"
            rows.append([what_if["name"], format_quantity(what_if["step_time"], "s"), change, what_if["sentence"]])
    lines += aligned([["change", "step", "", ""], *rows], left={0, 3}, indent="  ")
    lines += ["", "Who kept whom waiting, per step"]
    if not told["waiting"]:
        lines.append("  Nobody waited for anybody.")
    late: dict[int, float] = {}
    for row in told["waiting"]:
        late[row["gpu"]] = late.get(row["gpu"], 0.0) + row["seconds"]
    for gpu, seconds in sorted(late.items(), key=lambda item: (-item[1], item[0]))[:SHOWN]:
        mine = [row for row in told["waiting"] if row["gpu"] == gpu]
        most = mine[0]
        lines.append(
            f"  GPU {gpu} was waited for, {format_quantity(seconds, 's')} over {len(mine)} GPU{'s' if len(mine) > 1 else ''}; most by "
            f"GPU {most['waiting_gpu']}, {format_quantity(most['seconds'], 's')}, worst in layer {most['worst_layer']}"
        )
    lines += [f"Warning: {warning}" for warning in told["warnings"]]
    return "\n".join(lines) + "\n"
