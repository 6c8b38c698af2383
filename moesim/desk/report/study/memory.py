"""The page of what GPUs need: memory and buffers as distributions over steps, and the chance to run out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from moesim.desk.memory_answer import headline, limits
from moesim.desk.report import style
from moesim.desk.report.page import LONGEST, Sheet, Tile
from moesim.desk.report.study.charts import Bar, Line, Metric, bars, legend, lines
from moesim.desk.report.study.page import Page, Part, drawn, text, written
from moesim.desk.report.style import Drawing
from moesim.desk.words import show

PIECES = {"weights": "#0072b2", "half of the steps": "#e69f00", "99 %": "#d55e00", "the largest": "#882255"}
"""Colours of weights, and of what is needed on top in half of the steps, in 99 %, and at most (Okabe and Ito)."""
PARTS, QUANTILES = ("buffer", "activations", "total"), ("p50", "p99", "max")
BARS = 24


def page(content: Mapping[str, Any]) -> str:
    """Return the page as HTML.

    Parameters
    ----------
    content : mapping
        What ``moesim memory --format json`` prints.
    """
    most, buffer, mean = headline(content), content["buffer_rows"], content["mean_rows"]
    risk = content["out_of_memory"]
    tiles = [
        Tile(label="half of the steps", value=most["p50"], note="the fullest GPU"),
        Tile(label="99 % of the steps", value=most["p99"], note=f"at most {most['max']}"),
        Tile(label="fullest receive buffer", value=f"{buffer['max']:,.0f} rows",
             note=show(content["buffer"]["max"], "B") + (f", {buffer['max'] / mean:.2f} × the mean" if mean else "")),
    ]  # fmt: skip
    if risk is not None:
        between = f"between {_share(risk['low'])} and {_share(risk['high'])} at 95 %"
        tiles.append(Tile(label=f"more than {most['limit']}", value=_share(risk["value"]), note=between))
    with style.paper():
        pictures = drawn([levels(content), gpus(content)])
    own = content["independent"]
    return written(
        Page(
            study="memory",
            how="sized by simulation",
            name=content["name"],
            subtitle=(
                f"{content['steps']} steps",
                "all with tokens of their own" if own == content["steps"] else f"{own} with tokens of their own",
            ),
            answer=answer(content),
            tiles=tuple(tiles),
            parts=(
                Part(
                    name="gpus",
                    title="GPU by GPU",
                    lines=tuple(f"{line}." for line in limits(content)),
                    drawings=pictures,
                    sheets=(table(content),),
                ),
            ),
            rests_on=(
                "Rows are what a GPU receives: in training the mean of all layers, since it holds them all; otherwise the fullest layer.",
                "The chance is a share of steps with the exact binomial interval; steps that repeat tokens count once.",
                (
                    "Routing, capacity rule, placement and dispatch were played; kernels and network were not. "
                    "A placement that moves counts as in place at once."
                ),
            ),
            provenance=(("seed", str(content["seed"])), ("steps", str(content["steps"]))),
        )
    )


def answer(content: Mapping[str, Any]) -> str:
    """Return what is needed and how likely it is too much, in a sentence or two."""
    most, risk = headline(content), content["out_of_memory"]
    said = f"The GPU that needs most in a step needs {most['p50']} in half of the steps and {most['max']} at most."
    if risk is None:
        return said
    return f"{said} More than {most['limit']} on some GPU: {_share(risk['value'])} of the steps."


def levels(content: Mapping[str, Any]) -> Drawing | None:
    """Draw which share of the steps needs at most how much memory on the fullest GPU, and the limit."""
    known, limit = content["any_gpu_levels"], content["limit"]
    if len(set(known)) < 2:
        return None
    metric = Metric(name="memory", unit="B", title="memory of the fullest GPU")
    share = np.linspace(0.0, 100.0, len(known))
    nothing = np.full(len(known), np.nan)
    found = [Line(name="needed", x=share, y=np.asarray(known, dtype=np.float64), low=nothing, high=nothing)]
    near = limit is not None and known[0] - (known[-1] - known[0]) <= limit <= known[-1] + 2.0 * (known[-1] - known[0])
    if near:
        found.append(Line(name="limit", x=share[[0, -1]], y=np.full(2, float(limit)), low=nothing[:2], high=nothing[:2]))
    said = ", ".join(f"{percent:.0f} %: {metric.text(known[round(percent / 5)])}" for percent in (5.0, 50.0, 95.0))
    return Drawing(
        name="levels",
        title="How much how often",
        caption="So many per cent of the steps need at most this much on the GPU that needs most. Where it crosses a limit, the rest "
        "of the steps run out of memory." + ("" if near or limit is None else f" The limit, {show(limit, 'B')}, is off the scale."),
        alt=f"Curve of memory that a share of the steps needs at most: {said}.",
        svg=lines(found, "levels", across="steps, %", upward=metric),
        legend=legend(found) if near else (),
    )


def gpus(content: Mapping[str, Any]) -> Drawing | None:
    """Draw what each GPU needs: weights, and the rest in half of the steps, in 99 % and at most."""
    order = sorted(content["gpus"], key=lambda gpu: (-gpu["total"]["max"], gpu["gpu"]))[:BARS]
    if not order:
        return None
    found = []
    for gpu in order:
        total, colours = gpu["total"], list(PIECES.values())
        steps = [gpu["weights"], total["p50"], total["p99"], total["max"]]
        pieces = [
            (steps[0], colours[0]),
            *((after - before, colour) for before, after, colour in zip(steps, steps[1:], colours[1:], strict=False)),
        ]
        ends = ", ".join(f"{name} {show(total[name], 'B')}" for name in ("p50", "p99", "max"))
        said = f"GPU {gpu['gpu']}: weights {show(steps[0], 'B')}, {ends}"
        found.append(Bar(name=f"GPU {gpu['gpu']}", pieces=tuple(pieces), text=said))
    limit = content["limit"]
    cut = f" The {BARS} that need most." if len(content["gpus"]) > BARS else ""
    line = "" if limit is None else f" A line at {show(limit, 'B')}, where the scale reaches it, is the limit."
    return Drawing(
        name="gpus",
        title="Memory of each GPU",
        caption=f"Weights, and what steps need on top of them.{line}{cut}",
        alt="Bars: " + "; ".join(bar.text for bar in found) + ".",
        svg=bars(found, "gpus", unit="B", title="memory", limit=None if limit is None else (limit, "limit")),
        legend=tuple((name, colour, "") for name, colour in PIECES.items()),
    )


def table(content: Mapping[str, Any]) -> Sheet:
    """Return the table of GPUs, the one that needs most first."""
    columns = [("GPU", "", True), ("weights", "", True)]
    columns += [(f"rows {name}", "received", True) for name in ("p50", "p99", "max")]
    columns += [(f"{name} {quantile}", "", True) for name in PARTS for quantile in QUANTILES]
    if content["limit"] is not None:
        columns.append(("runs out", "share of the steps", True))
    rows = []
    for gpu in sorted(content["gpus"], key=lambda gpu: (-gpu["total"]["max"], gpu["gpu"]))[: 4 * LONGEST]:
        row = [text(str(gpu["gpu"])), _bytes(gpu["weights"])]
        row += [(f"{gpu['rows'][name]:,.0f}", repr(gpu["rows"][name])) for name in ("p50", "p99", "max")]
        row += [_bytes(gpu[name][quantile]) for name in PARTS for quantile in QUANTILES]
        if content["limit"] is not None:
            row.append((_share(gpu["out_of_memory"]["value"]), repr(gpu["out_of_memory"]["value"])))
        rows.append(tuple(row))
    more = len(content["gpus"]) - len(rows)
    note = "The one that needs most first; headings sort." + (f" {more} that need less are in the JSON." if more else "")
    return Sheet(name="table", title="Every GPU", note=note, columns=tuple(columns), rows=tuple(rows))


def _bytes(value: float) -> tuple[str, str]:
    return show(value, "B"), repr(value)


def _share(value: float) -> str:
    return show(value, "", share=True)
