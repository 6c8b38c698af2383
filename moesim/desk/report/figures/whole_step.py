"""A whole step of a pipeline, or of a training step with its gradients and its update, on some GPUs of every stage."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from moesim.desk.report import style
from moesim.desk.report.figures.kinds import LABELS, kinds, strips
from moesim.desk.report.style import Drawing
from moesim.desk.words import show
from moesim.facts.arrays import Floats, Ints
from moesim.facts.program import GROUP_CALLS, OPTIMISER, RECEIVE, SEND
from moesim.facts.record import Result, Table

MOST_ROWS = 8
BINS = 500
"""Of the width: what is narrower than one of them goes to the kind that has most of it, so that the page stays small."""


def whole_step(result: Result) -> Drawing | None:
    """Draw the first measured step from end to end; None where :func:`moesim.desk.report.figures.timeline.timeline` says it all."""
    table = result.tables["timeline"]
    if not np.isin(table["phase"], (*GROUP_CALLS, OPTIMISER, SEND, RECEIVE)).any():
        return None
    gpus = rows_of(table, result.scenario.parallel.pp)
    table = table.where(np.isin(table["gpu"], gpus))
    begin, end = float(table["start_s"].min()), float(table["end_s"].max())
    if not end > begin:
        return None
    figure = style.canvas(style.WHOLE, 34.0 * len(gpus) + 66)
    area = style.axes(figure, 62, 48, 12, 6)
    drawn: set[str] = set()
    low_high = ((-0.42, 0.06), (0.06, 0.26), (0.26, 0.42))
    kind, strip = kinds(table), strips(table)
    for number, (low, high) in enumerate(low_high):
        boxes: dict[str, list[tuple[int, float, float]]] = {}
        for row, gpu in enumerate(gpus):
            mine = table.where((table["gpu"] == gpu) & (strip == number))
            names = kind[(table["gpu"] == gpu) & (strip == number)]
            for name, left, right in runs(mine["start_s"] - begin, mine["end_s"] - begin, names, end - begin):
                boxes.setdefault(name, []).append((row, left, right))
        for name in (name for name in style.COLOURS if name in boxes):
            row_of, left_of, right_of = (np.array(values) for values in zip(*boxes[name], strict=True))
            style.boxes(area, left_of, right_of, row_of + low, row_of + high, colour=style.COLOURS[name])
        drawn |= set(boxes)
    area.set_xlim(0, end - begin)
    area.set_ylim(len(gpus) - 0.5, -0.5)
    places, labels, unit = style.scale(end - begin, "s", 8)
    style.across(area, places, labels, title=f"{unit} since the step began", grid=True)
    style.upward(area, range(len(gpus)), [str(gpu) for gpu in gpus], title="GPU", gap=34)
    stages = result.scenario.parallel.pp
    which = f"One GPU of each of {stages} stages" if 1 < stages <= MOST_ROWS else f"{len(gpus)} GPUs"
    bubble = result.metrics.get("pipeline_bubble")
    share = "" if bubble is None or bubble.value is None else f" Bubbles are {100 * bubble.value:.3g} % of the pipeline's time."
    return Drawing(
        name="whole",
        title="The whole step",
        caption=f"{which}, step {int(table['step'][0])}. Upper half of a row: computing; below it exchanges of tokens and tensor-parallel "
        f"groups; lowest, gradients and what goes to the next stage. Each of {BINS} slices has the colour of what takes most of it.{share}",
        alt=f"Timeline of {len(gpus)} GPUs over a whole step of {show(end - begin, 's')}.{share}",
        svg=style.svg(figure, "whole"),
        wide=True,
        legend=style.legend((name for name in style.COLOURS if name in drawn), **LABELS),
    )


def rows_of(table: Table, stages: int) -> list[int]:
    """Return at most ``MOST_ROWS`` GPUs: the first of each stage, evenly chosen; without a pipeline, evenly from all."""
    gpus = np.unique(table["gpu"])
    firsts = gpus[:: max(len(gpus) // stages, 1)][:stages] if stages > 1 else gpus
    return [int(gpu) for gpu in firsts[np.unique(np.linspace(0, len(firsts) - 1, min(MOST_ROWS, len(firsts))).astype(int))]]


def runs(start: Floats, end: Floats, names: NDArray[np.str_], length: float) -> list[tuple[str, float, float]]:
    """Return boxes (name, left, right) of one strip: neighbouring slices of the same kind as one.

    Parameters
    ----------
    start, end : float[N]
        Since the step began, in s.
    names : str[N]
        Kinds.
    length : float
        Of the step.
    """
    if not len(start):
        return []
    width = length / BINS
    edges = np.linspace(0.0, length, BINS + 1)
    known = sorted(set(names.tolist()))
    share = np.zeros((len(known), BINS))
    for number, name in enumerate(known):
        mine = names == name
        share[number] = np.diff(_covered(start[mine], end[mine], edges))
    best: Ints = share.argmax(axis=0)
    # A slice of which less than half is taken stays empty, so that gaps are seen.
    best = np.where(share.sum(axis=0) >= 0.5 * width, best, -1)
    bounds = np.flatnonzero(np.r_[True, np.diff(best) != 0, True])
    return [
        (known[int(best[first])], float(edges[first]), float(edges[last]))
        for first, last in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True)
        if best[first] >= 0
    ]


def _covered(start: Floats, end: Floats, at: Floats) -> Floats:
    """Return float[at], the time before each edge that intervals, which do not overlap, have taken."""
    order = np.argsort(start, kind="stable")
    start, end = start[order], end[order]
    before = np.concatenate(([0.0], np.cumsum(end - start)))
    number = np.searchsorted(start, at, side="right")
    inside = np.clip(at - np.concatenate(([0.0], start))[number], 0.0, np.concatenate(([0.0], end - start))[number])
    return np.asarray(before[np.maximum(number - 1, 0)] * (number > 0) + inside * (number > 0))
