"""From the section ``sensitivity:`` and the words of a command line to runs, and from runs to what moves the answer."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from moesim.base.errors import MoesimError, ScenarioError, SimulationError, UsageError, did_you_mean
from moesim.base.registry import kinds
from moesim.desk.scenario_file import load_scenario
from moesim.desk.sensitivity_inputs import inputs, override
from moesim.desk.study_cells import cell_from, read_trace
from moesim.facts.arrays import Floats
from moesim.facts.plan import Sensitivity
from moesim.facts.scenario import Scenario
from moesim.study.cell import Answer, Cell
from moesim.study.no_effect import reason
from moesim.study.sensitivity import Index, Input, Outcome, Point, Swing, points_of, sobol, tornado, winners

_RANGE = re.compile(r"([^=]+)=(.+?)\.\.([^:]+)")
OWN = "policy"
"""The name of the file's own policy beside its variants."""

Player = Callable[[Sequence[Cell]], Sequence[Answer]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Studied:
    """What came of a study of inputs.

    Parameters
    ----------
    name : str
        Of the scenario.
    metric, unit, better : str
        What was looked at.
    base : float
        Where nothing is changed.
    swings : tuple of Swing
        The largest reach first.
    silent : mapping of str to str
        Inputs that change no metric at all, each with why, empty where that is not known.
    elsewhere : tuple of str
        Inputs that change other metrics and not this one.
    indices : tuple of Index
        Sobol indices, of the inputs that moved the metric alone.
    variance : float
        Of the metric when all of these vary.
    winners : mapping of str to float
        Of every variant, in which share of the points it is best.
    best : str
        The variant that is best where nothing is changed.
    flips : tuple of str
        Ends of single inputs at which another variant is best.
    runs : int
        Points that were looked at.
    warnings : tuple of str
    """

    name: str
    metric: str
    unit: str
    better: str
    base: float
    swings: tuple[Swing, ...]
    silent: Mapping[str, str]
    elsewhere: tuple[str, ...]
    indices: tuple[Index, ...] = ()
    variance: float = 0.0
    winners: Mapping[str, float]
    best: str = ""
    flips: tuple[str, ...] = ()
    runs: int = 0
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What is to be varied, and where."""

    file: str
    overrides: tuple[str, ...]
    scenario: Scenario
    asked: Sensitivity
    inputs: tuple[Input, ...]


def ask(
    file: str | os.PathLike[str],
    words: Iterable[str] = (),
    *,
    metric: str | None = None,
    spread: float | None = None,
    samples: int | None = None,
) -> Question:
    """Read what is to be varied.

    Parameters
    ----------
    file : path
        A scenario file, with or without a section ``sensitivity:``.
    words : iterable of str
        ``KEY=LOW..HIGH`` varies a number; ``KEY=VALUE`` lays a value over the file.
    metric, spread, samples : optional
        In place of the file's.

    Raises
    ------
    ScenarioError, UsageError
        If the file, a range or the metric is wrong.
    """
    overrides, given = [], {}
    for word in words:
        match = _RANGE.fullmatch(word)
        if match:
            given[match[1].strip()] = (_plain(match[2]), _plain(match[3]))
        else:
            overrides.append(word)
    scenario = load_scenario(file, overrides, read_trace=read_trace)
    asked = scenario.sensitivity or Sensitivity()
    changed: dict[str, Any] = {"ranges": given} if given else {}
    changed |= {name: value for name, value in (("metric", metric), ("spread", spread), ("samples", samples)) if value is not None}
    try:
        asked = replace(asked, **changed)
    except ValueError as error:
        raise UsageError(str(error)) from None
    known = kinds("metric")
    if asked.metric not in known:
        raise UsageError(f"unknown metric {asked.metric!r}{did_you_mean(asked.metric, known)}; 'moesim list metrics' shows all")
    found, problems = inputs(scenario, asked.ranges, asked.spread)
    if problems:
        raise UsageError("; ".join(problems))
    if not found:
        raise UsageError("this scenario has no number to vary; give ranges, as in cluster.nic='40 GB/s..50 GB/s'")
    return Question(file=os.fspath(file), overrides=tuple(overrides), scenario=scenario, asked=asked, inputs=tuple(found))


def _plain(text: str) -> Any:
    """Return what YAML would make of one end of a range."""
    word = text.strip()
    for kind in (int, float):
        try:
            return kind(word)
        except ValueError:
            continue
    return word


class Runner:
    """Turns points into runs of the scenario and of its variants, and remembers what was wrong with points."""

    def __init__(self, question: Question, play: Player) -> None:
        self.question = question
        self.play = play
        self.problems: dict[str, str] = {}
        self.by_key = {given.key: given for given in question.inputs}
        self.points = 0

    def __call__(self, points: Sequence[Point], variant: str = OWN) -> list[Outcome]:
        """Return the metrics of one variant at some points; an empty mapping where a run was impossible or failed."""
        cells: list[Cell | None] = [self._cell(point, variant) for point in points]
        answers = iter(self.play([cell for cell in cells if cell is not None]))
        found: list[Outcome] = []
        for point, cell in zip(points, cells, strict=True):
            answer = next(answers) if cell is not None else None
            if answer is not None and not answer.done:
                self.problems[_said(point)] = answer.error
            found.append(outcome(answer) if answer is not None and answer.done else {})
        self.points += len(points)
        return found

    def _cell(self, point: Point, variant: str) -> Cell | None:
        words = [override(self.by_key[key], value) for key, value in point.items()]
        try:
            scenario = load_scenario(self.question.file, [*self.question.overrides, *words], read_trace=read_trace)
        except MoesimError as error:
            self.problems[_said(point)] = "; ".join(p.message for p in error.problems) if isinstance(error, ScenarioError) else str(error)
            return None
        if variant != OWN:
            scenario = replace(scenario, policy=scenario.compare[variant])
        axes = {word.partition("=")[0]: word.partition("=")[2] for word in words} | {"variant": variant}
        return cell_from(replace(scenario, plan=None, sensitivity=None), name=variant, axes=axes)

    def values(self, points: Sequence[Point], variant: str) -> Floats:
        """Return the metric at points at which every run must succeed.

        Raises
        ------
        SimulationError
            Naming a point that cannot be played.
        """
        metric = self.question.asked.metric
        values = np.array([one.get(metric, math.nan) for one in self(points, variant)])
        if np.isnan(values).any():
            point = points[int(np.flatnonzero(np.isnan(values))[0])]
            why = self.problems.get(_said(point), f"{metric} cannot be told there")
            raise SimulationError(f"the ranges hold points that cannot be played, such as {_said(point)}: {why}; make the ranges narrower")
        return values


def _said(point: Point) -> str:
    return ", ".join(f"{key}={value:g}" for key, value in point.items()) or "the scenario as it is"


def outcome(answer: Answer) -> Outcome:
    """Return the mean of every metric of a run; NaN where it has none."""
    return {name: math.nan if value.value is None else value.value for name, value in answer.metrics.items()}


def study(question: Question, play: Player) -> Studied:
    """Vary the inputs one at a time, then, if samples were asked for, all together; and see whether the winner stays.

    Raises
    ------
    SimulationError
        If the scenario itself cannot be played, or a point of the ranges.
    """
    asked, scenario = question.asked, question.scenario
    runner = Runner(question, play)
    metric = kinds("metric")[asked.metric]
    better = str(metric.better)  # type: ignore[attr-defined]
    start = runner([{}])[0]
    if math.isnan(start.get(asked.metric, math.nan)):
        raise SimulationError(f"{asked.metric} of the scenario as it is: {runner.problems.get(_said({}), 'it cannot be told')}")
    base, swings = tornado(question.inputs, runner, asked.metric)
    swings = [_with_problem(swing, runner) for swing in swings]
    silent = {swing.given.key: reason(swing.given, scenario, start) for swing in swings if not swing.changed and not swing.problem}
    movers = [swing.given for swing in swings if asked.metric in swing.changed and not swing.problem]
    elsewhere = [swing.given.key for swing in swings if swing.changed and asked.metric not in swing.changed]
    indices: list[Index] = []
    variance = 0.0
    variants = list(scenario.compare)
    played = [swing.given for swing in swings if not swing.problem]
    best, shares, flips = _winners(runner, variants, played, movers, question, better)
    if asked.samples and movers:
        indices, variance = sobol(movers, lambda at: runner.values(_points(movers, at), OWN), samples=asked.samples, seed=scenario.seed)
    return Studied(
        name=scenario.name,
        metric=asked.metric,
        unit=str(metric.unit),  # type: ignore[attr-defined]
        better=better,
        base=base,
        swings=tuple(swings),
        silent=silent,
        elsewhere=tuple(elsewhere),
        indices=tuple(indices),
        variance=variance,
        winners=shares,
        best=best,
        flips=tuple(flips),
        runs=runner.points,
        warnings=tuple(f"{swing.given.key} cannot be at both ends of its range: {swing.problem}" for swing in swings if swing.problem),
    )


def _points(given: Sequence[Input], at: Floats) -> list[Point]:
    return [{one.key: float(column[row]) for row, one in enumerate(given)} for column in at.T]


def _with_problem(swing: Swing, runner: Runner) -> Swing:
    for end in (swing.given.low, swing.given.high):
        said = runner.problems.get(_said({swing.given.key: end}))
        if said:
            return replace(swing, problem=said)
    return swing


def _winners(
    runner: Runner, variants: Sequence[str], given: Sequence[Input], movers: Sequence[Input], question: Question, better: str
) -> tuple[str, dict[str, float], list[str]]:
    """Return which variant is best, in which share of the points each is, and the ends of inputs at which another one is.

    Inputs that the file's own policy does not feel may still move a variant, so that all are looked at, and not ``movers`` alone.
    """
    if len(variants) < 2 or better == "neither":
        return "", {}, []
    higher = better == "higher"
    ends: list[Point] = [{}]
    for one in given:
        ends += [{one.key: one.low}, {one.key: one.high}]
    table = {name: runner.values(ends, name) for name in variants}
    rows = np.array([table[name] for name in variants])
    at = rows.argmax(axis=0) if higher else rows.argmin(axis=0)
    best = variants[int(at[0])]
    flips = [f"{_said(point)}: {variants[int(which)]}" for point, which in zip(ends[1:], at[1:], strict=True) if which != at[0]]
    if question.asked.samples and movers:
        points = _points(movers, points_of(movers, question.asked.samples, question.scenario.seed)[0])
        return best, winners({name: runner.values(points, name) for name in variants}, higher=higher), flips
    return best, winners(table, higher=higher), flips
