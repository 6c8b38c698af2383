"""Hot experts on every rank."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from moesim.base.fields import Count, CountOrZero
from moesim.base.registry import register
from moesim.facts.arrays import Ints
from moesim.facts.contracts import Plan
from moesim.facts.placement import Placement
from moesim.facts.scenario import Setting
from moesim.models.placement.biased_plan import hot_experts_stay, plan_biased
from moesim.models.placement.group_sizes import group_sizes
from moesim.models.placement.periodic import Periodic
from moesim.models.placement.plan_map import summed_loads
from moesim.models.placement.simple_plans import experts_in_order


@register("placement", "biased")
@dataclass(frozen=True, slots=True, kw_only=True)
class Biased:
    """Keep the K = redundant // ep hottest experts on every rank and pack the others, heaviest first, into the remaining slots.

    With a dispatch that prefers the own rank, tokens of hot experts stay at home. A layer whose K hottest experts are still those that
    are everywhere is left alone, cold experts too. The run starts with experts in order, redundant slots holding experts 0, 1, 2 and on.

    Parameters
    ----------
    redundant : int
        Physical experts per layer beyond one for each logical expert; their memory is charged. With less than ``ep`` there is no hot
        expert, and the plan is that of ``greedy``. 0 by default.
    window : int
        Steps whose loads are summed; 1000 by default, as in SGLang and vLLM.
    interval : int
        Steps between plans; 1000 by default, as in SGLang.

    Notes
    -----
    Source: ROCm/ATOM, pull request 1210, ``atom/model_ops/eplb.py``, placement policy ``biased``.
    """

    redundant: CountOrZero = 0
    window: Count = 1000
    interval: Count = 1000

    def begin(self, setting: Setting) -> Plan:
        """Return the plan for one run.

        Raises
        ------
        PluginError
            If the slots do not divide over the ranks.
        """
        sizes = group_sizes(setting, self.redundant, "placement 'biased'")

        def rebalance(loads: Ints, present: Placement) -> Placement:
            weight = summed_loads(loads, "placement 'biased'")
            planned = plan_biased(weight, slots=sizes.slots, gpus=sizes.gpus).physical_to_logical_map
            stays = hot_experts_stay(weight, present.expert_of_slot, slots=sizes.slots, gpus=sizes.gpus)
            return Placement(expert_of_slot=np.where(stays[:, None], present.expert_of_slot, planned), rank_of_slot=present.rank_of_slot)

        return Periodic(
            start=sizes.placement(experts_in_order(sizes.experts, sizes.slots)),
            rebalance=rebalance,
            window=self.window,
            interval=self.interval,
            due=self.interval,
        )
