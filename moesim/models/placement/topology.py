"""Experts near the tokens that want them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np

from moesim.base.fields import Choice, Count, CountOrZero, NotNegative
from moesim.base.registry import register
from moesim.facts.arrays import Floats
from moesim.facts.contracts import Plan, View
from moesim.facts.placement import Placement
from moesim.facts.scenario import Setting
from moesim.models.placement.affinity import recent_steps
from moesim.models.placement.group_sizes import GroupSizes, group_sizes
from moesim.models.placement.simple_plans import experts_in_order
from moesim.models.placement.topology_plan import plan_topology

WHO = "placement 'topology'"


@register("placement", "topology")
@dataclass(frozen=True, slots=True, kw_only=True)
class Topology:
    """Place replicas so that few routes leave their node, without making any rank too heavy, every ``interval`` steps.

    Starts from the plan of ``greedy`` and exchanges pairs of replicas as long as fewer routes lack a replica on their own node
    (:func:`~moesim.models.placement.topology_plan.plan_topology`). It pays with a dispatch that prefers the own node (``static``); one that
    splits evenly sends tokens past a near replica. The run starts with experts in order, redundant slots holding experts 0, 1, 2 and on.

    Parameters
    ----------
    redundant : int
        Physical experts per layer beyond one for each logical expert; their memory is charged. 0 by default.
    slack : float
        How much heavier than under ``greedy`` the heaviest rank of a layer may be, by the loads planned from. 0.1 by default, ours.
    sources : str
        ``recent``: where the routes of the last ``look_back`` steps came from. ``even``: as many from every node; then only replicas are
        spread over the nodes.
    look_back : int
        Steps whose sources are counted; 10 by default, ours.
    window, interval : int
        Steps whose loads are summed, and steps between plans; 1000 and 1000 by default, as in SGLang.

    Notes
    -----
    The method is ours. SGLang's planner of this purpose (``eplb_algorithms/topology_aware.py``) knows neither replicas nor a limit to the
    load.
    """

    redundant: CountOrZero = 0
    slack: NotNegative = 0.1
    sources: Annotated[str, Choice(("recent", "even"))] = "recent"
    look_back: Count = 10
    window: Count = 1000
    interval: Count = 1000

    def begin(self, setting: Setting) -> Plan:
        """Return the plan for one run.

        Raises
        ------
        PluginError
            If the slots do not divide over the ranks.
        """
        sizes = group_sizes(setting, self.redundant, WHO)
        return _Nearby(self, sizes, look_back=self.look_back if self.sources == "recent" else 0, due=self.interval)


@dataclass(slots=True)
class _Nearby:
    """The plan of one run."""

    policy: Topology
    sizes: GroupSizes
    look_back: int
    due: int

    def __call__(self, view: View) -> Placement | None:
        """Return experts in order first, then a new plan whenever one is due."""
        policy, sizes = self.policy, self.sizes
        if view.placement is None:
            return sizes.placement(experts_in_order(sizes.experts, sizes.slots))
        if view.step < self.due or not len(view.loads):
            return None
        self.due += (view.step - self.due) // policy.interval * policy.interval + policy.interval
        by_node = self.sources(view) if policy.sources == "recent" else None
        loads = view.loads[-policy.window :]
        return plan_topology(loads, slots=sizes.slots, gpus=sizes.gpus, nodes=sizes.nodes, by_node=by_node, slack=policy.slack).placement

    def sources(self, view: View) -> Floats:
        """Return float[L, nodes, E], routes of the last steps by the node of a group where they start, over all groups."""
        sizes = self.sizes
        out = np.zeros((sizes.layers, sizes.nodes, sizes.experts))
        for step in recent_steps(view, WHO):
            for layer, routing in enumerate(step):
                node = np.arange(routing.gpus) % sizes.gpus // (sizes.gpus // sizes.nodes)
                np.add.at(out[layer], node, routing.counts)
        return out
