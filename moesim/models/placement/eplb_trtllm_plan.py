"""The planner of TensorRT-LLM's expert-parallel load balancer."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from moesim.models.placement.greedy_steps import pack_heaviest_first, replicate_experts
from moesim.models.placement.plan_map import PlacementPlan, check_sizes, plan_of, summed_loads

WHO = "placement 'eplb_trtllm'"


def plan_trtllm(loads: ArrayLike, *, slots: int, gpus: int, nodes: int = 1, groups: int = 1) -> PlacementPlan:
    """Plan as TensorRT-LLM does: replicate the hottest, pack the heaviest first, no hierarchy.

    Differs from DeepSeek's global plan where loads are equal: the redundant slot goes to the expert of highest number, and replicas are
    packed in the order of load, then of expert. A layer without load is spread evenly, its first experts getting the remaining slots.
    Nodes and groups are checked, and make no difference.

    Notes
    -----
    Source: NVIDIA/TensorRT-LLM, ``cpp/tensorrt_llm/runtime/moeLoadBalancer/moeLoadBalancer.cpp``, ``doReplication`` and ``doPlacement``.
    """
    weight = summed_loads(loads, WHO)
    layers, experts = weight.shape
    check_sizes(WHO, experts=experts, slots=slots, gpus=gpus, nodes=nodes, groups=groups)
    replica, count = replicate_experts(weight, slots, last_of_equals=True)
    idle = np.flatnonzero(weight.sum(axis=1) == 0)
    base, more = divmod(slots, experts)
    count[idle] = base + (np.arange(experts) < more)
    replica[idle] = np.repeat(np.arange(experts), count[idle[0]]) if idle.size else 0
    replica.sort(axis=1)  # equal loads are then packed in the order of experts
    share = np.take_along_axis(weight / count, replica, axis=1)
    gpu, position = pack_heaviest_first(share, gpus, slots // gpus)
    expert_of_slot = np.empty_like(replica)
    np.put_along_axis(expert_of_slot, gpu * (slots // gpus) + position, replica, axis=1)
    return plan_of(expert_of_slot.reshape(layers, slots), experts, gpus)
