"""Traffic alone on an idle fabric. Every expectation is derived in the comment above it."""

import math

import networkx as nx
import numpy as np
import pytest
from clusters import GPU, star
from examples import examples
from hypothesis import given
from hypothesis import strategies as st
from strategies import every_topology

from moesim.base.errors import UsageError
from moesim.base.registry import plugin
from moesim.engine.network import play, play_plans
from moesim.facts.cluster import Cluster
from moesim.models.bounds import link_bound, port_bound
from moesim.models.collective.plan import plan_collective
from moesim.models.patterns import all_to_all, incast, neighbour_to_neighbour, senders_to, whole_parts
from moesim.models.shortfall import FACTORS, floor, head_start, shortfall, side_by_side

CLOSE = 1e-9  # times are sums of at most some thousand floats


def two_tiers(uplinks: int = 1, uplink: float = 10.0, choose=lambda source, destination: 0) -> Cluster:
    """GPUs 0, 1 below one leaf and 2, 3 below another; ports of 10 B/s and 1 s; ``uplinks`` links each way, without latency.

    Links: 0-3 out of the GPUs, 4-7 into them, then the links from leaf 0 to leaf 1, then those from leaf 1 to leaf 0.
    """
    routes = []
    for source in range(4):
        for destination in range(4):
            if source == destination:
                routes.append([])
            elif source // 2 == destination // 2:
                routes.append([source, 4 + destination])
            else:
                routes.append([source, 8 + (source // 2) * uplinks + choose(source, destination), 4 + destination])
    names = [*(f"out:{i}" for i in range(4)), *(f"in:{i}" for i in range(4)), *(f"up:{i}" for i in range(2 * uplinks))]
    return Cluster(
        gpu=GPU,
        node_of=np.array([0, 0, 1, 1]),
        bandwidth=np.array([10.0] * 8 + [uplink] * (2 * uplinks)),
        latency=np.array([0.5] * 8 + [0.0] * (2 * uplinks)),
        link_names=tuple(names),
        link_class=("nic",) * 8 + ("uplink",) * (2 * uplinks),
        route_start=np.cumsum([0, *map(len, routes)]),
        route_link=np.array([link for route in routes for link in route]),
    )


def drawn(cluster: Cluster, uplinks: int) -> nx.DiGraph:
    graph = nx.DiGraph() if uplinks == 1 else nx.MultiDiGraph()
    for gpu in range(4):
        graph.add_edge(gpu, f"leaf{gpu // 2}", name=f"out:{gpu}", link_class="nic")
        graph.add_edge(f"leaf{gpu // 2}", gpu, name=f"in:{gpu}", link_class="nic")
    for number in range(2 * uplinks):
        side = number // uplinks
        graph.add_edge(f"leaf{side}", f"leaf{1 - side}", name=f"up:{number}", link_class="uplink")
    return graph


def test_an_even_all_to_all_on_one_switch_takes_the_latency_and_what_leaves_over_the_port():
    # 4 GPUs, buffers of 400 B: each sends 100 B to 3 others over its 10 B/s: 30 s, after 2 s. algbw = 400 / 32, busbw 3 / 4 of it.
    result = play(star(4, latency=2.0), [all_to_all(4, 4, 400.0)])
    assert result.finish == pytest.approx(32.0, rel=CLOSE)
    assert result.algbw == pytest.approx(12.5, rel=CLOSE)
    assert result.busbw == pytest.approx(9.375, rel=CLOSE)
    np.testing.assert_allclose(result.utilisation, 30 / 32, rtol=CLOSE)


def test_the_diagonal_changes_nothing():
    # What a GPU keeps is not sent: neither the time nor the bandwidths know of it.
    matrix = all_to_all(4, 4, 400.0)
    kept = play(star(4), [matrix + np.diag([1e6, 0.0, 5.0, 1.0])])
    plain = play(star(4), [matrix])
    assert (kept.finish, kept.algbw, kept.busbw) == (plain.finish, plain.algbw, plain.busbw)


def test_a_thin_tier_between_two_leaves_by_hand():
    # Buffers of 400 B, 100 B to each other GPU. Over the 10 B/s from leaf 0 to leaf 1 go 2 x 2 x 100 B: 40 s after 1 s of latency. A port
    # carries 300 B in 30 s, so the thin tier costs 4 / 3, and the second of latency 41 / 40. Ports are equally loaded: no skew.
    cluster = two_tiers()
    result = play(cluster, [all_to_all(4, 4, 400.0)], bins=8)
    assert result.finish == pytest.approx(41.0, rel=CLOSE)
    why = shortfall(result.asked, cluster, result.finish, beside=side_by_side(drawn(cluster, 1), cluster))
    assert cluster.link_names[why.bottleneck] == "up:0"
    assert (why.flows, why.sources, why.destinations) == (4, 2, 2)
    assert (why.port_class, why.port_bandwidth, why.ideal) == ("nic", 10.0, 30.0)
    expected = {"skew": 1.0, "oversubscription": 4 / 3, "collisions": 1.0, "sharing": 1.0, "latency": 41 / 40}
    assert why.factors == pytest.approx(expected, rel=CLOSE)


def test_routes_that_meet_on_one_of_two_parallel_links_are_collisions_and_not_oversubscription():
    # Two uplinks of 10 B/s carry 400 B together: 20 s if shared evenly, less than the ports' 30 s. All routes take the first: 40 s.
    cluster = two_tiers(uplinks=2)
    result = play(cluster, [all_to_all(4, 4, 400.0)])
    why = shortfall(result.asked, cluster, result.finish, beside=side_by_side(drawn(cluster, 2), cluster))
    assert why.factors["oversubscription"] == pytest.approx(1.0, rel=CLOSE)
    assert why.factors["collisions"] == pytest.approx(4 / 3, rel=CLOSE)
    # Spread by destination, each carries 200 B in 20 s, and nothing is lost: 30 s and 1 s of latency.
    spread = two_tiers(uplinks=2, choose=lambda source, destination: destination % 2)
    result = play(spread, [all_to_all(4, 4, 400.0)])
    why = shortfall(result.asked, spread, result.finish, beside=side_by_side(drawn(spread, 2), spread))
    assert result.finish == pytest.approx(31.0, rel=CLOSE)
    assert (why.factors["oversubscription"], why.factors["collisions"]) == pytest.approx((1.0, 1.0), rel=CLOSE)


def test_skew_is_the_fullest_port_over_the_mean_port():
    # Three GPUs send 30 B each to the fourth: its port carries 90 B in 9 s. 8 ports carry 180 B together: 22.5 B or 2.25 s on average.
    cluster = star(4)
    matrix = incast(cluster, 3, 3, 30.0)
    result = play(cluster, [matrix])
    why = shortfall(matrix, cluster, result.finish)
    assert result.finish == pytest.approx(9.0, rel=CLOSE)
    assert why.factors["skew"] == pytest.approx(4.0, rel=CLOSE)
    assert why.share_of_port == pytest.approx(0.25, rel=CLOSE)
    assert (why.flows, why.sources, why.destinations) == (3, 3, 1)


@pytest.mark.parametrize("senders", [1, 2, 3, 7])
def test_k_senders_take_k_times_as_long(senders):
    # The receiver's 10 B/s are shared by k senders of 50 B each.
    cluster = star(8)
    assert play(cluster, [incast(cluster, 0, senders, 50.0)]).finish == pytest.approx(5.0 * senders, rel=CLOSE)


def test_unfair_looking_shares_that_leave_the_busiest_link_idle_are_called_sharing():
    # GPU 0 sends 60 B to GPU 2 and 10 B to GPU 1; GPU 1 sends 60 B to GPU 2. Into GPU 2: 120 B, so 12 s at least. Out of GPU 0 both flows
    # get 5 B/s, into GPU 2 both 5 B/s: after 2 s the small one has gone; in 2 is full throughout: sharing 1.
    cluster = star(4)
    matrix = np.zeros((4, 4))
    matrix[0, 2], matrix[0, 1], matrix[1, 2] = 60.0, 10.0, 60.0
    result = play(cluster, [matrix])
    assert result.finish == pytest.approx(12.0, rel=CLOSE)
    # Now GPU 0 has two equal flows of 60 B, to 1 and 2, and GPU 1 sends 30 B to GPU 2. Out of GPU 0: 120 B, 12 s, always full: the bound.
    matrix[0, 1], matrix[1, 2] = 60.0, 30.0
    assert play(cluster, [matrix]).finish == pytest.approx(12.0, rel=CLOSE)
    # Two stages that wait: 0 sends 60 B to 1, then 1 sends 60 B to 0 - 12 s, although no link needs more than 6.
    first, second = np.zeros((2, 2)), np.zeros((2, 2))
    first[0, 1], second[1, 0] = 60.0, 60.0
    result = play(star(2), [first, second])
    assert result.finish == pytest.approx(12.0, rel=CLOSE)
    assert shortfall(result.asked, star(2), result.finish).factors["sharing"] == pytest.approx(2.0, rel=CLOSE)
    assert play(star(2), [first, second], together=True).finish == pytest.approx(6.0, rel=CLOSE)


def test_bins_of_time_by_hand():
    # 100 B at 10 B/s after 2 s of latency: 12 s. With 6 bins of 2 s: nothing in the first, 20 B in each other.
    matrix = np.zeros((2, 2))
    matrix[0, 1] = 100.0
    result = play(star(2, latency=2.0), [matrix], bins=6)
    np.testing.assert_allclose(result.edges, [0, 2, 4, 6, 8, 10, 12], rtol=CLOSE)
    np.testing.assert_allclose(result.moved[:, 0], [0, 20, 20, 20, 20, 20], rtol=CLOSE, atol=1e-9)
    np.testing.assert_allclose(result.utilisation_over_time[:, 0], [0, 1, 1, 1, 1, 1], rtol=CLOSE, atol=1e-9)


def test_bins_stay_few_where_the_end_is_far_beyond_the_bound():
    # 40 stages that wait for each other, each 1 s of latency and 1 s of bytes: 80 s, while the bound knows of 1 + 20 s.
    stages = []
    for number in range(40):
        stage = np.zeros((2, 2))
        stage[number % 2, 1 - number % 2] = 10.0
        stages.append(stage)
    result = play(star(2, latency=1.0), stages, bins=10)
    assert result.finish == pytest.approx(80.0, rel=CLOSE)
    assert 5 <= len(result.moved) <= 10
    np.testing.assert_allclose(result.moved.sum(axis=0), result.carried, rtol=CLOSE)


def test_send_to_the_next_neighbour_uses_every_port_at_full_rate():
    # Each GPU sends 100 B to the next over its own 10 B/s; nccl-tests calls algbw and busbw the same here.
    result = play(star(4), [neighbour_to_neighbour(4, 4, 100.0)], bus_factor=1.0)
    assert result.finish == pytest.approx(10.0, rel=CLOSE)
    assert result.algbw == result.busbw == pytest.approx(10.0, rel=CLOSE)


def test_a_ring_all_reduce_reaches_the_port():
    # 4 ranks, 400 B: 6 steps of 100 B on every port at 10 B/s = 60 s; algbw 400 / 60, busbw 2 * 3/4 of it = 10 B/s, the port's rate.
    cluster = star(4)
    plan = plan_collective("all_reduce", "ring", 400.0, ranks=range(4), node_of=np.zeros(4, dtype=int), channels=1)
    result = play_plans(cluster, [plan], bus_factor=1.5)
    assert result.finish == pytest.approx(60.0, rel=CLOSE)
    assert result.busbw == pytest.approx(10.0, rel=CLOSE)


def test_groups_have_their_own_all_to_alls():
    # Two groups of two on one switch: 50 B each way per pair at 10 B/s.
    matrix = all_to_all(4, 2, 100.0)
    assert matrix.tolist() == [[0, 50, 0, 0], [50, 0, 0, 0], [0, 0, 0, 50], [0, 0, 50, 0]]
    result = play(star(4), [matrix], ranks=2)
    assert result.finish == pytest.approx(5.0, rel=CLOSE)
    assert (result.algbw, result.busbw) == pytest.approx((20.0, 10.0), rel=CLOSE)


def test_skewed_destinations_share_every_buffer_alike_and_depend_on_the_seed_alone():
    matrix = all_to_all(8, 4, 100.0, skew=1.0, seed=3)
    shares = matrix.copy()
    for gpu in range(8):
        others = [peer for peer in range(gpu // 4 * 4, gpu // 4 * 4 + 4) if peer != gpu]
        shares[gpu, gpu] = 100.0 - matrix[gpu, others].sum()
        assert matrix[gpu].sum() == pytest.approx(matrix[gpu, others].sum())  # nothing leaves the group
    # What is left of each buffer is the sender's own popularity: the same column as the others see.
    for column in range(8):
        group = range(column // 4 * 4, column // 4 * 4 + 4)
        assert len({round(shares[row, column], 9) for row in group}) == 1
    assert np.array_equal(matrix, all_to_all(8, 4, 100.0, skew=1.0, seed=3))
    assert not np.array_equal(matrix, all_to_all(8, 4, 100.0, skew=1.0, seed=4))


def test_senders_of_other_nodes_come_first():
    cluster = two_tiers()
    assert senders_to(cluster, 1).tolist() == [2, 3, 0]
    assert np.argwhere(incast(cluster, 1, 2, 5.0)).tolist() == [[2, 1], [3, 1]]


def test_parts_are_whole_elements():
    # 1000 B in 16 parts of whole 4-byte elements: 15 elements each.
    assert whole_parts(1000.0, 16) == 960
    assert whole_parts(63.0, 16) == 0


def test_nothing_to_send_takes_no_time():
    result = play(star(3), [np.zeros((3, 3))], bins=4)
    assert (result.finish, result.algbw, result.busbw, len(result.moved)) == (0.0, 0.0, 0.0, 0)
    assert not result.utilisation.any()
    assert shortfall(result.asked, star(3), 0.0) is None
    assert floor(np.eye(3), star(3)) == 0.0


@pytest.mark.parametrize(
    ("matrix", "ranks", "said"),
    [
        (np.ones((2, 3)), None, r"traffic has shape \(2, 3\), but the cluster has 3 GPUs"),
        ([[0, -1, 0], [0, 0, 0], [0, 0, 0]], None, "GPU 0 sends -1 B to GPU 1"),
        ([[0, math.nan, 0], [0, 0, 0], [0, 0, 0]], None, "GPU 0 sends nan B to GPU 1"),
        (np.ones((3, 3)), 2, "3 GPUs do not divide into groups of 2 ranks"),
    ],
)
def test_traffic_that_does_not_fit_is_refused(matrix, ranks, said):
    with pytest.raises(UsageError, match=said):
        play(star(3), [matrix], ranks=ranks)


def test_stages_of_groups_stay_in_their_groups():
    outside = all_to_all(4, 4, 8.0)
    with pytest.raises(UsageError, match="GPUs 0 to 1 have collectives among themselves, but send bytes to others"):
        play(star(4), [outside, outside], ranks=2)


def test_the_head_start_is_that_of_the_routes_with_bytes():
    cluster = two_tiers()
    matrix = np.zeros((4, 4))
    matrix[1, 3] = 5.0
    latency, pairs = head_start(matrix, cluster, 8)
    assert (latency, pairs.tolist()) == (1.0, [1 * 4 + 3])
    assert head_start(matrix, cluster, 9) == (0.0, pytest.approx([]))


def test_links_of_real_topologies_stand_side_by_side_at_the_end_that_is_nearer_to_gpus():
    topology = plugin("topology", "nvlink_nodes")(nodes=4, gpus_per_node=2, nodes_per_leaf=2, spines=3)
    graph, cluster = topology.graph(), topology.build()
    beside = side_by_side(graph, cluster)
    ends = {data["name"]: (tail, head) for tail, head, data in graph.edges(data=True)}

    def low(name):
        tail, head = ends[name]
        upwards = tail.startswith("gpu:") or (tail.startswith("leaf:") and not head.startswith("gpu:"))
        return (tail, "up") if upwards else (head, "down")

    for a in range(cluster.links):
        for b in range(cluster.links):
            same = cluster.link_class[a] == cluster.link_class[b]
            assert (beside[a] == beside[b]) == (same and low(cluster.link_names[a]) == low(cluster.link_names[b]))


def test_a_pods_links_to_the_cores_stand_side_by_side():
    topology = plugin("topology", "fat_tree")(nodes=8, nodes_per_leaf=1, leaves_per_pod=4)
    cluster = topology.build()
    beside = side_by_side(topology.graph(), cluster)
    up = [name.startswith("core-up:pod0-") for name in cluster.link_names]
    every = [name.startswith("core-") for name in cluster.link_names]
    assert sum(up) > 1
    assert len(set(beside[up])) == 1
    assert len(set(beside[every])) == 4  # two pods, up and down


@pytest.mark.parametrize("nodes", [2, 4])
def test_bad_luck_of_hashes_is_no_oversubscription(nodes):
    # System: one node a leaf, as much bandwidth up as down, balanced. What leaves a leaf is what its cards carry, however routes are
    # hashed; so whatever a spine's links have too much of is collisions.
    topology = plugin("topology", "fat_tree")(nodes=nodes, nodes_per_leaf=1)
    cluster = topology.build()
    result = play(cluster, [all_to_all(cluster.gpus, cluster.gpus, 64e6)])
    why = shortfall(result.asked, cluster, result.finish, beside=side_by_side(topology.graph(), cluster))
    assert why.factors["skew"] == pytest.approx(1.0, rel=CLOSE)
    assert why.factors["oversubscription"] == pytest.approx(1.0, rel=CLOSE)
    assert why.factors["collisions"] == pytest.approx(why.link_bound / why.port_bound, rel=CLOSE)
    assert why.factors["collisions"] > 1.1


@st.composite
def traffic(draw):
    topology = draw(every_topology())
    cluster = topology.build()
    seed = draw(st.integers(0, 2**31))
    rng = np.random.default_rng(seed)
    matrix = rng.lognormal(12.0, 2.0, (cluster.gpus, cluster.gpus)) * (rng.random((cluster.gpus, cluster.gpus)) < draw(st.floats(0.1, 1.0)))
    return topology, cluster, matrix


@examples(40)
@given(traffic(), st.integers(1, 12))
def test_l7_traffic_is_never_faster_than_port_link_and_head_start(case, bins):
    # System: random traffic on every kind of cluster. Expectation: no faster than its busiest port, its busiest link after its head start,
    # or any route's latency; every factor of the explanation is at least 1, and their product is the slowdown.
    topology, cluster, matrix = case
    result = play(cluster, [matrix], bins=bins)
    slack = 1 + CLOSE
    assert result.finish * slack >= port_bound(matrix, cluster)
    assert result.finish * slack >= floor(matrix, cluster) >= link_bound(matrix, cluster)[0]
    why = shortfall(matrix, cluster, result.finish, beside=side_by_side(topology.graph(), cluster))
    if why is None:
        assert not result.asked.any()
        return
    assert tuple(why.factors) == FACTORS
    assert min(why.factors.values()) * slack >= 1
    assert why.slowdown * why.ideal == pytest.approx(result.finish, rel=CLOSE)


@examples(40)
@given(traffic(), st.integers(1, 12))
def test_l2_bins_of_time_hold_the_bytes_of_the_links(case, bins):
    # System: random traffic. Expectation: bins follow each other from 0 to the end, are at most as many as asked for and equally wide, but
    # for the last, and their bytes add up to those of the links, whose own come from the matrix and the routes.
    _, cluster, matrix = case
    result = play(cluster, [matrix], bins=bins)
    np.testing.assert_allclose(result.moved.sum(axis=0), result.carried, rtol=CLOSE, atol=1e-6)
    wanted = np.zeros(cluster.links)
    for source, destination in np.argwhere(result.asked):
        np.add.at(wanted, cluster.route(source, destination), result.asked[source, destination])
    np.testing.assert_allclose(result.carried, wanted, rtol=CLOSE)
    if result.asked.any():
        widths = np.diff(result.edges)
        assert (result.edges[0], result.edges[-1]) == (0.0, result.finish)
        assert 1 <= len(widths) <= bins
        np.testing.assert_allclose(widths[:-1], widths[0], rtol=1e-6)
        assert widths[-1] <= widths[0] * (1 + 1e-6)
        assert (result.utilisation_over_time <= 1 + 1e-6).all()
