"""Experts near the tokens that want them, as far as the load stays even."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from moesim.base.errors import PluginError
from moesim.facts.arrays import Floats, Ints
from moesim.models.placement.plan_map import PlacementPlan, check_sizes, plan_of, summed_loads
from moesim.models.placement.simple_plans import plan_greedy
from moesim.models.placement.swaps import Costs, improve_by_swaps

WHO = "placement 'topology'"


def plan_topology(
    loads: ArrayLike, *, slots: int, gpus: int, nodes: int = 1, groups: int = 1, by_node: ArrayLike | None = None, slack: float = 0.1
) -> PlacementPlan:
    """Place replicas so that few routes leave their node, as far as no GPU grows too heavy.

    The plan starts from the greedy one (replicas for the hottest, LPT) and exchanges two replicas at a time. A route leaves its node if
    there is no replica of its expert on it. The plan never has more such routes than the greedy one, and no GPU carries more than
    ``1 + slack`` times the heaviest GPU of the greedy plan of its layer, loads split evenly over replicas.

    Parameters
    ----------
    loads : float[L, E] or float[steps, L, E]
        Loads; steps are summed.
    slots, gpus, nodes, groups : int
        As for :func:`~moesim.models.placement.eplb_plan.plan_eplb`; groups make no difference.
    by_node : float[L, nodes, E], optional
        Routes from the tokens of each node to each expert; their sources are taken to be spread evenly if it is missing, and then only
        replicas are spread over nodes.
    slack : float
        At least 0.

    Raises
    ------
    PluginError
        If sizes do not fit, or ``by_node`` has another shape.

    Notes
    -----
    SGLang has a planner of this purpose (``eplb_algorithms/topology_aware.py``), without replicas and without a limit to the load.
    """
    weight = summed_loads(loads, WHO)
    layers, experts = weight.shape
    check_sizes(WHO, experts=experts, slots=slots, gpus=gpus, nodes=nodes, groups=groups)
    if not slack >= 0:
        raise PluginError(f"{WHO}: slack is {slack}, but must be at least 0")
    routes = np.repeat(weight[:, None] / nodes, nodes, axis=1) if by_node is None else np.asarray(by_node, dtype=np.float64)
    if routes.shape != (layers, nodes, experts) or not (np.isfinite(routes) & (routes >= 0)).all():
        raise PluginError(f"{WHO}: by_node must be finite numbers, at least 0, of shape {(layers, nodes, experts)}, not {routes.shape}")
    start = plan_greedy(weight, slots=slots, gpus=gpus)
    if nodes == 1:
        return start
    limits = (1.0 + slack) * start.rank_loads(weight, gpus).max(axis=1)
    planned = np.empty((layers, slots), dtype=np.int64)
    node_of = np.arange(gpus) // (gpus // nodes)
    apart = (node_of[:, None] != node_of).astype(np.float64)
    before = leaving_routes(start, routes)
    for layer in range(layers):
        expert = start.physical_to_logical_map[layer]
        # A replica serves the routes of its own node. Two of an expert on one node serve the same: on the average over nodes, one is idle.
        twins = (expert[:, None] == expert) & ~np.eye(slots, dtype=bool)
        costs = Costs(
            own=-routes[layer][:, expert].T[:, node_of],
            pair=np.where(twins, -routes[layer].mean(axis=0)[expert], 0.0),
            distance=apart,
        )
        share = weight[layer, expert] / start.logical_count[layer, expert]
        rank = improve_by_swaps(start.rank_of_slot, share, costs, limit=float(limits[layer]))
        planned[layer] = expert[np.argsort(rank, kind="stable")]
    plan = plan_of(planned, experts, gpus)
    # With three replicas or more the sum over pairs overstates what they save: keep what is better by the true count.
    worse = leaving_routes(plan, routes) > before
    return plan_of(np.where(worse[:, None], start.physical_to_logical_map, planned), experts, gpus)


def leaving_routes(plan: PlacementPlan, by_node: Floats) -> Floats:
    """Return float[L], routes of which no replica is on their own node.

    Parameters
    ----------
    plan : PlacementPlan
    by_node : float[L, nodes, E]
        Routes from the tokens of each node to each expert.
    """
    layers, nodes, _ = by_node.shape
    gpus = int(plan.rank_of_slot.max()) + 1
    served = np.zeros(by_node.shape, dtype=bool)
    node: Ints = plan.rank_of_slot // (gpus // nodes)
    served[np.arange(layers)[:, None], node, plan.physical_to_logical_map] = True
    return np.asarray(np.where(served, 0.0, by_node).sum(axis=(1, 2)))
