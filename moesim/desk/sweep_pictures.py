"""Pictures of a sweep: curves over a number, a map over two keys, and the front of the best trade-offs."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from typing import Any, cast

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from moesim.base.units import DIMENSIONS, format_quantity
from moesim.desk.network_picture import DPI, EMPTY, INK, LONGEST, RC
from moesim.desk.report import style
from moesim.desk.sweep_labels import brief, cell_label
from moesim.desk.words import SHARES, label, show
from moesim.facts.arrays import Floats
from moesim.study.cell import Answer, Scalar
from moesim.study.sweep import ABSENT, Sweep, word

SHOWN = ("step_time", "drop_rate", "rank_max_over_mean")
"""What is drawn, where it differs between cells."""

LINES = 8
"""Curves in one picture; more cannot be told apart."""

ACROSS, CURVES_WIDE, PANEL_HIGH = 3, 11.0, 3.2
"""Panels of curves in a row; inches of the picture, and of a row."""

MOST = 40
"""Values of an axis of a map."""

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#5c6470", "#882255")
MARKERS = "osD^vPX*"
"""Colour and marker both tell curves apart (Okabe and Ito), so that neither is needed to see the other."""


def pictures(sweep: Sweep) -> dict[str, bytes]:
    """Return PNG and SVG of every picture that a sweep allows, by file name; the same bytes for the same sweep.

    Curves need an axis of numbers, a map two axes, the front two cells with both of its metrics.
    """
    found = {}
    with mpl.rc_context():
        mpl.rcdefaults()
        cast("Any", mpl.rcParams).update(RC | {"svg.hashsalt": "moesim sweep"})
        drawn = {"sweep-curves": curves(sweep), "sweep-heatmap": heatmap(sweep), "sweep-front": front(sweep)}
        for name, figure in drawn.items():
            if figure is None:
                continue
            for form, metadata in (("png", {"Software": None}), ("svg", {"Date": None, "Creator": None})):
                out = io.BytesIO()
                figure.canvas.print_figure(out, format=form, dpi=DPI, facecolor="white", metadata=metadata)
                found[f"{name}.{form}"] = out.getvalue()
    return found


def curves(sweep: Sweep) -> Figure | None:
    """Draw what differs over the numeric axis with the most values, one curve per combination of the others; bands are 95 %.

    Combinations with one value on that axis are no curves, and are drawn only where there are no others.
    """
    shown = _shown(sweep)
    numeric = sorted(sweep.numeric(), key=lambda axis: -len(sweep.values(axis)))
    if not numeric or not shown:
        return None
    axis = numeric[0]
    groups: dict[tuple[str, ...], list[Answer]] = {}
    others = [other for other in sweep.axes if other != axis]
    for answer in sweep.done:
        if axis in answer.axes:
            groups.setdefault(tuple(word(answer.axes.get(other, ABSENT)) for other in others), []).append(answer)
    keys = [key for key, answers in groups.items() if len(answers) > 1] or list(groups)
    chosen = [keys[at] for at in style.every(len(keys), LINES)]
    firsts = [groups[key][0].axes for key in chosen]
    names = [cell_label(sweep.axes, {other: at[other] for other in others if other in at}) or "as in the file" for at in firsts]
    columns = min(len(shown), ACROSS)
    rows = -(-len(shown) // columns)
    abreast = max(1, min(4, int(CURVES_WIDE / (0.07 * max(map(len, names)) + 0.7))))
    legend = 0.2 * -(-len(names) // abreast) + 0.2 if len(names) > 1 else 0.1
    height = 0.55 + PANEL_HIGH * rows + legend
    figure = _canvas(CURVES_WIDE, height)
    width = 0.93 / columns
    for panel, name in enumerate(shown):
        row, column = divmod(panel, columns)
        bottom = (legend + (rows - 1 - row) * PANEL_HIGH + 0.62) / height
        area = figure.add_axes((0.07 + column * width, bottom, width - 0.075, (PANEL_HIGH - 0.95) / height))
        for at, key in enumerate(chosen):
            _curve(area, axis, name, groups[key], at)
        _numbers(area, name, sweep)
        area.set_xlabel(axis)
        area.set_title(label(name), fontsize=9, color=INK, loc="left")
        _frame(area)
    if len(names) > 1:
        figure.legend(figure.axes[0].get_lines(), names, loc="lower center", ncols=abreast, frameon=False, fontsize=8)
    part = "" if len(chosen) == len(groups) else f" ({len(chosen)} of {len(groups)} curves)"
    _title(figure, f"{sweep.name}{part}")
    return figure


def heatmap(sweep: Sweep) -> Figure | None:
    """Draw what differs over the two axes that change it most, the others at those values that most cells have."""
    shown = _shown(sweep)[:2]
    free = [axis for axis in sweep.axes if 1 < len(sweep.values(axis)) <= MOST]
    if len(free) < 2 or not shown:
        return None
    most = sorted(free, key=lambda axis: -max(_change(sweep, axis, name) for name in shown))[:2]
    across, upward = (axis for axis in free if axis in most)
    others = [axis for axis in sweep.axes if axis not in (across, upward)]
    groups: dict[tuple[str, ...], list[Answer]] = {}
    for answer in sweep.done:
        if across in answer.axes and upward in answer.axes:
            groups.setdefault(tuple(word(answer.axes.get(axis, ABSENT)) for axis in others), []).append(answer)
    if not groups:
        return None
    key = max(groups, key=lambda place: len(groups[place]))  # of equal ones, the first
    chosen, fixed = groups[key], {axis: value for axis, value in zip(others, key, strict=True) if value}
    shown = [name for name in shown if any(not math.isnan(_number(answer, name)) for answer in chosen)]
    if not shown:
        return None
    columns, rows = (
        [value for value in sweep.values(axis) if any(word(one.axes[axis]) == word(value) for one in chosen)] for axis in (across, upward)
    )
    figure = _canvas(11.0, float(np.clip(0.34 * len(rows), 1.6, 7.0)) + 1.9)
    height = figure.get_size_inches()[1]
    width = 0.97 / len(shown)
    words_wide = min(0.05 + 0.0062 * max(len(brief(word(row))) for row in rows), 0.5 * width)
    for panel, name in enumerate(shown):
        area = figure.add_axes((panel * width + words_wide, 0.95 / height, width - words_wide - 0.085, 1 - 1.6 / height))
        _map(figure, area, name, _grid(chosen, name, across, columns, upward, rows))
        shown_columns = style.every(len(columns), 12)
        words = [brief(word(columns[at])) for at in shown_columns]
        slanted: dict[str, Any] = {"rotation": 30, "ha": "right", "rotation_mode": "anchor"} if max(map(len, words)) > 5 else {}
        area.set_xticks(shown_columns, words, **slanted)
        area.set_yticks(style.every(len(rows), 20), [brief(word(rows[at])) for at in style.every(len(rows), 20)])
        area.set_xlabel(across)
        area.set_ylabel(upward)
        area.set_title(label(name), fontsize=9, color=INK, loc="left")
    at = f" at {cell_label(list(fixed), fixed)}" if fixed else ""
    _title(figure, f"{sweep.name}{at}")
    return figure


def front(sweep: Sweep) -> Figure | None:
    """Draw step time against drop rate of every cell, and the cells that no other beats in both."""
    x, y = sweep.pareto
    cells = [answer for answer in sweep.done if not math.isnan(_number(answer, x) + _number(answer, y))]
    best = sweep.front()
    if len(cells) < 2:
        return None
    figure = _canvas(8.0, 4.6)
    area = figure.add_axes((0.1, 0.13, 0.86, 0.74))
    area.plot([_number(answer, x) for answer in cells], [_number(answer, y) for answer in cells], "o", color="#9aa3ae", markersize=4)
    points = [(_number(answer, x), _number(answer, y)) for answer in best]
    area.plot(*zip(*points, strict=True), "-o", color=COLOURS[0], markersize=6, linewidth=1.2)
    places = list(dict.fromkeys(points))
    middle = (min(_number(answer, x) for answer in cells) + max(_number(answer, x) for answer in cells)) / 2
    for at in _apart(places, cells, x, y):
        equal = [
            cell_label(sweep.axes, answer.axes) or answer.name for answer, point in zip(best, points, strict=True) if point == places[at]
        ]
        text = _cut(equal[0], 72) + (f" (and {len(equal) - 1} equal)" if len(equal) > 1 else "")
        left = places[at][0] > middle  # of the point, so that no word leaves the picture
        area.annotate(
            text, places[at], (-6 if left else 6, 5), textcoords="offset points", fontsize=7.5, color=INK, ha="right" if left else "left"
        )
    area.margins(0.12)
    _numbers(area, x, sweep, horizontal=True)
    _numbers(area, y, sweep)
    area.set_xlabel(label(x))
    area.set_ylabel(label(y))
    _frame(area)
    _title(figure, f"{sweep.name}: {len(best)} of {len(cells)} cells are beaten by none in both")
    return figure


def _apart(places: Sequence[tuple[float, float]], cells: Sequence[Answer], x: str, y: str) -> list[int]:
    """Return which of some points can be named without one name lying on another, those at both ends first."""
    wide, high = (max(values) - min(values) or 1.0 for values in ([_number(cell, name) for cell in cells] for name in (x, y)))
    found: list[int] = []
    for at in dict.fromkeys([0, len(places) - 1, *range(len(places))]):
        near = (abs(places[at][0] - places[one][0]) / wide < 0.6 and abs(places[at][1] - places[one][1]) / high < 0.05 for one in found)
        if not any(near):
            found.append(at)
    return found


def _shown(sweep: Sweep) -> list[str]:
    """Return what was asked for, and the metrics of :data:`SHOWN`, that have numbers and differ; step time in any case, if there is one."""
    found = []
    for name in dict.fromkeys([*sweep.shown, *SHOWN]):
        values = {number for answer in sweep.done if not math.isnan(number := _number(answer, name))}
        if len(values) > 1 or (values and name == SHOWN[0]):
            found.append(name)
    return found


def _change(sweep: Sweep, axis: str, name: str) -> float:
    """Return how far the means of a metric at the values of an axis lie apart, as a share of all its cells' range."""
    groups: dict[str, list[float]] = {}
    for answer in sweep.done:
        if axis in answer.axes and not math.isnan(number := _number(answer, name)):
            groups.setdefault(word(answer.axes[axis]), []).append(number)
    everything = [number for numbers in groups.values() for number in numbers]
    if not everything or max(everything) == min(everything):
        return 0.0
    means = [math.fsum(numbers) / len(numbers) for numbers in groups.values()]
    return (max(means) - min(means)) / (max(everything) - min(everything))


def _curve(area: Axes, axis: str, name: str, answers: list[Answer], at: int) -> None:
    known = [answer for answer in answers if not math.isnan(_number(answer, name))]
    known.sort(key=lambda answer: float(cast("float", answer.axes[axis])))
    x = [float(cast("float", answer.axes[axis])) for answer in known]
    area.plot(x, [_number(answer, name) for answer in known], marker=MARKERS[at], color=COLOURS[at], linewidth=1.4, markersize=4.5)
    banded = [(place, answer.metrics[name]) for place, answer in zip(x, known, strict=True) if answer.metrics[name].low is not None]
    area.fill_between(
        [place for place, _ in banded],
        [float(value.low or 0.0) for _, value in banded],
        [float(value.high or 0.0) for _, value in banded],
        color=COLOURS[at],
        alpha=0.18,
        linewidth=0,
    )


def _grid(answers: Sequence[Answer], name: str, across: str, columns: Sequence[Scalar], upward: str, rows: Sequence[Scalar]) -> Floats:
    grid = np.full((len(rows), len(columns)), np.nan)
    where = {(word(row), word(column)): (r, c) for r, row in enumerate(rows) for c, column in enumerate(columns)}
    for answer in answers:
        place = where.get((word(answer.axes.get(upward, ABSENT)), word(answer.axes.get(across, ABSENT))))
        if place is not None:
            grid[place] = _number(answer, name)
    return grid


def _map(figure: Figure, area: Axes, name: str, grid: Floats) -> None:
    area.set_facecolor(EMPTY)
    shades = area.imshow(np.ma.masked_invalid(grid), aspect="auto", cmap=style.MAP + "_r", origin="lower", interpolation="nearest")
    area.tick_params(length=0)
    for side in area.spines.values():
        side.set_visible(False)
    unit = _unit(name)
    if grid.size <= 120:
        low, high = np.nanmin(grid), np.nanmax(grid)
        for (row, column), value in np.ndenumerate(grid):
            if not np.isnan(value):
                dark = high > low and (value - low) / (high - low) > 0.55
                shown = show(float(value), unit, share=name in SHARES)
                area.text(column, row, shown, ha="center", va="center", fontsize=7, color="white" if dark else INK)
    box = area.get_position()
    scale = figure.colorbar(shades, cax=figure.add_axes((box.x1 + 0.012, box.y0, 0.012, box.height)))
    scale.outline.set_visible(False)
    scale.ax.yaxis.set_major_formatter(lambda value, _: show(float(value), unit, share=name in SHARES))


def _unit(name: str) -> str:
    from moesim.base.registry import kinds

    known = kinds("metric")
    return str(known[name].unit) if name in known else ""  # type: ignore[attr-defined]


def _numbers(area: Axes, name: str, sweep: Sweep, *, horizontal: bool = False) -> None:
    """Write the numbers of an axis with their unit."""
    unit = _unit(name)
    share = name in SHARES
    high = max((abs(value) for answer in sweep.done if not math.isnan(value := _number(answer, name))), default=0.0)

    def text(value: float, _: float) -> str:
        if share:
            return f"{100 * value:.4g} %"
        if unit in DIMENSIONS and high > 0:
            best = format_quantity(high, unit).split()[-1]
            return f"{value / DIMENSIONS[unit].units[best]:.4g} {best}".replace(" us", " µs")
        return f"{value:.4g}"

    (area.xaxis if horizontal else area.yaxis).set_major_formatter(text)


def _frame(area: Axes) -> None:
    for name, side in area.spines.items():
        side.set_visible(name in ("left", "bottom"))
    area.grid(color=EMPTY, linewidth=0.7)
    area.set_axisbelow(True)


def _number(answer: Answer, name: str) -> float:
    """Return the value of a metric; NaN where there is none."""
    value = answer.metrics.get(name)
    return math.nan if value is None or value.value is None else value.value


def _cut(text: str, longest: int) -> str:
    return text if len(text) <= longest else text[: longest - 1] + "…"


def _canvas(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height))
    FigureCanvasAgg(figure)
    return figure


def _title(figure: Figure, title: str) -> None:
    figure.text(0.02, 1 - 0.16 / figure.get_size_inches()[1], _cut(title, LONGEST), ha="left", va="top", fontsize=10, color=INK)
