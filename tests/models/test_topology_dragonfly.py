"""Dragonflies: how groups are wired, minimal and Valiant routes, counts by closed form."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moesim.base.errors import FieldError, PluginError
from moesim.facts.gpu_presets import gpu_presets
from moesim.models.topology.dragonfly import Dragonfly
from moesim.models.topology.dragonfly_walks import global_ends
from moesim.models.topology.flatten import flatten
from moesim.models.topology.layout import layout
from moesim.models.topology.torus import Torus
from moesim.testing import check_topology


def names(cluster, source, destination):
    return [cluster.link_names[link] for link in cluster.route(source, destination)]


def load(cluster, link_class):
    carried = np.bincount(cluster.route_link, minlength=cluster.links)
    return carried[[name == link_class for name in cluster.link_class]]


@st.composite
def dragonflies(draw):
    routers, links = draw(st.integers(1, 4)), draw(st.integers(1, 3))
    groups = draw(st.integers(1, min(routers * links + 1, 6)))
    node = draw(st.integers(1, 2))
    routing = draw(st.sampled_from(["minimal", "valiant"] if groups > 2 else ["minimal"]))
    seed = draw(st.integers(0, 9)) if routing == "valiant" else 0
    sizes = {"groups": groups, "routers_per_group": routers, "global_links": links, "gpus_per_router": node, "gpus_per_node": node}
    return Dragonfly(**sizes, routing=routing, valiant_seed=seed)


def test_the_example_of_the_paper():
    # p = h = 2, a = 4: at most 4 * 2 + 1 = 9 groups of 8: 72 GPUs; 9 * 4 * 3 links inside groups, 9 * 8 between them, one way each.
    cluster = Dragonfly().build()
    assert (cluster.gpus, cluster.nodes) == (72, 36)
    counts = {name: cluster.link_class.count(name) for name in sorted(set(cluster.link_class))}
    assert counts == {"global": 72, "local": 108, "nic": 144, "nvlink": 144}


def test_minimal_routes_by_hand():
    # Port k of group 0 leads to group k + 1, and router r holds ports 2 r and 2 r + 1. To group 5: port 4, router 2. Group 5 reaches
    # group 0 by port (0 - 5 - 1) modulo 9 = 3, router 1. GPU 46 is on router 46 // 2 - 5 * 4 = 3 of group 5.
    cluster = Dragonfly(nic_latency=2e-6, switch_latency=1e-6, global_latency=5e-6).build()
    assert names(cluster, 0, 46) == ["nic-out:0", "local:0-0-2", "global:0-2-to-5-1", "local:5-1-3", "nic-in:46"]
    assert cluster.route_latency()[0, 46] == pytest.approx(9e-6)
    # From GPU 4, on router 2 itself, to GPU 42, on router 1 of group 5: only the link between the groups.
    assert names(cluster, 4, 42) == ["nic-out:4", "global:0-2-to-5-1", "nic-in:42"]
    assert names(cluster, 0, 7) == ["nic-out:0", "local:0-0-3", "nic-in:7"]
    assert names(cluster, 0, 1) == ["nvlink-out:0", "nvlink-in:1"]
    assert names(Dragonfly(gpus_per_node=1).build(), 0, 1) == ["nic-out:0", "nic-in:1"]


def test_spare_ports_are_dealt_out_over_the_pairs_of_groups():
    # 3 groups of 2 routers with 2 ports: 4 ports for 2 other groups, so 2 links a pair. Ports 0 and 2 of group 0 lead to group 1, and meet
    # ports 1 and 3 there: router 0 to 0, and 1 to 1. The sum of sender and receiver picks one: even the first.
    cluster = Dragonfly(groups=3, routers_per_group=2, gpus_per_router=1, gpus_per_node=1).build()
    assert cluster.link_class.count("global") == 3 * 2 * 2
    assert names(cluster, 0, 2) == ["nic-out:0", "global:0-0-to-1-0", "nic-in:2"]
    assert names(cluster, 0, 3) == ["nic-out:0", "local:0-0-1", "global:0-1-to-1-1", "nic-in:3"]
    # Two groups of one router: all 3 links join the same two routers, and count as one of their bandwidth.
    pair = Dragonfly(groups=2, routers_per_group=1, global_links=3, global_link=7.0).build()
    assert pair.bandwidth[[name == "global" for name in pair.link_class]].tolist() == [21.0, 21.0]


@settings(max_examples=50, deadline=None)
@given(groups=st.integers(2, 9), routers=st.integers(1, 6), links=st.integers(1, 4))
def test_every_port_leads_to_one_group_and_back(groups, routers, links):
    if groups > routers * links + 1:
        return
    ends = global_ends(groups, routers, links)
    each = routers * links // (groups - 1)
    assert ends.shape == (groups, groups, each)
    for group in range(groups):
        used = np.bincount(np.delete(ends[group], group, axis=0).ravel(), minlength=routers)
        assert used.sum() == each * (groups - 1)
        assert len(used) == routers
        assert used.max() <= links


@settings(max_examples=40, deadline=None)
@given(dragonflies())
def test_every_route_is_connected_without_a_loop_and_as_long_as_its_rule_allows(topology):
    check_topology(topology, symmetric=topology.routing == "minimal")
    cluster = topology.build()
    ends = {data["name"]: (tail, head) for tail, head, data in topology.graph().edges(data=True)}
    size = topology.routers_per_group * topology.gpus_per_router
    classes = np.array(cluster.link_class)
    for source in range(cluster.gpus):
        for destination in set(range(cluster.gpus)) - {source}:
            way = [ends[name][1] for name in names(cluster, source, destination)]
            assert len(set(way)) == len(way)
            assert f"gpu:{source}" not in way
            kinds = classes[cluster.route(source, destination)].tolist()
            away = source // size != destination // size
            crossed = 2 if topology.routing == "valiant" else 1
            assert kinds.count("global") == (crossed if away else 0)
            assert kinds.count("local") <= (crossed + 1 if away else 1)


def test_an_all_to_all_loads_every_link_between_groups_alike():
    # 8 GPUs in either group: 64 bytes each way on each of the 72 links.
    assert set(load(Dragonfly().build(), "global")) == {64}


def test_l16_valiant_routes_cross_two_links_between_groups_and_relieve_the_one_that_all_want():
    minimal, valiant, other = (
        Dragonfly(**keys).build() for keys in ({}, {"routing": "valiant"}, {"routing": "valiant", "valiant_seed": 1})
    )
    assert load(valiant, "global").sum() == 2 * load(minimal, "global").sum()
    assert (load(valiant, "global") != load(other, "global")).any()
    # Every group sends to the next one: 8 * 8 bytes meet on one link. With a third group, 7 links share them, and each also carries a
    # seventh of what others send by way of it: 18 on average.
    carried = {}
    for name, cluster in (("minimal", minimal), ("valiant", valiant)):
        onward = [cluster.route(one, other) for one in range(72) for other in range(72) if other // 8 == (one // 8 + 1) % 9]
        total = np.bincount(np.concatenate(onward), minlength=cluster.links)
        carried[name] = total[[link == "global" for link in cluster.link_class]].max()
    assert carried["minimal"] == 64
    assert 18 <= carried["valiant"] < 40


def test_a_valiant_route_never_passes_its_own_groups_twice():
    cluster = Dragonfly(routing="valiant").build()
    thirds = set()
    for source in range(8):
        for destination in range(40, 48):
            first, second = [name for name in names(cluster, source, destination) if name.startswith("global")]
            assert first.startswith("global:0-")
            assert second.split("-to-")[1].startswith("5-")
            third = first.split("-to-")[1].split("-")[0]
            assert second.startswith(f"global:{third}-")
            thirds.add(int(third))
    assert thirds == {1, 2, 3, 4, 6, 7, 8}  # 64 pairs on 7 groups: that a fair hash leaves one out has a chance of 0.0004


def test_groups_are_drawn_on_a_ring_with_gpus_outside():
    graph = Dragonfly(groups=4).graph()
    places = layout(graph)
    assert places.keys() == set(graph.nodes)
    far = {
        kind: {round(math.hypot(*places[v]), 6) for v, data in graph.nodes(data=True) if data["kind"] == kind} for kind in ("router", "gpu")
    }
    assert len(far["router"]) == len(far["gpu"]) == 1
    assert max(far["router"]) < max(far["gpu"])
    spots = list(places.values())
    assert min(math.dist(one, other) for i, one in enumerate(spots) for other in spots[:i]) > 0.25


@pytest.mark.parametrize(
    ("keys", "field", "message"),
    [
        ({"groups": 10}, "groups", "10 groups need 9 links out of each, but 4 routers with 2 have 8: write at most 9 groups"),
        ({"groups": 9, "routers_per_group": 4, "gpus_per_router": 100, "gpus_per_node": 1}, "groups", "3600 GPUs are too many"),
        ({"gpus_per_router": 3}, "gpus_per_node", "the 3 GPUs of a router do not divide into nodes of 2"),
        ({"groups": 2, "routing": "valiant"}, "routing", "pass a third group, and there are only 2"),
        ({"valiant_seed": 1}, "valiant_seed", r"valiant_seed \(1\) says nothing with minimal routing"),
        ({"global_links": 10**9}, "global_links", "links between switches are too many"),
        ({"groups": 1, "routers_per_group": 1000}, "routers_per_group", "999000 links between switches are too many"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(keys, field, message):
    with pytest.raises(FieldError, match=message) as caught:
        Dragonfly(**keys)
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("walk", "message"),
    [
        ([0, 2], "the walk from gpu:0 to gpu:2 goes from gpu:0 to gpu:2, which no link joins"),
        ([0, 1], "the walks from gpu:0 must begin there and end at each other GPU"),
        ([1, 2], "the walks from gpu:0 must begin there"),
        ([-1, -1], "the walks from gpu:0 must begin there"),
    ],
)
def test_walks_that_leave_the_links_are_refused(walk, message):
    # A ring of four, so that 0 and 2 are not neighbours; every other walk goes by way of GPU 1 or is a link.
    good = np.array([[0, -1, -1], [0, -1, 1], [0, 1, 2], [0, -1, 3]])
    good[2] = [*walk, -1]
    with pytest.raises(PluginError, match=message):
        flatten(Torus(dims=(4,)).graph(), gpu=gpu_presets()["mi300x"], walks=lambda source: good)
