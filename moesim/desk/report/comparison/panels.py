"""Heat maps of every variant beside each other, on one colour scale."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from moesim.desk.compare_shown import Shown
from moesim.desk.report import hover, style
from moesim.desk.report.points import short
from moesim.desk.report.style import Drawing
from moesim.desk.words import show
from moesim.facts.arrays import Floats
from moesim.facts.record import Table

COLUMNS = 4
"""Heat maps side by side."""


def grids(shown: Shown, table: str, make: Callable[[Table], Floats | None]) -> dict[str, Floats]:
    """Return one grid for each variant whose first run left that table."""
    found: dict[str, Floats] = {}
    for name, side in shown.sides.items():
        tables = side.first.tables
        if tables is not None and table in tables and len(tables[table]):
            grid = make(tables[table])
            if grid is not None:
                found[name] = grid
    return found


def together(found: Mapping[str, Floats]) -> list[tuple[list[str], Floats]]:
    """Return grids with the names of the variants that have them: equal ones are drawn once."""
    groups: dict[tuple[tuple[int, ...], bytes], tuple[list[str], Floats]] = {}
    for name, grid in found.items():
        groups.setdefault((grid.shape, grid.tobytes()), ([], grid))[0].append(name)
    return list(groups.values())


def panels(found: Mapping[str, Floats], name: str, *, across: str, upward: str, low: float, high: float, square: bool = False,
           text: Callable[[float], str] = "{:.2f}×".format) -> str:  # fmt: skip
    """Return the SVG of heat maps in rows of four, each under the names of its variants.

    Parameters
    ----------
    found : mapping of str to float[rows, columns]
        One grid per variant.
    name : str
        Of the figure.
    across, upward : str
        What columns and rows are.
    low, high : float
        The ends of the one colour scale.
    square : bool
        Whether cells are as high as wide.
    text : callable
        Writes the value of a cell.
    """
    groups = together(found)
    columns = min(COLUMNS, max(len(groups), 2))
    rows = -(-len(groups) // columns)
    left, gap, above, below = 52.0, 26.0, 34.0, 46.0
    wide = min((style.WHOLE - left - 8 - gap * (columns - 1)) / columns, 400.0)
    tall = wide if square else float(np.clip(9.0 * max(grid.shape[0] for _, grid in groups), 110, 240))
    figure = style.canvas(style.WHOLE, rows * (tall + above + below))
    for index, (names, grid) in enumerate(groups):
        row, column = divmod(index, columns)
        x = left + column * (wide + gap)
        area = style.axes(
            figure, x, (rows - 1 - row) * (tall + above + below) + below, style.WHOLE - x - wide, row * (tall + above + below) + above
        )
        area.imshow(grid, aspect="auto", vmin=low, vmax=high)
        hover.say_cells(area, grid, text, row=upward, rows=range(grid.shape[0]), column=across, columns=range(grid.shape[1]))
        shown = style.every(grid.shape[1], 7)
        style.across(area, shown, [str(at) for at in shown], title=across)
        shown = style.every(grid.shape[0], 8)
        style.upward(area, shown, [str(at) for at in shown], title=upward if column == 0 else "", gap=36)
        title = names[0] if len(names) == 1 else f"{short(names[0], 18)} and {len(names) - 1} more"
        area.text(0, 1 + 9 / tall, short(title, 34), transform=area.transAxes, fontsize=12, color=style.INK, fontweight="bold", va="bottom")
    return style.svg(figure, name)


def experts(shown: Shown) -> Drawing | None:
    """Draw the routes that every expert keeps under each variant, as a multiple of its fair share before drops."""

    def kept(table: Table) -> Floats | None:
        grid = np.zeros((int(table["moe_layer"].max()) + 1, int(table["expert"].max()) + 1))
        before = np.zeros_like(grid)
        grid[table["moe_layer"], table["expert"]] = table["routes"] - table["dropped"]
        before[table["moe_layer"], table["expert"]] = table["routes"]
        mean = before.mean(axis=1, keepdims=True)
        return np.asarray(np.divide(grid, mean, out=np.zeros_like(grid), where=mean > 0))

    found = grids(shown, "experts", kept)
    if not found:
        return None
    high = max(1.0, *(float(grid.max()) for grid in found.values()))
    tops = {name: float(grid.max()) for name, grid in found.items()}
    return Drawing(
        name="experts",
        title="Load of every expert, after drops",
        caption="Routes that were kept, as a multiple of the layer’s mean before drops; a capacity factor caps it. "
        f"{_same(found)}Logical experts: a placement changes where they are, not these numbers.",
        alt="Heat maps of MoE layers by experts. Largest multiple: " + "; ".join(f"{name} {top:.2f}" for name, top in tops.items()) + ".",
        svg=panels(found, "experts", across="logical expert", upward="MoE layer", low=0.0, high=high),
        scale=("0× the fair share", f"{high:.3g}×"),
        wide=True,
    )


def ranks(shown: Shown) -> Drawing | None:
    """Draw the rows that every GPU computes in every layer under each variant, as a multiple of the mean GPU."""

    def rows(table: Table) -> Floats | None:
        grid = np.zeros((int(table["gpu"].max()) + 1, int(table["moe_layer"].max()) + 1))
        np.add.at(grid, (table["gpu"], table["moe_layer"]), table["rows"])
        mean = grid.mean(axis=0, keepdims=True)
        return np.asarray(np.divide(grid, mean, out=np.zeros_like(grid), where=mean > 0))

    found = grids(shown, "ranks", rows)
    if not found:
        return None
    low = min(float(grid.min()) for grid in found.values())
    high = max(1.0, *(float(grid.max()) for grid in found.values()))
    worst = "; ".join(f"{name} {grid.max():.2f}" for name, grid in found.items())
    return Drawing(
        name="ranks",
        title="Rows that every GPU computes",
        caption="After drops, padding included, all measured steps of the first run together, as a multiple of the mean GPU. "
        + _same(found),
        alt=f"Heat maps of GPUs by MoE layers. Largest multiple: {worst}.",
        svg=panels(found, "ranks", across="MoE layer", upward="GPU", low=low, high=max(high, low + 1e-9)),
        scale=(f"{low:.3g}× the mean GPU", f"{high:.3g}×"),
        wide=True,
    )


def traffic(shown: Shown) -> Drawing | None:
    """Draw the bytes between every pair of GPUs under each variant."""
    gpus = {name: int(side.first.facts.get("gpus", 0)) for name, side in shown.sides.items()}
    size = max(gpus.values(), default=0)

    def sent(table: Table) -> Floats | None:
        many = max(size, int(max(table["source"].max(), table["destination"].max())) + 1)
        grid = np.zeros((many, many))
        grid[table["source"], table["destination"]] = table["dispatch_bytes"] + table["combine_bytes"]
        return grid

    found = grids(shown, "traffic", sent)
    if not found:
        return None
    high = max(float(grid.max()) for grid in found.values())
    base = shown.comparison.metrics[shown.comparison.baseline]["cross_node_bytes"].value
    crossing = {name: shown.comparison.metrics[name]["cross_node_bytes"].value for name in found}
    said = "; ".join(f"{name} {show(value, 'B')}" for name, value in crossing.items() if value is not None)
    return Drawing(
        name="traffic",
        title="Bytes from GPU to GPU",
        caption="Dispatch and combine of a step, forward and backward together, in the first run of each variant. "
        + (f"Across nodes in a step: {said}. " if base else "")
        + _same(found),
        alt=f"Heat maps of source by destination GPU; the busiest pair sends {show(high, 'B')}. Across nodes: {said}.",
        svg=panels(found, "traffic", across="destination GPU", upward="source GPU", low=0.0, high=high, square=True, text=_bytes),
        scale=("0 B", show(high, "B")),
        wide=True,
    )


def waiting(shown: Shown) -> Drawing | None:
    """Draw who waited for whom in the first measured step of each variant."""

    def waited(table: Table) -> Floats | None:
        size = int(table["gpu"].max()) + 1
        grid = np.zeros((size, size))
        known = table["waited_for"] >= 0
        np.add.at(grid, (table["gpu"][known], table["waited_for"][known]), table["waiting_s"][known])
        return grid

    found = grids(shown, "timeline", waited)
    high = max((float(grid.max()) for grid in found.values()), default=0.0)
    if not high > 0:
        return None
    slow = {name: (int(grid.sum(axis=0).argmax()), float(grid.sum())) for name, grid in found.items()}
    said = "; ".join(
        f"{name} {show(total / len(found[name]), 's')} a GPU, most for GPU {gpu}" for name, (gpu, total) in slow.items() if total > 0
    )
    return Drawing(
        name="waiting",
        title="Who waited for whom",
        caption=f"Time without a byte moving, in the first measured step of the first run: {said}. A bright column is a GPU that holds up "
        "the others.",
        alt=f"Heat maps of the GPU that waits by the GPU that is waited for. Waiting: {said}.",
        svg=panels(found, "waiting", across="waited for GPU", upward="GPU", low=0.0, high=high, square=True, text=_seconds),
        scale=("0 s", show(high, "s")),
        wide=True,
    )


def _bytes(value: float) -> str:
    return show(value, "B")


def _seconds(value: float) -> str:
    return show(value, "s")


def _same(found: Mapping[str, Floats]) -> str:
    """Say which variants share a heat map."""
    shared = [names for names, _ in together(found) if len(names) > 1]
    return "".join(f"The same for {', '.join(names[:-1])} and {names[-1]}. " for names in shared)
