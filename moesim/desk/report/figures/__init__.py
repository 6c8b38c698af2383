"""Every figure of the report, each a function of the result alone; one that has nothing to show returns None."""

from __future__ import annotations

from moesim.desk.report import style
from moesim.desk.report.figures import load, network, time, timeline
from moesim.desk.report.style import Drawing
from moesim.facts.record import Result

FIGURES = (
    time.bounds,
    time.steps,
    time.phases,
    timeline.timeline,
    load.experts,
    load.ranks,
    load.drops,
    network.traffic,
    network.links,
    network.fabric,
)


def draw(result: Result) -> dict[str, Drawing]:
    """Return the figures of a run by name, in the order of the page."""
    with style.paper():
        return {drawing.name: drawing for drawing in (figure(result) for figure in FIGURES) if drawing is not None}
