"""A cluster as arrays: GPUs, links, and which links the bytes between two GPUs cross."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast

import numpy as np

from moesim.facts.arrays import Floats, Ints, frozen
from moesim.facts.gpu import Gpu

T = TypeVar("T")


def _no_pools() -> np.ndarray:
    return np.zeros(0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """G equal GPUs joined by K directed links.

    Parameters
    ----------
    gpu : Gpu
        What every GPU is.
    node_of : int[G]
        The node (server, tray) of each GPU.
    bandwidth, latency : float[K]
        Of each link, in B/s and s.
    link_names : tuple of str
        Unique, for example ``nic-out:3``.
    link_class : tuple of str
        ``nvlink``, ``nic``, ``uplink`` …: what utilisation is grouped by.
    route_start : int[G * G + 1]
    route_link : int[...]
        The links of the route from GPU i to GPU j, in order, are ``route_link[route_start[i * G + j] : route_start[i * G + j + 1]]``.
    basis : str
        The weakest evidence behind the bandwidths and latencies.
    core_pool : int[G]
        Where ranks share processors: the pool of cores in which each GPU (then a rank, a process) computes. Empty: each has its own.
    pool_cores : float[P]
        The cores of each pool. A task runs on one core at most; more tasks than cores share them equally.
    """

    gpu: Gpu
    node_of: Ints
    bandwidth: Floats
    latency: Floats
    link_names: tuple[str, ...]
    link_class: tuple[str, ...]
    route_start: Ints
    route_link: Ints
    basis: str = "datasheet"
    core_pool: Ints = field(default_factory=_no_pools)
    pool_cores: Floats = field(default_factory=_no_pools)
    _worked_out: dict[str, Any] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        for name, dtype in (
            ("node_of", np.int64),
            ("bandwidth", np.float64),
            ("latency", np.float64),
            ("route_start", np.int64),
            ("route_link", np.int64),
            ("core_pool", np.int64),
            ("pool_cores", np.float64),
        ):
            object.__setattr__(self, name, frozen(getattr(self, name), dtype))

    @property
    def gpus(self) -> int:
        """G."""
        return len(self.node_of)

    @property
    def links(self) -> int:
        """K."""
        return len(self.bandwidth)

    @property
    def shares_cores(self) -> bool:
        """Whether some pool has fewer cores than ranks."""
        return bool((np.bincount(self.core_pool, minlength=len(self.pool_cores)) > self.pool_cores).any())

    @property
    def nodes(self) -> int:
        """How many nodes hold GPUs."""
        return int(self.node_of.max()) + 1

    def route(self, source: int, destination: int) -> Ints:
        """Return the links from one GPU to another, in order; empty for a GPU to itself."""
        pair = source * self.gpus + destination
        return self.route_link[self.route_start[pair] : self.route_start[pair + 1]]

    def route_latency(self) -> Floats:
        """Return float[G, G], the sum of the latencies along each route, in s."""
        pair_of_hop = np.repeat(np.arange(self.gpus * self.gpus), np.diff(self.route_start))
        totals = np.bincount(pair_of_hop, weights=self.latency[self.route_link], minlength=self.gpus * self.gpus)
        return totals.astype(np.float64, copy=False).reshape(self.gpus, self.gpus)

    def once(self, name: str, make: Callable[[], T]) -> T:
        """Return what ``make`` returns, and remember it under a name: a cluster never changes, nor does what follows from it alone.

        Whatever takes all pairs of GPUs to work out is so worked out once for all fabrics on this cluster. Nobody may change it.
        """
        if name not in self._worked_out:
            self._worked_out[name] = make()
        return cast("T", self._worked_out[name])

    def crosses_nodes(self) -> np.ndarray:
        """Return bool[G, G]: true where two GPUs sit in different nodes."""
        return np.asarray(self.node_of[:, None] != self.node_of[None, :])
