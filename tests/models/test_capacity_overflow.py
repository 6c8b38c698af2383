"""Overflow to the next best expert: by hand, as a law, and against a slow twin that walks route by route."""

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from routings import counts_of, random_routing, world

from moesim.base.errors import FidelityError
from moesim.facts.routing import LayerRouting
from moesim.models.capacity.next_best import NextBest


def limit(rule, routing):
    return rule.begin(world(gpus=routing.gpus, experts=routing.experts, top_k=routing.ids.shape[1]))(routing, step=0, moe_layer=0)


# Four tokens of one choice, four experts: C = 1. All want expert 0; then tokens 1 to 3 want experts 1, 1 and 2.
SCORES = np.asarray([[9.0, 1, 2, 3], [9, 3, 2, 1], [9, 3, 1, 2], [9, 1, 3, 2]])
ALL_FOR_ONE = LayerRouting.of_tokens(np.zeros((4, 1), dtype=np.uint8), [0, 4], 4, weights=np.full((4, 1), 0.9), scores=SCORES)


def test_two_stages_offer_a_route_once_more():
    kept = limit(NextBest(), ALL_FOR_ONE)
    # Token 1 finds room at expert 1, token 2 comes too late there, token 3 finds room at expert 2.
    assert kept.routing.ids.ravel().tolist() == [0, 1, -1, 2]
    assert kept.routing.counts.tolist() == [[1, 1, 1, 0]]
    assert kept.dropped.tolist() == [[1, 0, 0, 0]]
    assert kept.moved.tolist() == [[-2, 1, 1, 0]]
    assert (kept.capacity.tolist(), kept.fully_dropped, kept.padding.sum()) == ([1], 1, 0)
    # The weight of expert 1 under the same softmax: exp(3 - 9) of 0.9.
    np.testing.assert_allclose(kept.routing.weights.ravel(), [0.9, 0.9 * math.exp(-6), 0, 0.9 * math.exp(-6)], rtol=1e-6)


def test_more_stages_ask_further_and_one_stage_drops():
    assert limit(NextBest(stages=3), ALL_FOR_ONE).routing.ids.ravel().tolist() == [0, 1, 3, 2]
    one = limit(NextBest(stages=1), ALL_FOR_ONE)
    assert one.routing.ids.ravel().tolist() == [0, -1, -1, -1]
    assert one.moved is None
    assert one.dropped.tolist() == [[3, 0, 0, 0]]


def test_spare_rows_are_padded_on_request():
    kept = limit(NextBest(pad_to_capacity=True), ALL_FOR_ONE)
    assert (kept.routing.counts + kept.padding).tolist() == [[1, 1, 1, 1]]


def test_weights_decide_in_every_stage():
    # Tokens 0 and 1 lose expert 0 to token 2, and both want expert 1 next: new weights 0.3 exp(-1) and 0.5 exp(-2): 0.11 and 0.07.
    scores = np.asarray([[5.0, 4, 0], [5, 3, 0], [5, 1, 0]])
    routing = LayerRouting.of_tokens(np.zeros((3, 1), dtype=int), [0, 3], 3, weights=np.asarray([[0.3], [0.5], [0.8]]), scores=scores)
    assert limit(NextBest(drop="probs"), routing).routing.ids.ravel().tolist() == [1, -1, 0]
    assert limit(NextBest(drop="position"), routing).routing.ids.ravel().tolist() == [0, 1, -1]


def test_the_stronger_choice_of_a_token_asks_first_and_no_expert_twice():
    # Both choices of token 1 are full (C = ceil(4 / 6) = 1); its slots are reversed, so its first choice is expert 0, in slot 1.
    scores = np.asarray([[9.0, 8, 0, 0, 0, 0], [9, 8, 1, 5, 4, 0]])
    ids, weights = np.asarray([[0, 1], [1, 0]]), np.asarray([[0.7, 0.3], [0.3, 0.7]])
    kept = limit(NextBest(), LayerRouting.of_tokens(ids, [0, 2], 6, weights=weights, scores=scores))
    assert kept.routing.ids.tolist() == [[0, 1], [4, 3]]


def test_experts_that_may_not_be_chosen_are_not_asked():
    scores = np.where(SCORES == 3, -np.inf, SCORES)
    routing = dataclasses.replace(ALL_FOR_ONE, scores=scores)
    # The best of tokens 1, 2 and 3 that is left: 2, 3 and 3.
    assert limit(NextBest(), routing).routing.ids.ravel().tolist() == [0, 2, 3, -1]
    closed = dataclasses.replace(ALL_FOR_ONE, scores=np.where(SCORES < 9, -np.inf, SCORES))
    assert limit(NextBest(stages=9), closed).dropped.sum() == 3


def test_scores_are_needed_only_where_something_overflows():
    bare = dataclasses.replace(ALL_FOR_ONE, scores=None)
    with pytest.raises(
        FidelityError, match=r"capacity rule 'next_best' \(stages: 1, which drops at once, needs none\) needs the router's scores"
    ):
        limit(NextBest(), bare)
    assert limit(NextBest(factor=4.0), bare).moved is None
    with pytest.raises(FidelityError, match="drop: probs needs the gate weight"):
        limit(NextBest(drop="probs"), dataclasses.replace(ALL_FOR_ONE, weights=None))
    assert limit(NextBest(), dataclasses.replace(ALL_FOR_ONE, weights=None)).routing.weights is None
    rule = NextBest(factor=4.0).begin(world(experts=4, top_k=1))
    assert rule(counts_of(ALL_FOR_ONE), step=0, moe_layer=0).dropped.sum() == 0


@st.composite
def scored(draw):
    """A routing whose scores agree with its choices, with equal weights and missing choices."""
    routing = draw(
        st.builds(
            random_routing,
            st.integers(0, 2**32 - 1),
            gpus=st.integers(1, 3),
            experts=st.integers(4, 7),
            top_k=st.integers(1, 3),
            most=st.integers(0, 10),
            gaps=st.booleans(),
        )
    )
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    return dataclasses.replace(routing, scores=rng.permuted(np.tile(np.arange(float(routing.experts)), (routing.tokens, 1)), axis=1))


RULES = st.builds(
    NextBest,
    factor=st.sampled_from([0.2, 0.5, 0.8, 1.0, 1.25]),
    stages=st.integers(1, 5),
    drop=st.sampled_from(["position", "probs"]),
    pad_to_capacity=st.booleans(),
)


@given(routing=scored(), rule=RULES)
@settings(max_examples=60)
def test_l1_tokens_moved_kept_and_dropped(routing, rule):
    kept = limit(rule, routing)
    moved = np.zeros_like(routing.counts) if kept.moved is None else kept.moved
    np.testing.assert_array_equal(kept.routing.counts + kept.dropped, routing.counts + moved)
    assert not moved.sum(axis=1).any()
    ids = np.asarray(kept.routing.ids)
    np.testing.assert_array_equal(type(routing).of_tokens(ids, routing.token_start, routing.experts).counts, kept.routing.counts)
    assert (ids[routing.ids < 0] < 0).all()  # no choice comes out of nothing
    ordered = np.sort(ids, axis=1)
    assert not ((ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] >= 0)).any()  # and no expert twice
    assert (kept.routing.counts + kept.padding <= kept.capacity[:, None]).all()
    assert (kept.routing.weights[ids < 0] == 0).all()
    # It never keeps fewer than a rule that drops at once.
    assert kept.dropped.sum() <= limit(dataclasses.replace(rule, stages=1), routing).dropped.sum()


def twin(routing, rule, capacity):
    """Offer every homeless route, one after another."""
    ids, weights = np.asarray(routing.ids), np.asarray(routing.weights)
    result, new = np.full(ids.shape, -1), np.array(weights)
    load = np.zeros((routing.gpus, routing.experts), dtype=int)
    source = routing.source_of_token()
    routes = [(token, slot) for token, slot in np.ndindex(ids.shape) if ids[token, slot] >= 0]
    asked = {token: {int(expert) for expert in ids[token] if expert >= 0} for token in range(len(ids))}
    offers = {route: int(ids[route]) for route in routes}
    for _ in range(rule.stages):
        key = (lambda route: route) if rule.drop == "position" else (lambda route: (-new[route], route))
        if rule.drop == "probs" and _ > 0:  # equal new weights: in the order of a token's choices, as they asked
            key = lambda route: (-new[route], route[0], -weights[route], route[1])  # noqa: E731
        for token, slot in sorted(offers, key=key):
            expert = offers[token, slot]
            if load[source[token], expert] < capacity[source[token]]:
                load[source[token], expert] += 1
                result[token, slot] = expert
        offers = {}
        for token, slot in sorted(
            (route for route in routes if result[route] < 0), key=lambda route: (route[0], -weights[route], route[1])
        ):
            left = [expert for expert in range(routing.experts) if expert not in asked[token]]
            if left:
                best = max(left, key=lambda expert: routing.scores[token, expert])
                asked[token].add(best)
                offers[token, slot] = best
                gain = routing.scores[token, best] - routing.scores[token, ids[token, slot]]
                new[token, slot] = np.float32(weights[token, slot] * np.exp(gain))
    return result


@given(routing=scored(), rule=RULES)
@settings(max_examples=60)
def test_next_best_equals_its_slow_twin(routing, rule):
    kept = limit(rule, routing)
    np.testing.assert_array_equal(kept.routing.ids, twin(routing, rule, kept.capacity))


def test_ids_that_fill_an_unsigned_byte_are_moved_alike():
    # With 256 experts a byte has no room for -1: a dropped route must not become expert 255.
    rng = np.random.default_rng(6)
    scores = rng.standard_normal((600, 256)) + rng.standard_normal(256)
    ids = np.argsort(-scores, axis=1)[:, :2]
    weights = np.full(ids.shape, 0.5)
    byte, wide = (LayerRouting.of_tokens(ids.astype(kind), [0, 600], 256, weights=weights, scores=scores) for kind in (np.uint8, np.int64))
    kept = limit(NextBest(), byte)
    np.testing.assert_array_equal(kept.routing.ids, limit(NextBest(), wide).routing.ids)
    assert kept.routing.ids.dtype.kind == "i"
    assert (kept.routing.ids < 0).sum() == kept.dropped.sum() > 0
