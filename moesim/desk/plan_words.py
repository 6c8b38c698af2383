"""A plan in words: what was chosen and why, what binds, what the next cheaper one misses by."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from pathlib import Path

from moesim.desk.words import SHARES, label, show
from moesim.facts.plan import Plan
from moesim.facts.target import AT_MOST, OF_PLAN
from moesim.study.plan import Found, cost_of
from moesim.study.plan_verdicts import MISSED, OPEN, Judged, Mean, Verdict

MOST_ROWS = 40
"""Candidates in the table of the terminal; the file has all."""
STATUS = ("meets", "undecided", "misses", "pruned", "not tried", "invalid", "failed")


def money(value: float | None, currency: str) -> str:
    """Write an amount of money.

    Examples
    --------
    >>> money(1234.5, "USD"), money(0.01234, "EUR")
    ('1,234.50 USD', '0.0123 EUR')
    """
    if value is None or not math.isfinite(value):
        return "—"
    return f"{value:,.2f} {currency}" if value >= 1 else f"{value:.3g} {currency}"


def amount(value: float | None, metric: str, unit: str, currency: str) -> str:
    """Write a value of a metric, of GPUs or of money."""
    if metric.startswith("cost"):
        return money(value, currency)
    if metric == "gpus":
        return "—" if value is None else f"{value:g}"
    return show(value, unit, share=metric in SHARES)


def cost_text(one: Judged, found: Found, plan: Plan) -> str:
    """Write what a candidate costs by the objective."""
    cost = cost_of(one, found.objective)
    if found.objective == "gpus":
        return f"{one.candidate.gpus} GPUs"
    per = "/h" if found.objective == "cost_per_hour" else " per million tokens"
    return f"{money(cost, plan.currency)}{per}"


def headline(found: Found, plan: Plan) -> str:
    """Return the answer in one sentence."""
    if found.chosen is not None:
        sure = f"{100 * found.confidence:g} %"
        return f"{found.chosen.candidate.name} meets every target, each with {sure} confidence, for {cost_text(found.chosen, found, plan)}"
    if found.nearest is None:
        return "no candidate could be judged"
    missed = "; ".join(sentence(verdict, found.nearest, plan) for verdict in found.nearest.missed)
    return f"nothing meets every target. Nearest: {found.nearest.candidate.name}, {cost_text(found.nearest, found, plan)}: {missed}"


def sentence(verdict: Verdict, one: Judged, plan: Plan) -> str:
    """Say by how much a target is missed, or how much room there is."""
    target, mean = verdict.target, verdict.mean
    unit = OF_PLAN.get(target.metric, target.unit)
    limit = amount(target.limit_for(one.candidate.memory), target.metric, unit, plan.currency)
    value = amount(mean.value, target.metric, unit, plan.currency)
    bound = "at most" if target.sense == AT_MOST else "at least"
    name = label(target.metric)
    if mean.value is None:
        return f"{name} is not known"
    if verdict.outcome == OPEN:
        end = mean.high if target.sense == AT_MOST else mean.low
        if end is None:
            return f"{name} is {value}, on the right side of {limit}, but one sample shows nothing"
        sure = amount(end, target.metric, unit, plan.currency)
        level = f"{100 * plan.confidence:g} %"
        return f"{name} is {value}, but only {bound} {sure} is sure with {level}, and it must be {bound} {limit}"
    least = f"at {'least' if target.sense == AT_MOST else 'most'} " if one.status == "pruned" else ""
    share = f"{100 * abs(verdict.miss):.3g} %"
    if verdict.outcome == MISSED:
        over = f"{'at least ' if one.status == 'pruned' else ''}{share} {'over' if target.sense == AT_MOST else 'short'}"
        return f"{name} is {least}{value}, and must be {bound} {limit} ({over if target.limit else 'missed'})"
    return f"{name} is {value} of {bound} {limit} ({share} to spare)"


def explanations(found: Found, plan: Plan) -> list[str]:
    """Return the sentences below the headline: what binds, the next cheaper one, what was pruned."""
    lines = []
    if found.chosen is not None:
        tight = sorted(found.chosen.verdicts, key=lambda verdict: -verdict.miss)
        lines.append("Room: " + "; ".join(sentence(verdict, found.chosen, plan) for verdict in tight))
        if found.cheaper is not None:
            missed = "; ".join(sentence(verdict, found.cheaper, plan) for verdict in found.cheaper.missed)
            lines.append(f"Next cheaper: {found.cheaper.candidate.name}, {cost_text(found.cheaper, found, plan)}: {missed}")
        else:
            lines.append("Nothing cheaper was offered.")
    if found.ruled_out:
        which = "cheaper candidates" if found.chosen is not None else "candidates"
        told = ", ".join(f"{target} ({count})" for target, count in sorted(found.ruled_out.items(), key=lambda item: -item[1]))
        lines.append(f"What binds, by how many {which} each target rules out: {told}")
    if found.pruned:
        told = ", ".join(f"{count} by {_the(name)}" for name, count in sorted(found.pruned.items()))
        lines.append(f"Not simulated because a bound rules them out: {told}")
    counts = {status: sum(one.status == status for one in found.judged) for status in STATUS}
    told = ", ".join(
        f"{count} {status if status != 'not tried' else 'not tried, for they cost more'}" for status, count in counts.items() if count
    )
    lines.append(f"{len(found.judged)} candidates: {told}")
    if found.pareto:
        seen = "all that were simulated" if counts["not tried"] else "all"
        lines.append(f"Pareto front of cost, step time and drops, of {seen}: {len(found.pareto)} (marked * below)")
    return lines


def _the(name: str) -> str:
    return f"the {name}" if " " in name else f"the target of {label(name)}"


def between(mean: Mean, metric: str, unit: str, currency: str) -> str:
    """Write a mean and its one-sided bounds."""
    text = amount(mean.value, metric, unit, currency)
    if mean.low is None or mean.high is None or mean.high - mean.low <= 1e-9 * abs(mean.high):
        return text
    return f"{text} ({amount(mean.low, metric, unit, currency)} – {amount(mean.high, metric, unit, currency)})"


def in_order(found: Found) -> list[Judged]:
    """Return the candidates as a table shows them: by cost, those of which nothing is known last."""

    def rank(item: tuple[int, Judged]) -> tuple[float, int]:
        index, one = item
        return (math.inf if one.status in {"invalid", "failed"} else cost_of(one, found.objective), index)

    return [one for _, one in sorted(enumerate(found.judged), key=rank)]


def table(name: str, found: Found, plan: Plan, folder: Path | None, *, width: int = 160, colour: bool = False) -> str:
    """Return what ``moesim plan`` prints."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    out = io.StringIO()
    console = Console(
        file=out, width=width, force_terminal=colour, color_system="standard" if colour else None, highlight=False, markup=False,
        emoji=False, legacy_windows=False,
    )  # fmt: skip
    console.print(Text(name, style="bold"), soft_wrap=True)
    console.print(Text(headline(found, plan), style="bold"), soft_wrap=True)
    console.print()
    for line in explanations(found, plan):
        console.print(line, soft_wrap=True)
    console.print()
    grid = Table.grid(padding=(0, 2, 0, 0))
    for column in range(7):
        grid.add_column(no_wrap=column < 6, justify="right" if 1 < column < 6 else "left")
    grid.add_row("", "candidate", "cost", "step time", "throughput", "drops", "")
    for one in in_order(found)[:MOST_ROWS]:
        grid.add_row(*_row(one, found, plan))
    console.print(grid)
    if len(found.judged) > MOST_ROWS:
        console.print(f"… and {len(found.judged) - MOST_ROWS} more in candidates.csv", soft_wrap=True)
    if folder is not None:
        console.print()
        console.print(f"Results in {folder}", soft_wrap=True)
    return "\n".join(line.rstrip() for line in out.getvalue().split("\n"))


def _row(one: Judged, found: Found, plan: Plan) -> Sequence[str]:
    mark = ">" if found.chosen is one else "*" if one.candidate.name in found.pareto else ""
    means = [one.means.get(metric) for metric in ("step_time", "tokens_per_second", "drop_rate")]
    units = ("s", "tokens/s", "")
    shown = [
        "" if mean is None else amount(mean.value, metric, unit, plan.currency)
        for metric, mean, unit in zip(("step_time", "tokens_per_second", "drop_rate"), means, units, strict=True)
    ]
    cost = "" if one.status == "invalid" else cost_text(one, found, plan)
    told = one.status
    if one.status == "misses":
        told = f"misses {', '.join(label(verdict.target.metric) for verdict in one.missed if verdict.outcome == MISSED)}"
    elif one.status == "pruned":
        first = one.verdicts[0]
        side = "at least" if first.target.sense == AT_MOST else "at most"
        best = amount(first.mean.value, first.target.metric, OF_PLAN.get(first.target.metric, first.target.unit), plan.currency)
        told = f"pruned: {label(first.target.metric)} is {side} {best}{f', by the {one.pruned_by}' if ' ' in one.pruned_by else ''}"
    elif one.reason and one.status != "not tried":
        told = f"{one.status}: {one.reason}"
    return (mark, one.candidate.name, cost if "—" not in cost else "", *shown, told)
