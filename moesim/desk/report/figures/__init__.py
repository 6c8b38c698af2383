"""Every figure of the report, each a function of the result alone; one that has nothing to show returns None."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from moesim.desk.report import style
from moesim.desk.report.figures import health, load, network, time, timeline, whole_step
from moesim.desk.report.style import Drawing
from moesim.facts.record import Result

FIGURES = (
    time.bounds,
    time.steps,
    time.phases,
    timeline.timeline,
    whole_step.whole_step,
    load.experts,
    load.ranks,
    load.drops,
    health.health,
    network.traffic,
    network.links,
    network.fabric,
)


def draw(result: Result) -> dict[str, Drawing]:
    """Return the figures of a run by name, in the order of the page."""
    return {drawing.name: drawing for drawing in draw_some(result, FIGURES) if drawing is not None}


def draw_some(result: Result, which: Sequence[Callable[[Result], Drawing | None]]) -> list[Drawing | None]:
    """Return some of the figures; None for each that has nothing to show."""
    with style.paper():
        return [figure(result) for figure in which]
