"""Ranks that join an exchange late, at the size of DeepSeek-V3's decode units: they are credited, whatever the mode."""

import numpy as np
import pytest
import simpy

from moesim.engine.collective import Collective
from moesim.engine.fabric import Fabric
from moesim.facts.scenario import Sharing
from moesim.models.topology.nvlink_nodes import NvlinkNodes

NODES, EACH = 40, 8
GPUS = NODES * EACH
LAYERS = 3
TOKEN = 7168.0  # bytes of a token in fp8


@pytest.fixture(scope="module")
def cluster():
    at_once = {"nvlink_latency": 0.0, "nic_latency": 0.0, "switch_latency": 0.0}
    return NvlinkNodes(nodes=NODES, gpus_per_node=EACH, rail_optimised=True, nodes_per_leaf=NODES, **at_once).build()


def two_stages(rng):
    """Bytes of a hierarchical dispatch of 4,096 tokens a rank, top-8, both stages together; popularity of ranks log-normal, sigma 0.5."""
    share = rng.lognormal(0.0, 0.5, GPUS)
    share /= share.sum()
    node, size = np.arange(GPUS) // EACH, np.zeros((GPUS, GPUS))
    to_node = 4096 * TOKEN * (1 - (1 - share.reshape(NODES, EACH).sum(axis=1)) ** 8)
    for gpu in range(GPUS):
        landing = np.arange(NODES) * EACH + gpu % EACH
        size[gpu, landing] = to_node * (1 + 0.2 * rng.random(NODES))
        inside = np.flatnonzero(node == node[gpu])
        size[gpu, inside] = 4096 * TOKEN * NODES * (1 - (1 - share[inside]) ** 8) * (1 + 0.2 * rng.random(EACH))
    np.fill_diagonal(size, 0.0)
    return size


def ends(cluster, mode, jitter):
    """When each rank has left each of the layers; between them every rank computes for a time of its own, up to ``jitter`` seconds."""
    env = simpy.Environment()
    fabric = Fabric(env, cluster, Sharing(mode=mode))
    rng = np.random.default_rng(3)
    layers = [Collective(env, fabric, range(GPUS), two_stages(rng), barrier=False) for _ in range(LAYERS)]
    computing = rng.random((LAYERS, GPUS)) * jitter
    left = np.zeros((LAYERS, GPUS))

    def rank(gpu):
        for layer, collective in enumerate(layers):
            yield env.timeout(computing[layer, gpu])
            yield collective.arrive(gpu)
            left[layer, gpu] = env.now

    for gpu in range(GPUS):
        env.process(rank(gpu))
    env.run()
    fabric.check()
    assert fabric.report()["mode"] == mode
    return left


@pytest.mark.parametrize("jitter", [40e-6, 2e-3])
def test_quanta_do_not_delay_ranks_that_join_late(cluster, jitter):
    # System: EP 320, 14,720 flows a layer on 8 rails and 40 NVLink islands, ranks that arrive one by one. Each arrival begins a quantum of
    # its own, so nobody waits for the end of one: the bias of the last end is asked to be below 0.05 %, and must not add up over layers.
    exact, fast = ends(cluster, "exact", jitter), ends(cluster, "fast", jitter)
    np.testing.assert_allclose(fast.max(axis=1), exact.max(axis=1), rtol=5e-5)
    assert abs((fast / exact - 1).mean()) < 5e-5
    assert np.abs(fast / exact - 1).max() < 5e-3
