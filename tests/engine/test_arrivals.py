"""What is dropped on arrival, where experts have replicas: rows are computed where they were sent, and nowhere else."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from routings import counts_of, random_routing, world
from worlds import no_trace, small_model

from moesim.base.registry import plugin
from moesim.engine.arrivals import where_it_arrived
from moesim.engine.simulate import simulate
from moesim.facts.placement import Placement
from moesim.facts.scenario import Parallel, Policy, Scenario, Workload
from moesim.models.topology.one_switch import OneSwitch

EXPERTS = np.array([0, 1, 2, 0, 3, 4, 1, 0, 5, 6, 7, 3])  # three slots on each of four ranks; experts 0, 1 and 3 have replicas
PLACEMENT = Placement(expert_of_slot=np.tile(EXPERTS, (2, 1)), rank_of_slot=np.repeat(np.arange(4), 3))
DISPATCHES = [
    ("even", {}),
    ("nearest", {}),
    ("static", {}),
    ("dynamic", {}),
    ("dynamic", {"by": "row"}),
    ("token_hash", {}),
    ("lp", {}),
    ("lp", {"split": "sampled"}),
]


def both(routing, kind, keys, factor):
    """The assignment of what is computed and of what is sent, under a rule that drops on arrival."""
    setting = world(gpus=4, experts=8, top_k=2, tokens_per_gpu=40)
    kept = plugin("capacity", "megablocks")(factor=factor).begin(setting)(routing, step=0, moe_layer=0)
    bind = plugin("dispatch", kind)(**keys).begin(setting)
    alone, sent = (bind(part, PLACEMENT, step=0, moe_layer=0) for part in (kept, kept.sent))
    return where_it_arrived(alone, sent, EXPERTS), sent, kept


@pytest.mark.parametrize(("kind", "keys"), DISPATCHES, ids=["-".join([kind, *keys.values()]) for kind, keys in DISPATCHES])
@given(seed=st.integers(0, 10**6), factor=st.sampled_from([0.3, 0.6, 1.0]), known=st.booleans())
@settings(max_examples=20, deadline=None)  # the first linear program imports its solver
def test_l1_what_a_slot_computes_was_sent_to_it(kind, keys, seed, factor, known):
    routing = random_routing(seed, gpus=4, experts=8, top_k=2, most=40)
    if not known:
        if kind == "token_hash" or keys == {"by": "row"}:
            return  # these need tokens
        routing = counts_of(routing)
    computed, sent, kept = both(routing, kind, keys, factor)
    assert (computed.slot_counts <= sent.slot_counts).all()
    assert (computed.slot_counts >= 0).all()
    of_expert = np.zeros_like(kept.routing.counts)
    np.add.at(of_expert.T, EXPERTS, computed.slot_counts.T)
    np.testing.assert_array_equal(of_expert, kept.routing.counts)
    if known:
        there = computed.slots >= 0
        np.testing.assert_array_equal(there, kept.routing.ids >= 0)
        np.testing.assert_array_equal(computed.slots[there], sent.slots[there])


def test_lp_alone_would_compute_rows_where_they_never_arrived():
    # A test of the test: asked about the kept rows alone, the linear program uses other replicas than for all that travel.
    routing = random_routing(1, gpus=4, experts=8, top_k=2, most=40)
    setting = world(gpus=4, experts=8, top_k=2, tokens_per_gpu=40)
    kept = plugin("capacity", "megablocks")(factor=0.6).begin(setting)(routing, step=0, moe_layer=0)
    bind = plugin("dispatch", "lp")().begin(setting)
    alone, sent = (bind(part, PLACEMENT, step=0, moe_layer=0) for part in (kept, kept.sent))
    assert (alone.slot_counts > sent.slot_counts).any()


def test_without_replicas_nothing_changes():
    routing = random_routing(2, gpus=4, experts=8, top_k=2, most=40)
    setting = world(gpus=4, experts=8, top_k=2, tokens_per_gpu=40)
    kept = plugin("capacity", "megablocks")(factor=0.6).begin(setting)(routing, step=0, moe_layer=0)
    one_each = Placement(expert_of_slot=np.tile(np.arange(8), (2, 1)), rank_of_slot=np.repeat(np.arange(4), 2))
    bind = plugin("dispatch", "even")().begin(setting)
    alone, sent = (bind(part, one_each, step=0, moe_layer=0) for part in (kept, kept.sent))
    assert where_it_arrived(alone, sent, np.arange(8)) is alone


@pytest.mark.parametrize("kind", ["even", "lp", "token_hash"])
def test_a_run_that_drops_on_arrival_with_replicas_accounts_for_every_row(kind):
    scenario = Scenario(
        name="arrivals",
        seed=3,
        steps=4,
        model=small_model(8, 2),
        cluster=OneSwitch(gpus=4),
        parallel=Parallel(ep=4),
        workload=Workload(phase="training", tokens_per_gpu=64),
        routing=plugin("source", "power_law")(),
        policy=Policy(
            capacity=plugin("capacity", "megablocks")(factor=0.8),
            placement=plugin("placement", "eplb")(redundant=4, window=2, interval=2),
            dispatch=plugin("dispatch", kind)(),
        ),
    )
    dropless = dataclasses.replace(scenario, policy=dataclasses.replace(scenario.policy, capacity=plugin("capacity", "dropless")()))
    found, plain = (simulate(each, read_trace=no_trace).tables for each in (scenario, dropless))
    layers = found["layers"]
    assert layers["dropped"].sum() > 0
    # Computed: kept routes and padding, however they are spread over replicas; travelled: what would travel if nothing were dropped.
    rows = np.zeros(len(layers["kept"]), dtype=int)
    for row, (step, moe_layer) in enumerate(zip(layers["step"], layers["moe_layer"], strict=True)):
        ranks = found["ranks"]
        rows[row] = ranks["rows"][(ranks["step"] == step) & (ranks["moe_layer"] == moe_layer)].sum()
    np.testing.assert_array_equal(rows, layers["kept"] + layers["padding"])
    np.testing.assert_array_equal(layers["dispatch_bytes"], plain["layers"]["dispatch_bytes"])
