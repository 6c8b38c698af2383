"""The choices among replicas by hand, against slow twins, and how they compare."""

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from routings import counts_of, random_routing, world

from moesim.base.errors import FidelityError
from moesim.base.registry import plugin
from moesim.facts.placement import Placement
from moesim.facts.routing import Kept, LayerRouting
from moesim.models.dispatch.lp_split import optimal_split, whole_rows
from moesim.models.dispatch.shared_ranks import LOCAL_ONLY_BELOW, dynamic_fill, shared_ranks, static_fill


def everything(routing, padding=None):
    none = np.zeros_like(routing.counts)
    return Kept(routing=routing, dropped=none, padding=none if padding is None else padding)


def begin(kind, *, gpus, ep=None, nodes=None, seed=0, **keys):
    setting = world(gpus=gpus, ep=ep, seed=seed)
    if nodes is not None:
        setting = replace(setting, cluster=replace(setting.cluster, node_of=np.asarray(nodes)))
    return plugin("dispatch", kind)(**keys).begin(setting)


def bind(kind, kept, placement, **keys):
    return begin(kind, gpus=kept.routing.gpus, **keys)(kept, placement, step=0, moe_layer=0)


# Ranks 0 and 1 are node 0, ranks 2 and 3 node 1. Expert 0 has slots 0 (rank 0), 2 (rank 1) and 4 (rank 2); expert 1 only slot 1, expert 2
# only slot 3, expert 3 slots 5 (rank 2), 6 and 7 (both rank 3).
PLACEMENT = Placement(expert_of_slot=np.asarray([[0, 1, 0, 2, 0, 3, 3, 3]]), rank_of_slot=np.asarray([0, 0, 1, 1, 2, 2, 3, 3]))
NODES = [0, 0, 1, 1]


def test_nearest_prefers_the_gpu_then_the_node_then_takes_turns():
    # Each source has three rows for expert 0 and two for expert 3.
    routing = LayerRouting(experts=4, token_start=[0, 3, 6, 9, 12], counts=np.tile([3, 0, 0, 2], (4, 1)))
    counts = bind("nearest", everything(routing), PLACEMENT, nodes=NODES).slot_counts
    # Ranks 0, 1, 2 have expert 0 themselves; rank 3 has it in its node, on rank 2.
    assert counts[:, [0, 2, 4]].tolist() == [[3, 0, 0], [0, 3, 0], [0, 0, 3], [0, 0, 3]]
    # Ranks 0 and 1 have no replica of expert 3 near: of three, rank 0 starts at the first and rank 1 at the second. Rank 2 has its own.
    # Rank 3 has two, and begins at 3 mod 2.
    assert counts[:, [5, 6, 7]].tolist() == [[1, 1, 0], [0, 1, 1], [2, 0, 0], [0, 1, 1]]


def test_static_takes_the_first_of_the_gpu_and_of_the_node_and_shares_the_rest_fairly():
    routing = LayerRouting(experts=4, token_start=[0, 3, 6, 9, 12], counts=np.tile([3, 0, 0, 2], (4, 1)))
    counts = bind("static", everything(routing), PLACEMENT, nodes=NODES).slot_counts
    assert counts[:, [0, 2, 4]].tolist() == [[3, 0, 0], [0, 3, 0], [0, 0, 3], [0, 0, 3]]
    # Rank 3 uses slot 6, its first; ranks 0 and 1 have none near, and get two different ones of the three.
    assert counts[2:, [5, 6, 7]].tolist() == [[2, 0, 0], [0, 2, 0]]
    far = counts[:2, [5, 6, 7]]
    assert sorted(far.max(axis=1).tolist()) == [2, 2]
    assert (far.sum(axis=0) <= 2).all()


def test_static_does_not_prefer_the_node_if_every_replica_is_there():
    # One node: expert 0 on ranks 0, 1, 2 of 4. Rank 3 gets any of the three, drawn by Python's generator with seed 42.
    import random

    routing = LayerRouting(experts=4, token_start=[0, 3, 6, 9, 12], counts=np.tile([3, 0, 0, 0], (4, 1)))
    counts = bind("static", everything(routing), PLACEMENT, nodes=[0, 0, 0, 0]).slot_counts
    drawn = random.Random(42).sample([0, 2, 4], k=1)[0]
    assert counts[3, drawn] == 3


def test_static_is_drawn_anew_when_the_placement_changes_and_only_then():
    routing = LayerRouting(experts=4, token_start=[0, 3, 6, 9, 12], counts=np.tile([3, 0, 0, 2], (4, 1)))
    run = begin("static", gpus=4, nodes=NODES)
    other = Placement(expert_of_slot=np.asarray([[3, 1, 3, 2, 3, 0, 0, 0]]), rank_of_slot=PLACEMENT.rank_of_slot)
    first = run(everything(routing), PLACEMENT, step=0, moe_layer=0).slot_counts
    between = run(everything(routing), other, step=1, moe_layer=0).slot_counts
    again = run(everything(routing), PLACEMENT, step=2, moe_layer=0).slot_counts
    np.testing.assert_array_equal(first, again)
    assert between[:, [0, 2, 4]].sum() == 8  # now expert 3 is there, with two rows of each source


def test_dynamic_draws_alike_for_a_seed_and_differently_for_steps_and_seeds():
    routing = random_routing(1, gpus=2, experts=4, top_k=2, most=40)
    placement = Placement(expert_of_slot=np.asarray([[0, 1, 2, 3, 0, 1, 2, 3]]), rank_of_slot=np.asarray([0] * 4 + [1] * 4))

    def slots(seed, step):
        return begin("dynamic", gpus=2, seed=seed)(everything(routing), placement, step=step, moe_layer=0).slots

    np.testing.assert_array_equal(slots(0, 0), slots(0, 0))
    assert (slots(0, 0) != slots(0, 1)).any()
    assert (slots(0, 0) != slots(1, 0)).any()


def test_dynamic_splits_evenly_on_average():
    # 40,000 routes over three replicas: each gets a third, give or take 4 sigma (94 routes each).
    routing = LayerRouting(experts=1, token_start=[0, 40_000], counts=[[40_000]])
    placement = Placement(expert_of_slot=np.asarray([[0, 0, 0]]), rank_of_slot=np.asarray([0, 0, 0]))
    counts = bind("dynamic", everything(routing), placement).slot_counts[0]
    assert np.abs(counts - 40_000 / 3).max() < 4 * 94.3


@pytest.mark.parametrize("keys", [{"kind": "token_hash"}, {"kind": "dynamic", "by": "row"}], ids=["token_hash", "row"])
def test_choices_by_token_need_tokens_only_where_there_is_a_choice(keys):
    routing = counts_of(random_routing(1, gpus=2, experts=4, top_k=2, most=40))
    alone = Placement(expert_of_slot=np.asarray([[0, 1, 2, 3]]), rank_of_slot=np.asarray([0, 0, 1, 1]))
    assert bind(kept=everything(routing), placement=alone, **keys).slot_counts.sum() == routing.routes
    twice = Placement(expert_of_slot=np.asarray([[0, 1, 2, 3, 0, 1]]), rank_of_slot=np.asarray([0, 0, 0, 1, 1, 1]))
    with pytest.raises(FidelityError, match=rf"dispatch '{keys['kind']}'.* needs to know the token of each route.* counts by source only"):
        bind(kept=everything(routing), placement=twice, **keys)


def test_a_token_is_numbered_within_its_own_gpu_whatever_was_dropped():
    # Each source's tokens are 0, 1, 2; token 1 of each was dropped. Row modulo two replicas: 0 and 0.
    routing = LayerRouting.of_tokens(np.asarray([[0], [-1], [0], [0], [-1], [0]]), [0, 3, 6], 2)
    placement = Placement(expert_of_slot=np.asarray([[0, 1, 0]]), rank_of_slot=np.asarray([0, 0, 1]))
    assert bind("dynamic", everything(routing), placement, by="row").slots.ravel().tolist() == [0, -1, 0, 0, -1, 0]
    # Knuth's hash modulo 2 is the row modulo 2, as the multiplier is odd: tokens 0 and 2 are even again.
    assert bind("token_hash", everything(routing), placement).slots.ravel().tolist() == [0, -1, 0, 0, -1, 0]


def best_by_trying(load, expert_of_slot, rank, ranks):
    """The least most of all ways to split whole rows."""
    ways = []
    for expert, rows in enumerate(load):
        slots = np.flatnonzero(expert_of_slot == expert)
        ways.append([(slots, split) for split in product(range(rows + 1), repeat=len(slots)) if sum(split) == rows])
    least = np.inf
    for choice in product(*ways):
        on_rank = np.zeros(ranks)
        for slots, split in choice:
            np.add.at(on_rank, rank[slots], split)
        least = min(least, on_rank.max())
    return least


@given(
    load=st.lists(st.integers(0, 4), min_size=2, max_size=3),
    extra=st.lists(st.integers(0, 2), max_size=2),
    ranks=st.integers(1, 3),
    data=st.data(),
)
@settings(max_examples=40, deadline=None)
def test_no_split_of_whole_rows_beats_the_optimum_and_rounding_comes_close(load, extra, ranks, data):
    experts = len(load)
    expert_of_slot = np.asarray([*range(experts), *(expert % experts for expert in extra)])
    rank = np.asarray(data.draw(st.lists(st.integers(0, ranks - 1), min_size=len(expert_of_slot), max_size=len(expert_of_slot))))
    load = np.asarray(load)
    best = optimal_split(load, expert_of_slot, rank, ranks=ranks)
    tried = best_by_trying(load, expert_of_slot, rank, ranks)
    assert best.most <= tried + 1e-9
    whole = whole_rows(best.rows, load, expert_of_slot)
    assert np.bincount(rank, weights=whole, minlength=ranks).max() < best.most + len(expert_of_slot) + 1e-6
    assert np.abs(whole - best.rows).max() < 1


@given(seed=st.integers(0, 2**32 - 1), spread=st.floats(0.1, 3.0))
@settings(max_examples=40, deadline=None)
def test_l1_whole_rows_add_up_to_the_load_of_each_expert(seed, spread):
    rng = np.random.default_rng(seed)
    expert_of_slot = np.concatenate([np.arange(8), rng.integers(0, 8, 6)])
    load = rng.poisson(np.exp(rng.normal(3, spread, 8)))
    share = rng.random(14)
    split = share / np.bincount(expert_of_slot, weights=share)[expert_of_slot] * load[expert_of_slot]
    whole = whole_rows(split * (1 + 1e-9 * rng.standard_normal(14)), load, expert_of_slot)
    np.testing.assert_array_equal(np.bincount(expert_of_slot, weights=whole, minlength=8), load)
    assert whole.min() >= 0
    assert np.abs(whole - split).max() < 1 + 1e-6


@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=30, deadline=None)
def test_the_optimum_is_never_above_the_even_split(seed):
    # Spread whole rows sit at most one row per slot of a rank above the optimum; taking turns may be better than that by luck, never
    # better than the optimum itself.
    rng = np.random.default_rng(seed)
    routing = random_routing(seed, gpus=4, experts=6, top_k=2, most=30)
    slots = np.concatenate([np.arange(6), rng.integers(0, 6, 6)])
    placement = Placement(expert_of_slot=rng.permutation(slots)[None], rank_of_slot=np.arange(12) // 3)
    load = routing.counts.sum(axis=0)
    most = optimal_split(load, placement.expert_of_slot[0], placement.rank_of_slot, ranks=4).most
    received = {
        kind: bind(kind, everything(routing), placement).rows_at().sum(axis=0).max() for kind in ("lp", "even", "nearest", "static")
    }
    assert received["lp"] < most + 3 + 1e-6
    assert all(rows >= most - 1e-6 for rows in received.values())


def test_every_group_has_an_optimum_of_its_own():
    # Group 0 (GPUs 0, 1) loads expert 0 only, group 1 expert 1 only; both experts have a replica on each rank: 5 and 5 rows in each.
    routing = LayerRouting(experts=2, token_start=[0, 10, 10, 20, 20], counts=[[10, 0], [0, 0], [0, 10], [0, 0]])
    placement = Placement(expert_of_slot=np.asarray([[0, 1, 0, 1]]), rank_of_slot=np.asarray([0, 0, 1, 1]))
    for split in ("whole", "sampled"):
        rows = bind("lp", everything(routing), placement, ep=2, split=split).rows_at()
        assert rows[0, 2:].sum() == rows[2, :2].sum() == 0
    assert bind("lp", everything(routing), placement, ep=2).rows_at()[[0, 0, 2, 2], [0, 1, 2, 3]].tolist() == [5, 5, 5, 5]


def test_sources_split_nearly_alike_under_lp():
    # Expert 0: 80 rows, on ranks 0 and 1; expert 1: 40 rows, only on rank 1. The optimum is 60 each: 60 and 20 of expert 0.
    routing = LayerRouting(experts=2, token_start=[0, 60, 120], counts=[[40, 20], [40, 20]])
    placement = Placement(expert_of_slot=np.asarray([[0, 1, 0]]), rank_of_slot=np.asarray([0, 1, 1]))
    counts = bind("lp", everything(routing), placement).slot_counts
    assert counts.sum(axis=0).tolist() == [60, 40, 20]
    assert counts.tolist() == [[30, 20, 10], [30, 20, 10]]


def test_samples_of_lp_scatter_around_its_shares():
    # The same with 8,000 and 4,000 rows: 6,000 +- 4 sigma (39) of expert 0 in slot 0.
    routing = LayerRouting(experts=2, token_start=[0, 6000, 12000], counts=[[4000, 2000], [4000, 2000]])
    placement = Placement(expert_of_slot=np.asarray([[0, 1, 0]]), rank_of_slot=np.asarray([0, 1, 1]))
    counts = bind("lp", everything(routing), placement, split="sampled").slot_counts.sum(axis=0)
    assert counts[1] == 4000
    assert 0 < abs(counts[0] - 6000) < 4 * 38.8


def test_nothing_to_split_needs_no_solver():
    placement = Placement(expert_of_slot=np.asarray([[0, 1, 0]]), rank_of_slot=np.asarray([0, 1, 1]))
    idle = LayerRouting(experts=2, token_start=[0, 0, 0], counts=np.zeros((2, 2), dtype=int))
    assert bind("lp", everything(idle), placement).slot_counts.sum() == 0
    assert optimal_split(np.asarray([0, 7]), np.asarray([0, 1, 0]), np.asarray([0, 1, 1]), ranks=2).most == 7


def test_shared_rows_of_a_small_batch_stay_at_home_and_tokens_without_routes_have_none():
    visited = np.tile([0, 2], (LOCAL_ONLY_BELOW, 1))
    visited[3] = -1
    # All routes go to ranks 0 and 2 of four: ranks 1 and 3 have room.
    fill = static_fill(np.asarray([63, 0, 63, 0]), 2)
    assert set(shared_ranks(visited[:-1], fill, source=0)) == {0, -1}
    chosen = shared_ranks(visited, fill, source=0)
    assert chosen[3] == -1
    assert set(chosen[chosen >= 0]) == {1, 3}


def test_a_rank_in_need_may_only_use_ranks_that_the_token_visits():
    # 100 tokens on each of four ranks, 400 rows of which rank 0 gets 310: it alone is above the level of (800 + 100 ...) rows.
    routed, tokens = np.asarray([620, 60, 60, 60]), np.full(4, 100)
    fill = dynamic_fill(routed, tokens, 2)
    # Rows 800, tokens 400, and 400 more shared rows to place: (1200 + 400) / 4.
    assert (fill.target, fill.anywhere) == (400, False)
    visited = np.tile([0, 1], (100, 1))
    assert set(shared_ranks(visited, fill, source=0)) == {1}
    assert set(shared_ranks(visited, fill, source=3)) == {1, 3}


def test_without_room_anywhere_the_lightest_by_a_tenth_wins_else_the_source():
    fill = replace(static_fill(np.asarray([100, 95, 80, 90]), 2), target=50)
    visited = np.tile([0, 1], (64, 1))
    assert set(shared_ranks(visited, fill, source=0)) == {2}
    # Among rank 0 and those visited (0 and 1), 95 is not lighter than 100 by a tenth.
    assert set(shared_ranks(visited, replace(fill, anywhere=False), source=0)) == {0}


@pytest.mark.parametrize("keys", [{"kind": "dynamic"}, {"kind": "lp", "split": "sampled"}], ids=["dynamic", "lp"])
def test_the_draw_of_a_route_does_not_depend_on_which_others_were_dropped(keys):
    # Replicas of expert 0 on both ranks; the same tokens with and without a dropped one. Equal loads elsewhere keep the shares of lp alike.
    placement = Placement(expert_of_slot=np.asarray([[0, 0]]), rank_of_slot=np.asarray([0, 1]))
    ids = np.zeros((40, 1), dtype=int)
    whole = bind(kept=everything(LayerRouting.of_tokens(ids, [0, 20, 40], 1)), placement=placement, **keys).slots
    ids[[3, 30]] = -1
    dropped = bind(kept=everything(LayerRouting.of_tokens(ids, [0, 20, 40], 1)), placement=placement, **keys).slots
    kept = ids >= 0
    np.testing.assert_array_equal(whole[kept], dropped[kept])
    assert len(set(whole.ravel().tolist())) == 2
