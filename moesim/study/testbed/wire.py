"""What a shaped link carries besides data, and how exactly it shapes: laws of Linux's TCP and HTB, and of ranks that share cores to post.

None has a constant to be fitted.

- *Acknowledgements.* TCP answers every packet that a sender has handed to the link in one piece by a packet without data, 66 bytes on the
  wire. It goes the other way, over the reverse of each link. A piece of at most 8192 bytes holds five full packets, so a link carries
  66 / (5 x 1514) = 0.87 % of what its reverse carries on top of its own data. Where a link and its reverse are both full, both end later by
  as much. (Counted on links of the testbed: 0.86 to 0.88 %.)
- *Burst.* A token bucket that has rested lets through its depth at once: a link's bytes less 16 KiB decide when it ends. Where a link
  becomes slower meanwhile, they are worth what they would take in the end. (It becomes so when the tool that changes it is done.)
- *Posting.* Ranks that outnumber the cores do not start to send at the same instant. The smallest all-to-all takes so long because the last
  of them is served so late; in between they start one after the other. A link that one source has long been filling does not notice. One
  that only the last to start fills ends as much later.
- *Waves.* As many ranks as there are cores enter a library's all-to-all at once, then the next as many. Whether the word of those before
  has been read by then depends on which thread the kernel lets run first, and is a toss-up: if not, they are as good as one wave.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from moesim.base.streams import plain_stream
from moesim.facts.arrays import Floats, Ints
from moesim.facts.cluster import Cluster
from moesim.models.bounds import link_bytes
from moesim.models.topology.shaped_hosts import OF_THE_DATA, ON_THE_WIRE

ACKNOWLEDGEMENT = 66
"""Bytes of a packet without data: 14 of Ethernet, 20 of IP, 20 of TCP, 12 of its time stamps."""
PIECE = 8192
"""Most bytes that the kernel hands to a link in one piece (``gso_max_size``); whole packets only."""
ANSWERED = ACKNOWLEDGEMENT / (PIECE // OF_THE_DATA * ON_THE_WIRE)
"""Share of the bytes on a link that come back on its reverse as acknowledgements, 0.0087."""
BURST = 16384
"""Bytes on the wire that a rested link lets through at once."""
UNSHAPED = 1.25e9
"""B/s of a virtual link that nothing holds up; of the order of what one core copies."""
WAYS = {"-out:": "-in:", "-in:": "-out:"}


def with_acknowledgements(cluster: Cluster, sent: Floats) -> Cluster:
    """Return the cluster with links that are slower by the share that acknowledgements of one all-to-all take of them.

    Parameters
    ----------
    cluster : Cluster
        Of a :class:`~moesim.models.topology.shaped_hosts.ShapedHosts`: its links are named by their ways, ``rank-out:0`` and ``rank-in:0``.
    sent : float[G, G]
        Bytes from each rank to each other.

    Returns
    -------
    Cluster
        A link with B bytes, whose reverse carries R, has B / (B + 0.0087 R) of its bandwidth left for data. That is exact for a link that
        is full from beginning to end; of one that is not it hardly matters.
    """
    carried = link_bytes(sent, cluster)
    whole = carried + ANSWERED * carried[ways_back(cluster)]
    share = np.divide(carried, whole, out=np.ones_like(carried), where=carried > 0)
    return replace(cluster, bandwidth=cluster.bandwidth * share)


def ways_back(cluster: Cluster) -> Ints:
    """Return int[K], the link that leads the other way, for each link."""
    place = {name: number for number, name in enumerate(cluster.link_names)}
    return np.array([place[_reverse(name)] for name in cluster.link_names], dtype=np.int64)


def _reverse(link: str) -> str:
    for way, other in WAYS.items():
        if way in link:
            return link.replace(way, other)
    return link


def answered(cluster: Cluster, sent: Floats) -> float:
    """Return by what share the busiest link of an all-to-all is slower because it carries acknowledgements as well.

    For all-to-alls that follow each other: links cannot be given another bandwidth for each, but bytes can be counted with their answers.
    """
    carried = link_bytes(sent, cluster)
    if not carried.any():
        return 0.0
    busiest = int(np.argmax(carried / cluster.bandwidth))
    return float(ANSWERED * carried[ways_back(cluster)[busiest]] / carried[busiest])


def head_start(cluster: Cluster, sent: Floats, payload: float) -> float:
    """Return the seconds that the busiest link saves because its bucket was full when the all-to-all began.

    Parameters
    ----------
    cluster : Cluster
    sent : float[G, G]
        Bytes from each rank to each other.
    payload : float
        Share of the bytes on the wire that are data.
    """
    carried = link_bytes(sent, cluster)
    if not carried.any():
        return 0.0
    busiest = int(np.argmax(carried / cluster.bandwidth))
    return float(min(BURST * payload, carried[busiest]) * (1.0 / cluster.bandwidth[busiest] - 1.0 / UNSHAPED))


def starts(posting: float, ranks: int, order: int, first: int | None = None) -> Floats:
    """Return float[ranks], when each rank starts to send, s: one after the other, the last ``posting`` seconds after the first.

    Parameters
    ----------
    posting : float
        What the smallest all-to-all takes, s.
    ranks : int
        How many.
    order : int
        Which of them is first is drawn anew for every number.
    first : int or None
        Unless one of them is known to be first.
    """
    place = plain_stream(order, ranks).permutation(ranks)
    if first is not None:
        place = np.where(place < place[first], place + 1, place)
        place[first] = 0
    return np.asarray(posting * place / max(ranks - 1, 1))


def waves(ranks: int, cores: int, order: int, apart: float) -> Floats:
    """Return float[ranks], when each rank enters an all-to-all of a library, s.

    Parameters
    ----------
    ranks, cores : int
        How many.
    order : int
        Which rank is in which wave, and which waves are as good as one, is drawn anew for every number.
    apart : float
        Between waves, s.
    """
    draw = plain_stream(order, ranks)
    place = draw.permutation(ranks) // cores
    told = draw.integers(0, 2, max(-(-ranks // cores) - 1, 0))
    return np.asarray(apart * np.concatenate([[0], np.cumsum(told)])[place])
