"""The order of rings and the shape of trees, by hand and by their properties."""

import numpy as np
import pytest
from examples import examples
from hypothesis import given
from hypothesis import strategies as st

from moesim.base.errors import UsageError
from moesim.models.collective.bus_bandwidth import FACTORS, algorithm_bandwidth, bus_bandwidth
from moesim.models.collective.orders import default_channels, in_order_tree, ring_order, two_trees
from moesim.models.collective.tree import spanning_trees


def edges(orders, node_of):
    """All steps of rings that leave a node, as (from, to)."""
    steps = [(int(a), int(b)) for order in orders for a, b in zip(order, np.roll(order, -1), strict=True)]
    return [(a, b) for a, b in steps if node_of[a] != node_of[b]]


@examples(80)
@given(st.integers(1, 6), st.integers(1, 8))
def test_rings_use_each_network_card_once_each_way(nodes, local):
    node_of = np.repeat(np.arange(nodes), local)
    ranks = np.arange(nodes * local)
    assert default_channels(ranks, node_of) == (local if nodes > 1 else 1)
    orders = [ring_order(ranks, node_of, channel) for channel in range(default_channels(ranks, node_of))]
    for order in orders:
        assert sorted(order.tolist()) == ranks.tolist()
        assert len(edges([order], node_of)) == (nodes if nodes > 1 else 0)
    leaving = edges(orders, node_of)
    if nodes > 1:
        assert sorted(a for a, _ in leaving) == ranks.tolist()
        assert sorted(b for _, b in leaving) == ranks.tolist()
        crossing = [(a, b) for a, b in leaving if a % local != b % local]
        # With an odd number of nodes and more than one GPU in each, only the step from the last node to the first changes rails.
        assert len(crossing) == (local if nodes % 2 and local > 1 else 0)
        assert all(node_of[a] == nodes - 1 and node_of[b] == 0 for a, b in crossing)


def test_ring_by_hand():
    # Channel 1 enters node 0 at GPU 1 and leaves from GPU 0; it enters node 1 at its GPU 0 (number 4) and walks backwards to GPU 5.
    assert ring_order(np.arange(8), np.repeat([0, 1], 4), 1).tolist() == [1, 2, 3, 0, 4, 7, 6, 5]
    # On one node, channels stride: 1, then 3 (2 divides 8), then 5, 7, and 1 again.
    strides = [int(ring_order(np.arange(8), np.zeros(8, dtype=int), channel)[1]) for channel in range(5)]
    assert strides == [1, 3, 5, 7, 1]


def test_ring_goes_through_uneven_and_interleaved_nodes_once():
    node_of = np.array([1, 0, 1, 0, 1])
    for channel in range(3):
        order = ring_order(np.arange(5), node_of, channel)
        assert sorted(order.tolist()) == [0, 1, 2, 3, 4]
        assert len(edges([order], node_of)) == 2
    assert default_channels(np.arange(5), node_of) == 2


def test_in_order_tree_by_hand():
    # Counted from 1: 8 is the root; 4 and 12 below it; 2, 6, 10 and 14 below these; 14 does not exist for 13, so 13 hangs below 12.
    parent = in_order_tree(13) + 1
    assert parent.tolist() == [2, 4, 2, 8, 6, 4, 6, 0, 10, 12, 10, 8, 12]


@examples(100)
@given(st.integers(1, 300))
def test_no_vertex_of_a_double_binary_tree_is_inner_in_both(count):
    trees = two_trees(count)
    children = [np.bincount(tree[tree >= 0], minlength=count) for tree in trees]
    assert not ((children[0] > 0) & (children[1] > 0)).any()
    for tree, below in zip(trees, children, strict=True):
        assert below.max() <= 2
        assert (tree < 0).sum() == 1
        vertex, steps = np.arange(count), 0
        while (vertex >= 0).any():  # everybody reaches the root in at most log2(count) + 1 steps
            vertex, steps = np.where(vertex >= 0, tree[vertex], -1), steps + 1
        assert steps <= int(np.log2(count)) + 2


@examples(60)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=12), st.integers(0, 3), st.data())
def test_trees_enter_each_node_once(nodes, channel, data):
    node_of = np.array(nodes)
    n, used = len(nodes), len(set(nodes))
    root = data.draw(st.none() | st.integers(0, n - 1))
    for parent in spanning_trees(np.arange(n), node_of, channel, root):
        assert (parent < 0).sum() == 1
        if root is not None:
            assert parent[root] == -1
        below = np.flatnonzero(parent >= 0)
        assert (node_of[below] != node_of[parent[below]]).sum() == used - 1


def test_nccl_tests_factors_by_hand():
    # 8 ranks, 8 GB in 40 ms: algbw 200 GB/s; busbw times 14/8 and 7/8 and 1.
    assert algorithm_bandwidth(8e9, 0.04) == pytest.approx(200e9)
    wanted = {"all_reduce": 350e9, "all_gather": 175e9, "reduce_scatter": 175e9, "all_to_all": 175e9}
    wanted |= {"broadcast": 200e9, "reduce": 200e9, "send": 200e9}
    assert set(wanted) == set(FACTORS)
    for operation, value in wanted.items():
        assert bus_bandwidth(operation, 8e9, 0.04, 8) == pytest.approx(value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("allgather", 1.0, 1.0, 2), "did you mean 'all_gather'"),
        (("send", 1.0, 0.0, 2), "an operation took 0.0 s"),
        (("send", -1.0, 1.0, 2), "size is -1.0 B"),
        (("send", 1.0, 1.0, 0), "at least one rank, not 0"),
    ],
)
def test_bandwidths_of_nonsense_are_refused(arguments, message):
    with pytest.raises(UsageError, match=message):
        bus_bandwidth(*arguments)


def test_a_broadcast_leaves_the_node_of_its_root_through_the_card_of_its_channel():
    # Two nodes of two, root 0, channel 1: the root hands down its chain to GPU 1, and GPU 1 sends to GPU 3, the leader of the other node.
    for parent in spanning_trees(np.arange(4), np.array([0, 0, 1, 1]), 1, 0):
        assert parent.tolist() == [-1, 0, 3, 1]
