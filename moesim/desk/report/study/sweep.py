"""The page of a sweep: the trade-off, what changes along the axes, and every cell."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from moesim.desk.report import style
from moesim.desk.report.page import LONGEST, Sheet, Tile
from moesim.desk.report.points import short
from moesim.desk.report.study.charts import LINES, Line, Metric, Point, heat, legend, lines, scatter
from moesim.desk.report.study.page import Page, Part, drawn, is_number, number, text, written
from moesim.desk.report.style import Drawing
from moesim.desk.words import capital, definitions, interval, label, show
from moesim.facts.record import Value
from moesim.study.cell import Answer
from moesim.study.sweep import ABSENT, Sweep, short_names, word

DRAWN = ("step_time", "drop_rate", "rank_max_over_mean")
"""What is drawn along the axes, where it differs between cells."""
SHOWN = ("step_time", "tokens_per_second", "drop_rate", "rank_max_over_mean", "waiting_time", "peak_memory")
"""What the table of cells shows, where it differs."""
MOST = 400
"""Cells of the table on the page."""
NAMED = 10
"""Points of the front with names."""
FEW = 3
"""Lines of a chart that say as much as a map."""
WIDEST = 40
"""Values of an axis of a map."""


def page(content: Mapping[str, Any], scenario_text: str = "") -> str:
    """Return the page of a sweep as HTML.

    Parameters
    ----------
    content : mapping
        Of its ``summary.json``.
    scenario_text : str
        The resolved scenario.
    """
    sweep = sweep_of(content)
    with style.paper():
        parts = tuple(_parts(sweep))
    texts = (("The scenario with its matrix, every default written out", scenario_text),) if scenario_text else ()
    return written(
        Page(
            study="sweep",
            how="swept by simulation",
            name=sweep.name,
            subtitle=tuple(_subtitle(sweep)),
            answer=answer(sweep),
            warnings=tuple(_warnings(content, sweep)),
            tiles=tuple(_tiles(sweep)),
            parts=parts,
            rests_on=(
                "Cells with the same routing and gate have the same tokens, so differences between them are those of what was changed.",
                ("Intervals bound the mean over the steps of a cell at 95 %. Whether two cells differ by more than chance, compare says, "
                "which takes differences step by step."),
            ),
            provenance=(("moesim", str(content["version"])), ("scenario digest", str(content["scenario_digest"])),
                        ("axes", " · ".join(f"{axis}: {_listed([word(value) for value in sweep.values(axis)])}" for axis in sweep.axes))),
            texts=texts,
        )
    )  # fmt: skip


def sweep_of(content: Mapping[str, Any]) -> Sweep:
    """Return the sweep that a ``summary.json`` tells of."""
    answers = tuple(
        Answer(
            name=cell["name"],
            digest=cell["digest"] or "",
            axes=cell["axes"],
            status=cell["status"],
            error=cell["error"],
            metrics={name: Value(**value) for name, value in cell["metrics"].items()},
        )
        for cell in content["cells"]
    )
    return Sweep(
        name=content["name"], axes=tuple(axis["key"] for axis in content["axes"]), answers=answers, shown=tuple(content.get("shown", ()))
    )


def answer(sweep: Sweep) -> str:
    """Return what a sweep says, in a few sentences."""
    known = [cell for cell in sweep.done if _value(cell, sweep.pareto[0]) is not None]
    if not known:
        return f"None of the {len(sweep.answers)} cells has a step time."
    best = min(known, key=lambda cell: (_value(cell, sweep.pareto[0]) or 0.0, cell.name))
    drops = _value(best, sweep.pareto[1])
    said = f"{best.name} has the shortest step, {_shown(best, sweep.pareto[0])}"
    said += "" if drops is None else f", and drops {_shown(best, sweep.pareto[1]) if drops else 'nothing'}"
    whole = [cell for cell in known if _value(cell, sweep.pareto[1]) == 0]
    if drops and whole:
        first = min(whole, key=lambda cell: (_value(cell, sweep.pareto[0]) or 0.0, cell.name))
        said += f"; of the {len(whole)} cells that drop nothing, {first.name} is fastest, {_shown(first, sweep.pareto[0])}"
    front = sweep.front()
    if len(front) > 1:
        said += f". {len(front)} cells are beaten by none in {label(sweep.pareto[0])} and {label(sweep.pareto[1])} at once"
    return said + "."


def _subtitle(sweep: Sweep) -> Iterable[str]:
    yield f"{len(sweep.answers)} cells"
    if sweep.failed:
        yield f"{len(sweep.failed)} failed"
    short_of = short_names(sweep.axes)
    for axis in sweep.axes:
        values = [word(value) for value in sweep.values(axis)]
        yield (
            f"{short_of[axis]} {values[0]} … {values[-1]}"
            if len(values) > 3 and axis in sweep.numeric()
            else (f"{short_of[axis]} {_listed(values)}")
        )


def _warnings(content: Mapping[str, Any], sweep: Sweep) -> Iterable[str]:
    for cell in sweep.failed:
        yield f"failed: {cell.name}: {cell.error.splitlines()[0] if cell.error else 'no reason given'}"
    for warning in content["warnings"]:
        cells = warning["cells"]
        yield warning["text"] if len(cells) == len(sweep.done) else f"{_listed(cells)}: {warning['text']}"


def _tiles(sweep: Sweep) -> Iterable[Tile]:
    for name, better in (("step_time", min), ("tokens_per_second", max), ("drop_rate", min), ("peak_memory", min)):
        known = [cell for cell in sweep.done if _value(cell, name) is not None]
        if known:
            best = better(known, key=lambda cell: _value(cell, name) or 0.0)
            worst = (max if better is min else min)(known, key=lambda cell: _value(cell, name) or 0.0)
            word_of = "least" if better is min else "most"
            same = _value(best, name) == _value(worst, name)
            note = "in every cell" if same else f"{short(best.name, 44)}; up to {_shown(worst, name)}"
            if better is max and not same:
                note = f"{short(best.name, 44)}; down to {_shown(worst, name)}"
            yield Tile(label=label(name) if same else f"{word_of} {label(name)}", value=_shown(best, name), note=note)


def _parts(sweep: Sweep) -> Iterable[Part]:
    pictures = drawn([front(sweep), *(curves(sweep, name) for name in _drawn(sweep)), *(maps(sweep, name) for name in _drawn(sweep))])
    if pictures:
        yield Part(name="pictures", title="Pictures", drawings=pictures)
    folded = [_every_metric(sweep)] if sweep.done else []
    errors = tuple(f"{cell.name}: {cell.error}" for cell in sweep.failed)
    yield Part(
        name="cells", title="Cells", sheets=(cells(sweep),), folded=tuple(folded),
        notes=("Headings sort; what a metric is appears over its heading.",), lines=errors,
    )  # fmt: skip


def front(sweep: Sweep) -> Drawing | None:
    """Draw step time against drop rate of every cell, or against the load of its fullest GPU where all drop the same."""
    against = sweep.pareto[1]
    if len({_value(cell, against) for cell in sweep.done}) < 2:
        against = "rank_max_over_mean"
    known = [cell for cell in sweep.done if _value(cell, sweep.pareto[0]) is not None and _value(cell, against) is not None]
    if len(known) < 2 or len({(_value(cell, against), _value(cell, sweep.pareto[0])) for cell in known}) < 2:
        return None
    x_axis, y_axis = (Metric(name=name, unit=known[0].metrics[name].unit) for name in (against, sweep.pareto[0]))
    best = sweep.front(against, sweep.pareto[0]) if against != sweep.pareto[1] else sweep.front()
    names = {cell.name for cell in best}
    points = []
    for cell in known:
        value = cell.metrics[sweep.pareto[0]]
        said = f"{cell.name}: {y_axis.label} {y_axis.text(value.value)}, {x_axis.label} {x_axis.text(_value(cell, against))}"
        points.append(
            Point(x=_value(cell, against) or 0.0, y=value.value or 0.0, low=value.low, high=value.high, text=said,
                  filled=cell.name in names, colour=style.ACCENT if cell.name in names else style.MUTED)
        )  # fmt: skip
    corners = sorted({(_value(cell, against) or 0.0, _value(cell, sweep.pareto[0]) or 0.0) for cell in best})
    labels = {cell.name: (_value(cell, against) or 0.0, _value(cell, sweep.pareto[0]) or 0.0) for cell in best[:NAMED]}
    return Drawing(
        name="front",
        title=f"{capital(y_axis.label)} against {x_axis.label}",
        caption="Filled points are cells that no other beats in both; the dotted line joins them. Bars are intervals of 95 % over steps.",
        alt=f"Scatter plot of {len(known)} cells. Beaten by none in both: "
        + "; ".join(
            f"{cell.name}, {x_axis.label} {_shown(cell, against)}, {y_axis.label} {_shown(cell, sweep.pareto[0])}" for cell in best[:NAMED]
        )
        + ".",
        svg=scatter(points, "front", across=x_axis, upward=y_axis, front=corners, names=labels),
        wide=True,
    )


def curves(sweep: Sweep, name: str) -> Drawing | None:
    """Draw a metric over the axis of numbers with the most values, one line per combination of the others."""
    numeric = sorted(sweep.numeric(), key=lambda axis: -len(sweep.values(axis)))
    if not numeric:
        return None
    axis = numeric[0]
    others = [other for other in sweep.axes if other != axis]
    groups: dict[tuple[str, ...], list[Answer]] = {}
    for cell in sweep.done:
        if is_number(cell.axes.get(axis)) and _value(cell, name) is not None:
            groups.setdefault(tuple(word(cell.axes.get(other, ABSENT)) for other in others), []).append(cell)
    if not groups:
        return None
    keys = list(groups)
    chosen = [keys[at] for at in style.every(len(keys), LINES)]
    short_of = short_names(sweep.axes)
    free = [at for at, other in enumerate(others) if len(sweep.values(other)) > 1]
    found = []
    for key in chosen:
        mine = sorted(groups[key], key=lambda cell: float(cell.axes[axis] or 0.0))
        values = [cell.metrics[name] for cell in mine]
        found.append(
            Line(
                name=", ".join(f"{short_of[others[at]]}={key[at]}" for at in free if key[at]),
                x=np.array([float(cell.axes[axis] or 0.0) for cell in mine]),
                y=np.array([value.value for value in values], dtype=float),
                low=np.array([math.nan if value.low is None else value.low for value in values]),
                high=np.array([math.nan if value.high is None else value.high for value in values]),
            )
        )
    metric = Metric(name=name, unit=next(iter(groups.values()))[0].metrics[name].unit)
    left_out = f" {len(chosen)} of {len(keys)} lines." if len(chosen) < len(keys) else ""
    ends = "; ".join(f"{line.name or metric.label}: {metric.text(float(line.y[0]))} to {metric.text(float(line.y[-1]))}" for line in found)
    return Drawing(
        name=f"curves-{name}",
        title=f"{capital(metric.label)} over {short_of[axis]}",
        caption=f"{axis} goes from left to right; bands are intervals of 95 % over steps.{left_out}",
        alt=f"Lines of {metric.label} over {axis}, from the first value to the last: {ends}.",
        svg=lines(found, f"curves-{name}", across=short_of[axis], upward=metric),
        legend=legend(found),
    )


def maps(sweep: Sweep, name: str) -> Drawing | None:
    """Draw a metric over the first two axes with several values, the others at those values that most cells have."""
    free = [axis for axis in sweep.axes if 1 < len(sweep.values(axis)) <= WIDEST]
    if len(free) < 2:
        return None
    across, upward = free[0], free[1]
    others = [axis for axis in sweep.axes if axis not in (across, upward)]
    groups: dict[tuple[str, ...], list[Answer]] = {}
    for cell in sweep.done:
        if across in cell.axes and upward in cell.axes and _value(cell, name) is not None:
            groups.setdefault(tuple(word(cell.axes.get(axis, ABSENT)) for axis in others), []).append(cell)
    lines_tell = bool(sweep.numeric()) and min(len(sweep.values(across)), len(sweep.values(upward))) <= FEW and len(free) == 2
    if not groups or lines_tell:
        return None
    key = max(groups, key=lambda place: len(groups[place]))  # of equal ones, the first
    columns, rows = ([word(value) for value in sweep.values(axis)] for axis in (across, upward))
    grid = np.full((len(rows), len(columns)), np.nan)
    for cell in groups[key]:
        grid[rows.index(word(cell.axes[upward])), columns.index(word(cell.axes[across]))] = _value(cell, name)
    metric = Metric(name=name, unit=groups[key][0].metrics[name].unit)
    short_of = short_names(sweep.axes)
    fixed = ", ".join(f"{short_of[axis]}={value}" for axis, value in zip(others, key, strict=True) if value)
    low, high = float(np.nanmin(grid)), float(np.nanmax(grid))
    return Drawing(
        name=f"map-{name}",
        title=f"{capital(metric.label)} by {short_of[across]} and {short_of[upward]}",
        caption=(f"At {fixed}. " if fixed else "") + ("Empty cells were not simulated." if np.isnan(grid).any() else "Bright is more."),
        alt=f"Heat map of {metric.label} by {across} and {upward}, from {metric.text(low)} to {metric.text(high)}.",
        svg=heat(grid, f"map-{name}", of=metric, row=short_of[upward], rows=rows, column=short_of[across], columns=columns),
        scale=(metric.text(low), metric.text(high)),
    )


def cells(sweep: Sweep) -> Sheet:
    """Return the table of cells: where each stands, and the metrics that differ."""
    best = {cell.name for cell in sweep.front()}
    short_of = short_names(sweep.axes)
    shown = [
        name
        for name in dict.fromkeys([SHOWN[0], sweep.pareto[0], *SHOWN[1:], *sweep.shown])
        if _known(sweep, name) and (name == SHOWN[0] or _differs(sweep, name))
    ]
    numeric = {axis: all(is_number(value) for value in sweep.values(axis)) for axis in sweep.axes}
    meaning = definitions(next((cell.metrics for cell in sweep.done), {}))
    columns = [(short_of[axis], axis, numeric[axis]) for axis in sweep.axes]
    columns += [(label(name), meaning.get(name, ""), True) for name in shown] + [
        ("note", "front: beaten by none in step time and drop rate at once", False)
    ]
    rows = []
    for cell in sweep.answers[:MOST]:
        places = [(word(cell.axes.get(axis, ABSENT)), _key(cell, axis) if numeric[axis] else "") for axis in sweep.axes]
        values = [number(_value(cell, name), name, _unit(sweep, name)) for name in shown]
        rows.append((*places, *values, text("failed" if not cell.done else "front" if cell.name in best else "")))
    cut = f" {MOST} of {len(sweep.answers)} cells; all are in cells.csv." if len(sweep.answers) > MOST else ""
    same = [label(name) for name in SHOWN if name not in shown and _known(sweep, name)]
    note = (f"The same in every cell: {', '.join(same)}." if same else "") + cut
    return Sheet(name="table", title="Every cell", note=note.strip(), columns=tuple(columns), rows=tuple(rows))


def _every_metric(sweep: Sweep) -> Sheet:
    """Return a table with one row per cell and metric, with its interval; as many as a page bears."""
    meaning = definitions(sweep.done[0].metrics)
    rows = []
    for cell in sweep.done[: max(1, 16 * LONGEST // max(len(meaning), 1))]:
        for name, value in cell.metrics.items():
            if value.value is not None:
                of = (value.value, name, value.unit)
                rows.append((text(cell.name), text(label(name)), number(*of), text(interval(value)), text(value.basis)))
    complete = len(rows) and rows[-1][0][0] == sweep.done[-1].name
    columns = (
        ("cell", "", False),
        ("metric", "", False),
        ("value", "", True),
        ("interval", "95 % over steps", False),
        ("basis", "", False),
    )
    note = "" if complete else "The first cells; all are in cells.csv."
    return Sheet(name="metrics", title="Every metric of every cell", note=note, columns=columns, rows=tuple(rows))


def _drawn(sweep: Sweep) -> list[str]:
    """Return what was asked for, the time that the front weighs, and more, where it differs between cells; that time in any case."""
    first = sweep.pareto[0]
    return [
        name for name in dict.fromkeys([*sweep.shown, first, *DRAWN]) if _known(sweep, name) and (name == first or _differs(sweep, name))
    ]


def _known(sweep: Sweep, name: str) -> bool:
    return any(_value(cell, name) is not None for cell in sweep.done)


def _differs(sweep: Sweep, name: str) -> bool:
    return len({_value(cell, name) for cell in sweep.done}) > 1


def _unit(sweep: Sweep, name: str) -> str:
    return next((cell.metrics[name].unit for cell in sweep.done if name in cell.metrics), "")


def _value(cell: Answer, name: str) -> float | None:
    value = cell.metrics.get(name)
    return None if value is None else value.value


def _shown(cell: Answer, name: str) -> str:
    return number(_value(cell, name), name, cell.metrics[name].unit)[0] or show(None, "")


def _key(cell: Answer, axis: str) -> str:
    return repr(cell.axes[axis]) if axis in cell.axes else ""


def _listed(words: Sequence[str]) -> str:
    return ", ".join(words) if len(words) <= 6 else f"{', '.join(words[:5])} and {len(words) - 5} more"
