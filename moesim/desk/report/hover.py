"""What figures say under the pointer: the value of a mark, or of the cell of a heat map.

Matplotlib writes the ``gid`` of an artist as the id of its group in the SVG. It carries the text there, and becomes a ``<title>``, which
browsers show by themselves, or the data of a heat map, for which the script of the page finds the cell.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from moesim.facts.arrays import Floats

MARK, CELLS = "hover:", "cells:"
MOST = 20_000
"""Cells of a heat map with their values on the page: about ten bytes each."""


def say(artist: Artist, text: str) -> None:
    """Give an artist the text that stands under the pointer."""
    artist.set_gid(MARK + text)


def say_over(area: Axes, left: float, right: float, low: float, high: float, text: str) -> None:
    """Give a rectangle of the plane, in data, the text that stands under the pointer; for marks that are drawn many at a time."""
    cover = Rectangle((left, low), right - left, high - low, facecolor="none", edgecolor="none", linewidth=0)
    say(cover, text)
    area.add_artist(cover)


def say_cells(
    area: Axes, grid: Floats, text: Callable[[float], str], *, row: str, rows: Iterable[object], column: str, columns: Iterable[object]
) -> None:
    """Give every cell of a heat map, which fills its axes, a text under the pointer; a map of more than :data:`MOST` cells has none.

    Parameters
    ----------
    area : Axes
        Of the heat map.
    grid : float[R, C]
        The values, from the top left; NaN where there is none.
    text : callable
        Writes a value.
    row, column : str
        What a row and a column are.
    rows, columns : iterable
        Their names.
    """
    if grid.size > MOST:
        return
    texts = [["none" if math.isnan(value) else text(value) for value in line] for line in grid.tolist()]
    names = {"row": row, "rows": [str(name) for name in rows], "column": column, "columns": [str(name) for name in columns]}
    data = json.dumps({**names, "texts": texts}, ensure_ascii=False)
    cover = Rectangle((0, 0), 1, 1, transform=area.transAxes, facecolor="none", edgecolor="none", linewidth=0)
    cover.set_gid(CELLS + data)
    area.add_artist(cover)


def written(svg: str) -> str:
    """Return an SVG of matplotlib with these texts where browsers and the page find them."""
    # An attribute with quotation marks in it stands between apostrophes, if it has none of these, or has them escaped.
    for pattern, quote in ((r'"([^"]*)"', '"'), (r"'([^']*)'", "'")):
        marked, mapped = (pattern.replace("(", f"{name}(", 1) for name in (MARK, CELLS))
        svg = re.sub(rf"<g id={marked}>", r'<g class="hover"><title>\1</title>', svg)
        svg = re.sub(rf"<g id={mapped}>", rf'<g class="cells" data-cells={quote}\1{quote}>', svg)
    return svg
