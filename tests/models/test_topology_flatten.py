"""Graphs that outsiders may hand in: forks, transit, and everything that is refused."""

import networkx as nx
import numpy as np
import pytest

from moesim.base.errors import PluginError
from moesim.facts.gpu_presets import gpu_presets
from moesim.models.topology.flatten import flatten

GPU = gpu_presets()["h100-sxm"]


def both(graph: nx.DiGraph, one: str, other: str, **changes: object) -> None:
    for tail, head in ((one, other), (other, one)):
        graph.add_edge(tail, head, **({"name": f"{tail}>{head}", "link_class": "nic", "bandwidth": 1.0, "latency": 0.0} | changes))


def two_leaves(spines: int, each: int) -> nx.DiGraph:
    """GPUs on two leaves, every leaf on every spine."""
    graph = nx.DiGraph()
    for gpu in range(2 * each):
        graph.add_node(f"gpu:{gpu}", kind="gpu", node=gpu)
        both(graph, f"gpu:{gpu}", f"leaf:{gpu // each}")
    for spine in range(spines):
        for leaf in range(2):
            both(graph, f"leaf:{leaf}", f"spine:{spine}")
    return graph


def test_equal_spines_carry_equal_shares():
    # 8 + 8 GPUs, 4 spines, one byte a pair: 64 B go each way, and the destination picks the spine: 16 B on every link up and down.
    cluster = flatten(two_leaves(4, 8), gpu=GPU)
    load = np.bincount(cluster.route_link, minlength=cluster.links)
    assert {int(load[link]) for link, name in enumerate(cluster.link_names) if "spine" in name} == {16}


def test_the_destination_alone_picks_the_spine():
    # The rule that keeps fat trees free of self-made congestion: all that goes to one GPU comes down one link.
    cluster = flatten(two_leaves(4, 8), gpu=GPU)
    for destination in range(8, 16):
        assert len({cluster.route(source, destination)[2] for source in range(8)}) == 1


def test_rails_with_several_spines_use_all_of_them():
    # GPUs 0, 2, 4, 6 on leaf 0 and 1, 3, 5, 7 on leaf 1: numbers below a leaf count, or all that goes to the odd ones would
    # meet on spine 1.
    graph = nx.DiGraph()
    for gpu in range(8):
        graph.add_node(f"gpu:{gpu}", kind="gpu", node=gpu // 2)
        both(graph, f"gpu:{gpu}", f"leaf:{gpu % 2}")
    for spine in range(2):
        both(graph, "leaf:0", f"spine:{spine}")
        both(graph, "leaf:1", f"spine:{spine}")
    cluster = flatten(graph, gpu=GPU)
    load = np.bincount(cluster.route_link, minlength=cluster.links)
    assert {int(load[link]) for link, name in enumerate(cluster.link_names) if "spine" in name} == {8}


def test_gpus_do_not_forward():
    # gpu:1 has links to both others; without a switch between 0 and 2 there is no route.
    graph = nx.DiGraph()
    graph.add_nodes_from([(f"gpu:{gpu}", {"kind": "gpu", "node": gpu}) for gpu in range(3)])
    both(graph, "gpu:0", "gpu:1")
    both(graph, "gpu:1", "gpu:2")
    with pytest.raises(PluginError, match="gpu:2 has no route to gpu:0"):
        flatten(graph, gpu=GPU)
    # With a longer way round through switches, that way is taken although gpu:1 is nearer.
    for one, other in (("gpu:0", "a"), ("a", "b"), ("b", "gpu:2")):
        both(graph, one, other)
    cluster = flatten(graph, gpu=GPU)
    assert [cluster.link_names[link] for link in cluster.route(0, 2)] == ["gpu:0>a", "a>b", "b>gpu:2"]


def test_of_equally_short_routes_the_smaller_network_carries_the_bytes():
    # GPUs 0 and 1 share switch a (2 GPUs); all four share b. Both ways have two links: a it is, whatever the bandwidths.
    graph = nx.DiGraph()
    for gpu in range(4):
        graph.add_node(f"gpu:{gpu}", kind="gpu", node=gpu // 2)
        both(graph, f"gpu:{gpu}", "b", bandwidth=9.0)
    both(graph, "gpu:0", "a")
    both(graph, "gpu:1", "a")
    cluster = flatten(graph, gpu=GPU)
    assert [cluster.link_names[link] for link in cluster.route(0, 1)] == ["gpu:0>a", "a>gpu:1"]
    assert [cluster.link_names[link] for link in cluster.route(0, 2)] == ["gpu:0>b", "b>gpu:2"]


def test_equal_planes_share_the_destinations():
    # Two separate switches join the same four GPUs: of the three destinations of each GPU either plane carries one or two.
    graph = nx.DiGraph()
    for gpu in range(4):
        graph.add_node(f"gpu:{gpu}", kind="gpu", node=gpu)
        both(graph, f"gpu:{gpu}", "plane:0")
        both(graph, f"gpu:{gpu}", "plane:1")
    cluster = flatten(graph, gpu=GPU)
    assert [cluster.link_names[cluster.route(0, to)[0]] for to in (1, 2, 3)] == ["gpu:0>plane:1", "gpu:0>plane:0", "gpu:0>plane:1"]


def test_the_order_in_which_a_graph_was_made_plays_no_part():
    graph = two_leaves(3, 4)
    turned = nx.DiGraph()
    turned.add_nodes_from(reversed(list(graph.nodes(data=True))))
    turned.add_edges_from(reversed(list(graph.edges(data=True))))
    one, other = flatten(graph, gpu=GPU), flatten(turned, gpu=GPU)
    assert one.link_names == other.link_names
    assert (one.route_link == other.route_link).all()
    assert (one.route_start == other.route_start).all()


def test_links_are_numbered_by_class_and_then_by_name_with_numbers_as_numbers():
    cluster = flatten(two_leaves(1, 6), gpu=GPU)
    out = [name for name in cluster.link_names if name.startswith("gpu")]
    assert out == [f"gpu:{gpu}>leaf:{gpu // 6}" for gpu in range(12)]


def test_the_basis_is_assumed_unless_the_graph_or_the_caller_says_otherwise():
    graph = two_leaves(1, 1)
    assert flatten(graph, gpu=GPU).basis == "assumed"
    assert flatten(graph, gpu=GPU, basis="measured").basis == "measured"
    graph.graph["basis"] = "fitted"
    assert flatten(graph, gpu=GPU).basis == "fitted"


def broken(change: str) -> nx.DiGraph:
    graph = two_leaves(1, 2)
    link = graph.edges["gpu:0", "leaf:0"]
    match change:
        case "no name":
            del link["name"]
        case "same name":
            link["name"] = "spine:0>leaf:1"
        case "no bandwidth":
            link["bandwidth"] = 0.0
        case "nan bandwidth":
            link["bandwidth"] = float("nan")
        case "negative latency":
            link["latency"] = -1e-6
        case "one way":
            graph.remove_edge("leaf:1", "gpu:3")
        case "islands":
            graph.remove_node("spine:0")
        case "no way out":
            graph.remove_edge("gpu:2", "leaf:1")
        case "gap":
            nx.relabel_nodes(graph, {"gpu:3": "gpu:7"}, copy=False)
        case "node gap":
            graph.nodes["gpu:3"]["node"] = 9
        case "no node":
            del graph.nodes["gpu:1"]["node"]
        case "empty":
            graph = nx.DiGraph()
    return graph


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("no name", "the link gpu:0 -> leaf:0 has no 'name': a link carries name, link_class, bandwidth, latency"),
        ("same name", "two links are called 'spine:0>leaf:1'"),
        ("no bandwidth", r"gpu:0 -> leaf:0 has bandwidth=0.0: it must be a finite number, more than 0"),
        ("nan bandwidth", "has bandwidth=nan"),
        ("negative latency", "has latency=-1e-06: it must be a finite number, at least 0"),
        ("one way", "gpu:0 has no route to gpu:3"),
        ("islands", "gpu:2 has no route to gpu:0"),
        ("no way out", "gpu:2 has no route to gpu:0"),
        ("gap", "a GPU of the graph is called 'gpu:7': its 4 GPUs must be 'gpu:0' to 'gpu:3'"),
        ("node gap", "node 3 has no GPU"),
        ("no node", "gpu:1 has node=None"),
        ("empty", "the graph has no GPU"),
    ],
)
def test_broken_graphs_are_refused_by_name(change: str, message: str):
    with pytest.raises(PluginError, match=message):
        flatten(broken(change), gpu=GPU)
