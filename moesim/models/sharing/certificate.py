"""Check rates without knowing the answer: laws L3 (capacity) and L4 (fairness) are together necessary and sufficient.

An allocation is max-min fair exactly if it is feasible and every flow has a *bottleneck*: a saturated link on which no flow has a higher
level (rate over weight), or its own cap (D. Bertsekas, R. Gallager, *Data Networks*, 2nd ed., 1992, section 6.5.2, proposition).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from moesim.base.errors import UsageError
from moesim.facts.arrays import Bools, Floats, Ints
from moesim.models.sharing.reference import check_system


def rounding(links: int, flows: int, hops: int) -> float:
    """Return how far from exact, relative to a capacity, a correct solver may be.

    Parameters
    ----------
    links, flows, hops : int
        K, F and the entries of ``route_link``.

    Notes
    -----
    A sum of n positive numbers is off by at most (n - 1) units in the last place (N. J. Higham, *Accuracy and Stability of Numerical
    Algorithms*, section 4.2). A solver sums no more than ``hops`` rates on a link, in at most ``links + flows`` rounds; the check sums once
    more and divides twice.
    """
    return float(np.finfo(np.float64).eps) * (2 * hops + links + flows + 2)


def violations(
    capacity: ArrayLike,
    route_start: ArrayLike,
    route_link: ArrayLike,
    rates: ArrayLike,
    *,
    weight: ArrayLike | None = None,
    cap: ArrayLike | None = None,
    tolerance: float | None = None,
) -> list[str]:
    """Return every breach of L3 and L4, in words; nothing if the rates are the max-min fair ones.

    Parameters
    ----------
    capacity, route_start, route_link, weight, cap
        As for :func:`moesim.models.sharing.reference.fair_rates`.
    rates : float[F]
        To be checked, in B/s.
    tolerance : float or None
        Relative; None for :func:`rounding`.

    Returns
    -------
    list of str
        One sentence for each link or flow, links first.

    Raises
    ------
    UsageError
        If the system itself makes no sense.
    """
    capacities, start, links = check_system(capacity, route_start, route_link)
    flows = len(start) - 1
    given = np.asarray(rates, dtype=np.float64)
    if given.shape != (flows,):
        raise UsageError(f"rates has shape {given.shape}, expected ({flows},)")
    weights = np.ones(flows) if weight is None else np.asarray(weight, dtype=np.float64)
    caps = np.full(flows, np.inf) if cap is None else np.asarray(cap, dtype=np.float64)
    slack = rounding(len(capacities), flows, len(links)) if tolerance is None else tolerance
    bad = np.flatnonzero(np.isnan(given) | (given <= 0))
    if bad.size:
        return [f"flow {flow} has the rate {given[flow]:g}: every flow gets more than 0" for flow in bad.tolist()]
    flow_of_hop: Ints = np.repeat(np.arange(flows), np.diff(start))
    load = np.asarray(np.bincount(links, weights=given[flow_of_hop], minlength=len(capacities)), dtype=np.float64)
    found = [
        f"L3: link {link} of capacity {capacities[link]:.17g} carries {load[link]:.17g}"
        for link in np.flatnonzero(load > capacities * (1 + slack)).tolist()
    ]
    above = np.flatnonzero(given > caps * (1 + slack))
    found += [f"flow {flow} runs at {given[flow]:.17g}, above its cap {caps[flow]:.17g}" for flow in above.tolist()]
    unfair = np.flatnonzero(~_has_bottleneck(capacities, links, flow_of_hop, load, given, weights, caps, slack))
    found += [
        f"L4: flow {flow} runs at {given[flow]:.17g}, but none of its links {links[start[flow] : start[flow + 1]].tolist()} is saturated "
        "by flows that are no faster"
        for flow in unfair.tolist()
    ]
    return found


def _has_bottleneck(
    capacity: Floats, links: Ints, flow_of_hop: Ints, load: Floats, rates: Floats, weights: Floats, caps: Floats, slack: float
) -> Bools:
    """Return bool[F]: at its cap, or fastest on a saturated link; a flow without links needs no more than its cap."""
    level = rates / weights
    fastest = np.zeros(len(capacity))
    np.maximum.at(fastest, links, level[flow_of_hop])
    saturated = load >= capacity * (1 - slack)
    good_hop = saturated[links] & (level[flow_of_hop] >= fastest[links] * (1 - slack))
    bottleneck = rates >= caps * (1 - slack)
    bottleneck[flow_of_hop[good_hop]] = True
    return np.asarray(bottleneck)
