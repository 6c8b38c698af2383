"""vLLM's expert-parallel load balancer."""

from __future__ import annotations

from dataclasses import dataclass

from moesim.base.fields import Count, CountOrZero
from moesim.base.registry import register
from moesim.facts.arrays import Ints
from moesim.facts.contracts import Plan
from moesim.facts.placement import Placement
from moesim.facts.scenario import Setting
from moesim.models.placement.eplb_vllm_plan import plan_vllm
from moesim.models.placement.group_sizes import group_sizes
from moesim.models.placement.periodic import Periodic
from moesim.models.placement.simple_plans import experts_in_order


@register("placement", "eplb_vllm")
@dataclass(frozen=True, slots=True, kw_only=True)
class EplbVllm:
    """Rebalance as vLLM does: DeepSeek's plan, with what stays on a GPU kept in its slot, first after a quarter of the interval.

    Loads are compared in double precision. Hierarchical if the model's expert groups divide over the nodes, otherwise global. The run
    starts with experts in order, redundant slots holding experts 0, 1, 2 and on.

    Parameters
    ----------
    redundant : int
        ``num_redundant_experts``: physical experts per layer beyond one for each logical expert; their memory is charged. 0 by default.
    window : int
        ``window_size``: the last steps before a rebalance, whose loads are summed. 1000 by default.
    interval : int
        ``step_interval``: steps between rebalances. 3000 by default. vLLM starts its counter at three quarters, so that the first comes
        before step ``interval // 4``.

    Notes
    -----
    Source: vllm-project/vllm 0.33.0, ``EPLBConfig`` and ``vllm/distributed/eplb`` (``eplb_state.py``, ``policy/default.py``).
    """

    redundant: CountOrZero = 0
    window: Count = 1000
    interval: Count = 3000

    def begin(self, setting: Setting) -> Plan:
        """Return the plan for one run.

        Raises
        ------
        PluginError
            If the slots do not divide over the ranks.
        """
        sizes = group_sizes(setting, self.redundant, "placement 'eplb_vllm'")

        def rebalance(loads: Ints, present: Placement) -> Placement:
            old = present.expert_of_slot
            return plan_vllm(loads, slots=sizes.slots, gpus=sizes.gpus, nodes=sizes.nodes, groups=sizes.groups, old=old).placement

        return Periodic(
            start=sizes.placement(experts_in_order(sizes.experts, sizes.slots)),
            rebalance=rebalance,
            window=self.window,
            interval=self.interval,
            due=max(1, self.interval // 4),
        )
