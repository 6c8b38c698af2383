"""The tornado: how far each input alone moves the answer, the widest on top."""

from __future__ import annotations

from matplotlib.figure import Figure

from moesim.desk.paper import BLUE, INK, MUTED, ORANGE, canvas, printed
from moesim.desk.sensitivity_ask import Studied
from moesim.desk.sensitivity_words import at
from moesim.desk.words import SHARES, label, show

MOST = 30
"""Inputs in the figure."""


def pictures(found: Studied) -> dict[str, bytes]:
    """Return the figure as PNG and SVG by file name; nothing where no input moves the answer."""
    moving = any(swing.reach(found.base) > 0 for swing in found.swings)
    return printed({"tornado": lambda: _drawn(found)}) if moving else {}


def _drawn(found: Studied) -> Figure:
    swings = [swing for swing in found.swings if swing.reach(found.base) > 0][:MOST]
    figure, area = canvas(9.0, 1.3 + 0.3 * len(swings), found.name)
    scale = 100.0 / abs(found.base) if found.base else 1.0
    for row, swing in enumerate(swings):
        for end, value, colour in ((swing.at_low, swing.given.low, BLUE), (swing.at_high, swing.given.high, ORANGE)):
            if end is None or end == found.base:
                continue
            reach = (end - found.base) * scale
            area.barh(row, reach, height=0.62, color=colour, zorder=2)
            area.annotate(
                at(swing.given, value), (reach, row), (4 if reach > 0 else -4, 0), textcoords="offset points",
                ha="left" if reach > 0 else "right", va="center", fontsize=7.5, color=MUTED,
            )  # fmt: skip
    area.axvline(0.0, color=INK, linewidth=0.8)
    area.set_yticks(range(len(swings)), [swing.given.key for swing in swings])
    area.invert_yaxis()
    area.margins(x=0.18)
    at_base = show(found.base, found.unit, share=found.metric in SHARES)
    area.set_xlabel(
        f"{label(found.metric)} against {at_base} ({'%' if found.base else found.unit or '1'}); blue: low end, orange: high end"
    )
    area.tick_params(axis="y", length=0)
    return figure
