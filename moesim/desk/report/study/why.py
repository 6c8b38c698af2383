"""The page that says why a step takes as long as it does, and what would help."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from moesim.desk.report import style
from moesim.desk.report.page import LONGEST, Sheet, Tile
from moesim.desk.report.study.charts import COLOURS, Bar, bars
from moesim.desk.report.study.page import Page, Part, drawn, text, written
from moesim.desk.report.style import Drawing
from moesim.desk.words import PHASES, show

SHARES = {
    "phase": ("What was done", "by what was done"),
    "gpu": ("GPUs", "by GPU"),
    "layer": ("Layers", "by layer"),
    "link": ("Links", "by the fullest link of a transfer"),
    "experts": ("Experts", "by the GPU that all waited for and its hottest expert"),
}
"""The ways in which the critical path is divided: title, and what follows *seconds of a step on the critical path*."""
BARS, PARTS = 14, 10
"""Changes, and parts of the critical path, that are drawn."""


def page(content: Mapping[str, Any]) -> str:
    """Return the page as HTML.

    Parameters
    ----------
    content : mapping
        What ``moesim why --format json`` prints.
    """
    with style.paper():
        pictures = drawn([worth(content), *(path(content, name) for name in SHARES)])
    return written(
        Page(
            study="why",
            how="explained by simulation",
            name=content["name"],
            subtitle=(f"mean of {content['steps']} steps" if content["steps"] > 1 else "one step", f"seed {content['seed']}"),
            answer=answer(content),
            warnings=tuple(content["warnings"]),
            tiles=tuple(
                Tile(label=one["name"], value=show(one["step_time"], "s"), note=_change(one["gain_share"]))
                for one in [one for one in content["what_ifs"] if one["gain"] is not None][:4]
            ),
            parts=(
                Part(name="path", title="Where the step goes, and what would help", drawings=pictures),
                Part(name="numbers", title="Numbers", sheets=(what_ifs(content),), folded=(_waits(content), _path(content))),
            ),
            rests_on=(
                (
                    "The critical path is followed backwards from the task that ended last; its parts add up to the step. "
                    "Where links are shared it says where the step was, and not how much shorter it would be otherwise."
                ),
                (
                    "What a change is worth was simulated: the same tokens, the same policy, one thing different. "
                    "A gain can be smaller than the share of the path, because the next thing takes its place."
                ),
            ),
            provenance=(("seed", str(content["seed"])), ("steps", str(content["steps"]))),
        )
    )


def answer(content: Mapping[str, Any]) -> str:
    """Return what takes the time and what would help, in a few sentences."""
    best = next((one for one in content["what_ifs"] if (one["gain"] or 0.0) > 0), None)
    base = content["step_time"]
    phases = content["critical_path"]["phase"]
    stalls = content.get("net_step_time", base) - base
    also = f", and {show(stalls, 's')} of stalls while experts move" if stalls > 1e-9 * base else ""
    said = [f"A step takes {show(base, 's')}{also}."]
    if phases:
        first = next(iter(phases))
        said.append(f"Most of its critical path is {_phase(first)}, {show(phases[first], 's')}.")
    said.append(
        f"What would help most: {best['name']}, {show(best['gain'], 's')} or {show(best['gain_share'], '', share=True)} of the step."
        if best else "None of the changes that were tried makes it shorter."
    )  # fmt: skip
    return " ".join(said)


def worth(content: Mapping[str, Any]) -> Drawing | None:
    """Draw what each change takes off the step."""
    known = [one for one in content["what_ifs"] if one["gain"] is not None][:BARS]
    if not known:
        return None
    found = []
    for one in known:
        gain = one["gain"]
        said = f"{one['name']}: {show(one['step_time'], 's')}, {_change(one['gain_share'])}; {one['sentence']}"
        colour = style.ACCENT if gain >= 0 else style.ALERT
        found.append(Bar(name=one["name"], pieces=((abs(one["gain_share"]), colour),),
                         start=min(0.0, one["gain_share"]), text=said))  # fmt: skip
    return Drawing(
        name="worth",
        title="What it would be worth to take away",
        caption="Share of the step that each change saves, found by simulating the same steps with it.",
        alt="Bars: " + "; ".join(bar.text for bar in found) + ".",
        svg=bars(found, "worth", unit="", title="saved, share of the step"),
    )


def path(content: Mapping[str, Any], name: str) -> Drawing | None:
    """Draw one division of the critical path."""
    shares = content["critical_path"][name]
    if not shares:
        return None
    total = content["step_time"]
    found = []
    for what, seconds in list(shares.items())[:PARTS]:
        colour = style.COLOURS.get(what.partition(":")[0], COLOURS[6]) if name == "phase" else style.ACCENT
        said = _phase(what) if name == "phase" else what
        part = show(seconds / total, "", share=True) if total else ""
        found.append(Bar(name=said, pieces=((seconds, colour),), text=f"{said}: {show(seconds, 's')}, {part}"))
    more = len(shares) - len(found)
    rest = f" {more} more take {show(sum(list(shares.values())[PARTS:]), 's')} together." if more else ""
    title, by = SHARES[name]
    return Drawing(
        name=f"path-{name}",
        title=title,
        caption=f"Time of a step on the critical path, {by}.{rest}",
        alt="Bars: " + "; ".join(bar.text for bar in found) + ".",
        svg=bars(found, f"path-{name}", unit="s", title="on the critical path"),
    )


def what_ifs(content: Mapping[str, Any]) -> Sheet:
    """Return the table of what each change is worth."""
    columns = (("change", "", False), ("step", "", True), ("saves", "", True), ("of the step", "", True), ("what", "", False))
    rows = []
    for one in content["what_ifs"]:
        known = one["gain"] is not None
        values = [(show(one[key], "s") if known else "", repr(one[key]) if known else "") for key in ("step_time", "gain")]
        share = (show(one["gain_share"], "", share=True), repr(one["gain_share"])) if known else ("", "")
        rows.append((text(one["name"]), *values, share, text(one["sentence"] if known else f"not possible here: {one['error']}")))
    return Sheet(
        name="changes", title="What each change is worth", note="The same steps, simulated again.", columns=columns, rows=tuple(rows)
    )


def _waits(content: Mapping[str, Any]) -> Sheet:
    columns = (("GPU that was late", "", True), ("GPU that waited", "", True), ("in a step", "", True), ("times", "", True),
               ("worst in layer", "", True))  # fmt: skip
    rows = [
        (_count(one["gpu"]), _count(one["waiting_gpu"]), (show(one["seconds"], "s"), repr(one["seconds"])), _count(one["calls"]),
         _count(one["worst_layer"]))
        for one in content["waiting"][:LONGEST]
    ]  # fmt: skip
    more = len(content["waiting"]) - len(rows)
    note = "Nobody waited for anybody." if not rows else f"{more} more are in the JSON." if more > 0 else ""
    return Sheet(name="waits", title="Who kept whom waiting", note=note, columns=columns, rows=tuple(rows))


def _path(content: Mapping[str, Any]) -> Sheet:
    columns = (("part", "", False), ("by", "", False), ("on the critical path", "of a step", True))
    rows = [
        (text(what), text(by), (show(seconds, "s"), repr(seconds)))
        for name, (_, by) in SHARES.items()
        for what, seconds in list(content["critical_path"][name].items())[:LONGEST]
    ]
    return Sheet(name="parts", title="Every part of the critical path", note="", columns=columns, rows=tuple(rows))


def _count(value: int) -> tuple[str, str]:
    return str(value), str(value)


def _phase(what: str) -> str:
    name, colon, rest = what.partition(":")
    return (PHASES[name][0] if name in PHASES else name) + colon + rest


def _change(share: float | None) -> str:
    if share is None:
        return ""
    return "no change" if abs(share) < 0.0005 else f"{-100 * share:+.1f} %".replace("-", "−")
