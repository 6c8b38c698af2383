"""Where the tokens went: experts, GPUs, drops."""

from __future__ import annotations

import numpy as np

from moesim.desk.report import style
from moesim.desk.report.style import Drawing
from moesim.facts.record import Result, Table


def _grid(table: Table, row: str, column: str, value: str) -> tuple[np.ndarray, np.ndarray]:
    """Return float[rows, columns] of sums and the sorted row labels; columns count from 0."""
    rows, at = np.unique(table[row], return_inverse=True)
    grid = np.zeros((len(rows), int(table[column].max()) + 1))
    np.add.at(grid, (at, table[column]), table[value])
    return grid, rows


def _over_mean(grid: np.ndarray, axis: int) -> np.ndarray:
    mean = grid.mean(axis=axis, keepdims=True)
    return np.divide(grid, mean, out=np.zeros_like(grid), where=mean > 0)


def experts(result: Result) -> Drawing | None:
    """Draw the load of every expert of every MoE layer, as a multiple of its fair share."""
    table = result.tables["experts"]
    if not len(table) or not table["routes"].sum():
        return None
    grid, layers = _grid(table, "moe_layer", "expert", "routes")
    ratio = _over_mean(grid, 1)
    row, column = np.unravel_index(int(ratio.argmax()), ratio.shape)
    width, height = style.WHOLE, float(np.clip(22 * len(layers), 110, 360)) + 64
    figure = style.canvas(width, height)
    area = style.axes(figure, 62, 48, 72, 12)
    image = area.imshow(ratio, aspect="auto", vmin=0.0, vmax=max(float(ratio.max()), 1.0))
    _image_ticks(area, ratio.shape[1], [str(layer) for layer in layers], most=17)
    area.set_xlabel("logical expert")
    area.set_ylabel("MoE layer")
    levels = style.multiples(*image.get_clim())
    style.colour_bar(figure, image, (width - 62, 48, 10, height - 60), levels, [f"{level:g}×" for level in levels])
    _one_mark(area, int(row), int(column))
    hottest = f"expert {column} of MoE layer {layers[row]} gets {ratio.max():.1f} times its fair share"
    idle = int((grid == 0).sum())
    return Drawing(
        name="experts",
        title="Load of every expert",
        caption=f"Routes before drops, as a multiple of the layer’s mean (utilisation ratio; 1× is fair). Boxed: {hottest}."
        + (f" {idle} experts of {grid.size} get nothing." if idle else ""),
        alt=f"Heat map of {len(layers)} MoE layers by {ratio.shape[1]} experts. {hottest[0].upper()}{hottest[1:]}; the median is "
        f"{np.median(ratio):.2f}.",
        svg=style.svg(figure, "experts"),
        wide=True,
    )


def ranks(result: Result) -> Drawing | None:
    """Draw the rows that every GPU computed in every MoE layer, as a multiple of the mean GPU, and the maximum above."""
    table = result.tables["ranks"]
    if not len(table) or not table["rows"].sum():
        return None
    grid, layers = _grid(table, "moe_layer", "gpu", "rows")
    ratio = _over_mean(grid, 1).T
    gpus = len(ratio)
    per_step = result.tables["layers"]
    worst = np.array([_worst(per_step, layer) for layer in layers])
    row, column = np.unravel_index(int(ratio.argmax()), ratio.shape)
    width, height = style.HALF, float(np.clip(15 * gpus, 130, 330)) + 140
    figure = style.canvas(width, height)
    top = style.axes(figure, 52, height - 84, 76, 22)
    top.bar(np.arange(len(layers)), worst - 1, bottom=1, width=0.7, color=style.ACCENT, linewidth=0)
    top.set_xlim(-0.5, len(layers) - 0.5)
    top.set_ylim(1.0, max(float(worst.max()) * 1.02, 1.05))
    levels = style.multiples(1.0, max(float(worst.max()), 1.05), 3)
    style.ticks(top.yaxis, levels, [f"{level:g}×" for level in levels])
    style.ticks(top.xaxis, [], [])
    top.grid(visible=True, axis="y")
    top.set_title("max ÷ mean over GPUs, mean of the steps", fontsize=11, color=style.MUTED, pad=6)
    area = style.axes(figure, 52, 48, 76, 92)
    image = area.imshow(ratio, aspect="auto", vmin=min(float(ratio.min()), 1.0), vmax=max(float(ratio.max()), 1.0 + 1e-9))
    shown = style.every(len(layers), 14)
    style.ticks(area.xaxis, shown, [str(layers[at]) for at in shown])
    shown = style.every(gpus)
    style.ticks(area.yaxis, shown, [str(at) for at in shown])
    style.bare(area)
    area.set_xlabel("MoE layer")
    area.set_ylabel("GPU")
    levels = style.multiples(*image.get_clim())
    style.colour_bar(figure, image, (width - 66, 48, 10, height - 140), levels, [f"{level:g}×" for level in levels])
    _one_mark(area, int(row), int(column))
    hottest = f"GPU {row} computes {ratio.max():.2f} times the mean in MoE layer {layers[column]}"
    return Drawing(
        name="ranks",
        title="Rows that every GPU computes",
        caption=f"After drops, padding included, as a multiple of the mean GPU. Boxed: {hottest}, all steps together.",
        alt=f"Heat map of {gpus} GPUs by {len(layers)} MoE layers, with bars of max over mean above: {worst.min():.2f} to {worst.max():.2f}. "
        f"{hottest}.",
        svg=style.svg(figure, "ranks"),
    )


def drops(result: Result) -> Drawing | None:
    """Draw the share of routes dropped in each MoE layer; None when nothing is dropped."""
    table = result.tables["layers"]
    if not len(table) or not table["dropped"].sum():
        return None
    layers, at = np.unique(table["moe_layer"], return_inverse=True)
    dropped, routes = (np.bincount(at, weights=table[name].astype(float), minlength=len(layers)) for name in ("dropped", "routes"))
    rate = 100 * np.divide(dropped, routes, out=np.zeros_like(dropped), where=routes > 0)
    each = 100 * np.divide(table["dropped"], table["routes"], out=np.zeros(len(table)), where=table["routes"] > 0)
    low, high = np.full(len(layers), np.inf), np.zeros(len(layers))
    np.minimum.at(low, at, each)
    np.maximum.at(high, at, each)
    figure = style.canvas(style.HALF, 240)
    area = style.axes(figure, 52, 48, 10, 14)
    area.bar(np.arange(len(layers)), rate, width=0.7, color=style.ALERT, linewidth=0)
    area.vlines(np.arange(len(layers)), low, high, color=style.INK, linewidth=1.2)
    area.set_xlim(-0.5, len(layers) - 0.5)
    area.set_ylim(0, float(high.max()) * 1.06)
    places = style.multiples(0.0, float(high.max()))
    style.ticks(area.yaxis, places, [f"{place:g} %" for place in places])
    shown = style.every(len(layers), 14)
    style.ticks(area.xaxis, shown, [str(layers[i]) for i in shown])
    area.grid(visible=True, axis="y")
    area.spines["left"].set_visible(False)
    area.set_xlabel("MoE layer")
    worst = int(rate.argmax())
    overall = 100 * dropped.sum() / routes.sum()
    return Drawing(
        name="drops",
        title="Drop rate of every layer",
        caption=f"Dropped routes ÷ routes; the line spans the steps. {overall:.3g} % overall, most in MoE layer {layers[worst]} "
        f"({rate[worst]:.3g} %).",
        alt=f"Bars of the drop rate of {len(layers)} MoE layers, from {rate.min():.3g} to {rate.max():.3g} per cent.",
        svg=style.svg(figure, "drops"),
    )


def _worst(layers: Table, moe_layer: int) -> float:
    of = layers.where(layers["moe_layer"] == moe_layer)
    mean = of["rank_mean"].astype(float)
    return float(np.divide(of["rank_max"], mean, out=np.ones(len(of)), where=mean > 0).mean()) if len(of) else 1.0


def _image_ticks(area: style.Axes, columns: int, rows: list[str], *, most: int) -> None:
    shown = style.every(columns, most)
    style.ticks(area.xaxis, shown, [str(at) for at in shown])
    shown = style.every(len(rows))
    style.ticks(area.yaxis, shown, [rows[at] for at in shown])
    style.bare(area)


def _one_mark(area: style.Axes, row: int, column: int) -> None:
    from matplotlib.patches import Rectangle

    area.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, fill=False, edgecolor=style.ALERT, linewidth=2.0, clip_on=False))
