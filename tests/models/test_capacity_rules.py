"""Capacity rules of single frameworks and papers, on systems small enough to do by hand."""

import numpy as np
import pytest
from pydantic import ValidationError
from routings import counts_of, random_routing, world

from moesim.base.errors import FidelityError, FieldError, PluginError
from moesim.base.registry import build, plugin
from moesim.facts.routing import LayerRouting
from moesim.models.capacity.deepseek_v2 import DeepSeekV2, exempt_tokens
from moesim.models.capacity.deepspeed import DeepSpeed
from moesim.models.capacity.dmoe import DMoe
from moesim.models.capacity.fastmoe import FastMoe, gshard_gate_capacity, source_after_source
from moesim.models.capacity.gshard import GShard
from moesim.models.capacity.hybrid_ep import HybridEp
from moesim.models.capacity.megablocks import MegaBlocks
from moesim.models.capacity.orders import by_priority, rank_of_choice
from moesim.models.capacity.scopes import at_home
from moesim.models.capacity.switch import Switch
from moesim.models.capacity.tutel import Tutel, tutel_capacity
from moesim.models.capacity.vmoe import VMoe, vmoe_capacity


def tokens(ids, start, experts, weights=None, scores=None):
    ids = np.asarray(ids)
    if ids.ndim == 1:
        ids = ids[:, None]
    weights = None if weights is None else np.asarray(weights, dtype=np.float32).reshape(ids.shape)
    return LayerRouting.of_tokens(ids, start, experts, weights=weights, scores=scores)


def limit(rule, routing, *, step=0, moe_layer=0, **where):
    top_k = 1 if routing.ids is None else routing.ids.shape[1]
    setting = world(gpus=routing.gpus, experts=routing.experts, top_k=where.pop("top_k", top_k), **where)
    return rule.begin(setting)(routing, step=step, moe_layer=moe_layer)


# orders


def test_choices_are_ranked_by_weight_and_equal_ones_by_slot():
    assert rank_of_choice(np.asarray([[0.2, 0.5, 0.2, 0.1], [0.3, 0.3, 0.3, 0.9]])).tolist() == [[1, 0, 2, 3], [1, 2, 3, 0]]


def test_priority_puts_first_choices_of_sure_tokens_first():
    # Largest weights 0.6, 0.9, 0.6: token 1 first, then 0 and 2 in their order; then the second choices likewise.
    order = by_priority(np.asarray([[0.6, 0.4], [0.1, 0.9], [0.6, 0.3]], dtype=np.float32))
    assert order.tolist() == [[1, 4], [3, 0], [2, 5]]


# Tutel


def test_tutel_multiplies_by_k_after_rounding_down():
    # 50 tokens, 7 experts, top-2: ceil(50/7) = 8, so C = 2 x 8 = 16, where DeepSpeed and Megatron have ceil(100/7) = 15.
    assert tutel_capacity(np.asarray([50]), 2, 7, 1.0, np.asarray([0])).tolist() == [16]
    # int(1.3 x 8) = 10, times 2.
    assert tutel_capacity(np.asarray([50]), 2, 7, 1.3, np.asarray([0])).tolist() == [20]
    assert tutel_capacity(np.asarray([50]), 2, 7, 1.3, np.asarray([0]), 16).tolist() == [32]


def test_the_sign_of_tutels_factor_chooses_the_rule():
    # Two groups of two GPUs, one choice, 4 + 4 and 1 + 1 tokens, 2 experts. The most routes are 4 in the first group, 1 in the second.
    routing = tokens([0, 0, 0, 0, 0, 0, 1, 1, 0, 1], [0, 4, 8, 9, 10], 2)
    kept = limit(Tutel(factor=0.0), routing, ep=2)
    assert kept.capacity.tolist() == [4, 4, 1, 1]
    assert kept.dropped.sum() == 0
    assert (kept.routing.counts + kept.padding).tolist() == [[4, 4], [4, 4], [1, 1], [1, 1]]
    # At most int(1.0 x ceil(4/2)) = 2 rows in the first group, 1 in the second: the first tokens stay.
    kept = limit(Tutel(factor=-1.0), routing, ep=2)
    assert kept.capacity.tolist() == [2, 2, 1, 1]
    assert kept.routing.ids.ravel().tolist() == [0, 0, -1, -1, 0, 0, 1, 1, 0, 1]
    # A bound that does not bind: the needed 4 rows, not the 2 x 4 = 8 allowed.
    assert limit(Tutel(factor=-4.0), routing, ep=2).capacity.tolist() == [4, 4, 1, 1]
    # A positive factor gives its rows whether they are needed or not.
    assert limit(Tutel(factor=4.0), routing, ep=2).capacity.tolist() == [8, 8, 4, 4]


def test_tutel_gives_unequal_sources_equal_buffers_on_request():
    routing = tokens([0, 0, 0, 0, 1], [0, 4, 5], 2)
    assert limit(Tutel(factor=1.0), routing).capacity.tolist() == [2, 1]
    assert limit(Tutel(factor=1.0, inequivalent_tokens=True), routing).capacity.tolist() == [2, 2]


def test_tutel_normalises_before_it_drops():
    # Both tokens choose experts 0 and 1; C = 2 x int(0.5 x 2) = 2 drops nobody, C of one expert among 4 tokens drops two.
    routing = tokens([[0, 1], [0, 1], [0, 1], [0, 2]], [0, 4], 4, weights=[[0.6, 0.2]] * 4)
    kept = limit(Tutel(factor=1.0), routing)  # C = 2 x int(1.0 x 1) = 2
    assert kept.routing.ids.tolist() == [[0, 1], [0, 1], [-1, -1], [-1, 2]]
    np.testing.assert_allclose(kept.routing.weights, [[0.75, 0.25], [0.75, 0.25], [0, 0], [0, 0.25]], rtol=1e-6)
    assert kept.fully_dropped == 1
    raw = limit(Tutel(factor=1.0, normalize_gate=False), routing)
    np.testing.assert_allclose(raw.routing.weights[0], [0.6, 0.2], rtol=1e-6)


def test_tutel_refuses_a_factor_that_leaves_no_row():
    with pytest.raises(PluginError, match=r"factor 0.2 leaves no row for the 6 tokens of GPU 0.* write a factor of at least 0.5, or 0"):
        limit(Tutel(factor=0.2), tokens([0] * 6, [0, 6], 3))
    with pytest.raises(PluginError, match=r"factor -0.2 leaves no row"):
        limit(Tutel(factor=-0.2), tokens([0] * 6, [0, 6], 3))


# V-MoE


def test_vmoe_rounds_to_a_multiple_of_four():
    # 50 x 2 x 1.0 / 7 = 14.3: 15 rounded up, 14 rounded to the nearest, 16 as a multiple of 4.
    given = np.asarray([50])
    assert [int(vmoe_capacity(given, 2, 7, 1.0, how, of)[0]) for how, of in (("ceil", 0), ("round", 0), ("ceil", 4))] == [15, 14, 16]
    # Halves go to the even number, as Python rounds: 5 / 2 = 2.5, 7 / 2 = 3.5.
    assert vmoe_capacity(np.asarray([5, 7]), 1, 2, 1.0, "round", 0).tolist() == [2, 4]


def test_batch_priority_keeps_the_surest_tokens():
    routing = tokens([0, 0, 0, 0], [0, 4], 2, weights=[0.5, 0.6, 0.9, 0.6])
    keys = {"factor": 1.0, "multiple_of": 0}  # C = 2
    assert limit(VMoe(**keys), routing).routing.ids.ravel().tolist() == [0, 0, -1, -1]
    kept = limit(VMoe(**keys, batch_priority=True), routing)
    assert kept.routing.ids.ravel().tolist() == [-1, 0, 0, -1]
    np.testing.assert_array_equal(kept.routing.weights.ravel(), np.asarray([0, 0.6, 0.9, 0], dtype=np.float32))
    assert (kept.routing.counts + kept.padding).tolist() == [[2, 2]]


def test_batch_priority_needs_weights_and_plain_order_of_one_choice_does_not():
    bare = tokens([0, 0, 0, 0], [0, 4], 2)
    assert limit(VMoe(factor=1.0, multiple_of=0), bare).dropped.sum() == 2
    with pytest.raises(FidelityError, match="capacity rule 'vmoe' needs the gate weight of each choice"):
        limit(VMoe(factor=1.0, multiple_of=0, batch_priority=True), bare)


def test_vmoe_refuses_a_factor_that_rounds_to_nothing():
    with pytest.raises(PluginError, match=r"factor 0.1 leaves no row for the 4 tokens of GPU 0: 0.2 is rounded to 0.*rounding: ceil"):
        limit(VMoe(factor=0.1, rounding="round"), tokens([0, 0, 0, 0], [0, 4], 2))


# Switch and GShard


def test_switch_rounds_down_and_has_a_minimum():
    # int(10 x 1.25 / 4) = 3 of 10 tokens; a minimum of 4 makes it 4.
    routing = tokens([0] * 10, [0, 10], 4)
    kept = limit(Switch(factor=1.25, min_capacity=0), routing)
    assert kept.capacity.tolist() == [3]
    assert np.flatnonzero(kept.routing.ids.ravel() == 0).tolist() == [0, 1, 2]
    assert (kept.routing.counts + kept.padding).tolist() == [[3] * 4]
    assert limit(Switch(factor=1.25), routing).capacity.tolist() == [4]
    # Never more rows than tokens.
    assert limit(Switch(factor=99.0), routing).capacity.tolist() == [10]


def test_gshard_puts_first_choices_before_second_and_normalises_before_dropping():
    # Expert 0: second choice of token 0, first choice of tokens 1 and 2. C = int(2 x 3 / 3) = 2.
    routing = tokens([[1, 0], [0, 2], [0, 1]], [0, 3], 3, weights=[[0.5, 0.3], [0.4, 0.4], [0.6, 0.2]])
    kept = limit(GShard(min_capacity=0), routing)
    assert kept.routing.ids.tolist() == [[1, -1], [0, 2], [0, 1]]
    # Token 0 keeps 0.5 / 0.8 although it lost the rest.
    np.testing.assert_allclose(kept.routing.weights, [[0.625, 0], [0.5, 0.5], [0.75, 0.25]], rtol=1e-6)
    assert kept.padding.tolist() == [[0, 0, 1]]


@pytest.mark.parametrize(
    ("rule", "top_k", "words"), [(Switch(), 2, "one choice per token.*use gshard"), (GShard(), 1, "two choices.*use switch")]
)
def test_papers_refuse_other_numbers_of_choices(rule, top_k, words):
    with pytest.raises(PluginError, match=words):
        rule.begin(world(top_k=top_k))


# MegaBlocks


def test_dmoe_pads_each_expert_of_a_group_to_blocks_where_it_is_computed():
    # A group of two GPUs: expert 0 gets 3 + 2 routes, expert 1 gets 1, expert 2 none, expert 3 four. Blocks of 4.
    routing = tokens([0, 0, 0, 1, 0, 0, 3, 3, 3, 3], [0, 4, 10], 4)
    kept = limit(DMoe(block=4), routing)
    assert kept.dropped.sum() == 0
    # Experts 0 and 1 live on GPU 0, 2 and 3 on GPU 1.
    assert kept.padding.tolist() == [[3, 3, 0, 0], [0, 0, 0, 0]]
    assert kept.sent.padding.sum() == 0
    np.testing.assert_array_equal(kept.sent.routing.counts, routing.counts)
    assert kept.admitted() == -1


def test_megablocks_takes_the_first_of_all_sources():
    # Two GPUs of 4 tokens, 4 experts: C = int(1.0 x 1 x 8 / 4) = 2. Expert 0 is asked by tokens 1, 2 of GPU 0 and 0, 1 of GPU 1.
    routing = tokens([3, 0, 0, 1, 0, 0, 1, 2], [0, 4, 8], 4)
    kept = limit(MegaBlocks(factor=1.0), routing)
    assert kept.routing.ids.ravel().tolist() == [3, 0, 0, 1, -1, -1, 1, 2]
    assert kept.dropped.tolist() == [[0, 0, 0, 0], [2, 0, 0, 0]]
    # Every expert computes two rows, and everything travelled.
    assert (kept.routing.counts + kept.padding).sum(axis=0).tolist() == [2, 2, 2, 2]
    assert kept.padding.tolist() == [[0, 0, 0, 0], [0, 0, 1, 1]]
    np.testing.assert_array_equal(kept.sent.routing.ids, routing.ids)
    assert (kept.capacity, kept.admitted()) == (None, 8)


def test_a_shared_capacity_lets_one_source_use_what_another_leaves():
    # 4 tokens of GPU 0 for expert 0, 4 of GPU 1 for expert 1: a limit per source of 2 would drop half, the shared one of 4 drops none.
    routing = tokens([0, 0, 0, 0, 1, 1, 1, 1], [0, 4, 8], 2)
    assert limit(MegaBlocks(factor=1.0), routing).dropped.sum() == 0
    assert limit(DeepSpeed(factor=1.0, min_capacity=0), routing).dropped.sum() == 4


def test_megablocks_without_a_factor_pads_to_the_fullest_expert_of_each_rank():
    routing = tokens([0, 0, 0, 1, 2, 2, 3, 3], [0, 4, 8], 4)
    kept = limit(MegaBlocks(factor=0.0), routing)
    assert kept.dropped.sum() == 0
    assert (kept.routing.counts + kept.padding).sum(axis=0).tolist() == [3, 3, 2, 2]
    # int(0.1 x 8 / 4) is 0 too.
    assert limit(MegaBlocks(factor=0.1), routing).admitted() == kept.admitted() == 10


def test_home_rows_stand_with_the_rank_that_computes_them():
    assert at_home(np.asarray([[1, 2, 3], [4, 5, 6]]), 2).tolist() == [[1, 2, 0], [0, 0, 3], [4, 5, 0], [0, 0, 6]]


# HybridEP


def test_a_rank_beyond_its_budget_loses_the_routes_of_its_last_experts():
    # Two GPUs of 4 tokens, 4 experts, so 2 of them on each. Rank 0 gets 3 + 4 rows of a budget of int(4 x 1.25) = 5.
    routing = tokens([0, 1, 1, 0, 1, 0, 1, 3], [0, 4, 8], 4)
    kept = limit(HybridEp(factor=1.25, alignment=1), routing)
    assert kept.routing.ids.ravel().tolist() == [0, 1, 1, 0, -1, 0, -1, 3]
    assert kept.padding.sum() == 0
    np.testing.assert_array_equal(kept.sent.routing.ids, routing.ids)
    assert (kept.capacity, kept.admitted()) == (None, 10)


def test_the_budget_is_rounded_up_and_padded_experts_use_it_up():
    routing = tokens([0, 1, 1, 0, 1, 0, 1, 3], [0, 4, 8], 4)
    # int(4 x 1.25) = 5, as a multiple of 4: 8 rows hold all 7.
    assert limit(HybridEp(factor=1.25, alignment=4), routing).dropped.sum() == 0
    # Padded to 4, expert 0 takes rows 0 to 3 (3 routes), and expert 1 the four left. Expert 3 has 1 route and 3 rows of padding.
    kept = limit(HybridEp(factor=1.25, alignment=4, pad_experts=True), routing)
    assert kept.dropped.sum() == 0
    assert kept.padding.sum(axis=0).tolist() == [1, 0, 0, 3]
    # 4 rows are used up by expert 0 alone.
    kept = limit(HybridEp(factor=1.0, alignment=4, pad_experts=True), routing)
    assert kept.routing.counts.sum(axis=0).tolist() == [3, 0, 0, 1]


# DeepSeek-V2


def test_a_device_drops_its_lowest_weights_whatever_the_expert():
    # Rank 0 holds experts 0 and 1 and is asked 5 times of a budget of ceil(6 / 2) = 3; rank 1 once.
    routing = tokens([0, 1, 0, 1, 0, 2], [0, 3, 6], 4, weights=[0.9, 0.2, 0.5, 0.7, 0.5, 0.1])
    kept = limit(DeepSeekV2(exempt=0.0), routing)
    # 0.9 and 0.7 stay; of the two 0.5 the earlier. The lonely 0.1 of the other device stays.
    assert kept.routing.ids.ravel().tolist() == [0, -1, 0, 1, -1, 2]
    np.testing.assert_array_equal(kept.sent.routing.ids, routing.ids)
    assert (kept.padding.sum(), kept.admitted()) == (0, 6)


def test_exempt_sequences_are_never_dropped():
    routing = tokens([0, 0, 0, 0, 1, 1], [0, 3, 6], 2, weights=[0.9, 0.2, 0.5, 0.7, 0.1, 0.1])
    # Everybody is exempt: four routes on a device with room for three.
    assert limit(DeepSeekV2(exempt=1.0), routing).dropped.sum() == 0
    # One sequence per GPU, of 3 tokens, spared or not as a whole. The smallest weight of GPU 0 is dropped unless it is spared.
    seen = set()
    for step in range(40):
        kept = limit(DeepSeekV2(exempt=0.5, sequence=3), routing, step=step)
        rng = world(gpus=2, experts=2, top_k=1).rng("capacity", "deepseek_v2", step)
        spared = tuple((rng.random(2) < 0.5).tolist())
        seen.add(spared)
        # GPU 1 sends one route to expert 0, of weight 0.7; GPU 0 sends three. Room for three: GPU 0 spared and GPU 1 not, GPU 1 loses.
        lost = {(False, False): [1], (False, True): [1], (True, False): [3], (True, True): []}[spared]
        assert np.flatnonzero(kept.routing.ids.ravel() < 0).tolist() == lost
    assert len(seen) == 4


def test_a_sequence_is_spared_in_all_layers_of_a_step_and_drawn_anew_in_the_next():
    routing = tokens(np.zeros(64, dtype=int), [0, 64], 2, weights=np.linspace(0.1, 0.9, 64))
    rule = DeepSeekV2(exempt=0.3, sequence=2, factor=0.5)
    one, other, later = (limit(rule, routing, moe_layer=layer, step=step).routing.ids for step, layer in ((0, 0), (0, 1), (1, 0)))
    np.testing.assert_array_equal(one, other)
    assert (one != later).any()


def test_sequences_are_runs_of_tokens_of_one_gpu():
    class Draws:
        def random(self, count):
            assert count == 4  # GPU 0 has 5 tokens: sequences of 2, 2 and 1; GPU 1 has one token; GPU 2 none
            return np.asarray([0.9, 0.0, 0.9, 0.0])

    routing = tokens([0] * 6, [0, 5, 6, 6], 2)
    assert exempt_tokens(routing, Draws(), 0.5, 2).tolist() == [False, False, True, True, False, True]


def test_a_device_budget_needs_weights_only_where_it_drops():
    even = tokens([0, 1], [0, 1, 2], 2)
    assert limit(DeepSeekV2(), counts_of(even)).dropped.sum() == 0
    full = tokens([0, 0], [0, 1, 2], 2)
    with pytest.raises(FidelityError, match="'deepseek_v2' needs the gate weight"):
        limit(DeepSeekV2(), full)
    with pytest.raises(FidelityError, match="'deepseek_v2' needs to know the experts of each token"):
        limit(DeepSeekV2(), counts_of(full))


@pytest.mark.parametrize("rule", [HybridEp(), DeepSeekV2(), MegaBlocks(), FastMoe(gate="switch")])
def test_limits_per_rank_need_experts_that_divide_over_ranks(rule):
    with pytest.raises(PluginError, match=r"9 experts do not divide over parallel.ep = 2 ranks; choose ep among 1$"):
        rule.begin(world(gpus=2, experts=9, top_k=1))


# FastMoE


def test_fastmoe_gshard_rounds_the_tokens_up_and_the_rows_down():
    # ceil(1.2 x 50) = 60; 60 x 2 // 7 = 17.
    assert gshard_gate_capacity(np.asarray([50]), 2, 7, 1.2).tolist() == [17]
    routing = tokens([0] * 6, [0, 6], 2)
    kept = limit(FastMoe(factor=1.0, order="position"), routing)
    assert kept.routing.ids.ravel().tolist() == [0, 0, 0, -1, -1, -1]
    assert (kept.padding.sum(), kept.sent) == (0, None)


def test_fastmoe_switch_serves_whole_sources_in_turn():
    # Two GPUs of 3 tokens, 2 experts, one on each: ceil(1.0 x 3 / 1) = 3 rows of expert 0 for the 2 + 3 routes that want it.
    routing = tokens([0, 0, 1, 0, 0, 0], [0, 3, 6], 2)
    kept = limit(FastMoe(gate="switch", factor=1.0, order="position"), routing)
    assert kept.routing.counts.tolist() == [[2, 1], [1, 0]]
    assert (kept.capacity, kept.admitted()) == (None, 6)
    # The other turn: GPU 1 takes all three rows.
    turn = np.asarray([[[1, 0], [0, 1]]])
    assert source_after_source(routing, np.asarray([3]), turn, 2).tolist() == [[0, 1], [3, 0]]
    both = {tuple(limit(FastMoe(gate="switch", factor=1.0), routing, step=step).routing.counts[:, 0].tolist()) for step in range(20)}
    assert both == {(2, 1), (0, 3)}


def test_fastmoe_dc_does_not_divide_by_the_experts():
    routing = tokens([[0, 1], [0, 1], [0, 1], [0, 2]], [0, 2, 4], 4, weights=[[0.6, 0.4]] * 4)
    # ceil(1.2 x 2) = 3 rows for each expert, of 4 and 3 routes.
    kept = limit(FastMoe(gate="dc", order="position"), routing)
    assert kept.routing.ids.tolist() == [[0, 1], [0, 1], [0, 1], [-1, 2]]
    assert kept.admitted() == 12


def test_fastmoe_at_random_is_fair_and_repeatable():
    # C = 400 // 8 = 50 of 400 tokens; over 60 steps the first hundred tokens keep 750 (sigma about 22).
    routing = tokens([0] * 400, [0, 400], 8)
    rule = FastMoe(factor=1.0).begin(world(experts=8, top_k=1))
    kept = np.asarray([rule(routing, step=step, moe_layer=0).routing.ids.ravel() == 0 for step in range(60)])
    assert (kept.sum(axis=1) == 50).all()
    assert abs(kept[:, :100].sum() - 750) < 112
    np.testing.assert_array_equal(rule(routing, step=7, moe_layer=0).routing.ids.ravel() == 0, kept[7])


def test_random_routing_drops_second_choices_after_the_capacity():
    # The second choice of a token has score 0.25 or 5: it stays with probability one half, or always. First choices always stay.
    scores = np.tile(np.asarray([9.0, 0.25, -1.0, 5.0]), (2000, 1))
    ids = np.tile([0, 1], (2000, 1))
    ids[:1000] = [0, 3]
    routing = tokens(ids, [0, 2000], 4, weights=np.full((2000, 2), 0.5), scores=scores)
    kept = limit(FastMoe(factor=9.0, random_routing=True), routing)
    assert kept.routing.counts[0, [0, 3]].tolist() == [2000, 1000]
    assert abs(kept.routing.counts[0, 1] - 500) < 80  # five sigma of a fair coin thrown a thousand times
    assert kept.dropped[0, 1] == 1000 - kept.routing.counts[0, 1]
    with pytest.raises(FidelityError, match="random_routing: true needs the router's scores"):
        limit(FastMoe(factor=9.0, random_routing=True), tokens(ids, [0, 2000], 4))


def test_bad_combinations_of_fastmoe_are_refused():
    with pytest.raises(PluginError, match=r"gate: switch is for 1 choice\(s\) per token, but the model has top_k 2; write gate: gshard$"):
        FastMoe(gate="switch").begin(world(top_k=2))
    with pytest.raises(PluginError, match=r"gate: dc is for 2 choice\(s\)"):
        FastMoe(gate="dc").begin(world(top_k=4))
    with pytest.raises(PluginError, match=r"random_routing: true is for 2 choice\(s\).*gshard without random_routing"):
        FastMoe(random_routing=True).begin(world(top_k=3))
    with pytest.raises(FieldError, match="gate: switch makes none"):
        FastMoe(gate="switch", random_routing=True)


# DeepSpeed, tensor parallelism


def test_deepspeed_rounds_an_unlimited_buffer_up_to_the_tensor_parallel_size():
    routing = tokens([[0, 1], [0, 2], [0, 3]], [0, 3], 4, weights=[[0.5, 0.5]] * 3)
    assert limit(DeepSpeed(drop_tokens=False, tensor_parallel=4), routing).capacity.tolist() == [4]
    # Top-1 never has more rows than tokens; the fullest expert has 2 of 3.
    single = tokens([0, 0, 1], [0, 3], 4)
    assert limit(DeepSpeed(drop_tokens=False, tensor_parallel=4), single).capacity.tolist() == [3]


# counts


@pytest.mark.parametrize(
    "rule",
    [
        Tutel(factor=0.5),
        Tutel(factor=-0.5),
        Tutel(factor=0.0),
        VMoe(factor=0.5, multiple_of=0),
        GShard(factor=0.5, min_capacity=0),
        DMoe(block=8),
        MegaBlocks(factor=0.5),
        HybridEp(factor=0.5, alignment=2, pad_experts=True),
        FastMoe(factor=0.5),
        FastMoe(gate="dc", factor=0.2),
    ],
)
def test_counts_alone_say_how_many_but_not_which(rule):
    routing = random_routing(4, gpus=4, experts=4, top_k=2, most=20)
    known, counted = limit(rule, routing, ep=2), limit(rule, counts_of(routing), top_k=2, ep=2)
    np.testing.assert_array_equal(counted.dropped, known.dropped)
    np.testing.assert_array_equal(counted.padding, known.padding)
    assert counted.admitted() == known.admitted()
    assert (counted.routing.ids, counted.fully_dropped) == (None, None)
    assert (known.dropped.sum() > 0) == (rule not in (Tutel(factor=0.0), DMoe(block=8)))


def test_fields_are_read_like_yaml():
    assert build(plugin("capacity", "tutel"), {"factor": -1.5}) == Tutel(factor=-1.5)
    with pytest.raises(ValidationError, match="must be at least 1"):
        build(plugin("capacity", "tutel"), {"alignment": 0})
    with pytest.raises(ValidationError, match="must be at most 1"):
        build(plugin("capacity", "deepseek_v2"), {"exempt": 1.5})
    with pytest.raises(ValidationError, match="did you mean 'gshard'"):
        build(plugin("capacity", "fastmoe"), {"gate": "g_shard"})
    with pytest.raises(ValidationError, match="must be at least 0"):
        build(plugin("capacity", "megablocks"), {"factor": -1.0})
