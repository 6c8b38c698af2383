"""Improve a placement by exchanging two experts at a time, without letting any rank grow too heavy."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from moesim.facts.arrays import Floats, Ints

ENOUGH = 1e-9
"""A swap must lower the cost by more than this share of the largest cost of one item, so that rounding cannot swap for ever."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Costs:
    """What a placement of n items on W ranks costs: ``sum_i own[i, r_i] + sum_{i<j} pair[i, j] distance[r_i, r_j]``.

    Parameters
    ----------
    own : float[n, W]
        Cost of an item on a rank, whatever the others do.
    pair : float[n, n]
        Weight of two items' distance; symmetric, 0 on the diagonal.
    distance : float[W, W]
        Symmetric; 0 on the diagonal.
    """

    own: Floats
    pair: Floats
    distance: Floats

    def of(self, rank: Ints) -> float:
        """Return the cost of int[n] ``rank``."""
        return float(self.own[np.arange(len(rank)), rank].sum() + 0.5 * (self.pair * self.distance[rank][:, rank]).sum())


def improve_by_swaps(rank: Ints, loads: Floats, costs: Costs, *, limit: float) -> Ints:
    """Exchange pairs of items as long as that lowers the cost and both ranks stay within the limit.

    The result never costs more than the start. A rank within the limit stays there; one above it never grows.

    Parameters
    ----------
    rank : int[n]
        The start; every rank keeps as many items as it has.
    loads : float[n]
        Of each item.
    costs : Costs
    limit : float
        Largest load of a rank.

    Returns
    -------
    int[n]
    """
    rank = np.array(rank)
    ranks = costs.own.shape[1]
    total: Floats = np.bincount(rank, weights=loads, minlength=ranks).astype(np.float64)
    tied = bool(costs.pair.any())
    field = costs.own + (costs.pair @ costs.distance[rank] if tied else 0.0)
    step = ENOUGH * float(np.abs(field).max(initial=0.0))
    item = np.arange(len(rank))
    while True:
        gain = field - field[item, rank][:, None]
        both = gain[:, rank]
        change = both + both.T + (2.0 * costs.pair * costs.distance[rank][:, rank] if tied else 0.0)
        heavier = total[rank][:, None] - loads[:, None] + loads
        within = heavier <= np.maximum(limit, total[rank])[:, None]
        change[(rank[:, None] == rank) | ~within | ~within.T] = np.inf
        partner = change.argmin(axis=1)
        best = change[item, partner]
        swapped = False
        for one in np.argsort(best, kind="stable").tolist():
            if best[one] >= -step:
                break
            swapped |= _swap(one, int(partner[one]), rank, loads, total, field, costs, limit=limit, step=step, tied=tied)
        if not swapped:
            return rank


def _swap(
    one: int, two: int, rank: Ints, loads: Floats, total: Floats, field: Floats, costs: Costs, *, limit: float, step: float, tied: bool
) -> bool:
    """Exchange two items if that still pays after the swaps before it; update ``rank``, ``total`` and ``field``."""
    here, there = int(rank[one]), int(rank[two])
    if here == there:
        return False
    change = field[one, there] - field[one, here] + field[two, here] - field[two, there]
    change += 2.0 * costs.pair[one, two] * costs.distance[here, there]
    more = loads[two] - loads[one]
    if change >= -step or total[here] + more > max(limit, total[here]) or total[there] - more > max(limit, total[there]):
        return False
    rank[one], rank[two] = there, here
    total[here] += more
    total[there] -= more
    if tied:
        field += np.outer(costs.pair[:, one] - costs.pair[:, two], costs.distance[there] - costs.distance[here])
    return True


def distances(ranks: int, nodes: int) -> Floats:
    """Return float[W, W]: 0 on the same rank, 1 within a node, 2 between nodes.

    Source: the hop costs of ExFlow, arXiv:2401.08383; YJHMITWEB/ExFlow, ``solve_affinity.py``, ``calculate_cost``.

    Examples
    --------
    >>> distances(4, 2).astype(int).tolist()
    [[0, 1, 2, 2], [1, 0, 2, 2], [2, 2, 0, 1], [2, 2, 1, 0]]
    """
    rank = np.arange(ranks)
    node = rank // (ranks // nodes)
    return np.asarray((rank[:, None] != rank).astype(np.float64) + (node[:, None] != node))
