"""Which runs a variant is played in: one per seed, or one along the blocks of a recording."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import numpy as np

from moesim.desk.compare_variants import Variant
from moesim.desk.plain_data import plain_data
from moesim.desk.study_cells import cell_from
from moesim.facts.arrays import Ints
from moesim.facts.contracts import Learn
from moesim.facts.scenario import Scenario, Setting
from moesim.facts.trace import Trace
from moesim.models.source.deal_tokens import recorded_steps
from moesim.models.source.recorded import Recorded
from moesim.models.stages import setting_of
from moesim.study.cell import Answer, Cell
from moesim.study.played import Played

SEEDS, BLOCKS = "seeds", "blocks"
DRAWN_FROM = ("model", "parallel", "workload", "routing")
"""The sections that a source can see; and the cluster's number of GPUs."""

TABLES = ("steps", "experts", "ranks", "gpus", "traffic", "timeline")
"""What the first run of each variant leaves for the report."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Runs:
    """The runs of one variant.

    Parameters
    ----------
    variant : Variant
    kind : str
        ``seeds``: independent runs with seeds of their own. ``blocks``: one run, for a recording gives the same tokens whatever the seed.
    scenarios : tuple of Scenario
        One per run.
    independent : int or None
        Of ``blocks``: how many steps the recording has tokens for before they come again.
    draws, learns
        As in :class:`moesim.study.played.Played`.
    """

    variant: Variant
    kind: str
    scenarios: tuple[Scenario, ...]
    independent: int | None
    draws: str
    learns: bool
    block_of: Callable[[Ints], Ints] | None

    @property
    def name(self) -> str:
        """Of the variant."""
        return self.variant.name

    def cells(self) -> list[Cell]:
        """Return one cell per run; the first keeps the tables of the report."""
        return [
            cell_from(
                scenario,
                name=self.name if len(self.scenarios) == 1 else f"{self.name}, seed {scenario.seed}",
                axes={"variant": self.name, "seed": scenario.seed},
                tables=() if index else TABLES,
            )
            for index, scenario in enumerate(self.scenarios)
        ]

    def played(self, answers: Iterable[Answer]) -> Played | None:
        """Return the variant with those of its runs that were finished, None if none was."""
        done = [(scenario.seed, answer) for scenario, answer in zip(self.scenarios, answers, strict=True) if answer.done]
        if not done:
            return None
        return Played(
            name=self.name,
            answers=tuple(answer for _, answer in done),
            seeds=tuple(seed for seed, _ in done),
            serial=len(self.scenarios) == 1,
            blocks=self._blocks(done[0][1]),
            draws=self.draws,
            learns=self.learns,
        )

    def _blocks(self, answer: Answer) -> Ints:
        if self.block_of is not None:
            return self.block_of(answer.steps)
        if answer.tables is not None and "steps" in answer.tables and "repeats" in answer.tables["steps"].columns:
            repeats = answer.tables["steps"]["repeats"]
            return np.where(repeats < 0, answer.steps, repeats)
        return answer.steps


def runs_of(variant: Variant, replicates: int, read_trace: Callable[..., Trace]) -> Runs:
    """Return the runs that compare a variant.

    Parameters
    ----------
    variant : Variant
    replicates : int
        How many seeds; of a recording that is replayed in order, how many times the measured steps of the scenario, as far as it goes.
    read_trace : callable
        Reads recordings.

    Notes
    -----
    A recording that is dealt in order (or as it was recorded) gives the same tokens under every seed, so seeds would be copies of
    each other. It is cut instead: a block is the tokens of one step, and as many steps are played as there are new blocks, up to the
    number that the replicates ask for and no fewer than the scenario says. Recorded conversations are drawn at random, by seed; their
    intervals speak of these conversations and not of those that were never recorded.
    """
    scenario = variant.scenario
    setting = setting_of(scenario, read_trace)
    found = blocks_of(scenario, setting)
    if found is None:
        scenarios = tuple(replace(scenario, seed=scenario.seed + index) for index in range(replicates))
        independent, block_of = None, None
    else:
        independent, block_of = found
        wanted = scenario.warmup + replicates * (scenario.steps - scenario.warmup)
        scenarios = (replace(scenario, steps=max(scenario.steps, min(wanted, independent))),)
    return Runs(
        variant=variant,
        kind=SEEDS if found is None else BLOCKS,
        scenarios=scenarios,
        independent=independent,
        draws=_draws(scenario, setting),
        learns=isinstance(scenario.policy.gate.begin(setting), Learn),
        block_of=block_of,
    )


def blocks_of(scenario: Scenario, setting: Setting) -> tuple[int, Callable[[Ints], Ints]] | None:
    """Return how many steps a recording has tokens for, and which of these blocks each step has; None if tokens are drawn by seed.

    Parameters
    ----------
    scenario : Scenario
    setting : Setting
        With the reader of recordings.

    Notes
    -----
    N tokens dealt in order to n a step are ``max(1, N // n)`` blocks. Where n does not divide N, the second reading of a recording cuts it
    elsewhere; such a step counts to the block in which its first token lies.
    """
    source = scenario.routing
    if not isinstance(source, Recorded) or source.deal == "conversations":
        return None
    trace = setting.read_trace(source.trace) if source.task is None else setting.read_trace(source.trace, task=source.task)
    if trace.counts is not None or source.deal == "recorded":
        count = len(trace.counts) if trace.counts is not None else len(recorded_steps(trace, setting.gpus)[0])
        return count, lambda steps: np.asarray(steps % count)
    need, have = setting.gpus * scenario.workload.tokens_per_gpu, trace.tokens
    count = max(1, have // need)
    return count, lambda steps: np.minimum(steps * need % have // need, count - 1)


def _draws(scenario: Scenario, setting: Setting) -> str:
    data = plain_data(scenario, Scenario, lambda path: path)
    known = {**{name: data[name] for name in DRAWN_FROM}, "gate": data["policy"]["gate"], "gpus": setting.gpus}
    return hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()
