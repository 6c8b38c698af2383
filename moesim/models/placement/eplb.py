"""DeepSeek's expert-parallel load balancer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from moesim.base.fields import Choice, Count, CountOrZero
from moesim.base.registry import register
from moesim.facts.arrays import Ints
from moesim.facts.contracts import Plan
from moesim.facts.placement import Placement
from moesim.facts.scenario import Setting
from moesim.models.placement.eplb_plan import inside_nodes, plan_global, plan_hierarchical
from moesim.models.placement.group_sizes import group_sizes
from moesim.models.placement.periodic import Periodic
from moesim.models.placement.plan_map import summed_loads
from moesim.models.placement.simple_plans import experts_in_order

WHO = "placement 'eplb'"


@register("placement", "eplb")
@dataclass(frozen=True, slots=True, kw_only=True)
class Eplb:
    """Replicate hot experts and pack the replicas evenly, as DeepSeek's EPLB does, every ``interval`` steps from the last ``window``.

    The redundant slots go, one by one, to the expert whose replicas carry most; then replicas go, heaviest first, to the lightest rank
    with a free slot. Hierarchically, groups of experts are packed to nodes first, and both steps happen inside each node. A replica
    counts as its expert's load divided by the replicas. The run starts with experts in order, redundant slots holding experts 0, 1, 2
    and on, as vLLM and SGLang do: EPLB itself has no start. It has no memory of the placement before, so most slots change every time.

    Parameters
    ----------
    redundant : int
        Physical experts per layer beyond one for each logical expert; their memory is charged. EPLB states no default: 0, as in vLLM and
        SGLang. DeepSeek-V3 used 32 of 256 in prefill.
    window : int
        Steps whose loads are summed; 1000 by default, as in SGLang and vLLM: EPLB itself is given loads.
    interval : int
        Steps between plans; 1000 by default, as in SGLang. DeepSeek rebalances prefill about every ten minutes.
    algorithm : str
        ``global``, ``hierarchical``, or ``auto``: hierarchical if the model's expert groups divide over the nodes of an expert-parallel
        group, as EPLB decides.

    Notes
    -----
    Source: deepseek-ai/EPLB at d52c72d, ``eplb.py``, ``rebalance_experts``; DeepSeek-V3, arXiv:2412.19437, section 3.4.
    """

    redundant: CountOrZero = 0
    window: Count = 1000
    interval: Count = 1000
    algorithm: Annotated[str, Choice(("auto", "global", "hierarchical"))] = "auto"

    def begin(self, setting: Setting) -> Plan:
        """Return the plan for one run.

        Raises
        ------
        PluginError
            If the slots do not divide over the ranks, or ``hierarchical`` is asked for and the groups do not divide over the nodes.
        """
        sizes = group_sizes(setting, self.redundant, WHO)
        hierarchical = inside_nodes(sizes, WHO, self.algorithm)

        def rebalance(loads: Ints, present: Placement) -> Placement:  # noqa: ARG001 - EPLB has no memory
            weight = summed_loads(loads, WHO)
            if hierarchical:
                plan = plan_hierarchical(weight, slots=sizes.slots, gpus=sizes.gpus, nodes=sizes.nodes, groups=sizes.groups)
            else:
                plan = plan_global(weight, slots=sizes.slots, gpus=sizes.gpus)
            return plan.placement

        return Periodic(
            start=sizes.placement(experts_in_order(sizes.experts, sizes.slots)),
            rebalance=rebalance,
            window=self.window,
            interval=self.interval,
            due=self.interval,
        )
