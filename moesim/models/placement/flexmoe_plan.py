"""FlexMoE's planner: expand the most loaded expert, shrink the least loaded, as long as that helps."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from moesim.facts.arrays import Floats, Ints
from moesim.models.placement.laer_plan import check_batch_sizes, split_to_nearest


def plan_flexmoe(counts: ArrayLike, held: Ints, *, nodes: int = 1, rounds: int = 10) -> Ints:
    """Improve the present placement for one layer of one batch.

    In each round one expert gets a replica more on every node and another one less: the first has most rows per replica, the second
    fewest among those with more replicas than nodes. A round counts if the most loaded rank gets fewer rows, or the ratio of the most to
    the least loaded falls; the first that does not is the last.

    Parameters
    ----------
    counts : int[W, E]
        Rows of each source for each expert.
    held : int[W, E]
        Replicas of each expert on each rank at present; equally many slots on every rank.
    nodes : int
        Of the W ranks, in equal consecutive blocks.
    rounds : int
        At most.

    Returns
    -------
    int[W, E]

    Notes
    -----
    Source: Nie et al., "FlexMoE", SIGMOD 2023, algorithms 1 and 2, as in PKU-DAIR/Hetu-Galvatron, branch laer-moe at 27042374b330,
    ``galvatron/core/runtime/moe/prefetch/solver.py``, ``flexmoe_method``. Where that fails because a node holds no replica of the expert
    to shrink, the node is left as it is here.
    """
    rows = np.asarray(counts, dtype=np.int64)
    ranks, experts = rows.shape
    slots = int(held.sum(axis=1).max())
    check_batch_sizes("placement 'flexmoe'", ranks=ranks, experts=experts, slots=slots, nodes=nodes)
    present = np.array(held)
    load = _loads(rows, present, nodes)
    for _ in range(rounds):
        if _ratio(load) <= 1.0:
            break
        planned = _one_round(rows.sum(axis=0), present, load, nodes)
        if planned is None:
            break
        after = _loads(rows, planned, nodes)
        if not (after.max() < load.max() or _ratio(after) < _ratio(load)):
            break
        present, load = planned, after
    return present


def _loads(rows: Ints, held: Ints, nodes: int) -> Floats:
    return np.asarray(split_to_nearest(rows, held, nodes).sum(axis=(0, 1)))


def _ratio(load: Floats) -> float:
    return float(load.max() / load.min()) if load.min() > 0 else (np.inf if load.max() > 0 else 1.0)


def _one_round(loads: Ints, held: Ints, load: Floats, nodes: int) -> Ints | None:
    """Return the placement after one round, or None if there is nothing to expand or shrink."""
    replicas = held.sum(axis=0)
    share = loads // replicas
    order = np.argsort(-share, kind="stable")
    grow = int(order[0])
    spare = order[replicas[order] != nodes]
    if not len(spare) or int(spare[-1]) == grow:
        return None
    shrink = int(spare[-1])
    planned = np.array(held)
    per_node = len(held) // nodes
    for node in range(nodes):
        of_node = np.arange(node * per_node, (node + 1) * per_node)
        gives = of_node[planned[of_node, shrink] > 0]
        if not len(gives) or planned[:, shrink].sum() == 1:
            continue
        giver = int(gives[np.argmin(load[gives])])
        room = held[giver].sum()
        takes = of_node[(planned[of_node, grow] > 0) & (planned[of_node, grow] < room)]
        planned[giver, shrink] -= 1
        taker = int(takes[0]) if len(takes) else giver
        planned[taker, grow] += 1
        if taker != giver:
            # The expert that packs with the grown one on its rank moves to where the slot became free.
            beside = np.flatnonzero((planned[taker] > 0) & (np.arange(len(share)) != grow))
            moved = int(beside[np.argmax(share[beside])])
            planned[taker, moved] -= 1
            planned[giver, moved] += 1
    return planned
