"""Plans of collectives: who sends how many bytes, and whether everybody ends with what the operation promises."""

from dataclasses import replace

import numpy as np
import pytest
from examples import examples
from hypothesis import given
from hypothesis import strategies as st

from moesim.base.errors import LawBroken, UsageError
from moesim.facts.collective import ALGORITHMS, OPERATIONS_OF
from moesim.models.bounds import link_bytes
from moesim.models.collective.dataflow import check_delivers
from moesim.models.collective.pipeline import pipelined
from moesim.models.collective.plan import plan_collective
from moesim.models.topology.nvlink_nodes import NvlinkNodes

S = 840.0  # divides by 2 to 8


def plan(operation, algorithm, n, *, per_node=64, size=S, **more):
    return plan_collective(operation, algorithm, size, ranks=np.arange(n), node_of=np.arange(n) // per_node, **more)


def sent_and_received(one):
    n = len(one.ranks)
    traffic = one.traffic(n)
    return traffic.sum(axis=1), traffic.sum(axis=0)


@st.composite
def plans(draw):
    """Any operation by any algorithm, among 2 to 9 GPUs in any order on nodes of any size."""
    algorithm = draw(st.sampled_from(ALGORITHMS))
    operation = draw(st.sampled_from(OPERATIONS_OF[algorithm]))
    n = draw(st.integers(2, 9))
    if algorithm == "hierarchical":
        per_node = draw(st.sampled_from([width for width in range(1, n + 1) if n % width == 0]))
        node_of = np.array([*draw(st.permutations((np.arange(n) // per_node).tolist())), 99])
        ranks = draw(st.permutations(range(n)))
    else:
        gpus = n + draw(st.integers(0, 3))
        node_of = np.array(draw(st.lists(st.integers(0, 3), min_size=gpus, max_size=gpus)))
        ranks = draw(st.permutations(range(gpus)))[:n]
    root = draw(st.integers(0, n - 1))
    peer = (root + draw(st.integers(1, n - 1))) % n
    size = draw(st.floats(1.0, 1e9))
    return plan_collective(operation, algorithm, size, ranks=ranks, node_of=node_of, channels=draw(st.integers(0, 4)), root=root, peer=peer)


@examples(150)
@given(plans())
def test_every_rank_ends_with_what_the_operation_promises(one):
    check_delivers(one)
    assert one.pieces.sum() == pytest.approx(one.bytes, rel=1e-12)
    for stage in one.stages:
        assert (stage.source != stage.destination).all()
        assert np.isin([stage.source, stage.destination], one.ranks).all()


@pytest.mark.parametrize("n", range(2, 10))
@pytest.mark.parametrize("channels", [1, 3])
def test_ring_bytes_are_the_closed_forms(n, channels):
    # Each of n - 1 (reduce-scatter, all-gather) or 2 (n - 1) steps moves S / n out of and into every rank.
    for operation, steps in (("all_reduce", 2 * (n - 1)), ("all_gather", n - 1), ("reduce_scatter", n - 1)):
        one = plan(operation, "ring", n, channels=channels)
        assert len(one.stages) == steps
        for side in sent_and_received(one):
            assert side == pytest.approx(np.full(n, steps * S / n))


@pytest.mark.parametrize("algorithm", ["ring", "tree"])
@pytest.mark.parametrize("n", range(2, 10))
def test_broadcast_brings_everything_to_everybody_but_the_root_once(algorithm, n):
    down = sent_and_received(plan("broadcast", algorithm, n, per_node=1, root=n // 2))[1]
    up = sent_and_received(plan("reduce", algorithm, n, per_node=1, root=n // 2))[0]
    wanted = np.where(np.arange(n) == n // 2, 0.0, S)
    assert down == pytest.approx(wanted)
    assert up == pytest.approx(wanted)


@pytest.mark.parametrize("n", range(2, 18))
def test_tree_all_reduce_loads_no_rank_with_more_than_all_bytes_each_way(n):
    # Each tree has n - 1 edges, each carries S / 2 up and S / 2 down: 2 (n - 1) S in all. Inner in one tree only, a rank takes at most
    # 2 x S / 2 from its children and gives S / 2 to its parent there, and S / 2 as a leaf of the other; downwards the other way round.
    one = plan("all_reduce", "tree", n, per_node=1)
    assert sent_and_received(one)[0].sum() == pytest.approx(2 * (n - 1) * S)
    for adds in (True, False):
        half = replace(one, stages=tuple(stage for stage in one.stages if stage.adds == adds))
        assert max(side.max() for side in sent_and_received(half)) <= S * (1 + 1e-12)
    # Depth of an in-order tree over n vertices: at most log2(n) + 1 levels of edges.
    assert len(one.stages) <= 2 * (int(np.log2(n)) + 1)


@pytest.mark.parametrize(("nodes", "local"), [(2, 4), (3, 2), (1, 4), (4, 1), (2, 2)])
def test_hierarchical_bytes_are_the_closed_forms(nodes, local):
    # Inside: all but an m-th of S. Across: 2 (N - 1) / N of an m-th.
    one = plan("all_reduce", "hierarchical", nodes * local, per_node=local)
    node = np.arange(nodes * local) // local
    traffic = one.traffic(nodes * local)
    across = node[:, None] != node[None, :]
    assert np.where(across, 0.0, traffic).sum(axis=1) == pytest.approx(np.full(nodes * local, 2 * S * (local - 1) / local))
    assert np.where(across, traffic, 0.0).sum(axis=1) == pytest.approx(np.full(nodes * local, 2 * S / local * (nodes - 1) / nodes))
    for operation in ("reduce_scatter", "all_gather"):
        part = plan(operation, "hierarchical", nodes * local, per_node=local)
        assert part.traffic(nodes * local) == pytest.approx(traffic / 2)


def test_direct_bytes_are_the_closed_forms():
    # n = 4: each pair carries S / 4 per scatter or gather, S / 16 in an all-to-all (S / 4 per rank, of which a quarter stays).
    off = 1 - np.eye(4)
    assert plan("reduce_scatter", "direct", 4).traffic(4) == pytest.approx(off * S / 4)
    assert plan("all_gather", "direct", 4).traffic(4) == pytest.approx(off * S / 4)
    assert plan("all_reduce", "direct", 4).traffic(4) == pytest.approx(off * S / 2)
    assert plan("all_to_all", "direct", 4).traffic(4) == pytest.approx(off * S / 16)
    message = plan("send", "direct", 4, root=3, peer=1).traffic(4)
    assert message[3, 1] == S
    assert message.sum() == S


def test_every_network_card_of_two_nodes_carries_its_share():
    # n = 8, one ring per GPU of a node: each card sends and receives 2 * 7 / 8 * S / 4 for the one ring that uses it each way.
    # With one ring, one card per node sends 2 * 7 / 8 * S and one receives that.
    cluster = NvlinkNodes(nodes=2, gpus_per_node=4).build()
    cards = np.array([kind == "nic" for kind in cluster.link_class])
    assert cards.sum() == 16
    ring = 2 * 7 / 8 * S
    everybody = {"ranks": np.arange(8), "node_of": cluster.node_of}
    many = link_bytes(plan_collective("all_reduce", "ring", S, **everybody).traffic(8), cluster)[cards]
    assert many == pytest.approx(np.full(16, ring / 4))
    single = link_bytes(plan_collective("all_reduce", "ring", S, channels=1, **everybody).traffic(8), cluster)[cards]
    assert sorted(single.tolist()) == pytest.approx([0.0] * 12 + [ring] * 4)
    # Hierarchical: 2 * 1 / 2 * S / 4 through every card. Tree: channel c has S / 4, so each tree S / 8, which goes up from one leader and
    # down again; the other tree is the mirror image: S / 8 + S / 8 out of each leader's card and into it.
    steps = link_bytes(plan_collective("all_reduce", "hierarchical", S, **everybody).traffic(8), cluster)[cards]
    assert steps == pytest.approx(np.full(16, S / 4))
    tree = link_bytes(plan_collective("all_reduce", "tree", S, **everybody).traffic(8), cluster)[cards]
    assert tree == pytest.approx(np.full(16, S / 4))
    # Inside the nodes every GPU's NVLink carries, per ring, the step to its neighbour unless that one is on the other node: 3 of 4 rings.
    inside = link_bytes(plan_collective("all_reduce", "ring", S, **everybody).traffic(8), cluster)
    inside = inside[np.array([kind == "nvlink" for kind in cluster.link_class])]
    assert inside == pytest.approx(np.full(16, 3 / 4 * ring))


@examples(60)
@given(plans(), st.floats(0.0, 1e-3))
def test_a_pipeline_moves_the_same_bytes_in_one_stage_per_phase(one, latency):
    gpus = max(int(one.ranks.max()) + 1, 16)
    merged = pipelined(one, np.full((gpus, gpus), latency))
    assert merged.traffic(gpus) == pytest.approx(one.traffic(gpus), rel=1e-12)
    assert len(merged.stages) == len({stage.phase for stage in one.stages})
    assert pipelined(merged, np.zeros((gpus, gpus))) is merged


def test_lag_is_the_latency_of_the_hops_that_the_flow_does_not_show():
    # Ring 0 -> 1 -> 2 -> 0 with latencies 1, 2 and 4 s, all-gather in 2 steps. The last piece comes to 0 over 1 -> 2 -> 0 (6 s), to 1 over
    # 2 -> 0 -> 1 (5 s), to 2 over 0 -> 1 -> 2 (3 s). Their own flows show the slower of the hop before and behind them: 4, 2 and 4 s.
    latency = np.array([[0.0, 1.0, 9.0], [9.0, 0.0, 2.0], [4.0, 9.0, 0.0]])
    (stage,) = pipelined(plan("all_gather", "ring", 3), latency).stages
    assert stage.lag.tolist() == [2.0, 3.0, 0.0]
    assert stage.together.tolist() == [0, 0, 0]


def test_only_ranks_that_hand_pieces_on_to_each_other_are_joined():
    # Two nodes of two: inside, nodes do not depend on each other; across, GPUs of equal index do.
    stages = pipelined(plan("all_reduce", "hierarchical", 4, per_node=2), np.zeros((4, 4))).stages
    assert [stage.together.tolist() for stage in stages] == [[0, 0, 2, 2], [0, 1, 0, 1], [0, 0, 2, 2]]


@pytest.mark.parametrize(("operation", "algorithm"), [(one, way) for way in ALGORITHMS for one in OPERATIONS_OF[way] if one != "send"])
def test_one_rank_or_no_bytes_need_no_stage(operation, algorithm):
    assert plan(operation, algorithm, 1).stages == ()
    assert plan(operation, algorithm, 4, size=0.0).stages == ()
    check_delivers(plan(operation, algorithm, 1))


def test_a_plan_that_loses_or_doubles_a_contribution_is_caught():
    one = plan("all_reduce", "ring", 4)
    with pytest.raises(LawBroken, match="after the ring all_reduce rank"):
        check_delivers(replace(one, stages=one.stages[:-1]))
    with pytest.raises(LawBroken, match="after the ring all_reduce rank"):
        check_delivers(replace(one, stages=(one.stages[0], *one.stages)))
    with pytest.raises(LawBroken, match="of which it holds nothing"):
        check_delivers(replace(plan("all_gather", "ring", 4), stages=plan("all_gather", "ring", 4).stages[1:]))
    short = replace(one.stages[0], bytes=one.stages[0].bytes / 2)
    with pytest.raises(LawBroken, match="sends 105 B as piece 3 of 210 B"):
        check_delivers(replace(one, stages=(short, *one.stages[1:])))


@pytest.mark.parametrize(
    ("arguments", "more", "message"),
    [
        (("allreduce", "ring", 1.0), {}, "unknown operation 'allreduce'; did you mean 'all_reduce'"),
        (("all_reduce", "rings", 1.0), {}, "unknown algorithm 'rings'; did you mean 'ring'"),
        (("all_to_all", "ring", 1.0), {}, "no ring algorithm for all_to_all: use direct"),
        (("all_gather", "tree", 1.0), {}, "no tree algorithm for all_gather: use ring or hierarchical or direct"),
        (("all_reduce", "ring", -1.0), {}, "size is -1.0 B"),
        (("all_reduce", "ring", float("nan")), {}, "size is nan B"),
        (("all_reduce", "ring", 1.0), {"channels": -1}, "channels is -1"),
        (("broadcast", "ring", 1.0), {"root": 4}, "root is 4, but the group has the ranks 0 to 3"),
        (("send", "direct", 1.0), {"peer": 7}, "peer is 7"),
        (("send", "direct", 1.0), {"root": 1, "peer": 1}, "rank 1 cannot send to itself"),
        (("all_reduce", "ring", 1.0), {"ranks": [0, 1, 1]}, "GPU 1 is in the group more than once"),
        (("all_reduce", "ring", 1.0), {"ranks": [0, 9]}, "rank 9 is no GPU of this cluster, which has the GPUs 0 to 3"),
        (("all_reduce", "ring", 1.0), {"ranks": []}, "at least one GPU"),
        (("all_reduce", "hierarchical", 1.0), {"node_of": [0, 0, 0, 1]}, "this group has 1 on one and 3 on another"),
    ],
)
def test_a_question_that_makes_no_sense_is_refused(arguments, more, message):
    with pytest.raises(UsageError, match=message):
        plan_collective(*arguments, **{"ranks": np.arange(4), "node_of": np.zeros(4, dtype=int), **more})
