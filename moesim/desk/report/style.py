"""How figures look: one set of sizes, colours and fonts, and the way from a matplotlib figure to a piece of the page.

Ink, grid and paper are drawn in stand-in colours that become CSS variables in the finished SVG, so that one drawing serves light and dark
screens and print. Phases take the palette of Okabe and Ito, loads the map ``viridis``: both read without colour vision.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FixedFormatter, FixedLocator, NullLocator

from moesim.base.units import DIMENSIONS, format_quantity

INK, MUTED, GRID, PAPER = "#010203", "#040506", "#070809", "#0a0b0c"
_VARIABLES = {INK: "var(--ink)", MUTED: "var(--muted)", GRID: "var(--line)", PAPER: "var(--paper)"}

PHASES: dict[str, tuple[str, str]] = {
    "attention": ("attention", "#56b4e9"),
    "dense": ("dense layers", "#0072b2"),
    "gate": ("router", "#cc79a7"),
    "shared": ("shared experts", "#f0e442"),
    "experts": ("experts", "#009e73"),
    "dispatch": ("dispatch", "#e69f00"),
    "combine": ("combine", "#d55e00"),
    "waiting": ("waiting for peers", "#8d939c"),
    "idle": ("idle", "#c9ced6"),
}
"""What each phase is called and its colour (Okabe and Ito; greys for time without work)."""

ACCENT = "#0072b2"
ALERT = "#d55e00"
MAP = "viridis"

HALF, WHOLE = 480.0, 1080.0
"""Widths of figures, in CSS pixels: two beside each other, and one across the page."""

DPI = 72
PIXEL = 1.0 / 72
"""Inches of one CSS pixel of the drawing: the SVG backend counts in points."""

_RC: dict[str, Any] = {
    "svg.fonttype": "none",
    "font.family": "DejaVu Sans",
    "font.size": 11.5,
    "axes.edgecolor": GRID,
    "axes.linewidth": 1.0,
    "axes.labelcolor": MUTED,
    "axes.labelsize": 11.5,
    "axes.labelpad": 5.0,
    "axes.titlecolor": INK,
    "axes.titlesize": 11.0,
    "axes.titlelocation": "left",
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.unicode_minus": True,
    "figure.facecolor": "none",
    "figure.dpi": DPI,
    "savefig.facecolor": "none",
    "grid.color": GRID,
    "grid.linewidth": 1.0,
    "hatch.color": PAPER,
    "hatch.linewidth": 1.6,
    "image.cmap": MAP,
    "image.composite_image": False,
    "image.interpolation": "nearest",
    "text.color": INK,
    "text.parse_math": False,
    "xtick.color": GRID,
    "ytick.color": GRID,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "xtick.labelsize": 11.0,
    "ytick.labelsize": 11.0,
    "xtick.major.size": 0.0,
    "ytick.major.size": 0.0,
    "xtick.major.pad": 5.0,
    "ytick.major.pad": 5.0,
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


@contextmanager
def paper() -> Iterator[None]:
    """Draw in the report's style, and leave the user's settings of matplotlib as they were."""
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(_RC)
        yield


def canvas(width: float, height: float) -> Figure:
    """Return an empty figure of so many CSS pixels."""
    figure = Figure(figsize=(width * PIXEL, height * PIXEL))
    FigureCanvasSVG(figure)
    return figure


def axes(figure: Figure, left: float, bottom: float, right: float, top: float, **options: Any) -> Axes:
    """Return axes with these margins in CSS pixels."""
    width, height = (inches / PIXEL for inches in figure.get_size_inches())
    box = (left / width, bottom / height, (width - left - right) / width, (height - bottom - top) / height)
    return figure.add_axes(box, **options)


def ticks(axis: Any, places: Sequence[float], labels: Sequence[str]) -> None:
    """Set the ticks of one axis; fewer ticks draw faster and read better than automatic ones."""
    axis.set_major_locator(FixedLocator(list(places)))
    axis.set_major_formatter(FixedFormatter(list(labels)))
    axis.set_minor_locator(NullLocator())


def bare(*parts: Axes) -> None:
    """Remove the frame of axes that hold an image."""
    for part in parts:
        for spine in part.spines.values():
            spine.set_visible(False)


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


def colour_bar(figure: Figure, image: Any, box: tuple[float, float, float, float], places: Sequence[float], labels: Sequence[str]) -> None:
    """Draw a thin upright colour scale; ``box`` is left, bottom, width, height in CSS pixels."""
    width, height = (inches / PIXEL for inches in figure.get_size_inches())
    bar = figure.add_axes((box[0] / width, box[1] / height, box[2] / width, box[3] / height))
    low, high = image.get_clim()
    bar.imshow(np.linspace(high, low, 64)[:, None], aspect="auto", extent=(0, 1, low, high), cmap=image.get_cmap(), vmin=low, vmax=high)
    bar.yaxis.tick_right()
    ticks(bar.xaxis, [], [])
    ticks(bar.yaxis, places, labels)
    bare(bar)


def svg(figure: Figure, name: str) -> str:
    """Return the figure as inline SVG: no date, no random ids, no fixed size, colours and font of the page."""
    with mpl.rc_context({"svg.hashsalt": name}):
        out = io.StringIO()
        figure.canvas.print_figure(out, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = out.getvalue()
    text = text[text.index("<svg") :]
    width, height = (inches / PIXEL for inches in figure.get_size_inches())
    text = re.sub(r"<svg [^>]*>", f'<svg viewBox="0 0 {width:g} {height:g}" width="{width:g}" aria-hidden="true" focusable="false">', text, count=1)
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, flags=re.DOTALL)
    text = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>\s*", "", text, flags=re.DOTALL)
    text = re.sub(r'<g id="[^"]*">', "<g>", text)
    text = re.sub(r"<!--.*?-->\s*", "", text, flags=re.DOTALL)
    text = re.sub(r"font: (?:[a-z0-9]+ )*?([\d.]+)px [^;\"]*", r"font-size: \1px", text)
    text = text.replace("xlink:href", "href")
    for stand_in, variable in _VARIABLES.items():
        text = text.replace(stand_in, variable)
    return text.strip()
