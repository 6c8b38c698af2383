"""Planners that need no theory: in order, dealt out, heaviest first, the hottest everywhere."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from moesim.facts.arrays import Ints
from moesim.models.placement.greedy_steps import pack_heaviest_first, replicate_experts
from moesim.models.placement.plan_map import PlacementPlan, check_sizes, plan_of, summed_loads


def experts_in_order(experts: int, slots: int) -> Ints:
    """Return int[S]: experts 0 to E - 1, then from 0 again, the layout with which vLLM and SGLang start.

    Source: vllm-project/vllm, ``EplbState.build_initial_global_physical_to_logical_map``; sgl-project/sglang,
    ``ExpertLocationMetadata.init_trivial``.
    """
    return np.arange(slots) % experts


def plan_contiguous(loads: ArrayLike, *, slots: int, gpus: int, nodes: int = 1, groups: int = 1) -> PlacementPlan:
    """Plan experts in order, an equal block to each GPU, redundant slots being experts 0, 1, 2 and on; loads only give the sizes."""
    weight = summed_loads(loads, "placement 'contiguous'")
    layers, experts = weight.shape
    check_sizes("placement 'contiguous'", experts=experts, slots=slots, gpus=gpus, nodes=nodes, groups=groups)
    return plan_of(np.tile(experts_in_order(experts, slots), (layers, 1)), experts, gpus)


def plan_round_robin(loads: ArrayLike, *, slots: int, gpus: int, nodes: int = 1, groups: int = 1) -> PlacementPlan:
    """Plan experts dealt to the GPUs one by one, redundant slots being experts 0, 1, 2 and on; loads only give the sizes."""
    weight = summed_loads(loads, "placement 'round_robin'")
    layers, experts = weight.shape
    check_sizes("placement 'round_robin'", experts=experts, slots=slots, gpus=gpus, nodes=nodes, groups=groups)
    dealt = experts_in_order(experts, slots).reshape(slots // gpus, gpus).T.ravel()
    return plan_of(np.tile(dealt, (layers, 1)), experts, gpus)


def plan_greedy(loads: ArrayLike, *, slots: int, gpus: int, nodes: int = 1, groups: int = 1) -> PlacementPlan:
    """Plan the heaviest first, each to the lightest GPU that has a free slot (LPT); redundant slots go to the hottest experts before.

    Parameters
    ----------
    loads : float[L, E] or float[steps, L, E]
        Loads; steps are summed.
    slots, gpus, nodes, groups : int
        As for :func:`~moesim.models.placement.eplb_plan.plan_eplb`; nodes and groups make no difference.

    Raises
    ------
    PluginError
        If sizes do not fit.

    Notes
    -----
    Source: the LPT rule (longest processing time first) of Graham, "Bounds on multiprocessing timing anomalies", SIAM J. Appl. Math. 17,
    1969, with equally many slots on every GPU.
    """
    who = "placement 'greedy'"
    weight = summed_loads(loads, who)
    layers, experts = weight.shape
    check_sizes(who, experts=experts, slots=slots, gpus=gpus, nodes=nodes, groups=groups)
    replica, count = replicate_experts(weight, slots)
    gpu, position = pack_heaviest_first(np.take_along_axis(weight / count, replica, axis=1), gpus, slots // gpus)
    expert_of_slot = np.empty_like(replica)
    np.put_along_axis(expert_of_slot, gpu * (slots // gpus) + position, replica, axis=1)
    return plan_of(expert_of_slot.reshape(layers, slots), experts, gpus)
