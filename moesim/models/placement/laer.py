"""LAER-MoE."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np

from moesim.base.fields import BytesPerSecond, Choice, Count, Flag, Seconds
from moesim.base.registry import register
from moesim.facts.arrays import Floats, Ints
from moesim.facts.contracts import Plan
from moesim.facts.model import DTYPE_BYTES
from moesim.facts.scenario import Setting
from moesim.models.placement.group_sizes import nodes_of_group
from moesim.models.placement.laer_plan import LaerCost, check_batch_sizes, every_expert_in_turn, plan_laer
from moesim.models.placement.relayout import Relayout, placement_of
from moesim.models.placement.static import Once

WHO = "placement 'laer'"


@register("placement", "laer")
@dataclass(frozen=True, slots=True, kw_only=True)
class Laer:
    """Restore experts from shards on every rank, in every step those that the load calls for, as LAER-MoE does.

    Every expert's weights are cut into as many shards as the group has ranks; before a layer computes, each rank gathers
    ``slots_per_rank`` experts from all others, and in training scatters their gradients back. Which ones is planned for each layer:
    replicas in proportion to load, or equally many, whichever is predicted cheaper (:func:`~moesim.models.placement.laer_plan.plan_laer`).
    A token's copies go to replicas on its own node, evenly, and elsewhere only if there are none, so the scenario's dispatch is not asked.

    Parameters
    ----------
    slots_per_rank : int
        Experts that a rank restores and computes, ``C_e``; 2 by default, as in the published runs with 8 experts. Memory is charged for
        so many whole experts per rank, in training with optimizer states, which LAER keeps for its shards only.
    plan_from : str
        ``last``: from the routes of the step before, planned beside it, as LAER does; the first step has experts in turn. ``present``:
        from the batch at hand.
    planning_time : s
        Time that a plan takes, charged to each layer with ``plan_from: present``; 0.5 ms by default, published for 64 GPUs.
    row_time : s
        Forward time of a row in an expert that the prediction assumes; 1.484375 us by default, for A100 as in LAER's configuration.
    intra, inter : B/s
        Bandwidths that it assumes within and between nodes; 216.269 and 88.9539 GB/s by default.
    recompute : bool
        It counts a fourth computation per step: activations are recomputed.

    Notes
    -----
    Source: LAER-MoE, arXiv:2602.11686; PKU-DAIR/Hetu-Galvatron, branch laer-moe at 27042374b330, ``csrc/greedy_balancer.cpp`` and
    ``galvatron/core/runtime/moe/prefetch``.
    """

    slots_per_rank: Count = 2
    plan_from: Annotated[str, Choice(("last", "present"))] = "last"
    planning_time: Seconds = 0.5e-3
    row_time: Seconds = 1.484375e-6
    intra: BytesPerSecond = 216.269e9
    inter: BytesPerSecond = 88.9539e9
    recompute: Flag = True

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
        row = model.dispatch_width * DTYPE_BYTES[model.activation_dtype]
        cost = LaerCost(compute=self.row_time, intra=self.intra, inter=self.inter, row=row, passes=4 if self.recompute else 3)

        def planned(rows: Ints, present: Ints) -> Ints:  # noqa: ARG001 - every expert can be restored anywhere
            return plan_laer(rows, slots=self.slots_per_rank, nodes=nodes, cost=cost)

        return Relayout(
            ranks=ranks,
            nodes=nodes,
            start=start,
            home=Once(placement_of(start, len(model.moe_layers))),
            planned=planned,
            moves=restored_from_shards,
            from_last=self.plan_from == "last",
            seconds=self.planning_time,
            who=WHO,
        )


def restored_from_shards(before: Ints, now: Ints) -> tuple[Floats, Floats]:  # noqa: ARG001 - shards do not depend on the layout
    """Return what each rank gathers from each other, float[W, W], and the gradients that it scatters back, in experts.

    Parameters
    ----------
    before, now : int[W, E]
        Replicas of each expert on each rank.
    """
    ranks = len(now)
    distinct = np.count_nonzero(now, axis=1)
    moved = np.tile(distinct / ranks, (ranks, 1))
    np.fill_diagonal(moved, 0.0)
    return moved, moved.T.copy()
