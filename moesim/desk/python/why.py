"""``moesim.why`` and ``moesim.memory``."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from moesim.base.errors import UsageError
from moesim.base.units import parse_quantity
from moesim.desk import memory_answer, why_answer
from moesim.desk.answer_files import deliver, names
from moesim.desk.python.study import Row, Study
from moesim.desk.report.page import Sheet
from moesim.desk.scenario_file import load_scenario
from moesim.desk.summary import plain
from moesim.desk.trace_files import read_trace
from moesim.engine.rows import rows_of_steps
from moesim.facts.scenario import Scenario
from moesim.study.memory import MemoryNeed, memory_need
from moesim.study.why import EACH, Explanation, explain


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class WhyStudy(Study):
    """What :func:`why` found.

    Parameters
    ----------
    explanation : Explanation
        The run, its critical path, who waited for whom, and what each change is worth.
    """

    explanation: Explanation

    @property
    def answer(self) -> str:
        """The outcome in a few sentences."""
        from moesim.desk.report.study.why import answer

        return answer(self.content)

    def _page(self) -> str:
        from moesim.desk.report.study.why import page

        return page(self.content)

    @property
    def _files(self) -> frozenset[str]:
        return names("why")

    def _deliver(self, folder: Path) -> None:
        deliver(folder, "why", self.content)

    def _rows(self) -> Mapping[str, Callable[[], Sequence[Row]]]:
        return {"what_ifs": lambda: self.content["what_ifs"], "critical_path": self._of_path, "waiting": lambda: self.content["waiting"]}

    def _of_path(self) -> Sequence[Row]:
        shares = self.content["critical_path"]
        return [{"by": by, "part": part, "seconds": seconds} for by, of in shares.items() for part, seconds in of.items()]

    def _sheet(self) -> Sheet:
        from moesim.desk.report.study.why import what_ifs

        return what_ifs(self.content)


def why(scenario: str | os.PathLike[str] | Scenario, overrides: Iterable[str] = (), *, each: int = EACH) -> WhyStudy:
    """Say why a step takes as long as it does, and what would help; nothing is printed or written.

    Parameters
    ----------
    scenario : path or Scenario
        A YAML file, or what :func:`moesim.load_scenario` returned.
    overrides : iterable of str
        Laid over the file.
    each : int
        How many single links, layers and GPUs are asked about: those with the most time on the critical path.

    Returns
    -------
    WhyStudy

    Raises
    ------
    ScenarioError, UsageError
        If the file or an override is wrong.
    """
    read = cache(read_trace)
    found = explain(_loaded(scenario, overrides, read), read_trace=read, each=each)
    told: Any = plain(why_answer.answer(found))
    return WhyStudy(name=told["name"], content=told, warnings=tuple(told["warnings"]), explanation=found)


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class MemoryStudy(Study):
    """What :func:`memory` found.

    Parameters
    ----------
    need : MemoryNeed
        Of every GPU, and of the one that needs most.
    """

    need: MemoryNeed

    @property
    def answer(self) -> str:
        """The outcome in a few sentences."""
        from moesim.desk.report.study.memory import answer

        return answer(self.content)

    def _page(self) -> str:
        from moesim.desk.report.study.memory import page

        return page(self.content)

    @property
    def _files(self) -> frozenset[str]:
        return names("memory")

    def _deliver(self, folder: Path) -> None:
        deliver(folder, "memory", self.content)

    def _rows(self) -> Mapping[str, Callable[[], Sequence[Row]]]:
        return {"gpus": self._of_gpus}

    def _of_gpus(self) -> Sequence[Row]:
        rows = []
        for gpu in self.content["gpus"]:
            spreads = {f"{what}_{name}": gpu[what][name] for what in ("rows", "buffer", "activations", "total") for name in gpu[what]}
            risk = gpu["out_of_memory"] or {"value": None}
            rows.append({"gpu": gpu["gpu"], "weights": gpu["weights"], **spreads, "out_of_memory": risk["value"]})
        return rows

    def _sheet(self) -> Sheet:
        from moesim.desk.report.study.memory import table

        return table(self.content)


def memory(scenario: str | os.PathLike[str] | Scenario, overrides: Iterable[str] = (), *, limit: str | float | None = None) -> MemoryStudy:
    """Say how much memory GPUs need in each step, and how likely one runs out; nothing is printed or written.

    Parameters
    ----------
    scenario : path or Scenario
        A YAML file, or what :func:`moesim.load_scenario` returned.
    overrides : iterable of str
        Laid over the file.
    limit : str or float, optional
        Memory of a GPU that may be used: ``"72GiB"``, or a number of bytes; the GPU's own if left out.

    Returns
    -------
    MemoryStudy

    Raises
    ------
    ScenarioError, UsageError
        If the file, an override or the limit is wrong.
    """
    try:
        most = parse_quantity(limit, "B") if isinstance(limit, str) else limit
    except ValueError as error:
        raise UsageError(f"limit: {error}") from None
    if most is not None and not most > 0:
        raise UsageError(f"limit is {most}; it must be more than 0 bytes")
    read = cache(read_trace)
    loaded = _loaded(scenario, overrides, read)
    if most is None:
        most = loaded.cluster.build().gpu.memory
    need = memory_need(loaded, rows_of_steps(loaded, read_trace=read), limit=most)
    told: Any = plain(memory_answer.answer(loaded, need))
    return MemoryStudy(name=told["name"], content=told, need=need)


def _loaded(scenario: str | os.PathLike[str] | Scenario, overrides: Iterable[str], read: Callable[..., Any]) -> Scenario:
    if isinstance(scenario, (str, os.PathLike)):
        return load_scenario(scenario, overrides, read_trace=read)
    if overrides := tuple(overrides):
        raise UsageError(f"the override {overrides[0]!r} comes too late for a scenario that is loaded; give it to load_scenario")
    return scenario
