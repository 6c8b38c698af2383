"""The Pareto front of a plan: what a candidate costs against how fast it is, with its drops as colour."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from moesim.desk.paper import GREY, INK, MUTED, canvas, printed
from moesim.desk.plan_ask import Asked
from moesim.desk.words import show
from moesim.facts.target import AT_MOST
from moesim.study.plan import Found, cost_of
from moesim.study.plan_verdicts import Judged

MARKS = {"meets": "o", "undecided": "D", "misses": "X"}
FAR = 2.0
"""A target so many times above the slowest candidate would leave no room for the points."""
NAMED = 12
"""Candidates of the front with names; more would cover each other."""


def pictures(asked: Asked, found: Found) -> dict[str, bytes]:
    """Return the figure as PNG and SVG by file name; nothing where fewer than two candidates were simulated."""
    played = [one for one in found.judged if one.status in MARKS and one.means["step_time"].value is not None]
    return printed({"pareto": lambda: _drawn(asked, found, played)}) if len(played) > 1 else {}


def _drawn(asked: Asked, found: Found, played: list[Judged]) -> Figure:
    figure, area = canvas(9.0, 5.2, asked.name)
    drops = [(one.means["drop_rate"].value or 0.0) * 100 for one in played]
    colours = ScalarMappable(Normalize(0.0, max(*drops, 0.1)), "viridis")
    shades = colours.to_rgba(np.array(drops))
    costs = [cost_of(one, found.objective) for one in played]
    by_drops = len(set(costs)) == 1 and len(set(drops)) > 1  # what costs the same is weighed by its drops
    points = [(x, (one.means["step_time"].value or 0.0) * 1e3) for x, one in zip(drops if by_drops else costs, played, strict=True)]
    for status, mark in MARKS.items():
        mine = [index for index, one in enumerate(played) if one.status == status]
        if mine:
            area.scatter(
                [points[index][0] for index in mine], [points[index][1] for index in mine], c=[shades[index] for index in mine],
                marker=mark, s=64, edgecolors=INK, linewidths=0.6, label=status, zorder=3,
            )  # fmt: skip
    front = sorted(point for one, point in zip(played, points, strict=True) if one.candidate.name in found.pareto)
    stairs = [point for index, point in enumerate(front) if point[1] < min((other[1] for other in front[:index]), default=float("inf"))]
    area.plot([x for x, _ in stairs], [y for _, y in stairs], color=GREY, linewidth=1.0, drawstyle="steps-post", zorder=2)
    _names(figure, area, found, played, points)
    tallest = max(y for _, y in points)
    limits = [target.limit * 1e3 for target in asked.plan.targets if target.metric == "step_time" and target.limit * 1e3 <= FAR * tallest]
    for target in asked.plan.targets:
        if target.metric == "step_time" and target.limit * 1e3 in limits:
            area.axhline(target.limit * 1e3, color=MUTED, linewidth=0.9, linestyle="--")
            said = f"{'at most' if target.sense == AT_MOST else 'at least'} {show(target.limit, 's')}"
            where: dict[str, Any] = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points"}
            area.annotate(said, (1, target.limit * 1e3), (-2, 3), ha="right", fontsize=8, color=MUTED, **where)
    per = {"gpus": "GPUs", "cost_per_hour": f"cost per hour ({asked.plan.currency})"}
    area.set_xlabel("routes dropped (%)" if by_drops else per.get(found.objective, f"cost per million tokens ({asked.plan.currency})"))
    if found.objective == "gpus" and not by_drops:
        area.xaxis.set_major_locator(MaxNLocator(integer=True))
    area.set_ylabel("step time (ms)")
    area.margins(x=0.12)
    area.set_ylim(0.0, 1.12 * max(tallest, *limits, 0.0))
    area.legend(loc="best", frameon=False, fontsize=8)
    if max(drops) > 0 and not by_drops:
        figure.colorbar(colours, ax=area, label="routes dropped (%)", pad=0.02)
    return figure


def _names(figure: Figure, area: Axes, found: Found, played: list[Judged], points: list[tuple[float, float]]) -> None:
    """Put numbers at the points of the front, the chosen one first, and say below which candidates they are; alike ones share one."""
    named = [index for index, one in enumerate(played) if one is found.chosen or one.candidate.name in found.pareto]
    named.sort(key=lambda index: (played[index] is not found.chosen, points[index]))
    spots: dict[tuple[str, str], list[int]] = {}
    for index in named:
        spots.setdefault((f"{points[index][0]:.3g}", f"{points[index][1]:.3g}"), []).append(index)
    handles, labels = [], []
    for number, (_, mine) in enumerate(list(spots.items())[:NAMED], 1):
        chosen = any(played[index] is found.chosen for index in mine)
        area.annotate(
            str(number), points[mine[0]], (6, 6), textcoords="offset points", fontsize=8.5, color=INK,
            weight="bold" if chosen else "normal", zorder=4,
        )  # fmt: skip
        others = f" (and {len(mine) - 1} like it)" if len(mine) > 1 else ""
        handles.append(Line2D([], [], linestyle="none"))
        labels.append(f"{number}  {played[mine[0]].candidate.name}{others}{': the cheapest that meets every target' if chosen else ''}")
    if labels:
        figure.legend(handles, labels, loc="outside lower left", frameon=False, fontsize=7.5, handlelength=0, handletextpad=0)
