"""Laws of the capacity rules of single frameworks, and slow twins that serve route after route."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from routings import random_routing, world

from moesim.facts.routing import LayerRouting
from moesim.models.capacity.deepseek_v2 import DeepSeekV2
from moesim.models.capacity.dmoe import DMoe
from moesim.models.capacity.fastmoe import FastMoe
from moesim.models.capacity.gshard import GShard
from moesim.models.capacity.hybrid_ep import HybridEp
from moesim.models.capacity.megablocks import MegaBlocks
from moesim.models.capacity.switch import Switch
from moesim.models.capacity.tutel import Tutel
from moesim.models.capacity.vmoe import VMoe

FACTORS = st.sampled_from([0.6, 0.8, 1.0, 1.25, 2.0, 9.0])
TUTEL = st.builds(
    Tutel,
    factor=st.sampled_from([-9.0, -1.5, -1.0, 0.0, 1.0, 1.6, 3.0]),
    batch_prioritized_routing=st.booleans(),
    alignment=st.sampled_from([1, 3, 8]),
    normalize_gate=st.booleans(),
    inequivalent_tokens=st.booleans(),
)
VMOE = st.builds(VMoe, factor=FACTORS, batch_priority=st.booleans(), multiple_of=st.sampled_from([0, 2, 4]))
MEGABLOCKS = st.builds(MegaBlocks, factor=st.sampled_from([0.0, 0.3, 0.8, 1.0, 1.25, 9.0]))
HYBRID = st.builds(
    HybridEp, factor=st.sampled_from([0.2, 0.6, 1.0, 1.5, 9.0]), alignment=st.sampled_from([1, 4, 16]), pad_experts=st.booleans()
)
DEEPSEEK = st.builds(
    DeepSeekV2, factor=st.sampled_from([0.3, 0.8, 1.0, 1.5]), exempt=st.sampled_from([0.0, 0.3, 1.0]), sequence=st.integers(1, 5)
)
FASTMOE = st.builds(FastMoe, gate=st.just("gshard"), factor=FACTORS, order=st.sampled_from(["random", "position"]))
ANY_CHOICES = st.one_of(TUTEL, VMOE, MEGABLOCKS, HYBRID, DEEPSEEK, FASTMOE, st.builds(DMoe, block=st.integers(1, 9)))
ONE_CHOICE = st.one_of(
    st.builds(Switch, factor=FACTORS, min_capacity=st.integers(0, 4)),
    st.builds(FastMoe, gate=st.just("switch"), factor=FACTORS, order=st.sampled_from(["random", "position"])),
)
TWO_CHOICES = st.one_of(
    st.builds(GShard, factor=FACTORS, min_capacity=st.integers(0, 4)),
    st.builds(FastMoe, gate=st.just("dc"), factor=FACTORS, order=st.sampled_from(["random", "position"])),
)


@st.composite
def grouped(draw, *, top_k=None):
    """Draw a routing of one or two groups whose experts divide over the ranks; returns it and the ranks of a group."""
    ranks = draw(st.sampled_from([1, 2, 4]))
    routing = draw(
        st.builds(
            random_routing,
            st.integers(0, 2**32 - 1),
            gpus=st.just(ranks * draw(st.integers(1, 2))),
            experts=st.sampled_from([4, 8]),
            top_k=st.integers(1, 4) if top_k is None else st.just(top_k),
            most=st.integers(2, 12),
            gaps=st.booleans(),
        )
    )
    return routing, ranks


def limit(rule, routing, ranks, *, step=3):
    return rule.begin(world(gpus=routing.gpus, ep=ranks, experts=routing.experts, top_k=routing.ids.shape[1]))(
        routing, step=step, moe_layer=1
    )


def check_conservation(routing, rule, ranks):
    kept = limit(rule, routing, ranks)
    np.testing.assert_array_equal(kept.routing.counts + kept.dropped, routing.counts)
    assert min(kept.dropped.min(), kept.padding.min(), kept.routing.counts.min()) >= 0
    rebuilt = LayerRouting.of_tokens(kept.routing.ids, routing.token_start, routing.experts)
    np.testing.assert_array_equal(rebuilt.counts, kept.routing.counts)
    stays = kept.routing.ids >= 0
    np.testing.assert_array_equal(kept.routing.ids[stays], routing.ids[stays])
    assert (kept.routing.weights[~stays] == 0).all()
    assert kept.fully_dropped == np.count_nonzero((routing.ids >= 0).any(axis=1) & ~stays.any(axis=1))
    if kept.sent is not None:  # whatever is dropped on arrival has travelled, and nothing else
        np.testing.assert_array_equal(kept.sent.routing.ids, routing.ids)
        assert (kept.sent.dropped.sum(), kept.sent.padding.sum()) == (0, 0)
    computed = int((kept.routing.counts + kept.padding).sum())
    if kept.admitted() >= 0 and not isinstance(rule, DeepSeekV2):  # which spares some sequences whatever the room
        assert computed <= kept.admitted()
    return kept


@given(case=grouped(), rule=ANY_CHOICES)
@settings(max_examples=120)
def test_l1_tokens_kept_plus_dropped_of_every_rule(case, rule):
    check_conservation(case[0], rule, case[1])


@given(case=grouped(top_k=1), rule=ONE_CHOICE)
@settings(max_examples=40)
def test_l1_tokens_kept_plus_dropped_with_one_choice(case, rule):
    check_conservation(case[0], rule, case[1])


@given(case=grouped(top_k=2), rule=TWO_CHOICES)
@settings(max_examples=40)
def test_l1_tokens_kept_plus_dropped_with_two_choices(case, rule):
    check_conservation(case[0], rule, case[1])


@given(case=grouped(), rule=st.one_of(TUTEL, VMOE))
@settings(max_examples=50)
def test_padded_buffers_are_full_and_drop_only_then(case, rule):
    routing, ranks = case
    kept = limit(rule, routing, ranks)
    rows = np.broadcast_to(kept.capacity[:, None], kept.padding.shape)
    np.testing.assert_array_equal(kept.routing.counts + kept.padding, rows)
    assert (kept.routing.counts == rows)[kept.dropped > 0].all()


@given(case=grouped(), more=st.floats(1.0, 3.0))
@settings(max_examples=50)
def test_l15_a_factor_that_allows_everything_drops_nothing(case, more):
    routing, ranks = case
    enough = routing.experts * more  # at least E / k of the mean load, after every rounding
    for rule in (
        Tutel(factor=enough),
        Tutel(factor=0.0),
        Tutel(factor=-enough),
        VMoe(factor=enough),
        MegaBlocks(factor=enough),
        MegaBlocks(factor=0.0),
        HybridEp(factor=enough, pad_experts=True, alignment=1),
        DeepSeekV2(factor=enough, exempt=0.0),
        FastMoe(factor=enough),
        DMoe(),
    ):
        kept = limit(rule, routing, ranks)
        assert kept.dropped.sum() == 0
        np.testing.assert_array_equal(kept.routing.ids, routing.ids)


@given(case=grouped(), low=st.floats(0.6, 3.0), high=st.floats(0.6, 3.0))
@settings(max_examples=50)
def test_what_a_tight_rule_keeps_a_wide_one_keeps_too(case, low, high):
    routing, ranks = case
    low, high = sorted((low, high))
    for rule in (
        VMoe(factor=low, batch_priority=True),
        Tutel(factor=1 + low),
        MegaBlocks(factor=low + 0.4),
        HybridEp(factor=low),
        DeepSeekV2(factor=low),
        FastMoe(factor=low),
    ):
        shift = high - low
        if isinstance(rule, MegaBlocks) and np.diff(routing.token_start).min() < routing.experts:
            continue  # a capacity of int(...) = 0, on a GPU with few tokens, means no limit
        tight, wide = limit(rule, routing, ranks), limit(dataclasses.replace(rule, factor=rule.factor + shift), routing, ranks)
        assert (wide.routing.ids[tight.routing.ids >= 0] >= 0).all()


def best_first(routing, token):
    return sorted(range(routing.ids.shape[1]), key=lambda slot: (-routing.weights[token, slot], slot))


@given(case=grouped(), rule=st.one_of(TUTEL, VMOE))
@settings(max_examples=60)
def test_slot_major_rules_equal_their_slow_twin(case, rule):
    routing, ranks = case
    kept = limit(rule, routing, ranks)
    priority = rule.batch_priority if isinstance(rule, VMoe) else rule.batch_prioritized_routing
    keep = np.zeros(routing.ids.shape, dtype=bool)
    taken = np.zeros(routing.counts.shape, dtype=int)
    source = routing.source_of_token()
    tokens = sorted(range(routing.tokens), key=lambda token: (-routing.weights[token].max(), token) if priority else token)
    for choice in range(routing.ids.shape[1]):
        for token in tokens:
            slot = best_first(routing, token)[choice]
            expert = routing.ids[token, slot]
            if expert >= 0 and taken[source[token], expert] < kept.capacity[source[token]]:
                taken[source[token], expert] += 1
                keep[token, slot] = True
    np.testing.assert_array_equal(kept.routing.ids >= 0, keep)


@given(case=grouped(), rule=st.one_of(MEGABLOCKS, HYBRID))
@settings(max_examples=80)
def test_receivers_equal_their_slow_twin(case, rule):
    routing, ranks = case
    kept = limit(rule, routing, ranks)
    tokens, choices = np.diff(routing.token_start), routing.ids.shape[1]
    local = routing.experts // ranks
    source = routing.source_of_token()
    keep = np.zeros(routing.ids.shape, dtype=bool)
    computed = np.zeros(routing.gpus, dtype=int)
    for gpu in range(routing.gpus):
        group = gpu // ranks
        mine = np.flatnonzero(source // ranks == group)
        experts = range(gpu % ranks * local, gpu % ranks * local + local)
        queues = [[(token, slot) for token in mine for slot in range(choices) if routing.ids[token, slot] == expert] for expert in experts]
        if isinstance(rule, MegaBlocks):
            capacity = int(rule.factor * (choices * len(mine) / routing.experts)) or max(map(len, queues))
            for queue in queues:
                for route in queue[:capacity]:
                    keep[route] = True
            computed[gpu] = capacity * local
        else:
            multiple = rule.alignment
            of_rank = tokens[group * ranks : (group + 1) * ranks]
            budget = -(-int(of_rank.max() * choices * rule.factor) // multiple) * multiple
            rows = []  # what lies in the rows of this rank, one after another
            for queue in queues:
                rows += queue
                rows += [None] * (-len(queue) % multiple if rule.pad_experts else 0)
            for route in filter(None, rows[:budget]):
                keep[route] = True
            computed[gpu] = len(rows[:budget])
    np.testing.assert_array_equal(kept.routing.ids >= 0, keep)
    rows = (kept.routing.counts + kept.padding).reshape(-1, ranks, ranks, local).sum(axis=(1, 3)).ravel()
    np.testing.assert_array_equal(rows, computed)


@given(case=grouped(), rule=DEEPSEEK, step=st.integers(0, 9))
@settings(max_examples=60)
def test_deepseek_v2_equals_its_slow_twin(case, rule, step):
    routing, ranks = case
    kept = limit(rule, routing, ranks, step=step)
    tokens, choices = np.diff(routing.token_start), routing.ids.shape[1]
    draws = world(gpus=routing.gpus).rng("capacity", "deepseek_v2", step)
    spared = []
    for count in tokens:
        lot = draws.random(-(-count // rule.sequence)) < rule.exempt
        spared += [lot[number // rule.sequence] for number in range(count)]
    local = routing.experts // ranks
    source = routing.source_of_token()
    keep = routing.ids >= 0
    for gpu in range(routing.gpus):
        mine = [
            (token, slot)
            for token, slot in np.ndindex(routing.ids.shape)
            if source[token] // ranks == gpu // ranks and routing.ids[token, slot] // local == gpu % ranks and routing.ids[token, slot] >= 0
        ]
        group = gpu // ranks * ranks
        budget = int(np.ceil(rule.factor * (tokens[group : group + ranks].sum() * choices / ranks)))
        queue = sorted(mine, key=lambda route: (not spared[route[0]], -routing.weights[route], route))
        for place, route in enumerate(queue):
            keep[route] = place < budget or spared[route[0]]
    np.testing.assert_array_equal(kept.routing.ids >= 0, keep)


@pytest.mark.parametrize("gate", ["switch", "dc"])
@given(data=st.data())
@settings(max_examples=30)
def test_a_shared_limit_of_fastmoe_is_used_up_source_after_source(gate, data):
    routing, ranks = data.draw(grouped(top_k={"switch": 1, "dc": 2}[gate]))
    rule = data.draw(
        st.builds(FastMoe, gate=st.just(gate), factor=st.sampled_from([0.2, 0.6, 1.0]), order=st.sampled_from(["random", "position"]))
    )
    kept = limit(rule, routing, ranks)
    local = routing.experts // ranks
    for group in range(routing.gpus // ranks):
        mine = slice(group * ranks, (group + 1) * ranks)
        tokens = np.diff(routing.token_start)[mine].max()
        taken = int(np.ceil(rule.factor * tokens / local)) if gate == "switch" else int(np.ceil(rule.factor * tokens))
        asked, served = routing.counts[mine], kept.routing.counts[mine]
        np.testing.assert_array_equal(served.sum(axis=0), np.minimum(asked.sum(axis=0), taken))
        # At most one source of each expert gets a part of what it asked for; the others all or nothing.
        assert (((served > 0) & (served < asked)).sum(axis=0) <= 1).all()
