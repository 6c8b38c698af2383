"""FlexMoE."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np

from moesim.base.fields import Choice, Count, Seconds
from moesim.base.registry import register
from moesim.facts.arrays import Floats, Ints
from moesim.facts.contracts import Plan
from moesim.facts.scenario import Setting
from moesim.models.placement.flexmoe_plan import plan_flexmoe
from moesim.models.placement.group_sizes import nodes_of_group
from moesim.models.placement.laer_plan import check_batch_sizes, every_expert_in_turn
from moesim.models.placement.migration import copies_needed
from moesim.models.placement.relayout import Relayout, placement_of
from moesim.models.placement.static import Once

WHO = "placement 'flexmoe'"


@register("placement", "flexmoe")
@dataclass(frozen=True, slots=True, kw_only=True)
class FlexMoe:
    """Give the most loaded expert a replica more and the least loaded one less, step by step, as FlexMoE does.

    Every rank has ``slots_per_rank`` slots; the run starts with experts in turn. In every step and layer up to ``rounds`` exchanges are
    made as long as they help (:func:`~moesim.models.placement.flexmoe_plan.plan_flexmoe`); weights move only for what is new on a rank, and
    in training the replicas of an expert add up their gradients in a ring. A token's copies go to replicas on its own node, evenly,
    and elsewhere only if there are none, so the scenario's dispatch is not asked.

    Parameters
    ----------
    slots_per_rank : int
        Experts of a layer that a rank holds; their memory is charged. 2 by default, as in LAER-MoE's runs with 8 experts.
    rounds : int
        Exchanges per step and layer at most; 10 by default (``max_iteration``).
    plan_from : str
        ``last``: from the routes of the step before, planned beside it, as the baseline of LAER-MoE does. ``present``: from the batch at
        hand.
    planning_time : s
        Time that a plan takes, charged to each layer with ``plan_from: present``. Not published: 0 by default.

    Notes
    -----
    Source: Nie et al., "FlexMoE", SIGMOD 2023 (no code published); PKU-DAIR/Hetu-Galvatron, branch laer-moe at 27042374b330,
    ``galvatron/core/runtime/moe/prefetch/solver.py``, ``flexmoe_method``.
    """

    slots_per_rank: Count = 2
    rounds: Count = 10
    plan_from: Annotated[str, Choice(("last", "present"))] = "last"
    planning_time: Seconds = 0.0

    def begin(self, setting: Setting) -> Plan:
        """Return the plan for one run, which also plans batches.

        Raises
        ------
        PluginError
            If the slots cannot hold the experts.
        """
        model, ranks, nodes = setting.model, setting.parallel.ep, nodes_of_group(setting)
        check_batch_sizes(WHO, ranks=ranks, experts=model.experts, slots=self.slots_per_rank, nodes=nodes)
        start = every_expert_in_turn(ranks, model.experts, self.slots_per_rank)

        def planned(rows: Ints, present: Ints) -> Ints:
            return plan_flexmoe(rows, present, nodes=nodes, rounds=self.rounds)

        return Relayout(
            ranks=ranks,
            nodes=nodes,
            start=start,
            home=Once(placement_of(start, len(model.moe_layers))),
            planned=planned,
            moves=new_replicas,
            from_last=self.plan_from == "last",
            seconds=self.planning_time,
            who=WHO,
        )


def new_replicas(before: Ints, now: Ints) -> tuple[Floats, Floats]:
    """Return the weights that move, float[W, W], and the gradients that replicas exchange, in experts.

    An expert on r ranks adds up its gradients in a ring of these ranks, in which each sends ``2 (r - 1) / r`` of them to the next.

    Parameters
    ----------
    before, now : int[W, E]
        Replicas of each expert on each rank.
    """
    ranks, experts = now.shape
    every = np.tile(np.arange(experts), ranks)
    rank = np.repeat(np.arange(ranks), experts)
    copies = copies_needed(np.where(before.ravel() > 0, every, -1), np.where(now.ravel() > 0, every, -1), rank)
    moved, returned = np.zeros((ranks, ranks)), np.zeros((ranks, ranks))
    np.add.at(moved, (copies[:, 0], copies[:, 1]), 1.0)
    for expert in np.flatnonzero((now > 0).sum(axis=0) > 1).tolist():
        holders = np.flatnonzero(now[:, expert])
        np.add.at(returned, (holders, np.roll(holders, -1)), 2.0 * (len(holders) - 1) / len(holders))
    return moved, returned
