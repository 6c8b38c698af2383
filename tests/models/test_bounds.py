"""Closed forms, against sums done by hand."""

import numpy as np
import pytest
from clusters import GPU, star
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from moesim.base.errors import UsageError
from moesim.facts.cluster import Cluster
from moesim.facts.program import Program, Task, Work
from moesim.models.bounds import link_bound, link_bytes, no_communication, port_bound, port_links, port_seconds


def two_nodes(uplink):
    """Two nodes of two GPUs; ports of 10 B/s (links 0 to 7), one uplink out and one in per node (8, 9: node 0 to 1, 1 to 0)."""
    routes = []
    for i in range(4):
        for j in range(4):
            between = [] if i // 2 == j // 2 else [8 + i // 2]
            routes.append([] if i == j else [i, *between, 4 + j])
    return Cluster(
        gpu=GPU,
        node_of=np.array([0, 0, 1, 1]),
        bandwidth=np.array([10.0] * 8 + [uplink] * 2),
        latency=np.array([0.5] * 8 + [1.0] * 2),
        link_names=tuple(str(link) for link in range(10)),
        link_class=("port",) * 8 + ("uplink",) * 2,
        route_start=np.cumsum([0, *[len(route) for route in routes]]),
        route_link=np.array([link for route in routes for link in route]),
    )


def test_l7_one_switch_by_hand():
    # GPU 0 sends 20 and 40, GPU 1 sends 30 to GPU 2: out of 0 go 60 B, into 2 go 70 B, at 10 B/s: 7 s at GPU 2's in-port (3 + 2).
    traffic = np.array([[99.0, 20.0, 40.0], [0.0, 99.0, 30.0], [0.0, 0.0, 99.0]])
    assert link_bytes(traffic, star(3)).tolist() == [60.0, 30.0, 0.0, 0.0, 20.0, 70.0]
    assert link_bound(traffic, star(3)) == (7.0, 5)
    assert port_bound(traffic, star(3)) == 7.0


def test_l7_a_shared_uplink_binds_beyond_the_ports():
    # All four pairs from node 0 to node 1 send 10 B: 20 B per port (2 s), 40 B on the uplink of 5 B/s (8 s).
    traffic = np.zeros((4, 4))
    traffic[:2, 2:] = 10.0
    assert port_links(two_nodes(5.0)).tolist() == [True] * 8 + [False] * 2
    assert port_bound(traffic, two_nodes(5.0)) == 2.0
    assert port_bound(traffic, two_nodes(5.0), ports=port_links(two_nodes(5.0))) == 2.0
    assert link_bound(traffic, two_nodes(5.0)) == (8.0, 8)


def test_nothing_to_send_takes_no_time():
    assert link_bound(np.eye(3), star(3)) == (0.0, -1)
    assert port_bound(np.zeros((3, 3)), star(3)) == 0.0


def test_traffic_of_another_cluster_is_refused():
    with pytest.raises(UsageError, match=r"shape \(2, 2\), but the cluster has 3 GPUs"):
        link_bound(np.zeros((2, 2)), star(3))


@settings(max_examples=50, deadline=None)
@given(traffic=arrays(np.float64, (4, 4), elements=st.floats(0, 1e6)), uplink=st.floats(1, 100))
def test_l7_port_bound_stays_below_link_bound(traffic, uplink):
    cluster = two_nodes(uplink)
    seconds, bottleneck = link_bound(traffic, cluster)
    assert port_bound(traffic, cluster) <= seconds
    assert bottleneck == -1 or seconds == link_bytes(traffic, cluster)[bottleneck] / cluster.bandwidth[bottleneck]
    carried = sum(traffic[i, j] for i in range(4) for j in range(4) if i != j)
    assert link_bytes(traffic, cluster)[:4].sum() == pytest.approx(carried)


def chain(*phases):
    works = [Work(phase, 0, 0) for phase in phases]
    lanes = {"dispatch": "communication", "combine": "communication"}
    tasks = tuple(Task(work, lanes.get(work.phase, "compute"), (number - 1,) if number else ()) for number, work in enumerate(works))
    return Program(tasks), works


def test_no_communication_by_hand():
    # Two groups of two GPUs. Attention 1, 2 | 3, 1; dispatch makes each group wait for 2 and 3; experts 5, 1 | 1, 1: 7 and 4.
    program, works = chain("attention", "dispatch", "experts", "combine")
    durations = {works[0]: np.array([1.0, 2.0, 3.0, 1.0]), works[2]: np.array([5.0, 1.0, 1.0, 1.0])}
    assert no_communication(program, durations, 2) == 7.0
    # One group of four waits for 3 everywhere: 3 + 5.
    assert no_communication(program, durations, 1) == 8.0


def test_no_communication_lets_lanes_run_beside_each_other_but_not_over_themselves():
    # b and c both wait for a only; they share the compute lane, so they take turns: 1 + 2 + 4. A free exchange hides nothing.
    a, b, c, d = (Work(phase, 0, 0) for phase in ("attention", "shared", "gate", "dispatch"))
    program = Program((Task(a, "compute", ()), Task(d, "communication", (0,)), Task(b, "compute", (0,)), Task(c, "compute", (0,))))
    assert no_communication(program, {a: np.array([1.0]), b: np.array([2.0]), c: np.array([4.0])}, 1) == 7.0


@settings(max_examples=40, deadline=None)
@given(first=arrays(np.float64, 4, elements=st.floats(0, 10)), second=arrays(np.float64, 4, elements=st.floats(0, 10)))
def test_no_communication_lies_between_the_busiest_gpu_and_the_sum_of_the_slowest(first, second):
    program, works = chain("attention", "dispatch", "experts", "combine")
    durations = {works[0]: first, works[2]: second}
    two, one = no_communication(program, durations, 2), no_communication(program, durations, 1)
    assert (first + second).max() <= two <= one
    assert one == first.max() + second.max()


def test_a_missing_duration_is_named():
    program, works = chain("attention", "experts")
    with pytest.raises(UsageError, match="no duration for Work"):
        no_communication(program, {works[0]: np.zeros(2)}, 1)
    with pytest.raises(UsageError, match="2 GPUs do not divide into 3 groups"):
        no_communication(program, dict.fromkeys(works, np.zeros(2)), 3)


def test_a_program_of_exchanges_only_takes_no_time():
    program, _ = chain("dispatch", "combine")
    assert no_communication(program, {}, 1) == 0.0


def test_port_seconds_are_each_gpus_own_bytes_on_links_of_its_own():
    # Star of 3 at 10 B/s. GPU 0 sends 20 + 30 B: 5 s out. GPU 1 receives 20 + 40: 6 s in, and sends 10: 1 s. GPU 2 sends 40: 4 s, and
    # receives 30: 3 s. Each GPU counts its busier side.
    sent = np.array([[0, 20, 30], [10, 0, 0], [0, 40, 0]], dtype=float)
    np.testing.assert_allclose(port_seconds(sent, star(3, 10.0)), [5.0, 6.0, 4.0])


@pytest.mark.parametrize(("uplink", "seconds"), [(5.0, [8.0, 4.0, 10.0, 2.0]), (20.0, [4.0, 2.0, 5.0, 1.0])])
def test_port_seconds_take_each_link_at_its_own_bandwidth(uplink, seconds):
    # Node 0 sends to node 1: 0 to 2 30 B, 0 to 3 10 B, 1 to 2 20 B. Sent 40 and 20, received 50 and 10, over ports of 10 B/s and the
    # uplink: at 5 B/s the uplink is the slower of the two for everybody, at 20 B/s the ports are.
    traffic = np.zeros((4, 4))
    traffic[0, 2], traffic[0, 3], traffic[1, 2] = 30.0, 10.0, 20.0
    assert port_seconds(traffic, two_nodes(uplink)).tolist() == seconds
