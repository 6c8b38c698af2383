"""Bounds of many exchanges at once, each inside a group of GPUs: :mod:`moesim.models.bounds`, worked out over the pairs of groups only.

A cluster has as many pairs of GPUs as the square of its size, its groups together only as many as GPUs times ranks. And a group meets few
of the cluster's links: each link is written down once for every group, or GPU, whose routes cross it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from moesim.facts.arrays import Bools, Floats, Ints
from moesim.facts.cluster import Cluster
from moesim.models.bounds import hops

MOST_ELEMENTS = 500_000
"""Of a temporary array."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Bounds:
    """What N exchanges in each of some groups ask for, and what they cannot be faster than; s and B.

    Parameters
    ----------
    link_bound : float[N, groups]
        :func:`~moesim.models.bounds.link_bound` of the exchange.
    bottleneck : int[N, groups]
        The link of that bound; -1 if nothing is sent.
    port_bound : float[N, groups]
        :func:`~moesim.models.bounds.port_bound`.
    alone : float[N, groups, R]
        :func:`~moesim.models.bounds.port_seconds` of each GPU of the group.
    bytes, cross_node_bytes : float[N, groups]
        What is sent, and how much of it from node to node.
    """

    link_bound: Floats
    bottleneck: Ints
    port_bound: Floats
    alone: Floats
    bytes: Floats
    cross_node_bytes: Floats


class GroupRoutes:
    """The routes inside each group of GPUs with consecutive numbers.

    Parameters
    ----------
    cluster : Cluster
    ranks : int
        R, the GPUs of a group.
    own : bool[K]
        :func:`~moesim.models.bounds.port_links` of the cluster.
    """

    def __init__(self, cluster: Cluster, ranks: int, own: Bools) -> None:
        gpus = cluster.gpus
        self._groups, self._ranks = gpus // ranks, ranks
        source = np.repeat(np.arange(gpus), ranks)
        destination = source // ranks * ranks + np.tile(np.arange(ranks), gpus)
        link, pair = hops(source * gpus + destination, cluster)
        self._of_group = _Met(source[pair] // ranks, link, self._groups, cluster)
        self._of_sender = _Met(source[pair], link, gpus, cluster)
        self._of_receiver = _Met(destination[pair], link, gpus, cluster)
        self._each = np.bincount(pair, minlength=len(source))
        self._before = np.cumsum(self._each) - self._each
        self._own = self._of_group.marked(own)
        node_of = cluster.node_of.reshape(self._groups, ranks)
        self._crosses = node_of[:, :, None] != node_of[:, None, :]

    def bounds(self, sizes: Floats) -> Bounds:
        """Return the bounds of exchanges.

        Parameters
        ----------
        sizes : float[N, groups, R, R]
            Bytes from each GPU of a group to each other of it; the diagonals are ignored.
        """
        some = max(MOST_ELEMENTS // max(int(self._each.sum()), 1), 1)
        parts = [self._some(sizes[first : first + some]) for first in range(0, max(len(sizes), 1), some)]
        return Bounds(**{name: np.concatenate([part[name] for part in parts]) for name in parts[0]})

    def _some(self, sizes: Floats) -> dict[str, np.ndarray]:
        count, own = len(sizes), np.arange(self._ranks)
        away = np.array(sizes, dtype=np.float64)
        away[:, :, own, own] = 0.0
        sent = self._sent(away.reshape(count, -1))
        seconds = self._of_group.seconds(sent)
        most = self._of_group.most(seconds)
        senders, receivers = (met.most(met.seconds(sent)) for met in (self._of_sender, self._of_receiver))
        across = np.where(self._crosses, away, 0.0)
        return {
            "link_bound": most,
            "bottleneck": self._of_group.which(seconds, most),
            "port_bound": self._of_group.most(np.where(self._own, seconds, 0.0)),
            "alone": np.maximum(senders, receivers).reshape(count, self._groups, self._ranks),
            "bytes": away.reshape(count, self._groups, -1).sum(axis=2),
            "cross_node_bytes": across.reshape(count, self._groups, -1).sum(axis=2),
        }

    def _sent(self, away: Floats) -> _Sent:
        """Return what goes over the hops of pairs that send anything, which are few in exchanges of several stages."""
        flat = np.flatnonzero(away)
        exchange, pair = np.divmod(flat, away.shape[1])
        each = self._each[pair]
        hop = np.arange(each.sum()) + np.repeat(self._before[pair] - (np.cumsum(each) - each), each)
        return _Sent(len(away), np.repeat(exchange, each), hop, np.repeat(away.ravel()[flat], each))


def bounds_of_flows(source: Ints, destination: Ints, size: Floats, ranks: Sequence[int], cluster: Cluster, own: Bools) -> Bounds:
    """Return the bounds of one exchange, N = 1 in one group, from its flows.

    Parameters
    ----------
    source, destination : int[F]
        GPUs among ``ranks``, never the same, in ascending order of the pairs; each pair once.
    size : float[F]
        Bytes of each.
    ranks : sequence of int
        The GPUs that take part, in any order: that of ``alone``.
    cluster : Cluster
    own : bool[K]
        :func:`~moesim.models.bounds.port_links` of the cluster.
    """
    link, flow = hops(source * cluster.gpus + destination, cluster)
    taking_part = np.asarray(ranks, dtype=np.int64)
    order = np.argsort(taking_part)
    sent = _Sent(1, np.zeros(len(flow), dtype=np.int64), np.arange(len(flow)), size[flow])
    together = _Met(np.zeros(len(flow), dtype=np.int64), link, 1, cluster)
    seconds = together.seconds(sent)
    most = together.most(seconds)
    alone = np.zeros((1, len(taking_part)))
    for end in (source, destination):
        place = order[np.searchsorted(taking_part[order], end)]
        met = _Met(place[flow], link, len(taking_part), cluster)
        alone = np.maximum(alone, met.most(met.seconds(sent)))
    across = cluster.node_of[source] != cluster.node_of[destination]
    return Bounds(
        link_bound=most,
        bottleneck=together.which(seconds, most),
        port_bound=together.most(np.where(together.marked(own), seconds, 0.0)),
        alone=alone[:, None, :],
        bytes=np.array([[size.sum()]]),
        cross_node_bytes=np.array([[size[across].sum()]]),
    )


class _Sent(NamedTuple):
    """What goes over hops in N exchanges."""

    exchanges: int  # N
    exchange: Ints  # [F], of each amount
    hop: Ints  # [F]
    bytes: Floats  # [F]


class _Met:
    """The links that each owner's routes cross, one after another by owner and number, and before each owner's a place that stays empty.

    Parameters
    ----------
    owner, link : int[H]
        Of each hop.
    owners : int
        How many there are; some may have no hop.
    cluster : Cluster
        For its bandwidths.
    """

    def __init__(self, owner: Ints, link: Ints, owners: int, cluster: Cluster) -> None:
        each = cluster.links + 1
        key, begin = owner * each + link + 1, np.arange(owners) * each
        if owners * each <= 8 * len(key):  # marks are quicker than sorting, as long as there is about one for each hop
            met = np.zeros(owners * each, dtype=np.bool_)
            met[key] = met[begin] = True
            known = np.flatnonzero(met)
            self._place = (np.cumsum(met) - 1)[key]
        else:
            known, place = np.unique(np.concatenate([begin, key]), return_inverse=True)
            self._place = place.ravel()[owners:]
        self._first = np.searchsorted(known, begin)
        self._link = known % each - 1
        self._links = cluster.links
        self._bandwidth = np.append(cluster.bandwidth, 1.0)[self._link]

    def marked(self, links: Bools) -> Bools:
        """Return bool[places] from bool[K]."""
        return np.append(links, False)[self._link]

    def seconds(self, sent: _Sent) -> Floats:
        """Return float[N, places], how long each link needs for what goes over the hops."""
        places = len(self._link)
        sums = np.bincount(sent.exchange * places + self._place[sent.hop], weights=sent.bytes, minlength=sent.exchanges * places)
        return np.asarray(sums.reshape(sent.exchanges, places) / self._bandwidth)

    def most(self, seconds: Floats) -> Floats:
        """Return float[N, owners], the most of each owner."""
        return np.asarray(np.maximum.reduceat(seconds, self._first, axis=1))

    def which(self, seconds: Floats, most: Floats) -> Ints:
        """Return int[N, owners], the link that needs the most, of several the one with the lowest number; -1 where none needs any time."""
        length = np.diff(self._first, append=len(self._link))
        longest = (seconds == np.repeat(most, length, axis=1)) & (self._link >= 0)
        lowest = np.minimum.reduceat(np.where(longest, self._link, self._links), self._first, axis=1)
        return np.asarray(np.where(most > 0, lowest, -1))
