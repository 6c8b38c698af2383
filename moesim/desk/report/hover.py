"""What figures say under the pointer: the value of a mark, or of the cell of a heat map.

Matplotlib writes the ``gid`` of an artist as the id of its group in the SVG. It carries the text there, and becomes a ``<title>``, which
browsers show by themselves, or the data of a heat map, for which the script of the page finds the cell.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

MARK, CELLS = "hover:", "cells:"


def say(artist: Artist, text: str) -> None:
    """Give an artist the text that stands under the pointer."""
    artist.set_gid(MARK + text)


def say_over(area: Axes, left: float, right: float, low: float, high: float, text: str) -> None:
    """Give a rectangle of the plane, in data, the text that stands under the pointer; for marks that are drawn many at a time."""
    cover = Rectangle((left, low), right - left, high - low, facecolor="none", edgecolor="none", linewidth=0)
    say(cover, text)
    area.add_artist(cover)


def say_cells(area: Axes, texts: Sequence[Sequence[str]], *, row: str, rows: Sequence[str], column: str, columns: Sequence[str]) -> None:
    """Give every cell of a heat map, which fills its axes, a text under the pointer.

    Parameters
    ----------
    area : Axes
        Of the heat map.
    texts : sequence of sequences of str
        The value of each cell by row and column, from the top left.
    row, column : str
        What a row and a column are.
    rows, columns : sequence of str
        Their names.
    """
    data = json.dumps({"row": row, "rows": list(rows), "column": column, "columns": list(columns), "texts": texts}, ensure_ascii=False)
    cover = Rectangle((0, 0), 1, 1, transform=area.transAxes, facecolor="none", edgecolor="none", linewidth=0)
    cover.set_gid(CELLS + data)
    area.add_artist(cover)


def written(svg: str) -> str:
    """Return an SVG of matplotlib with these texts where browsers and the page find them."""
    svg = re.sub(rf'<g id="{MARK}([^"]*)">', r'<g class="hover"><title>\1</title>', svg)
    return re.sub(rf'<g id="{CELLS}([^"]*)">', r'<g class="cells" data-cells="\1">', svg)
