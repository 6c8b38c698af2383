"""How figures look: one set of sizes, colours and fonts, and the way from a matplotlib figure to a piece of the page.

Ink, grid and paper are drawn in stand-in colours that become CSS variables in the finished SVG, so that one drawing serves light and dark
screens and print. Phases take the palette of Okabe and Ito, loads the map ``viridis``: both read without colour vision.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.collections import LineCollection, PolyCollection
from matplotlib.figure import Figure
from matplotlib.transforms import ScaledTranslation, Transform

from moesim.base.units import DIMENSIONS, format_quantity
from moesim.desk.report import hover
from moesim.desk.words import PHASES

INK, MUTED, GRID, PAPER, ACCENT = "#010203", "#040506", "#070809", "#0a0b0c", "#0d0e0f"
_VARIABLES = {INK: "var(--ink)", MUTED: "var(--muted)", GRID: "var(--line)", PAPER: "var(--paper)", ACCENT: "var(--data)"}

COLOURS = {
    "attention": "#56b4e9",
    "dense": "#0072b2",
    "gate": "#cc79a7",
    "shared": "#f0e442",
    "experts": "#009e73",
    "dispatch": "#e69f00",
    "combine": "#d55e00",
    "waiting": "#8d939c",
    "recompute": "#8fdcc4",
    "tensor": "#332288",
    "gradients": "#882255",
    "optimiser": "#999933",
    "hand_over": "#a6761d",
    "bubble": "#d8c8b4",
    "idle": "#c9ced6",
}
"""The colour of each phase (Okabe and Ito, then muted colours of Paul Tol; greys and sand for time without work)."""

ALERT = "#d55e00"
MAP = "viridis"
GRADIENT = "#440154, #472d7b, #3b528b, #2c728e, #21918c, #28ae80, #5ec962, #addc30, #fde725"
"""The same map, for the scale that stands above a figure."""

HALF, WHOLE = 480.0, 1080.0
"""Widths of figures, in CSS pixels: two beside each other, and one across the page."""

DPI = 72
PIXEL = 1.0 / 72
"""Inches of one CSS pixel of the drawing: the SVG backend counts in points."""

_RC: dict[str, Any] = {
    "svg.fonttype": "none",
    "font.family": "DejaVu Sans",
    "font.size": 11.5,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "figure.dpi": DPI,
    "savefig.facecolor": "none",
    "hatch.color": PAPER,
    "hatch.linewidth": 1.6,
    "image.cmap": MAP,
    "image.composite_image": False,
    "image.interpolation": "nearest",
    "text.color": INK,
    "text.parse_math": False,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawing:
    """One figure of the page: a title, what it shows in a sentence, the same for who cannot see it, and the SVG."""

    name: str
    title: str
    caption: str
    alt: str
    svg: str
    wide: bool = False
    legend: tuple[tuple[str, str, str], ...] = ()
    scale: tuple[str, str] | None = None
    """What the dark and the bright end of the colour map stand for."""


@contextmanager
def paper() -> Iterator[None]:
    """Draw in the report's style, and leave the user's settings of matplotlib as they were."""
    with mpl.rc_context():
        mpl.rcdefaults()
        cast("Any", mpl.rcParams).update(_RC)
        yield


def legend(names: Iterable[str], **labels: str) -> tuple[tuple[str, str, str], ...]:
    """Return label, colour and pattern of phases, for the legend above a figure; ``labels`` are those that this figure has its own of."""
    return tuple(
        (labels[name] if name in labels else PHASES[name][0], COLOURS[name], "hatched" if name == "waiting" else "") for name in names
    )


def canvas(width: float, height: float) -> Figure:
    """Return an empty figure of so many CSS pixels."""
    figure = Figure(figsize=(width * PIXEL, height * PIXEL))
    FigureCanvasSVG(figure)
    return figure


def axes(figure: Figure, left: float, bottom: float, right: float, top: float) -> Axes:
    """Return axes with these margins in CSS pixels, without frame and ticks: :func:`across` and :func:`upward` draw those.

    Matplotlib's own ticks cost more time than everything else in these figures, since each is three artists that are laid out anew.
    """
    width, height = (inches / PIXEL for inches in figure.get_size_inches())
    box = (left / width, bottom / height, (width - left - right) / width, (height - bottom - top) / height)
    area = figure.add_axes(box)
    area.set_axis_off()
    return area


def across(area: Axes, places: Sequence[float], labels: Sequence[str], *, title: str = "", grid: bool = False, line: bool = False) -> None:
    """Label the horizontal axis; with ``grid`` a line at each place, with ``line`` one along the axis."""
    figure = area.figure
    below = area.get_xaxis_transform() + ScaledTranslation(0, -5 * PIXEL, figure.dpi_scale_trans)
    for place, label in zip(places, labels, strict=True):
        area.text(place, 0, label, transform=below, ha="center", va="top", fontsize=11, color=MUTED)
    if title:
        middle = area.transAxes + ScaledTranslation(0, -24 * PIXEL, figure.dpi_scale_trans)
        area.text(0.5, 0, title, transform=middle, ha="center", va="top", fontsize=11.5, color=MUTED)
    if grid:
        _lines(area, [[(place, 0.0), (place, 1.0)] for place in places], area.get_xaxis_transform())
    if line:
        _lines(area, [[(0.0, 0.0), (1.0, 0.0)]], area.transAxes)


def upward(area: Axes, places: Sequence[float], labels: Sequence[str], *, title: str = "", grid: bool = False, gap: float = 40.0) -> None:
    """Label the vertical axis; ``gap`` is the distance of the title in CSS pixels."""
    figure = area.figure
    beside = area.get_yaxis_transform() + ScaledTranslation(-6 * PIXEL, 0, figure.dpi_scale_trans)
    for place, label in zip(places, labels, strict=True):
        area.text(0, place, label, transform=beside, ha="right", va="center", fontsize=11, color=MUTED)
    if title:
        middle = area.transAxes + ScaledTranslation(-gap * PIXEL, 0, figure.dpi_scale_trans)
        area.text(0, 0.5, title, transform=middle, ha="center", va="center", rotation=90, fontsize=11.5, color=MUTED)
    if grid:
        _lines(area, [[(0.0, place), (1.0, place)] for place in places], area.get_yaxis_transform())


def boxes(area: Axes, left: Any, right: Any, low: Any, high: Any, *, colour: str, hatch: str | None = None) -> None:
    """Draw rectangles of one colour as one artist: a patch for each would take ten times as long."""
    x0, x1, y0, y1 = np.broadcast_arrays(*(np.asarray(edge, dtype=float) for edge in (left, right, low, high)))
    corners = np.stack([np.stack([x, y], axis=-1) for x, y in ((x0, y0), (x1, y0), (x1, y1), (x0, y1))], axis=1)
    area.add_collection(PolyCollection(list(corners), facecolor=colour, edgecolor=PAPER, linewidth=0, hatch=hatch), autolim=False)


def _lines(area: Axes, segments: Sequence[Sequence[tuple[float, float]]], transform: Transform) -> None:
    lines = LineCollection(segments, colors=GRID, linewidths=1.0, transform=transform, zorder=0.5, clip_on=False)
    area.add_collection(lines, autolim=False)


def step_size(width: float, count: int = 4) -> float:
    """Return the round number of which about ``count`` fit into ``width``.

    Examples
    --------
    >>> step_size(23.0)
    10.0
    """
    raw = width / count
    power = 10.0 ** math.floor(math.log10(raw))
    return next(factor * power for factor in (1.0, 2.0, 2.5, 5.0, 10.0) if factor * power >= raw * (1 - 1e-9))


def multiples(low: float, high: float, count: int = 4) -> list[float]:
    """Return about ``count`` round numbers from ``low`` to ``high``.

    Examples
    --------
    >>> multiples(0.0, 23.0), multiples(21.2, 21.9)
    ([0.0, 10.0, 20.0], [21.2, 21.4, 21.6, 21.8])
    """
    if not high > low:
        return [low]
    size = step_size(high - low, count)
    first, last = math.ceil(low / size - 1e-9), math.floor(high / size + 1e-9)
    return [float(f"{at * size:.12g}") for at in range(first, last + 1)]


def scale(high: float, dimension: str, count: int = 4, *, low: float = 0.0) -> tuple[list[float], list[str], str]:
    """Return round ticks from ``low`` to ``high``, their labels, and the one unit they share."""
    if not high > low:
        return [low], ["0" if low == 0 else format_quantity(low, dimension)], ""
    unit = format_quantity(high, dimension).split()[-1]
    factor = DIMENSIONS[dimension].units[unit]
    places = multiples(low / factor, high / factor, count)
    return [place * factor for place in places], [f"{place:g}" for place in places], unit.replace("us", "µs")


def every(count: int, most: int = 9) -> list[int]:
    """Return at most ``most`` of the indices 0 … count - 1, evenly spaced by a round number.

    Examples
    --------
    >>> every(64)
    [0, 8, 16, 24, 32, 40, 48, 56]
    """
    step = next(size for size in (1, 2, 4, 5, 8, 10, 16, 20, 32, 50, 64, 100, 128, 200, 256, 500, 512, 1000, 10**9) if count <= size * most)
    return list(range(0, count, step))


def svg(figure: Figure, name: str) -> str:
    """Return the figure as inline SVG: no date, no random ids, no fixed size, colours and font of the page."""
    with mpl.rc_context({"svg.hashsalt": name}):
        out = io.StringIO()
        figure.canvas.print_figure(out, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = out.getvalue()
    text = text[text.index("<svg") :]
    width, height = (inches / PIXEL for inches in figure.get_size_inches())
    text = re.sub(
        r"<svg [^>]*>", f'<svg viewBox="0 0 {width:g} {height:g}" width="{width:g}" aria-hidden="true" focusable="false">', text, count=1
    )
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, flags=re.DOTALL)
    text = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>\s*", "", text, flags=re.DOTALL)
    text = hover.written(text)
    text = re.sub(r'<g id="[^"]*">', "<g>", text)
    text = re.sub(r"<!--.*?-->\s*", "", text, flags=re.DOTALL)
    text = re.sub(r"font: (?:[a-z0-9]+ )*?([\d.]+)px [^;\"]*", r"font-size: \1px", text)
    text = text.replace("xlink:href", "href")
    for stand_in, variable in _VARIABLES.items():
        text = text.replace(stand_in, variable)
    return text.strip()
