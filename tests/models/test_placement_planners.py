"""Pure planners: laws, hand-made cases, refusals."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moesim.base.errors import PluginError
from moesim.models.placement.biased_plan import hot_experts_stay, plan_biased
from moesim.models.placement.eplb_plan import plan_eplb, plan_hierarchical
from moesim.models.placement.eplb_sglang_plan import plan_deepseek_vec, plan_elasticity_aware
from moesim.models.placement.eplb_trtllm_plan import plan_trtllm
from moesim.models.placement.greedy_steps import pack_heaviest_first, replicate_experts
from moesim.models.placement.keep_slots import keep_slots
from moesim.models.placement.migration import copies_needed, in_rounds
from moesim.models.placement.planners import PLANNERS


@st.composite
def problems(draw):
    """Loads of a few layers, with ties and experts without load, and sizes that fit."""
    nodes, per_node, groups = draw(st.integers(1, 3)), draw(st.integers(1, 3)), draw(st.integers(1, 4))
    gpus = nodes * per_node
    experts = groups * draw(st.integers(1, 4))
    slots = min(-(-experts // gpus) + draw(st.integers(0, 3)), experts) * gpus
    layers = draw(st.integers(1, 3))
    loads = draw(st.lists(st.integers(0, 9), min_size=layers * experts, max_size=layers * experts))
    return np.array(loads).reshape(layers, experts), {"slots": slots, "gpus": gpus, "nodes": nodes, "groups": groups}


@pytest.mark.parametrize("kind", PLANNERS)
@given(problem=problems())
@settings(max_examples=15, deadline=None)
def test_l11_every_planner_gives_every_expert_a_slot_and_fills_all(kind, problem):
    loads, sizes = problem
    plan = PLANNERS[kind](loads, **sizes)
    layers, experts = loads.shape
    plan.placement.check(layers=layers, experts=experts, ranks=sizes["gpus"], who=kind)
    assert plan.physical_to_logical_map.shape == (layers, sizes["slots"])
    assert plan.placement.slots_per_rank(sizes["gpus"]).tolist() == [sizes["slots"] // sizes["gpus"]] * sizes["gpus"]
    for layer in range(layers):
        assert np.bincount(plan.physical_to_logical_map[layer], minlength=experts).tolist() == plan.logical_count[layer].tolist()
    # No load is lost or made up.
    np.testing.assert_allclose(plan.rank_loads(loads, sizes["gpus"]).sum(axis=1), loads.sum(axis=1), rtol=1e-12)
    again = PLANNERS[kind](loads.copy(), **sizes)
    np.testing.assert_array_equal(plan.physical_to_logical_map, again.physical_to_logical_map)


@given(problem=problems())
@settings(max_examples=30, deadline=None)
def test_l11_hierarchical_plans_keep_groups_inside_nodes(problem):
    loads, sizes = problem
    if sizes["groups"] % sizes["nodes"]:
        return
    experts = loads.shape[1]
    group = np.arange(experts) // (experts // sizes["groups"])
    vec = plan_deepseek_vec(loads, hierarchical=True, **sizes)
    for plan in (plan_eplb(loads, **sizes), vec):
        node = plan.rank_of_slot // (sizes["gpus"] // sizes["nodes"])
        for row in plan.physical_to_logical_map:
            homes = [set(node[group[row] == number].tolist()) for number in range(sizes["groups"])]
            assert all(len(home) == 1 for home in homes)
            # And as many groups on each node.
            assert np.bincount([next(iter(home)) for home in homes]).tolist() == [sizes["groups"] // sizes["nodes"]] * sizes["nodes"]


@given(loads=st.lists(st.integers(1, 30), min_size=1, max_size=7), packs=st.integers(1, 3))
@settings(max_examples=30, deadline=None)
def test_heaviest_first_is_within_four_thirds_of_the_best(loads, packs):
    # Graham 1969: at most 4/3 - 1/(3 m) times the best of all assignments, which is found here by trying them all.
    pack, _ = pack_heaviest_first(np.array([loads], dtype=float), packs, len(loads))
    heaviest = np.bincount(pack[0], weights=loads, minlength=packs).max()
    best = min(np.bincount(choice, weights=loads, minlength=packs).max() for choice in itertools.product(range(packs), repeat=len(loads)))
    assert heaviest <= (4 / 3 - 1 / (3 * packs)) * best + 1e-9


@given(loads=st.lists(st.integers(0, 30), min_size=1, max_size=4), more=st.integers(0, 4))
@settings(max_examples=30, deadline=None)
def test_no_other_numbers_of_replicas_have_a_lighter_heaviest_replica(loads, more):
    # Giving the next slot to the heaviest replica is optimal for the heaviest replica; all other counts are tried here.
    weight = np.array([loads], dtype=float)
    _, count = replicate_experts(weight, len(loads) + more)
    others = (c for c in itertools.product(range(1, more + 2), repeat=len(loads)) if sum(c) == len(loads) + more)
    assert (weight / count).max() <= min((weight[0] / np.array(other)).max() for other in others) + 1e-12


def test_replicas_and_packing_by_hand():
    # Loads 9, 4, 2 in 5 slots: 9 splits to 4.5 first, then again (4.5 > 4) to 3; replicas are 3, 3, 3, 4, 2.
    replica, count = replicate_experts(np.array([[9.0, 4.0, 2.0]]), 5)
    assert (replica.tolist(), count.tolist()) == ([[0, 1, 2, 0, 0]], [[3, 1, 1]])
    # Heaviest first to the lighter of two packs with room for three: 4 | 3, then 3 to the second (3 < 4), 3 to the first, 2 to the second.
    share = np.array([[3.0, 4.0, 2.0, 3.0, 3.0]])
    pack, position = pack_heaviest_first(share, 2, 3)
    assert (pack.tolist(), position.tolist()) == ([[1, 0, 1, 1, 0]], [[0, 0, 2, 1, 1]])


def test_one_slot_per_gpu_leaves_experts_where_they_are():
    # EPLB does not sort then: expert 0 stays on GPU 0 although it is the lightest.
    plan = plan_eplb(np.array([[1, 2, 3, 4]]), slots=4, gpus=4)
    assert plan.physical_to_logical_map.tolist() == [[0, 1, 2, 3]]


def test_the_published_case_where_two_greedy_stages_are_not_the_best():
    # vllm-project/vllm-ascend pull request 3042: these loads on 8 GPUs of 2 slots have a heaviest GPU of 232 under EPLB, 205 are possible.
    loads = np.array([[600, 560, 120, 120, 20, 10, 10, 10]])
    assert plan_eplb(loads, slots=16, gpus=8).rank_loads(loads, 8).max() == pytest.approx(232)


def test_equal_loads_go_to_the_last_expert_in_tensorrt_llm_and_to_the_first_in_eplb():
    loads = np.array([[5, 5, 5]])
    assert plan_trtllm(loads, slots=4, gpus=2).logical_count.tolist() == [[1, 1, 2]]
    assert plan_eplb(loads, slots=4, gpus=2).logical_count.tolist() == [[2, 1, 1]]


def test_peaks_of_single_steps_decide_in_deepseek_vec():
    # Expert 0 peaks in one step of two, expert 1 is heavier on the whole but never the peak: a replica of 0 lowers the peaks more.
    steps = np.array([[[100, 60, 0, 0]], [[0, 50, 49, 0]]])
    # Sum over steps: expert 0 has 100, expert 1 has 110. A copy of 0: peaks max(60, 50) + 50 = 110; of 1: 100 + 49 = 149.
    assert plan_deepseek_vec(steps, slots=5, gpus=5).logical_count.tolist() == [[2, 1, 1, 1]]
    assert plan_eplb(steps.sum(axis=0), slots=5, gpus=5).logical_count.tolist() == [[1, 2, 1, 1]]


def test_dead_ranks_hold_nothing():
    plan = plan_elasticity_aware(np.arange(12).reshape(2, 6), slots=12, gpus=4, dead_ranks=[1])
    assert plan.placement.slots_per_rank(4).tolist() == [3, 0, 3, 3]


def test_hot_experts_are_everywhere_and_stay():
    loads = np.array([[1, 9, 2, 8, 3, 4]])
    plan = plan_biased(loads, slots=10, gpus=2)  # 4 redundant slots on 2 GPUs: two experts, 1 and 3, on both
    slots = plan.physical_to_logical_map.reshape(2, 5)
    assert slots[:, :2].tolist() == [[1, 3], [1, 3]]
    # Six slots for the other four: 5 (4) and then 4 (3) get a second replica. Replicas are 2: 2, 5: 2 and 2, 4: 1.5 and 1.5, 0: 1.
    # 2 to GPU 0, 5 to GPU 1, 5 to GPU 0 (both carry 2), 4 and 4 to GPU 1 (2, then 3.5 against 4), 0 to what is free.
    assert slots[:, 2:].tolist() == [[2, 5, 0], [5, 4, 4]]
    old = plan.physical_to_logical_map
    assert hot_experts_stay(np.array([[0, 5, 1, 6, 2, 2.0]]), old, slots=10, gpus=2).tolist() == [True]
    assert hot_experts_stay(np.array([[7, 5, 1, 6, 2, 2.0]]), old, slots=10, gpus=2).tolist() == [False]


@given(problem=problems(), seed=st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_kept_slots_change_no_gpu_and_move_no_more(problem, seed):
    loads, sizes = problem
    new = plan_eplb(loads, **sizes).physical_to_logical_map
    old = plan_eplb(np.random.default_rng(seed).permuted(loads, axis=1), **sizes).physical_to_logical_map
    kept = keep_slots(new, old, sizes["gpus"])
    old, new, kept = (table.reshape(len(new) * sizes["gpus"], -1) for table in (old, new, kept))
    np.testing.assert_array_equal(np.sort(kept, axis=1), np.sort(new, axis=1))
    # As many slots stay as a GPU's old and new experts have in common: the most that is possible.
    for before, after, order in zip(old, new, kept, strict=True):
        common = sum(min((before == expert).sum(), (after == expert).sum()) for expert in set(after.tolist()))
        assert (order == before).sum() == common


@given(problem=problems(), seed=st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_migration_brings_every_newcomer_once_and_rounds_have_no_conflict(problem, seed):
    loads, sizes = problem
    plan = plan_eplb(loads, **sizes)
    old = plan_eplb(np.random.default_rng(seed).permuted(loads, axis=1), **sizes).physical_to_logical_map[0]
    new, rank = plan.physical_to_logical_map[0], plan.rank_of_slot
    copies = copies_needed(old, new, rank)
    had, has = set(zip(rank.tolist(), old.tolist(), strict=True)), set(zip(rank.tolist(), new.tolist(), strict=True))
    assert sorted((d, e) for _, d, e in copies.tolist()) == sorted(has - had)
    assert all((s, e) in had for s, _, e in copies.tolist())
    rounds = in_rounds(copies)
    assert sorted(row[1:] for row in rounds.tolist()) == sorted(copies.tolist())
    for number in set(rounds[:, 0].tolist()):
        pairs = {(s, d) for n, s, d, _ in rounds.tolist() if n == number}
        ends = [end for pair in pairs for end in pair]
        assert len(ends) == len(set(ends))


def test_migration_deals_receivers_to_holders_in_runs():
    # Expert 0 is on ranks 0 and 1; ranks 2, 3 and 4 want it: one run each of 3 // 2 = 1, the left-over one goes to the first holder.
    rank = np.arange(5)
    copies = copies_needed(np.array([0, 0, 1, 1, 1]), np.array([0, 0, 0, 0, 0]), rank)
    assert copies.tolist() == [[0, 2, 0], [0, 4, 0], [1, 3, 0]]
    # Ranks 0-2 and 1-3 go at once; 0-4 has to wait for rank 0.
    assert in_rounds(copies).tolist() == [[0, 0, 2, 0], [0, 1, 3, 0], [1, 0, 4, 0]]


@pytest.mark.parametrize("kind", PLANNERS)
@pytest.mark.parametrize(
    ("loads", "sizes", "said"),
    [
        (np.ones((1, 8)), {"slots": 6, "gpus": 2}, "6 slots cannot hold 8 experts; 8 is the least that also divides over 2 GPUs"),
        (np.ones((1, 8)), {"slots": 9, "gpus": 2}, "9 slots do not divide over 2 GPUs; choose 8 or 10 slots"),
        (np.ones((1, 8)), {"slots": 18, "gpus": 2}, r"18 slots are more than 8 experts on every one of 2 GPUs \(16\) need"),
        (np.ones((1, 8)), {"slots": 8, "gpus": 4, "groups": 3}, "8 experts do not divide into 3 groups"),
        (np.ones((1, 8)), {"slots": 8, "gpus": 0}, "gpus is 0, but must be at least 1"),
        (np.array([[1.0, -2.0]]), {"slots": 2, "gpus": 1}, r"loads\[0, 1\] is -2.0; a load is a number from 0 to 1e\+30"),
        (np.array([[1.0, np.nan]]), {"slots": 2, "gpus": 1}, r"loads\[0, 1\] is nan"),
        (np.array([[1.0, 1e39]]), {"slots": 2, "gpus": 1}, r"loads\[0, 1\] is 1e\+39"),
        (np.ones(8), {"slots": 8, "gpus": 1}, r"shape \[layers, experts\] or \[steps, layers, experts\], not \(8,\)"),
    ],
)
def test_bad_sizes_and_loads_are_refused(kind, loads, sizes, said):
    with pytest.raises(PluginError, match=said):
        PLANNERS[kind](loads, **{"nodes": 1, "groups": 1, **sizes})


def test_hierarchy_and_dead_ranks_that_do_not_fit_are_refused():
    with pytest.raises(PluginError, match="3 expert groups do not divide over 2 nodes"):
        plan_hierarchical(np.ones((1, 6)), slots=6, gpus=2, nodes=2, groups=3)
    with pytest.raises(PluginError, match="the 1 ranks that live have 3 slots, but there are 6 experts"):
        plan_elasticity_aware(np.ones((1, 6)), slots=6, gpus=2, dead_ranks=[0])
    with pytest.raises(PluginError, match="dead_ranks names rank 2, but the ranks are 0 to 1"):
        plan_elasticity_aware(np.ones((1, 6)), slots=12, gpus=2, dead_ranks=[2])
