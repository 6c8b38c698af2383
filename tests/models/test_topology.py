"""The built-in clusters: which links a pair crosses, what they carry, and what is refused."""

import numpy as np
import pytest
from hypothesis import given, settings
from pydantic import ValidationError
from strategies import every_topology, small_topologies

from moesim.base.errors import FieldError
from moesim.base.registry import build, kinds
from moesim.facts.cluster import Cluster
from moesim.facts.evidence import STRENGTH
from moesim.facts.gpu_figures import ALL_TO_ALL
from moesim.facts.gpu_presets import achievable, gpu_presets
from moesim.models.topology.achieved import DELAYS, ELSEWHERE, SHARES, share_of
from moesim.models.topology.mesh import Mesh
from moesim.models.topology.nvl_rack import NvlRack
from moesim.models.topology.nvlink_nodes import NvlinkNodes
from moesim.models.topology.one_switch import OneSwitch


def names(cluster: Cluster, source: int, destination: int) -> list[str]:
    return [cluster.link_names[link] for link in cluster.route(source, destination)]


def bandwidth(cluster: Cluster, name: str) -> float:
    return float(cluster.bandwidth[cluster.link_names.index(name)])


def link_bytes(cluster: Cluster) -> np.ndarray:
    """Bytes on each link when every GPU sends one byte to every other."""
    return np.bincount(cluster.route_link, minlength=cluster.links)


def test_every_kind_is_registered_and_builds_from_its_defaults():
    # `graph` describes nothing by itself: it needs a file.
    built = {
        kind: build(cls, {}).build().gpus
        for kind, cls in kinds("topology").items()
        if cls.__module__.startswith("moesim.") and kind != "graph"
    }
    assert built == {
        "dragonfly": 72,
        "fat_tree": 64,
        "mesh": 8,
        "nvl_rack": 72,
        "nvlink_nodes": 8,
        "one_switch": 8,
        "shaped_hosts": 8,
        "torus": 16,
    }


def test_one_switch_goes_out_and_in():
    cluster = OneSwitch(gpus=3, bandwidth=7.0, latency=4e-6).build()
    assert cluster.links == 6
    assert names(cluster, 0, 2) == ["nvlink-out:0", "nvlink-in:2"]
    assert names(cluster, 1, 1) == []
    assert cluster.node_of.tolist() == [0, 0, 0]
    assert cluster.bandwidth.tolist() == [7.0] * 6
    # The latency is that of the whole route, split over its two links.
    assert cluster.route_latency()[0].tolist() == [0.0, 4e-6, 4e-6]


def test_one_gpu_has_no_routes():
    cluster = OneSwitch(gpus=1).build()
    assert cluster.route_link.size == 0
    assert cluster.route_start.tolist() == [0, 0]


def test_nvlink_nodes_inside_a_node_and_below_a_leaf():
    cluster = NvlinkNodes(nodes=2, gpus_per_node=4).build()
    assert cluster.node_of.tolist() == [0, 0, 0, 0, 1, 1, 1, 1]
    assert names(cluster, 0, 3) == ["nvlink-out:0", "nvlink-in:3"]
    assert names(cluster, 0, 4) == ["nic-out:0", "nic-in:4"]
    assert set(cluster.link_class) == {"nvlink", "nic"}


def test_nvlink_nodes_of_one_node_have_no_network():
    assert set(NvlinkNodes(nodes=1).build().link_class) == {"nvlink"}


def test_nvlink_nodes_cross_the_spine_between_leaves():
    # 3 nodes of 2, 2 nodes a leaf. The last leaf has one node, so its uplink carries half of the other's.
    cluster = NvlinkNodes(
        nodes=3, gpus_per_node=2, nodes_per_leaf=2, nic=50.0, oversubscription=2.0, nic_latency=2e-6, switch_latency=1e-6
    ).build()
    assert names(cluster, 0, 2) == ["nic-out:0", "nic-in:2"]
    assert names(cluster, 0, 5) == ["nic-out:0", "uplink:leaf0", "downlink:leaf1", "nic-in:5"]
    assert bandwidth(cluster, "uplink:leaf0") == 4 * 50.0 / 2
    assert bandwidth(cluster, "downlink:leaf1") == 2 * 50.0 / 2
    assert cluster.route_latency()[0, [2, 5]] == pytest.approx([2e-6, 4e-6], rel=1e-12)


def test_rails_share_a_leaf_and_cross_the_spine_only_between_rails_or_blocks():
    cluster = NvlinkNodes(nodes=4, gpus_per_node=2, nodes_per_leaf=2, rail_optimised=True, nic=10.0).build()
    # GPU 0 (node 0, rail 0) to GPU 2 (node 1, rail 0): one leaf. To GPU 3 (rail 1): the spine, not GPU 1's card over NVLink.
    assert names(cluster, 0, 2) == ["nic-out:0", "nic-in:2"]
    assert names(cluster, 0, 3) == ["nic-out:0", "uplink:leaf0-rail0", "downlink:leaf0-rail1", "nic-in:3"]
    assert names(cluster, 0, 4) == ["nic-out:0", "uplink:leaf0-rail0", "downlink:leaf1-rail0", "nic-in:4"]
    assert bandwidth(cluster, "uplink:leaf1-rail1") == 20.0


@pytest.mark.parametrize(
    ("fields", "uplinks"),
    [
        ({"nodes": 4}, 0),  # four nodes below one leaf
        ({"nodes": 5}, 2),
        ({"nodes": 2, "oversubscription": 2.0}, 2),  # asked for oversubscription: a leaf each
        ({"nodes": 4, "oversubscription": 2.0}, 2),
        ({"nodes": 4, "oversubscription": 2.0, "nodes_per_leaf": 4}, 0),  # what is written stands
        ({"nodes": 4, "rail_optimised": True}, 8),  # a leaf per rail
    ],
)
def test_the_default_number_of_nodes_below_a_leaf(fields: dict, uplinks: int):
    cluster = NvlinkNodes(**fields).build()
    assert sum(name.startswith("uplink") for name in cluster.link_names) == uplinks


def test_oversubscription_does_not_touch_what_stays_below_a_leaf():
    one, four = (NvlinkNodes(nodes=4, gpus_per_node=2, nodes_per_leaf=2, oversubscription=over).build() for over in (1.0, 4.0))
    slower = four.bandwidth < one.bandwidth
    assert {one.link_class[link] for link in np.flatnonzero(slower)} == {"uplink"}
    assert (four.bandwidth[slower] * 4 == one.bandwidth[slower]).all()


def test_nvl_rack_is_flat_inside_and_counts_trays_as_nodes():
    cluster = NvlRack(racks=2, gpus=8, gpus_per_tray=4).build()
    assert cluster.node_of.tolist() == [0] * 4 + [1] * 4 + [2] * 4 + [3] * 4
    assert names(cluster, 0, 7) == ["nvlink-out:0", "nvlink-in:7"]
    assert names(cluster, 0, 8) == ["nic-out:0", "uplink:leaf0", "downlink:leaf1", "nic-in:8"]
    assert set(NvlRack().build().link_class) == {"nvlink"}


def test_mesh_has_one_link_per_ordered_pair():
    cluster = Mesh(nodes=2, gpus_per_node=3, link=5.0).build()
    assert cluster.link_class.count("mesh") == 2 * 3 * 2
    assert names(cluster, 0, 2) == ["mesh:0-2"]
    assert names(cluster, 2, 0) == ["mesh:2-0"]
    assert names(cluster, 0, 3) == ["nic-out:0", "nic-in:3"]
    assert bandwidth(cluster, "mesh:0-2") == 5.0


def test_a_data_sheet_bandwidth_is_reduced_to_what_was_measured():
    # 450 GB/s x 0.69 (NCCL all-to-all on 8 H200; carried over to H100) and 50 GB/s x 0.88 (DeepEP over 400 Gb/s cards).
    cluster = NvlinkNodes(nodes=2, gpu=gpu_presets()["h200-sxm"]).build()
    assert bandwidth(cluster, "nvlink-out:0") == pytest.approx(310.5e9, rel=1e-12)
    assert bandwidth(cluster, "nic-in:9") == pytest.approx(44e9, rel=1e-12)
    assert bandwidth(NvlinkNodes().build(), "nvlink-out:0") == pytest.approx(310.5e9, rel=1e-12)
    # A seventh of 448 GB/s x 0.61 (MORI on MI300X).
    assert bandwidth(Mesh().build(), "mesh:0-1") == pytest.approx(39.04e9, rel=1e-12)


def test_a_written_bandwidth_stands_and_a_written_efficiency_always_applies():
    cluster = NvlinkNodes(nodes=2, nvlink=100e9, nic=10e9, nic_efficiency=0.5).build()
    assert bandwidth(cluster, "nvlink-out:0") == 100e9
    assert bandwidth(cluster, "nic-out:0") == 5e9
    assert bandwidth(NvlinkNodes(nvlink_efficiency=0.5).build(), "nvlink-out:0") == 225e9


def test_the_basis_is_the_weakest_evidence_of_the_links_there_are():
    # NVLink: data sheet x measured share, fitted latency. A network adds assumed latencies; so does anything that the user writes.
    h200 = gpu_presets()["h200-sxm"]
    assert OneSwitch(gpu=h200).build().basis == "datasheet"
    assert NvlinkNodes(gpu=h200, nodes=1).build().basis == "datasheet"
    assert NvlinkNodes(gpu=h200, nodes=2).build().basis == "assumed"
    # Nobody measured an all-to-all among H100: theirs is carried over from H200, and says so.
    assert OneSwitch().build().basis == "assumed"
    assert NvlinkNodes(nodes=2).build().basis == "assumed"
    assert OneSwitch(bandwidth=1e9).build().basis == "assumed"
    assert OneSwitch(gpu=gpu_presets()["b200-sxm"]).build().basis == "assumed"


def test_a_gpu_that_only_borrows_a_preset_name_does_not_borrow_its_measurements():
    import dataclasses

    own = dataclasses.replace(gpu_presets()["h200-sxm"], nvlink=1e9)
    assert share_of("nvlink", own) == ELSEWHERE["nvlink"]
    assert share_of("nvlink", gpu_presets()["a100-sxm-80"]).value == 0.65


def test_a_share_is_the_all_to_all_figure_of_the_preset_over_its_data_sheet():
    # One truth: what is simulated by default is what the figures say was reached, to two digits; other experiments do not count.
    derived = {(link, name) for link, known in SHARES.items() for name in known}
    for name, gpu in gpu_presets().items():
        for link, datasheet in (("nvlink", gpu.nvlink), ("nic", gpu.nic), ("mesh", gpu.nvlink / 7)):
            figure = achievable(name, link)
            if figure is None or figure.experiment != ALL_TO_ALL:
                assert (link, name) not in derived
                assert share_of(link, gpu) == ELSEWHERE[link]
            else:
                assert share_of(link, gpu).value * datasheet == pytest.approx(figure.value, abs=0.005 * datasheet)
                assert share_of(link, gpu).basis == figure.basis
    # Two GPUs sending to each other reach more than eight to all; low latency less than high throughput. Neither sets a share.
    assert {("nvlink", "h100-sxm"), ("nic", "h800-sxm")}.isdisjoint(derived)
    assert all(share.basis == "assumed" for share in ELSEWHERE.values())


def test_every_default_states_a_known_basis_and_a_source_for_a_known_gpu():
    shares = [share for table in SHARES.values() for share in table.values()] + list(ELSEWHERE.values())
    assert all(0 < share.value <= 1 for share in shares)
    assert all(entry.basis in STRENGTH and entry.source for entry in [*shares, *DELAYS.values()])
    assert {name for table in SHARES.values() for name in table} <= gpu_presets().keys()


def test_quantities_are_read_with_their_units():
    topology = build(NvlinkNodes, {"gpu": "h200-sxm", "nodes": 2, "nic": "400 Gb/s", "oversubscription": 2, "nic_latency": "3 us"})
    assert topology == NvlinkNodes(gpu=gpu_presets()["h200-sxm"], nodes=2, nic=50e9, oversubscription=2.0, nic_latency=3e-6)


@pytest.mark.parametrize(
    ("cls", "data", "message"),
    [
        (NvlinkNodes, {"nodes": 0}, "0 is too small: it must be at least 1"),
        (NvlinkNodes, {"nic": "0 Gb/s"}, "it must be more than"),
        (NvlinkNodes, {"oversubscription": 0.5}, "0.5 is too small: it must be at least 1"),
        (NvlinkNodes, {"nvlink_efficiency": 1.5}, "1.5 is too large"),
        (NvlinkNodes, {"gpu": "h100"}, "unknown preset 'h100'; did you mean"),
        (NvlinkNodes, {"rail_optimized": True}, "Unexpected keyword argument"),
        (NvlRack, {"gpus_per_tray": 5}, "the 72 GPUs of a rack do not divide into trays of 5"),
    ],
)
def test_bad_fields_are_refused(cls: type, data: dict, message: str):
    with pytest.raises(ValidationError, match=message):
        build(cls, data)


def test_trays_that_do_not_fill_a_rack_point_at_their_field():
    with pytest.raises(FieldError) as caught:
        NvlRack(gpus=10, gpus_per_tray=4)
    assert caught.value.field == "gpus_per_tray"


@settings(max_examples=50, deadline=None)
@given(small_topologies())
def test_every_route_is_a_shortest_path_of_the_graph(topology):
    import networkx as nx

    graph, cluster = topology.graph(), topology.build()
    ends = {data["name"]: (tail, head) for tail, head, data in graph.edges(data=True)}
    assert len(set(cluster.link_names)) == cluster.links == graph.number_of_edges()
    for source in range(cluster.gpus):
        # GPUs do not forward: take all others out before asking networkx.
        for destination in range(cluster.gpus):
            if source == destination:
                assert cluster.route(source, source).size == 0
                continue
            path = [f"gpu:{source}"]
            for name in names(cluster, source, destination):
                assert ends[name][0] == path[-1]
                path.append(ends[name][1])
            assert path[-1] == f"gpu:{destination}"
            others = {f"gpu:{other}" for other in range(cluster.gpus)} - {path[0], path[-1]}
            assert not others & set(path)
            assert len(path) - 1 == nx.shortest_path_length(nx.restricted_view(graph, list(others), []), path[0], path[-1])


@settings(max_examples=50, deadline=None)
@given(every_topology())
def test_a_cluster_agrees_with_its_graph(topology):
    graph, cluster = topology.graph(), topology.build()
    links = {data["name"]: data for _, _, data in graph.edges(data=True)}
    for link, name in enumerate(cluster.link_names):
        assert cluster.bandwidth[link] == links[name]["bandwidth"] > 0
        assert cluster.latency[link] == links[name]["latency"] >= 0
        assert cluster.link_class[link] == links[name]["link_class"]
    assert [graph.nodes[f"gpu:{gpu}"]["node"] for gpu in range(cluster.gpus)] == cluster.node_of.tolist()


def test_l16_a_topology_change_that_changes_routes_changes_link_bytes():
    # All-to-all of one byte a pair on 4 nodes of 2, two nodes a leaf. Shared leaves: the 4 GPUs of leaf 0 send to 4 beyond it: 16 B.
    # Rails: a leaf holds 2 GPUs of one rail; each reaches its neighbour by NVLink and its rail below the leaf, and sends to the 5 others
    # beyond it: 10 B on each of four uplinks.
    shared, rails = (NvlinkNodes(nodes=4, gpus_per_node=2, nodes_per_leaf=2, rail_optimised=rail).build() for rail in (False, True))
    for cluster, uplinks, each in ((shared, 2, 16), (rails, 4, 10)):
        up = [link for link, name in enumerate(cluster.link_names) if name.startswith("uplink")]
        assert link_bytes(cluster)[up].tolist() == [each] * uplinks


def test_l16_smaller_nodes_send_more_bytes_across_nodes():
    # 8 GPUs, one byte a pair: 2 nodes of 4 -> 8 x 4 = 32 B cross; 4 nodes of 2 -> 8 x 6 = 48 B, and the cards carry just that.
    for nodes, each, crossing in ((2, 4, 32), (4, 2, 48)):
        cluster = NvlinkNodes(nodes=nodes, gpus_per_node=each).build()
        out = [link for link, name in enumerate(cluster.link_names) if name.startswith("nic-out")]
        assert link_bytes(cluster)[out].sum() == cluster.crosses_nodes().sum() == crossing


def test_512_gpus_with_rails_keep_every_pair_connected():
    cluster = NvlinkNodes(nodes=64, rail_optimised=True, nodes_per_leaf=8).build()
    hops = np.diff(cluster.route_start).reshape(512, 512)
    # 2 links inside a node or below a rail's leaf: 8 + 8 - 2 peers; 4 across the spine for the rest; none to oneself.
    assert np.bincount(hops[77], minlength=5).tolist() == [1, 0, 14, 0, 497]


@pytest.mark.parametrize(
    ("cls", "keys", "field"),
    [
        (OneSwitch, {"gpus": 2049}, "gpus"),
        (NvlinkNodes, {"nodes": 10**9}, "nodes"),
        (Mesh, {"nodes": 257, "gpus_per_node": 8}, "nodes"),
        (NvlRack, {"racks": 29}, "racks"),
    ],
)
def test_clusters_too_large_to_hold_are_refused_before_they_are_built(cls, keys, field):
    with pytest.raises(FieldError, match="at most 2048 GPUs") as caught:
        cls(**keys)
    assert caught.value.field == field
