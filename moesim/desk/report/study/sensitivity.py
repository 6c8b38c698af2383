"""The page of a study of inputs: which move the answer, and which change nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from moesim.desk.report import style
from moesim.desk.report.page import Sheet
from moesim.desk.report.study.charts import Bar, Metric, bars
from moesim.desk.report.study.page import Page, Part, drawn, number, text, written
from moesim.desk.report.style import Drawing
from moesim.desk.words import capital, show

LOW, HIGH = "#0072b2", "#e69f00"
"""The colours of the two ends of a range."""
BARS = 16


def page(content: Mapping[str, Any]) -> str:
    """Return the page of a study of inputs as HTML.

    Parameters
    ----------
    content : mapping
        Of its ``sensitivity.json``.
    """
    metric = Metric(name=content["metric"], unit=content["unit"])
    with style.paper():
        pictures = drawn([tornado(content, metric), shares(content)])
    said = content["answer"]
    sheets = [inputs(content)]
    return written(
        Page(
            study="sensitivity",
            how="varied by simulation",
            name=content["name"],
            subtitle=(f"{metric.label} {metric.text(content['base'])}", f"{len(content['inputs'])} inputs", f"{content['runs']} runs"),
            answer=f"{said[0]}." if said else f"No input moves {metric.label}.",
            warnings=tuple(content["warnings"]),
            parts=(
                Part(name="inputs", title="What moves it", lines=tuple(said[1:]), drawings=pictures),
                Part(name="all", title="Inputs", sheets=tuple(sheets), notes=("Headings sort.",)),
            ),
            rests_on=(
                (
                    "Each input went to the ends of its range alone, the others staying where they are; what two do together shows only "
                    "in the shares of the variance, if there are any."
                ),
                "A range says how unsure an input is. Where none was given it is a share of the value, and no statement about the world.",
            ),
            provenance=(("moesim", content["version"]),),
        )
    )


def tornado(content: Mapping[str, Any], metric: Metric) -> Drawing | None:
    """Draw how far each input moves the metric, both ends."""
    base = content["base"]
    moving = [one for one in content["inputs"] if one["reach"]][:BARS]
    if not moving or not base:
        return None
    found = []
    for one in moving:
        ends = [(end, colour) for end, colour in ((one["at_low"], LOW), (one["at_high"], HIGH)) if end is not None]
        said = f"{one['key']}: {_ends(one, metric)}"
        below = sorted(((end - base) / base, colour) for end, colour in ends if end < base)
        above = sorted(((end - base) / base, colour) for end, colour in ends if end >= base)
        pieces, at, start = [], 0.0, below[0][0] if below else 0.0
        for index, (change, colour) in enumerate(below):
            pieces.append(((below[index + 1][0] if index + 1 < len(below) else 0.0) - change, colour))
        for change, colour in above:
            pieces.append((change - at, colour))
            at = change
        found.append(Bar(name=one["key"], pieces=tuple(pieces), start=start, text=said))
    return Drawing(
        name="tornado",
        title=f"{capital(metric.label)} at the ends of each range",
        caption=f"Change against {metric.text(base)}, the input that moves it most first.",
        alt="Bars: " + "; ".join(bar.text for bar in found) + ".",
        svg=bars(found, "tornado", unit="", title=f"change of {metric.label}"),
        legend=(("at the low end", LOW, ""), ("at the high end", HIGH, "")),
    )


def shares(content: Mapping[str, Any]) -> Drawing | None:
    """Draw the shares of the variance, alone and with interactions."""
    found = []
    for one in sorted(content["sobol"], key=lambda one: -one["total"])[:BARS]:
        alone = max(0.0, min(one["first"], one["total"]))
        more = max(0.0, one["total"] - alone)
        said = f"{one['key']}: {alone:.2f} alone, {one['total']:.2f} with interactions ({one['total_low']:.2f} – {one['total_high']:.2f})"
        found.append(Bar(name=one["key"], pieces=((alone, "#009e73"), (more, style.COLOURS["idle"])), text=said))
    if not found:
        return None
    return Drawing(
        name="shares",
        title="Shares of the variance",
        caption="Sobol indices: what an input explains alone, and with what it does together with others.",
        alt="Bars: " + "; ".join(bar.text for bar in found) + ".",
        svg=bars(found, "shares", unit="", title="share of the variance"),
        legend=(("alone", "#009e73", ""), ("with interactions", style.COLOURS["idle"], "")),
    )


def inputs(content: Mapping[str, Any]) -> Sheet:
    """Return the table of inputs, the one that moves the metric most first."""
    metric = Metric(name=content["metric"], unit=content["unit"])
    columns = (
        ("input", "", False), ("from", "", True), ("to", "", True), (f"{metric.label} at the low end", "", True),
        ("at the high end", "", True), ("moves it by", "the larger of both changes", True), ("remark", "", False),
    )  # fmt: skip
    rows = []
    for one in content["inputs"]:
        why = content["no_effect"].get(one["key"])
        remark = one["problem"] or ("" if why is None else f"changed nothing{f': {why}' if why else ''}")
        if one["key"] in content["other_metrics_only"]:
            remark = "moves other metrics only"
        ends = [_given(one, one[end]) for end in ("low", "high")]
        moved = [number(one[end], metric.name, metric.unit) for end in ("at_low", "at_high", "reach")]
        rows.append((text(one["key"]), *ends, *moved, text(remark)))
    return Sheet(name="table", title="Every input", note="", columns=columns, rows=tuple(rows))


def _given(one: Mapping[str, Any], value: float) -> tuple[str, str]:
    return (show(value, one["unit"]) if one["unit"] else f"{value:.4g}"), repr(value)


def _ends(one: Mapping[str, Any], metric: Metric) -> str:
    sides = (("low", "at_low"), ("high", "at_high"))
    return ", ".join(f"{metric.text(one[at])} at {_given(one, one[end])[0]}" for end, at in sides)
