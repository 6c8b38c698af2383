"""PXN: bytes between rails leave their node through the card of the right rail, and load the links that the manual names."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moesim.base.errors import FieldError
from moesim.models.topology.nvl_rack import NvlRack
from moesim.models.topology.nvlink_nodes import NvlinkNodes
from moesim.testing import check_topology


def names(cluster, source, destination):
    return [cluster.link_names[link] for link in cluster.route(source, destination)]


def load(cluster, start):
    carried = np.bincount(cluster.route_link, minlength=cluster.links)
    return int(sum(carried[link] for link, name in enumerate(cluster.link_names) if name.startswith(start)))


def test_pxn_loads_exactly_the_links_that_are_documented():
    cluster = NvlinkNodes(
        nodes=4,
        gpus_per_node=2,
        nodes_per_leaf=2,
        rail_optimised=True,
        pxn=True,
        nvlink_latency=1e-6,
        nic_latency=2e-6,
        switch_latency=3e-6,
    ).build()
    assert names(cluster, 0, 1) == ["nvlink-out:0", "nvlink-in:1"]  # the node: nobody forwards
    assert names(cluster, 0, 2) == ["nic-out:0", "nic-in:2"]  # its own rail
    assert names(cluster, 0, 3) == ["nvlink-out:0", "nvlink-in:1", "nic-out:1", "nic-in:3"]  # GPU 1 forwards, and no spine is crossed
    across = ["nvlink-out:0", "nvlink-in:1", "nic-out:1", "uplink:leaf0-rail1", "downlink:leaf1-rail1", "nic-in:7"]
    assert names(cluster, 0, 7) == across
    assert cluster.route_latency()[0, [3, 7]] == pytest.approx([3e-6, 9e-6])


def test_l16_pxn_moves_bytes_between_rails_from_the_spine_to_nvlink():
    # 4 nodes of 2 in one block, one byte a pair. Without PXN the 8 * 3 pairs between rails of different nodes cross the spine, and NVLink
    # carries the 8 pairs of nodes. With PXN the spine carries nothing and NVLink all of these. The cards carry 8 * 6 in both.
    direct, forwarding = (NvlinkNodes(nodes=4, gpus_per_node=2, rail_optimised=True, pxn=pxn).build() for pxn in (False, True))
    assert [load(direct, name) for name in ("uplink", "nvlink-in", "nic-out")] == [24, 8, 48]
    assert [load(forwarding, name) for name in ("uplink", "nvlink-in", "nic-out")] == [0, 32, 48]


def test_racks_on_rails_forward_inside_the_tray():
    # 2 racks of 2 trays of 2: GPU 2 is on tray 1, rail 0; GPU 5 on rack 1, tray 0, rail 1. GPU 3 is beside GPU 2 on rail 1.
    cluster = NvlRack(racks=2, gpus=4, gpus_per_tray=2, rail_optimised=True, pxn=True).build()
    assert names(cluster, 2, 5) == ["nvlink-out:2", "nvlink-in:3", "nic-out:3", "nic-in:5"]
    assert names(cluster, 0, 3) == ["nvlink-out:0", "nvlink-in:3"]  # another tray of the same rack, another rail: NVLink
    rows = NvlRack(racks=2, gpus=4, gpus_per_tray=2, rail_optimised=True, racks_per_leaf=1).build()
    assert names(rows, 2, 5) == ["nic-out:2", "uplink:leaf0-rail0", "downlink:leaf1-rail1", "nic-in:5"]


@settings(max_examples=40, deadline=None)
@given(
    nodes=st.integers(1, 5), each=st.integers(1, 4), below=st.integers(1, 3), spines=st.one_of(st.none(), st.integers(1, 3)),
    rack=st.booleans(),
)  # fmt: skip
def test_bytes_leave_and_arrive_on_the_rail_of_their_destination(nodes, each, below, spines, rack):
    keys = {"rail_optimised": True, "pxn": True, "spines": spines}
    if rack:
        topology = NvlRack(racks=nodes, gpus=2 * each, gpus_per_tray=each, racks_per_leaf=below, **keys)
    else:
        topology = NvlinkNodes(nodes=nodes, gpus_per_node=each, nodes_per_leaf=below, **keys)
    check_topology(topology)
    cluster = topology.build()
    for source in range(cluster.gpus):
        for destination in range(cluster.gpus):
            route = names(cluster, source, destination)
            out = [int(name.split(":")[1]) for name in route if name.startswith("nic-out")]
            assert len(out) <= 1
            for card in out:
                assert card % each == destination % each
                assert card // each == source // each


@pytest.mark.parametrize("cls", [NvlinkNodes, NvlRack])
def test_pxn_without_rails_is_refused(cls):
    with pytest.raises(
        FieldError, match="without rails any card reaches any other alike: write rail_optimised: true, or leave pxn out"
    ) as caught:
        cls(pxn=True)
    assert caught.value.field == "pxn"
