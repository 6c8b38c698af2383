"""Choices of gates whose tokens have more or fewer experts than k, saved and replayed: width and words survive."""

import dataclasses

import numpy as np
import pytest
from worlds import no_trace, small_model

from moesim.base.errors import FidelityError, TraceError
from moesim.base.registry import plugin
from moesim.desk.trace_files import read_trace, write_trace
from moesim.engine.simulate import simulate
from moesim.facts.scenario import Parallel, Policy, Scenario, Workload
from moesim.models.topology.one_switch import OneSwitch

GATES = {
    "top_p": {"mass": 0.5},
    "expert_choice": {"factor": 1.0},
    "zero_computation": {"zero_experts": 4},
    "gshard_top2": {},
    "hash": {"words": "zipf", "vocabulary": 512, "layers": 2, "scoring": "softmax"},
}


def scenario(kind, **keys):
    return Scenario(
        name="replayed",
        seed=5,
        steps=3,
        model=small_model(8, 2),
        cluster=OneSwitch(gpus=4),
        parallel=Parallel(ep=4),
        workload=Workload(phase="prefill", tokens_per_gpu=24),
        routing=plugin("source", "router")(scores=True, scale=0.8),
        policy=Policy(gate=plugin("gate", kind)(**keys)),
    )


@pytest.mark.parametrize("kind", GATES)
def test_l14_choices_of_any_width_are_replayed_as_they_were(kind):
    first = scenario(kind, **GATES[kind])
    told = simulate(first, read_trace=no_trace, keep_routing=True)
    widths = (told.routing.ids >= 0).sum(axis=-1)
    assert (widths.min() < widths.max()) == (kind != "hash")
    replay = dataclasses.replace(
        first, routing=plugin("source", "recorded")(trace="own", deal="recorded"), policy=Policy(gate=plugin("gate", "as_given")())
    )
    again = simulate(replay, read_trace=lambda path: told.routing)
    for name in ("steps", "layers", "ranks", "links"):
        for column, values in told.tables[name].columns.items():
            np.testing.assert_array_equal(values, again.tables[name][column], err_msg=f"{name}.{column}")


@pytest.mark.parametrize("kind", ["top_p", "expert_choice"])
def test_l1_tokens_of_any_width_are_kept_or_dropped_when_they_are_replayed(kind):
    told = simulate(scenario(kind, **GATES[kind]), read_trace=no_trace, keep_routing=True).routing
    # A rule takes the most choices of any token of the layer for k: the wider they are, the more room a factor gives.
    capacity = plugin("capacity", "megatron")(factor=0.5 if kind == "top_p" else 0.1)
    replay = dataclasses.replace(
        scenario("as_given"),
        routing=plugin("source", "recorded")(trace="own", deal="recorded"),
        policy=Policy(capacity=capacity),
    )
    layers = simulate(replay, read_trace=lambda path: told).tables["layers"]
    np.testing.assert_array_equal(layers["kept"] + layers["dropped"], layers["routes"])
    # Routes are those of the recording, step by step and layer by layer.
    recorded = [int((told.ids[told.step == step, layer] >= 0).sum()) for step in range(3) for layer in range(2)]
    assert layers["routes"].tolist() == recorded
    assert layers["dropped"].sum() > 0


def with_words(told, words):
    return dataclasses.replace(told, words=np.asarray(words))


def test_a_hash_gate_looks_up_the_words_of_a_recording():
    told = simulate(scenario("topk"), read_trace=no_trace, keep_routing=True).routing
    words = np.arange(told.tokens) % 7
    recorded = dataclasses.replace(
        scenario("hash", vocabulary=512, layers=2, scoring="softmax"), routing=plugin("source", "recorded")(trace="own", deal="recorded")
    )
    again = simulate(recorded, read_trace=lambda path: with_words(told, words), keep_routing=True).routing
    # Seven words are seven rows of each layer's table: equal words have equal experts, and the words stay with their tokens.
    for layer in range(2):
        rows = {word: {tuple(row) for row in again.ids[words == word, layer].tolist()} for word in range(7)}
        assert all(len(found) == 1 for found in rows.values())
        assert len(set.union(*rows.values())) > 1
    np.testing.assert_array_equal(again.words, words)
    # What was saved is replayed: as given, and looked up once more.
    for gate in (plugin("gate", "as_given")(), recorded.policy.gate):
        once_more = dataclasses.replace(recorded, policy=Policy(gate=gate))
        np.testing.assert_array_equal(simulate(once_more, read_trace=lambda path: again, keep_routing=True).routing.ids, again.ids)


def test_a_hash_gate_without_words_says_what_the_recording_lacks():
    told = simulate(scenario("topk"), read_trace=no_trace, keep_routing=True).routing
    recorded = dataclasses.replace(
        scenario("hash", vocabulary=512, layers=2), routing=plugin("source", "recorded")(trace="own", deal="recorded")
    )
    with pytest.raises(FidelityError, match="needs the vocabulary id of each token"):
        simulate(recorded, read_trace=lambda path: told)
    with pytest.raises(FidelityError, match="vocabulary id 512, but there are words 0 to 511 only"):
        simulate(recorded, read_trace=lambda path: with_words(told, np.full(told.tokens, 512)))


def test_words_are_kept_in_a_file_and_checked(tmp_path):
    told = simulate(scenario("topk"), read_trace=no_trace, keep_routing=True).routing
    words = np.arange(told.tokens) % 7
    write_trace(with_words(told, words), tmp_path / "words.npz")
    np.testing.assert_array_equal(read_trace(tmp_path / "words.npz").words, words)
    for wrong, message in ((words[:-1], "has 287 entries, but ids has 288 tokens"), (words - 1, r"holds -1 at \[0\], expected at least 0")):
        np.savez(tmp_path / "wrong.npz", ids=told.ids, words=wrong)
        with pytest.raises(TraceError, match=message):
            read_trace(tmp_path / "wrong.npz")
