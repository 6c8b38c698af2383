"""The page of what GPUs need: memory and buffers as distributions over steps, and the chance to run out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from moesim.desk.report import style
from moesim.desk.report.page import LONGEST, Sheet, Tile
from moesim.desk.report.study.charts import Bar, bars
from moesim.desk.report.study.page import Page, Part, drawn, text, written
from moesim.desk.report.style import Drawing
from moesim.desk.words import show

PIECES = {"weights": "#0072b2", "half of the steps": "#e69f00", "99 %": "#d55e00", "the largest": "#882255"}
"""Colours of weights, and of what is needed on top in half of the steps, in 99 %, and at most (Okabe and Ito)."""
BARS = 24


def page(content: Mapping[str, Any]) -> str:
    """Return the page as HTML.

    Parameters
    ----------
    content : mapping
        What ``moesim memory --format json`` prints.
    """
    most, buffer, mean = content["any_gpu"], content["buffer_rows"], content["mean_rows"]
    risk, limit = content["out_of_memory"], content["limit"]
    tiles = [
        Tile(label="half of the steps", value=show(most["p50"], "B"), note="the fullest GPU"),
        Tile(label="99 % of the steps", value=show(most["p99"], "B"), note=f"at most {show(most['max'], 'B')}"),
        Tile(label="fullest receive buffer", value=f"{buffer['max']:,.0f} rows",
             note=f"{buffer['max'] / mean:.2f} × the mean" if mean else ""),
    ]  # fmt: skip
    if risk is not None:
        between = f"between {_share(risk['low'])} and {_share(risk['high'])} at 95 %"
        tiles.append(Tile(label=f"more than {show(limit, 'B')}", value=_share(risk["value"]), note=between))
    with style.paper():
        pictures = drawn([gpus(content)])
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
            parts=(Part(name="gpus", title="GPU by GPU", drawings=pictures, sheets=(table(content),)),),
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
    most, risk = content["any_gpu"], content["out_of_memory"]
    said = f"The GPU that needs most in a step needs {show(most['p50'], 'B')} in half of the steps and {show(most['max'], 'B')} at most."
    return said if risk is None else f"{said} More than {show(content['limit'], 'B')} on some GPU: {_share(risk['value'])} of the steps."


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
        svg=bars(found, "gpus", unit="B", title="memory", limit=None if limit is None else (limit, "limit"), wide=True),
        legend=tuple((name, colour, "") for name, colour in PIECES.items()),
        wide=True,
    )


def table(content: Mapping[str, Any]) -> Sheet:
    """Return the table of GPUs, the one that needs most first."""
    columns = [("GPU", "", True), ("weights", "", True)]
    columns += [(f"rows {name}", "received", True) for name in ("p50", "p99", "max")]
    columns += [(title, "", True) for title in ("buffer max", "activations max", "total p50", "total p99", "total max")]
    if content["limit"] is not None:
        columns.append(("runs out", "share of the steps", True))
    rows = []
    for gpu in sorted(content["gpus"], key=lambda gpu: (-gpu["total"]["max"], gpu["gpu"]))[: 4 * LONGEST]:
        row = [text(str(gpu["gpu"])), _bytes(gpu["weights"])]
        row += [(f"{gpu['rows'][name]:,.0f}", repr(gpu["rows"][name])) for name in ("p50", "p99", "max")]
        row += [
            _bytes(gpu["buffer"]["max"]),
            _bytes(gpu["activations"]["max"]),
            *(_bytes(gpu["total"][name]) for name in ("p50", "p99", "max")),
        ]
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
