"""The heaviest expert to the lightest rank."""

from __future__ import annotations

from dataclasses import dataclass

from moesim.base.fields import Count, CountOrZero
from moesim.base.registry import register
from moesim.facts.arrays import Ints
from moesim.facts.contracts import Plan
from moesim.facts.placement import Placement
from moesim.facts.scenario import Setting
from moesim.models.placement.group_sizes import group_sizes
from moesim.models.placement.periodic import Periodic
from moesim.models.placement.simple_plans import experts_in_order, plan_greedy


@register("placement", "greedy")
@dataclass(frozen=True, slots=True, kw_only=True)
class Greedy:
    """Put the heaviest expert on the lightest rank, again and again (LPT), every ``interval`` steps from the loads of the last ``window``.

    All ranks hold equally many experts. Redundant slots first go, one by one, to the expert whose replicas carry most. The run starts with
    experts in order, redundant slots holding experts 0, 1, 2 and on.

    Parameters
    ----------
    redundant : int
        Physical experts per layer beyond one for each logical expert; their memory is charged. 0 by default, as in vLLM and SGLang.
    window : int
        Steps whose loads are summed; 1000 by default, as in SGLang and vLLM.
    interval : int
        Steps between plans; 1000 by default, as in SGLang (``eplb_rebalance_num_iterations``).

    Notes
    -----
    Source: the LPT rule of Graham, SIAM J. Appl. Math. 17, 1969. Differs from ``eplb`` by ignoring nodes and expert groups.
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
        sizes = group_sizes(setting, self.redundant, "placement 'greedy'")

        def rebalance(loads: Ints, present: Placement) -> Placement:  # noqa: ARG001 - it looks at loads only
            return plan_greedy(loads, slots=sizes.slots, gpus=sizes.gpus).placement

        return Periodic(
            start=sizes.placement(experts_in_order(sizes.experts, sizes.slots)),
            rebalance=rebalance,
            window=self.window,
            interval=self.interval,
            due=self.interval,
        )
