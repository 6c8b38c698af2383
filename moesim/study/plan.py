"""Find the cheapest candidate that meets all targets, cheapest first, and say what keeps cheaper ones out."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from moesim.base.units import DIMENSIONS, format_quantity
from moesim.facts.arrays import Floats
from moesim.facts.target import AT_MOST, OF_PLAN, Target
from moesim.study.cell import Answer, Cell
from moesim.study.plan_bounds import Bound
from moesim.study.plan_verdicts import MISSED, OPEN, Candidate, Judged, Mean, Verdict, mean_of, samples_of, verdict_of

SHOWN = ("step_time", "tokens_per_second", "drop_rate", "peak_memory")
"""Metrics of every table, whatever the targets are."""
PARETO = ("step_time", "drop_rate")
"""What a plan is weighed against its cost by."""
WAVE = 8
"""Candidates that are played together where no two cost the same."""

Player = Callable[[list[Cell]], Sequence[Answer]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """The outcome of a search.

    Parameters
    ----------
    judged : tuple of Judged
        Every candidate, in the order in which they were given.
    objective : str
        What was made small.
    confidence : float
    chosen : Judged or None
        The cheapest that meets all targets; of equally cheap ones the fastest.
    nearest : Judged or None
        If nothing fits: the one whose largest miss is smallest; one that was pruned only if none was simulated, since more may be missed.
    cheaper : Judged or None
        The next cheaper candidate that was looked at, of equally cheap ones the one that misses least.
    ruled_out : mapping of str to int
        For each target, by its text, how many candidates cheaper than the chosen one (all, if none is chosen) it rules out.
    pruned : mapping of str to int
        How many candidates each bound took out before they were simulated.
    pareto : tuple of str
        Names of the simulated candidates that no other beats in cost, step time and drop rate at once.
    """

    judged: tuple[Judged, ...]
    objective: str
    confidence: float
    chosen: Judged | None
    nearest: Judged | None
    cheaper: Judged | None
    ruled_out: Mapping[str, int]
    pruned: Mapping[str, int]
    pareto: tuple[str, ...]


def find(
    candidates: Sequence[Candidate],
    targets: Sequence[Target],
    play: Player,
    *,
    objective: str,
    confidence: float = 0.95,
    summaries: Mapping[str, str] | None = None,
    everything: bool = False,
) -> Found:
    """Judge candidates, the cheapest first, until all that are cheaper than a plan that meets the targets are decided.

    Parameters
    ----------
    candidates : sequence of Candidate
    targets : sequence of Target
    play : callable
        Plays cells and returns their answers in the same order.
    objective : str
        ``cost_per_hour``, ``gpus`` or ``cost_per_million_tokens``. The last is known only after a run; before it, a bound of the tokens per
        second bounds it.
    confidence : float
        Of each one-sided bound.
    summaries : mapping of str to str
        How a metric makes one number of its steps, where that is not ``mean``.
    everything : bool
        Whether dearer candidates are judged as well, for the whole Pareto front.

    Returns
    -------
    Found
    """
    summaries = summaries or {}
    judged: dict[int, Judged] = {}
    queue: list[tuple[float, int]] = []
    for index, candidate in enumerate(candidates):
        early = _before(candidate, targets)
        if early is not None:
            judged[index] = early
        else:
            queue.append((_least_cost(candidate, objective), index))
    queue.sort()
    best = math.inf
    while queue:
        least = queue[0][0]
        if least > best and not everything:
            break
        wave = [index for cost, index in queue if cost == least]
        if objective == "cost_per_million_tokens":
            wave = [index for cost, index in queue[:WAVE] if cost <= best or everything]
        queue = [entry for entry in queue if entry[1] not in wave]
        answers = iter(play([cell for index in wave for cell in candidates[index].cells]))
        for index in wave:
            mine = [next(answers) for _ in candidates[index].cells]
            judged[index] = judge(candidates[index], targets, mine, confidence=confidence, summaries=summaries)
            if judged[index].status == "meets":
                best = min(best, cost_of(judged[index], objective))
    for _, index in queue:
        judged[index] = Judged(candidate=candidates[index], status="not tried", reason="dearer than a plan that meets every target")
    return conclude([judged[index] for index in range(len(candidates))], targets, objective=objective, confidence=confidence)


def judge(
    candidate: Candidate, targets: Sequence[Target], answers: Sequence[Answer], *, confidence: float, summaries: Mapping[str, str]
) -> Judged:
    """Judge a candidate by its runs; one that failed in any of them has failed."""
    broken = next((answer for answer in answers if not answer.done), None)
    if broken is not None:
        return Judged(candidate=candidate, status="failed", reason=broken.error)
    wanted = dict.fromkeys([*SHOWN, *(target.metric for target in targets if target.metric not in OF_PLAN)])
    means = {name: mean_of(samples_of(answers, name), confidence, summary=summaries.get(name, "mean")) for name in wanted}
    if candidate.price is not None:
        rates = samples_of(answers, "tokens_per_second")
        means["cost_per_million_tokens"] = mean_of([_costs(candidate, values) for values in rates], confidence)
    verdicts = tuple(
        verdict_of(target, _fixed(candidate, target.metric) or means.get(target.metric, Mean(value=None)), candidate.memory)
        for target in targets
    )
    outcomes = {verdict.outcome for verdict in verdicts}
    status = "misses" if MISSED in outcomes else "undecided" if OPEN in outcomes else "meets"
    reason = ""
    if status == "undecided":
        reason = f"on the right side of every target, but not with {100 * confidence:g} %: more steps or replicates may decide"
    return Judged(candidate=candidate, status=status, verdicts=verdicts, means=means, reason=reason)


def _costs(candidate: Candidate, rates: Floats) -> Floats:
    return np.array([candidate.cost_per_million(float(rate)) for rate in rates])


def _fixed(candidate: Candidate, metric: str) -> Mean | None:
    """Return what is certain before a run: GPUs and cost per hour."""
    value = candidate.gpus if metric == "gpus" else candidate.cost_per_hour if metric == "cost_per_hour" else None
    return None if value is None else Mean(value=float(value), exact=True)


def _before(candidate: Candidate, targets: Sequence[Target]) -> Judged | None:
    """Return the judgement of a candidate that needs no run, or None."""
    if candidate.problem:
        return Judged(candidate=candidate, status="invalid", reason=candidate.problem)
    for target in targets:
        fixed = _fixed(candidate, target.metric)
        if fixed is not None and not target.met_by(fixed.value or 0.0, candidate.memory):
            verdict = verdict_of(target, fixed, candidate.memory)
            return Judged(
                candidate=candidate, status="pruned", verdicts=(verdict,), pruned_by=target.metric, reason=f"{target} cannot be met"
            )
    hits = [(target, bound) for target in targets for bound in candidate.bounds if impossible(candidate, target, bound)]
    if not hits:
        return None
    target, bound = hits[0]
    value = _in_terms_of(candidate, target, bound)
    shown = format_quantity(value, target.unit) if target.unit in DIMENSIONS else f"{value:.4g} {target.unit}".strip()
    if_so = "" if bound.drop_rate is None else f" with at most {100 * bound.drop_rate:.3g} % dropped"
    strongest: dict[Target, Verdict] = {}
    for its, by in hits:
        at_best = _in_terms_of(candidate, its, by)
        miss = its.miss(at_best, candidate.memory)
        if its not in strongest or miss > strongest[its].miss:
            strongest[its] = Verdict(target=its, mean=Mean(value=at_best), outcome=MISSED, miss=miss)
    return Judged(
        candidate=candidate,
        status="pruned",
        verdicts=tuple(strongest.values()),
        pruned_by=bound.name,
        reason=f"{target} cannot be met{if_so}: by the {bound.name} it is {'at least' if target.sense == AT_MOST else 'at most'} {shown}",
    )


def impossible(candidate: Candidate, target: Target, bound: Bound) -> bool:
    """Tell whether a bound says that a candidate must miss a target."""
    if target.metric == "cost_per_million_tokens":
        matches = bound.metric == "tokens_per_second" and target.sense == AT_MOST and candidate.price is not None
    else:
        matches = bound.metric == target.metric and (target.sense == AT_MOST) == (bound.metric != "tokens_per_second")
    if not matches:
        return False
    # A share of rounding: a bound that is reached exactly must not be beaten by the last bit.
    slack = 1e-9 * abs(target.limit_for(candidate.memory))
    value = _in_terms_of(candidate, target, bound)
    return not target.met_by(value - slack if target.sense == AT_MOST else value + slack, candidate.memory)


def _in_terms_of(candidate: Candidate, target: Target, bound: Bound) -> float:
    return candidate.cost_per_million(bound.value) if target.metric == "cost_per_million_tokens" else bound.value


def _least_cost(candidate: Candidate, objective: str) -> float:
    """Return the least that a candidate can cost, known before it is played."""
    if objective == "gpus":
        return float(candidate.gpus)
    if objective == "cost_per_hour":
        return candidate.cost_per_hour if candidate.cost_per_hour is not None else math.inf
    rates = [bound.value for bound in candidate.bounds if bound.metric == "tokens_per_second"]
    return candidate.cost_per_million(min(rates)) if rates else 0.0


def cost_of(judged: Judged, objective: str) -> float:
    """Return what a candidate costs by the objective; infinite where that is not known."""
    if objective != "cost_per_million_tokens":
        return _least_cost(judged.candidate, objective)
    mean = judged.means.get(objective)
    return mean.value if mean is not None and mean.value is not None else math.inf


def conclude(judged: Sequence[Judged], targets: Sequence[Target], *, objective: str, confidence: float) -> Found:
    """Return the outcome of candidates that are all judged."""

    def rank(one: Judged) -> tuple[float, float, int]:
        time = one.means.get("step_time")
        return cost_of(one, objective), time.value if time is not None and time.value is not None else math.inf, judged.index(one)

    fitting = sorted((one for one in judged if one.status == "meets"), key=rank)
    chosen = fitting[0] if fitting else None
    missing = [one for one in judged if one.status in {"misses", "undecided", "pruned"} and one.verdicts]
    dearest = cost_of(chosen, objective) if chosen is not None else math.inf
    below = [one for one in missing if chosen is None or _compared(one, objective) < dearest]
    ruled_out = Counter(str(verdict.target) for one in below for verdict in one.missed)
    nearest = cheaper = None
    if chosen is None and missing:
        nearest = min(missing, key=lambda one: (one.status == "pruned", _shortfall(one), _compared(one, objective)))
    elif chosen is not None and below:
        cheaper = min(below, key=lambda one: (-_compared(one, objective), _shortfall(one)))
    return Found(
        judged=tuple(judged),
        objective=objective,
        confidence=confidence,
        chosen=chosen,
        nearest=nearest,
        cheaper=cheaper,
        ruled_out={str(target): ruled_out[str(target)] for target in targets if ruled_out[str(target)]},
        pruned=dict(Counter(one.pruned_by for one in judged if one.status == "pruned")),
        pareto=pareto(judged, objective),
    )


def _compared(one: Judged, objective: str) -> float:
    """Return a cost to compare with: what was found, or the least that is possible where nothing was played."""
    cost = cost_of(one, objective)
    return cost if math.isfinite(cost) else _least_cost(one.candidate, objective)


def _shortfall(one: Judged) -> float:
    """Return the largest miss; of an open verdict that is what its unsure end misses, so that it is not the best of all."""
    misses = []
    for verdict in one.verdicts:
        if verdict.outcome == OPEN and verdict.mean.value is not None:
            end = verdict.mean.high if verdict.target.sense == AT_MOST else verdict.mean.low
            misses.append(verdict.miss if end is None else verdict.target.miss(end, one.candidate.memory))
        else:
            misses.append(verdict.miss)
    return max(misses, default=math.inf)


def pareto(judged: Sequence[Judged], objective: str) -> tuple[str, ...]:
    """Return the names of the played candidates that no other one beats: at most as much in all, and less in one, of cost, time, drops."""
    played = [one for one in judged if one.status in {"meets", "misses", "undecided"}]
    points = [(cost_of(one, objective), *(_value(one, name) for name in PARETO)) for one in played]

    def beaten(mine: tuple[float, ...]) -> bool:
        return any(all(o <= m for o, m in zip(other, mine, strict=True)) and other != mine for other in points)

    return tuple(one.candidate.name for one, point in zip(played, points, strict=True) if not beaten(point))


def _value(one: Judged, metric: str) -> float:
    mean = one.means.get(metric)
    return mean.value if mean is not None and mean.value is not None else math.inf


def rename(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Return the candidates with names that differ: equal ones are numbered."""
    count = Counter(candidate.name for candidate in candidates)
    seen: Counter[str] = Counter()
    named = []
    for candidate in candidates:
        seen[candidate.name] += 1
        several = count[candidate.name] > 1
        named.append(replace(candidate, name=f"{candidate.name} ({seen[candidate.name]})") if several else candidate)
    return named
