"""How imbalance, drops and step times of all variants develop over the steps."""

from __future__ import annotations

import numpy as np

from moesim.desk.compare_shown import Shown
from moesim.desk.report import hover, style
from moesim.desk.report.points import short
from moesim.desk.report.style import Drawing
from moesim.desk.words import show
from moesim.facts.arrays import Floats
from moesim.study.cell import Answer

FEWEST = 10
"""Measured steps from which on a course over steps says something."""
POINTS = 100
"""Of a line: more steps are averaged in groups of equal size."""
ROWS = (("maxvio", "MaxVio", ""), ("drop_rate", "dropped, %", "share"), ("step_time", "step time", "s"))
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8d939c", "#882255", "#b8a400", "#44aa99")
RECORDED = "recorded"
DEVELOPS = {"training", RECORDED}
"""Sources whose steps have an order: under all others a step is a draw like any other."""


def courses(shown: Shown) -> Drawing | None:
    """Draw MaxVio, drops and step time of every variant over its steps, those that replay a recording with dashes.

    A variant that is called like another one with ``recorded`` before or after it has the colour of that one. Steps that repeat earlier
    tokens are left out: a recording ends where it ends. Where no routing develops by itself there is nothing to draw.
    """
    kinds = {name: side.source for name, side in shown.sides.items()}
    if not DEVELOPS & set(kinds.values()):
        return None
    lines = {name: _averaged(side.answers) for name, side in shown.sides.items()}
    lines = {name: (steps, rows) for name, (steps, rows) in lines.items() if len(steps) >= FEWEST}
    if not lines:
        return None
    replays = {name for name in lines if kinds[name] == RECORDED}
    colours = _colours(list(lines))
    figure = style.canvas(style.WHOLE, 190.0 * len(ROWS) + 46)
    last = max(float(steps[-1]) for steps, _ in lines.values())
    begin = min(float(steps[0]) for steps, _ in lines.values())
    for number, (metric, title, dimension) in enumerate(ROWS):
        area = style.axes(figure, 92, 48 + 190.0 * (len(ROWS) - 1 - number), 12, 12 + 190.0 * number)
        factor = 100.0 if dimension == "share" else 1.0
        drawn = {name: factor * rows[metric] for name, (_, rows) in lines.items()}
        high = max((float(np.nanmax(values)) for values in drawn.values()), default=1.0) or 1.0
        area.set_xlim(begin, last)
        area.set_ylim(0.0, 1.05 * high)
        if dimension == "s":
            levels, labels, unit = style.scale(high, "s", 3)
            heading = f"{title}, {unit}"
        else:
            levels = style.multiples(0.0, high, 3)
            labels, heading = [f"{level:.3g}" for level in levels], title
        style.upward(area, levels, labels, title=heading, grid=True, gap=52)
        for name, values in drawn.items():
            dashes = (0, (4, 2)) if name in replays else "solid"
            (line,) = area.plot(lines[name][0], values, color=colours[name], linewidth=1.6, linestyle=dashes)
            ends = [show(float(value), "s") if dimension == "s" else f"{value:.3g}" for value in values[[0, -1]]]
            hover.say(line, f"{name}: {title.partition(',')[0]} from {ends[0]} to {ends[1]}")
        foot = number == len(ROWS) - 1
        places = style.multiples(begin, last, 8)
        style.across(area, places, [f"{place:.0f}" if foot else "" for place in places], title="step" if foot else "", line=True)
    told = "; ".join(f"{name} {rows['maxvio'][0]:.2f} to {rows['maxvio'][-1]:.2f}" for name, (_, rows) in lines.items())
    dashed = "Dashes replay a recording; a pair of one colour is the same strategy. " if replays else ""
    return Drawing(
        name="courses",
        title="Over the steps",
        caption=f"{dashed}MaxVio is the fullest expert’s load above the mean, as a multiple of the mean, mean over MoE layers. Lines are "
        "means over seeds and, where there are many steps, over neighbouring ones.",
        alt=f"Curves over {last - begin + 1:.0f} steps. MaxVio from the first steps to the last: {told}.",
        svg=style.svg(figure, "courses"),
        wide=True,
        legend=tuple((short(name, 34), colours[name], "dashed" if name in replays else "") for name in lines),
    )


def _averaged(answers: tuple[Answer, ...]) -> tuple[Floats, dict[str, Floats]]:
    """Return the steps of a line and its values of every metric: means over seeds and over neighbouring steps."""
    first = answers[0]
    fresh = first.fresh
    group = max(-(-int(fresh.sum()) // POINTS), 1)
    whole = int(fresh.sum()) // group * group

    def grouped(values: Floats) -> Floats:
        known = ~np.isnan(values)
        sums = np.where(known, values, 0.0).reshape(-1, group).sum(axis=1)
        counts = known.reshape(-1, group).sum(axis=1)
        return np.asarray(np.divide(sums, counts, out=np.full(len(sums), np.nan), where=counts > 0))

    alike = [answer for answer in answers if np.array_equal(answer.steps, first.steps)]
    rows = {metric: grouped(np.mean([answer.samples[metric] for answer in alike], axis=0)[fresh][:whole]) for metric, *_ in ROWS}
    return grouped(first.steps[fresh][:whole].astype(np.float64)), rows


def _colours(names: list[str]) -> dict[str, str]:
    """Return a colour for each name; the same for one strategy and its recording."""
    stems = {name: " ".join(name.replace("-", " ").replace("_", " ").replace(RECORDED, "").split()) for name in names}
    order = list(dict.fromkeys(stems.values()))
    return {name: COLOURS[order.index(stem) % len(COLOURS)] for name, stem in stems.items()}
