"""Capacity rules on systems small enough to do by hand."""

import math

import numpy as np
import pytest
from pydantic import ValidationError
from routings import counts_of, random_routing, world

from moesim.base.errors import FidelityError, FieldError, PluginError
from moesim.base.registry import PluginOf, build, plugin
from moesim.facts.routing import LayerRouting
from moesim.models.capacity.deepspeed import DeepSpeed, deepspeed_capacity, keep_random
from moesim.models.capacity.dropless import Dropless
from moesim.models.capacity.megatron import Megatron, megatron_capacity
from moesim.models.capacity.orders import by_weight, renormalise
from moesim.models.capacity.scopes import group_maximum
from moesim.models.capacity.survivors import keep_first

# One source, five tokens of one choice among two experts. T k / E = 2.5, so factor 1 gives C = 3 and factor 0.4 gives C = 1.
IDS = np.asarray([[0], [0], [1], [0], [0]])
WEIGHTS = np.asarray([[0.5], [0.9], [0.1], [0.7], [0.7]], dtype=np.float32)


def one_source(ids=IDS, weights=WEIGHTS, experts=2):
    return LayerRouting.of_tokens(np.asarray(ids), [0, len(ids)], experts, weights=None if weights is None else np.asarray(weights))


def limit(rule, routing, *, step=0, **where):
    top_k = 1 if routing.ids is None else routing.ids.shape[1]
    setting = world(gpus=routing.gpus, experts=routing.experts, top_k=where.pop("top_k", top_k), **where)
    return rule.begin(setting)(routing, step=step, moe_layer=0)


def test_dropless_keeps_the_routing_itself():
    routing = one_source()
    kept = limit(Dropless(), routing)
    assert kept.routing is routing
    assert (kept.dropped.sum(), kept.padding.sum(), kept.capacity, kept.fully_dropped) == (0, 0, None, 0)
    assert limit(Dropless(), counts_of(routing)).fully_dropped is None


def test_probs_keeps_the_largest_weights_and_the_earlier_of_equals():
    # Expert 0 has four candidates, 0.5 0.9 0.7 0.7. C = 3 loses token 0; with C = 1 only token 1 stays.
    kept = limit(Megatron(factor=1.0), one_source())
    assert kept.capacity.tolist() == [3]
    assert kept.routing.ids.ravel().tolist() == [-1, 0, 1, 0, 0]
    assert kept.routing.weights.ravel().tolist() == pytest.approx([0, 0.9, 0.1, 0.7, 0.7])
    assert kept.dropped.tolist() == [[1, 0]]
    assert kept.fully_dropped == 1
    assert limit(Megatron(factor=0.4), one_source()).routing.ids.ravel().tolist() == [-1, 0, 1, -1, -1]
    # C = ceil(2.5 * 0.8) = 2: tokens 3 and 4 tie for the last place, the earlier stays.
    assert limit(Megatron(factor=0.8), one_source()).routing.ids.ravel().tolist() == [-1, 0, 1, 0, -1]


def test_position_keeps_the_first_tokens():
    assert limit(Megatron(factor=0.8, drop="position"), one_source()).routing.ids.ravel().tolist() == [0, 0, 1, -1, -1]


def test_limits_hold_per_source():
    # Two sources of 3 and 2 tokens, all for expert 0 of 2: C = ceil(3/2) = 2 and ceil(2/2) = 1.
    routing = LayerRouting.of_tokens(np.zeros((5, 1), dtype=int), [0, 3, 5], 2, weights=np.arange(5, dtype=float)[:, None])
    kept = limit(Megatron(factor=1.0), routing)
    assert kept.capacity.tolist() == [2, 1]
    assert kept.routing.ids.ravel().tolist() == [-1, 0, 0, -1, 0]
    assert kept.routing.counts.tolist() == [[2, 0], [1, 0]]
    assert kept.dropped.tolist() == [[1, 0], [1, 0]]


def test_capacity_above_the_tokens_drops_nothing_and_pads_up_to_the_tokens():
    # C = ceil(5 / 2 * 4) = 10 > T = 5: Megatron's map becomes all ones, so each expert gets 5 rows.
    kept = limit(Megatron(factor=4.0, pad_to_capacity=True), one_source())
    assert kept.capacity.tolist() == [10]
    assert kept.dropped.sum() == 0
    assert kept.padding.tolist() == [[1, 4]]


def test_padding_fills_up_to_the_capacity():
    kept = limit(Megatron(factor=1.0, pad_to_capacity=True), one_source())
    assert (kept.routing.counts + kept.padding).tolist() == [[3, 3]]


@pytest.mark.parametrize(("tokens", "top_k", "experts"), [(4096, 8, 256), (50, 2, 7), (100, 1, 8), (1, 1, 64), (30, 1, 10)])
@pytest.mark.parametrize("factor", [0.9, 1.0, 1.1, 1.15, 1.25, 2.3])
def test_megatron_rounds_like_python(tokens, top_k, experts, factor):
    assert megatron_capacity(np.asarray([tokens]), top_k, experts, factor)[0] == math.ceil((tokens * top_k / experts) * factor)


def test_deepspeed_multiplies_in_single_precision():
    # 100 tokens per expert, factor 1.1: 110.00000000000001 in double precision, which Megatron rounds up; exactly 110 in single.
    assert megatron_capacity(np.asarray([800]), 1, 8, 1.1)[0] == 111
    assert deepspeed_capacity(np.asarray([800]), 1, 8, 1.1, 0)[0] == 110


def test_deepspeed_pads_to_at_least_the_minimum():
    # C = max(ceil(5 / 2), 4) = 4: nothing is dropped of 4 and 1 routes, and both buffers have 4 rows.
    kept = limit(DeepSpeed(), one_source())
    assert kept.capacity.tolist() == [4]
    assert kept.dropped.sum() == 0
    assert kept.padding.tolist() == [[0, 3]]


def test_random_token_selection_keeps_the_largest_draws():
    draws = np.asarray([[0.2], [0.1], [0.0], [0.9], [0.8]])
    keep = keep_random(one_source(), np.asarray([2]), draws)
    assert keep.ravel().tolist() == [False, False, True, True, True]


def test_random_token_selection_is_fair_and_repeatable():
    # 400 tokens for expert 0, C = ceil(400/8) = 50: over 60 steps every token is kept 7.5 times on average, 5 sigma of the
    # first hundred tokens' total (750, hypergeometric, sigma about 22) is 112.
    ids = np.zeros((400, 1), dtype=int)
    routing = LayerRouting.of_tokens(ids, [0, 400], 8)
    rule = DeepSpeed().begin(world(experts=8, top_k=1))
    kept = np.asarray([rule(routing, step=step, moe_layer=0).routing.ids.ravel() == 0 for step in range(60)])
    assert (kept.sum(axis=1) == 50).all()
    assert abs(kept[:, :100].sum() - 750) < 112
    again = DeepSpeed().begin(world(experts=8, top_k=1))(routing, step=7, moe_layer=0)
    np.testing.assert_array_equal(again.routing.ids.ravel() == 0, kept[7])


def test_first_choices_outrank_second_choices_and_slots_may_be_shuffled():
    # Expert 0 is the second choice of token 0 and the first of tokens 1 and 2. C = 2 keeps the two first choices;
    # token-major position keeps tokens 0 and 1. Token 1 has its slots in reverse.
    ids = [[1, 0], [2, 0], [0, 3]]
    weights = np.asarray([[0.6, 0.4], [0.1, 0.9], [0.8, 0.2]], dtype=np.float32)
    routing = one_source(ids, weights, experts=4)
    rule = {"factor": 4 / 3, "min_capacity": 0}  # ceil(3/4 * 4/3 * 2) = 2
    assert limit(DeepSpeed(**rule), routing).routing.ids.tolist() == [[1, -1], [2, 0], [0, 3]]
    assert limit(DeepSpeed(**rule, drop="position"), routing).routing.ids.tolist() == [[1, 0], [2, 0], [-1, 3]]


def test_deepspeed_renormalises_what_is_left_for_two_choices_only():
    ids = [[1, 0], [2, 0], [0, 3]]
    weights = np.asarray([[0.5, 0.25], [0.25, 0.5], [0.5, 0.125]], dtype=np.float32)
    kept = limit(DeepSpeed(factor=4 / 3, min_capacity=0), one_source(ids, weights, experts=4))
    np.testing.assert_allclose(kept.routing.weights, [[1, 0], [1 / 3, 2 / 3], [0.8, 0.2]], rtol=1e-6)
    single = limit(DeepSpeed(min_capacity=0, drop="probs"), one_source())
    np.testing.assert_array_equal(single.routing.weights[single.routing.ids >= 0], WEIGHTS[single.routing.ids >= 0])


def test_renormalising_a_token_without_routes_gives_zeros():
    assert renormalise(np.ones((1, 2), dtype=np.float16), np.zeros((1, 2), dtype=bool)).tolist() == [[0, 0]]


def test_drop_tokens_false_pads_to_the_worst_expert_of_the_group():
    # Two groups of two GPUs; the largest counts are 3 in the first group and 1 in the second.
    counts = np.asarray([[3, 0], [1, 1], [1, 0], [0, 1]])
    routing = LayerRouting(experts=2, token_start=[0, 3, 5, 6, 7], counts=counts)
    kept = limit(DeepSpeed(drop_tokens=False), routing, ep=2)
    assert kept.capacity.tolist() == [3, 3, 1, 1]
    assert kept.dropped.sum() == 0
    assert (kept.routing.counts + kept.padding).tolist() == [[3, 3], [3, 3], [1, 1], [1, 1]]
    assert group_maximum(np.asarray([], dtype=int), 2).tolist() == []


def test_counts_alone_say_how_many_but_not_which():
    routing = random_routing(4, gpus=3, experts=4, top_k=2, most=20)
    for rule in (Megatron(factor=0.7), Megatron(factor=0.7, drop="position"), DeepSpeed(factor=0.7, min_capacity=1)):
        known, counted = limit(rule, routing), limit(rule, counts_of(routing), top_k=2)
        np.testing.assert_array_equal(counted.dropped, known.dropped)
        np.testing.assert_array_equal(counted.padding, known.padding)
        assert (counted.routing.ids, counted.fully_dropped) == (None, None)
        assert known.dropped.sum() > 0


def test_an_order_by_weight_refuses_tokens_without_weights():
    bare = one_source(weights=None)
    with pytest.raises(FidelityError, match=r"'megatron' with drop: probs \(drop: position needs none\) needs the gate weight"):
        limit(Megatron(factor=1.0), bare)
    with pytest.raises(FidelityError, match="'deepspeed' with drop: probs"):
        limit(DeepSpeed(drop="probs"), bare)
    assert limit(Megatron(factor=1.0, drop="position"), bare).routing.weights is None
    assert limit(DeepSpeed(factor=0.1, min_capacity=1), bare).dropped.sum() == 3


@pytest.mark.parametrize(("drop", "top_k", "needs"), [("random", 2, 1), ("slot_major", 6, 2)])
def test_orders_that_deepspeed_does_not_have_are_refused(drop, top_k, needs):
    with pytest.raises(PluginError, match=rf"drop: {drop} is for {needs} choice\(s\) per token, but the router makes {top_k}"):
        DeepSpeed(drop=drop).begin(world(top_k=top_k))


def test_auto_is_what_the_framework_does():
    assert [DeepSpeed().order(k) for k in (1, 2, 6)] == ["random", "slot_major", "probs"]
    assert DeepSpeed(use_rts=False).order(1) == "position"
    with pytest.raises(FieldError, match="contradicts drop: random"):
        DeepSpeed(drop="random", use_rts=False)


def test_doubles_are_not_rounded_together():
    # The two weights are equal in single precision; in double the later token's is larger.
    weights = np.asarray([[0.5], [0.5 + 1e-12]])
    routing = LayerRouting.of_tokens(np.zeros((2, 1), dtype=int), [0, 2], 1, weights=weights)
    assert keep_first(routing, np.asarray([1]), by_weight(weights)).ravel().tolist() == [False, True]


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_the_order_by_weight_sorts_negative_zero_and_positive(dtype):
    weights = np.asarray([[-2.0, -0.0, 0.0, 1.0, -1.0]], dtype=dtype)
    assert np.argsort(by_weight(weights)[0], kind="stable").tolist() == [3, 1, 2, 4, 0]


def test_a_limit_of_nothing_keeps_nothing():
    assert not keep_first(one_source(), np.asarray([0]), by_weight(WEIGHTS)).any()


def test_arrays_in_fortran_order_are_dropped_alike():
    routing = random_routing(5, gpus=2, experts=4, top_k=3, most=9)
    twin = LayerRouting.of_tokens(
        np.asfortranarray(routing.ids), routing.token_start, routing.experts, weights=np.asfortranarray(routing.weights)
    )
    ids = limit(Megatron(factor=0.5), routing).routing.ids
    np.testing.assert_array_equal(limit(Megatron(factor=0.5), twin).routing.ids, ids)
    assert (ids < 0).any()


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.uint64, np.int8, np.int64])
def test_ids_of_any_integer_type_are_dropped_alike(dtype):
    # Recordings often hold unsigned bytes, which have no room for the -1 of a dropped route.
    kept = limit(Megatron(factor=0.8), one_source(IDS.astype(dtype)))
    assert kept.routing.ids.dtype.kind == "i"
    assert kept.routing.ids.ravel().tolist() == [-1, 0, 1, 0, -1]


def test_fields_are_read_like_yaml():
    assert build(plugin("capacity", "megatron"), {"factor": 1.25, "drop": "probs"}) == Megatron(factor=1.25)
    assert build(plugin("capacity", "deepspeed"), {"factor": 1.25, "drop": "probs"}) == DeepSpeed(factor=1.25, drop="probs")
    assert PluginOf("capacity").parse(None) == Dropless()
    with pytest.raises(ValidationError, match="did you mean 'position'"):
        build(plugin("capacity", "megatron"), {"factor": 1.25, "drop": "positon"})
    with pytest.raises(ValidationError, match="must be more than 0"):
        build(plugin("capacity", "megatron"), {"factor": 0})
