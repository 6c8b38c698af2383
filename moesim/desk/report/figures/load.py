"""Where the tokens went: experts, GPUs, drops."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes

from moesim.desk.report import hover, style
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
    return np.asarray(np.divide(grid, mean, out=np.zeros_like(grid), where=mean > 0))


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
    area = style.axes(figure, 62, 48, 8, 6)
    area.imshow(ratio, aspect="auto", vmin=0.0, vmax=max(float(ratio.max()), 1.0))
    hover.say_cells(area, ratio, _times, row="MoE layer", rows=layers, column="expert", columns=range(ratio.shape[1]))
    shown = style.every(ratio.shape[1], 17)
    style.across(area, shown, [str(at) for at in shown], title="logical expert")
    shown = style.every(len(layers))
    style.upward(area, shown, [str(layers[at]) for at in shown], title="MoE layer")
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
        scale=("0× the fair share", f"{max(float(ratio.max()), 1.0):.3g}×"),
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
    width, height = style.HALF, float(np.clip(24 * gpus, 190, 400)) + 140
    figure = style.canvas(width, height)
    top = style.axes(figure, 52, height - 84, 8, 22)
    style.boxes(top, np.arange(len(layers)) - 0.35, np.arange(len(layers)) + 0.35, 1.0, worst, colour=style.ACCENT)
    top.set_xlim(-0.5, len(layers) - 0.5)
    top.set_ylim(1.0, max(float(worst.max()) * 1.02, 1.05))
    levels = style.multiples(1.0, max(float(worst.max()), 1.05), 3)
    style.upward(top, levels, [f"{level:g}×" for level in levels], grid=True)
    top.text(0, 1.06, "max ÷ mean over GPUs, mean of the steps", transform=top.transAxes, fontsize=11, color=style.MUTED)
    area = style.axes(figure, 52, 48, 8, 92)
    low, high = min(float(ratio.min()), 1.0), max(float(ratio.max()), 1.0 + 1e-9)
    area.imshow(ratio, aspect="auto", vmin=low, vmax=high)
    hover.say_cells(area, ratio, _times, row="GPU", rows=range(gpus), column="MoE layer", columns=layers)
    shown = style.every(len(layers), 14)
    style.across(area, shown, [str(layers[at]) for at in shown], title="MoE layer")
    shown = style.every(gpus)
    style.upward(area, shown, [str(at) for at in shown], title="GPU", gap=34)
    _one_mark(area, int(row), int(column))
    hottest = f"GPU {row} computes {ratio.max():.2f} times the mean in MoE layer {layers[column]}"
    return Drawing(
        name="ranks",
        title="Rows that every GPU computes",
        caption=f"After drops, padding included, as a multiple of the mean GPU. Boxed: {hottest}, all steps together.",
        alt=f"Heat map of {gpus} GPUs by {len(layers)} MoE layers, with bars of max over mean above, from {worst.min():.2f} to "
        f"{worst.max():.2f}. {hottest}.",
        svg=style.svg(figure, "ranks"),
        scale=(f"{low:.3g}× the mean GPU", f"{high:.3g}×"),
    )


def drops(result: Result) -> Drawing | None:
    """Draw the share of routes dropped in each MoE layer; None when nothing is dropped."""
    table = result.tables["layers"]
    if not len(table) or not table["dropped"].sum():
        return None
    layers, which = np.unique(table["moe_layer"], return_inverse=True)
    dropped, routes = (np.bincount(which, weights=table[name].astype(float), minlength=len(layers)) for name in ("dropped", "routes"))
    rate = 100 * np.divide(dropped, routes, out=np.zeros_like(dropped), where=routes > 0)
    each = 100 * np.divide(table["dropped"], table["routes"], out=np.zeros(len(table)), where=table["routes"] > 0)
    low, high = np.full(len(layers), np.inf), np.zeros(len(layers))
    np.minimum.at(low, which, each)
    np.maximum.at(high, which, each)
    figure = style.canvas(style.HALF, 240)
    area = style.axes(figure, 52, 48, 10, 14)
    style.boxes(area, np.arange(len(layers)) - 0.35, np.arange(len(layers)) + 0.35, 0.0, rate, colour=style.ALERT)
    spread = float((high - low).max()) > 0.02 * float(high.max())
    if spread:
        area.vlines(np.arange(len(layers)), low, high, color=style.INK, linewidth=1.2)
    area.set_xlim(-0.5, len(layers) - 0.5)
    area.set_ylim(0, float(high.max()) * 1.06)
    places = style.multiples(0.0, float(high.max()))
    style.upward(area, places, [f"{place:g} %" for place in places], grid=True)
    shown = style.every(len(layers), 14)
    style.across(area, shown, [str(layers[at]) for at in shown], title="MoE layer")
    worst = int(rate.argmax())
    overall = 100 * dropped.sum() / routes.sum()
    return Drawing(
        name="drops",
        title="Drop rate of every layer",
        caption=f"Dropped routes ÷ routes{'; a line spans the steps' if spread else ''}. {overall:.3g} % overall, most in MoE layer "
        f"{layers[worst]} ({rate[worst]:.3g} %).",
        alt=f"Bars of the drop rate of {len(layers)} MoE layers, from {rate.min():.3g} to {rate.max():.3g} per cent.",
        svg=style.svg(figure, "drops"),
    )


def _worst(layers: Table, moe_layer: int) -> float:
    of = layers.where(layers["moe_layer"] == moe_layer)
    mean = of["rank_mean"].astype(float)
    return float(np.divide(of["rank_max"], mean, out=np.ones(len(of)), where=mean > 0).mean()) if len(of) else 1.0


def _one_mark(area: Axes, row: int, column: int) -> None:
    from matplotlib.patches import Rectangle

    area.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, fill=False, edgecolor=style.ALERT, linewidth=2.0, clip_on=False))


def _times(value: float) -> str:
    return f"{value:.2f}×"
