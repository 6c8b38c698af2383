"""vLLM's expert-parallel load balancer."""

from __future__ import annotations

from dataclasses import dataclass

from moesim.base.fields import Count, CountOrZero, Efficiency
from moesim.base.registry import register
from moesim.facts.arrays import Ints
from moesim.facts.contracts import Plan
from moesim.facts.placement import Placement
from moesim.facts.scenario import Setting
from moesim.models.placement.eplb_vllm_plan import plan_vllm
from moesim.models.placement.group_sizes import group_sizes
from moesim.models.placement.periodic import Periodic
from moesim.models.placement.simple_plans import experts_in_order
from moesim.models.placement.utilisation import relative_gain


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
    least_gain : float or None
        No rebalance unless max / mean of the ranks' loads over the window, all layers together, falls by this share of itself. vLLM has
        0.05 on ROCm, in ``sync`` rebalances, and no such rule elsewhere: none by default.

    Notes
    -----
    Source: vllm-project/vllm 0.33.0, ``EPLBConfig`` and ``vllm/distributed/eplb`` (``eplb_state.py``, ``policy/default.py``).
    """

    redundant: CountOrZero = 0
    window: Count = 1000
    interval: Count = 3000
    least_gain: Efficiency | None = None

    def begin(self, setting: Setting) -> Plan:
        """Return the plan for one run.

        Raises
        ------
        PluginError
            If the slots do not divide over the ranks.
        """
        sizes = group_sizes(setting, self.redundant, "placement 'eplb_vllm'")

        def rebalance(loads: Ints, present: Placement) -> Placement | None:
            old = present.expert_of_slot
            plan = plan_vllm(loads, slots=sizes.slots, gpus=sizes.gpus, nodes=sizes.nodes, groups=sizes.groups, old=old)
            if self.least_gain is not None and relative_gain(loads, present, plan.placement, sizes.gpus) < self.least_gain:
                return None
            return plan.placement

        return Periodic(
            start=sizes.placement(experts_in_order(sizes.experts, sizes.slots)),
            rebalance=rebalance,
            window=self.window,
            interval=self.interval,
            due=max(1, self.interval // 4),
        )
