"""DeepSeek's EPLB: replicate the hot experts, pack the replicas, on request node by node."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from moesim.base.errors import PluginError
from moesim.facts.arrays import Floats, Ints
from moesim.models.placement.greedy_steps import balanced_packing, replicate_experts
from moesim.models.placement.group_sizes import GroupSizes
from moesim.models.placement.plan_map import PlacementPlan, check_sizes, plan_of, summed_loads

WHO = "placement 'eplb'"


def plan_eplb(loads: ArrayLike, *, slots: int, gpus: int, nodes: int = 1, groups: int = 1) -> PlacementPlan:
    """Plan as DeepSeek's EPLB does: hierarchically if the groups divide over the nodes, globally otherwise.

    Parameters
    ----------
    loads : float[L, E] or float[steps, L, E]
        Load of each logical expert; steps are summed.
    slots, gpus, nodes, groups : int
        Physical experts, GPUs that share them, servers of the GPUs, expert groups.

    Raises
    ------
    PluginError
        If slots do not divide over GPUs, are fewer than experts, or loads are no loads.

    Notes
    -----
    Source: deepseek-ai/EPLB at d52c72d, ``eplb.py``, ``rebalance_experts``; single precision as there.
    """
    weight = summed_loads(loads, WHO)
    if groups % nodes:
        return plan_global(weight, slots=slots, gpus=gpus, dtype=np.float32, who=WHO)
    return plan_hierarchical(weight, slots=slots, gpus=gpus, nodes=nodes, groups=groups, dtype=np.float32, who=WHO)


def plan_global(weight: Floats, *, slots: int, gpus: int, dtype: Any = np.float32, who: str = WHO) -> PlacementPlan:
    """Plan with every GPU alike: the hierarchical plan of one group and one node.

    Parameters are those of :func:`plan_hierarchical`.
    """
    return plan_hierarchical(weight, slots=slots, gpus=gpus, nodes=1, groups=1, dtype=dtype, who=who)


def plan_hierarchical(
    weight: Floats, *, slots: int, gpus: int, nodes: int, groups: int, dtype: Any = np.float32, who: str = WHO
) -> PlacementPlan:
    """Pack groups of experts to nodes, replicate inside each node, and pack the replicas to the node's GPUs.

    All replicas of an expert, and all experts of a group, stay in one node: with group-limited routing that bounds the nodes a token
    visits. A replica counts as its expert's load divided by the replicas.

    Parameters
    ----------
    weight : float[L, E]
        Loads.
    slots, gpus, nodes, groups : int
        As in :func:`plan_eplb`.
    dtype : numpy float type
        In which loads are compared and added: DeepSeek's single precision, or double as in vLLM.
    who : str
        On whose behalf sizes are refused.
    """
    layers, experts = weight.shape
    check_sizes(who, experts=experts, slots=slots, gpus=gpus, nodes=nodes, groups=groups)
    if groups % nodes:
        raise PluginError(
            f"{who}: {groups} expert groups do not divide over {nodes} nodes, so they cannot stay inside nodes; plan globally"
        )
    weight = weight.astype(np.float32).astype(dtype)
    by_node = _experts_by_node(weight, nodes, groups)
    per_node = experts // nodes
    # From here on every node of every layer is a problem of its own.
    local = np.take_along_axis(weight, by_node, axis=1).reshape(layers * nodes, per_node)
    expert_of_replica, count = replicate_experts(local, slots // nodes)
    share = np.take_along_axis(local / count.astype(dtype), expert_of_replica, axis=1)
    gpu, position = balanced_packing(share, gpus // nodes)
    slot = gpu * (slots // gpus) + position
    expert_of_slot = np.empty_like(expert_of_replica)
    np.put_along_axis(expert_of_slot, slot, expert_of_replica, axis=1)
    first = (np.arange(layers * nodes) % nodes * per_node)[:, None]
    return plan_of(np.take_along_axis(by_node, (expert_of_slot + first).reshape(layers, slots), axis=1), experts, gpus)


def _experts_by_node(weight: NDArray[Any], nodes: int, groups: int) -> Ints:
    """Return int[L, E], the experts in the order of their nodes, their places in the node, and themselves."""
    layers, experts = weight.shape
    size = experts // groups
    node, place = balanced_packing(weight.reshape(layers, groups, size).sum(axis=2), nodes)
    group_at = np.empty((layers, groups), dtype=np.int64)
    np.put_along_axis(group_at, node * (groups // nodes) + place, np.tile(np.arange(groups), (layers, 1)), axis=1)
    return np.asarray((group_at[:, :, None] * size + np.arange(size)).reshape(layers, experts))


def inside_nodes(sizes: GroupSizes, who: str, algorithm: str = "auto") -> bool:
    """Tell whether to plan hierarchically: on request, or under ``auto`` if the expert groups divide over the nodes.

    Raises
    ------
    PluginError
        If ``algorithm`` is ``hierarchical`` and they do not.
    """
    fits = sizes.groups % sizes.nodes == 0
    if algorithm == "hierarchical" and not fits:
        raise PluginError(
            f"{who}: {sizes.groups} expert groups do not divide over {sizes.nodes} nodes, so they cannot stay inside nodes; "
            "choose algorithm: global"
        )
    return fits if algorithm == "auto" else algorithm == "hierarchical"
