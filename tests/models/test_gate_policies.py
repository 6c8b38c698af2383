"""Gates one by one, with expectations derived by hand."""

import numpy as np
import pytest
from routings import random_routing, world

from moesim.base.errors import FidelityError, PluginError, SimulationError
from moesim.base.registry import build, kinds, plugin
from moesim.facts.routing import Kept, LayerRouting
from moesim.models.gate.auction import balanced_assignment
from moesim.models.gate.base_layer import Base
from moesim.models.gate.expert_choice import ExpertChoice
from moesim.models.gate.group_limited import GroupLimited
from moesim.models.gate.groups import best_groups
from moesim.models.gate.gshard_top2 import GShardTop2
from moesim.models.gate.hash_layer import Hash
from moesim.models.gate.input_jitter import InputJitter, jitter_of_logits
from moesim.models.gate.loss_free import LossFree
from moesim.models.gate.noisy_topk import NoisyTopK
from moesim.models.gate.quantile import Quantile, fair_price
from moesim.models.gate.sinkhorn import Sinkhorn
from moesim.models.gate.top_p import TopP
from moesim.models.gate.topk import TopK
from moesim.models.gate.word_tables import balanced_table, random_table, zipf, zipf_words
from moesim.models.gate.zero_computation import ZeroComputation

NEED_SCORES = {
    "base": {"top_k": 1},
    "deepspeed_top2": {},
    "expert_choice": {},
    "group_limited": {},
    "gshard_top2": {},
    "input_jitter": {},
    "loss_free": {},
    "noisy_topk": {},
    "quantile": {"tokens_per_gpu": 4},
    "sinkhorn": {},
    "top_p": {},
    "topk": {},
    "zero_computation": {},
}


def scored(scores, starts=None):
    scores = np.asarray(scores, dtype=np.float32)
    start = [0, len(scores)] if starts is None else starts
    return LayerRouting.of_tokens(np.zeros((len(scores), 1), dtype=int), start, scores.shape[1], scores=scores)


def choose(gate, scores, *, starts=None, **sizes):
    routing = scored(scores, starts)
    setting = world(experts=routing.experts, gpus=routing.gpus, **sizes)
    return gate.begin(setting)(routing, step=0, moe_layer=0)


def normal(seed, tokens, experts):
    return np.random.default_rng(seed).standard_normal((tokens, experts)).astype(np.float32)


# Refusals


def test_all_gates_are_found_by_name():
    assert set(NEED_SCORES) | {"as_given", "hash"} <= set(kinds("gate"))


@pytest.mark.parametrize("kind", NEED_SCORES)
@pytest.mark.parametrize("known", ["tokens with gate weights", "tokens", "counts by source"])
def test_a_gate_says_that_the_trace_lacks_scores(kind, known):
    full = random_routing(1, gpus=2, experts=8, top_k=2, most=6)
    routing = {
        "tokens with gate weights": full,
        "tokens": LayerRouting.of_tokens(full.ids, full.token_start, 8),
        "counts by source": LayerRouting(experts=8, token_start=full.token_start, counts=full.counts),
    }[known]
    gate = plugin("gate", kind)().begin(world(gpus=2, **NEED_SCORES[kind]))
    with pytest.raises(FidelityError, match=f"gate '{kind}' needs the router's scores over all experts, but this routing has {known} only"):
        gate(routing, step=0, moe_layer=0)


@pytest.mark.parametrize("kind", NEED_SCORES)
def test_a_gate_names_the_token_whose_scores_are_no_numbers(kind):
    scores = normal(1, 4, 8)
    scores[2] = np.nan
    gate = plugin("gate", kind)().begin(world(**NEED_SCORES[kind]))
    with pytest.raises(FidelityError, match=rf"gate '{kind}': token 2 has .*check the recorded scores"):
        gate(scored(scores), step=0, moe_layer=0)


@pytest.mark.parametrize("kind", sorted(set(NEED_SCORES) - {"base"}))
def test_an_expert_that_the_scores_rule_out_is_not_chosen(kind):
    # Expert 3 is ruled out for all tokens. BASE needs every score.
    scores = normal(2, 16, 8)
    scores[:, 3] = -np.inf
    assert choose(plugin("gate", kind)(), scores, **NEED_SCORES[kind] | {"tokens_per_gpu": 16}).counts[0, 3] == 0


def test_gates_of_one_number_of_choices_refuse_other_models():
    with pytest.raises(PluginError, match="gate 'base' makes 1 choice per token, but the model has top_k 2"):
        Base().begin(world(top_k=2))
    with pytest.raises(PluginError, match="gate 'gshard_top2' makes 2 choices per token, but the model has top_k 4"):
        GShardTop2().begin(world(top_k=4))


@pytest.mark.parametrize("cls", [GroupLimited, LossFree])
def test_groups_that_do_not_fit_are_refused(cls):
    setting = world(experts=8, top_k=4)
    for keys, message in [
        ({"groups": 3}, "8 experts do not divide into 3 groups"),
        ({"groups": 4, "top_groups": 5}, r"top_groups \(5\) is larger than groups \(4\)"),
        ({"groups": 4, "top_groups": 1}, "1 of 4 groups hold 2 experts, but a token chooses 4; raise top_groups"),
        ({"groups": 8, "top_groups": 4}, "top2 adds up the best 2 experts of a group, but a group has 1"),
    ]:
        with pytest.raises(PluginError, match=message):
            cls(**keys).begin(setting)
    cls(groups=8, top_groups=4, group_score="max").begin(setting)


def test_quantile_refuses_what_it_cannot_share_out():
    with pytest.raises(PluginError, match="3 tokens per GPU with 2 choices cannot be shared out evenly over 8 experts"):
        Quantile().begin(world(experts=8, top_k=2, tokens_per_gpu=3))
    with pytest.raises(PluginError, match="every token has all 2 experts"):
        Quantile().begin(world(experts=2, top_k=2))


def test_numbers_out_of_reach_are_refused():
    with pytest.raises(PluginError, match=r"most \(9\) is larger than the model's experts \(8\)"):
        TopP(most=9).begin(world(experts=8))
    with pytest.raises(PluginError, match=r"active \(3\) is larger than the model's top_k \(2\)"):
        ZeroComputation(active=3.0).begin(world(top_k=2))
    with pytest.raises(SimulationError, match="did not settle within 2 rounds; raise tolerance or most_rounds"):
        choose(Sinkhorn(most_rounds=2), normal(1, 32, 8) * 4)


# Weights


def test_weights_may_be_left_as_they_are_or_scaled():
    # sigmoid(ln 3) = 3/4 and sigmoid(0) = 1/2: by default 3/5 and 2/5, as they are without normalisation, times 2 with a scale of 2.
    scores = [[np.log(3.0), 0.0, -9.0]]
    np.testing.assert_allclose(choose(TopK(scoring="sigmoid"), scores).weights, [[0.6, 0.4]], rtol=1e-6)
    np.testing.assert_allclose(choose(TopK(scoring="sigmoid", normalise=False), scores).weights, [[0.75, 0.5]], rtol=1e-6)
    np.testing.assert_allclose(choose(TopK(scoring="sigmoid", scale=2.0), scores).weights, [[1.2, 0.8]], rtol=1e-6)
    np.testing.assert_allclose(choose(TopK(scoring="sigmoid", normalise=True), scores, top_k=1).weights, [[1.0]], rtol=1e-6)


# Groups


def test_a_token_stays_in_its_best_groups():
    # Groups {0,1}, {2,3}, {4,5}. Sums of two: 8, 7, 9: the first and the last are best. Best ones: 8, 5, 4.5: the first two are.
    scores = np.asarray([[8.0, 0.0, 5.0, 2.0, 4.5, 4.5]])
    assert np.isfinite(best_groups(scores, 3, 2, 2)[0]).tolist() == [True, True, False, False, True, True]
    assert np.isfinite(best_groups(scores, 3, 2, 1)[0]).tolist() == [True, True, True, True, False, False]
    assert choose(GroupLimited(scoring="softmax", groups=3, top_groups=2), scores).ids.tolist() == [[0, 4]]
    assert choose(GroupLimited(scoring="softmax", groups=3, top_groups=2, group_score="max"), scores).ids.tolist() == [[0, 2]]
    # k // M = 2 // 2 = 1: Megatron's rule is then that of the best.
    assert choose(GroupLimited(scoring="softmax", groups=3, top_groups=2, group_score="megatron"), scores).ids.tolist() == [[0, 2]]


def test_groups_are_those_of_the_model_by_default():
    scores = normal(3, 64, 8)
    routing = choose(GroupLimited(), scores, groups=4, top_groups=1)
    assert (routing.ids[:, 0] // 2 == routing.ids[:, 1] // 2).all()
    free = choose(GroupLimited(), scores)  # a model of one group
    np.testing.assert_array_equal(free.ids, choose(TopK(scoring="sigmoid"), scores).ids)


# Noise


@pytest.mark.parametrize(("law", "variance"), [("normal", 1.0), ("gumbel", np.pi**2 / 6), ("uniform", 1 / 3)])
def test_noise_has_the_variance_of_its_law(law, variance):
    # Two experts of equal logits: the noisy difference has twice the variance of the noise times amount squared. 40000 tokens: the
    # relative error of a variance is about sqrt(k / n), k of order 5: 3 sigma is 0.03.
    routing = choose(NoisyTopK(law=law, amount=0.5), np.zeros((40000, 2)), top_k=2)
    logit = np.log(routing.weights[:, 0].astype(float) / routing.weights[:, 1])
    signed = np.where(routing.ids[:, 0] == 0, logit, -logit)
    assert np.var(signed) == pytest.approx(2 * variance * 0.25, rel=0.05)
    assert abs(np.mean(routing.ids[:, 0] == 0) - 0.5) < 0.0125  # 5 sigma


def test_noise_is_one_over_the_number_of_experts_unless_told():
    routing = choose(NoisyTopK(), np.zeros((40000, 4)), top_k=4)
    spread = np.log(routing.weights.astype(float)).var(axis=1).mean()
    assert spread == pytest.approx(3 / 4 / 16, rel=0.05)  # a variance over 4 values is 3/4 of the noise's 1/16


def test_weights_are_noisy_or_clean():
    scores = normal(4, 50, 8)
    clean = choose(NoisyTopK(amount=1.0, clean_weights=True, pre_softmax=True), scores)
    expected = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(clean.weights, np.take_along_axis(expected, clean.ids, axis=1), rtol=1e-5)
    noisy = choose(NoisyTopK(amount=1.0, pre_softmax=True), scores)
    np.testing.assert_array_equal(noisy.ids, clean.ids)  # the same noise
    assert np.abs(noisy.weights - clean.weights).max() > 0.05
    none = choose(NoisyTopK(amount=0.0), scores)
    np.testing.assert_array_equal(none.ids, choose(TopK(), scores).ids)


def test_jitter_of_the_input_shows_in_the_logits_as_said():
    # The thing itself: 2000 elements of input, a random router matrix, 400 draws of the jitter.
    rng = np.random.default_rng(6)
    inputs, matrix = rng.standard_normal(2000), rng.standard_normal((2000, 64)) / 40
    moved = np.stack([(inputs * rng.uniform(0.9, 1.1, 2000)) @ matrix for _ in range(400)])
    true = moved.std(axis=0).mean()
    said = jitter_of_logits((inputs @ matrix)[None, :], 0.1)
    # The standard deviation over 64 logits scatters by 1 / sqrt(128) = 9 %.
    assert said.shape == (1, 1)
    assert float(said[0, 0]) == pytest.approx(true, rel=0.25)
    # By hand: logits 2 and 4 have standard deviation 1; a ruled-out expert does not count.
    assert jitter_of_logits(np.asarray([[2.0, 4.0, -np.inf]]), 0.3)[0, 0] == pytest.approx(0.3 / np.sqrt(3))
    scores = normal(7, 40, 8)
    np.testing.assert_array_equal(choose(InputJitter(epsilon=0.0), scores).ids, choose(TopK(), scores).ids)
    assert (choose(InputJitter(epsilon=0.9), scores).ids != choose(TopK(), scores).ids).any()


def test_gshard_uses_its_second_expert_with_twice_its_weight():
    # Logits ln 4 and ln 1: weights 4/5 and 1/5, so the second is used with probability 2/5. 20000 tokens: 5 sigma = 0.0173.
    routing = choose(GShardTop2(), np.tile([np.log(4.0), 0.0, -9.0], (20000, 1)))
    used = routing.ids[:, 1] >= 0
    assert abs(used.mean() - 0.4) < 0.0173
    np.testing.assert_allclose(routing.weights[:, 0], 0.8, rtol=1e-6)
    np.testing.assert_allclose(routing.weights[:, 1], np.where(used, 0.2, 0.0), rtol=1e-6)
    assert routing.counts.tolist() == [[20000, used.sum(), 0]]
    # Equal logits: 2 g2 = 1 exceeds every draw.
    assert (choose(GShardTop2(), np.zeros((1000, 3))).ids[:, 1] == 1).all()


# A varying number of choices


def test_experts_choose_tokens():
    # C = ceil(3 * 1 / 3) = 1: expert 0 takes token 0 (0.6), expert 1 token 1 (0.8), expert 2 the first of three equal tokens (0.1).
    scores = np.log([[0.6, 0.3, 0.1], [0.1, 0.8, 0.1], [0.3, 0.6, 0.1]])
    routing = choose(ExpertChoice(factor=1.0), scores)
    assert routing.ids.tolist() == [[0, 2], [1, -1], [-1, -1]]
    np.testing.assert_allclose(routing.weights, [[0.6, 0.1], [0.8, 0.0], [0.0, 0.0]], rtol=1e-6)
    assert routing.counts.tolist() == [[1, 1, 1]]


def test_experts_choose_on_each_gpu_or_among_all():
    # Expert 0 likes the tokens of GPU 0 best. On each GPU: one of each. Among all four tokens (C = 2): both of GPU 0.
    scores = np.asarray([[3.0, 0.0], [2.0, 0.0], [1.0, 0.0], [0.0, 0.0]])
    each = choose(ExpertChoice(factor=1.0), scores, starts=[0, 2, 4])
    assert each.counts.tolist() == [[1, 1], [1, 1]]
    for scope in ("group", "batch"):
        among = choose(ExpertChoice(factor=1.0, scope=scope), scores, starts=[0, 2, 4])
        assert among.counts.tolist() == [[2, 0], [0, 2]]
    two_groups = choose(ExpertChoice(factor=1.0, scope="group"), scores, starts=[0, 2, 4], ep=1)
    assert two_groups.counts.tolist() == [[1, 1], [1, 1]]


def test_a_gpu_without_tokens_is_left_out():
    for gate in (ExpertChoice(), Sinkhorn(), TopP(), ZeroComputation(), Base()):
        routing = choose(gate, normal(1, 6, 4), starts=[0, 0, 6, 6], top_k=1)
        assert routing.counts[0].tolist() == routing.counts[2].tolist() == [0, 0, 0, 0]


def test_top_p_takes_the_fewest_experts_that_are_sure_enough():
    scores = np.log([[0.5, 0.3, 0.2], [0.1, 0.1, 0.8], [1 / 3, 1 / 3, 1 / 3]])
    routing = choose(TopP(mass=0.75), scores)
    assert routing.ids.tolist() == [[0, 1, -1], [2, -1, -1], [0, 1, 2]]
    np.testing.assert_allclose(routing.weights, [[0.5, 0.3, 0], [0.8, 0, 0], [1 / 3] * 3], rtol=1e-6)
    np.testing.assert_allclose(choose(TopP(mass=0.75, normalise=True), scores).weights.sum(axis=1), 1, rtol=1e-6)
    assert choose(TopP(mass=0.75, most=2), scores).ids.tolist() == [[0, 1], [2, -1], [0, 1]]
    # Two halves are exact in binary: the first is enough for 0.5.
    assert choose(TopP(mass=0.5), [[0.0, 0.0, -np.inf]]).ids.tolist() == [[0]]
    # All of the mass: every expert that may be chosen, also where rounding leaves the sum below 1.
    scores = normal(8, 200, 8)
    scores[:, 5] = -np.inf
    assert choose(TopP(mass=1.0), scores).counts[0, 5] == 0


def test_zero_computation_choices_are_neither_sent_nor_counted():
    # Logits of the drawn experts are 0 exactly; the model's are 1 and -1: the best two of three are expert 0 and a drawn one.
    routing = choose(ZeroComputation(zero_experts=1, spread=0.0), [[1.0, -1.0]] * 5)
    assert routing.ids.tolist() == [[0, -1]] * 5
    assert routing.counts.tolist() == [[5, 0]]
    weight = np.e / (np.e + 1 + 1 / np.e)  # of three experts
    np.testing.assert_allclose(routing.weights, [[weight, 0.0]] * 5, rtol=1e-6)


def test_the_bias_of_zero_computation_moves_towards_the_active_number():
    # Drawn experts of logit 3 win nearly always at first; the bias raises the model's until a token has 1.5 of 2.
    gate = ZeroComputation(zero_experts=4, offset=3.0, rate=0.5, active=1.5).begin(world(experts=8, moe_layers=1))
    active = [(gate(scored(normal(step, 500, 8)), step=step, moe_layer=0).ids >= 0).sum() / 500 for step in range(60)]
    assert active[0] < 0.6
    assert np.mean(active[-10:]) == pytest.approx(1.5, abs=0.15)
    # Without a rate nothing moves.
    fixed = ZeroComputation(zero_experts=4, offset=3.0).begin(world(experts=8))
    assert all((fixed(scored(normal(step, 500, 8)), step=step, moe_layer=0).ids >= 0).sum() / 500 < 0.8 for step in range(3))


# Words


def test_a_word_always_has_the_same_experts():
    words = np.asarray([3, 0, 3, 2, 3])
    setting = world(experts=8, top_k=2, vocabulary=4)
    gate = Hash().begin(setting)
    routing = LayerRouting.of_tokens(np.zeros((5, 1), dtype=int), [0, 5], 8, vocabulary_ids=words)
    ids = gate(routing, step=0, moe_layer=0).ids
    assert ids[0].tolist() == ids[2].tolist() == ids[4].tolist()
    np.testing.assert_array_equal(gate(routing, step=7, moe_layer=0).ids, ids)
    np.testing.assert_array_equal(gate(routing, step=0, moe_layer=0).weights, 0.5)
    assert (gate(routing, step=0, moe_layer=1).ids != ids).any()  # another table


def test_weights_of_words_come_from_the_scores():
    # Experts of the only word, whichever they are, have softplus 1 and softplus 4 by their logits; see the square root of softplus above.
    setting = world(experts=2, top_k=2, vocabulary=1)
    scores = np.asarray([[np.log(np.e - 1), np.log(np.exp(4) - 1)]])
    routing = LayerRouting.of_tokens(np.zeros((1, 1), dtype=int), [0, 1], 2, scores=scores, vocabulary_ids=np.zeros(1, dtype=int))
    answer = Hash().begin(setting)(routing, step=0, moe_layer=0)
    assert dict(zip(answer.ids[0].tolist(), answer.weights[0].tolist(), strict=True)) == pytest.approx({0: 1 / 3, 1: 2 / 3}, rel=1e-6)


def test_hash_refuses_what_it_does_not_know():
    setting = world(experts=8, vocabulary=4)
    with pytest.raises(FidelityError, match=r"gate 'hash' .*needs the vocabulary id of each token, but .* scores without them"):
        Hash().begin(setting)(scored(normal(1, 3, 8)), step=0, moe_layer=0)
    beyond = LayerRouting.of_tokens(np.zeros((2, 1), dtype=int), [0, 2], 8, vocabulary_ids=np.asarray([3, 4]))
    with pytest.raises(FidelityError, match="token 1 has the vocabulary id 4, but there are words 0 to 3 only"):
        Hash().begin(setting)(beyond, step=0, moe_layer=0)
    with pytest.raises(PluginError, match="does not say how many words it knows; write vocabulary"):
        Hash().begin(world())
    with pytest.raises(PluginError, match="unknown gate 'topp'"):
        Hash(then="topp").begin(setting)
    counts = LayerRouting(experts=8, token_start=[0, 3], counts=np.ones((1, 8), dtype=int))
    with pytest.raises(FidelityError, match="gate 'hash' needs to know the experts of each token"):
        Hash(words="zipf").begin(setting)(counts, step=0, moe_layer=0)


def test_layers_after_the_first_ones_have_another_gate():
    scores = normal(2, 30, 8)
    setting = world(experts=8, moe_layers=3, vocabulary=50, hash_layers=1)
    gate = Hash(words="zipf", then="topk").begin(setting)
    plain = choose(TopK(), scores).ids
    assert (gate(scored(scores), step=0, moe_layer=0).ids != plain).any()
    np.testing.assert_array_equal(gate(scored(scores), step=0, moe_layer=1).ids, plain)
    everywhere = Hash(words="zipf", then="topk", layers=2).begin(setting)
    assert (everywhere(scored(scores), step=0, moe_layer=1).ids != plain).any()


def test_frequent_words_make_frequent_experts():
    np.testing.assert_allclose(zipf(2, 1.0), [2 / 3, 1 / 3])
    words = zipf_words(np.random.default_rng(1), 30000, 3, 1.0)
    # 6/11, 3/11, 2/11; 5 sigma = 0.0144.
    np.testing.assert_allclose(np.bincount(words) / 30000, [6 / 11, 3 / 11, 2 / 11], atol=0.0144)


def test_tables_have_distinct_experts_all_alike():
    table = random_table(np.random.default_rng(2), 30000, 5, 3)
    assert (np.diff(np.sort(table, axis=1), axis=1) > 0).all()
    np.testing.assert_allclose(np.bincount(table.ravel()) / 30000, 3 / 5, atol=0.0142)  # 5 sigma
    # Frequencies 12 : 6 : 4 : 3 to two experts: 12 | 6, 4, and the last goes to the second again (10 < 12).
    table = balanced_table(np.random.default_rng(2), 4, 2, 1, 1.0)[:, 0].tolist()
    assert table == [table[0], 1 - table[0], 1 - table[0], 1 - table[0]]


def test_words_are_new_in_every_step_and_the_same_in_all_layers():
    # A table of one layer, read in two steps; and balanced tables of two layers, whose experts differ by name only.
    tokens = scored(normal(2, 60, 8))
    gate = Hash(words="zipf", vocabulary=30).begin(world(experts=8, top_k=1))
    assert (gate(tokens, step=0, moe_layer=0).ids != gate(tokens, step=1, moe_layer=0).ids).any()
    gate = Hash(words="zipf", vocabulary=8, table="balanced", exponent=0.0).begin(world(experts=8, top_k=1))
    first, second = (gate(tokens, step=0, moe_layer=layer).ids[:, 0] for layer in (0, 1))
    names = dict(zip(first.tolist(), second.tolist(), strict=True))
    assert [names[expert] for expert in first.tolist()] == second.tolist()
    assert (first != second).any()


# Balanced assignment


def test_an_assignment_is_worth_as_much_as_any():
    # Both tokens like expert 0 better; token 1 loses less (1) than token 0 (5) by going to expert 1.
    assert balanced_assignment(np.asarray([[9.0, 4.0], [8.0, 7.0]])).tolist() == [0, 1]
    assert balanced_assignment(np.zeros((4, 2))).tolist() == [0, 1, 0, 1]
    assert balanced_assignment(np.ones((3, 1))).tolist() == [0, 0, 0]
    # Seven tokens, three experts: three places each, and nobody has to leave the expert that all like.
    assert np.bincount(balanced_assignment(np.tile([5.0, 0.0, -5.0], (7, 1)))).tolist() == [3, 3, 1]


def test_base_weighs_by_the_sigmoid():
    routing = choose(Base(), [[np.log(3.0), 0.0], [0.0, np.log(3.0)]], top_k=1)
    assert routing.ids.tolist() == [[0], [1]]
    np.testing.assert_allclose(routing.weights, 0.75, rtol=1e-6)


def test_balanced_gates_balance_in_training_only():
    scores = normal(5, 64, 8) + np.linspace(0, 2, 8)
    greedy = choose(TopK(), scores, top_k=1).ids
    for gate in (Base(), Sinkhorn()):
        np.testing.assert_array_equal(choose(gate, scores, top_k=1, phase="decode").ids, greedy)
        trained = choose(gate, scores, top_k=1).counts[0]
        assert trained.max() <= np.bincount(greedy[:, 0]).max() / 2


def test_sinkhorn_does_not_fill_up_with_experts_that_are_ruled_out():
    with pytest.raises(FidelityError, match=r"gate 'sinkhorn': token 0 has no 2\. expert with a finite score"):
        choose(Sinkhorn(), [[1.0, -np.inf, -np.inf]] * 3)


def test_sinkhorn_weighs_by_the_logits_as_they_were():
    scores = normal(5, 8, 4)
    routing = choose(Sinkhorn(), scores)
    expected = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(routing.weights, np.take_along_axis(expected, routing.ids, axis=1), rtol=1e-5)
    routing = choose(Sinkhorn(), scores, top_k=1)
    np.testing.assert_allclose(routing.weights, 1 / (1 + np.exp(-np.take_along_axis(scores, routing.ids, axis=1))), rtol=1e-5)


# Biases


def run_of(gate, **sizes):
    return gate.begin(world(experts=2, top_k=1, moe_layers=2, **sizes))


SKEWED = scored([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
"""Loads 3 and 1: mean 2."""


def bias_after(run, layer=0):
    """The bias that the next step will see."""
    return run.memory.at(10**6, layer).tolist()


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"rate": 0.25}, [-0.25, 0.25]),
        ({"rate": 0.25, "update": "proportional"}, [-0.125, 0.125]),  # (2 - 3) / 2 and (2 - 1) / 2
        ({"rate": 0.0}, [0.0, 0.0]),
    ],
)
def test_the_bias_follows_the_load(keys, expected):
    run = run_of(LossFree(**keys))
    run(SKEWED, step=0, moe_layer=0)
    assert bias_after(run) == expected
    assert bias_after(run, layer=1) == [0.0, 0.0]  # the other layer has seen nothing


def test_a_centred_bias_has_mean_zero():
    # Loads 2, 1, 0 of three experts, mean 1: signs -1, 0, 1, mean 0. Loads 3, 0, 0: signs -1, 1, 1, mean 1/3.
    run = LossFree(rate=0.3, centre=True).begin(world(experts=3, top_k=1))
    run(scored([[1.0, 0.0, 0.0]] * 3), step=0, moe_layer=0)
    np.testing.assert_allclose(bias_after(run), [-0.4, 0.2, 0.2], rtol=1e-6)


def test_weights_are_those_without_the_bias():
    run = run_of(LossFree(rate=0.5, normalise=False))
    run(SKEWED, step=0, moe_layer=0)
    routing = run(scored([[np.log(3.0), 0.0]]), step=1, moe_layer=0)
    assert routing.ids.tolist() == [[1]]  # 0.75 - 0.5 against 0.5 + 0.5
    np.testing.assert_allclose(routing.weights, [[0.5]], rtol=1e-6)


def kept_of(routing, counts):
    left = LayerRouting(experts=2, token_start=routing.token_start, counts=[counts])
    return Kept(routing=left, dropped=routing.counts - left.counts, padding=np.zeros((1, 2)))


def test_loads_are_counted_before_or_after_drops():
    # 3 and 1 are chosen; 1 and 1 are kept: balanced, so the bias stays.
    for count, expected in (("before", [-0.25, 0.25]), ("after", [0.0, 0.0])):
        run = run_of(LossFree(rate=0.25, count=count))
        routing = run(SKEWED, step=0, moe_layer=0)
        run.learn(kept_of(routing, [1, 1]), step=0, moe_layer=0)
        assert bias_after(run) == expected


def test_a_gate_that_is_never_told_of_drops_says_so():
    run = run_of(LossFree(count="after"))
    run(SKEWED, step=0, moe_layer=0)
    run(SKEWED, step=0, moe_layer=0)  # asking again about the same step is no reason to worry
    with pytest.raises(PluginError, match="must learn what was dropped in step 0, but nobody said"):
        run(SKEWED, step=1, moe_layer=0)


def test_a_step_counts_once_however_often_it_is_asked_for():
    # A bias of 0.1 for either expert changes no choice: 0.73 - 0.1 is still more than 0.5 + 0.1.
    run = run_of(LossFree(rate=0.1))
    for _ in range(3):
        run(SKEWED, step=0, moe_layer=0)
    run(SKEWED, step=1, moe_layer=0)
    run(SKEWED, step=1, moe_layer=0)
    np.testing.assert_allclose(bias_after(run), [-0.2, 0.2], rtol=1e-6)


def test_what_was_learned_counts_once_however_often_the_next_step_is_asked_for():
    run = run_of(LossFree(rate=0.1, count="after"))
    routing = run(SKEWED, step=0, moe_layer=0)
    run.learn(kept_of(routing, [3, 1]), step=0, moe_layer=0)
    for _ in range(3):
        run(SKEWED, step=1, moe_layer=0)
    np.testing.assert_allclose(run.memory.vectors[0], [-0.1, 0.1], rtol=1e-6)


def test_a_step_without_tokens_moves_no_bias():
    run = run_of(LossFree(rate=0.25))
    run(scored(np.zeros((0, 2))), step=0, moe_layer=0)
    assert bias_after(run) == [0.0, 0.0]


def test_a_fair_price_is_exceeded_by_a_fair_share():
    # The third largest of 5, 4, 3, 1 is 3: two tokens pay more.
    assert fair_price(np.asarray([[1.0], [5.0], [3.0], [4.0]]), 2).tolist() == [3.0]


def test_quantile_balances_what_it_saw_last_and_forgets_the_rest():
    scores = normal(9, 512, 8) + np.linspace(-1, 1, 8)
    sizes = {"experts": 8, "tokens_per_gpu": 256, "gpus": 2}
    for ema in (0.0, 0.5):
        run = Quantile(scoring="softmax", ema=ema).begin(world(**sizes))
        steps = [run(scored(scores, [0, 256, 512]), step=step, moe_layer=0).counts.sum(axis=0) for step in range(12)]
        assert steps[0].max() > 200
        assert abs(steps[-1] - 128).max() <= 8
        assert float(run.memory.vectors[0].mean()) == pytest.approx(0, abs=1e-6)
    # Averages over GPUs: a GPU with too few tokens for a share has no say, and no tokens no bias.
    run = Quantile().begin(world(**sizes))
    run(scored(scores[:3], [0, 3, 3]), step=0, moe_layer=0)
    assert bias_after(run) == [0.0] * 8


def test_fields_are_read_like_yaml():
    gate = build(plugin("gate", "loss_free"), {"rate": 0.01, "update": "proportional", "count": "after", "groups": 1})
    assert gate == LossFree(rate=0.01, update="proportional", count="after", groups=1)
    assert build(plugin("gate", "topk"), {"normalise": None}) == TopK()
