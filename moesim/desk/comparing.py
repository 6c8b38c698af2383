"""A comparison from the question to the outcome; playing the cells in between is the caller's."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from moesim.base.errors import SimulationError, UsageError
from moesim.desk.compare_runs import BLOCKS, SEEDS, Runs, runs_of
from moesim.desk.compare_variants import read_variants
from moesim.desk.study_cells import read_trace
from moesim.facts.scenario import Scenario
from moesim.study.cell import Answer, Cell
from moesim.study.compare import Comparison, check_objective, compare
from moesim.study.played import Played, are_copies, as_one_run

REPLICATES = 5
"""Seeds that each variant is played with, unless said otherwise."""

MOST = 10_000
"""Replicates at most: all runs are written down before the first is played."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What is compared with what, by what, and in which runs."""

    name: str
    runs: tuple[Runs, ...]
    baseline: str
    by: str
    replicates: int

    def cells(self) -> list[Cell]:
        """Return the cells of all runs, variant by variant."""
        return [cell for runs in self.runs for cell in runs.cells()]


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """A finished comparison with all that was played."""

    question: Question
    comparison: Comparison
    played: Mapping[str, Played]
    failed: Mapping[str, str]
    warnings: tuple[str, ...]

    def scenario(self, name: str) -> Scenario:
        """Return the scenario of a variant's first run."""
        return next(runs for runs in self.question.runs if runs.name == name).scenarios[0]


def ask(
    file: str | os.PathLike[str],
    words: Iterable[str] = (),
    variants: Iterable[str] = (),
    *,
    baseline: str | None = None,
    by: str = "step_time",
    replicates: int = REPLICATES,
) -> Question:
    """Read what is to be compared.

    Parameters
    ----------
    file, words, variants, baseline
        As in :func:`moesim.desk.compare_variants.read_variants`.
    by : str
        The metric that decides who wins.
    replicates : int
        Seeds of each variant, 1 to :data:`MOST`; of a recording in order, how many times its steps.

    Raises
    ------
    ScenarioError, UsageError
        If a file, a variant, the baseline, the objective or the number of replicates is wrong.
    """
    check_objective(by)
    if not 1 <= replicates <= MOST:
        raise UsageError(f"--replicates {replicates}: choose 1 to {MOST:,}")
    found, base = read_variants(file, words, variants, baseline=baseline, read_trace=read_trace)
    return Question(
        name=found[0].scenario.name,
        runs=tuple(runs_of(variant, replicates, read_trace) for variant in found),
        baseline=base,
        by=by,
        replicates=replicates,
    )


def conclude(question: Question, answers: Sequence[Answer]) -> Outcome:
    """Compare what was played.

    Parameters
    ----------
    question : Question
    answers : sequence of Answer
        One per cell of the question, in their order.

    Returns
    -------
    Outcome
        A variant of which no run was finished is left out and named in ``failed``; if that is the baseline, the first other one takes
        its place, with a warning.

    Raises
    ------
    SimulationError
        If fewer than two variants are left.
    """
    played: dict[str, Played] = {}
    failed: dict[str, str] = {}
    said: list[str] = []
    rest = list(answers)
    for runs in question.runs:
        mine, rest = rest[: len(runs.scenarios)], rest[len(runs.scenarios) :]
        errors = [answer.error for answer in mine if not answer.done]
        found = runs.played(mine)
        if found is None:
            failed[runs.name] = errors[0]
            said.append(f"{runs.name} failed and is not compared: {errors[0]}")
            continue
        played[runs.name] = found
        if errors:
            said.append(f"{runs.name}: {len(errors)} of {len(mine)} runs failed and are left out: {errors[0]}")
    if len(played) < 2:
        reasons = "; ".join(f"{name}: {error}" for name, error in failed.items())
        raise SimulationError(f"nothing is left to compare: {len(failed)} of {len(question.runs)} variants failed ({reasons})")
    copied = {found.draws for found in played.values() if are_copies(found)}
    played = {name: as_one_run(found) if found.draws in copied else found for name, found in played.items()}
    baseline = question.baseline if question.baseline in played else next(iter(played))
    if baseline != question.baseline:
        said.append(f"the baseline {question.baseline} failed: differences are taken from {baseline}")
    comparison = compare(tuple(played.values()), baseline=baseline, by=question.by)
    return Outcome(
        question=question,
        comparison=comparison,
        played=played,
        failed=failed,
        warnings=(*said, *comparison.warnings, *_idle(comparison), *_evidence(question, played), *_pairing(comparison), *_of_runs(played)),
    )


def _idle(comparison: Comparison) -> list[str]:
    """Name the variants that changed nothing: an option without effect is more often a mistake than a finding."""
    found = {name: {key: value.value for key, value in of.items()} for name, of in comparison.metrics.items()}
    alike = [name for name, values in found.items() if name != comparison.baseline and values == found[comparison.baseline]]
    if not alike:
        return []
    return [f"{_listed(alike)} {'change' if len(alike) > 1 else 'changes'} nothing: every metric is that of {comparison.baseline}"]


def _evidence(question: Question, played: Mapping[str, Played]) -> list[str]:
    """Say how many independent pieces of evidence there are where that is fewer than was asked for."""
    said: dict[str, list[str]] = {}
    for runs in question.runs:
        if runs.name not in played:
            continue
        mine = played[runs.name]
        pieces = len(np.unique(mine.blocks)) if mine.blocks is not None else 1
        if runs.kind == SEEDS and len(runs.scenarios) > 1 and mine.serial:
            sentence = "the routing is the same under every seed: copies are no evidence, and intervals come from the steps of one run"
            said.setdefault(sentence, []).append(runs.name)
        blocks = _count(runs.independent or 1, "independent block")
        if mine.serial and pieces == 1:
            why = "there is one run of one step; more replicates or more steps make more"
            if runs.kind == BLOCKS:
                why = f"the recording has {blocks} of tokens for steps of this size; fewer tokens per GPU make more"
            said.setdefault(f"no intervals and no verdicts from one piece of evidence: {why}", []).append(runs.name)
        elif runs.kind == BLOCKS and runs.scenarios[0].steps > (runs.independent or 1):
            sentence = (
                f"the recording has {blocks} of tokens for {runs.scenarios[0].steps} steps: steps with the same tokens count as one piece "
                "of evidence"
            )
            said.setdefault(sentence, []).append(runs.name)
    return [_of(names, sentence, played) for sentence, names in said.items()]


def _pairing(comparison: Comparison) -> list[str]:
    apart = [name for name, same in comparison.same_choices.items() if not same]
    if not apart:
        return []
    have = "have" if len(apart) > 1 else "has"
    sentence = (
        f"{_listed(apart)} {have} other tokens or choices than {comparison.baseline}: differences are paired by step and seed only, and "
        "hold what the routing changes too"
    )
    return [sentence]


def _of_runs(played: Mapping[str, Played]) -> list[str]:
    """Return the warnings of all runs, each once with the variants that it is about; those that differ in numbers only are one."""
    said: dict[str, dict[str, list[str]]] = {}
    for name, variant in played.items():
        for answer in variant.answers:
            for sentence in answer.warnings:
                alike = said.setdefault(re.sub(r"\d+(\.\d+)?", "0", sentence), {})
                names = alike.setdefault(sentence, [])
                if name not in names:
                    names.append(name)
    return [_of(list(dict.fromkeys(name for names in alike.values() for name in names)), _once(alike), played) for alike in said.values()]


def _once(alike: Mapping[str, object]) -> str:
    first, others = next(iter(alike)), len(alike) - 1
    return first if not others else f"{first}; {_count(others, 'more warning')} like it, with other numbers"


def _of(names: Sequence[str], sentence: str, played: Mapping[str, Played]) -> str:
    return sentence if len(names) == len(played) else f"{_listed(names)}: {sentence}"


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names) if len(names) <= 4 else f"{', '.join(names[:3])} and {len(names) - 3} more"


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
