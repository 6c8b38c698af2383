"""Pictures of traffic on a fabric: the links coloured by how full they were, and how full they were over time."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any, cast

import matplotlib as mpl
import networkx as nx
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection
from matplotlib.colors import Normalize, to_rgba
from matplotlib.figure import Figure

from moesim.desk.report import style
from moesim.facts.arrays import Floats
from moesim.facts.network import NetworkResult
from moesim.models.topology.layout import layout

INK, MUTED, EMPTY = "#1d2330", "#5c6470", "#dfe3e8"
MAP = style.MAP + "_r"
"""On white paper the dark end stands for full links; what carried nothing is grey."""
BUSIEST = 24
"""Rows of single links in the heat map."""
DPI = 144
BOX_HEIGHT = 0.2
"""Inches of a name with its frame."""
LONGEST = 120
"""Characters of a title that fit."""
RC: dict[str, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "text.color": INK,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": MUTED,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "svg.fonttype": "none",
    "svg.hashsalt": "moesim network",
    "text.parse_math": False,
}


def pictures(graph: nx.DiGraph, result: NetworkResult, *, title: str) -> dict[str, bytes]:
    """Return PNG and SVG of both pictures by file name; the same bytes for the same result.

    Parameters
    ----------
    graph : networkx.DiGraph
        What ``graph()`` of the topology returns.
    result : NetworkResult
        What the links carried.
    title : str
        What the traffic was.
    """
    found = {}
    with mpl.rc_context():
        mpl.rcdefaults()
        cast("Any", mpl.rcParams).update(RC)
        drawn = {"network-fabric": fabric(graph, result, title=title)}
        if result.finish > 0:
            drawn["network-over-time"] = over_time(result, title=title)
        for name, figure in drawn.items():
            for form, metadata in (("png", {"Software": None}), ("svg", {"Date": None, "Creator": None})):
                out = io.BytesIO()
                figure.canvas.print_figure(out, format=form, dpi=DPI, facecolor="white", metadata=metadata)
                found[f"{name}.{form}"] = out.getvalue()
    return found


def fabric(graph: nx.DiGraph, result: NetworkResult, *, title: str) -> Figure:
    """Draw the cluster; a pair of vertices shows the fuller of its two directions, and the fullest pairs lie on top."""
    where = {str(vertex): place for vertex, place in layout(graph).items()}
    use = dict(zip(result.cluster.link_names, result.utilisation.tolist(), strict=True))
    pairs: dict[tuple[str, str], float] = {}
    for tail, head, data in graph.edges(data=True):
        key = min((str(tail), str(head)), (str(head), str(tail)))
        pairs[key] = max(pairs.get(key, 0.0), use[str(data["name"])])
    ordered = sorted(pairs, key=lambda pair: pairs[pair])
    values = 100 * np.array([pairs[pair] for pair in ordered])
    high = max(float(values.max(initial=0.0)), 1e-9)
    points = np.array(list(where.values()))
    wide, tall = np.ptp(points, axis=0)
    figure = _canvas(11.0, float(np.clip(10 * tall / max(wide, 1e-9), 2.6, 6.0)) + 1.0)
    area = figure.add_axes((0.02, 0.03, 0.88, 0.85))
    area.set_axis_off()
    colours = ScalarMappable(Normalize(0, 100), MAP)
    shades = colours.to_rgba(values)
    shades[values == 0] = to_rgba(EMPTY)
    thick = min(1.0, (120 / len(ordered)) ** 0.5) if ordered else 1.0
    lines = LineCollection(
        [[where[tail], where[head]] for tail, head in ordered],
        colors=shades,
        linewidths=thick * (0.6 + 3.0 * values / high),
        zorder=1,
    )
    area.add_collection(lines)
    area.set_xlim(points[:, 0].min() - 0.8, points[:, 0].max() + 0.8)
    margin = 0.14 * max(tall, 1.0)
    area.set_ylim(points[:, 1].min() - margin, points[:, 1].max() + margin)
    kinds = {str(vertex): str(data.get("kind", "")) for vertex, data in graph.nodes(data=True)}
    _vertices(area, where, kinds=kinds, width=wide, inch=figure.get_size_inches()[1] * 0.85 / float(np.ptp(area.get_ylim())))
    _title(figure, title)
    scale = figure.colorbar(colours, cax=figure.add_axes((0.92, 0.16, 0.014, 0.62)))
    scale.set_label("% of the bandwidth, start to end")
    return figure


def over_time(result: NetworkResult, *, title: str) -> Figure:
    """Draw how full each class of links was on average, and the fullest links one by one, bin by bin."""
    use, names = 100 * result.utilisation_over_time, result.cluster.link_names
    of = np.array(result.cluster.link_class)
    classes = list(dict.fromkeys(result.cluster.link_class))
    fullest = np.lexsort((np.arange(len(names)), -result.carried / result.cluster.bandwidth))[:BUSIEST]
    fullest = fullest[result.carried[fullest] > 0]
    labels = [f"mean of {name} ({np.count_nonzero(of == name)})" for name in classes] + [names[link] for link in fullest]
    rows = np.vstack([np.array([use[:, of == name].mean(axis=1) for name in classes]), use[:, fullest].T])
    figure = _canvas(11.0, 1.5 + 0.2 * len(labels))
    height = figure.get_size_inches()[1]
    area = figure.add_axes((0.2, 0.62 / height, 0.69, 1 - 1.1 / height))
    places, marks, unit = style.scale(result.finish, "s", 8)
    area.set_facecolor(EMPTY)
    mesh = area.pcolormesh(result.edges, _row_edges(len(classes), len(fullest)), _spaced(rows, len(classes)), vmin=0, vmax=100, cmap=MAP)
    area.axhspan(len(classes), len(classes) + 0.5, color="white")
    area.invert_yaxis()
    area.set_yticks([*(at + 0.5 for at in range(len(classes))), *(at + 1.0 for at in range(len(classes), len(labels)))], labels)
    area.tick_params(length=0)
    area.set_xticks(places, marks)
    area.set_xlabel(f"time ({unit})")
    for side in area.spines.values():
        side.set_visible(False)
    _title(figure, title)
    scale = figure.colorbar(mesh, cax=figure.add_axes((0.91, 0.62 / height, 0.014, 1 - 1.1 / height)))
    scale.set_label("% of the bandwidth")
    return figure


def _row_edges(classes: int, links: int) -> Floats:
    """Return where rows begin and end: half a row of air stands between the classes and the single links."""
    return np.array([*range(classes + 1), *(classes + 0.5 + at for at in range(links + 1))])


def _spaced(rows: Floats, classes: int) -> np.ma.MaskedArray[Any, Any]:
    air = np.zeros((1, rows.shape[1]))
    return np.ma.masked_equal(np.vstack([rows[:classes], air, rows[classes:]]), 0.0)


def _canvas(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height))
    FigureCanvasAgg(figure)
    return figure


def _vertices(area: Axes, where: Mapping[str, tuple[float, float]], *, kinds: Mapping[str, str], width: float, inch: float) -> None:
    """Draw GPUs as dots or numbers and switches as boxes; names stand only where they do not cover each other.

    ``inch`` is how many inches a unit upwards has.
    """
    levels: dict[float, list[str]] = {}
    for vertex, (_, y) in where.items():
        levels.setdefault(y, []).append(vertex)
    box = {"boxstyle": "round,pad=0.3", "facecolor": "white", "edgecolor": MUTED, "linewidth": 0.8}
    across = 9.3 / max(width + 1.6, 1e-9)
    taken: list[tuple[float, float, float]] = []  # middle and half the length of the boxes that stand, in inches
    for y, row in sorted(levels.items(), key=lambda level: (-len(level[1]), level[0])):
        row.sort(key=lambda vertex: where[vertex][0])
        x = [where[vertex][0] for vertex in row]
        names = [vertex.removeprefix("gpu:") if kinds[vertex] == "gpu" else vertex.replace(":", " ") for vertex in row]
        gap = float(np.diff(x).min()) if len(x) > 1 else width or 1.0
        inches = across * gap
        boxes = [(at * across, y * inch, 0.0425 * len(name) + 0.045) for at, name in zip(x, names, strict=True)]
        fits = inches > 0.085 * max(map(len, names)) + 0.09
        if fits and not any(_overlap(one, other) for one in boxes for other in taken):
            taken += boxes
            for at, name in zip(x, names, strict=True):
                area.text(at, y, name, ha="center", va="center", fontsize=8, bbox=box, zorder=3)
            continue
        area.plot(x, [y] * len(x), linestyle="none", marker="o", markersize=3.5, color=INK, zorder=3)
        if fits:
            continue  # another box stands in the way of these names
        space = inches * (len(row) - 1)  # the middle of the first name to that of the last, if they stand evenly
        for at in style.every(len(row), max(min(17, 1 + int(space / (0.075 * max(map(len, names)) + 0.1))), 1)):
            area.annotate(
                names[at], (x[at], y), (0, -7), textcoords="offset points", ha="center", va="top", fontsize=7, color=MUTED, zorder=3
            )


def _overlap(one: tuple[float, float, float], other: tuple[float, float, float]) -> bool:
    return abs(one[0] - other[0]) < one[2] + other[2] and abs(one[1] - other[1]) < BOX_HEIGHT


def _title(figure: Figure, title: str) -> None:
    words = title if len(title) <= LONGEST else title[: LONGEST - 1] + "…"
    figure.text(0.02, 1 - 0.16 / figure.get_size_inches()[1], words, ha="left", va="top", fontsize=10, color=INK)
