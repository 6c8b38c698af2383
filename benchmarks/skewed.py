"""Skewed all-to-all traffic as flows on links: the problems that the benchmarks and the comparison with SimGrid solve.

Nodes of GPUs joined by NVLink; a network card per GPU; leaves of a few nodes; one or more spines above them. Within a node a flow
crosses the NVLink port of its source and of its destination; between nodes their cards; between leaves one uplink and one downlink besides.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from moesim.facts.cluster import Cluster
from moesim.facts.gpu import Gpu

NVLINK = 450e9  # B/s, each direction: half of the 900 GB/s that NVIDIA states for an H100 SXM
NIC = 50e9  # B/s: one port of 400 Gb/s
COPY = 7168  # B: one token of DeepSeek-V3 (hidden 7168) in FP8
TOKENS, TOP_K = 4096, 8
SPREAD = 0.25  # sigma by which the taste of a rank differs from that of all

Counts = NDArray[np.int64]


def no_changes() -> tuple[NDArray[np.float64], NDArray[np.int32], NDArray[np.float64]]:
    return np.empty(0), np.empty(0, dtype=np.int32), np.empty(0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """F flows on K links.

    Parameters
    ----------
    gpus : int
        How many ends flows can have.
    capacity : float[K]
        In B/s.
    route : int32[F, H]
        The links of each flow, padded with -1.
    source, destination : int32[F]
        Its GPUs.
    size : float[F]
        Whole bytes.
    start : float[F]
        When it begins to move, in s.
    weight, cap : float[F] or None
        Its share relative to others; the most it can use, in B/s.
    changes : (float[C], int32[C], float[C])
        At this time, this link, gets this capacity; in order of time.
    """

    gpus: int
    capacity: NDArray[np.float64]
    route: NDArray[np.int32]
    source: NDArray[np.int32]
    destination: NDArray[np.int32]
    size: NDArray[np.float64]
    start: NDArray[np.float64]
    weight: NDArray[np.float64] | None = None
    cap: NDArray[np.float64] | None = None
    changes: tuple[NDArray[np.float64], NDArray[np.int32], NDArray[np.float64]] = field(default_factory=no_changes)

    @property
    def flows(self) -> int:
        return len(self.size)

    @property
    def bound(self) -> float:
        """The most seconds that any link needs for its bytes."""
        load = np.zeros(len(self.capacity))
        for hop in self.route.T:
            used = hop >= 0
            load += np.bincount(hop[used], weights=self.size[used], minlength=len(load))
        return float((load / self.capacity).max())

    def flat_routes(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Routes as the NumPy reference takes them: where each begins, and the links one after the other."""
        used = self.route >= 0
        return np.concatenate([[0], np.cumsum(used.sum(axis=1))]), self.route[used].astype(np.int64)

    def cluster(self) -> Cluster:
        """The same links and routes for the engine; pairs of GPUs without a flow have no route."""
        pair = self.source.astype(np.int64) * self.gpus + self.destination
        order = np.argsort(pair, kind="stable")
        _, first = np.unique(pair[order], return_index=True)
        chosen = order[first]
        used = self.route[chosen] >= 0
        lengths = np.zeros(self.gpus * self.gpus, dtype=np.int64)
        lengths[pair[chosen]] = used.sum(axis=1)
        links = len(self.capacity)
        return Cluster(
            gpu=Gpu(name="any", flops={"bf16": 1e15}, memory=1e11, memory_bandwidth=1e12, nvlink=NVLINK, nic=NIC, sms=132),
            node_of=np.arange(self.gpus),
            bandwidth=self.capacity,
            latency=np.zeros(links),
            link_names=tuple(f"link:{link}" for link in range(links)),
            link_class=("link",) * links,
            route_start=np.concatenate([[0], np.cumsum(lengths)]),
            route_link=self.route[chosen][used].astype(np.int64),
        )


def popularity(gpus: int, sigma: float, rng: np.random.Generator, experts: int = 256) -> NDArray[np.float64]:
    """float[G]: the experts' popularity, log-normal, summed over the experts of each GPU; at least one expert on each."""
    each = max(experts // gpus, 1)
    return rng.lognormal(sigma=sigma, size=(gpus, each)).sum(axis=1)


def copies(gpus: int, *, sigma: float, tokens: int, rng: np.random.Generator, experts: int = 256) -> Counts:
    """int[G, G]: copies that each GPU sends to each other; whole numbers that add up to ``tokens * TOP_K`` per source."""
    taste = popularity(gpus, sigma, rng, experts) * rng.lognormal(sigma=SPREAD, size=(gpus, gpus))
    return np.stack([rng.multinomial(tokens * TOP_K, row / row.sum()) for row in taste])


def in_bytes(count: Counts, *, distinct: bool, rng: np.random.Generator) -> NDArray[np.float64]:
    """Whole bytes of so many copies; ``distinct`` moves each by up to a thousandth, so that no two flows end together by construction."""
    size = count * float(COPY)
    return np.round(size * (1 + 1e-3 * rng.random(count.shape))) if distinct else size


def two_tiers(
    gpus: int,
    *,
    oversubscription: float = 2.0,
    spines: int = 1,
    sigma: float = 0.5,
    tokens: int = TOKENS,
    experts: int = 256,
    uniform: bool = False,
    distinct: bool = True,
    gpus_per_node: int = 8,
    nodes_per_leaf: int = 4,
    seed: int = 0,
) -> Problem:
    """Every GPU sends to every other over nodes, leaves and spines; a fixed hash of the pair chooses the spine."""
    rng = np.random.default_rng(seed)
    count = np.full((gpus, gpus), tokens * TOP_K // gpus) if uniform else copies(gpus, sigma=sigma, tokens=tokens, rng=rng, experts=experts)
    np.fill_diagonal(count, 0)
    size = in_bytes(count, distinct=distinct, rng=rng)
    source, destination = (side.astype(np.int32) for side in np.nonzero(count))
    node = np.arange(gpus) // gpus_per_node
    leaf = node // nodes_per_leaf
    leaves = int(leaf[-1]) + 1
    across_nodes = node[source] != node[destination]
    across_leaves = leaf[source] != leaf[destination]
    # Links: NVLink out, NVLink in, card out, card in (one per GPU); then uplinks and downlinks (one per leaf and spine).
    spine = (source * 7919 + destination * 104_729) % spines
    route = np.full((len(source), 4), -1, dtype=np.int32)
    route[:, 0] = source + np.where(across_nodes, 2 * gpus, 0)
    route[:, 1] = destination + np.where(across_nodes, 3 * gpus, gpus)
    uplinks, downlinks = 4 * gpus, 4 * gpus + leaves * spines
    route[across_leaves, 2] = (uplinks + leaf[source] * spines + spine)[across_leaves]
    route[across_leaves, 3] = (downlinks + leaf[destination] * spines + spine)[across_leaves]
    uplink = np.repeat(np.bincount(leaf) * NIC / oversubscription / spines, spines)
    return Problem(
        gpus=gpus,
        capacity=np.concatenate([np.full(2 * gpus, NVLINK), np.full(2 * gpus, NIC), uplink, uplink]),
        route=route,
        source=source,
        destination=destination,
        size=size[source, destination],
        start=np.zeros(len(source)),
    )


def one_switch(gpus: int, *, sigma: float = 0.5, tokens: int = TOKENS, distinct: bool = True, seed: int = 0) -> Problem:
    """Every GPU sends to every other through one switch: a link out and a link in per GPU."""
    rng = np.random.default_rng(seed)
    count = copies(gpus, sigma=sigma, tokens=tokens, rng=rng)
    np.fill_diagonal(count, 0)
    source, destination = (side.astype(np.int32) for side in np.nonzero(count))
    return Problem(
        gpus=gpus,
        capacity=np.full(2 * gpus, NVLINK),
        route=np.stack([source, gpus + destination], axis=1).astype(np.int32),
        source=source,
        destination=destination,
        size=in_bytes(count, distinct=distinct, rng=rng)[source, destination],
        start=np.zeros(len(source)),
    )


def rail_copies(gpus: int, *, gpus_per_node: int, sigma: float, tokens: int, rng: np.random.Generator) -> tuple[Counts, Counts]:
    """int[G, G] each: the copies of the two stages of a hierarchical dispatch, across nodes on rails and then within nodes.

    A token travels once to each node that holds one of its experts, and once to each GPU there that does. How many do is drawn from the
    binomial distribution of "at least one of k draws falls there".
    """
    nodes = gpus // gpus_per_node
    taste = popularity(gpus, sigma, rng) * rng.lognormal(sigma=SPREAD, size=(gpus, gpus))
    share = taste / taste.sum(axis=1, keepdims=True)
    to_node = rng.binomial(tokens, 1 - (1 - share.reshape(gpus, nodes, gpus_per_node).sum(axis=2)) ** TOP_K)
    to_gpu = rng.binomial(tokens, 1 - (1 - share) ** TOP_K)
    number = np.arange(gpus)
    across, within = np.zeros((2, gpus, gpus), dtype=np.int64)
    # GPU i of a node sends to GPU i of another, which hands on to its neighbours what came from the i-th GPU of every node.
    landing = np.arange(nodes) * gpus_per_node + (number % gpus_per_node)[:, None]
    across[number[:, None], landing] = to_node
    for node in range(nodes):
        mine = slice(node * gpus_per_node, (node + 1) * gpus_per_node)
        within[mine, mine] = to_gpu[:, mine].reshape(nodes, gpus_per_node, gpus_per_node).sum(axis=0)
    np.fill_diagonal(across, 0)
    np.fill_diagonal(within, 0)
    return across, within


def rails(
    gpus: int,
    *,
    gpus_per_node: int = 8,
    sigma: float = 0.5,
    tokens: int = TOKENS,
    distinct: bool = True,
    staged: bool = False,
    seed: int = 0,
) -> Problem:
    """Both stages of a hierarchical dispatch at once. Rails share no link, so the flows fall into independent parts.

    With ``staged`` each flow within a node starts at some moment of the first tenth of a millisecond instead of at once.
    """
    rng = np.random.default_rng(seed)
    across, within = rail_copies(gpus, gpus_per_node=gpus_per_node, sigma=sigma, tokens=tokens, rng=rng)
    outer, inner = np.nonzero(across), np.nonzero(within)
    source, destination = (np.concatenate(ends).astype(np.int32) for ends in zip(outer, inner, strict=True))
    count = np.concatenate([across[outer], within[inner]])
    first = np.repeat([2 * gpus, 0], [len(outer[0]), len(inner[0])])
    start = np.zeros(len(source))
    if staged:
        start[len(outer[0]) :] = np.round(rng.uniform(0, 1e-4, len(inner[0])), 9)
    return Problem(
        gpus=gpus,
        capacity=np.concatenate([np.full(2 * gpus, NVLINK), np.full(2 * gpus, NIC)]),
        route=np.stack([first + source, first + gpus + destination], axis=1).astype(np.int32),
        source=source,
        destination=destination,
        size=in_bytes(count, distinct=distinct, rng=rng),
        start=start,
    )


def torus(side: int, *, sigma: float = 0.5, tokens: int = TOKENS, link: float = NIC, seed: int = 0) -> Problem:
    """A square torus without switches: first along the row, then along the column, the shorter way round (the lower one if both are)."""
    rng = np.random.default_rng(seed)
    gpus = side * side
    count = copies(gpus, sigma=sigma, tokens=tokens, rng=rng)
    np.fill_diagonal(count, 0)
    source, destination = (end.astype(np.int32) for end in np.nonzero(count))
    paths = [torus_path(side, int(one), int(other)) for one, other in zip(source, destination, strict=True)]
    route = np.full((len(paths), max(map(len, paths))), -1, dtype=np.int32)
    for flow, path in enumerate(paths):
        route[flow, : len(path)] = path
    return Problem(
        gpus=gpus,
        capacity=np.full(4 * gpus, link),
        route=route,
        source=source,
        destination=destination,
        size=in_bytes(count, distinct=True, rng=rng)[source, destination],
        start=np.zeros(len(source)),
    )


def torus_path(side: int, source: int, destination: int) -> list[int]:
    """Links of a route; link 4 g + 0, 1, 2, 3 leaves GPU g to the right, left, down, up."""
    (row, column), (to_row, to_column) = divmod(source, side), divmod(destination, side)
    links = []
    ahead = (to_column - column) % side
    step, turn = (1, 0) if 2 * ahead <= side else (-1, 1)
    while column != to_column:
        links.append(4 * (row * side + column) + turn)
        column = (column + step) % side
    ahead = (to_row - row) % side
    step, turn = (1, 2) if 2 * ahead <= side else (-1, 3)
    while row != to_row:
        links.append(4 * (row * side + column) + turn)
        row = (row + step) % side
    return links
