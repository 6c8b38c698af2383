"""What the network carried: between which GPUs, over which links."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from moesim.desk.report import hover, style
from moesim.desk.report.style import Drawing
from moesim.desk.words import show
from moesim.facts.record import Result

BUSIEST = 8
BOX = {"boxstyle": "round,pad=0.45", "facecolor": style.PAPER, "edgecolor": style.MUTED, "linewidth": 1}


def traffic(result: Result) -> Drawing | None:
    """Draw the bytes that each GPU sent to each other GPU in a mean step."""
    table = result.tables["traffic"]
    if not len(table):
        return None
    gpus = int(result.facts.get("gpus", 0)) or int(max(table["source"].max(), table["destination"].max())) + 1
    grid = np.zeros((gpus, gpus))
    np.add.at(grid, (table["source"], table["destination"]), table["dispatch_bytes"] + table["combine_bytes"])
    np.fill_diagonal(grid, 0.0)
    if not grid.max() > 0:
        return None
    row, column = np.unravel_index(int(grid.argmax()), grid.shape)
    figure = style.canvas(style.HALF, 400)
    area = style.axes(figure, 52, 48, 8, 8)
    shown = np.where(np.eye(gpus, dtype=bool), np.nan, grid)
    area.imshow(shown, aspect="auto", vmin=0.0, vmax=float(grid.max()))
    hover.say_cells(area, shown, lambda value: show(value, "B"), row="from GPU", rows=range(gpus), column="to GPU", columns=range(gpus))
    node = _nodes(result, gpus)
    for at in np.flatnonzero(np.diff(node)):
        area.axvline(at + 0.5, color=style.PAPER, linewidth=2)
        area.axhline(at + 0.5, color=style.PAPER, linewidth=2)
    named = style.every(gpus)
    style.across(area, named, [str(i) for i in named], title="destination GPU")
    style.upward(area, named, [str(i) for i in named], title="source GPU", gap=36)
    crossing = 100 * grid[node[:, None] != node[None, :]].sum() / grid.sum()
    pair = f"GPU {row} sends most to GPU {column}: {show(float(grid[row, column]), 'B')} a step"
    far = f" {crossing:.0f} % of the bytes leave their node." if node.max() > 0 else ""
    return Drawing(
        name="traffic",
        title="Who sends to whom",
        caption=f"Bytes of dispatch and combine in a mean step. {pair}.{far}",
        alt=f"Heat map of bytes between {gpus} source and {gpus} destination GPUs. {pair}.{far}",
        svg=style.svg(figure, "traffic"),
        scale=("0 B", show(float(grid.max()), "B")),
    )


def links(result: Result) -> Drawing | None:
    """Draw the utilisation of the links of each class, and of the busiest links."""
    table = result.tables["links"]
    if not len(table) or not table["bytes"].sum():
        return None
    mean, busy = (100 * table[name].astype(float) for name in ("utilisation", "busy_utilisation"))
    classes = list(dict.fromkeys(table["link_class"].tolist()))
    order = np.lexsort((np.arange(len(table)), -mean))[:BUSIEST]
    figure = style.canvas(style.HALF, 400)
    area = style.axes(figure, 110, 48, 24, 8)
    labels, places = [], []
    for at, name in enumerate(classes):
        own = mean[table["link_class"] == name]
        y = float(at)
        area.hlines(y, own.min(), own.max(), color=style.ACCENT, linewidth=7, alpha=0.35)
        area.plot([np.median(own)], [y], marker="o", markersize=7, color=style.ACCENT, markeredgewidth=0)
        places.append(y)
        labels.append(f"{name} ({len(own)})")
    top = len(classes) + 1.0
    rows = top + np.arange(len(order))
    style.boxes(area, 0.0, mean[order], rows - 0.3, rows + 0.3, colour=style.ACCENT)
    area.plot(busy[order], rows, linestyle="none", marker="|", markersize=11, markeredgewidth=2, color=style.INK)
    places += rows.tolist()
    labels += [_short(name) for name in table["link"][order].tolist()]
    area.set_ylim(top + len(order) - 0.4, -0.9)
    limit = max(100.0, float(busy[order].max())) if len(order) else 100.0
    area.set_xlim(0, limit * 1.005)
    style.across(area, [0, 25, 50, 75, 100], ["0", "25", "50", "75", "100 %"], title="of the bandwidth", grid=True)
    style.upward(area, places, labels)
    area.text(0, -0.62, "classes: least to most, dot = median", fontsize=11, color=style.MUTED, va="bottom")
    area.text(0, len(classes) + 0.38, "busiest links: mean of the step; tick = while in use", fontsize=11, color=style.MUTED, va="bottom")
    first = int(order[0])
    most = f"{table['link'][first]} carries {show(float(table['bytes'][first]), 'B')} a step, {mean[first]:.0f} % of what it could"
    return Drawing(
        name="links",
        title="How full the links are",
        caption=f"Bytes ÷ (bandwidth × step time). The busiest: {most}. A low mean with a tick near 100 % is a link full in bursts.",
        alt=f"Utilisation of {len(classes)} link classes and the {len(order)} busiest links. {most}.",
        svg=style.svg(figure, "links"),
    )


def fabric(result: Result) -> Drawing | None:
    """Draw the cluster, its links coloured by utilisation."""
    described = result.facts.get("graph")
    if not described or not described.get("edges"):
        return None
    from matplotlib.collections import LineCollection

    from moesim.models.topology.layout import layout

    graph = _graph(described)
    where = spread(layout(graph))
    table = result.tables["links"]
    use = dict(zip(table["link"].tolist(), table["utilisation"].tolist(), strict=True))
    # A pair of vertices has one link each way; they lie on one line, which shows the fuller of the two.
    pairs: dict[tuple[str, str], float] = {}
    for tail, head, name, *_ in described["edges"]:
        key = (tail, head) if (head, tail) not in pairs else (head, tail)
        pairs[key] = max(pairs.get(key, 0.0), float(use.get(name, 0.0)))
    if not set().union(*pairs) <= set(where):
        return None
    # Draw the fullest last, so that nothing hides them.
    ordered = sorted(pairs, key=lambda pair: pairs[pair])
    values = np.array([100 * pairs[pair] for pair in ordered])
    high = max(float(values.max()), 1e-9)
    points = np.array(list(where.values()))
    wide, tall = np.ptp(points, axis=0)
    height = float(np.clip(1000 * tall / max(wide, 1e-9), 210, 400))
    figure = style.canvas(style.WHOLE, height)
    area = style.axes(figure, 8, 8, 8, 8)
    lines = LineCollection(
        [[where[tail], where[head]] for tail, head in ordered], linewidths=1.0 + 3.0 * values / high, array=values, cmap=style.MAP
    )
    lines.set_clim(0, high)
    area.add_collection(lines)
    _vertices(area, where, points)
    area.set_xlim(points[:, 0].min() - 0.7, points[:, 0].max() + 0.7)
    margin = 0.1 * max(tall, 1.0)
    area.set_ylim(points[:, 1].min() - margin, points[:, 1].max() + margin)
    fullest = ordered[-1]
    most = f"between {_vertex(fullest[0])} and {_vertex(fullest[1])} ({high:.0f} %)"
    return Drawing(
        name="fabric",
        title="The fabric",
        caption=f"{_arranged(where, graph)}. Colour and width show the utilisation of the fuller direction in a "
        f"mean step; the fullest link is {most}.",
        alt=f"Drawing of a cluster of {result.facts.get('gpus')} GPUs and {len(graph) - int(result.facts.get('gpus', 0))} switches. The "
        f"fullest link is {most}.",
        svg=style.svg(figure, "fabric"),
        scale=("0 % of the bandwidth", f"{high:.3g} %"),
        wide=True,
    )


def _arranged(where: Mapping[str, tuple[float, float]], graph: Any) -> str:
    """Say how the layout places things."""
    if any(vertex.startswith("router:") for vertex in where):
        return "Routers on the inner ring, group beside group, and their GPUs around them"
    direct = all(kind == "gpu" for _, kind in graph.nodes(data="kind"))
    return "GPUs joined directly, without switches" if direct else "GPUs at the bottom, switches above them"


def spread(where: Mapping[Any, tuple[float, float]]) -> dict[str, tuple[float, float]]:
    """Move the switches of a row apart, evenly over the picture, where their names would cover each other."""
    places = {str(vertex): place for vertex, place in where.items()}
    across = [x for x, _ in places.values()]
    left, right = min(across), max(across)
    for level in sorted({y for _, y in places.values()}):
        row = sorted((vertex for vertex, (_, y) in places.items() if y == level), key=lambda vertex: places[vertex][0])
        if not row[0].startswith("gpu:") and not _fits(row, places, right - left):
            for at, vertex in enumerate(row):
                places[vertex] = (left + (right - left) * (at + 0.5) / len(row), level)
    return places


def _fits(row: list[str], places: Mapping[str, tuple[float, float]], width: float) -> bool:
    """Whether the names of a row of vertices stand beside each other; about 7 pixels a letter and 12 of box."""
    pixels = (style.WHOLE - 60) / max(width, 1e-9)
    letters = 0 if len(row) < 2 else max(len(_name(vertex)) for vertex in row)
    gaps = np.diff([places[vertex][0] for vertex in row])
    return not len(gaps) or float(gaps.min()) * pixels >= 7 * letters + 12


def _vertices(area: Axes, where: Mapping[str, tuple[float, float]], points: np.ndarray) -> None:
    """Draw GPUs and switches: boxes with names where these fit, otherwise dots."""
    rings = [vertex for vertex in where if vertex.startswith("router:")]
    if rings:  # a dragonfly: on rings, names would cover each other and the links
        for size, some in ((3, [vertex for vertex in where if not vertex.startswith("router:")]), (7, rings)):
            across, up = zip(*(where[vertex] for vertex in some), strict=True)
            area.plot(across, up, linestyle="none", marker="o", markersize=size, color=style.INK, markeredgewidth=0, clip_on=False)
        return
    for level in np.unique(points[:, 1]):
        row = sorted((vertex for vertex, (_, y) in where.items() if y == level), key=lambda vertex: where[vertex][0])
        if _fits(row, where, float(np.ptp(points[:, 0]))):
            for vertex in row:
                area.text(*where[vertex], _name(vertex), ha="center", va="center", fontsize=11, color=style.INK, bbox=BOX)
            continue
        x = [where[vertex][0] for vertex in row]
        area.plot(x, [level] * len(x), linestyle="none", marker="o", markersize=5, color=style.INK, markeredgewidth=0, clip_on=False)
        for at in style.every(len(row), 17):
            area.annotate(
                _name(row[at]), (x[at], level), (0, -9), textcoords="offset points", ha="center", va="top", fontsize=11, color=style.MUTED
            )


def _name(vertex: str) -> str:
    return vertex.removeprefix("gpu:") if vertex.startswith("gpu:") else vertex.replace(":", " ")


def _graph(described: Mapping[str, Any]) -> Any:
    """Return a networkx graph of what ``graph.json`` says, for the layout."""
    import networkx as nx

    graph = nx.DiGraph()
    for name, kind, node in described["nodes"]:
        graph.add_node(name, kind=kind, node=node)
    graph.add_edges_from((tail, head) for tail, head, *_ in described["edges"])
    return graph


def _nodes(result: Result, gpus: int) -> np.ndarray:
    node = np.zeros(gpus, dtype=np.int64)
    table = result.tables["gpus"]
    node[table["gpu"]] = table["node"]
    return node


def _vertex(name: str) -> str:
    return "GPU " + name.removeprefix("gpu:") if name.startswith("gpu:") else name.replace(":", " ")


def _short(name: str) -> str:
    return name if len(name) <= 18 else name[:17] + "…"
