"""What traffic did to an otherwise idle fabric."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from moesim.facts.arrays import Floats, frozen
from moesim.facts.cluster import Cluster


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkResult:
    """Traffic that started at 0 on an idle fabric, and what became of it.

    Parameters
    ----------
    cluster : Cluster
        Links and routes.
    ranks : int
        How many GPUs take part in one collective (n).
    size : float
        Bytes of a rank's buffer, as nccl-tests counts them.
    bus_factor : float
        Bus bandwidth over algorithm bandwidth: (n - 1) / n for an all-to-all (nccl-tests ``doc/PERFORMANCE.md``).
    asked : float[G, G]
        Bytes from source (row) to destination, summed over the stages; the diagonal is 0.
    finish : float
        When the last byte had arrived, in s; 0 if nothing was sent.
    carried, busy : float[K]
        Bytes that went over each link, and the seconds in which it carried any.
    edges : float[B + 1]
        Where the bins of time begin and end, in s: equal widths, but for the last, which may be shorter.
    moved : float[B, K]
        Bytes that went over each link in each bin.
    sharing : mapping
        How exactly links were shared.
    """

    cluster: Cluster
    ranks: int
    size: float
    bus_factor: float
    asked: Floats
    finish: float
    carried: Floats
    busy: Floats
    edges: Floats
    moved: Floats
    sharing: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("asked", "carried", "busy", "edges", "moved"):
            object.__setattr__(self, name, frozen(getattr(self, name), np.float64))

    @property
    def algbw(self) -> float:
        """Algorithm bandwidth of nccl-tests: the buffer of a rank over the time, in B/s; 0 if nothing was sent."""
        return self.size / self.finish if self.finish > 0 else 0.0

    @property
    def busbw(self) -> float:
        """Bus bandwidth of nccl-tests, in B/s: what a rank would have to send in the best of all algorithms over the time."""
        return self.algbw * self.bus_factor

    @property
    def utilisation(self) -> Floats:
        """Return float[K], bytes of each link over what it could have carried until the end."""
        could = self.cluster.bandwidth * self.finish
        return np.divide(self.carried, could, out=np.zeros_like(self.carried), where=could > 0)

    @property
    def utilisation_over_time(self) -> Floats:
        """Return float[B, K], bytes of each link in each bin over what it could have carried in it."""
        could = np.diff(self.edges)[:, None] * self.cluster.bandwidth
        return np.divide(self.moved, could, out=np.zeros_like(self.moved), where=could > 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Shortfall:
    """Why traffic took longer than its mean port: factors whose product is the slowdown.

    Parameters
    ----------
    port_class : str
        The kind of port (a link that only one GPU uses) that even loads would fill first: ``nic``, ``nvlink`` …
    port_bandwidth : float
        Mean over these ports, in B/s.
    ideal : float
        Seconds in which these ports, all equally loaded and always busy, would carry the bytes.
    port_bound, link_bound : float
        Seconds that the busiest port, and the busiest link, need for their bytes.
    bottleneck : int
        The busiest link: the one with the most bytes per bandwidth; of several the lowest number.
    flows, sources, destinations : int
        Of the pairs of GPUs whose bytes cross it.
    factors : mapping of str to float
        ``skew``, ``oversubscription``, ``collisions``, ``sharing`` and ``latency``; see :func:`moesim.models.shortfall.shortfall`.
    """

    port_class: str
    port_bandwidth: float
    ideal: float
    port_bound: float
    link_bound: float
    bottleneck: int
    flows: int
    sources: int
    destinations: int
    factors: Mapping[str, float]

    @property
    def slowdown(self) -> float:
        """Time taken over ``ideal``: the product of the factors."""
        return float(np.prod(list(self.factors.values())))

    @property
    def share_of_port(self) -> float:
        """What part of the rate of its ports the traffic got, on average over the ports and the time."""
        return 1.0 / self.slowdown
