"""Least-Loaded Expert Parallelism."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np

from moesim.base.fields import Choice, CountOrZero, Number, Positive, Seconds
from moesim.base.registry import register
from moesim.facts.arrays import Ints
from moesim.facts.batch_plan import BatchPlan
from moesim.facts.contracts import Plan, View
from moesim.facts.placement import Placement
from moesim.facts.routing import Kept
from moesim.facts.scenario import Setting
from moesim.models.placement.batch_rows import common_layout, deal_rows
from moesim.models.placement.llep_plan import plan_llep, rows_by_source
from moesim.models.placement.static import Once, experts_per_rank, same_in_all_layers

WHO = "placement 'llep'"


@register("placement", "llep")
@dataclass(frozen=True, slots=True, kw_only=True)
class Llep:
    """Send what is too much for an expert's own rank to the least loaded ranks, with the expert's weights, anew for every batch.

    Experts live in order, an equal block on each rank. A layer whose load is even enough is left alone. Otherwise every rank takes at
    most ``alpha`` times the mean as far as possible (:func:`~moesim.models.placement.llep_plan.plan_llep`); each part of an expert on
    another rank costs one transfer of its weights, and in training of its gradients back. The plan says which replica computes which
    rows (those of lower source ranks first), so the scenario's dispatch is not asked.

    Parameters
    ----------
    alpha : float
        ``max_tokens_factor``, 1.1 by default as in the code; the paper's runs use 1.
    least_rows : int
        ``min_tokens_per_gemm``: no smaller part is split off unless it is all that is left. 1024 by default.
    threshold : float
        A layer of a batch is planned only if its most loaded rank has at least so many times the mean. 1.3 by default, as the README and
        the paper set it; 1 plans always.
    gate : str
        Compare loads of ``ranks``, as the code does, or of ``experts``, as the paper says.
    planning_time : s
        Time that a plan takes, charged to each layer that is planned. Not published: 0 by default.

    Notes
    -----
    Source: SalesforceAIResearch/LeastLoadedEP at 034974620fc7, ``llep/gpt_oss_llep.py``.
    """

    alpha: Positive = 1.1
    least_rows: CountOrZero = 1024
    threshold: Annotated[float, Number(1.0)] = 1.3
    gate: Annotated[str, Choice(("ranks", "experts"))] = "ranks"
    planning_time: Seconds = 0.0

    def begin(self, setting: Setting) -> Plan:
        """Return the plan for one run, which also plans batches.

        Raises
        ------
        PluginError
            If the experts do not divide over the ranks.
        """
        experts_per_rank(setting, WHO)
        return LlepRun(self, setting.parallel.ep, Once(same_in_all_layers(setting, np.arange(setting.model.experts))))


@dataclass(slots=True)
class LlepRun:
    """LLEP in one run."""

    policy: Llep
    ranks: int
    home: Once

    def __call__(self, view: View) -> Placement | None:
        """Return where the weights live, once."""
        return self.home(view)

    def for_batch(self, kept: Kept, *, step: int, moe_layer: int) -> BatchPlan:  # noqa: ARG002 - the contract of the slot
        """Return the plan of one layer of one batch."""
        ranks = self.ranks
        rows = kept.routing.counts + kept.padding
        gpus, experts = rows.shape
        held = np.zeros((gpus // ranks, ranks, experts), dtype=np.int64)
        held[:, np.arange(experts) // (experts // ranks), np.arange(experts)] = 1
        moved = np.zeros((gpus, gpus))
        takes = np.zeros((gpus, ranks, experts), dtype=np.int64)  # rows of each source for each expert on each rank
        planned = False
        for group in range(gpus // ranks):
            of_group = rows[group * ranks : (group + 1) * ranks]
            if self.even_enough(of_group.sum(axis=0)):
                owner = np.arange(experts) // (experts // ranks)
                takes[group * ranks : (group + 1) * ranks, owner, np.arange(experts)] = of_group
                continue
            planned = True
            plan = plan_llep(of_group.sum(axis=0), ranks=ranks, alpha=self.policy.alpha, least_rows=self.policy.least_rows)
            expert, rank = plan.parts[:, 0], plan.parts[:, 1]
            mine = takes[group * ranks : (group + 1) * ranks]
            np.add.at(mine, (np.arange(ranks)[:, None], rank, expert), rows_by_source(of_group, plan))
            helpers = np.unique(plan.transfers[:, :3], axis=0)
            held[group, helpers[:, 2], helpers[:, 0]] = 1
            np.add.at(moved, (group * ranks + plan.transfers[:, 1], group * ranks + plan.transfers[:, 2]), 1.0)
        expert_of_slot, rank_of_slot, _ = common_layout(list(held), ranks)
        holds = np.repeat(expert_of_slot, ranks, axis=0)
        bound = np.where(holds < 0, 0, takes[np.arange(gpus)[:, None], rank_of_slot, np.maximum(holds, 0)])
        return BatchPlan(
            expert_of_slot=expert_of_slot,
            rank_of_slot=rank_of_slot,
            assignment=deal_rows(kept, bound, expert_of_slot, rank_of_slot, ranks=ranks, who=WHO),
            moved=moved,
            returned=moved.T,
            seconds=self.policy.planning_time if planned else 0.0,
        )

    def even_enough(self, counts: Ints) -> bool:
        """Tell whether a layer with int[E] rows per expert is left alone."""
        loads = counts if self.policy.gate == "experts" else counts.reshape(self.ranks, -1).sum(axis=1)
        return bool(loads.max() < self.policy.threshold * loads.mean()) or counts.sum() == 0
