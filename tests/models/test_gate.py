"""Gates: which experts a token chooses, and with what weight."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from routings import counts_of, random_routing, world

from moesim.base.errors import FidelityError, PluginError
from moesim.base.registry import build, kinds, plugin
from moesim.facts.routing import Fidelity, LayerRouting
from moesim.models.gate.deepspeed_top2 import DeepSpeedTop2, two_choices
from moesim.models.gate.select import largest
from moesim.models.gate.topk import TopK


def scored(scores: object) -> LayerRouting:
    """One source; its choices are not made yet, so any will do."""
    scores = np.asarray(scores, dtype=np.float32)
    return LayerRouting.of_tokens(np.zeros((len(scores), 1), dtype=int), [0, len(scores)], scores.shape[1], scores=scores)


def choose(gate: object, scores: object, top_k: int = 2) -> LayerRouting:
    routing = scored(scores)
    return gate.begin(world(experts=routing.experts, top_k=top_k))(routing, step=0, moe_layer=0)


def test_the_three_gates_are_found_by_name():
    assert {"as_given", "deepspeed_top2", "topk"} <= set(kinds("gate"))


def test_as_given_returns_tokens_and_counts_untouched():
    routing = random_routing(1, gpus=2, experts=5, top_k=2, most=6)
    gate = plugin("gate", "as_given")().begin(world())
    assert gate(routing, step=0, moe_layer=0) is routing
    bare = counts_of(routing)
    assert gate(bare, step=0, moe_layer=0) is bare


def test_topk_takes_the_softmax_over_the_chosen_by_default():
    # Logits ln 1, ln 3, ln 2: the two best are experts 1 and 2, with weights 3/5 and 2/5.
    routing = choose(TopK(), np.log([[1.0, 3.0, 2.0]]))
    assert routing.ids.tolist() == [[1, 2]]
    np.testing.assert_allclose(routing.weights, [[0.6, 0.4]], rtol=1e-6)
    assert routing.counts.tolist() == [[0, 1, 1]]
    assert routing.fidelity is Fidelity.SCORES


def test_pre_softmax_keeps_the_probabilities_over_all_experts():
    # The same logits: 3/6 and 2/6, which do not add up to 1 unless they are normalised.
    scores = np.log([[1.0, 3.0, 2.0]])
    np.testing.assert_allclose(choose(TopK(pre_softmax=True), scores).weights, [[0.5, 1 / 3]], rtol=1e-6)
    np.testing.assert_allclose(choose(TopK(pre_softmax=True, normalise=True), scores).weights, [[0.6, 0.4]], rtol=1e-6)


def test_sigmoid_weights_are_normalised_except_for_one_choice():
    # sigmoid(ln 3) = 3/4 and sigmoid(0) = 1/2: normalised 3/5 and 2/5; a single choice keeps its 3/4 (Megatron).
    scores = [[np.log(3.0), 0.0, -200.0]]
    np.testing.assert_allclose(choose(TopK(scoring="sigmoid"), scores).weights, [[0.6, 0.4]], rtol=1e-6)
    np.testing.assert_allclose(choose(TopK(scoring="sigmoid"), scores, top_k=1).weights, [[0.75]], rtol=1e-6)


def test_square_root_of_softplus():
    # softplus(ln(e - 1)) = ln e = 1 and softplus(ln(e^4 - 1)) = 4: roots 1 and 2, normalised 1/3 and 2/3.
    routing = choose(TopK(scoring="sqrtsoftplus"), [[np.log(np.e - 1), np.log(np.exp(4) - 1), -50.0]])
    assert routing.ids.tolist() == [[1, 0]]
    np.testing.assert_allclose(routing.weights, [[2 / 3, 1 / 3]], rtol=1e-6)


def test_of_equal_scores_the_lower_expert_wins():
    assert choose(TopK(), [[1.0, 2.0, 2.0, 2.0], [0.0, 0.0, 0.0, 0.0]]).ids.tolist() == [[1, 2], [0, 1]]


@given(
    scores=st.lists(st.lists(st.integers(-2, 2), min_size=5, max_size=5), min_size=1, max_size=8),
    top_k=st.integers(1, 5),
)
@settings(max_examples=50)
def test_largest_equals_a_stable_sort(scores, top_k):
    values = np.asarray(scores, dtype=np.float32)
    np.testing.assert_array_equal(largest(values, top_k, "test"), np.argsort(-values, axis=1, kind="stable")[:, :top_k])


def test_a_gate_without_scores_refuses_by_name():
    routing = random_routing(1, gpus=1, experts=5, top_k=2, most=6)
    for gate, name in ((TopK(), "gate 'topk'"), (DeepSpeedTop2(), "gate 'deepspeed_top2'")):
        with pytest.raises(FidelityError, match=f"{name} needs the router's scores over all experts, but .* tokens with gate weights only"):
            gate.begin(world(experts=5))(routing, step=0, moe_layer=0)


@pytest.mark.parametrize("bad", [np.nan, -np.inf])
@pytest.mark.parametrize("gate", [TopK(), TopK(pre_softmax=True), DeepSpeedTop2()])
def test_scores_that_are_no_numbers_are_refused_with_the_token(gate, bad):
    # Token 0 is fine; token 1 has one finite score only.
    with pytest.raises(FidelityError, match=r"token 1 has no [12]\. expert with a finite score"):
        choose(gate, [[1.0, 2.0, 3.0], [bad, 0.0, bad]])


def test_deepspeed_top2_without_sampling_takes_the_two_best_probabilities():
    routing = choose(DeepSpeedTop2(sample_second=False), np.log([[1.0, 3.0, 2.0]]))
    assert routing.ids.tolist() == [[1, 2]]
    np.testing.assert_allclose(routing.weights, [[0.5, 1 / 3]], rtol=1e-6)


def test_noise_moves_the_second_choice_only():
    # Noise would make expert 0 the best and expert 2 the worst; the first choice stays the clean argmax, expert 1.
    logits = np.asarray([[0.0, 3.0, 2.0]], dtype=np.float32)
    assert two_choices(logits, np.asarray([[9.0, 0.0, -9.0]], dtype=np.float32)).tolist() == [[1, 0]]


def test_the_second_expert_is_a_sample_of_the_softmax_without_the_first():
    # Logits ln 6, ln 3, ln 1: first is expert 0; the second is expert 1 with probability 3/4. 20000 tokens: 5 sigma = 0.0153.
    routing = choose(DeepSpeedTop2(), np.tile(np.log([[6.0, 3.0, 1.0]]), (20000, 1)))
    assert set(routing.ids[:, 0]) == {0}
    assert abs(np.mean(routing.ids[:, 1] == 1) - 0.75) < 0.0153


def test_sampling_depends_on_seed_step_and_layer_alone():
    routing = scored(np.random.default_rng(3).standard_normal((50, 8)))
    gate = DeepSpeedTop2().begin(world(seed=5))
    again = DeepSpeedTop2().begin(world(seed=5))
    first = gate(routing, step=1, moe_layer=0).ids
    np.testing.assert_array_equal(again(routing, step=1, moe_layer=0).ids, first)
    for other in (gate(routing, step=2, moe_layer=0), gate(routing, step=1, moe_layer=1)):
        assert (other.ids != first).any()


def test_deepspeed_top2_refuses_other_models():
    with pytest.raises(PluginError, match="makes 2 choices per token, but the model has top_k 6; use gate 'topk'"):
        DeepSpeedTop2().begin(world(top_k=6))


def test_fields_are_read_like_yaml():
    gate = build(plugin("gate", "topk"), {"scoring": "sigmoid", "normalise": True})
    assert gate == TopK(scoring="sigmoid", normalise=True)
    assert dataclasses.asdict(build(plugin("gate", "deepspeed_top2"), {})) == {"sample_second": True}
