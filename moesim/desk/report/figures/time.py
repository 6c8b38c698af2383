"""Where the time goes: bounds, phases of every GPU, steps one by one."""

from __future__ import annotations

import numpy as np

from moesim.desk.report import style
from moesim.desk.report.style import Drawing
from moesim.desk.words import change, show
from moesim.facts.record import Result, Value

STACK = ("attention", "dense", "gate", "shared", "experts", "dispatch", "combine", "waiting", "idle")
COLUMN = {
    "attention": "attention_s",
    "dense": "dense_s",
    "gate": "gate_s",
    "shared": "shared_s",
    "experts": "expert_s",
    "dispatch": "dispatch_transfer_s",
    "combine": "combine_transfer_s",
    "waiting": "waiting_s",
    "idle": "idle_s",
}
"""The column of ``gpus.csv`` (and of ``steps.csv``, but for idle) that holds each phase."""


def bounds(result: Result) -> Drawing | None:
    """Draw the step time beside what it would be with equal loads, and with a network that takes no time."""
    rows: list[tuple[str, Value, str]] = []
    for name, label, colour in (
        ("step_time", "predicted", style.ACCENT),
        ("step_time_if_balanced", "if perfectly balanced", "#009e73"),
        ("step_time_if_no_communication", "if communication were free", "#56b4e9"),
    ):
        value = result.metrics.get(name)
        if value is not None and value.value is not None:
            rows.append((label, value, colour))
    if not rows or rows[0][0] != "predicted":
        return None
    high = max(item.high if item.high is not None else _number(item) for _, item, _ in rows)
    height = 66.0 * len(rows) + 36
    figure = style.canvas(style.HALF, height)
    area = style.axes(figure, 16, 32, 20, 4)
    area.set_xlim(0, high * 1.02)
    area.set_ylim(len(rows) - 0.5, -0.5)
    whole = _number(rows[0][1])
    for at, (label, value, colour) in enumerate(rows):
        number = _number(value)
        area.barh(at + 0.18, number, height=0.42, color=colour, linewidth=0)
        if value.low is not None and value.high is not None and value.high - value.low > 0.01 * high:
            area.hlines(at + 0.18, value.low, value.high, color=style.INK, linewidth=1.6)
        saved = f"  ({change(whole, number)})" if at else ""
        area.text(0, at - 0.13, f"{label}: {show(number, 's')}{saved}", va="bottom", fontsize=12.5)
    _time_axis(area.xaxis, high)
    area.grid(visible=True, axis="x")
    style.ticks(area.yaxis, [], [])
    area.spines["left"].set_visible(False)
    area.spines["bottom"].set_visible(False)
    said = "; ".join(f"{label} {show(_number(value), 's')}" for label, value, _ in rows)
    return Drawing(
        name="bounds",
        title="What could be gained",
        caption="Step time, and two bounds: the same work spread evenly over GPUs, and the same work with communication that takes no time. "
        "A thin line, where it is wide enough to see, is the 95 % interval of the mean.",
        alt=f"Bars of the step time: {said}.",
        svg=style.svg(figure, "bounds"),
    )


def phases(result: Result) -> Drawing | None:
    """Draw each GPU's mean step as a stack of phases."""
    table = result.tables["gpus"]
    if not len(table):
        return None
    gpus = len(table)
    parts = [(name, np.maximum(table[COLUMN[name]].astype(float), 0.0)) for name in STACK]
    total = sum(values for _, values in parts)
    high = float(np.max(total))
    if high <= 0:
        return None
    parts = [(name, values) for name, values in parts if values.max() > high * 1e-6]
    figure = style.canvas(style.WHOLE, 300)
    area = style.axes(figure, 62, 48, 8, 10)
    gap = 0.22 if gpus <= 64 else 0.0
    edges = np.column_stack([np.arange(gpus) + gap / 2, np.arange(gpus) + 1 - gap / 2]).ravel() if gap else np.arange(gpus + 1)
    base = np.zeros(gpus)
    for name, values in parts:
        upper = base + values
        area.stairs(
            _gapped(upper, gap), edges, baseline=_gapped(base, gap), fill=True, facecolor=style.PHASES[name][1],
            edgecolor=style.PAPER, linewidth=0, hatch="///" if name == "waiting" else None,
        )  # fmt: skip
        base = upper
    node = table["node"]
    for at in np.flatnonzero(np.diff(node)) + 1:
        area.axvline(float(at), color=style.MUTED, linewidth=1, linestyle=(0, (2, 3)))
    area.set_xlim(0, gpus)
    area.set_ylim(0, high * 1.03)
    _time_axis(area.yaxis, high)
    area.grid(visible=True, axis="y")
    area.spines["left"].set_visible(False)
    shown = style.every(gpus, 17)
    style.ticks(area.xaxis, [at + 0.5 for at in shown], [str(table["gpu"][at]) for at in shown])
    area.set_xlabel("GPU" + (" (dotted: node boundary)" if node.max() > 0 else ""))
    waiting = table["waiting_s"]
    most, least = int(waiting.argmax()), int(waiting.argmin())
    said = (
        f"GPU {table['gpu'][most]} waits longest ({show(float(waiting[most]), 's')} a step), "
        f"GPU {table['gpu'][least]} least ({show(float(waiting[least]), 's')})"
    )
    return Drawing(
        name="phases",
        title="Where the time of every GPU goes",
        caption=f"Mean step of each GPU, forward and backward together. Transfer and waiting are kept apart: {said}.",
        alt=f"Stacked bars of the phases of {gpus} GPUs. {said}.",
        svg=style.svg(figure, "phases"),
        wide=True,
        legend=tuple((style.PHASES[name][0], style.PHASES[name][1], "hatched" if name == "waiting" else "") for name, _ in parts),
    )


def steps(result: Result) -> Drawing | None:
    """Draw the time of every measured step, and how the times are distributed."""
    table = result.tables["steps"]
    if len(table) < 2:
        return None
    times = table["step_time_s"].astype(float)
    low, high = float(times.min()), float(times.max())
    middle = float(times.mean())
    spread = max(high - low, middle * 0.02)
    bottom, top = min(low, middle - spread / 2) - 0.12 * spread, max(high, middle + spread / 2) + 0.12 * spread
    figure = style.canvas(style.HALF, 234)
    area = style.axes(figure, 58, 48, 142, 12)
    value = result.metrics.get("step_time")
    if value is not None and value.low is not None and value.high is not None:
        area.axhspan(value.low, value.high, color=style.ACCENT, alpha=0.16, linewidth=0)
    area.axhline(middle, color=style.ACCENT, linewidth=1.2)
    size = 5.0 if len(times) <= 60 else 2.5
    area.plot(table["step"], times, color=style.ACCENT, linewidth=1.0, alpha=0.55)
    area.plot(table["step"], times, linestyle="none", marker="o", markersize=size, color=style.ACCENT, markeredgewidth=0)
    area.set_ylim(bottom, top)
    places, labels, unit = style.scale(top, "s", 4, low=bottom)
    style.ticks(area.yaxis, places, labels)
    area.set_ylabel(unit)
    shown = [int(table["step"][at]) for at in style.every(len(times), 8)]
    style.ticks(area.xaxis, shown, [str(step) for step in shown])
    area.grid(visible=True, axis="y")
    area.set_xlabel("step")
    side = style.axes(figure, 360, 48, 22, 12)
    ordered = np.sort(times)
    side.step(np.arange(1, len(times) + 1) / len(times), ordered, where="pre", color=style.INK, linewidth=1.4)
    side.set_ylim(bottom, top)
    side.set_xlim(0, 1)
    style.ticks(side.yaxis, places, [""] * len(places))
    style.ticks(side.xaxis, [0, 0.5, 1], ["0", "50 %", "100 %"])
    side.grid(visible=True, axis="both")
    side.set_xlabel("of the steps")
    for part in (area, side):
        part.spines["left"].set_visible(False)
    return Drawing(
        name="steps",
        title="Step by step",
        caption=f"{len(times)} measured steps from {show(low, 's')} to {show(high, 's')}; the band is the 95 % interval of "
        "the mean, right the share of steps that take no longer. The axis does not start at 0.",
        alt=f"Time of {len(times)} steps: mean {show(middle, 's')}, from {show(low, 's')} to {show(high, 's')}.",
        svg=style.svg(figure, "steps"),
    )


def _number(value: Value) -> float:
    return 0.0 if value.value is None else value.value


def _gapped(values: np.ndarray, gap: float) -> np.ndarray:
    if not gap:
        return values
    spread = np.full(2 * len(values) - 1, np.nan)
    spread[::2] = values
    return spread


def _time_axis(axis: object, high: float) -> None:
    places, labels, unit = style.scale(high, "s", 5)
    style.ticks(axis, places, [f"{label} {unit}" if unit else label for label in labels])
