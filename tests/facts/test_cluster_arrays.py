"""Routes and latencies of a cluster written out by hand."""

import numpy as np

from moesim.facts.cluster import Cluster
from moesim.facts.gpu import Gpu

GPU = Gpu(name="test", flops={"bf16": 1e12}, memory=1e9, memory_bandwidth=1e12, nvlink=1.0, nic=1.0, sms=1)
ROUTES = {
    # Three GPUs, 0 and 2 on node 0, 1 on node 1; latencies 1, 2, 4, 8, 16 s of links 0 to 4. No route is another's way back.
    (0, 1): [3, 0, 4],
    (0, 2): [1],
    (1, 0): [2, 1],
    (1, 2): [4, 4],  # a link may come twice: it delays twice
    (2, 0): [0],
    (2, 1): [1, 2, 3, 4],
}


def by_hand():
    rows = [ROUTES.get((source, destination), []) for source in range(3) for destination in range(3)]
    return Cluster(
        gpu=GPU,
        node_of=[0, 1, 0],
        bandwidth=np.full(5, 10.0),
        latency=[1.0, 2.0, 4.0, 8.0, 16.0],
        link_names=tuple("abcde"),
        link_class=("nvlink",) * 5,
        route_start=np.cumsum([0, *[len(row) for row in rows]]),
        route_link=[link for row in rows for link in row],
    )


def test_sizes():
    cluster = by_hand()
    # Nodes are those that hold GPUs, not GPUs.
    assert (cluster.gpus, cluster.links, cluster.nodes) == (3, 5, 2)


def test_a_route_is_read_from_source_to_destination_in_order():
    cluster = by_hand()
    for (source, destination), links in ROUTES.items():
        assert cluster.route(source, destination).tolist() == links, (source, destination)
    assert [cluster.route(gpu, gpu).tolist() for gpu in range(3)] == [[], [], []]


def test_latencies_add_up_along_routes():
    # From row to column: 8 + 1 + 16, 2; 4 + 2, 16 + 16; 1, 2 + 4 + 8 + 16. A GPU reaches itself at once.
    assert by_hand().route_latency().tolist() == [[0.0, 25.0, 2.0], [6.0, 0.0, 32.0], [1.0, 30.0, 0.0]]


def test_pairs_of_different_nodes_cross():
    assert by_hand().crosses_nodes().tolist() == [[False, True, False], [True, False, True], [False, True, False]]


def test_one_gpu_alone():
    alone = Cluster(
        gpu=GPU, node_of=[0], bandwidth=[], latency=[], link_names=(), link_class=(), route_start=[0, 0], route_link=[]
    )  # fmt: skip
    assert alone.route_latency().tolist() == [[0.0]]
    assert alone.crosses_nodes().tolist() == [[False]]
    assert (alone.gpus, alone.links, alone.nodes) == (1, 0, 1)
