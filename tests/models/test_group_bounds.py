"""Bounds inside groups, against those of whole matrices, to the last bit; and what they cost as clusters grow."""

import numpy as np
import pytest
from clusters import GPU, star
from hypothesis import given, settings
from hypothesis import strategies as st

from moesim.facts.cluster import Cluster
from moesim.facts.gpu_presets import gpu_presets
from moesim.models.bounds import hops, link_bound, port_bound, port_links, port_seconds
from moesim.models.group_bounds import GroupRoutes, bounds_of_flows
from moesim.models.topology.nvlink_nodes import NvlinkNodes


def nodes_of(nodes, each=4):
    return NvlinkNodes(gpu=gpu_presets()["h100-sxm"], nodes=nodes, gpus_per_node=each).build()


CLUSTERS = {4: nodes_of(2, 2), 8: nodes_of(2), 12: star(12, 10.0), 16: nodes_of(4)}


def by_whole_matrices(size, ranks, cluster, own):
    """The same bounds one by one, over all pairs of the cluster: how they are defined."""
    found = {name: np.zeros(size.shape[:2]) for name in ("link_bound", "bottleneck", "port_bound", "bytes", "cross_node_bytes")}
    found["alone"] = np.zeros(size.shape[:3])
    for number, group in np.ndindex(*size.shape[:2]):
        mine = slice(group * ranks, (group + 1) * ranks)
        whole = np.zeros((cluster.gpus, cluster.gpus))
        whole[mine, mine] = size[number, group]
        np.fill_diagonal(whole, 0.0)
        found["link_bound"][number, group], found["bottleneck"][number, group] = link_bound(whole, cluster)
        found["port_bound"][number, group] = port_bound(whole, cluster, ports=own)
        found["bytes"][number, group] = whole.sum()
        found["cross_node_bytes"][number, group] = whole[cluster.crosses_nodes()].sum()
        found["alone"][number, group] = port_seconds(whole, cluster)[mine]
    return found


@st.composite
def exchanges(draw):
    gpus = draw(st.sampled_from(sorted(CLUSTERS)))
    ranks = draw(st.sampled_from([ranks for ranks in (1, 2, 4, 8, gpus) if gpus % ranks == 0]))
    count = draw(st.integers(1, 4))
    rng = np.random.default_rng(draw(st.integers(0, 2**20)))
    # Whole bytes, as exchanges send them: their sums are exact in any order.
    size = np.floor(rng.exponential(1e6, (count, gpus // ranks, ranks, ranks)))
    size[rng.random(size.shape) < draw(st.sampled_from([0.0, 0.5, 0.95]))] = 0.0
    return CLUSTERS[gpus], ranks, size


@settings(max_examples=60, deadline=None)
@given(case=exchanges())
def test_l7_bounds_inside_groups_are_those_of_whole_matrices_to_the_last_bit(case):
    cluster, ranks, size = case
    own = port_links(cluster)
    found, expected = GroupRoutes(cluster, ranks, own).bounds(size), by_whole_matrices(size, ranks, cluster, own)
    for name, values in expected.items():
        assert getattr(found, name).tolist() == values.tolist(), name


@settings(max_examples=60, deadline=None)
@given(case=exchanges(), seed=st.integers(0, 1000))
def test_l7_bounds_of_flows_are_those_of_their_matrix_whatever_the_order_of_the_ranks(case, seed):
    cluster, ranks, size = case
    own, gpus = port_links(cluster), np.random.default_rng(seed).permutation(cluster.gpus)[:ranks]
    whole = np.zeros((cluster.gpus, cluster.gpus))
    whole[np.ix_(gpus, gpus)] = size[0, 0]
    np.fill_diagonal(whole, 0.0)
    source, destination = np.nonzero(whole)
    found = bounds_of_flows(source, destination, whole[source, destination], gpus.tolist(), cluster, own)
    assert (found.link_bound[0, 0], found.bottleneck[0, 0]) == link_bound(whole, cluster)
    assert found.port_bound[0, 0] == port_bound(whole, cluster, ports=own)
    assert found.alone[0, 0].tolist() == port_seconds(whole, cluster)[gpus].tolist()
    assert found.bytes[0, 0] == whole.sum()
    assert found.cross_node_bytes[0, 0] == whole[cluster.crosses_nodes()].sum()


def test_many_exchanges_are_taken_some_at_a_time(monkeypatch):
    cluster, rng = CLUSTERS[8], np.random.default_rng(3)
    size = np.floor(rng.exponential(1e6, (7, 2, 4, 4)))
    routes = GroupRoutes(cluster, 4, port_links(cluster))
    at_once = routes.bounds(size)
    monkeypatch.setattr("moesim.models.group_bounds.MOST_ELEMENTS", 50)
    for name in ("link_bound", "bottleneck", "port_bound", "alone", "bytes", "cross_node_bytes"):
        assert getattr(routes.bounds(size), name).tolist() == getattr(at_once, name).tolist()


def test_ports_are_the_same_when_few_routes_are_looked_at_together(monkeypatch):
    whole = port_links(CLUSTERS[16])
    monkeypatch.setattr("moesim.models.bounds.MOST_ELEMENTS", 20)
    assert port_links(CLUSTERS[16]).tolist() == whole.tolist()
    assert whole.any()


def test_a_link_that_nobody_uses_is_no_port():
    cluster = Cluster(
        gpu=GPU, node_of=[0, 0], bandwidth=[1.0] * 3, latency=[0.0] * 3, link_names=("a", "b", "c"), link_class=("x",) * 3,
        route_start=[0, 0, 1, 2, 2], route_link=[0, 1],
    )  # fmt: skip
    assert port_links(cluster).tolist() == [True, True, False]


@pytest.mark.parametrize("ranks", [4, 8])
def test_routes_of_groups_grow_with_the_gpus_and_not_with_their_square(ranks):
    # Four times the nodes: four times the groups, each with the hops of the one in the smaller cluster. All pairs are 16 times as many.
    held = []
    for nodes in (2, 8):
        cluster = nodes_of(nodes)
        routes = GroupRoutes(cluster, ranks, port_links(cluster))
        held.append((int(routes._each.sum()), len(routes._of_group._link), len(routes._of_sender._link), len(routes._of_receiver._link)))
    assert [4 * count for count in held[0]] == list(held[1])
    pairs = np.arange(cluster.gpus**2)
    assert len(hops(pairs, cluster)[0]) > 3 * held[1][0]
