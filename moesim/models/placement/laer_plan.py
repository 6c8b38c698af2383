"""LAER-MoE's planner: replicas for the load, spread over nodes, tokens to the nearest."""

from __future__ import annotations

import heapq
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from moesim.base.errors import PluginError
from moesim.facts.arrays import Floats, Ints

WHO = "placement 'laer'"
ITSELF = 1e18
"""B/s from a GPU to itself, the planner's stand-in for no time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LaerCost:
    """What the planner believes a row costs; defaults are those of its source, for A100 servers.

    Parameters
    ----------
    compute : float
        Seconds of one row in an expert, forward.
    intra, inter : float
        B/s between GPUs of a node, and of different nodes.
    row : float
        Bytes of a row.
    passes : int
        Forward passes' worth of computation in a step: 3, or 4 with recomputation.
    """

    compute: float = 1.484375e-6
    intra: float = 216.269e9
    inter: float = 88.9539e9
    row: float = 8192.0
    passes: int = 4

    def seconds(self, split: Floats, nodes: int) -> float:
        """Return ``4 sum of transfer times + passes * longest computation`` of rows ``split``, float[W, E, W], source to destination.

        Source: PKU-DAIR/Hetu-Galvatron, ``csrc/greedy_balancer.cpp``, ``generate_smart_routing_and_calculate_time``.
        """
        sent = split.sum(axis=1)
        node = np.arange(len(sent)) // (len(sent) // nodes)
        rate = np.where(node[:, None] == node, self.intra, self.inter)
        np.fill_diagonal(rate, ITSELF)
        return float(4.0 * (sent * self.row / rate).sum() + self.passes * sent.sum(axis=0).max(initial=0.0) * self.compute)


def split_to_nearest(counts: Ints, held: Ints, nodes: int, *, extra: bool = False) -> Floats:
    """Return float[W, E, W], the rows of each source and expert that each rank computes.

    A source uses the replicas on its own node, evenly, and only if there are none the others, evenly. What does not divide goes one each to
    the first replicas.

    Parameters
    ----------
    counts : int[W, E]
        Rows of each source for each expert.
    held : int[W, E]
        Replicas of each expert on each rank.
    nodes : int
        A divisor of W.
    extra : bool
        Count the remainder twice, once spread evenly and once on the first replicas, as the cost function of LAER's planner does when
        it compares candidates. Such rows are no plan.

    Notes
    -----
    Source: PKU-DAIR/Hetu-Galvatron, ``galvatron/core/runtime/moe/prefetch/solver.py``, ``_generate_smart_routing``.
    """
    ranks = len(counts)
    node = np.arange(ranks) // (ranks // nodes)
    near = (node[:, None] == node)[:, None, :] * held.T[None]  # source, expert, rank
    far = held.T[None] - near
    usable = np.where(near.sum(axis=2, keepdims=True) > 0, near, far)
    replicas = usable.sum(axis=2, keepdims=True)
    rows = counts[:, :, None]
    over = rows % np.maximum(replicas, 1)
    first = np.cumsum(usable, axis=2) - usable
    more = np.clip(over - first, 0, usable)
    even = rows / np.maximum(replicas, 1) if extra else rows // np.maximum(replicas, 1)
    return np.asarray(np.where(usable > 0, even * usable + more, 0), dtype=np.float64)


def replicas_for_loads(loads: Floats, *, total: int, nodes: int) -> Ints:
    """Return int[E], replicas of each expert, ``total`` together: the heaviest per replica gets the next.

    If there is room, every expert starts with one replica per node; an expert with as many replicas as nodes, or more, then gets one per
    node at a time, and no more once that does not fit. Replicas that are left over when no expert can take any go to the heaviest, one by
    one.

    Notes
    -----
    Source: PKU-DAIR/Hetu-Galvatron, ``csrc/greedy_balancer.cpp``, ``allocate_expert_replicas_precise``; the last rule is ours, the source
    leaves those slots to chance.
    """
    experts = len(loads)
    start = nodes if nodes * experts <= total else 1
    replicas = np.full(experts, start, dtype=np.int64)
    left = total - start * experts
    heap = [(-loads[expert] / start, expert) for expert in range(experts)]
    heapq.heapify(heap)
    while left > 0 and heap:
        _, expert = heapq.heappop(heap)
        more = nodes if replicas[expert] >= nodes else 1
        if more > left:
            continue
        replicas[expert] += more
        left -= more
        heapq.heappush(heap, (-loads[expert] / replicas[expert], expert))
    for _ in range(left):
        replicas[int(np.argmax(loads / replicas))] += 1
    return replicas


def spread_replicas(replicas: Ints, loads: Floats, *, ranks: int, slots: int, nodes: int) -> Ints:
    """Place replicas, the heaviest first, each on the node with the fewest of its expert, there on the lightest rank with a free slot.

    Parameters
    ----------
    replicas : int[E]
        How many; ``ranks * slots`` together.
    loads : float[E]
        Of each expert, split evenly over its replicas.
    ranks, slots, nodes : int
        W, slots of a rank, nodes.

    Returns
    -------
    int[W, E]
        Replicas of each expert on each rank.

    Notes
    -----
    Source: PKU-DAIR/Hetu-Galvatron, ``csrc/greedy_balancer.cpp``, ``get_greedy_placement``: if all ranks of that node are full, the
    lightest rank of any node.
    """
    held = np.zeros((ranks, len(loads)), dtype=np.int64)
    carried = np.zeros(ranks)
    node = np.arange(ranks) // (ranks // nodes)
    share = loads / replicas
    item = np.repeat(np.arange(len(loads)), replicas)
    for expert in item[np.argsort(-share[item], kind="stable")].tolist():
        open_ranks = held.sum(axis=1) < slots
        of_node = np.bincount(node, weights=held[:, expert], minlength=nodes)
        wanted = open_ranks & (of_node[node] == of_node.min())
        candidates = np.flatnonzero(wanted if wanted.any() else open_ranks)
        rank = candidates[np.argmin(carried[candidates])]
        held[rank, expert] += 1
        carried[rank] += share[expert]
    return held


def plan_laer(counts: ArrayLike, *, slots: int, nodes: int = 1, cost: LaerCost | None = None) -> Ints:
    """Plan one layer of one batch: the cheaper of equal replicas (if they divide) and replicas in proportion to load.

    Parameters
    ----------
    counts : int[W, E]
        Rows of each source for each expert.
    slots : int
        Experts that a rank computes, ``C_e``.
    nodes : int
        Of the W ranks, in equal consecutive blocks.
    cost : LaerCost
        By which the candidates are compared.

    Returns
    -------
    int[W, E]
        Replicas of each expert on each rank.

    Raises
    ------
    PluginError
        If the slots cannot hold the experts, or the ranks do not divide over the nodes.

    Notes
    -----
    Source: LAER-MoE; PKU-DAIR/Hetu-Galvatron, branch laer-moe at 27042374b330, ``csrc/greedy_balancer.cpp``,
    ``greedy_load_balancing_heuristic_complete`` without perturbations.
    """
    rows = np.asarray(counts, dtype=np.int64)
    ranks, experts = rows.shape
    check_batch_sizes(WHO, ranks=ranks, experts=experts, slots=slots, nodes=nodes)
    cost = LaerCost() if cost is None else cost
    loads = rows.sum(axis=0).astype(np.float64)
    candidates = []
    if ranks * slots % experts == 0:
        candidates.append(np.full(experts, ranks * slots // experts))
    candidates.append(replicas_for_loads(loads, total=ranks * slots, nodes=nodes))
    plans = [spread_replicas(replicas, loads, ranks=ranks, slots=slots, nodes=nodes) for replicas in candidates]
    seconds = [cost.seconds(split_to_nearest(rows, held, nodes, extra=True), nodes) for held in plans]
    return plans[int(np.argmin(seconds))]


def check_batch_sizes(who: str, *, ranks: int, experts: int, slots: int, nodes: int) -> None:
    """Refuse sizes with which LAER and FlexMoE cannot start.

    Raises
    ------
    PluginError
        Naming what would fit.
    """
    if ranks % nodes:
        raise PluginError(f"{who}: {ranks} ranks do not divide over {nodes} nodes")
    if slots > experts:
        raise PluginError(f"{who}: slots_per_rank: {slots} is more than there are experts ({experts})")
    if ranks * slots < experts:
        least = -(-experts // ranks)
        raise PluginError(f"{who}: {ranks} ranks with slots_per_rank: {slots} cannot hold {experts} experts; choose {least} or more")


def every_expert_in_turn(ranks: int, experts: int, slots: int) -> Ints:
    """Return int[W, E], the layout before any plan: rank j holds experts j mod (E / slots), that plus E / slots, and so on.

    Source: PKU-DAIR/Hetu-Galvatron, ``solver.py``, ``default_placement``. Where the slots do not divide the experts, or the ranks are too
    few for that, experts are dealt in order to the slots instead.
    """
    held = np.zeros((ranks, experts), dtype=np.int64)
    period = experts // slots if experts % slots == 0 else 0
    slot = np.arange(ranks * slots)
    rank, place = slot // slots, slot % slots
    expert = place * period + rank % period if 0 < period <= ranks else slot % experts
    np.add.at(held, (rank, expert), 1)
    return held
