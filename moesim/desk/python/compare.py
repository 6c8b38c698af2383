"""``moesim.compare``."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from moesim.desk.compare_files import NAMES, content, deliver
from moesim.desk.compare_words import price, winner
from moesim.desk.comparing import REPLICATES, Outcome, ask, conclude
from moesim.desk.python.study import Row, Study, player
from moesim.desk.report.page import Sheet
from moesim.desk.summary import plain
from moesim.facts.record import Value
from moesim.study.compare import Difference, Winner


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class ComparisonStudy(Study):
    """What :func:`compare` found.

    Parameters
    ----------
    outcome : Outcome
        Everything, with the runs themselves.
    """

    outcome: Outcome

    @property
    def baseline(self) -> str:
        """The variant that the others are compared with."""
        return self.outcome.comparison.baseline

    @property
    def metrics(self) -> Mapping[str, Mapping[str, Value]]:
        """Of each variant, every metric."""
        return self.outcome.comparison.metrics

    @property
    def differences(self) -> Mapping[str, Mapping[str, Difference]]:
        """Of each variant but the baseline, what it changes in every metric."""
        return self.outcome.comparison.differences

    @property
    def winner(self) -> Winner:
        """Which is best, by how much, and whether that can be told."""
        return self.outcome.comparison.winner

    @property
    def answer(self) -> str:
        """The outcome in a few sentences."""
        return f"{winner(self.winner)} {price(self.outcome)}".strip()

    def _page(self) -> str:
        from moesim.desk.report.comparison.page import page

        return page(self.outcome)

    @property
    def _files(self) -> frozenset[str]:
        return NAMES

    def _deliver(self, folder: Path) -> None:
        deliver(self.outcome, folder)

    def _rows(self) -> Mapping[str, Callable[[], Sequence[Row]]]:
        return {"metrics": self._of_metrics, "differences": self._of_differences}

    def _of_metrics(self) -> Sequence[Row]:
        return [{"variant": name, "metric": key, **asdict(value)} for name, of in self.metrics.items() for key, value in of.items()]

    def _of_differences(self) -> Sequence[Row]:
        return [
            {"variant": name, "baseline": self.baseline, "metric": key, **asdict(difference)}
            for name, of in self.differences.items()
            for key, difference in of.items()
        ]

    def _sheet(self) -> Sheet:
        from moesim.desk.report.comparison.page import headline_sheet

        return headline_sheet(self.outcome)


def compare(
    file: str | os.PathLike[str],
    overrides: Iterable[str] = (),
    variants: Iterable[str] = (),
    *,
    baseline: str | None = None,
    by: str = "step_time",
    replicates: int = REPLICATES,
    executor: str = "inline",
    jobs: int | None = None,
) -> ComparisonStudy:
    """Play the variants of a scenario with the same tokens and compare them; nothing is printed or written.

    Parameters
    ----------
    file : path
        A scenario file; its ``compare:`` names variants.
    overrides : iterable of str
        ``key=value`` for all variants; ``key=value,value`` makes a variant of each value.
    variants : iterable of str
        ``name:key=value,key=value``: further variants.
    baseline : str, optional
        The first variant if left out.
    by : str
        The metric that decides who wins.
    replicates : int
        Seeds of each variant, or stretches of a recording.
    executor : str
        ``inline``, ``processes``, ``dask`` or ``dask://host:port``. With ``processes``, a script needs ``if __name__ == "__main__":``
        around its code, as every use of Python's process pools does.
    jobs : int, optional
        Worker processes.

    Returns
    -------
    ComparisonStudy

    Raises
    ------
    ScenarioError, UsageError
        If the file, a variant, the baseline or the objective is wrong.
    SimulationError
        If fewer than two variants could be played.
    """
    question = ask(file, overrides, variants, baseline=baseline, by=by, replicates=replicates)
    outcome = conclude(question, player(executor, jobs)(question.cells()))
    told: Any = plain(content(outcome))
    return ComparisonStudy(name=question.name, content=told, warnings=outcome.warnings, outcome=outcome)
