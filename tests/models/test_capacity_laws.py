"""Laws that every capacity rule obeys, and a slow twin that does what the rules say, route by route."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from routings import routings, world

from moesim.models.capacity.deepspeed import DeepSpeed
from moesim.models.capacity.dropless import Dropless
from moesim.models.capacity.megatron import Megatron

FACTORS = st.sampled_from([0.1, 0.5, 0.8, 1.0, 1.25, 2.0, 9.0])
CAPPED = st.one_of(
    st.builds(Megatron, factor=FACTORS, drop=st.sampled_from(["probs", "position"]), pad_to_capacity=st.booleans()),
    st.builds(
        DeepSpeed,
        factor=FACTORS,
        min_capacity=st.integers(0, 4),
        drop=st.sampled_from(["auto", "probs", "position"]),
        drop_tokens=st.booleans(),
    ),
)


def limit(rule, routing):
    return rule.begin(world(gpus=routing.gpus, experts=routing.experts, top_k=routing.ids.shape[1]))(routing, step=3, moe_layer=1)


@given(routing=routings(), rule=st.one_of(CAPPED, st.just(Dropless())))
@settings(max_examples=100)
def test_l1_tokens_kept_plus_dropped(routing, rule):
    kept = limit(rule, routing)
    np.testing.assert_array_equal(kept.routing.counts + kept.dropped, routing.counts)
    assert kept.dropped.min() >= 0
    # The routes themselves say the same as the counts, and none was moved or invented.
    rebuilt = type(routing).of_tokens(kept.routing.ids, routing.token_start, routing.experts)
    np.testing.assert_array_equal(rebuilt.counts, kept.routing.counts)
    stays = kept.routing.ids >= 0
    np.testing.assert_array_equal(kept.routing.ids[stays], routing.ids[stays])
    assert (kept.routing.weights[~stays] == 0).all()
    alive, before = stays.any(axis=1), (routing.ids >= 0).any(axis=1)
    assert kept.fully_dropped == np.count_nonzero(before & ~alive)


@given(routing=routings(), rule=CAPPED)
@settings(max_examples=50)
def test_kept_never_exceeds_capacity_and_padding_fills_it(routing, rule):
    kept = limit(rule, routing)
    assert (kept.routing.counts <= kept.capacity[:, None]).all()
    # A route is dropped only if its expert is full.
    assert (kept.routing.counts == kept.capacity[:, None])[kept.dropped > 0].all()
    rows = kept.routing.counts + kept.padding
    if isinstance(rule, DeepSpeed):
        assert (rows == kept.capacity[:, None]).all()
    elif rule.pad_to_capacity:
        assert (rows == np.minimum(kept.capacity, np.diff(routing.token_start))[:, None]).all()
    else:
        assert kept.padding.sum() == 0


@given(routing=routings(gaps=False), more=st.floats(1.0, 3.0), drop=st.sampled_from(["probs", "position"]))
@settings(max_examples=50)
def test_l15_a_factor_of_experts_over_choices_never_drops(routing, more, drop):
    factor = routing.experts / routing.ids.shape[1] * more
    for rule in (Megatron(factor=factor, drop=drop), DeepSpeed(factor=factor, min_capacity=0, drop=drop)):
        kept = limit(rule, routing)
        assert kept.dropped.sum() == 0
        np.testing.assert_array_equal(kept.routing.ids, routing.ids)


@given(routing=routings(), low=st.floats(0.05, 3.0), high=st.floats(0.05, 3.0))
@settings(max_examples=50)
def test_drops_fall_when_the_factor_grows(routing, low, high):
    low, high = sorted((low, high))
    for make in (lambda factor: Megatron(factor=factor), lambda factor: DeepSpeed(factor=factor, min_capacity=0, drop="probs")):
        tight, wide = limit(make(low), routing), limit(make(high), routing)
        assert (tight.dropped >= wide.dropped).all()
        # What the tighter rule keeps, the wider one keeps too.
        assert (wide.routing.ids[tight.routing.ids >= 0] >= 0).all()


def twin(routing, capacity, order):
    """Walk every queue in Python: sort its routes by what the order says, keep the first C."""
    keep = np.zeros(routing.ids.shape, dtype=bool)
    for source in range(routing.gpus):
        tokens = range(routing.token_start[source], routing.token_start[source + 1])
        for expert in range(routing.experts):
            queue = []
            for token in tokens:
                best_first = sorted(range(routing.ids.shape[1]), key=lambda slot: (-routing.weights[token, slot], slot))
                for slot in range(routing.ids.shape[1]):
                    if routing.ids[token, slot] == expert:
                        weight = routing.weights[token, slot]
                        key = {
                            "probs": (-weight, token),
                            "position": (token, slot),
                            "slot_major": (best_first.index(slot), token),
                        }[order]
                        queue.append((key, token, slot))
            for _, token, slot in sorted(queue)[: capacity[source]]:
                keep[token, slot] = True
    return keep


@given(routing=routings(), factor=FACTORS, order=st.sampled_from(["probs", "position"]))
@settings(max_examples=50)
def test_megatron_equals_its_slow_twin(routing, factor, order):
    kept = limit(Megatron(factor=factor, drop=order), routing)
    np.testing.assert_array_equal(kept.routing.ids >= 0, twin(routing, kept.capacity, order))


@pytest.mark.parametrize(("top_k", "drop", "order"), [(2, "auto", "slot_major"), (4, "auto", "probs"), (3, "position", "position")])
@given(data=st.data())
@settings(max_examples=30)
def test_deepspeed_equals_its_slow_twin(top_k, drop, order, data):
    routing = data.draw(routings(top_k=top_k))
    kept = limit(DeepSpeed(factor=data.draw(FACTORS), min_capacity=1, drop=drop), routing)
    expected = twin(routing, kept.capacity, order)
    np.testing.assert_array_equal(kept.routing.ids >= 0, expected)
    total = np.where(expected, routing.weights, 0).sum(axis=1)
    np.testing.assert_allclose(kept.routing.weights.sum(axis=1), total > 0, rtol=1e-6)
