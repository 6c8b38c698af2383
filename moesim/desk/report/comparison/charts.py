"""Figures with one mark per variant: the trade-off, the differences, where the time goes, memory."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes

from moesim.desk.compare_shown import Shown
from moesim.desk.compare_words import change, is_share, told
from moesim.desk.report import hover, style
from moesim.desk.report.points import front, named, scaled, short
from moesim.desk.report.style import Drawing
from moesim.desk.words import PHASES, capital, label, phase_seconds, show
from moesim.facts.record import Table, Value

ROW = 30.0
"""CSS pixels of one variant in a chart of bars."""

NAMES = 168.0
"""CSS pixels beside a chart for the names of variants."""


def tradeoff(shown: Shown) -> Drawing | None:
    """Draw the objective of every variant against its drop rate, or against the load of its fullest GPU where all drop the same."""
    by = shown.by
    against = "rank_max_over_mean" if _alike(shown, "drop_rate") else "drop_rate"
    if against == by:
        against = "step_time"
    points = {
        name: (metrics[against], metrics[by])
        for name, metrics in shown.comparison.metrics.items()
        if metrics[against].value is not None and metrics[by].value is not None
    }
    if len(points) < 2:
        return None
    figure = style.canvas(style.WHOLE, 400)
    area = style.axes(figure, 74, 52, 150, 16)
    xs, ys = ([pair[axis] for pair in points.values()] for axis in (0, 1))
    _scaled(area, xs, against, upright=False)
    _scaled(area, ys, by, upright=True)
    best_of_both = front([(_of(x), _of(y)) for x, y in points.values()], shown.comparison.winner.better)
    area.plot([x for x, _ in best_of_both], [y for _, y in best_of_both], color=style.MUTED, linewidth=1.0, linestyle=(0, (3, 3)), zorder=1)
    for name, (x, y) in points.items():
        base = name == shown.comparison.baseline
        if x.low is not None and x.high is not None:
            area.hlines(_of(y), x.low, x.high, color=style.INK, linewidth=1.3, zorder=2)
        if y.low is not None and y.high is not None:
            area.vlines(_of(x), y.low, y.high, color=style.INK, linewidth=1.3, zorder=2)
        (mark,) = area.plot(
            [_of(x)], [_of(y)], marker="s" if base else "o", markersize=8, markerfacecolor=style.PAPER if base else style.ACCENT,
            markeredgecolor=style.ACCENT, markeredgewidth=1.8, linestyle="none", zorder=3,
        )  # fmt: skip
        hover.say(mark, f"{name}: {label(against)} {_shown(against, x)}, {label(by)} {_shown(by, y)}")
    named(area, {name: (_of(x), _of(y)) for name, (x, y) in points.items()})
    best = shown.comparison.winner.best
    return Drawing(
        name="tradeoff",
        title=f"{capital(label(by))} against {label(against)}",
        caption="Bars are intervals of 95 % of each variant alone; how sure a difference is stands in the verdicts, which are paired. "
        f"The square is the baseline, {shown.comparison.baseline}. The dotted line joins the variants that no other beats in both.",
        alt=f"Scatter plot of {len(points)} variants. "
        + "; ".join(f"{name}: {label(against)} {_shown(against, x)}, {label(by)} {_shown(by, y)}" for name, (x, y) in points.items())
        + (f". Best by {label(by)}: {best}." if best else "."),
        svg=style.svg(figure, "tradeoff"),
        wide=True,
    )


def differences(shown: Shown) -> Drawing | None:
    """Draw what each variant changes in the objective."""
    return _forest(shown, shown.by, "differences")


def exposed(shown: Shown) -> Drawing | None:
    """Draw what each variant changes in the time that communication is not hidden."""
    return None if shown.by == "exposed_communication" else _forest(shown, "exposed_communication", "exposed")


def _forest(shown: Shown, by: str, figure_name: str) -> Drawing | None:
    """Draw what each variant changes in a metric, with the interval corrected for many comparisons."""
    comparison = shown.comparison
    found = {name: of[by] for name, of in comparison.differences.items() if of[by].value is not None}
    if not found or all(each.value == 0 for each in found.values()):
        return None
    relative = all(each.per_cent is not None for each in found.values())
    rows = []
    for name, each in found.items():
        absolute, part = (each.corrected_low, each.corrected_high), (each.corrected_per_cent_low, each.corrected_per_cent_high)
        ends = [end for end in (part if relative else absolute) if end is not None]
        value = (each.per_cent if relative else each.value) or 0.0
        rows.append((name, each, value, min(ends, default=value), max(ends, default=value)))
    low, high = min(0.0, *(row[3] for row in rows)), max(0.0, *(row[4] for row in rows))
    room = 0.06 * (high - low) or 1.0
    figure = style.canvas(style.HALF, ROW * len(rows) + 66)
    area = style.axes(figure, NAMES, 48, 14, 12)
    area.set_xlim(low - room, high + room)
    area.set_ylim(len(rows) - 0.5, -0.5)
    places = style.multiples(low - room, high + room, 4)
    unit = " %" if relative else ""
    style.across(area, places, [f"{place:+g}".replace("-", "−").replace("+0", "0") + unit for place in places], grid=True)
    area.vlines([0.0], -0.5, len(rows) - 0.5, color=style.INK, linewidth=1.2)
    for row, (_, each, value, first, last) in enumerate(rows):
        area.hlines([row], first, last, color=style.INK, linewidth=1.6)
        sure = bool(each.differs)
        area.plot(
            [value], [row], marker={"better": "^", "worse": "v"}.get(each.verdict, "o"), markersize=8, linestyle="none", zorder=3,
            markerfacecolor=(style.ACCENT if each.verdict == "better" else style.ALERT) if sure else style.PAPER, markeredgewidth=1.6,
            markeredgecolor=(style.ACCENT if each.verdict == "better" else style.ALERT) if sure else style.MUTED,
        )  # fmt: skip
        hover.say_over(area, low - room, high + room, row - 0.5, row + 0.5, f"{rows[row][0]}: {change(each)}, {told(each)}")
    style.upward(area, range(len(rows)), [short(row[0]) for row in rows])
    said = "; ".join(f"{name} {change(each)}, {told(each)}" for name, each, *_ in rows)
    return Drawing(
        name=figure_name,
        title=f"{capital(label(by))} against {comparison.baseline}",
        caption="▲ better, ▼ worse, ○ not distinguishable. Differences are paired; a line that does not cross 0 is told from chance after "
        "correction for all comparisons.",
        alt=f"Differences from {comparison.baseline}: {said}.",
        svg=style.svg(figure, figure_name),
    )


def phases(shown: Shown) -> Drawing | None:
    """Draw where the time of a step goes under each variant, mean over GPUs."""
    tables = _first_tables(shown, "gpus")
    spent = {name: {phase: float(values.mean()) for phase, values in phase_seconds(table).items()} for name, table in tables.items()}
    longest = max((sum(parts.values()) for parts in spent.values()), default=0.0)
    if not longest > 0:
        return None
    figure = style.canvas(style.HALF, ROW * len(spent) + 66)
    area = style.axes(figure, NAMES, 48, 14, 12)
    area.set_xlim(0, longest * 1.02)
    area.set_ylim(len(spent) - 0.5, -0.5)
    places, labels, unit = style.scale(longest, "s")
    style.across(area, places, labels, title=f"time in a step, {unit}", grid=True)
    seen = []
    for phase in PHASES:
        left = np.array([sum(list(parts.values())[: list(PHASES).index(phase)]) for parts in spent.values()])
        width = np.array([parts[phase] for parts in spent.values()])
        if width.max() < 0.001 * longest:
            continue
        seen.append(phase)
        rows = np.arange(len(spent))
        hatch = "//" if phase == "waiting" else None
        style.boxes(area, left, left + width, rows - 0.36, rows + 0.36, colour=style.COLOURS[phase], hatch=hatch)
    style.upward(area, range(len(spent)), [short(name) for name in spent])
    for row, (name, parts) in enumerate(spent.items()):
        said = ", ".join(f"{PHASES[phase][0]} {show(parts[phase], 's')}" for phase in seen)
        hover.say_over(area, 0, longest, row - 0.5, row + 0.5, f"{name}: {said}")
    waits = {name: parts["waiting"] / sum(parts.values()) for name, parts in spent.items()}
    return Drawing(
        name="phases",
        title="Where the time goes",
        caption="Mean over the GPUs in the first run of each variant. Waiting is for slower peers: better balance shortens it, a faster "
        "network does not.",
        alt="Stacked bars. Share of a step spent waiting for peers: "
        + "; ".join(f"{name} {show(share, '', share=True)}" for name, share in waits.items())
        + ".",
        svg=style.svg(figure, "phases"),
        legend=style.legend(seen),
    )


def memory(shown: Shown) -> Drawing | None:
    """Draw the memory of the fullest GPU under each variant, its weights apart, and what a GPU has."""
    tables = _first_tables(shown, "gpus")
    if not tables:
        return None
    peaks, weights = {}, {}
    for name, table in tables.items():
        fullest = int(table["peak_memory_bytes"].argmax())
        peaks[name], weights[name] = float(table["peak_memory_bytes"][fullest]), float(table["weight_bytes"][fullest])
    limits = {name: shown.sides[name].gpu_memory for name in tables}
    limit = min(limits.values())
    top = max(*peaks.values(), min(limit, 1.6 * max(peaks.values())))
    figure = style.canvas(style.HALF, ROW * len(peaks) + 66)
    area = style.axes(figure, NAMES, 48, 14, 12)
    area.set_xlim(0, top * 1.04)
    area.set_ylim(len(peaks) - 0.5, -0.5)
    places, labels, unit = style.scale(top, "B")
    style.across(area, places, labels, title=f"memory, {unit}", grid=True)
    rows = np.arange(len(peaks))
    held, peak = np.array(list(weights.values())), np.array(list(peaks.values()))
    style.boxes(area, 0.0, held, rows - 0.3, rows + 0.3, colour="#0072b2")
    style.boxes(area, held, peak, rows - 0.3, rows + 0.3, colour="#e69f00")
    if limit <= top * 1.04:
        area.vlines([limit], -0.5, len(peaks) - 0.5, color=style.ALERT, linewidth=2.0)
    style.upward(area, range(len(peaks)), [short(name) for name in peaks])
    for row, name in enumerate(peaks):
        said = f"{name}: {show(peaks[name], 'B')}, of which weights {show(weights[name], 'B')}"
        hover.say_over(area, 0, top, row - 0.5, row + 0.5, said)
    over = [name for name in peaks if peaks[name] > limits[name]]
    fits = f"More than its GPU has: {', '.join(over)}." if over else f"All fit: a GPU has {show(limit, 'B')}."
    return Drawing(
        name="memory",
        title="Memory of the fullest GPU",
        caption=f"Largest use in the first run of each variant. {fits}",
        alt="Bars of peak memory: " + "; ".join(f"{name} {show(value, 'B')}" for name, value in peaks.items()) + f". {fits}",
        svg=style.svg(figure, "memory"),
        legend=(("weights", "#0072b2", ""), ("everything else", "#e69f00", "")),
    )


def _first_tables(shown: Shown, name: str) -> dict[str, Table]:
    return {
        variant: side.first.tables[name]
        for variant, side in shown.sides.items()
        if side.first.tables is not None and name in side.first.tables
    }


def _alike(shown: Shown, name: str) -> bool:
    return len({metrics[name].value for metrics in shown.comparison.metrics.values()}) == 1


def _of(value: Value) -> float:
    return 0.0 if value.value is None else value.value


def _shown(name: str, value: Value) -> str:
    return show(value.value, value.unit, share=is_share(name, value.unit))


def _scaled(area: Axes, values: list[Value], name: str, *, upright: bool) -> None:
    """Set the limits of one axis to hold all values with their intervals, and label it."""
    ends = (end for value in values for end in (value.value, value.low, value.high) if end is not None)
    scaled(area, ends, name, values[0].unit, upright=upright)
