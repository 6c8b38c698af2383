"""Charts that studies share: points in a plane, lines with bands, a heat map, bars; every mark says its value under the pointer."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from moesim.desk.report import hover, style
from moesim.desk.report.points import named, scaled, short
from moesim.desk.words import SHARES, label, show
from moesim.facts.arrays import Floats

LINES = 8
"""Lines of one chart; more cannot be told apart."""
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8d939c", "#882255")
MARKERS = "osD^vPX*"
"""Colour and marker both tell lines apart (Okabe and Ito), so that neither is needed to see the other."""
LETTERS = 36
"""Letters of the name of a bar."""
MARKS = 300
"""Marks that have their values under the pointer; a crowd of more is drawn as one."""
COUNT = "1"
"""The unit of bars that count something."""
ROW = 28.0
"""CSS pixels of one bar."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """What is shown along an axis: its name, its unit, and what to call it where the label of the metric does not say it."""

    name: str
    unit: str
    title: str = ""

    @property
    def label(self) -> str:
        """What people call it."""
        return self.title or label(self.name)

    def text(self, value: float | None) -> str:
        """Write a value of it."""
        return show(value, self.unit, share=self.name in SHARES and self.unit == "")


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One mark: where it is, between which ends its height is known, and how it looks."""

    x: float
    y: float
    text: str
    low: float | None = None
    high: float | None = None
    marker: str = "o"
    filled: bool = True
    colour: str = style.ACCENT


def scatter(
    points: Sequence[Point], name: str, *, across: Metric, upward: Metric, front: Sequence[tuple[float, float]] = (),
    names: Mapping[str, tuple[float, float]] | None = None, limits: Sequence[tuple[float, str]] = (), stairs: bool = False,
) -> str:  # fmt: skip
    """Return the SVG of points in a plane.

    Parameters
    ----------
    points : sequence of Point
    name : str
        Of the figure.
    across, upward : Metric
        Of the axes.
    front : sequence of (x, y)
        Joined by a dotted line; with ``stairs`` in steps.
    names : mapping of str to (x, y), optional
        Names beside points.
    limits : sequence of (y, text)
        Horizontal lines, left out where they would leave no room for the points.
    """
    figure = style.canvas(style.WHOLE, 400)
    area = style.axes(figure, 78, 52, 170, 16)
    tallest = max(point.y for point in points)
    limits = [(place, text) for place, text in limits if place <= 2.0 * tallest]
    scaled(area, [point.x for point in points], across.name, across.unit, upright=False, title=across.label)
    heights = [end for point in points for end in (point.y, point.low, point.high) if end is not None]
    scaled(area, [*heights, *(place for place, _ in limits)], upward.name, upward.unit, upright=True, title=upward.label)
    for place, text in limits:
        area.axhline(place, color=style.ALERT, linewidth=1.2, linestyle=(0, (6, 3)), zorder=1)
        area.annotate(text, (1.0, place), (6, 0), xycoords=("axes fraction", "data"), textcoords="offset points",
                      va="center", fontsize=11, color=style.ALERT, annotation_clip=False)  # fmt: skip
    if len(front) > 1:
        area.plot(
            [x for x, _ in front], [y for _, y in front], color=style.MUTED, linewidth=1.0, linestyle=(0, (3, 3)), zorder=1,
            drawstyle="steps-post" if stairs else "default",
        )  # fmt: skip
    crowd = [point for point in points if len(points) > MARKS and not point.filled]
    area.plot([point.x for point in crowd], [point.y for point in crowd], ".", color=style.MUTED, markersize=5, linestyle="none")
    for point in points:
        if len(points) > MARKS and not point.filled:
            continue
        if point.low is not None and point.high is not None:
            area.vlines(point.x, point.low, point.high, color=style.INK, linewidth=1.2, zorder=2)
        (mark,) = area.plot(
            [point.x], [point.y], marker=point.marker, markersize=8, markerfacecolor=point.colour if point.filled else style.PAPER,
            markeredgecolor=point.colour, markeredgewidth=1.6, linestyle="none", zorder=3,
        )  # fmt: skip
        hover.say(mark, point.text)
    named(area, names or {})
    return style.svg(figure, name)


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One line: float[N] places and heights, and the ends of their intervals, NaN where there are none."""

    name: str
    x: Floats
    y: Floats
    low: Floats
    high: Floats


def lines(found: Sequence[Line], name: str, *, across: str, upward: Metric) -> str:
    """Return the SVG of lines over a number, with bands of 95 %."""
    figure = style.canvas(style.HALF, 300)
    area = style.axes(figure, 70, 52, 14, 14)
    xs = np.concatenate([line.x for line in found])
    ends = np.concatenate([part for line in found for part in (line.y, line.low, line.high)])
    scaled(area, ends[np.isfinite(ends)].tolist(), upward.name, upward.unit, upright=True, title=upward.label)
    room = 0.04 * (xs.max() - xs.min()) or 1.0
    area.set_xlim(float(xs.min()) - room, float(xs.max()) + room)
    places = sorted(set(xs.tolist()))
    places = places if len(places) <= 7 and _apart(places) else style.multiples(places[0], places[-1], 5)
    style.across(area, places, [f"{place:g}" for place in places], title=across, grid=True)
    for at, line in enumerate(found):
        colour, marker = COLOURS[at % LINES], MARKERS[at % LINES]
        known = np.isfinite(line.low) & np.isfinite(line.high)
        if known.sum() > 1:
            area.fill_between(line.x[known], line.low[known], line.high[known], color=colour, alpha=0.18, linewidth=0, zorder=1)
        crowded = len(xs) > MARKS
        area.plot(line.x, line.y, color=colour, linewidth=1.6, marker="" if not crowded else marker, markersize=3, zorder=2)
        for place, height, low, high in zip(line.x, line.y, line.low, line.high, strict=True) if not crowded else ():
            (mark,) = area.plot([place], [height], color=colour, marker=marker, markersize=6, linestyle="none", zorder=3)
            between = f" ({upward.text(low)} – {upward.text(high)})" if math.isfinite(low) and math.isfinite(high) and high > low else ""
            hover.say(mark, f"{line.name}{', ' if line.name else ''}{across} {place:g}: {upward.text(float(height))}{between}")
    return style.svg(figure, name)


def legend(found: Sequence[Line]) -> tuple[tuple[str, str, str], ...]:
    """Return the legend of :func:`lines`; none for a single line without a name."""
    return tuple((line.name, COLOURS[at % LINES], "") for at, line in enumerate(found)) if any(line.name for line in found) else ()


def heat(grid: Floats, name: str, *, of: Metric, row: str, rows: Sequence[str], column: str, columns: Sequence[str]) -> str:
    """Return the SVG of a heat map of float[rows, columns], from the bottom up; NaN stays empty."""
    tall = float(np.clip(34.0 * len(rows), 90, 330))
    # Names of rows are as long as they are: 6.4 CSS pixels a letter, up to what :func:`short` leaves.
    left = 34.0 + 6.4 * max(len(short(text, 14)) for text in rows)
    figure = style.canvas(style.HALF, tall + 64)
    area = style.axes(figure, left, 50, 10, 14)
    area.imshow(np.ma.masked_invalid(grid), aspect="auto", origin="lower")
    low, high = float(np.nanmin(grid)), float(np.nanmax(grid))
    if len(columns) <= 8 and len(rows) <= 12:
        for (at_row, at_column), value in np.ndenumerate(grid):
            if np.isfinite(value):
                bright = high > low and (value - low) / (high - low) > 0.55
                area.text(at_column, at_row, of.text(float(value)), ha="center", va="center", fontsize=10.5,
                          color="#111111" if bright else "#ffffff")  # fmt: skip
    shown = style.every(len(columns), 8)
    style.across(area, shown, [short(columns[at], 12) for at in shown], title=column)
    shown = style.every(len(rows), 12)
    style.upward(area, shown, [short(rows[at], 14) for at in shown], title=row, gap=left - 14)
    hover.say_cells(area, grid[::-1], of.text, row=row, rows=rows[::-1], column=column, columns=columns)
    return style.svg(figure, name)


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """One bar of several pieces, each with its length and colour; a bar may also start elsewhere than at 0."""

    name: str
    pieces: tuple[tuple[float, str], ...]
    text: str
    start: float = 0.0


def bars(found: Sequence[Bar], name: str, *, unit: str, title: str, limit: tuple[float, str] | None = None) -> str:
    """Return the SVG of bars from the top down.

    Parameters
    ----------
    found : sequence of Bar
    name : str
        Of the figure.
    unit : str
        Of the lengths, in SI units; empty for shares, which are written in per cent; :data:`COUNT` for whole numbers.
    title : str
        What the length is.
    limit : (value, text), optional
        A vertical line, if it is not far beyond the bars.
    """
    ends = [(bar.start, bar.start + sum(length for length, _ in bar.pieces)) for bar in found]
    low, high = min(0.0, *(min(pair) for pair in ends)), max(0.0, *(max(pair) for pair in ends))
    shown = limit is not None and limit[0] <= 2.0 * high
    if limit is not None and shown:
        high = max(high, limit[0])
    span = (high - low) or 1.0
    figure = style.canvas(style.HALF, ROW * len(found) + 64)
    # Names take the room that they need: about 6.6 CSS pixels a letter.
    area = style.axes(figure, 14.0 + 6.6 * max(len(short(bar.name, LETTERS)) for bar in found), 48, 18, 10)
    area.set_xlim(low - (0.04 * span if low < 0 else 0.0), high + 0.04 * span)
    area.set_ylim(len(found) - 0.5, -0.5)
    if unit == COUNT:
        places = [place for place in style.multiples(low, high) if place == int(place)]
        style.across(area, places, [f"{place:g}" for place in places], title=title, grid=True)
    elif unit:
        places, labels, of = style.scale(high, unit, low=low) if high > 0 else ([0.0], ["0"], "")
        style.across(area, places, labels, title=f"{title}, {of}" if of else title, grid=True)
    else:
        places = [place / 100 for place in style.multiples(100 * low, 100 * high)]
        style.across(area, places, [f"{100 * place:g} %".replace("-", "−") for place in places], title=title, grid=True)
    for row, bar in enumerate(found):
        at = bar.start
        for length, colour in bar.pieces:
            style.boxes(area, [at], [at + length], [row - 0.36], [row + 0.36], colour=colour)
            at += length
        hover.say_over(area, low - 0.04 * span, high + 0.04 * span, row - 0.5, row + 0.5, bar.text)
    if low < 0:
        area.vlines([0.0], -0.5, len(found) - 0.5, color=style.INK, linewidth=1.2)
    if limit is not None and shown:
        area.vlines([limit[0]], -0.5, len(found) - 0.5, color=style.ALERT, linewidth=2.0)
    style.upward(area, range(len(found)), [short(bar.name, LETTERS) for bar in found])
    return style.svg(figure, name)


def _apart(places: Sequence[float]) -> bool:
    """Tell whether labels at these places would not touch."""
    width = places[-1] - places[0]
    return all(after - before >= 0.09 * width for before, after in itertools.pairwise(places))
