"""``moesim.plan`` and ``moesim.sensitivity``."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moesim.desk import plan_ask, plan_files, sensitivity_ask, sensitivity_words
from moesim.desk.plan_words import headline
from moesim.desk.python.study import Row, Study, player
from moesim.desk.report.page import Sheet
from moesim.desk.summary import plain
from moesim.study.plan import Found, find
from moesim.study.plan_verdicts import Judged


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class PlanStudy(Study):
    """What :func:`plan` found.

    Parameters
    ----------
    asked : Asked
        Targets, prices and candidates.
    found : Found
        Every candidate, judged.
    """

    asked: plan_ask.Asked
    found: Found

    @property
    def chosen(self) -> Judged | None:
        """The cheapest candidate that meets every target; None if none does."""
        return self.found.chosen

    @property
    def nearest(self) -> Judged | None:
        """If nothing fits, what misses least."""
        return self.found.nearest

    @property
    def candidates(self) -> tuple[Judged, ...]:
        """All of them, with what became of each."""
        return self.found.judged

    @property
    def answer(self) -> str:
        """The outcome in a few sentences."""
        return f"{headline(self.found, self.asked.plan)}."

    def _page(self) -> str:
        from moesim.desk.report.study.plan import page

        return page(self.content)

    @property
    def _files(self) -> frozenset[str]:
        return plan_files.NAMES

    def _deliver(self, folder: Path) -> None:
        plan_files.deliver(self.asked, self.found, folder)

    def _rows(self) -> Mapping[str, Callable[[], Sequence[Row]]]:
        return {"candidates": self._of_candidates, "targets": self._of_targets}

    def _of_candidates(self) -> Sequence[Row]:
        rows = []
        for one in self.content["candidates"]:
            means = {f"{name}{end}": mean[part] for name, mean in one["metrics"].items()
                     for end, part in (("", "value"), ("_low", "low"), ("_high", "high"))}  # fmt: skip
            plain_ones = {key: one[key] for key in ("gpu", "gpus", "cost_per_hour", "objective", "pruned_by", "reason")}
            rows.append({"name": one["name"], "status": one["status"], **one["axes"], **plain_ones, **means})
        return rows

    def _of_targets(self) -> Sequence[Row]:
        return [{"name": one["name"], **target} for one in self.content["candidates"] for target in one["targets"]]

    def _sheet(self) -> Sheet:
        from moesim.desk.report.study.plan import candidates

        return candidates(self.content)


def plan(
    file: str | os.PathLike[str],
    words: Iterable[str] = (),
    *,
    targets: Iterable[str] = (),
    prices: Iterable[str] = (),
    minimise: str | None = None,
    confidence: float | None = None,
    replicates: int | None = None,
    everything: bool = False,
    executor: str = "inline",
    jobs: int | None = None,
) -> PlanStudy:
    """Find the cheapest candidate that meets the targets; nothing is printed or written.

    Parameters
    ----------
    file : path
        A scenario file, with or without a section ``plan:``.
    words : iterable of str
        ``key=value,value`` makes candidates of the values; ``key=value`` is an override.
    targets, prices : iterable of str
        Such as ``step_time <= 60 ms`` and ``h100-sxm=2.5``, beside those of the file.
    minimise, confidence, replicates : optional
        In place of the file's.
    everything : bool
        Whether candidates dearer than the chosen one are judged as well.
    executor, jobs
        As in :func:`moesim.compare`.

    Returns
    -------
    PlanStudy
        ``chosen`` is None if nothing fits.

    Raises
    ------
    ScenarioError, UsageError
        If the file, a word, a target or a price is wrong, or no candidate can be played.
    """
    asked = plan_ask.playable(
        plan_ask.ask(file, words, targets=targets, prices=prices, minimise=minimise, confidence=confidence, replicates=replicates)
    )  # fmt: skip
    found = find(
        asked.candidates, asked.plan.targets, player(executor, jobs), objective=asked.plan.objective, confidence=asked.plan.confidence,
        summaries=plan_ask.summaries(), everything=everything,
    )  # fmt: skip
    told: Any = plain(plan_files.content(asked, found))
    return PlanStudy(name=asked.name, content=told, warnings=asked.warnings, asked=asked, found=found)


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class SensitivityStudy(Study):
    """What :func:`sensitivity` found.

    Parameters
    ----------
    studied : Studied
        Everything.
    """

    studied: sensitivity_ask.Studied

    @property
    def silent(self) -> Mapping[str, str]:
        """Inputs that changed nothing, each with why where that is known."""
        return self.studied.silent

    @property
    def answer(self) -> str:
        """The outcome in a few sentences."""
        return f"{'. '.join(sensitivity_words.sentences(self.studied))}."

    def _page(self) -> str:
        from moesim.desk.report.study.sensitivity import page

        return page(self.content)

    @property
    def _files(self) -> frozenset[str]:
        return sensitivity_words.NAMES

    def _deliver(self, folder: Path) -> None:
        sensitivity_words.deliver(self.studied, folder)

    def _rows(self) -> Mapping[str, Callable[[], Sequence[Row]]]:
        return {"inputs": lambda: self.content["inputs"], "sobol": lambda: self.content["sobol"]}

    def _sheet(self) -> Sheet:
        from moesim.desk.report.study.sensitivity import inputs

        return inputs(self.content)


def sensitivity(
    file: str | os.PathLike[str],
    words: Iterable[str] = (),
    *,
    metric: str | None = None,
    spread: float | None = None,
    samples: int | None = None,
    executor: str = "inline",
    jobs: int | None = None,
) -> SensitivityStudy:
    """Vary the inputs of a scenario and say which move the answer; nothing is printed or written.

    Parameters
    ----------
    file : path
    words : iterable of str
        ``key=low..high`` is a range; ``key=value`` an override.
    metric : str, optional
        What is looked at; step time if left out.
    spread : float, optional
        How far inputs without a range go, as a share of their value.
    samples : int, optional
        Base samples of the Sobol indices, a power of two; none if left out.
    executor, jobs
        As in :func:`moesim.compare`.

    Returns
    -------
    SensitivityStudy

    Raises
    ------
    ScenarioError, UsageError
        If the file, a word or the metric is wrong.
    SimulationError
        If the scenario itself cannot be played.
    """
    question = sensitivity_ask.ask(file, words, metric=metric, spread=spread, samples=samples)
    found = sensitivity_ask.study(question, player(executor, jobs))
    told: Any = plain(sensitivity_words.content(found))
    return SensitivityStudy(name=found.name, content=told, warnings=found.warnings, studied=found)
