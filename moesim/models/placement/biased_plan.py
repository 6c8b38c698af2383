"""The hottest experts on every rank, the others once."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from moesim.models.placement.greedy_steps import pack_heaviest_first, replicate_experts
from moesim.models.placement.plan_map import PlacementPlan, check_sizes, plan_of, summed_loads
from moesim.models.placement.simple_plans import plan_greedy

WHO = "placement 'biased'"


def plan_biased(loads: ArrayLike, *, slots: int, gpus: int, nodes: int = 1, groups: int = 1) -> PlacementPlan:
    """Plan the K hottest experts onto every GPU, K = (slots - experts) // gpus, and pack the others heaviest first into the rest.

    Slots that this leaves over (when the redundant slots are no multiple of the GPUs) go to the hottest of the others. With fewer
    redundant slots than GPUs there is no K: the plan is then the greedy one. The hot experts take the first slots of each GPU in the
    order of their numbers.

    Parameters
    ----------
    loads : float[L, E] or float[steps, L, E]
        Loads; steps are summed.
    slots, gpus, nodes, groups : int
        As for :func:`~moesim.models.placement.eplb_plan.plan_eplb`; nodes and groups make no difference.

    Notes
    -----
    Source: ROCm/ATOM, ``atom/model_ops/eplb.py``, ``_placement_biased`` (pull request 1210).
    """
    weight = summed_loads(loads, WHO)
    layers, experts = weight.shape
    check_sizes(WHO, experts=experts, slots=slots, gpus=gpus, nodes=nodes, groups=groups)
    hot = min((slots - experts) // gpus, experts)
    if hot == 0 or gpus == 1:
        return plan_greedy(weight, slots=slots, gpus=gpus)
    order = np.argsort(-weight.astype(np.float32), axis=1, kind="stable")
    everywhere = np.sort(order[:, :hot], axis=1)
    expert_of_slot = np.empty((layers, gpus, slots // gpus), dtype=np.int64)
    expert_of_slot[:, :, :hot] = everywhere[:, None]
    others = np.sort(order[:, hot:], axis=1)
    room = slots // gpus - hot
    if others.shape[1]:
        local = np.take_along_axis(weight, others, axis=1)
        replica, count = replicate_experts(local, room * gpus)
        replica.sort(axis=1)
        gpu, position = pack_heaviest_first(np.take_along_axis(local / count, replica, axis=1), gpus, room)
        packed = np.empty_like(replica)
        np.put_along_axis(packed, gpu * room + position, np.take_along_axis(others, replica, axis=1), axis=1)
        expert_of_slot[:, :, hot:] = packed.reshape(layers, gpus, room)
    else:  # every expert is everywhere already
        expert_of_slot[:, :, hot:] = everywhere[:, None, np.arange(room) % hot]
    return plan_of(expert_of_slot.reshape(layers, slots), experts, gpus)


def hot_experts_stay(weight: np.ndarray, old: np.ndarray, *, slots: int, gpus: int) -> np.ndarray:
    """Return bool[L]: the present placement already has exactly the K hottest experts on every GPU.

    ATOM then leaves the whole layer as it is, cold experts too, for moving them again gains little.

    Parameters
    ----------
    weight : float[L, E]
        Loads.
    old : int[L, S]
        Expert of each slot at present.
    slots, gpus : int
        S, and the GPUs that share them.
    """
    layers, experts = weight.shape
    hot = min((slots - experts) // gpus, experts)
    if hot == 0:
        return np.zeros(layers, dtype=bool)
    wanted = np.sort(np.argsort(-weight.astype(np.float32), axis=1, kind="stable")[:, :hot], axis=1)
    first = np.sort(old.reshape(layers, gpus, slots // gpus)[:, :, :hot], axis=2)
    return np.asarray((first == wanted[:, None]).all(axis=(1, 2)))
