"""Where the copies of a token go if its experts are drawn uniformly: closed forms of de-duplication."""

from __future__ import annotations

import numpy as np
from scipy.special import gammaln

from moesim.facts.arrays import Floats


def expected_distinct(groups: Floats, experts: Floats, top_k: Floats) -> Floats:
    """Return how many of ``groups`` equal groups of experts hold at least one of ``top_k`` distinct experts drawn uniformly.

    ``groups * (1 - C(E - E/groups, k) / C(E, k))``: each group is missed with the probability that all k experts lie outside it. A group
    is a
    GPU for the copies of a de-duplicating all-to-all, or a node for the copies that cross the network.

    Parameters
    ----------
    groups : Floats[n]
        At least 1.
    experts : Floats[n]
        E, shared out evenly; a fraction per group is allowed, as where replicas are counted.
    top_k : Floats[n]
        At most ``experts``.

    Returns
    -------
    Floats[n]
        Between 1 and ``min(groups, top_k)``.

    Examples
    --------
    >>> expected_distinct(np.asarray([2.0]), np.asarray([4.0]), np.asarray([2.0])).round(4).tolist()  # 1 in 3 pairs share a group
    [1.6667]
    """
    outside = experts - experts / groups
    left = outside - top_k + 1
    inside = np.where(left > 0, left, 1.0)
    log_missed = gammaln(outside + 1) - gammaln(inside) - gammaln(experts + 1) + gammaln(experts - top_k + 1)
    missed = np.where(left > 0, np.exp(np.minimum(log_missed, 0.0)), 0.0)
    return np.asarray(groups * (1.0 - missed))
