"""The compiled sharing core against its NumPy twin, in one run: a skewed all-to-all over two tiers."""

import time

import numpy as np
import pytest
import simpy

from moesim.engine.fabric import Fabric
from moesim.models.sharing.reference import drain
from moesim.models.topology.nvlink_nodes import NvlinkNodes


def all_to_all(gpus):
    cluster = NvlinkNodes(nodes=gpus // 8, oversubscription=2, nodes_per_leaf=1).build()
    rng = np.random.default_rng(1)
    source, destination = (side.ravel() for side in np.meshgrid(np.arange(gpus), np.arange(gpus), indexing="ij"))
    apart = source != destination
    source, destination = source[apart], destination[apart]
    size = rng.integers(50, 900, len(source)) * 7168.0 * rng.lognormal(sigma=0.5, size=gpus)[destination]
    return cluster, source, destination, size


def through_simpy(cluster, source, destination, size):
    env = simpy.Environment()
    fabric = Fabric(env, cluster)
    ends = []
    watch = np.array([fabric.watch(lambda: ends.append(env.now)) for _ in range(2 * cluster.gpus)], dtype=np.int32)
    fabric.transfer(source, destination, size, np.stack([watch[source], watch[cluster.gpus + destination]], axis=1))
    env.run()
    return max(ends)


@pytest.mark.parametrize("gpus", [16, 32, 64])
def test_compiled(benchmark, gpus):
    case = all_to_all(gpus)
    assert benchmark(lambda: through_simpy(*case)) > 0


@pytest.mark.parametrize("gpus", [16])
def test_ratio_to_the_numpy_twin(benchmark, gpus):
    cluster, source, destination, size = all_to_all(gpus)
    routes = [cluster.route(s, d) for s, d in zip(source, destination, strict=True)]
    flows = (np.cumsum([0, *[len(route) for route in routes]]), np.concatenate(routes))
    latency = cluster.route_latency()[source, destination]
    through_simpy(cluster, source, destination, size)
    ratios = []
    for _ in range(3):
        began = time.perf_counter()
        expected = drain(cluster.bandwidth, *flows, size, latency).max()
        middle = time.perf_counter()
        seen = through_simpy(cluster, source, destination, size)
        ratios.append((middle - began) / (time.perf_counter() - middle))
    benchmark.extra_info["times_as_fast"] = float(np.median(ratios))
    assert seen == pytest.approx(expected, rel=1e-9)
    benchmark.pedantic(lambda: through_simpy(cluster, source, destination, size), rounds=3)
