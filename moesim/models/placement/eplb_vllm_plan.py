"""vLLM's planner: DeepSeek's in double precision, with the slots of what stays kept."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from moesim.base.errors import PluginError
from moesim.facts.arrays import Ints
from moesim.models.placement.eplb_plan import plan_global, plan_hierarchical
from moesim.models.placement.keep_slots import keep_slots
from moesim.models.placement.plan_map import PlacementPlan, plan_of, summed_loads

WHO = "placement 'eplb_vllm'"


def plan_vllm(loads: ArrayLike, *, slots: int, gpus: int, nodes: int = 1, groups: int = 1, old: Ints | None = None) -> PlacementPlan:
    """Plan as vLLM's default policy does.

    Parameters
    ----------
    loads : float[L, E] or float[steps, L, E]
        Loads; steps are summed.
    slots, gpus, nodes, groups : int
        As for :func:`~moesim.models.placement.eplb_plan.plan_eplb`; if the GPUs do not divide over the nodes, one node is assumed.
    old : int[L, S], optional
        Expert of each slot at present: what stays on its GPU then keeps its slot.

    Notes
    -----
    Source: vllm-project/vllm 0.33.0, ``vllm/distributed/eplb/policy/default.py``, ``DefaultEplbPolicy.rebalance_experts``.
    """
    weight = summed_loads(loads, WHO)
    experts = weight.shape[1]
    if nodes > 0 and gpus % nodes:
        nodes = 1
    if groups % nodes:
        plan = plan_global(weight, slots=slots, gpus=gpus, dtype=np.float64, who=WHO)
    else:
        plan = plan_hierarchical(weight, slots=slots, gpus=gpus, nodes=nodes, groups=groups, dtype=np.float64, who=WHO)
    if old is None:
        return plan
    if old.shape != plan.physical_to_logical_map.shape:
        raise PluginError(f"{WHO}: the present placement has shape {old.shape}, the new one {plan.physical_to_logical_map.shape}")
    return plan_of(keep_slots(plan.physical_to_logical_map, old, gpus), experts, gpus)
