"""How the routers did over the steps: imbalance, experts without work, entropy, drops."""

from __future__ import annotations

import numpy as np

from moesim.desk.report import style
from moesim.desk.report.style import Drawing
from moesim.facts.record import Result, Table

FEWEST = 10
"""Measured steps from which on a course over steps says something."""
ROWS = (
    ("MaxVio", "violation", 0.0),
    ("idle experts", "idle_experts", 0.0),
    ("entropy", "load_entropy", 1.0),
    ("dropped", "dropped", 0.0),
)
SPECIALISATION = ("bits of text", "domain_information", 0.0)
"""A further row where every token's domain is known in every step."""


def health(result: Result) -> Drawing | None:
    """Draw, over the measured steps, how uneven loads were, how many experts were idle, and what was dropped: mean and worst layer."""
    table = result.tables["layers"]
    steps = np.unique(table["step"]) if len(table) else np.array([])
    if len(steps) < FEWEST or "idle_experts" not in table.columns:
        return None
    told = "domain_information" in table.columns and not np.isnan(table["domain_information"]).any()
    rows = (*ROWS, SPECIALISATION) if told else ROWS
    courses = {name: _course(table, column, steps) for name, column, _ in rows}
    figure = style.canvas(style.WHOLE, 96.0 * len(rows) + 52)
    for number, (name, _, bound) in enumerate(rows):
        low, middle, high = courses[name]
        area = style.axes(figure, 92, 48 + 96.0 * (len(rows) - 1 - number), 12, 10 + 96.0 * number)
        area.fill_between(steps, low, high, color=style.ACCENT, alpha=0.16, linewidth=0)
        area.plot(steps, middle, color=style.ACCENT, linewidth=1.4)
        bottom, top = min(float(low.min()), bound), max(float(high.max()), bound, 1e-3)
        area.set_ylim(bottom, top + 0.05 * (top - bottom))
        area.set_xlim(float(steps[0]), float(steps[-1]))
        levels = style.multiples(bottom, top, 3)
        style.upward(area, levels, [f"{level:.3g}" for level in levels], title=name, grid=True, gap=52)
        shown = [int(steps[at]) for at in style.every(len(steps), 12)]
        last = number == len(rows) - 1
        style.across(area, shown, [str(step) if last else "" for step in shown], title="step" if last else "", line=True)
    first, end = (float(courses["MaxVio"][1][at]) for at in (0, -1))
    idle = float(courses["idle experts"][2].max())
    return Drawing(
        name="health",
        title="Routers over the steps",
        caption="Mean over MoE layers; the band goes from the best layer to the worst. MaxVio is the fullest expert’s load above the mean, "
        "as a multiple of the mean; an expert is idle below 1 % of the mean load; entropy is 1 if all loads are equal."
        + (" Specialisation is what the kind of text says about the expert." if told else ""),
        alt=f"{len(rows)} curves over {len(steps)} steps. MaxVio goes from {first:.2f} to {end:.2f}; at most {idle:.0f} experts are idle.",
        svg=style.svg(figure, "health"),
        wide=True,
    )


def _course(table: Table, column: str, steps: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return float[steps], the least, the mean and the largest of the layers; 0 where nothing is known."""
    if column == "violation":
        mean = np.asarray(table["expert_mean"], dtype=float)
        values = np.divide(table["expert_max"], mean, out=np.ones(len(table)), where=mean > 0) - 1.0
    elif column == "dropped":
        routes = np.asarray(table["routes"], dtype=float)
        values = np.divide(table["dropped"], routes, out=np.zeros(len(table)), where=routes > 0)
    else:
        values = np.nan_to_num(np.asarray(table[column], dtype=float))
    grid = values.reshape(len(steps), -1)
    return grid.min(axis=1), grid.mean(axis=1), grid.max(axis=1)
