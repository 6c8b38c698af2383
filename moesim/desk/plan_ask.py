"""From the section ``plan:`` and the words of a command line to candidates that can be played."""

from __future__ import annotations

import itertools
import json
import math
import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from moesim.base.errors import MoesimError, Problem, ScenarioError, UsageError, did_you_mean
from moesim.desk.matrix import read_words
from moesim.desk.overrides import label as place_of
from moesim.desk.scenario_file import load_scenario
from moesim.desk.study_cells import cell_from, read_trace
from moesim.facts.plan import Plan, Price, PriceText, contradictory
from moesim.facts.scenario import Scenario
from moesim.facts.target import AT_MOST, OF_PLAN, Target, parse_target
from moesim.measure.collect import metrics
from moesim.study.plan import rename
from moesim.study.plan_bounds import safe_bounds
from moesim.study.plan_verdicts import Candidate

MOST = 10_000
"""Candidates of one plan."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What is planned: the plan with the words of the command line, its candidates, and what must be said about them."""

    name: str
    plan: Plan
    candidates: tuple[Candidate, ...]
    warnings: tuple[str, ...]
    first_problem: str


def ask(
    file: str | os.PathLike[str],
    words: Iterable[str] = (),
    *,
    targets: Iterable[str] = (),
    prices: Iterable[str] = (),
    minimise: str | None = None,
    confidence: float | None = None,
    replicates: int | None = None,
) -> Asked:
    """Read what is to be planned, and every candidate.

    Parameters
    ----------
    file : path
        A scenario file, with or without a section ``plan:``.
    words : iterable of str
        ``KEY=VALUE`` lays a value over the file, and takes the key out of its candidates; ``KEY=VALUE,VALUE`` makes candidates of the
        values, in place of the file's for that key.
    targets, prices : iterable of str
        ``step_time <= 60 ms`` and ``h100-sxm=2.5``, beside those of the file; a target of the same metric and sense and a price of the same
        GPU take the place of the file's.
    minimise, confidence, replicates : optional
        In place of the file's.

    Returns
    -------
    Asked
        Candidates that are wrong say so themselves.

    Raises
    ------
    ScenarioError
        If the file itself is wrong.
    UsageError
        If there is nothing to plan: no targets, no candidates, too many of them, or too few steps for a statement with confidence.
    """
    axes, overrides, wrong = read_words(words)
    if wrong:
        raise ScenarioError(wrong)
    base = _base(file, overrides)
    plan = base.plan or Plan()
    plan = _with_words(plan, targets, prices, minimise=minimise, confidence=confidence, replicates=replicates)
    said = {word.partition("=")[0].strip() for word in overrides}  # what is laid over the file is no question any more
    kept = {key: items for key, items in plan.candidates.items() if key not in said}
    values = kept | {axis.key: tuple(setting.node.data() for setting in axis.settings) for axis in axes}
    plan = replace(plan, candidates=values)
    shown = os.fspath(file)
    if not plan.targets:
        raise UsageError(f"{shown} has no targets: add plan.targets, or --target 'step_time <= 60 ms'")
    if not values:
        raise UsageError(f"{shown} has no candidates: add plan.candidates, or alternatives such as parallel.ep=8,16")
    many = math.prod(len(items) for items in values.values())
    if many > MOST:
        raise UsageError(f"{many} candidates are too many: at most {MOST}; take values away or plan in two steps")
    combinations = [dict(zip(values, choice, strict=True)) for choice in itertools.product(*values.values())]
    combinations = [one for one in combinations if not any(_has(one, left_out) for left_out in plan.exclude)]
    _check_exclude(plan, values, said)
    if not combinations:
        raise UsageError("plan.exclude leaves no candidate")
    candidates = rename([_candidate(file, overrides, plan, one) for one in combinations])
    problems = [candidate.problem for candidate in candidates if candidate.problem]
    return Asked(
        name=base.name,
        plan=plan,
        candidates=tuple(candidates),
        warnings=tuple(_warnings(plan, candidates)),
        first_problem=problems[0] if len(problems) == len(candidates) else "",
    )


def playable(asked: Asked) -> Asked:
    """Return what was asked, or refuse it if not a single candidate can be played.

    Raises
    ------
    UsageError
        With what is wrong with the first candidate.
    """
    if asked.first_problem:
        raise UsageError(f"none of the {len(asked.candidates)} candidates can be played: {asked.candidates[0].name}: {asked.first_problem}")
    return asked


def _base(file: str | os.PathLike[str], overrides: Sequence[str]) -> Scenario:
    """Load the file; one that is right but for what its candidates change is good enough."""
    try:
        return load_scenario(file, overrides, read_trace=read_trace)
    except ScenarioError as error:
        try:
            base = load_scenario(file, overrides, check=False)
        except MoesimError:
            raise error from None
        if base.plan is None:
            raise
        return base


def _with_words(
    plan: Plan,
    targets: Iterable[str],
    prices: Iterable[str],
    *,
    minimise: str | None,
    confidence: float | None,
    replicates: int | None,
) -> Plan:
    """Return the plan with what the command line says."""
    try:
        asked = [parse_target(text) for text in targets]
    except ValueError as error:
        raise UsageError(f"--target: {error}") from None
    kept = [old for old in plan.targets if not any((old.metric, old.sense) == (new.metric, new.sense) for new in asked)]
    given: dict[str, Price] = dict(plan.price)
    for text in prices:
        name, equals, number = text.partition("=")
        try:
            value: Any = float(number) if equals and name.strip() else math.nan
            given[name.strip()] = PriceText().parse(value)
        except ValueError as error:
            raise UsageError(f"--price {text}: write the GPU's name and a number, as in h100-sxm=2.5 ({error})") from None
    changed: dict[str, Any] = {"targets": (*kept, *asked), "price": given}
    changed |= {} if minimise is None else {"minimise": minimise}
    changed |= {} if confidence is None else {"confidence": confidence}
    changed |= {} if replicates is None else {"replicates": replicates}
    if contradictory(changed["targets"]):
        raise UsageError(contradictory(changed["targets"]))
    try:
        return replace(plan, **changed)
    except ValueError as error:
        raise UsageError(str(error)) from None


def _check_exclude(plan: Plan, values: Mapping[str, Sequence[Any]], said: Collection[str]) -> None:
    problems = []
    for index, left_out in enumerate(plan.exclude):
        for key, value in left_out.items():
            if key in said:
                continue
            if key not in values:
                message = f"excludes nothing: {key} is no key of the candidates{did_you_mean(key, values)}"
            elif value not in values[key]:
                message = f"excludes nothing: {key} never is {short(value)}"
            else:
                continue
            problems.append(Problem(path=f"plan.exclude.{index}.{key}", message=message))
    if problems:
        raise ScenarioError(problems)


def _has(one: Mapping[str, Any], left_out: Mapping[str, Any]) -> bool:
    return bool(left_out) and all(key in one and one[key] == value for key, value in left_out.items())


def _candidate(file: str | os.PathLike[str], overrides: Sequence[str], plan: Plan, chosen: Mapping[str, Any]) -> Candidate:
    """Return one combination, ready to be played or with what is wrong with it."""
    axes = {key: value if isinstance(value, (str, int, float, bool)) or value is None else short(value) for key, value in chosen.items()}
    words = ends(list(chosen))
    name = ", ".join(f"{words[key]}={value if isinstance(value, str) else short(value)}" for key, value in axes.items())
    laid = [f"{key}={json.dumps(value)}" for key, value in chosen.items()]
    try:
        scenario = load_scenario(file, [*overrides, *laid], read_trace=read_trace)
    except MoesimError as error:
        return Candidate(name=name, axes=axes, problem=_said(error, laid, chosen))
    scenario = replace(scenario, plan=None, sensitivity=None)
    cluster = scenario.cluster.build()
    price = plan.price.get(cluster.gpu.name)
    if plan.price and price is None:
        hint = did_you_mean(cluster.gpu.name, plan.price)
        return Candidate(name=name, axes=axes, problem=f"there is no price of the GPU {cluster.gpu.name!r}{hint}; add it to plan.price")
    means = any(_is_mean(target) for target in plan.targets)
    if means and (scenario.steps - scenario.warmup) * plan.replicates < 2:
        message = f"one step shows nothing with {100 * plan.confidence:g} %: steps must be at least 2 more than warmup, or replicates 2"
        return Candidate(name=name, axes=axes, problem=message)
    drops = [target.limit for target in plan.targets if target.metric == "drop_rate" and target.sense == AT_MOST]
    return Candidate(
        name=name,
        axes=axes,
        gpus=cluster.gpus,
        gpu=cluster.gpu.name,
        memory=float(cluster.gpu.memory),
        price=None if price is None else price.per_gpu_hour,
        cells=tuple(
            cell_from(replace(scenario, seed=scenario.seed + number), name=name, axes={**axes, "replicate": number})
            for number in range(plan.replicates)
        ),
        bounds=safe_bounds(scenario, read_trace, drop_rate=min(drops) if drops else None),
    )


def _is_mean(target: Target) -> bool:
    if target.metric in OF_PLAN:
        return target.metric == "cost_per_million_tokens"
    return summaries().get(target.metric) == "mean"


def summaries() -> dict[str, str]:
    """Return how every metric makes one number of its steps."""
    return {name: str(getattr(metric, "summary", "mean")) for name, metric in metrics().items()}


def _said(error: MoesimError, laid: Sequence[str], chosen: Mapping[str, Any]) -> str:
    """Return what is wrong with a candidate, in one line, without the words that its name says already."""
    if not isinstance(error, ScenarioError):
        return str(error)
    places = {place_of(word): key for word, key in zip(laid, chosen, strict=True)}
    lines = []
    for problem in error.problems:
        shown = replace(problem, file="") if problem.file in places else problem
        lines.append(str(shown))
    return "; ".join(lines)


def ends(keys: Sequence[str]) -> dict[str, str]:
    """Return for each dotted key its last words, as many as it takes to tell the keys apart.

    Examples
    --------
    >>> ends(["cluster.nodes", "policy.capacity.factor"])
    {'cluster.nodes': 'nodes', 'policy.capacity.factor': 'factor'}
    """
    words = {key: key.split(".") for key in keys}
    many = dict.fromkeys(keys, 1)
    while True:
        names = {key: ".".join(words[key][-many[key] :]) for key in keys}
        alike = [key for key in keys if list(names.values()).count(names[key]) > 1 and many[key] < len(words[key])]
        if not alike:
            return names
        for key in alike:
            many[key] += 1


def short(value: Any) -> str:
    """Return a value in few words: of a mapping its values with their keys.

    Examples
    --------
    >>> short({"kind": "one_switch", "gpus": 8})
    '{kind: one_switch, gpus: 8}'
    """
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {short(item)}" for key, item in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(short(item) for item in value) + "]"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _warnings(plan: Plan, candidates: Sequence[Candidate]) -> Iterable[str]:
    used = {candidate.gpu for candidate in candidates if candidate.gpu}
    for name, price in plan.price.items():
        if name not in used and used:
            yield f"plan.price has a price of {name}, and no candidate has that GPU{did_you_mean(name, used)}"
        elif not price.source and used:
            yield f"the price of {name} has no source: costs are as good as that number"
