"""Drawings: nobody on top of anybody, layers in order, the same every time."""

from itertools import pairwise

import networkx as nx
from hypothesis import given, settings
from strategies import small_topologies

from moesim.models.topology.layout import layout
from moesim.models.topology.mesh import Mesh
from moesim.models.topology.nvlink_nodes import NvlinkNodes
from moesim.models.topology.one_switch import OneSwitch


@settings(max_examples=50, deadline=None)
@given(small_topologies())
def test_every_vertex_has_a_place_of_its_own_and_switches_stand_above_gpus(topology):
    graph = topology.graph()
    places = layout(graph)
    assert places.keys() == set(graph.nodes)
    spots = sorted(places.values())
    for (x, y), (right, above) in pairwise(spots):
        assert (right - x) ** 2 + (above - y) ** 2 > 0.01
    height = {
        kind: [places[v][1] for v, data in graph.nodes(data=True) if data["kind"] == kind] for kind in ("gpu", "nvswitch", "leaf", "spine")
    }
    present = [ys for ys in height.values() if ys]
    for lower, upper in pairwise(present):
        assert max(lower) < min(upper)


def test_a_switch_stands_over_the_middle_of_its_gpus():
    # 5 GPUs at x = 0 … 4: the switch is at 2, one layer up.
    places = layout(OneSwitch(gpus=5).graph())
    assert [places[f"gpu:{gpu}"] for gpu in range(5)] == [(0.0, 0.0), (1.0, 0.0), (2.0, 0.0), (3.0, 0.0), (4.0, 0.0)]
    assert places["nvswitch:0"] == (2.0, 1.0)


def test_nodes_stand_apart_and_the_spine_in_the_middle():
    # 2 nodes of 2: x = 0, 1 and, after a gap of 1.5, 2.5 and 3.5. NVSwitches and leaves at 0.5 and 3, the spine at 1.75.
    places = layout(NvlinkNodes(nodes=2, gpus_per_node=2, nodes_per_leaf=1).graph())
    assert [places[f"gpu:{gpu}"][0] for gpu in range(4)] == [0.0, 1.0, 2.5, 3.5]
    assert [places[name][0] for name in ("nvswitch:0", "nvswitch:1", "leaf:0", "leaf:1", "spine:0")] == [0.5, 3.0, 0.5, 3.0, 1.75]


def test_gpus_with_direct_links_stand_on_a_circle():
    places = layout(Mesh(gpus_per_node=8).graph())
    middle = sum(x for x, _ in places.values()) / 8, sum(y for _, y in places.values()) / 8
    radii = {round((x - middle[0]) ** 2 + (y - middle[1]) ** 2, 9) for x, y in places.values()}
    assert len(radii) == 1


def test_unknown_switches_stand_as_high_as_they_are_far_from_the_gpus():
    graph = nx.DiGraph()
    graph.add_node("gpu:0", kind="gpu", node=0)
    graph.add_node("gpu:1", kind="gpu", node=0)
    for one, other in (("gpu:0", "near"), ("near", "far"), ("gpu:1", "near")):
        graph.add_edge(one, other)
    places = layout(graph)
    assert places["near"] == (0.5, 1.0)
    assert places["far"] == (0.5, 2.0)


def test_places_do_not_depend_on_the_order_of_the_graph():
    graph = NvlinkNodes(nodes=4, gpus_per_node=2, rail_optimised=True).graph()
    turned = nx.DiGraph()
    turned.add_nodes_from(reversed(list(graph.nodes(data=True))))
    turned.add_edges_from(reversed(list(graph.edges(data=True))))
    assert layout(turned) == layout(graph)


def test_switches_that_wish_for_one_place_stand_beside_it_on_both_sides():
    # Three switches over the same two GPUs at x = 0 and 1 wish for 0.5: they stand 1 apart, with their middle there, by their names.
    graph = nx.DiGraph()
    for gpu in range(2):
        graph.add_node(f"gpu:{gpu}", kind="gpu", node=0)
    for switch in (10, 9, 1):
        graph.add_node(f"nvswitch:{switch}", kind="nvswitch")
        graph.add_edges_from((f"gpu:{gpu}", f"nvswitch:{switch}") for gpu in range(2))
    places = layout(graph)
    assert [places[f"nvswitch:{switch}"] for switch in (1, 9, 10)] == [(-0.5, 1.0), (0.5, 1.0), (1.5, 1.0)]
