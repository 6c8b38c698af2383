"""Rows of the shared expert that go where there is room."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from routings import counts_of, random_routing, world

from moesim.base.errors import FidelityError, PluginError
from moesim.base.registry import plugin
from moesim.facts.placement import Placement
from moesim.facts.routing import Kept, LayerRouting
from moesim.models.exchange.copies import copies_per_token


def everything(routing):
    none = np.zeros_like(routing.counts)
    return Kept(routing=routing, dropped=none, padding=none)


def setting_of(gpus, *, ep=None, experts=8, top_k=2, **facts):
    return world(gpus=gpus, ep=ep, experts=experts, top_k=top_k, **({"shared_experts": 1, "shared_width": 4} | facts))


def in_order(experts, ranks, layers=2):
    return Placement(expert_of_slot=np.tile(np.arange(experts), (layers, 1)), rank_of_slot=np.arange(experts) // (experts // ranks))


def bind(kept, placement, setting, **keys):
    return plugin("dispatch", "waterfill")(**keys).begin(setting)(kept, placement, step=0, moe_layer=0)


def hot(tokens=100, gpus=4):
    """Every token of every rank wants experts 0 and 1, both on rank 0 of four."""
    ids = np.tile(np.asarray([[0, 1]], dtype=np.int32), (tokens * gpus, 1))
    return LayerRouting.of_tokens(ids, np.arange(gpus + 1) * tokens, 8)


def test_shared_rows_leave_the_hot_rank_alone_and_fill_the_others_evenly():
    # Rank 0 has all 800 routed rows. A rank by itself sends 200 rows there, and its level is (200 + 100) / 4 = 75: no room on rank 0, 75 on
    # its own, 68 (75 x 10/11) on each of two others. Rank 0 itself has 68 on each of three.
    assignment = bind(everything(hot()), in_order(8, 4), setting_of(4))
    shared = assignment.slot_counts[:, 8:]
    assert assignment.shared_slots == 4
    assert shared.sum(axis=1).tolist() == [100] * 4
    assert shared[:, 0].tolist() == [0] * 4
    # Drawn by a hash: 100 tokens in shares of 75 to 68 to 68 and 1 to 1 to 1; a draw's standard deviation is below 5 tokens.
    expected = np.asarray([[0, 33.3, 33.3, 33.3], [0, 35.5, 32.2, 32.2], [0, 32.2, 35.5, 32.2], [0, 32.2, 32.2, 35.5]])
    assert np.abs(shared - expected).max() < 15
    rows = assignment.rows_at().sum(axis=0)
    assert rows[0] == 800
    assert rows.sum() == 1200


def test_dynamic_lets_a_token_use_only_ranks_that_it_visits_when_one_is_above_the_level():
    # Rank 0 has 800 rows and 100 tokens of its own; the level is (1200 + 400) / 4 = 400. Tokens visit rank 0 only, which has no room.
    assignment = bind(everything(hot()), in_order(8, 4), setting_of(4), mode="dynamic")
    np.testing.assert_array_equal(assignment.slot_counts[1:, 8:], 100 * np.eye(4, dtype=int)[1:])
    # Of rank 0 itself: 900 rows, no room, nothing else visited.
    assert assignment.slot_counts[0, 8:].tolist() == [100, 0, 0, 0]


def test_a_shared_row_is_one_more_copy_unless_the_token_goes_there_anyway():
    routing = hot()
    setting = setting_of(4)
    plain = plugin("dispatch", "static")().begin(setting)(everything(routing), in_order(8, 4), step=0, moe_layer=0)
    shared = bind(everything(routing), in_order(8, 4), setting)
    # Without: the 300 tokens of ranks 1 to 3 go to rank 0. With: also where their shared rows go, but for those that stay.
    assert copies_per_token(plain, "a test", ranks=4).sum() == 300
    away = 400 - int(np.trace(shared.slot_counts[:, 8:]))
    assert copies_per_token(shared, "a test", ranks=4).sum() == 300 + away


def test_a_small_batch_and_a_token_without_routes_stay_at_home():
    small = bind(everything(hot(tokens=63)), in_order(8, 4), setting_of(4)).slot_counts[:, 8:]
    np.testing.assert_array_equal(small, 63 * np.eye(4, dtype=int))
    lost = LayerRouting.of_tokens(np.where(np.arange(400)[:, None] == 150, -1, hot().ids), hot().token_start, 8)
    assert bind(everything(lost), in_order(8, 4), setting_of(4)).slots[150].tolist() == [-1, -1, 8 + 1]


def test_replicas_are_chosen_by_the_dispatch_that_is_named():
    placement = Placement(
        expert_of_slot=np.asarray([[0, 1, 2, 3, 4, 5, 6, 7, 0, 0]] * 2), rank_of_slot=np.asarray([0, 0, 0, 1, 1, 2, 2, 3, 1, 3])
    )
    for kind in ("even", "nearest", "token_hash"):
        setting = setting_of(4)
        alone = plugin("dispatch", kind)().begin(setting)(everything(hot()), placement, step=0, moe_layer=0)
        both = bind(everything(hot()), placement, setting, replicas=kind)
        np.testing.assert_array_equal(both.slots[:, :2], alone.slots)
        np.testing.assert_array_equal(both.slot_counts[:, :10], alone.slot_counts)


@given(seed=st.integers(0, 10**6), mode=st.sampled_from(["static", "dynamic"]), groups=st.sampled_from([1, 2]))
@settings(max_examples=25, deadline=None)
def test_l1_every_token_has_one_shared_row_in_its_own_group(seed, mode, groups):
    routing = random_routing(seed, gpus=4, experts=8, top_k=2, most=150, gaps=True)
    ranks = 4 // groups
    assignment = bind(everything(routing), in_order(8, ranks), setting_of(4, ep=ranks), mode=mode)
    np.testing.assert_array_equal(assignment.slot_counts[:, 8:].sum(axis=1), np.diff(routing.token_start))
    destination = np.take_along_axis(assignment.destination[routing.source_of_token()], assignment.slots.astype(int)[:, -1:], axis=1)[:, 0]
    np.testing.assert_array_equal(destination // ranks, routing.source_of_token() // ranks)
    # Routed rows are as they would be without it.
    alone = plugin("dispatch", "static")().begin(setting_of(4, ep=ranks))(everything(routing), in_order(8, ranks), step=0, moe_layer=0)
    np.testing.assert_array_equal(assignment.slot_counts[:, :8], alone.slot_counts)


def test_what_it_cannot_do_is_refused_with_the_numbers():
    with pytest.raises(PluginError, match="test has no shared expert and routed ones of width 4"):
        plugin("dispatch", "waterfill")().begin(world(gpus=4))
    with pytest.raises(PluginError, match="width 8 in all"):
        plugin("dispatch", "waterfill")().begin(setting_of(4, shared_width=8))
    with pytest.raises(FidelityError, match="dispatch 'waterfill' needs to know the experts of each token"):
        bind(everything(counts_of(hot())), in_order(8, 4), setting_of(4))
    limited = replace(everything(hot()), capacity=np.full(4, 100))
    with pytest.raises(PluginError, match="drop nothing"):
        bind(limited, in_order(8, 4), setting_of(4))
