"""A described machine as a cluster: defaults of its links, weights, copies, and what is refused."""

import networkx as nx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import small_topologies

from moesim.base.errors import FieldError, PluginError
from moesim.facts.cluster import Cluster
from moesim.models.topology.graph import GraphTopology
from moesim.models.topology.nvlink_nodes import NvlinkNodes
from moesim.models.topology.one_switch import OneSwitch
from moesim.models.topology.wiring import MOST_LINKS, Vertex, WiredLink, Wiring, wiring_of
from moesim.testing import check_topology

ARRAYS = ("node_of", "bandwidth", "latency", "route_start", "route_link", "link_names", "link_class")


def names(cluster: Cluster, source: int, destination: int) -> list[str]:
    return [cluster.link_names[link] for link in cluster.route(source, destination)]


def links(*ends: tuple[str, str], **keys) -> tuple[WiredLink, ...]:
    return tuple(WiredLink(ends=pair, **keys) for pair in ends)


def of(*wired: WiredLink, vertices=None, **keys) -> GraphTopology:
    return GraphTopology(wiring=Wiring(vertices=vertices or {}, links=wired), **keys)


def figures(cluster: Cluster, name: str) -> tuple[float, float]:
    link = cluster.link_names.index(name)
    return float(cluster.bandwidth[link]), float(cluster.latency[link])


@settings(max_examples=40, deadline=None)
@given(small_topologies())
def test_the_graph_of_any_cluster_is_that_cluster(topology):
    one, other = topology.build(), GraphTopology(wiring=wiring_of(topology.graph()), gpu=topology.gpu).build()
    for array in ARRAYS:
        assert np.array_equal(getattr(one, array), getattr(other, array)), array


@settings(max_examples=30, deadline=None)
@given(nodes=st.integers(2, 6), each=st.integers(1, 4), below=st.none() | st.integers(1, 3), over=st.sampled_from([1.0, 2.0, 3.0]))
def test_copies_of_a_switch_are_nvlink_nodes(nodes, each, below, over):
    # A GPU for which the description has no card gets one of its own: exactly the servers of nvlink_nodes, under other names.
    built_in = NvlinkNodes(nodes=nodes, gpus_per_node=each, nodes_per_leaf=below, oversubscription=over)
    one_server = Wiring(links=links(*((f"gpu:{gpu}", "nvswitch:0") for gpu in range(each))))
    copied = GraphTopology(wiring=one_server, nodes=nodes, nodes_per_leaf=below, oversubscription=over)
    check_topology(copied)
    one, other = built_in.build(), copied.build()
    assert one.node_of.tolist() == other.node_of.tolist()
    for source in range(one.gpus):
        for destination in range(one.gpus):
            there, here = one.route(source, destination), other.route(source, destination)
            assert one.bandwidth[there].tolist() == other.bandwidth[here].tolist()
            assert one.latency[there].tolist() == other.latency[here].tolist()
            assert [name.split("/")[-1].split(":")[0] for name in names(other, source, destination) if "nvlink" not in name] == [
                name.split(":")[0] for name in names(one, source, destination) if "nvlink" not in name
            ]


def test_every_class_has_its_default():
    # H100: 450 GB/s one way, of which 0.69 is achieved; four lanes of 25 GB/s; a card of 50 GB/s, of which 0.88; sixteen PCIe lanes of
    # 3 GB/s; 22 GB/s between sockets. Latencies of nvlink and nic are halved, for a route has two such links.
    cluster = of(
        *links(("gpu:0", "nvswitch:0"), ("gpu:1", "nvswitch:0")),
        WiredLink(ends=("gpu:0", "gpu:1"), lanes=4),
        *links(("gpu:0", "leaf:0"), ("gpu:1", "leaf:0")),
        WiredLink(ends=("gpu:0", "numa:0"), link_class="pcie"),
        WiredLink(ends=("gpu:1", "numa:1"), link_class="pcie", lanes=8),
        WiredLink(ends=("numa:0", "numa:1"), link_class="socket"),
    ).build()
    assert figures(cluster, "nvlink:gpu:0>nvswitch:0") == (pytest.approx(450e9 * 0.69), pytest.approx(936.25e-9 / 2))
    assert figures(cluster, "nvlink:gpu:1>gpu:0") == (pytest.approx(100e9 * 0.69), pytest.approx(936.25e-9))
    assert figures(cluster, "nic:leaf:0>gpu:1") == (pytest.approx(50e9 * 0.88), pytest.approx(1e-6))
    assert figures(cluster, "pcie:gpu:0>numa:0") == (48e9, 100e-9)
    assert figures(cluster, "pcie:numa:1>gpu:1") == (24e9, 100e-9)
    assert figures(cluster, "socket:numa:0>numa:1") == (22e9, 100e-9)
    assert cluster.basis == "assumed"


def test_written_figures_win_over_defaults():
    wired = links(("gpu:0", "nvswitch:0"), ("gpu:1", "nvswitch:0"), lanes=2)
    assert figures(of(*wired, nvlink_lane=10e9, nvlink_efficiency=0.5).build(), "nvlink:gpu:0>nvswitch:0")[0] == 10e9
    bus = links(("gpu:0", "numa:0"), ("gpu:1", "numa:0"), link_class="pcie", lanes=4)
    assert figures(of(*bus, pcie_lane=2e9).build(), "pcie:gpu:0>numa:0")[0] == 8e9
    taken = links(("gpu:0", "gpu:1"), bandwidth=7.0, latency=0.0, name="mine")
    assert figures(of(*taken).build(), "mine") == (7.0, 0.0)
    assert figures(of(*taken).build(), "mine:back") == (7.0, 0.0)
    rated = links(("gpu:0", "gpu:1"), rate=100.0)  # a data sheet's: NVLink achieves 0.69 of it
    assert figures(of(*rated).build(), "nvlink:gpu:0>gpu:1")[0] == pytest.approx(69.0)


def test_the_lightest_route_is_taken():
    direct = WiredLink(ends=("gpu:0", "gpu:1"), weight=3)
    around = links(("gpu:0", "nvswitch:0"), ("nvswitch:0", "gpu:1"))
    assert names(of(direct, *around).build(), 0, 1) == ["nvlink:gpu:0>nvswitch:0", "nvlink:nvswitch:0>gpu:1"]
    even = WiredLink(ends=("gpu:0", "gpu:1"), weight=1)
    assert names(of(even, *around).build(), 0, 1) == ["nvlink:gpu:0>gpu:1"]


def test_weights_count_between_switches():
    # Two ways from a to d: one hop of weight 9, or three of weight 2.
    ends = [("gpu:0", "a:0"), ("d:0", "gpu:1")]
    heavy = WiredLink(ends=("a:0", "d:0"), weight=9, bandwidth=1.0, name="heavy")
    light = links(("a:0", "b:0"), ("b:0", "c:0"), ("c:0", "d:0"), weight=2, bandwidth=1.0)
    cluster = of(*links(*ends, bandwidth=1.0), heavy, *light).build()
    assert len(cluster.route(0, 1)) == 5
    assert "heavy" not in names(cluster, 0, 1)
    cluster = of(*links(*ends, bandwidth=1.0), WiredLink(ends=("a:0", "d:0"), weight=5, bandwidth=1.0, name="heavy"), *light).build()
    assert names(cluster, 0, 1)[1] == "heavy"


def shared_card(nodes: int, **keys) -> GraphTopology:
    """Two GPUs with NVLink and one card behind a PCIe switch."""
    wired = (
        *links(("gpu:0", "gpu:1"), bandwidth=100e9),
        *links(("gpu:0", "pcie:0"), ("gpu:1", "pcie:0"), ("pcie:0", "nic:0"), link_class="pcie", weight=2),
    )
    vertices = {"gpu:0": Vertex(nic="nic:0"), "gpu:1": Vertex(nic="nic:0"), "nic:0": Vertex(rate=12.5e9)}
    return of(*wired, vertices=vertices, nodes=nodes, **keys)


def test_gpus_share_the_card_that_the_description_gives_them():
    cluster = shared_card(2).build()
    assert names(cluster, 1, 2) == [
        "n0/pcie:gpu:1>pcie:0",
        "n0/pcie:pcie:0>nic:0",
        "nic-out:0",
        "nic-in:1",
        "n1/pcie:nic:0>pcie:0",
        "n1/pcie:pcie:0>gpu:0",
    ]
    assert figures(cluster, "nic-out:0")[0] == pytest.approx(12.5e9 * 0.88)
    assert names(cluster, 2, 3) == ["n1/nvlink:gpu:0>gpu:1"]
    check_topology(shared_card(5, nodes_per_leaf=2, oversubscription=4.0))
    assert figures(shared_card(2, nic=9e9).build(), "nic-out:0")[0] == 9e9


def test_the_uplink_is_the_sum_of_the_cards_over_the_oversubscription():
    cluster = shared_card(3, nodes_per_leaf=2, oversubscription=4.0).build()
    assert figures(cluster, "uplink:leaf0")[0] == pytest.approx(2 * 12.5e9 * 0.88 / 4)
    assert figures(cluster, "downlink:leaf1")[0] == pytest.approx(12.5e9 * 0.88 / 4)  # the last leaf has one server
    assert {name for name in names(cluster, 0, 5) if "link" in name} == {"uplink:leaf0", "downlink:leaf1"}


def test_bytes_of_a_node_stay_in_it_though_the_network_is_near():
    # Across the sockets it is seven links inside, through the cards and the leaf only six.
    chain = [("gpu:0", "a:0"), ("a:0", "b:0"), ("b:0", "numa:0"), ("numa:0", "numa:1"), ("numa:1", "b:1"), ("b:1", "a:1"), ("a:1", "gpu:1")]
    wired = (*links(*chain, bandwidth=1e9), *links(("a:0", "nic:0"), ("a:1", "nic:1"), bandwidth=1e9))
    topology = of(*wired, vertices={"gpu:0": Vertex(nic="nic:0"), "gpu:1": Vertex(nic="nic:1")}, nodes=2)
    cluster = topology.build()
    assert len(cluster.route(0, 1)) == 7
    assert not any(name.startswith("nic") for name in names(cluster, 0, 1))
    check_topology(topology)


@pytest.mark.parametrize(
    ("make", "field", "message"),
    [
        (GraphTopology, "file", "needs a file"),
        (lambda: GraphTopology(file="a", wiring=wiring_of(OneSwitch(gpus=2).graph())), "file", "not both"),
        (lambda: GraphTopology(wiring=wiring_of(NvlinkNodes(nodes=2).graph()), nodes=2), "nodes", "describes 2"),
        (lambda: GraphTopology(wiring=wiring_of(OneSwitch(gpus=8).graph()), nodes=300), "nodes", "2400 GPUs are too many"),
        (Wiring, "vertices", "no GPU"),
        (lambda: Wiring(vertices={"gpu:0": Vertex(), "gpu:2": Vertex()}), "vertices", "there is a gpu:2 but no gpu:1"),
        (lambda: Wiring(vertices={"gpu:0": Vertex(), "a": Vertex(kind="gpu")}), "vertices", "'a' has kind gpu"),
        (lambda: Wiring(vertices={"gpu:0": Vertex(nic="nic:4")}), "vertices", "'nic:4', which is no vertex"),
        (lambda: Wiring(vertices={"gpu:0": Vertex(nic="gpu:1"), "gpu:1": Vertex()}), "vertices", "GPUs do not forward"),
        (lambda: WiredLink(ends=("gpu:0", "gpu:0")), "ends", "joins gpu:0 to itself"),
        (lambda: WiredLink(ends=("a", "b"), bandwidth=1.0, lanes=2), "bandwidth", "either a bandwidth"),
        (lambda: Wiring(links=links(("gpu:0", "gpu:1"), ("gpu:1", "gpu:0"))), "links", "a second link from gpu:1 to gpu:0"),
        (lambda: Wiring(links=links(("gpu:0", "a"), ("gpu:0", "b"), name="x")), "links", "two links are called 'x'"),
        (lambda: Wiring(links=links(*(("gpu:0", f"s:{i}") for i in range(MOST_LINKS + 1)))), "links", "8001 links are too many"),
    ],
)
def test_what_does_not_fit_is_refused_at_its_key(make, field, message):
    with pytest.raises(FieldError, match=message) as refused:
        make()
    assert refused.value.field == field


def test_links_of_unknown_classes_need_a_bandwidth():
    with pytest.raises(PluginError, match="the link gpu:0 - x:0 of class 'link' has no bandwidth"):
        of(*links(("gpu:0", "x:0"))).graph()


def test_a_graph_in_parts_names_the_pair():
    with pytest.raises(PluginError, match="gpu:2 has no route to gpu:0"):
        of(*links(("gpu:0", "gpu:1"), ("gpu:2", "gpu:3"))).build()


def test_a_card_out_of_reach_is_named():
    wired = links(("gpu:0", "gpu:1"), ("nic:0", "x:0"), bandwidth=1.0)
    with pytest.raises(PluginError, match="gpu:0 has no route to nic:0, through which the bytes of gpu:0 leave"):
        of(*wired, vertices={"gpu:0": Vertex(nic="nic:0")}, nodes=2).build()


def test_an_unread_file_cannot_be_built():
    with pytest.raises(PluginError, match=r"fabric\.xml was not read: load the scenario"):
        GraphTopology(file="fabric.xml").build()


def test_the_order_of_links_plays_no_part():
    shuffled = shared_card(3)
    assert shuffled.wiring is not None
    turned = Wiring(vertices=shuffled.wiring.vertices, links=shuffled.wiring.links[::-1])
    one, other = shuffled.build(), GraphTopology(wiring=turned, nodes=3).build()
    for array in ARRAYS:
        assert np.array_equal(getattr(one, array), getattr(other, array)), array


def test_the_two_ways_of_a_pair_keep_their_own_figures():
    graph = nx.DiGraph(basis="exact")
    graph.add_edge("gpu:0", "gpu:1", name="there", link_class="x", bandwidth=5.0, latency=0.0)
    graph.add_edge("gpu:1", "gpu:0", name="back", link_class="x", bandwidth=4.0, latency=0.0)
    cluster = GraphTopology(wiring=wiring_of(graph)).build()
    assert figures(cluster, "there") == (5.0, 0.0)
    assert figures(cluster, "back") == (4.0, 0.0)
