"""A few layers of one step, GPU by GPU: who computes, who sends, who waits for whom."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes

from moesim.desk.report import style
from moesim.desk.report.figures.kinds import LABELS, kinds, strips
from moesim.desk.report.style import Drawing
from moesim.desk.words import show
from moesim.facts.program import COLLECTIVES, GRADIENTS, OPTIMISER
from moesim.facts.record import Result, Table

MOST_GPUS = 16
MOST_SPANS = 1400


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """The part of the step that is drawn."""

    start: float
    end: float
    layers: tuple[int, ...]
    direction: str


def window(table: Table) -> Window:
    """Choose the MoE layer and direction in which GPUs waited longest together, and the layer that runs after it.

    Ties go to the layer that ran first.
    """
    collective = np.isin(table["phase"], COLLECTIVES)
    pool = table.where(collective) if collective.any() else table
    keys: dict[tuple[int, str], float] = {}
    first: dict[tuple[int, str], float] = {}
    for layer, direction, waiting, start in zip(
        *(pool[name].tolist() for name in ("layer", "direction", "waiting_s", "start_s")), strict=True
    ):
        key = (layer, direction)
        keys[key] = keys.get(key, 0.0) + waiting
        first[key] = min(first.get(key, start), start)
    worst = max(keys, key=lambda key: (keys[key], -first[key]))
    order = sorted((key for key in keys if key[1] == worst[1]), key=lambda key: first[key])
    at = order.index(worst)
    chosen = order[at : at + 2] if at + 1 < len(order) else order[max(at - 1, 0) : at + 1]
    layers = tuple(key[0] for key in chosen)
    mask = np.isin(table["layer"], layers) & (table["direction"] == worst[1]) & (table["lane"] != GRADIENTS)
    mask &= table["phase"] != OPTIMISER
    return Window(start=float(table["start_s"][mask].min()), end=float(table["end_s"][mask].max()), layers=layers, direction=worst[1])


def pick_gpus(table: Table, last: Sequence[int] = ()) -> list[int]:
    """Return at most ``MOST_GPUS`` GPUs.

    Half are the ``last`` to arrive at the collectives drawn, then those that others waited for longest; the rest are evenly spread.
    """
    gpus = np.unique(table["gpu"])
    if len(gpus) <= MOST_GPUS:
        return [int(gpu) for gpu in gpus]
    blame = np.zeros(int(gpus.max()) + 1)
    held = table["waited_for"] >= 0
    np.add.at(blame, table["waited_for"][held], table["waiting_s"][held])
    blame[np.asarray(last, dtype=np.int64)] = np.inf
    late = np.argsort(-blame[gpus], kind="stable")[: MOST_GPUS // 2]
    rest = np.setdiff1d(np.arange(len(gpus)), late)
    spread = rest[np.linspace(0, len(rest) - 1, MOST_GPUS - len(late)).astype(int)]
    return [int(gpu) for gpu in np.sort(gpus[np.concatenate([late, spread])])]


def timeline(result: Result) -> Drawing | None:
    """Draw the chosen window: one row per GPU, computing above, communicating below, waiting hatched."""
    table = result.tables["timeline"]
    if not len(table):
        return None
    seen = window(table)
    calls = result.tables["collectives"]
    calls = calls.where(np.isin(calls["phase"], COLLECTIVES) & (calls["step"] == table["step"][0]))
    calls = calls.where((calls["last_arrival_s"] > seen.start) & (calls["last_arrival_s"] < seen.end))
    gpus = pick_gpus(table, calls["last_gpu"].tolist())
    span = table.where(np.isin(table["gpu"], gpus) & (table["end_s"] > seen.start) & (table["start_s"] < seen.end))
    cut = len(span) > MOST_SPANS
    if cut:
        end = float(np.sort(span["start_s"])[MOST_SPANS])
        seen = Window(start=seen.start, end=min(seen.end, end), layers=seen.layers, direction=seen.direction)
        span = span.where(span["start_s"] < seen.end)
    height = 26.0 * len(gpus) + 84
    figure = style.canvas(style.WHOLE, height)
    area = style.axes(figure, 62, 48, 12, 24)
    _bars(area, span, gpus, seen)
    names = _late(area, calls, gpus, seen)
    area.set_xlim(0, seen.end - seen.start)
    area.set_ylim(len(gpus) - 0.5, -0.5)
    places, labels, unit = style.scale(seen.end - seen.start, "s", 8)
    style.across(area, places, labels, title=f"{unit} since the window began", grid=True)
    style.upward(area, range(len(gpus)), [str(gpu) for gpu in gpus], title="GPU", gap=34)
    held = np.isin(span["phase"], COLLECTIVES)
    drawn = set(kinds(span).tolist())
    waited = float(span["waiting_s"][held].max()) if held.any() else 0.0
    which = " and ".join(str(layer) for layer in seen.layers)
    step = int(table["step"][0])
    longest = f"the longest wait is {show(waited, 's')}" if waited > 0 else "nobody waits"
    under = [what for kind, what in ((GRADIENTS, "exchanges of gradients"), ("hand_over", "what goes to the next stage")) if kind in drawn]
    below = f", and below it {' and '.join(under)}" if under else ""
    late = f"; the last to arrive are {', '.join(names)}" if names else ""
    some = (
        ""
        if len(gpus) == len(np.unique(table["gpu"]))
        else f" {len(gpus)} GPUs are shown: those that others waited for most, and an even choice."
    )
    return Drawing(
        name="timeline",
        title="Inside one step",
        caption=f"Step {step}, {seen.direction}, model layer{'s' if len(seen.layers) > 1 else ''} {which}: where GPUs wait longest. Upper "
        f"half of a row: computing; lower half: in a collective, its waiting drawn first{below}. A dashed line marks the arrival of the "
        f"last GPU; {longest}." + some,
        alt=f"Timeline of {len(gpus)} GPUs over {show(seen.end - seen.start, 's')} of step {step}; {longest}{late}.",
        svg=style.svg(figure, "timeline"),
        wide=True,
        legend=style.legend((name for name in style.COLOURS if name in drawn or (name == "waiting" and waited > 0)), **LABELS),
    )


def _bars(area: Axes, span: Table, gpus: list[int], seen: Window) -> None:
    row = np.searchsorted(np.asarray(gpus), span["gpu"])
    start, end = (np.clip(span[name], seen.start, seen.end) - seen.start for name in ("start_s", "end_s"))
    moving = np.clip(span["start_s"] + np.minimum(span["waiting_s"], span["end_s"] - span["start_s"]), seen.start, seen.end) - seen.start
    kind, strip = kinds(span), strips(span)
    computes, beside = strip == 0, strip == 2
    # What goes on beside both takes the lowest part of a row, so that it hides no exchange of tokens.
    split = row + (0.27 if beside.any() else 0.42)
    low = np.where(computes, row - 0.42, np.where(beside, split, row + 0.0))
    high = np.where(computes, row - 0.0, np.where(beside, row + 0.42, split))
    for name, colour in style.COLOURS.items():
        if name == "waiting":
            mask, left, right = np.isin(span["phase"], COLLECTIVES) & (moving > start), start, moving
        elif name in COLLECTIVES:
            mask, left, right = (kind == name) & (end > moving), moving, end
        else:
            mask, left, right = (kind == name) & (end > start), start, end
        if not mask.any():
            continue
        style.boxes(area, left[mask], right[mask], low[mask], high[mask], colour=colour, hatch="////" if name == "waiting" else None)


def _late(area: Axes, calls: Table, gpus: list[int], seen: Window) -> list[str]:
    """Mark the last arrival of each collective that keeps somebody waiting for long enough to see; return the names of these GPUs."""
    width = seen.end - seen.start
    names: list[str] = []
    label_end = -1.0
    for first, last, gpu in sorted(zip(*(calls[name].tolist() for name in ("first_arrival_s", "last_arrival_s", "last_gpu")), strict=True)):
        if last - first < 0.01 * width:
            continue
        at = last - seen.start
        area.axvline(at, color=style.INK, linewidth=1.0, linestyle=(0, (3, 3)))
        if gpu in gpus:
            area.plot([at], [gpus.index(gpu)], marker="o", markersize=6, color=style.INK, markeredgecolor=style.PAPER, markeredgewidth=1)
        names.append(f"GPU {gpu}")
        if at > label_end:
            area.annotate(
                f"GPU {gpu} last", (at, -0.5), xytext=(0, 6), textcoords="offset points", ha="center", va="bottom", fontsize=11,
                annotation_clip=False,
            )  # fmt: skip
            label_end = at + 0.075 * width
    return list(dict.fromkeys(names))
