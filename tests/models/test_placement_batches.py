"""Placements that plan every batch: LLEP, FasterMoE, LAER, FlexMoE."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from routings import counts_of, random_routing, world

from moesim.base.errors import PluginError
from moesim.base.registry import plugin
from moesim.facts.batch_plan import BROADCAST, COPIES
from moesim.facts.contracts import PlanBatch, View
from moesim.facts.routing import Kept, LayerRouting
from moesim.models.placement.batch_rows import deal_rows
from moesim.models.placement.flexmoe_plan import plan_flexmoe
from moesim.models.placement.laer_plan import every_expert_in_turn, plan_laer, replicas_for_loads, split_to_nearest
from moesim.models.placement.llep_plan import plan_llep
from moesim.models.placement.shadow_plan import plan_shadows
from moesim.testing import check_placement
from moesim.testing.world import tiny_setting

POLICIES = {
    "llep": {"threshold": 1.0, "least_rows": 1},
    "llep-alone": {},
    "fastermoe": {"bandwidth": 1e18},
    "fastermoe-alone": {"bandwidth": 1.0},
    "laer": {"slots_per_rank": 3},
    "laer-present": {"slots_per_rank": 3, "plan_from": "present"},
    "flexmoe": {"slots_per_rank": 3},
    "flexmoe-present": {"slots_per_rank": 3, "plan_from": "present"},
}


def make(name):
    return plugin("placement", name.split("-", maxsplit=1)[0])(**POLICIES[name])


def kept_of(routing, padding=0):
    shape = routing.counts.shape
    return Kept(routing=routing, dropped=np.zeros(shape, dtype=int), padding=np.full(shape, padding))


def routing_of(counts):
    counts = np.asarray(counts)
    ids = np.concatenate([np.repeat(np.arange(counts.shape[1]), row) for row in counts])[:, None]
    return LayerRouting.of_tokens(ids, np.concatenate([[0], np.cumsum(counts.sum(axis=1))]), counts.shape[1])


def check_tokens(planned, kept, ranks):
    """Every kept route sits on a slot of its own group that holds its expert, and slots count what they hold."""
    routing, slots = kept.routing, planned.assignment.slots
    known = routing.ids >= 0
    np.testing.assert_array_equal(slots >= 0, known)
    source = np.broadcast_to(routing.source_of_token()[:, None], known.shape)[known]
    np.testing.assert_array_equal(planned.expert_of_slot[source // ranks, slots[known]], routing.ids[known])
    counted = np.zeros_like(planned.assignment.slot_counts)
    np.add.at(counted, (source, slots[known]), 1)
    np.testing.assert_array_equal(counted, planned.assignment.slot_counts)
    np.testing.assert_array_equal(
        planned.assignment.destination // ranks, (np.arange(routing.gpus) // ranks)[:, None].repeat(len(planned.rank_of_slot), 1)
    )


@pytest.mark.parametrize("name", POLICIES)
@given(seed=st.integers(0, 10**6), ranks=st.sampled_from([3, 4]), groups=st.integers(1, 2), padding=st.integers(0, 2))
@settings(max_examples=10, deadline=None)
def test_l1_l11_a_batch_plan_binds_every_row_to_a_slot_that_holds_its_expert(name, seed, ranks, groups, padding):
    setting = world(gpus=ranks * groups, ep=ranks, experts=ranks * 2, top_k=2)
    run, of_counts = make(name).begin(setting), make(name).begin(setting)
    assert isinstance(run, PlanBatch)
    for step in range(3):
        routing = random_routing(seed + step, gpus=ranks * groups, experts=ranks * 2, top_k=2, most=12, gaps=True)
        kept = kept_of(routing, padding)
        planned = run.for_batch(kept, step=step, moe_layer=0)
        planned.check(experts=ranks * 2, ranks=ranks, who=name)
        check_tokens(planned, kept, ranks)
        # Counts alone give the same loads, and nothing moves between groups.
        same = of_counts.for_batch(kept_of(counts_of(routing), padding), step=step, moe_layer=0)
        np.testing.assert_array_equal(same.assignment.slot_counts, planned.assignment.slot_counts)
        assert same.assignment.slots is None
        group = np.arange(ranks * groups) // ranks
        for table in (planned.moved, planned.returned):
            assert not table[group[:, None] != group].any()
        # Weights only move to ranks that hold more than their own experts.
        np.testing.assert_array_equal(same.moved, planned.moved)


@pytest.mark.parametrize("name", POLICIES)
def test_l12_l8_a_batch_planner_keeps_the_contract_of_placements(name):
    check_placement(make(name))


@pytest.mark.parametrize("name", POLICIES)
def test_l12_later_batches_change_no_earlier_plan(name):
    setting = world(gpus=4, experts=8)
    batches = [kept_of(random_routing(seed, gpus=4, experts=8, top_k=2, most=12)) for seed in range(5)]
    plans = []
    for last in (3, 4):  # two runs whose last batch differs
        run = make(name).begin(setting)
        plans.append([run.for_batch(batches[number], step=step, moe_layer=0) for step, number in enumerate((0, 1, 2, last))])
    for one, two in list(zip(*plans, strict=True))[:3]:
        np.testing.assert_array_equal(one.assignment.slot_counts, two.assignment.slot_counts)
        np.testing.assert_array_equal(one.moved, two.moved)


def test_llep_by_hand():
    # Experts 0 and 1 are at home on rank 0, 2 and 3 on rank 1; 40 rows, so 20 a rank. Expert 0 keeps 20 - 2 (expert 1 is to come) = 18.
    plan = plan_llep([34, 2, 2, 2], ranks=2, alpha=1.0, least_rows=1)
    assert plan.parts.tolist() == [[0, 0, 0, 18], [0, 1, 18, 34], [1, 0, 0, 2], [2, 1, 0, 2], [3, 1, 0, 2]]
    assert plan.loads.tolist() == [20, 20]
    run = plugin("placement", "llep")(alpha=1.0, least_rows=1).begin(world(gpus=2, experts=4))
    planned = run.for_batch(kept_of(routing_of([[10, 2, 0, 0], [24, 0, 2, 2]])), step=0, moe_layer=0)
    # Rank 1 gets a slot for expert 0. Rows 0 to 17 of expert 0 are all ten of rank 0 and eight of rank 1's.
    assert planned.expert_of_slot.tolist() == [[0, 1, 0, 2, 3]]
    assert planned.assignment.slot_counts.tolist() == [[10, 2, 0, 0, 0], [8, 0, 16, 2, 2]]
    assert planned.moved.tolist() == [[0, 1], [0, 0]]
    assert planned.returned.tolist() == [[0, 0], [1, 0]]
    assert planned.held(2).tolist() == [[2, 3]]
    assert planned.how == COPIES


def test_llep_leaves_an_even_layer_alone():
    # Ranks have 13 and 10 rows, mean 11.5: 1.13 times. The heaviest expert has 9 rows against a mean of 5.75: 1.57 times.
    # A plan's limit is 1.1 * 11 rounded down, 12: one row of expert 0 goes to rank 1.
    counts = [[9, 4, 0, 0], [0, 0, 5, 5]]
    for gate, moves in (("ranks", 0), ("experts", 1)):
        policy = plugin("placement", "llep")(alpha=1.1, least_rows=0, threshold=1.3, gate=gate, planning_time=0.25)
        planned = policy.begin(world(gpus=2, experts=4)).for_batch(kept_of(routing_of(counts)), step=0, moe_layer=0)
        assert planned.moved.sum() == moves
        assert planned.seconds == 0.25 * moves
    nothing = plugin("placement", "llep")(threshold=1.0).begin(world(gpus=2, experts=4))
    assert nothing.for_batch(kept_of(routing_of(np.zeros((2, 4), dtype=int))), step=0, moe_layer=0).moved.sum() == 0


@given(counts=st.lists(st.integers(0, 60), min_size=6, max_size=6), alpha=st.sampled_from([1.0, 1.1, 2.0]), least=st.integers(0, 20))
@settings(max_examples=50, deadline=None)
def test_l1_llep_assigns_every_row_once(counts, alpha, least):
    plan = plan_llep(counts, ranks=3, alpha=alpha, least_rows=least)
    for expert, rows in enumerate(counts):
        parts = plan.parts[plan.parts[:, 0] == expert][:, 2:]
        edges = [0, *parts.ravel().tolist(), rows]
        assert all(edges[i] == edges[i + 1] for i in range(0, len(edges), 2))
    assert plan.loads.sum() == sum(counts)


def test_shadowing_by_hand():
    # Latency with i experts shadowed is B_i + 10 i: 100, then 40 + 10, then 35 + 20: only the first is worth it.
    shadowed, latency = plan_shadows([35, 100, 5, 40], compute=0.0, row_transfer=0.25, weight_transfer=10.0)
    assert (shadowed.tolist(), latency) == ([False, True, False, False], 50.0)
    # Free weights: all but the last.
    assert plan_shadows([3, 1, 2], compute=1.0, row_transfer=0.0, weight_transfer=0.0)[0].tolist() == [True, False, True]


def test_a_shadowed_expert_is_everywhere_and_its_tokens_stay_at_home():
    setting = world(gpus=2, ep=2, experts=4)
    run = plugin("placement", "fastermoe")(bandwidth=1e18, planning_time=0.5).begin(setting)
    counts = [[9, 2, 0, 1], [8, 1, 1, 1]]
    planned = run.for_batch(kept_of(routing_of(counts)), step=0, moe_layer=0)
    # With a free network every expert but the least loaded pays: expert 2 stays at home alone.
    assert planned.expert_of_slot.tolist() == [[0, 1, 3, 0, 1, 2, 3]]
    assert planned.assignment.slot_counts.tolist() == [[9, 2, 1, 0, 0, 0, 0], [0, 0, 0, 8, 1, 1, 1]]
    assert planned.moved.tolist() == [[0, 2], [1, 0]]
    assert (planned.how, planned.seconds) == (BROADCAST, 0.5)


def test_laer_plans_from_the_step_before_and_gathers_shards_every_time():
    setting = tiny_setting()  # four GPUs in two nodes, eight experts
    policy = plugin("placement", "laer")(slots_per_rank=3)
    run = policy.begin(setting)
    batches = [kept_of(random_routing(seed, gpus=4, experts=8, top_k=2, most=30)) for seed in range(2)]
    first, second = (run.for_batch(kept, step=step, moe_layer=0) for step, kept in enumerate(batches))
    held = [np.zeros((4, 8), dtype=int) for _ in range(2)]
    for table, planned in zip(held, (first, second), strict=True):
        np.add.at(table, (planned.rank_of_slot, planned.expert_of_slot[0]), 1)
    np.testing.assert_array_equal(held[0], every_expert_in_turn(4, 8, 3))
    cost = policy.begin(setting).planned(batches[0].routing.counts, held[0])
    np.testing.assert_array_equal(held[1], cost)
    # Each rank gathers a quarter of each of its experts from each other rank.
    distinct = np.count_nonzero(held[1], axis=1)
    np.testing.assert_allclose(second.moved, np.where(np.eye(4, dtype=bool), 0, distinct / 4))
    np.testing.assert_allclose(second.returned, second.moved.T)
    assert second.seconds == 0.0
    present = dataclasses.replace(policy, plan_from="present").begin(setting).for_batch(batches[0], step=0, moe_layer=0)
    assert present.seconds == 0.5e-3
    other_layer = run.for_batch(batches[1], step=1, moe_layer=1)
    np.testing.assert_array_equal(other_layer.expert_of_slot, first.expert_of_slot)


def test_shards_by_hand():
    from moesim.models.placement.laer import restored_from_shards

    # Rank 0 computes experts 0 and 1, rank 1 expert 1 twice: half of each comes from the other rank, and its gradients go back there.
    moved, returned = restored_from_shards(np.eye(2, dtype=int), np.array([[1, 1], [0, 2]]))
    assert moved.tolist() == [[0, 0.5], [1.0, 0]]
    assert returned.tolist() == [[0, 1.0], [0.5, 0]]


def test_replicas_follow_loads():
    # 2 nodes, 8 slots, 3 experts: one per node each first, then the heaviest gets one per node.
    assert replicas_for_loads(np.array([6.0, 1.0, 2.0]), total=8, nodes=2).tolist() == [4, 2, 2]
    # 7 slots: nothing fits in steps of two after the start; the left-over one goes to the heaviest.
    assert replicas_for_loads(np.array([6.0, 1.0, 2.0]), total=7, nodes=2).tolist() == [3, 2, 2]
    # No room for one per node: they start with one, and grow one by one up to the nodes.
    assert replicas_for_loads(np.array([6.0, 1.0, 2.0]), total=5, nodes=2).tolist() == [2, 1, 2]


def test_tokens_stay_on_their_node_if_a_replica_is_there():
    # Expert 0 on ranks 1, 2 and 3, of which rank 0's node has rank 1; expert 1 on rank 0 only.
    held = np.array([[0, 2], [1, 0], [1, 0], [1, 0]])
    split = split_to_nearest(np.array([[5, 3], [0, 0], [7, 4], [0, 0]]), held, 2)
    assert split[0].tolist() == [[0, 5, 0, 0], [3, 0, 0, 0]]
    assert split[2].tolist() == [[0, 0, 4, 3], [4, 0, 0, 0]]  # the odd row to the first


def test_flexmoe_expands_the_heaviest_and_shrinks_the_lightest():
    # Expert 0 is on both ranks, 1 on rank 0, 2 on rank 1. Loads 31 and 2: expert 1 grows, and 0, the only one with a replica to spare,
    # shrinks on the lighter rank; expert 0's other replica makes room beside expert 1. Loads are then 30 and 3; nothing is left to shrink.
    held = np.array([[1, 1, 0], [1, 0, 1]])
    rows = np.array([[2, 30, 1], [0, 0, 0]])
    assert plan_flexmoe(rows, held).tolist() == [[0, 2, 0], [1, 0, 1]]
    assert plan_flexmoe(rows, held, rounds=0).tolist() == held.tolist()
    assert plan_flexmoe(np.zeros((2, 3), dtype=int), held).tolist() == held.tolist()


def test_flexmoe_moves_what_is_new_and_rings_gradients():
    from moesim.models.placement.flexmoe import new_replicas

    moved, returned = new_replicas(np.array([[1, 1, 0], [0, 0, 1], [1, 0, 1]]), np.array([[1, 1, 0], [1, 0, 1], [1, 0, 1]]))
    assert moved.tolist() == [[0, 1, 0], [0, 0, 0], [0, 0, 0]]  # expert 0 to rank 1, from its first holder
    # Expert 0 on three ranks: 4/3 to the next in the ring; expert 2 on ranks 1 and 2: 1 each way.
    np.testing.assert_allclose(returned, [[0, 4 / 3, 0], [0, 0, 4 / 3 + 1], [4 / 3, 1, 0]])


def test_what_cannot_be_placed_is_refused():
    with pytest.raises(PluginError, match=r"'laer': 2 ranks with slots_per_rank: 2 cannot hold 8 experts; choose 4 or more"):
        plugin("placement", "laer")().begin(world(gpus=2, experts=8))
    with pytest.raises(PluginError, match=r"'flexmoe': 2 ranks with slots_per_rank: 2 cannot hold 8 experts"):
        plugin("placement", "flexmoe")().begin(world(gpus=2, experts=8))
    with pytest.raises(PluginError, match=r"slots_per_rank: 9 is more than there are experts \(8\)"):
        plugin("placement", "laer")(slots_per_rank=9).begin(world(gpus=2, experts=8))
    with pytest.raises(PluginError, match="6 ranks do not divide over 4 nodes"):
        plan_laer(np.ones((6, 6)), slots=1, nodes=4)
    for kind in ("llep", "fastermoe"):
        with pytest.raises(PluginError, match=f"'{kind}': 9 experts do not divide over ep = 2 ranks"):
            plugin("placement", kind)().begin(world(gpus=2, experts=9))
    with pytest.raises(PluginError, match="divide over 3 ranks"):
        plan_llep([1, 2, 3, 4], ranks=3)


def test_l1_rows_that_do_not_add_up_are_refused():
    kept = kept_of(routing_of([[2, 1], [0, 3]]))
    slots, rank = np.array([[0, 1]]), np.array([0, 1])
    assert deal_rows(kept, np.array([[2, 1], [0, 3]]), slots, rank, ranks=2, who="test").slots.ravel().tolist() == [0, 0, 1, 1, 1, 1]
    with pytest.raises(PluginError, match=r"test: .*GPU 1.*expert 1.*law L1"):
        deal_rows(kept, np.array([[2, 1], [0, 2]]), slots, rank, ranks=2, who="test")
    with pytest.raises(PluginError, match="law L1"):
        deal_rows(kept, np.array([[2, 1], [0, 3]]), np.array([[0, -1]]), rank, ranks=2, who="test")


def test_l11_a_broken_batch_plan_is_caught():
    planned = (
        make("llep").begin(world(gpus=2, experts=4)).for_batch(kept_of(routing_of([[10, 2, 0, 0], [24, 0, 2, 2]])), step=0, moe_layer=0)
    )
    planned.check(experts=4, ranks=2, who="test")
    for broken, said in (
        ({"expert_of_slot": np.where(planned.expert_of_slot == 1, 2, planned.expert_of_slot)}, "law L1"),
        ({"expert_of_slot": np.where(planned.expert_of_slot == 1, 4, planned.expert_of_slot)}, "law L11"),
        ({"expert_of_slot": np.where(planned.expert_of_slot == 1, -1, planned.expert_of_slot)}, "holds no expert"),
        ({"rank_of_slot": planned.rank_of_slot + 1}, "law L11"),
        ({"moved": planned.moved + np.eye(2)}, "moved is .*law L2"),
        ({"returned": planned.returned - 1}, "returned is .*law L2"),
    ):
        with pytest.raises(PluginError, match=said):
            dataclasses.replace(planned, **broken).check(experts=4, ranks=2, who="test")


@pytest.mark.parametrize("name", POLICIES)
def test_weights_live_where_the_placement_says_until_a_batch_comes(name):
    plan = make(name).begin(world(gpus=4, experts=8))
    view = View(step=0, loads=np.zeros((0, 2, 8), dtype=int), placement=None)
    placement = plan(view)
    placement.check(layers=2, experts=8, ranks=4, who=name)
    assert plan(dataclasses.replace(view, step=1, loads=np.ones((1, 2, 8), dtype=int), placement=placement)) is None
