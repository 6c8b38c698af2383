"""Small clusters built by hand, for tests that want to know every link."""

import numpy as np

from moesim.facts.cluster import Cluster
from moesim.facts.gpu import Gpu

GPU = Gpu(name="test", flops={"bf16": 1e12}, memory=1e9, memory_bandwidth=1e12, nvlink=1.0, nic=1.0, sms=1)


def star(gpus: int, bandwidth: float = 10.0, latency: float = 0.0) -> Cluster:
    """Every GPU has one link out (k = gpu) and one in (k = gpus + gpu) of the same bandwidth."""
    routes = [[] if i == j else [i, gpus + j] for i in range(gpus) for j in range(gpus)]
    return Cluster(
        gpu=GPU,
        node_of=np.arange(gpus),
        bandwidth=np.full(2 * gpus, bandwidth),
        latency=np.full(2 * gpus, latency / 2),
        link_names=tuple(f"out:{i}" for i in range(gpus)) + tuple(f"in:{i}" for i in range(gpus)),
        link_class=("nic",) * (2 * gpus),
        route_start=np.cumsum([0, *[len(route) for route in routes]]),
        route_link=np.array([link for route in routes for link in route]),
    )


def between_pairs(
    gpus: int, bandwidth: np.ndarray, source: np.ndarray, destination: np.ndarray, routes: tuple[np.ndarray, np.ndarray]
) -> Cluster:
    """Any links, and a route for each of the pairs given; at zero latency. ``routes`` are where each begins, and their links in a row."""
    begin, link = routes
    found = [np.empty(0, dtype=np.int64)] * (gpus * gpus)
    for flow, pair in enumerate((source * gpus + destination).tolist()):
        found[pair] = link[begin[flow] : begin[flow + 1]]
    return Cluster(
        gpu=GPU,
        node_of=np.arange(gpus),
        bandwidth=bandwidth,
        latency=np.zeros(len(bandwidth)),
        link_names=tuple(f"link:{k}" for k in range(len(bandwidth))),
        link_class=("link",) * len(bandwidth),
        route_start=np.cumsum([0, *[len(links) for links in found]]),
        route_link=np.concatenate(found),
    )
