"""Experts that are used together, put together."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from moesim.base.errors import PluginError
from moesim.facts.arrays import Floats, Ints
from moesim.models.placement.partition_milp import MOST_TERMS, cheapest, terms
from moesim.models.placement.plan_map import PlacementPlan, check_sizes, plan_of, summed_loads
from moesim.models.placement.simple_plans import plan_greedy
from moesim.models.placement.swaps import Costs, distances, improve_by_swaps

WHO = "placement 'affinity'"


def co_activations(ids: NDArray[Any], experts: int) -> Ints:
    """Return int[E, E]: tokens that chose both experts, 0 on the diagonal.

    Parameters
    ----------
    ids : int[T, k]
        Chosen experts; -1 where there is none.
    experts : int
        E.
    """
    together = np.zeros((experts, experts), dtype=np.int64)
    for one in range(ids.shape[1]):
        for two in range(one + 1, ids.shape[1]):
            both = (ids[:, one] >= 0) & (ids[:, two] >= 0)
            pair = ids[both, one].astype(np.int64) * experts + ids[both, two]
            together += np.bincount(pair, minlength=experts * experts).reshape(experts, experts)
    together += together.T
    np.fill_diagonal(together, 0)
    return together


def transitions(before: NDArray[Any], after: NDArray[Any], experts: int) -> Ints:
    """Return int[E, E]: pairs of a token's choice in one layer (row) and its choice in the next (column).

    Parameters
    ----------
    before, after : int[T, k]
        The same tokens in two consecutive layers; -1 where there is no choice.
    experts : int
        E.
    """
    out = np.zeros((experts, experts), dtype=np.int64)
    for one in range(before.shape[1]):
        for two in range(after.shape[1]):
            both = (before[:, one] >= 0) & (after[:, two] >= 0)
            pair = before[both, one].astype(np.int64) * experts + after[both, two]
            out += np.bincount(pair, minlength=experts * experts).reshape(experts, experts)
    return out


def plan_affinity(
    loads: ArrayLike,
    *,
    gpus: int,
    nodes: int = 1,
    groups: int = 1,
    together: ArrayLike | None = None,
    following: ArrayLike | None = None,
    slack: float = 0.1,
) -> PlacementPlan:
    """Place experts so that what tokens use together is close, as far as no rank grows too heavy.

    The cost is the sum over pairs of experts of how often a token uses both, times their distance: 0 on one rank, 1 within a node, 2
    between nodes. The plan starts from the greedy one (LPT). If the problem is small it is solved exactly, otherwise by exchanging two
    experts at a time; then, with ``following``, layer by layer, up and down, until nothing changes.

    No rank carries more than ``1 + slack`` times the heaviest rank of the greedy plan of its layer.

    Parameters
    ----------
    loads : float[L, E] or float[steps, L, E]
        Loads; steps are summed.
    gpus, nodes, groups : int
        As for :func:`~moesim.models.placement.eplb_plan.plan_eplb`; groups make no difference, and there are no redundant experts.
    together : float[L, E, E], optional
        Tokens that use both experts of a layer (:func:`co_activations`): being close saves copies of a token.
    following : float[L - 1, E, E], optional
        Tokens that use one expert in a layer and one in the next (:func:`transitions`): being close saves hops where tokens stay at
        their experts between layers, as in ExFlow.
    slack : float
        At least 0.

    Raises
    ------
    PluginError
        If sizes do not fit.

    Notes
    -----
    Source: Yao et al., ExFlow, arXiv:2401.08383 (cost, equal experts per GPU and layer, and an exact solver); the load limit and the
    exchange of pairs are ours.
    """
    weight = summed_loads(loads, WHO)
    layers, experts = weight.shape
    check_sizes(WHO, experts=experts, slots=experts, gpus=gpus, nodes=nodes, groups=groups)
    if not slack >= 0:
        raise PluginError(f"{WHO}: slack is {slack}, but must be at least 0")
    pair = _pairs(together, (layers, experts, experts), "together")
    pair = pair + pair.transpose(0, 2, 1)
    pair[:, np.arange(experts), np.arange(experts)] = 0.0
    pair /= 2.0
    follow = _pairs(following, (max(layers - 1, 0), experts, experts), "following")
    start = plan_greedy(weight, slots=experts, gpus=gpus)
    limits = (1.0 + slack) * start.rank_loads(weight, gpus).max(axis=1)
    rank = start.rank_of_slot[np.argsort(start.physical_to_logical_map, axis=1)]
    distance = distances(gpus, nodes)
    if gpus > 1:
        rank = _closest(weight, pair, follow, rank, distance, nodes, limits)
    return plan_of(np.argsort(rank, axis=1, kind="stable"), experts, gpus)


def _pairs(given: ArrayLike | None, shape: tuple[int, ...], name: str) -> Floats:
    if given is None:
        return np.zeros(shape)
    array = np.asarray(given, dtype=np.float64)
    if array.shape != shape or not (np.isfinite(array) & (array >= 0)).all():
        raise PluginError(f"{WHO}: {name} must be finite numbers, at least 0, of shape {shape}, not {array.shape}")
    return array


def _closest(weight: Floats, pair: Floats, follow: Floats, rank: Ints, distance: Floats, nodes: int, limits: Floats) -> Ints:
    """Solve what is small exactly, the whole if layers depend on each other and each layer if not; the rest by swaps."""
    layers, experts = weight.shape
    gpus = len(distance)
    if not follow.any():
        out = np.empty_like(rank)
        for layer in range(layers):
            costs = Costs(own=np.zeros((experts, gpus)), pair=pair[layer], distance=distance)
            found = None
            if 0 < terms(pair[layer], gpus, nodes) <= MOST_TERMS:
                found = cheapest(costs, weight[layer], np.zeros(experts, dtype=np.int64), nodes=nodes, limits=limits[layer : layer + 1])
            if found is None or costs.of(found) > costs.of(rank[layer]):
                found = improve_by_swaps(rank[layer], weight[layer], costs, limit=float(limits[layer]))
            out[layer] = found
        return out
    whole = np.zeros((layers, experts, layers, experts))
    number = np.arange(layers)
    if layers * experts <= MOST_TERMS:
        whole[number, :, number] = pair
        whole[number[:-1], :, number[1:]] = follow
        whole[number[1:], :, number[:-1]] = follow.transpose(0, 2, 1)
        flat = whole.reshape(layers * experts, layers * experts)
        if terms(flat, gpus, nodes) <= MOST_TERMS:
            costs = Costs(own=np.zeros((layers * experts, gpus)), pair=flat, distance=distance)
            found = cheapest(costs, weight.ravel(), np.repeat(number, experts), nodes=nodes, limits=limits)
            if found is not None and costs.of(found) <= costs.of(rank.ravel()):
                return found.reshape(layers, experts)
    return _by_layers(weight, pair, follow, rank, distance, limits)


def _by_layers(weight: Floats, pair: Floats, follow: Floats, rank: Ints, distance: Floats, limits: Floats) -> Ints:
    """Improve one layer at a time with its neighbours fixed, up and down, until no layer changes."""
    rank = np.array(rank)
    layers = len(rank)
    changed = True
    while changed:
        changed = False
        for layer in (*range(layers), *range(layers - 2, -1, -1)):
            own = np.zeros((rank.shape[1], len(distance)))
            if layer > 0:
                own += follow[layer - 1].T @ distance[rank[layer - 1]]
            if layer < layers - 1:
                own += follow[layer] @ distance[rank[layer + 1]]
            costs = Costs(own=own, pair=pair[layer], distance=distance)
            better = improve_by_swaps(rank[layer], weight[layer], costs, limit=float(limits[layer]))
            changed |= not np.array_equal(better, rank[layer])
            rank[layer] = better
    return rank


def affinity_cost(plan: PlacementPlan, *, nodes: int = 1, together: ArrayLike | None = None, following: ArrayLike | None = None) -> Floats:
    """Return float[L] and float[L - 1] one after the other: the cost of each layer, and of each step from a layer to the next.

    Parameters
    ----------
    plan : PlacementPlan
        Without redundant experts.
    nodes : int
    together, following : float arrays, optional
        As :func:`plan_affinity` takes them.
    """
    layers, experts = plan.logical_count.shape
    gpus = int(plan.rank_of_slot.max()) + 1
    distance = distances(gpus, nodes)
    rank = plan.rank_of_slot[np.argsort(plan.physical_to_logical_map, axis=1)]
    pair = _pairs(together, (layers, experts, experts), "together")
    follow = _pairs(following, (max(layers - 1, 0), experts, experts), "following")
    within = [float((pair[layer] * distance[rank[layer]][:, rank[layer]]).sum() / 2) for layer in range(layers)]
    between = [float((follow[layer] * distance[rank[layer]][:, rank[layer + 1]]).sum()) for layer in range(layers - 1)]
    return np.array(within + between)
