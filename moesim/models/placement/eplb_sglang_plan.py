"""SGLang's planners: the vectorised one that looks at single steps, and the one that survives dead ranks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from moesim.base.errors import PluginError
from moesim.facts.arrays import Floats, Ints
from moesim.models.placement.eplb_plan import plan_global, plan_hierarchical
from moesim.models.placement.greedy_steps import pack_heaviest_first
from moesim.models.placement.plan_map import PlacementPlan, check_sizes, plan_of, summed_loads

WHO = "placement 'eplb_sglang'"
LIFT = 1e-4
"""Per expert number, added to loads before the heaviest expert is looked for, so that no two are equal (``deepseek_vec.py``)."""


def plan_deepseek_vec(
    loads: ArrayLike, *, slots: int, gpus: int, nodes: int = 1, groups: int = 1, hierarchical: bool = False
) -> PlacementPlan:
    """Plan with every step's own peak in mind: a redundant slot goes where it lowers the sum of the peaks of all steps most.

    Packing deals the replicas, heaviest first, to the GPUs in a snake (0 to n - 1, then n - 1 to 0, and so on).

    Parameters
    ----------
    loads : float[steps, L, E] or float[L, E]
        Loads, step by step; without steps they count as one.
    slots, gpus, nodes, groups : int
        As for :func:`~moesim.models.placement.eplb_plan.plan_eplb`.
    hierarchical : bool
        Pack groups to nodes first and plan inside each node (``deepseek_vec_hierarchical``).

    Notes
    -----
    Source: sgl-project/sglang, ``python/sglang/srt/eplb/eplb_algorithms/deepseek_vec.py``.
    """
    total = summed_loads(loads, WHO)
    steps = np.asarray(loads, dtype=np.float32).reshape(-1, *total.shape)
    layers, experts = total.shape
    check_sizes(WHO, experts=experts, slots=slots, gpus=gpus, nodes=nodes, groups=groups)
    chunks = nodes if hierarchical else 1
    if hierarchical and groups % nodes:
        raise PluginError(
            f"{WHO}: {groups} expert groups do not divide over {nodes} nodes, so they cannot stay inside nodes; plan globally"
        )
    by_node = np.tile(np.arange(experts), (layers, 1))
    if hierarchical:
        by_node = _pack_groups(total, nodes, groups)
    steps = np.take_along_axis(steps, by_node[None], axis=2)
    replica, count = _replicate_by_peaks(steps, slots, chunks)
    if slots // gpus > 1:
        replica = _snake(steps.sum(axis=0), replica, count, gpus, chunks)
    return plan_of(np.take_along_axis(by_node, replica, axis=1), experts, gpus)


def _pack_groups(total: Floats, nodes: int, groups: int) -> Ints:
    """Return int[L, E], the experts in the order of nodes; unlike DeepSeek's, a node of one group gets it by load."""
    layers, experts = total.shape
    size = experts // groups
    node, place = pack_heaviest_first(total.astype(np.float32).reshape(layers, groups, size).sum(axis=2), nodes, groups // nodes)
    group_at = np.empty((layers, groups), dtype=np.int64)
    np.put_along_axis(group_at, node * (groups // nodes) + place, np.tile(np.arange(groups), (layers, 1)), axis=1)
    return np.asarray((group_at[:, :, None] * size + np.arange(size)).reshape(layers, experts))


def _replicate_by_peaks(steps: NDArray[Any], slots: int, chunks: int) -> tuple[Ints, Ints]:
    """Return the expert of each replica, int[L, S] chunk by chunk, and int[L, E] replicas."""
    number, layers, experts = steps.shape
    size, room = experts // chunks, slots // chunks
    parts = steps.reshape(number, layers, chunks, size)
    # Lifted by the number within all experts, as the reference does, not within the chunk.
    lifted = parts + (np.arange(experts, dtype=np.float32) * np.float32(LIFT)).reshape(chunks, size)
    count = np.ones((layers, chunks, size), dtype=np.int64)
    replica = np.empty((layers, chunks, room), dtype=np.int64)
    replica[:, :, :size] = np.arange(size)
    step, layer, chunk = np.ogrid[:number, :layers, :chunks]
    for slot in range(size, room):
        share = lifted / count.astype(np.float32)
        top = share.argmax(axis=3)
        peak = share[step, layer, chunk, top]
        # The peak of a step stays unless its top expert gets the slot; then the peak is that expert's next share, or the runner-up.
        share[step, layer, chunk, top] = parts[step, layer, chunk, top] / (count[layer[0], chunk[0], top] + 1).astype(np.float32)
        peaks = np.repeat(peak[..., None], size, axis=3)
        peaks[step, layer, chunk, top] = share.max(axis=3)
        chosen = peaks.sum(axis=0).argmin(axis=2)
        replica[:, :, slot] = chosen
        count[layer[0], chunk[0], chosen] += 1
    replica += (np.arange(chunks) * size)[:, None]
    return replica.reshape(layers, slots), count.reshape(layers, experts)


def _snake(total: NDArray[Any], replica: Ints, count: Ints, gpus: int, chunks: int) -> Ints:
    """Deal the replicas of each chunk to its GPUs, heaviest first, back and forth."""
    layers, slots = replica.shape
    share = np.take_along_axis(total / count.astype(np.float32), replica, axis=1).reshape(layers, chunks, -1)
    order = np.argsort(-share, axis=2, kind="stable") + (np.arange(chunks) * (slots // chunks))[:, None]
    rounds = order.reshape(layers, chunks, slots // gpus, gpus // chunks)
    rounds[:, :, 1::2] = rounds[:, :, 1::2, ::-1].copy()
    return np.take_along_axis(replica, rounds.transpose(0, 1, 3, 2).reshape(layers, slots), axis=1)


def plan_elasticity_aware(
    loads: ArrayLike,
    *,
    slots: int,
    gpus: int,
    nodes: int = 1,
    groups: int = 1,
    dead_ranks: Sequence[int] = (),
    hierarchical: bool = False,
) -> PlacementPlan:
    """Plan as DeepSeek does, but on the ranks that live; with any rank dead, globally.

    SGLang fills the slots of dead ranks with expert 0 and never uses them; here a dead rank holds no slot.

    Parameters
    ----------
    loads : float[L, E] or float[steps, L, E]
        Loads; steps are summed.
    slots, gpus, nodes, groups : int
        As for :func:`~moesim.models.placement.eplb_plan.plan_eplb`, dead ranks included.
    dead_ranks : sequence of int
        GPUs that hold nothing.
    hierarchical : bool
        While every rank lives, keep groups inside nodes.

    Notes
    -----
    Source: sgl-project/sglang, ``python/sglang/srt/eplb/eplb_algorithms/elasticity_aware.py``.
    """
    weight = summed_loads(loads, WHO)
    experts = weight.shape[1]
    check_sizes(WHO, experts=experts, slots=slots, gpus=gpus, nodes=nodes, groups=groups)
    dead = sorted(set(dead_ranks))
    if dead and not 0 <= dead[0] <= dead[-1] < gpus:
        raise PluginError(f"{WHO}: dead_ranks names rank {dead[-1] if dead[-1] >= gpus else dead[0]}, but the ranks are 0 to {gpus - 1}")
    live = np.setdiff1d(np.arange(gpus), dead)
    left = slots // gpus * len(live)
    if left < experts:
        raise PluginError(f"{WHO}: the {len(live)} ranks that live have {left} slots, but there are {experts} experts")
    if hierarchical and not dead:
        return plan_hierarchical(weight, slots=slots, gpus=gpus, nodes=nodes, groups=groups, who=WHO)
    plan = plan_global(weight, slots=left, gpus=len(live), who=WHO)
    return PlacementPlan(
        physical_to_logical_map=plan.physical_to_logical_map,
        logical_count=plan.logical_count,
        rank_of_slot=live[plan.rank_of_slot],
    )
