"""The page of a plan: what was chosen and why, what keeps cheaper ones out, and every candidate."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from moesim.desk.plan_words import amount, money
from moesim.desk.report import style
from moesim.desk.report.page import Sheet, Tile
from moesim.desk.report.study.charts import COUNT, Bar, Metric, Point, bars, scatter
from moesim.desk.report.study.page import Page, Part, drawn, is_number, number, text, value_in, written
from moesim.desk.report.style import Drawing
from moesim.desk.words import capital, label, show
from moesim.facts.target import AT_MOST, OF_PLAN, parse_target
from moesim.study.sweep import short_names, word

MARKERS = {"meets": "o", "undecided": "D", "misses": "X"}
"""A shape for each outcome of a simulated candidate."""
UNITS = {"step_time": "s", "tokens_per_second": "tokens/s", "drop_rate": "", "peak_memory": "B", "cost_per_million_tokens": ""}
NAMED = 8
"""Points with names."""
BARS = 12
"""Candidates in the chart of what is missed."""
MOST = 400
"""Candidates of the table on the page."""


def page(content: Mapping[str, Any]) -> str:
    """Return the page of a plan as HTML.

    Parameters
    ----------
    content : mapping
        Of its ``plan.json``.
    """
    with style.paper():
        pictures = drawn([front(content), targets(content), binding(content)])
    lines = tuple(line.replace(" (marked * below)", "") for line in content["explanations"])
    parts = [Part(name="why", title="Why", lines=lines, drawings=pictures)]
    parts.append(Part(name="candidates", title="Candidates", sheets=(candidates(content),), notes=(_order(content),)))
    found = len(content["candidates"])
    prices = [f"{name} {_money(content, price['per_gpu_hour'])} an hour{_source(price)}" for name, price in content["prices"].items()]
    return written(
        Page(
            study="plan",
            how="planned by simulation",
            name=content["name"],
            subtitle=(f"{found} candidates", *(_target(content, one) for one in content["targets"]), f"cheapest by {_objective(content)}"),
            answer=f"{content['answer'] if content['chosen'] else capital(content['answer'])}.",
            warnings=tuple(content["warnings"]),
            tiles=tuple(_tiles(content)),
            parts=tuple(parts),
            rests_on=(
                (f"A target is met if its one-sided bound is on the right side with {100 * content['confidence']:g} % confidence; "
                "each target has that confidence, not all of them together."),
                "A candidate that a bound rules out was not simulated: no run of it can beat the bound.",
                "Candidates that cost more than the chosen plan were left out, unless all were asked for.",
            ),
            provenance=(("moesim", content["version"]), ("replicates", str(content["replicates"])),
                        ("prices", " · ".join(prices) if prices else "none: plans are ranked by GPUs")),
        )
    )  # fmt: skip


def _tiles(content: Mapping[str, Any]) -> Iterable[Tile]:
    chosen = _named(content, content["chosen"]) or _named(content, content["nearest"])
    if chosen is None:
        return
    yield Tile(label="cost" if content["chosen"] else "cost of the nearest miss", value=_cost(content, chosen),
               note="" if content["objective"] == "gpus" else f"{chosen['gpus']} GPUs")  # fmt: skip
    for one in chosen["targets"]:
        target = parse_target(one["target"])
        side = "at most" if target.sense == AT_MOST else "at least"
        note = f"{side} {_amount(content, target.metric, one['limit'])}: {one['outcome']}"
        if one["value"] is not None:
            yield Tile(label=label(target.metric), value=_amount(content, target.metric, one["value"]), note=note)


def front(content: Mapping[str, Any]) -> Drawing | None:
    """Draw what the simulated candidates cost against how fast they are; their drops where all cost the same."""
    played = [one for one in content["candidates"] if one["status"] in MARKERS and value_in(one["metrics"], "step_time") is not None]
    played = [one for one in played if one["objective"] is not None]
    if len(played) < 2:
        return None
    costs = {one["objective"] for one in played}
    by_drops = len(costs) == 1 and len({value_in(one["metrics"], "drop_rate") for one in played}) > 1
    across = Metric(name="drop_rate", unit="") if by_drops else Metric(name=content["objective"], unit="", title=_objective(content))
    upward = Metric(name="step_time", unit="s")
    points = []
    names: dict[str, tuple[float, float]] = {}
    for one in sorted(played, key=lambda one: one["name"] == content["chosen"]):  # the chosen one covers those that are like it
        time = one["metrics"]["step_time"]
        x = (value_in(one["metrics"], "drop_rate") or 0.0) if by_drops else one["objective"]
        drops = show(value_in(one["metrics"], "drop_rate"), "", share=True)
        said = f"{one['name']}: {one['status']}; {_cost(content, one)}, {upward.text(time['value'])}, {drops} dropped"
        best = one["name"] == content["chosen"]
        points.append(
            Point(x=x, y=time["value"], low=time["low"], high=time["high"], text=said, marker=MARKERS[one["status"]], filled=best or
                  one["status"] == "misses", colour=style.ACCENT if one["status"] == "meets" else style.ALERT
                  if one["status"] == "misses" else style.MUTED)
        )  # fmt: skip
        if best or (one["name"] in content["pareto"] and len(names) < NAMED):
            names[one["name"]] = (x, time["value"])
    limits = []
    for one in content["targets"]:
        target = parse_target(one)
        if target.metric == "step_time":
            limits.append((target.limit, f"{'at most' if target.sense == AT_MOST else 'at least'} {show(target.limit, 's')}"))
    spots: dict[tuple[str, str], tuple[str, tuple[float, float]]] = {}
    for name, place in sorted(names.items(), key=lambda item: item[0] != content["chosen"]):
        spots.setdefault((f"{place[0]:.3g}", f"{place[1]:.3g}"), (name, place))
    numbered = {str(count): place for count, (_, place) in enumerate(spots.values(), 1)}
    told = "; ".join(f"{count}: {name}" for count, (name, _) in enumerate(spots.values(), 1))
    return Drawing(
        name="front",
        title=f"Step time against {across.label}",
        caption="● meets every target (the chosen one filled), ✕ misses one, ◇ would meet, but not with enough confidence. The dashed line "
        f"is a target. Numbered points are beaten by none in cost, step time and drops at once, one of those that are alike: {told}.",
        alt=f"Scatter plot of {len(played)} simulated candidates. " + "; ".join(point.text for point in points[:20]) + ".",
        svg=scatter(points, "front", across=across, upward=upward, names=numbered, limits=limits),
        wide=True,
    )


def targets(content: Mapping[str, Any]) -> Drawing | None:
    """Draw how much room the chosen candidate, or the nearest miss, has in each target."""
    chosen = _named(content, content["chosen"]) or _named(content, content["nearest"])
    known = [] if chosen is None else [one for one in chosen["targets"] if one["miss"] is not None]
    if not known:
        return None
    found = []
    for one in sorted(known, key=lambda one: -one["miss"]):
        target = parse_target(one["target"])
        room = -one["miss"]
        said = f"{one['target']}: {_amount(content, target.metric, one['value'])}, {one['outcome']}"
        colour = style.ACCENT if one["outcome"] == "met" else style.ALERT
        start, length = (0.0, room) if room >= 0 else (room, -room)
        found.append(Bar(name=label(target.metric), pieces=((length, colour),), start=start, text=said))
    words = "the chosen plan has" if content["chosen"] else "the nearest miss has"
    return Drawing(
        name="targets",
        title="Room to the targets",
        caption=f"How far {words} every target from its limit, as a share of the limit; below 0 it is missed.",
        alt="Bars: " + "; ".join(bar.text for bar in found) + ".",
        svg=bars(found, "targets", unit="", title="room, share of the limit"),
    )


def binding(content: Mapping[str, Any]) -> Drawing | None:
    """Draw how many candidates each target and each bound rules out."""
    found = [(_target(content, said), count, style.ALERT) for said, count in content["binding"].items()]
    found += [
        (f"by the {name}" if " " in name else f"target of {label(name)}", count, style.MUTED) for name, count in content["pruned"].items()
    ]
    if not found:
        return None
    counted = [Bar(name=name, pieces=((float(count), colour),), text=f"{name}: {count}") for name, count, colour in found]
    which = "cheaper candidates" if content["chosen"] else "candidates"
    return Drawing(
        name="binding",
        title="What binds",
        caption=f"How many {which} each target rules out, and how many candidates a bound took out before they were simulated.",
        alt="Bars: " + "; ".join(bar.text for bar in counted) + ".",
        svg=bars(counted, "binding", unit=COUNT, title="candidates"),
        legend=(("ruled out by a target", style.ALERT, ""), ("not simulated", "var(--muted)", "")),
    )


def candidates(content: Mapping[str, Any]) -> Sheet:
    """Return the table of candidates, the cheapest first."""
    every = content["candidates"]
    keys = list(dict.fromkeys(key for one in every for key in one["axes"]))
    short_of = short_names(keys)
    numeric = {key: all(is_number(one["axes"].get(key)) for one in every) for key in keys}
    metrics = [name for name in dict.fromkeys(name for one in every for name in one["metrics"]) if name in UNITS]
    columns = [(short_of[key], key, numeric[key]) for key in keys]
    columns += [("outcome", "", False), ("cost", f"by {_objective(content)}", True)]
    columns += [(label(name), "mean over steps and replicates", True) for name in metrics] + [("why", "", False)]
    rows = []
    for one in sorted(every, key=lambda one: (one["objective"] is None, one["objective"] or 0.0))[:MOST]:
        outcome = "chosen" if one["name"] == content["chosen"] else one["status"]
        places = [(word(one["axes"].get(key)), repr(one["axes"].get(key)) if numeric[key] else "") for key in keys]
        values = [_number(content, name, value_in(one["metrics"], name)) for name in metrics]
        cost = ("", "") if one["objective"] is None else (_cost(content, one), repr(one["objective"]))
        rows.append((*places, text(outcome), cost, *values, text(_why(content, one))))
    cut = f"{MOST} of {len(every)} candidates; all are in candidates.csv." if len(every) > MOST else ""
    return Sheet(name="table", title="Every candidate", note=cut, columns=tuple(columns), rows=tuple(rows))


def _target(content: Mapping[str, Any], said: str) -> str:
    """Write a target for people."""
    target = parse_target(said)
    side = "at most" if target.sense == AT_MOST else "at least"
    limit = f"{show(target.limit, '', share=True)} of GPU memory" if target.of_memory else _amount(content, target.metric, target.limit)
    return f"{label(target.metric)} {side} {limit}"


def _why(content: Mapping[str, Any], one: Mapping[str, Any]) -> str:
    if one["status"] == "misses":
        missed = [verdict for verdict in one["targets"] if verdict["outcome"] != "met"]
        return "misses " + ", ".join(label(parse_target(verdict["target"]).metric) for verdict in missed)
    if one["name"] in content["pareto"] and not one["reason"]:
        return "beaten by none in cost, time and drops"
    return str(one["reason"])


def _order(content: Mapping[str, Any]) -> str:
    return f"The cheapest first by {_objective(content)}; headings sort."


def _named(content: Mapping[str, Any], name: str | None) -> Mapping[str, Any] | None:
    return next((one for one in content["candidates"] if one["name"] == name), None)


def _objective(content: Mapping[str, Any]) -> str:
    return {"gpus": "GPUs", "cost_per_hour": f"cost per hour ({content['currency']})"}.get(
        content["objective"], f"cost per million tokens ({content['currency']})"
    )


def _cost(content: Mapping[str, Any], one: Mapping[str, Any]) -> str:
    if content["objective"] == "gpus":
        return f"{one['gpus']} GPUs"
    per = "/h" if content["objective"] == "cost_per_hour" else " per million tokens"
    return "" if one["objective"] is None else f"{_money(content, one['objective'])}{per}"


def _money(content: Mapping[str, Any], value: float) -> str:
    return money(value, str(content["currency"]))


def _source(price: Mapping[str, Any]) -> str:
    return f" ({price['source']})" if price["source"] else ""


def _amount(content: Mapping[str, Any], metric: str, value: float | None) -> str:
    unit = OF_PLAN.get(metric, UNITS.get(metric))
    return amount(value, metric, _unit_of(metric) if unit is None else unit, str(content["currency"]))


def _unit_of(metric: str) -> str:
    from moesim.measure.collect import metrics

    known = metrics()
    return str(known[metric].unit) if metric in known else ""


def _number(content: Mapping[str, Any], name: str, value: float | None) -> tuple[str, str]:
    if value is not None and name.startswith("cost"):
        return _money(content, value), repr(value)
    return number(value, name, UNITS[name])
