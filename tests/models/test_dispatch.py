"""Which replica a route uses."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from routings import counts_of, routings, world

from moesim.base.errors import PluginError
from moesim.base.registry import plugin
from moesim.facts.placement import Placement
from moesim.facts.routing import Kept, LayerRouting
from moesim.models.capacity.deepspeed import DeepSpeed
from moesim.models.capacity.dropless import Dropless


def everything(routing, padding=None):
    none = np.zeros_like(routing.counts)
    return Kept(routing=routing, dropped=none, padding=none if padding is None else padding)


def bind(kept, placement, *, gpus, ep=None, moe_layer=0, kind="even", nodes=None, **keys):
    setting = world(gpus=gpus, ep=ep)
    if nodes is not None:
        setting = replace(setting, cluster=replace(setting.cluster, node_of=np.asarray(nodes)))
    dispatch = plugin("dispatch", kind)(**keys).begin(setting)
    return dispatch(kept, placement, step=0, moe_layer=moe_layer)


EVERY = [
    ("even", {}),
    ("nearest", {}),
    ("static", {}),
    ("dynamic", {}),
    ("dynamic", {"by": "row"}),
    ("token_hash", {}),
    ("lp", {}),
    ("lp", {"split": "sampled"}),
]
"""Every dispatch, in every mode."""
BY_COUNTS = [("even", {}), ("nearest", {}), ("static", {}), ("lp", {})]
"""Those that bind counts as they bind the tokens that were counted."""


def named(choices):
    return pytest.mark.parametrize(("kind", "keys"), choices, ids=["-".join([kind, *map(str, keys.values())]) for kind, keys in choices])


# Expert 0 has replicas in slots 0 and 2 (ranks 0 and 1), expert 1 lives in slot 1, expert 2 in slot 3.
REPLICATED = Placement(expert_of_slot=np.asarray([[0, 1, 0, 2]]), rank_of_slot=np.asarray([0, 0, 1, 1]))


def test_replicas_take_turns_and_each_source_starts_at_its_own():
    # Source 0 sends three routes to expert 0: slots 0, 2, 0. Source 1 sends two and starts one turn later: slots 2, 0.
    routing = LayerRouting.of_tokens(np.asarray([[0, 1], [2, 0], [0, -1], [0, 2], [1, 0]]), [0, 3, 5], 3)
    assignment = bind(everything(routing), REPLICATED, gpus=2)
    assert assignment.slots.tolist() == [[0, 1], [3, 2], [0, -1], [2, 3], [1, 0]]
    assert assignment.slot_counts.tolist() == [[2, 1, 1, 1], [1, 1, 1, 1]]
    assert assignment.destination.tolist() == [[0, 0, 1, 1], [0, 0, 1, 1]]
    # Rows by GPU: source 0 sends 3 to GPU 0 and 2 to GPU 1; source 1 sends 2 and 2.
    assert assignment.rows_at().tolist() == [[3, 2], [2, 2]]


def test_sources_with_one_route_do_not_all_use_the_first_replica():
    # Decoding: each of four ranks has one token, all for expert 0, whose two replicas get two tokens each.
    placement = Placement(expert_of_slot=np.asarray([[0, 0, 1, 2]]), rank_of_slot=np.arange(4))
    routing = LayerRouting.of_tokens(np.zeros((4, 1), dtype=int), np.arange(5), 3)
    assert bind(everything(routing), placement, gpus=4).slot_counts.sum(axis=0).tolist() == [2, 2, 0, 0]


def test_padding_takes_the_turns_after_the_last_route():
    # Three routes and two padding rows of expert 0: 0 2 0 | 2 0, so 2 + 1 routes and 1 + 1 padding rows.
    routing = LayerRouting(experts=3, token_start=[0, 3, 3], counts=[[3, 0, 0], [0, 0, 0]])
    assignment = bind(everything(routing, np.asarray([[2, 0, 4], [0, 0, 0]])), REPLICATED, gpus=2)
    assert assignment.slot_counts.tolist() == [[2, 0, 1, 0], [0, 0, 0, 0]]
    assert assignment.slot_padding.tolist() == [[1, 0, 1, 4], [0, 0, 0, 0]]
    assert assignment.slots is None


def test_every_group_uses_its_own_copy():
    routing = LayerRouting(experts=3, token_start=np.arange(5), counts=np.ones((4, 3), dtype=int))
    assignment = bind(everything(routing), REPLICATED, gpus=4, ep=2)
    assert assignment.destination.tolist() == [[0, 0, 1, 1], [0, 0, 1, 1], [2, 2, 3, 3], [2, 2, 3, 3]]


def test_each_layer_has_its_own_row_of_the_placement():
    placement = Placement(expert_of_slot=np.asarray([[0, 1], [1, 0]]), rank_of_slot=np.asarray([0, 1]))
    routing = LayerRouting.of_tokens(np.asarray([[0]]), [0, 1, 1], 2)
    assert [bind(everything(routing), placement, gpus=2, moe_layer=layer).slots.item() for layer in (0, 1)] == [0, 1]


@named(EVERY)
def test_an_expert_that_lives_nowhere_is_refused(kind, keys):
    placement = Placement(expert_of_slot=np.asarray([[0, 0]]), rank_of_slot=np.asarray([0, 1]))
    routing = LayerRouting.of_tokens(np.asarray([[0], [1]]), [0, 1, 2], 2)
    with pytest.raises(PluginError, match=r"expert 1 of MoE layer 0 has tokens, but lives nowhere \(law L11\)"):
        bind(everything(routing), placement, gpus=2, kind=kind, **keys)


@st.composite
def bindings(draw):
    """A routing, what a rule leaves of it, and a placement with replicas anywhere."""
    routing = draw(routings())
    rule = draw(st.sampled_from([Dropless(), DeepSpeed(factor=0.8, min_capacity=1, drop="position")]))
    setting = world(gpus=routing.gpus, experts=routing.experts, top_k=routing.ids.shape[1])
    kept = rule.begin(setting)(routing, step=0, moe_layer=0)
    ep = draw(st.sampled_from([size for size in range(1, routing.gpus + 1) if routing.gpus % size == 0]))
    extra = draw(st.lists(st.integers(0, routing.experts - 1), max_size=6))
    experts = draw(st.permutations([*range(routing.experts), *extra]))
    ranks = draw(st.lists(st.integers(0, ep - 1), min_size=len(experts), max_size=len(experts)))
    return kept, Placement(expert_of_slot=np.asarray([experts]), rank_of_slot=np.asarray(ranks)), ep


@named(EVERY)
@given(binding=bindings())
@settings(max_examples=25, deadline=None)  # the first linear program imports its solver
def test_l11_every_route_goes_to_a_slot_of_its_expert_in_its_own_group(kind, keys, binding):
    kept, placement, ep = binding
    ids = kept.routing.ids
    assignment = bind(kept, placement, gpus=kept.routing.gpus, ep=ep, kind=kind, **keys)
    sent = ids >= 0
    assert (assignment.slots[~sent] == -1).all()
    np.testing.assert_array_equal(placement.expert_of_slot[0][assignment.slots[sent]], ids[sent])
    group = np.arange(kept.routing.gpus)[:, None] // ep
    np.testing.assert_array_equal(assignment.destination // ep, np.broadcast_to(group, assignment.destination.shape))
    np.testing.assert_array_equal(assignment.destination % ep, np.broadcast_to(placement.rank_of_slot, assignment.destination.shape))


@named(EVERY)
@given(binding=bindings())
@settings(max_examples=25, deadline=None)  # the first linear program imports its solver
def test_l1_slots_carry_what_was_kept_and_padded(kind, keys, binding):
    kept, placement, ep = binding
    gpus, experts = kept.routing.gpus, kept.routing.experts
    assignment = bind(kept, placement, gpus=gpus, ep=ep, kind=kind, **keys)
    expert_of_slot = placement.expert_of_slot[0]
    for rows, slots in ((kept.routing.counts, assignment.slot_counts), (kept.padding, assignment.slot_padding)):
        total = np.zeros((gpus, experts), dtype=int)
        np.add.at(total, (slice(None), expert_of_slot), slots)
        np.testing.assert_array_equal(total, rows)
        assert slots.min(initial=0) >= 0
    # Tokens say the same as the table.
    source = np.repeat(np.arange(gpus), np.diff(kept.routing.token_start))
    seen = np.zeros_like(assignment.slot_counts)
    token, choice = np.nonzero(assignment.slots >= 0)
    np.add.at(seen, (source[token], assignment.slots[token, choice]), 1)
    np.testing.assert_array_equal(seen, assignment.slot_counts)


@named(BY_COUNTS)
@given(binding=bindings())
@settings(max_examples=25, deadline=None)  # the first linear program imports its solver
def test_counts_alone_give_the_same_loads_as_tokens(kind, keys, binding):
    kept, placement, ep = binding
    gpus = kept.routing.gpus
    assignment = bind(kept, placement, gpus=gpus, ep=ep, kind=kind, **keys)
    counts = Kept(routing=counts_of(kept.routing), dropped=kept.dropped, padding=kept.padding)
    bare = bind(counts, placement, gpus=gpus, ep=ep, kind=kind, **keys)
    np.testing.assert_array_equal(bare.slot_counts, assignment.slot_counts)
    np.testing.assert_array_equal(bare.slot_padding, assignment.slot_padding)
    assert bare.slots is None


@given(binding=bindings())
@settings(max_examples=40)
def test_replicas_differ_by_at_most_one_row_per_source(binding):
    kept, placement, ep = binding
    assignment = bind(kept, placement, gpus=kept.routing.gpus, ep=ep)
    rows = assignment.slot_counts + assignment.slot_padding
    for expert in range(kept.routing.experts):
        mine = rows[:, placement.expert_of_slot[0] == expert]
        assert (mine.max(axis=1) - mine.min(axis=1) <= 1).all()


@given(binding=bindings())
@settings(max_examples=40)
def test_even_equals_its_slow_twin(binding):
    kept, placement, ep = binding
    routing = kept.routing
    assignment = bind(kept, placement, gpus=routing.gpus, ep=ep)
    for source in range(routing.gpus):
        turn = dict.fromkeys(range(routing.experts), source % ep)
        for token in range(routing.token_start[source], routing.token_start[source + 1]):
            for choice, expert in enumerate(routing.ids[token].tolist()):
                if expert >= 0:
                    replicas = np.flatnonzero(placement.expert_of_slot[0] == expert)
                    assert assignment.slots[token, choice] == replicas[turn[expert] % len(replicas)]
                    turn[expert] += 1
