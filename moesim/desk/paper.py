"""Figures of studies on white paper: one look, and the same bytes for the same numbers."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from typing import Any, cast

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

INK, MUTED, EMPTY = "#1d2330", "#5c6470", "#dfe3e8"
BLUE, ORANGE, GREEN, GREY = "#0072b2", "#d55e00", "#009e73", "#8d939c"
"""Of the palette of Okabe and Ito, which reads without colour vision."""
DPI = 144
LONGEST = 110
"""Characters of a title that fit."""
RC: dict[str, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "text.color": INK,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "svg.fonttype": "none",
    "svg.hashsalt": "moesim study",
    "text.parse_math": False,
}


def printed(figures: Mapping[str, Callable[[], Figure]]) -> dict[str, bytes]:
    """Return PNG and SVG of figures by file name.

    Parameters
    ----------
    figures : mapping of str to callable
        Draws each figure, called when the look is set.
    """
    found = {}
    with mpl.rc_context():
        mpl.rcdefaults()
        cast("Any", mpl.rcParams).update(RC)
        for name, draw in figures.items():
            figure = draw()
            for form, metadata in (("png", {"Software": None}), ("svg", {"Date": None, "Creator": None})):
                out = io.BytesIO()
                figure.canvas.print_figure(out, format=form, dpi=DPI, facecolor="white", metadata=metadata)
                found[f"{name}.{form}"] = out.getvalue()
    return found


def canvas(width: float, height: float, title: str) -> tuple[Figure, Axes]:
    """Return an empty figure of so many inches with a title, and its axes."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    area = figure.add_subplot()
    area.set_title(title if len(title) <= LONGEST else title[: LONGEST - 1] + "…", loc="left", fontsize=10, color=INK)
    return figure, area
