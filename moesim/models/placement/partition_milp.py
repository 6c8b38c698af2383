"""The cheapest placement of a few experts, found exactly."""

from __future__ import annotations

import numpy as np

from moesim.facts.arrays import Floats, Ints
from moesim.models.placement.swaps import Costs

MOST_TERMS = 90
"""Up to so many products of two decisions a placement is found exactly, within a second or so; beyond that by swaps."""


def terms(pair: Floats, ranks: int, nodes: int) -> int:
    """Return how many products of decisions an exact placement needs: for each pair that matters, one per rank and one per node."""
    return int(np.count_nonzero(np.triu(pair, 1))) * (ranks + (nodes if nodes > 1 else 0))


def cheapest(costs: Costs, loads: Floats, layer: Ints, *, nodes: int, limits: Floats) -> Ints | None:
    """Return the placement of least cost with equally many items of each layer on every rank, or None if there is none within limits.

    The distance must be that of :func:`~moesim.models.placement.swaps.distances`: being apart costs 1, in different nodes 1 more. A product
    of two decisions "both on rank w" becomes a variable that is no more than either; so the problem is linear, with whole numbers.

    Parameters
    ----------
    costs : Costs
        Of n items.
    loads : float[n]
    layer : int[n]
        Items of different layers do not share slots or limits; layers are 0 to L - 1.
    nodes : int
        Of the W ranks, in equal consecutive blocks.
    limits : float[L]
        Largest load of a rank in each layer.

    Notes
    -----
    Solved by HiGHS through ``scipy.optimize.milp``, to proven optimality.
    """
    from scipy import sparse
    from scipy.optimize import Bounds, LinearConstraint, milp

    items, ranks = costs.own.shape
    first, second = np.nonzero(np.triu(costs.pair, 1))
    weight = costs.pair[first, second]
    places = [[rank] for rank in range(ranks)]
    if nodes > 1:
        size = ranks // nodes
        places += [list(range(node * size, (node + 1) * size)) for node in range(nodes)]
    decisions = items * ranks
    variables = decisions + len(first) * len(places)
    objective = np.concatenate([costs.own.ravel(), np.repeat(-weight, len(places))])

    rows: list[int] = []
    columns: list[int] = []
    values: list[float] = []
    lower: list[float] = []
    upper: list[float] = []

    def constrain(terms: list[tuple[int, float]], least: float, most: float) -> None:
        rows.extend([len(lower)] * len(terms))
        columns.extend(column for column, _ in terms)
        values.extend(value for _, value in terms)
        lower.append(least)
        upper.append(most)

    for item in range(items):
        constrain([(item * ranks + rank, 1.0) for rank in range(ranks)], 1.0, 1.0)
    for number in range(len(limits)):
        mine = np.flatnonzero(layer == number).tolist()
        for rank in range(ranks):
            constrain([(item * ranks + rank, 1.0) for item in mine], len(mine) // ranks, len(mine) // ranks)
            constrain([(item * ranks + rank, float(loads[item])) for item in mine], -np.inf, float(limits[number]))
    for number, both in enumerate(zip(first.tolist(), second.tolist(), strict=True)):
        for kind, place in enumerate(places):
            together = decisions + number * len(places) + kind
            for item in both:
                constrain([(together, 1.0), *((item * ranks + rank, -1.0) for rank in place)], -np.inf, 0.0)
    whole = np.zeros(variables)
    whole[:decisions] = 1
    solved = milp(
        objective,
        integrality=whole,
        bounds=Bounds(0.0, 1.0),
        options={"mip_rel_gap": 0.0},
        constraints=LinearConstraint(sparse.csr_array((values, (rows, columns)), shape=(len(lower), variables)), lower, upper),
    )
    if solved.x is None:
        return None
    return np.asarray(solved.x[:decisions].reshape(items, ranks).argmax(axis=1), dtype=np.int64)
