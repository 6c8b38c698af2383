"""Operations of groups on the fabric: closed forms, contention with an all-to-all, late ranks. Bandwidth is 10 B/s unless said."""

import numpy as np
import pytest
import simpy
from clusters import star
from examples import examples
from hypothesis import given
from hypothesis import strategies as st

from moesim.engine.collective import Collective
from moesim.engine.fabric import Fabric
from moesim.engine.group_call import GroupCall
from moesim.models.bounds import link_bound
from moesim.models.collective.bus_bandwidth import bus_bandwidth
from moesim.models.collective.pipeline import pipelined
from moesim.models.collective.plan import plan_collective
from moesim.models.collective.prepared import prepare
from moesim.models.topology.nvlink_nodes import NvlinkNodes
from moesim.models.topology.one_switch import OneSwitch

RELATIVE = 1e-9  # ends are sums of at most some hundred floats


def plan(operation, algorithm, size, n, *, per_node=64, **more):
    return plan_collective(operation, algorithm, size, ranks=np.arange(n), node_of=np.arange(n) // per_node, **more)


def run(one, cluster, arrivals=None, *, beside=None):
    """Let the r-th rank of the plan arrive at ``arrivals[r]``; ``beside`` may start other traffic on the same fabric."""
    env = simpy.Environment()
    fabric = Fabric(env, cluster)
    call = GroupCall(env, fabric, prepare(one))

    def rank(gpu, when):
        yield env.timeout(when)
        yield call.arrive(gpu)

    for number, gpu in enumerate(one.ranks.tolist()):
        env.process(rank(gpu, arrivals[number] if arrivals else 0.0))
    if beside is not None:
        beside(env, fabric)
    env.run()
    fabric.check()
    assert set(call.at) == set(call.ranks)
    assert call.missing == ()
    return call


def ends(call):
    return [call.at[rank].end for rank in call.ranks]


def waits(call):
    return [call.at[rank].waiting for rank in call.ranks]


@pytest.mark.parametrize("pipeline", [False, True])
@pytest.mark.parametrize("n", [2, 3, 4, 5, 8])
def test_ring_all_reduce_on_one_switch_takes_its_closed_form(n, pipeline):
    # 2 (n - 1) dependent steps of S / n over a free port each: 2 (n - 1) (latency + S / (n B)). All ranks end together, and none waits.
    cluster, size, latency = star(n, latency=0.25), 70.0 * n, 0.25
    for operation, steps in (("all_reduce", 2 * (n - 1)), ("all_gather", n - 1), ("reduce_scatter", n - 1)):
        one = plan(operation, "ring", size, n)
        call = run(pipelined(one, cluster.route_latency()) if pipeline else one, cluster)
        assert ends(call) == pytest.approx([steps * (latency + 7.0)] * n, rel=RELATIVE)
        assert call.moving == pytest.approx(steps * (latency + 7.0), rel=RELATIVE)
        assert waits(call) == [0.0] * n
    no_latency = run(plan("all_reduce", "ring", size, n), star(n))
    assert bus_bandwidth("all_reduce", size, max(ends(no_latency)), n) == pytest.approx(10.0, rel=RELATIVE)


@examples(40)
@given(st.integers(2, 9), st.floats(1.0, 1e6), st.floats(0.0, 10.0), st.integers(1, 3))
def test_both_fidelities_of_a_ring_agree_on_uniform_links(n, size, latency, channels):
    cluster = star(n, latency=latency)
    one = plan("all_reduce", "ring", size, n, channels=channels)
    assert ends(run(pipelined(one, cluster.route_latency()), cluster)) == pytest.approx(ends(run(one, cluster)), rel=1e-8)


@pytest.mark.parametrize(
    ("operation", "algorithm", "seconds"),
    [
        # n = 4, S = 80 B.
        ("all_gather", "direct", 6.0),  # 3 x 20 B out of each port
        ("reduce_scatter", "direct", 6.0),
        ("all_reduce", "direct", 12.0),
        ("all_to_all", "direct", 1.5),  # 3 x 5 B
        ("send", "direct", 8.0),
        ("broadcast", "direct", 24.0),  # 3 x 80 B out of the root
        ("broadcast", "ring", 24.0),  # three hops of 80 B, store and forward
        ("reduce", "ring", 24.0),
    ],
)
def test_times_on_one_switch_by_hand(operation, algorithm, seconds):
    assert max(ends(run(plan(operation, algorithm, 80.0, 4), star(4)))) == pytest.approx(seconds, rel=RELATIVE)


def test_a_pipelined_broadcast_takes_one_message_and_the_latency_of_all_hops():
    # Chain of four: each GPU passes on 80 B at 10 B/s while it receives; the last byte has three hops of 0.5 s behind it.
    cluster = star(4, latency=0.5)
    call = run(pipelined(plan("broadcast", "ring", 80.0, 4), cluster.route_latency()), cluster)
    assert ends(call) == pytest.approx([8.5, 8.5, 9.0, 9.5], rel=RELATIVE)


def test_a_tree_hands_on_half_messages_level_by_level():
    # Three nodes of one GPU: tree 1 has root 1 with children 0 and 2, tree 2 (moved on by one) root 2 with children 1 and 0; 40 B through
    # each. Up: 0 -> 1, 2 -> 1, 1 -> 2, 0 -> 2 at once: GPU 0 sends 80 B, GPU 1 and 2 send 40 and receive 80: 8 s. Down the same: 16 s.
    call = run(plan("all_reduce", "tree", 80.0, 3, per_node=1), star(3))
    assert ends(call) == pytest.approx([16.0] * 3, rel=RELATIVE)


def all_to_all(each, log):
    def start(env, fabric):
        collective = Collective(env, fabric, range(4), np.full((4, 4), each), barrier=False)
        log.append(collective)
        for rank in range(4):
            collective.arrive(rank)

    return start


@pytest.mark.parametrize("pipeline", [False, True])
def test_contention_with_an_all_to_all_lengthens_both_by_the_max_min_amount(pipeline):
    # Ring all-reduce of 40 B among 4: each rank sends 60 B to its neighbour, 6 s alone. All-to-all of 20 B per pair: 60 B per port, 6 s.
    # Together each port out and in has 4 flows, so 2.5 B/s each: the all-to-all ends at 20 / 2.5 = 8 s, by when the ring has sent 20 B; the
    # other 40 B take 4 s more. In steps of 10 B: two steps of 4 s, then four of 1 s: the same.
    one, log = plan("all_reduce", "ring", 40.0, 4), []
    one = pipelined(one, np.zeros((4, 4))) if pipeline else one
    call = run(one, star(4), beside=all_to_all(20.0, log))
    assert ends(run(one, star(4))) == pytest.approx([6.0] * 4, rel=RELATIVE)
    assert ends(call) == pytest.approx([12.0] * 4, rel=RELATIVE)
    assert [log[0].at[rank].end for rank in range(4)] == pytest.approx([8.0] * 4, rel=RELATIVE)


def test_a_late_rank_holds_up_a_ring_from_its_own_first_step_on():
    # Steps of 40 B, 4 s. Rank 2 comes at 100. Until then only step 0 of 3 -> 0 and 0 -> 1 can run (0 to 4 s): rank 3 sends and receives
    # nothing, rank 1 receives, but cannot send, so neither gets to step 1, and rank 0 finds nobody there. From 100 on all six steps: 124 s.
    call = run(plan("all_reduce", "ring", 160.0, 4), star(4), [0.0, 0.0, 100.0, 0.0])
    assert ends(call) == pytest.approx([124.0] * 4, rel=RELATIVE)
    assert [call.at[rank].waited_for for rank in (0, 1, 3)] == [{2: pytest.approx(96.0)}] * 3
    assert call.at[2].waited_for == {}
    assert call.moving == pytest.approx(28.0)


def test_a_slightly_late_rank_costs_its_lateness_and_nobody_waits_who_has_bytes_on_their_way():
    # Rank 2 comes at 2: 1 -> 2 and 2 -> 3 run from 2 to 6, the others' first steps from 0 to 4. All go to step 1 at 6: 6 + 5 * 4 = 26.
    call = run(plan("all_reduce", "ring", 160.0, 4), star(4), [0.0, 0.0, 2.0, 0.0])
    assert ends(call) == pytest.approx([26.0] * 4, rel=RELATIVE)
    assert waits(call) == [0.0] * 4


def test_a_pipeline_starts_when_its_last_rank_is_there():
    call = run(pipelined(plan("all_reduce", "ring", 160.0, 4), np.zeros((4, 4))), star(4), [0.0, 50.0, 100.0, 0.0])
    assert ends(call) == pytest.approx([124.0] * 4, rel=RELATIVE)
    assert waits(call) == pytest.approx([100.0, 50.0, 0.0, 100.0])
    assert call.moving == pytest.approx(24.0)


def test_a_late_rank_delays_a_chain_only_from_its_own_hop_on():
    # Broadcast 0 -> 1 -> 2 -> 3, 4 s per hop, rank 3 comes at 20: 0 is done at 4, 1 at 8; 2 waits from 8 to 20 and then sends until 24.
    call = run(plan("broadcast", "ring", 40.0, 4), star(4), [0.0, 0.0, 0.0, 20.0])
    assert ends(call) == pytest.approx([4.0, 8.0, 24.0, 24.0], rel=RELATIVE)
    # That nothing has come to rank 2 by 4 is the length of the chain, not somebody's absence.
    assert [call.at[rank].waited_for for rank in range(4)] == [{}, {}, {3: pytest.approx(12.0)}, {}]


def test_a_late_rank_delays_its_node_first_and_the_other_node_at_the_step_between_them():
    # Two nodes of two, S = 40 B: 20 B inside (2 s), two steps of 10 B across (2 s), 20 B inside (2 s). Rank 3 comes at 10: node 0 is
    # through its first phase at 2 and waits for it until 12 (rank 2 and 3 are then ready), of which 2 to 10 because rank 3 is not there.
    for pipeline in (False, True):
        one = plan("all_reduce", "hierarchical", 40.0, 4, per_node=2)
        call = run(pipelined(one, np.zeros((4, 4))) if pipeline else one, star(4), [0.0, 0.0, 0.0, 10.0])
        assert ends(call) == pytest.approx([16.0] * 4, rel=RELATIVE)
        assert waits(call) == pytest.approx([8.0, 8.0, 10.0, 0.0])
        assert call.at[0].waited_for == {3: pytest.approx(8.0)}


@examples(30)
@given(
    st.sampled_from(["ring", "tree", "hierarchical", "direct"]),
    st.booleans(),
    st.lists(st.floats(0.0, 20.0), min_size=8, max_size=8),
)
def test_no_operation_is_faster_than_its_busiest_link_and_everybody_ends(algorithm, pipeline, arrivals):
    cluster = NvlinkNodes(nodes=2, gpus_per_node=4, nvlink=100.0, nic=10.0).build()
    one = plan_collective("all_reduce", algorithm, 800.0, ranks=np.arange(8), node_of=cluster.node_of)
    one = pipelined(one, cluster.route_latency()) if pipeline else one
    call = run(one, cluster, arrivals)
    seconds, _ = link_bound(one.traffic(8), cluster)
    for rank in call.ranks:
        part = call.at[rank]
        assert part.end >= max(arrivals)  # every rank needs a contribution of the last one
        assert -1e-9 <= part.waiting <= max(arrivals) - part.arrival + 1e-9
        assert rank not in part.waited_for
    assert max(ends(call)) - min(arrivals) >= seconds * (1 - 1e-9)
    assert call.moving <= max(ends(call)) - min(arrivals) + 1e-9


def test_channels_use_every_network_card_and_divide_the_time():
    # Two nodes of 4 with slow cards: one ring sends 2 * 7 / 8 * S over one card of a node, four rings a quarter each over four.
    cluster = NvlinkNodes(nodes=2, gpus_per_node=4, nvlink=1e6, nic=10.0, nvlink_latency=0.0, nic_latency=0.0, switch_latency=0.0).build()
    for channels, seconds in ((1, 14 / 8 * 80.0 / 10.0), (4, 14 / 8 * 20.0 / 10.0)):
        one = plan_collective("all_reduce", "ring", 80.0, ranks=np.arange(8), node_of=cluster.node_of, channels=channels)
        call = run(pipelined(one, cluster.route_latency()), cluster)
        assert max(ends(call)) == pytest.approx(seconds, rel=1e-6)


def test_a_group_of_one_and_an_operation_without_bytes_are_over_at_once():
    assert ends(run(plan("all_reduce", "ring", 80.0, 1), star(2), [3.0])) == [3.0]
    assert ends(run(plan("all_reduce", "ring", 0.0, 2), star(2), [1.0, 5.0])) == [1.0, 5.0]


def test_a_stranger_and_a_second_arrival_are_refused():
    env = simpy.Environment()
    call = GroupCall(env, Fabric(env, star(3)), prepare(plan("all_reduce", "ring", 80.0, 2)))
    call.arrive(0)
    with pytest.raises(ValueError, match="GPU 0 has already arrived"):
        call.arrive(0)
    with pytest.raises(ValueError, match="GPU 2 is not in this group"):
        call.arrive(2)


def test_a_preset_switch_gives_the_bus_bandwidth_of_its_links():
    # 1 GB among 8 H100: the ports carry 14 / 8 GB at their bandwidth, and 14 latencies are too short to matter at 1e-2.
    cluster = OneSwitch(gpus=8).build()
    one = plan("all_reduce", "ring", 1e9, 8)
    seconds = max(ends(run(pipelined(one, cluster.route_latency()), cluster)))
    assert bus_bandwidth("all_reduce", 1e9, seconds, 8) == pytest.approx(cluster.bandwidth[0], rel=1e-2)


def test_channels_over_the_same_pair_take_one_share_of_a_link():
    # Two ranks, three rings, all of them 0 -> 1 -> 0. Each rank sends 60 B for the rings and 60 B of an all-to-all: 5 B/s each, 12 s.
    one = pipelined(plan("all_reduce", "ring", 60.0, 2, channels=3), np.zeros((2, 2)))
    log = []

    def beside(env, fabric):
        log.append(Collective(env, fabric, range(2), np.full((2, 2), 60.0), barrier=False))
        for rank in range(2):
            log[0].arrive(rank)

    assert ends(run(one, star(2), beside=beside)) == pytest.approx([12.0, 12.0], rel=RELATIVE)
    assert log[0].at[0].end == pytest.approx(12.0, rel=RELATIVE)
