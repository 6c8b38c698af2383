"""Fat trees that hash: which spine and core a pair takes, how many links there are, what is refused."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moesim.base.errors import FieldError
from moesim.models.topology.ecmp import STEP, _mix, flow_hash
from moesim.models.topology.fat_tree import FatTree
from moesim.models.topology.mesh import Mesh
from moesim.models.topology.nvl_rack import NvlRack
from moesim.models.topology.nvlink_nodes import NvlinkNodes
from moesim.testing import check_topology


def names(cluster, source, destination):
    return [cluster.link_names[link] for link in cluster.route(source, destination)]


def load(cluster, start):
    """Bytes on the links whose names start so, when every GPU sends one byte to every other."""
    carried = np.bincount(cluster.route_link, minlength=cluster.links)
    return np.array([carried[link] for link, name in enumerate(cluster.link_names) if name.startswith(start)])


def test_the_mixing_function_is_that_of_splitmix64():
    # The first output of SplitMix64 with seed 0, as its reference implementation prints it.
    assert int(_mix(np.array([STEP], dtype=np.uint64))[0]) == 0xE220A8397B1DCDAF


def test_the_hash_depends_on_source_destination_their_order_and_the_seed():
    gpus = np.arange(64)
    seen = {int(value) for seed in (0, 1, 2**70 + 2) for gpu in gpus for value in flow_hash(gpus, int(gpu), seed)}
    assert len(seen) == 3 * 64 * 64  # 12,288 values of 63 bits: two alike would be a chance of 1e-11
    assert min(seen) >= 0


def test_a_pair_takes_one_spine_and_all_its_bytes_come_down_from_it():
    cluster = FatTree(nodes=2, gpus_per_node=2, nodes_per_leaf=1, spines=4, ecmp_seed=7).build()
    for source, destination in ((0, 2), (0, 3), (3, 0)):
        spine = int(flow_hash(np.array([source]), destination, 7)[0]) % 4
        up, down = source // 2, destination // 2
        expected = [f"nic-out:{source}", f"uplink:leaf{up}-spine{spine}", f"downlink:leaf{down}-spine{spine}", f"nic-in:{destination}"]
        assert names(cluster, source, destination) == expected
    assert names(cluster, 0, 1) == ["nvlink-out:0", "nvlink-in:1"]


def test_uplinks_share_what_oversubscription_leaves():
    # 4 cards of 10 B/s below a leaf, 2:1: 20 B/s up. Left out, an uplink is as fast as a card: 2 spines. With 5 spines 4 B/s each.
    for spines, count in ((None, 2), (5, 5)):
        cluster = FatTree(nodes=2, gpus_per_node=4, nodes_per_leaf=1, nic=10.0, oversubscription=2.0, spines=spines).build()
        up = [link for link, name in enumerate(cluster.link_names) if name.startswith("uplink:leaf0")]
        assert len(up) == count
        assert cluster.bandwidth[up].tolist() == [20.0 / count] * count


def test_three_tiers_by_hand():
    # 8 leaves of 2 cards, 2 leaves a pod: 4 pods of 2 spines; 2 cores for each spine number: 4 cores. Links: 8 * 2 up and as many down;
    # 4 * 2 * 2 to the cores and as many back. Nothing is oversubscribed, and all links between switches are as fast as a card.
    tree = FatTree(nodes=8, gpus_per_node=2, nodes_per_leaf=1, leaves_per_pod=2, spines=2, nic=10.0, nic_latency=2e-6, switch_latency=1e-6)
    cluster = tree.build()
    assert {name: cluster.link_class.count(name) for name in ("uplink", "core")} == {"uplink": 32, "core": 32}
    assert set(cluster.bandwidth[[name != "nvlink" for name in cluster.link_class]]) == {10.0}
    hashed = int(flow_hash(np.array([0]), 15, 0)[0])
    spine, core = hashed % 2, hashed // 2 % 2
    assert names(cluster, 0, 15) == [
        "nic-out:0",
        f"uplink:leaf0-spine{spine}",
        f"core-up:pod0-spine{spine}-core{core}",
        f"core-down:pod3-spine{spine}-core{core}",
        f"downlink:leaf7-spine{spine}",
        "nic-in:15",
    ]
    assert [len(names(cluster, 0, to)) for to in (1, 2, 4)] == [2, 4, 6]  # the node, the pod, another pod
    assert cluster.route_latency()[0, 15] == pytest.approx(6e-6)
    # 2:1 towards the cores: half of the bandwidth there, by half of the cores at the same speed.
    half = FatTree(nodes=8, gpus_per_node=2, nodes_per_leaf=1, leaves_per_pod=2, spines=2, nic=10.0, core_oversubscription=2.0).build()
    assert half.link_class.count("core") == 16
    assert set(half.bandwidth[[name == "core" for name in half.link_class]]) == {10.0}


@pytest.mark.parametrize(
    "keys", [{"nodes": 4, "nodes_per_leaf": 2}, {"nodes": 4, "rail_optimised": True, "nodes_per_leaf": 2, "pxn": True}]
)
def test_spread_is_the_fabric_of_one_ideal_spine(keys):
    one, other = FatTree(spread=True, gpus_per_node=2, **keys).build(), NvlinkNodes(gpus_per_node=2, **keys).build()
    assert one.link_names == other.link_names
    for field in ("bandwidth", "latency", "route_start", "route_link"):
        np.testing.assert_array_equal(getattr(one, field), getattr(other, field))


def test_a_fat_tree_has_two_leaves_wherever_it_can():
    assert [len(FatTree(nodes=nodes).leaves()) for nodes in (1, 2, 4, 8, 12)] == [1, 2, 2, 2, 3]


@settings(max_examples=40, deadline=None)
@given(
    st.builds(
        FatTree,
        nodes=st.integers(1, 6),
        gpus_per_node=st.integers(1, 3),
        nodes_per_leaf=st.integers(1, 3),
        spines=st.integers(1, 4),
        leaves_per_pod=st.integers(1, 3),
        cores_per_spine=st.one_of(st.none(), st.integers(1, 3)),
        oversubscription=st.sampled_from([1.0, 2.5]),
        rail_optimised=st.booleans(),
        ecmp_seed=st.integers(0, 99),
    )
)
def test_every_route_is_connected_and_every_tier_has_its_links(tree):
    check_topology(tree)
    cluster, leaves = tree.build(), len(tree.leaves())
    pods = -(-leaves // tree.leaves_per_pod)
    cores = tree.cores_per_spine or tree.leaves_per_pod
    network = tree.nodes > 1  # one node has no links outside, however many leaves its rails would have
    assert cluster.link_class.count("uplink") == (2 * leaves * tree.spines if leaves > 1 and network else 0)
    assert cluster.link_class.count("core") == (2 * pods * tree.spines * cores if pods > 1 and network else 0)
    # What leaves a leaf is on the uplinks of all of its pairs, once, whatever the hash says.
    leaf_of = np.zeros(cluster.gpus, dtype=int)
    for number, gpus in enumerate(tree.leaves().values()):
        leaf_of[list(gpus)] = number
    inside = cluster.node_of[:, None] == cluster.node_of
    if leaves > 1 and network:
        assert load(cluster, "uplink").sum() == ((leaf_of[:, None] != leaf_of) & ~inside).sum()


def test_the_hash_spreads_pairs_over_spines():
    # 64 GPUs, a leaf each: 4,032 pairs on 8 spines, 504 each on average. Hoeffding: a spine of a fair hash is off by more than
    # sqrt(4032 * ln(2 * 8 / 1e-9) / 2) = 218 with a chance below 1e-9. A perfect share would be no hash: some spine is off by 1 at least.
    cluster = FatTree(nodes=64, gpus_per_node=1, nodes_per_leaf=1, spines=8).build()
    on_spine = [int(sum(load(cluster, f"uplink:leaf{leaf}-spine{spine}")[0] for leaf in range(64))) for spine in range(8)]
    assert sum(on_spine) == 64 * 63
    assert 0 < max(abs(each - 504) for each in on_spine) < math.sqrt(4032 * math.log(16e9) / 2)


def test_l16_hashing_loads_uplinks_unevenly_and_another_seed_loads_others():
    # Non-blocking: 8 uplinks for 8 cards. 8 GPUs send to 24 beyond their leaf: 24 B an uplink if spread; hashed, one has more.
    even, one, again, other = (FatTree(nodes=4, nodes_per_leaf=1, **keys).build() for keys in ({"spread": True}, {}, {}, {"ecmp_seed": 1}))
    assert set(load(even, "uplink")) == {8 * 24}
    for cluster in (one, other):
        assert load(cluster, "uplink").sum() == 4 * 8 * 24
        assert load(cluster, "uplink").max() > 24
    np.testing.assert_array_equal(one.route_link, again.route_link)
    assert (load(one, "uplink") != load(other, "uplink")).any()


def test_all_fabrics_with_cards_can_hash():
    for topology in (
        NvlinkNodes(nodes=3, gpus_per_node=2, nodes_per_leaf=1, spines=3),
        Mesh(nodes=3, gpus_per_node=2, nodes_per_leaf=1, spines=3),
        NvlRack(racks=3, gpus=2, gpus_per_tray=1, spines=3),
    ):
        check_topology(topology)
        cluster = topology.build()
        assert cluster.link_class.count("uplink") == 2 * 3 * 3
        assert names(cluster, 0, 5)[1] == f"uplink:leaf0-spine{int(flow_hash(np.array([0]), 5, 0)[0]) % 3}"


@pytest.mark.parametrize(
    ("cls", "keys", "field", "message"),
    [
        (FatTree, {"spread": True, "spines": 4}, "spines", r"spines \(4\) says nothing"),
        (FatTree, {"spread": True, "ecmp_seed": 4}, "ecmp_seed", "hashes nothing"),
        (
            FatTree,
            {"cores_per_spine": 4},
            "cores_per_spine",
            r"cores_per_spine \(4\) is about cores, which join pods: write leaves_per_pod",
        ),
        (FatTree, {"core_oversubscription": 2.0}, "core_oversubscription", "write leaves_per_pod"),
        (FatTree, {"spines": 10**9}, "spines", "4000000000 links between switches are too many: at most 32768"),
        (FatTree, {"leaves_per_pod": 1, "cores_per_spine": 10**6}, "cores_per_spine", "fewer spines and cores, or larger pods"),
        (FatTree, {"pxn": True}, "pxn", "write rail_optimised: true, or leave pxn out"),
        (FatTree, {"nodes": 300}, "nodes", "at most 2048 GPUs"),
        (NvlinkNodes, {"nodes": 4, "ecmp_seed": 3}, "ecmp_seed", r"ecmp_seed \(3\) chooses among spines.*write spines, or leave"),
        (NvlinkNodes, {"nodes": 8, "spines": 10**9}, "spines", "too many"),
    ],
)
def test_what_says_nothing_or_too_much_is_refused(cls, keys, field, message):
    with pytest.raises(FieldError, match=message) as caught:
        cls(**keys)
    assert caught.value.field == field
