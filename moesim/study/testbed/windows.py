"""Flows of a fixed window through links with one queue each: what TCP does where queues tell nobody apart.

Every flow has as many bytes under way as every other one (the send buffer), and none is lost. What a flow gets of a link is then its share
of the bytes in the link's queue. With d the queueing delay of each link, flow f moves

    x[f] = W / (sum of d over its links + sum of d over the links of its way back)

for its acknowledgements wait in the queues of the way back, as data does. Links with a queue are full. W falls out, since delays grow with
it. Without the way back this is proportional fairness (L. Massoulié and J. Roberts, "Bandwidth sharing: objectives and algorithms",
IEEE/ACM Transactions on Networking 10(3), 2002). With it, the two directions of a pair are equally fast, which neither that nor max-min
fairness knows.
"""

from __future__ import annotations

import numpy as np

from moesim.base.errors import CalibrationError
from moesim.facts.arrays import Floats, Ints
from moesim.facts.cluster import Cluster

STEP = 0.3
"""Exponent by which delays follow the loads of their links: small enough not to swing."""
CLOSE = 1e-6
"""Relative change of delays at which they have settled."""
ROUNDS = 20_000
LEAST = 1e-9
"""Delay of a link without a queue, as a share of the longest."""


def ends_of_windows(cluster: Cluster, sent: Floats, start: Floats, *, back: Ints, answered: float) -> Floats:
    """Return when each rank has sent and received everything, s.

    Parameters
    ----------
    cluster : Cluster
        Links and routes.
    sent : float[G, G]
        Bytes from each rank to each other.
    start : float[G]
        When each rank starts to send, s.
    back : int[K]
        The reverse of each link.
    answered : float
        Share of the bytes on a link that come back on its reverse as acknowledgements.

    Returns
    -------
    float[G]
        A rank with nothing to send or receive ends when it starts.

    Raises
    ------
    CalibrationError
        If delays do not settle.
    """
    ends = np.array(start, dtype=np.float64)
    source, destination = np.nonzero(sent)
    left = sent[source, destination].astype(np.float64)
    size = left.copy()
    there = _links_of(cluster, source, destination)
    capacity = cluster.bandwidth / cluster.bandwidth.max()
    delay = np.ones(cluster.links)
    now = 0.0
    while (left > 0).any():
        going = np.flatnonzero((left > 0) & (start[source] <= now))
        later = start[source][(left > 0) & (start[source] > now)]
        until = float(later.min()) if len(later) else np.inf
        if not len(going):
            now = until
            continue
        rate, delay = _rates(there[going], there[going][:, back], capacity, delay, answered)
        rate *= cluster.bandwidth.max()
        seconds = left[going] / rate
        if seconds.min() > until - now:
            left[going] -= rate * (until - now)
            now = until
            continue
        now += float(seconds.min())
        left[going] -= rate * seconds.min()
        over = going[left[going] <= CLOSE * size[going]]  # flows that tie end together, whatever rounding makes of them
        left[over] = 0.0
        np.maximum.at(ends, source[over], now)
        np.maximum.at(ends, destination[over], now)
    return ends


def _links_of(cluster: Cluster, source: Ints, destination: Ints) -> Floats:
    """Return float[F, K], 1 where a flow goes over a link."""
    found = np.zeros((len(source), cluster.links))
    for flow, pair in enumerate((source * cluster.gpus + destination).tolist()):
        found[flow, cluster.route_link[cluster.route_start[pair] : cluster.route_start[pair + 1]]] = 1.0
    return found


def _rates(there: Floats, back: Floats, capacity: Floats, delay: Floats, answered: float) -> tuple[Floats, Floats]:
    """Return float[F], what each flow moves, and float[K], the delays at which that is so; ``delay`` is where the search begins."""
    both, volume = there + back, there + answered * back
    delay = np.maximum(delay, 1e-3 * delay.max())  # a link that had no queue may get one
    for _ in range(ROUNDS):
        rate = 1.0 / (both @ delay)
        load = rate @ volume / capacity
        new = delay * np.where(load > 0, load, LEAST) ** STEP
        new = np.maximum(new, LEAST * new.max())
        settled = np.abs(new - delay).max() <= CLOSE * delay.max()
        delay = new
        if settled:
            return rate / max(1.0, float(load.max())), delay
    raise CalibrationError(f"the queues of {len(there)} flows do not settle: their traffic cannot be predicted for one queue per link")
