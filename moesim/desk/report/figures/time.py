"""Where the time goes: bounds, phases of every GPU, steps one by one."""

from __future__ import annotations

import numpy as np

from moesim.desk.report import style
from moesim.desk.report.style import Drawing
from moesim.desk.words import change, phase_seconds, show
from moesim.facts.record import Result, Value


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
        style.boxes(area, [0.0], number, at - 0.03, at + 0.39, colour=colour)
        if value.low is not None and value.high is not None and value.high - value.low > 0.01 * high:
            area.hlines(at + 0.18, value.low, value.high, color=style.INK, linewidth=1.6)
        saved = f"  ({change(whole, number)})" if at else ""
        area.text(0, at - 0.13, f"{label}: {show(number, 's')}{saved}", va="bottom", fontsize=12.5)
    style.across(area, *_times(high), grid=True)
    said = "; ".join(f"{label} {show(_number(value), 's')}" for label, value, _ in rows)
    return Drawing(
        name="bounds",
        title="The step and its bounds",
        caption="What the run predicts, what it would take with perfectly even loads, and what with communication that takes no time. "
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
    parts = list(phase_seconds(table).items())
    total = sum(values for _, values in parts)
    high = float(np.max(total))
    if high <= 0:
        return None
    parts = [(name, values) for name, values in parts if values.max() > high * 1e-6]
    figure = style.canvas(style.WHOLE, 300)
    area = style.axes(figure, 62, 48, 8, 10)
    gap = 0.11 if gpus <= 64 else 0.0
    base, at = np.zeros(gpus), np.arange(gpus)
    for name, values in parts:
        hatch = "///" if name == "waiting" else None
        style.boxes(area, at + gap, at + 1 - gap, base, base + values, colour=style.COLOURS[name], hatch=hatch)
        base = base + values
    node = table["node"]
    for edge in np.flatnonzero(np.diff(node)) + 1:
        area.axvline(float(edge), color=style.MUTED, linewidth=1, linestyle=(0, (2, 3)))
    area.set_xlim(0, gpus)
    area.set_ylim(0, high * 1.03)
    style.upward(area, *_times(high), grid=True)
    shown = style.every(gpus, 17)
    title = "GPU" + (" (dotted: node boundary)" if node.max() > 0 else "")
    style.across(area, [i + 0.5 for i in shown], [str(table["gpu"][i]) for i in shown], title=title)
    waiting = table["waiting_s"]
    most, least = int(waiting.argmax()), int(waiting.argmin())
    said = (
        f"GPU {table['gpu'][most]} waits longest ({show(float(waiting[most]), 's')} a step), "
        f"GPU {table['gpu'][least]} least ({show(float(waiting[least]), 's')})"
    )
    return Drawing(
        name="phases",
        title="Where the time of every GPU goes",
        caption=f"Mean step of each GPU. Transfer and waiting are kept apart: {said}.",
        alt=f"Stacked bars of the phases of {gpus} GPUs. {said}.",
        svg=style.svg(figure, "phases"),
        wide=True,
        legend=style.legend(name for name, _ in parts),
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
    style.upward(area, places, labels, title=unit, grid=True, gap=46)
    shown = [int(table["step"][at]) for at in style.every(len(times), 8)]
    style.across(area, shown, [str(step) for step in shown], title="step", line=True)
    side = style.axes(figure, 360, 48, 22, 12)
    ordered = np.sort(times)
    side.step(np.arange(1, len(times) + 1) / len(times), ordered, where="pre", color=style.INK, linewidth=1.4)
    side.set_ylim(bottom, top)
    side.set_xlim(0, 1)
    style.upward(side, places, [""] * len(places), grid=True)
    style.across(side, [0, 0.5, 1], ["0", "50 %", "100 %"], title="of the steps", grid=True)
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


def _times(high: float) -> tuple[list[float], list[str]]:
    places, labels, unit = style.scale(high, "s", 5)
    return places, [f"{label} {unit}" if unit else label for label in labels]
