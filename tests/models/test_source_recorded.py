"""Replaying recordings: which token lands on which GPU in which step."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moesim.base.errors import FidelityError, TraceError
from moesim.facts.scenario import Setting
from moesim.facts.trace import Trace
from moesim.models.bare_setting import bare_setting
from moesim.models.source.deal_counts import fewest_tokens, split_evenly
from moesim.models.source.power_law import PowerLaw
from moesim.models.source.recorded import Recorded
from moesim.models.source.router import Router
from moesim.models.source.traces import trace_of
from moesim.models.source.uniform import Uniform


def numbered(tokens: int, **more) -> Trace:
    """Return a trace of one layer and one choice in which token i chose expert i: the ids tell which token was dealt."""
    ids = np.arange(tokens, dtype=np.uint8).reshape(tokens, 1, 1)
    return Trace(**({"name": "t.npz", "digest": "", "layers": 1, "experts": tokens, "top_k": 1, "ids": ids} | more))


def world_for(trace: Trace, *, gpus: int, tokens: int = 1, top_k: int | None = None) -> Setting:
    return bare_setting(
        gpus=gpus,
        experts=trace.experts,
        top_k=top_k or trace.top_k,
        layers=trace.layers,
        tokens_per_gpu=tokens,
        seed=4,
        read_trace=lambda path: trace,
        name="model",
    )


def dealt(draw, step: int) -> list[list[int]]:
    """Return the tokens of each GPU."""
    layer = draw(step).layers[0]
    return [layer.ids[first:last, 0].tolist() for first, last in zip(layer.token_start[:-1], layer.token_start[1:], strict=True)]


def test_in_order_reads_on_and_wraps_around():
    trace = numbered(7)
    draw = Recorded(trace="t").begin(world_for(trace, gpus=2, tokens=2))
    assert dealt(draw, 0) == [[0, 1], [2, 3]]
    assert dealt(draw, 1) == [[4, 5], [6, 0]]
    assert dealt(draw, 2) == [[1, 2], [3, 4]]
    assert draw(0).notes == ()
    assert (
        draw(1).notes
        == draw(2).notes
        == ("the trace t.npz has 7 tokens, enough for 1.75 steps of 4: after that it is read again from its start",)
    )
    assert draw(0).basis == "measured"


def test_in_order_says_how_often_a_step_reads_a_short_trace():
    draw = Recorded(trace="t").begin(world_for(numbered(4), gpus=2, tokens=5))
    assert dealt(draw, 0) == [[0, 1, 2, 3, 0], [1, 2, 3, 0, 1]]
    assert draw(0).notes == ("the trace t.npz has 4 tokens and a step takes 10: every step reads it 2.5 times",)


def test_recorded_deals_a_plain_trace_in_blocks_as_one_step():
    draw = Recorded(trace="t", deal="recorded").begin(world_for(numbered(10), gpus=4))
    assert dealt(draw, 0) == [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9]]
    assert draw(0).notes == ()
    assert dealt(draw, 1) == dealt(draw, 0)
    assert "1 step: after that it is read again" in draw(1).notes[0]


def test_recorded_keeps_the_steps_and_sources_of_the_trace():
    trace = numbered(6, step=np.array([3, 3, 3, 8, 8, 8]), source=np.array([0, 2, 2, 0, 1, 2]))
    draw = Recorded(trace="t", deal="recorded").begin(world_for(trace, gpus=3))
    assert dealt(draw, 0) == [[0], [], [1, 2]]
    assert dealt(draw, 1) == [[3], [4], [5]]
    with pytest.raises(TraceError, match=r"recorded on 3 GPUs .* but 4 are asked for"):
        Recorded(trace="t", deal="recorded").begin(world_for(trace, gpus=4))


def test_conversations_are_whole_but_the_last():
    # Conversations of tokens 0-2, 3, 4-8, 9-10; every GPU must hold a row of whole ones, the last possibly cut.
    length = np.array([3, 1, 5, 0, 2])
    trace = numbered(11, sample_length=length)
    draw = Recorded(trace="t", deal="conversations").begin(world_for(trace, gpus=3, tokens=20))
    ends = {0: 3, 3: 4, 4: 9, 9: 11}
    begun = set()
    for tokens in dealt(draw, 0) + dealt(draw, 1):
        assert len(tokens) == 20
        place = 0
        while place < 20:
            first = tokens[place]
            begun.add(first)
            whole = list(range(first, ends[first]))
            assert tokens[place : place + len(whole)] == whole[: 20 - place]
            place += len(whole)
    assert begun == {0, 3, 4, 9}  # 6 x 20 tokens see all four conversations
    assert dealt(draw, 0) != dealt(draw, 1)
    assert dealt(draw, 0) == dealt(Recorded(trace="t", deal="conversations").begin(world_for(trace, gpus=3, tokens=20)), 0)


def test_conversations_of_a_gpu_do_not_depend_on_how_many_gpus_there_are():
    trace = numbered(11, sample_length=np.array([3, 8]))
    few = Recorded(trace="t", deal="conversations").begin(world_for(trace, gpus=2, tokens=9))
    many = Recorded(trace="t", deal="conversations").begin(world_for(trace, gpus=5, tokens=9))
    assert dealt(few, 3) == dealt(many, 3)[:2]


def test_conversations_need_their_lengths():
    with pytest.raises(FidelityError, match="no sample_len"):
        Recorded(trace="t", deal="conversations").begin(world_for(numbered(4), gpus=1))


@pytest.mark.parametrize("source", [Uniform(), PowerLaw(), Router(scores=True)])
@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 99), gpus=st.integers(1, 4), tokens=st.integers(1, 9), steps=st.integers(1, 3))
def test_l14_replaying_saved_routing_gives_the_same_routing(source, seed, gpus, tokens, steps):
    world = bare_setting(gpus=gpus, experts=6, top_k=2, layers=3, tokens_per_gpu=tokens, seed=seed, read_trace=lambda path: None)
    first = source.begin(world)
    saved = trace_of(((step + 5, first(step)) for step in range(steps)), name="saved", top_k=2)
    again = Recorded(trace="saved", deal="recorded").begin(replace(world, read_trace=lambda path: saved))
    for step in range(steps):
        for one, other in zip(first(step).layers, again(step).layers, strict=True):
            assert np.array_equal(one.token_start, other.token_start)
            for name in ("ids", "weights", "scores", "counts"):
                assert np.array_equal(getattr(one, name), getattr(other, name)), name
            assert one.fidelity == other.fidelity


def test_in_order_and_recorded_agree_on_a_trace_that_was_dealt_in_order():
    trace = numbered(8, source=np.array([0, 0, 1, 1, 0, 0, 1, 1]), step=np.repeat([0, 1], 4))
    world = world_for(trace, gpus=2, tokens=2)
    for step in range(2):
        assert dealt(Recorded(trace="t").begin(world), step) == dealt(Recorded(trace="t", deal="recorded").begin(world), step)


def counted(counts: list, *, by_source: bool, top_k: int = 2, **more) -> Trace:
    array = np.array(counts)
    return Trace(
        name="c.npz", digest="", layers=array.shape[1], experts=array.shape[3], top_k=top_k, counts=array, by_source=by_source, **more
    )


def test_counts_by_source_are_used_as_they_are():
    # Two GPUs; each token of a GPU has 2 routes: 6 routes are 3 tokens, 4 routes are 2.
    trace = counted([[[[3, 2, 1], [2, 1, 1]]], [[[1, 1, 0], [0, 2, 2]]]], by_source=True)
    draw = Recorded(trace="c").begin(world_for(trace, gpus=2, tokens=3))
    layer = draw(0).layers[0]
    assert layer.counts.tolist() == [[3, 2, 1], [2, 1, 1]]
    assert layer.token_start.tolist() == [0, 3, 5]
    assert layer.ids is None
    assert draw(1).layers[0].counts.tolist() == [[1, 1, 0], [0, 2, 2]]
    assert draw(2).layers[0].counts.tolist() == layer.counts.tolist()
    assert any("2 steps: after that it is read again" in note for note in draw(2).notes)
    assert draw(0).basis == "measured"
    with pytest.raises(TraceError, match="recorded on 2 GPUs, but the cluster has 3"):
        Recorded(trace="c").begin(world_for(trace, gpus=3))


def test_counts_without_sources_need_an_assumption():
    trace = counted([[[[5, 3]]]], by_source=False)
    with pytest.raises(FidelityError, match="assume_sources: even"):
        Recorded(trace="c").begin(world_for(trace, gpus=2))
    routing = Recorded(trace="c", assume_sources="even").begin(world_for(trace, gpus=2, tokens=50))(0)
    assert routing.layers[0].counts.tolist() == [[3, 1], [2, 2]]
    assert routing.basis == "assumed"
    assert "assumed, not measured" in routing.notes[0]
    assert "not the 50 of workload.tokens_per_gpu" in routing.notes[1]


def test_counts_have_no_conversations():
    with pytest.raises(FidelityError, match="counts by source only"):
        Recorded(trace="c", deal="conversations").begin(world_for(counted([[[[2, 2]]]], by_source=True), gpus=1))


@given(st.lists(st.integers(0, 50), min_size=1, max_size=8), st.integers(1, 6), st.integers(1, 8))
def test_l1_tokens_an_even_split_keeps_every_route(counts, gpus, top_k):
    counts = np.array(counts)
    split = split_evenly(counts, gpus)
    assert (split.sum(axis=0) == counts).all()
    assert np.ptp(split, axis=0).max() <= 1
    assert np.ptp(split.sum(axis=1)) <= 1
    tokens = fewest_tokens(split, top_k)
    assert (tokens * top_k >= split.sum(axis=1)).all()
    assert (tokens >= split.max(axis=1)).all()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"layers": 2}, "the trace t.npz has 1 MoE layers, but the model model has 2"),
        ({"experts": 9}, "the trace t.npz has 4 experts, but the model model has 9"),
        ({"top_k": 2}, "the trace t.npz has 1 choices per token, but the model model has top_k 2"),
    ],
)
def test_a_trace_of_another_model_is_refused_with_both_numbers(change, said):
    shape = {"gpus": 1, "experts": 4, "top_k": 1, "layers": 1, "tokens_per_gpu": 1, "seed": 0, "name": "model"}
    world = bare_setting(**(shape | change), read_trace=lambda path: numbered(4))
    with pytest.raises(TraceError) as caught:
        Recorded(trace="t").begin(world)
    assert said in str(caught.value)


def test_a_trace_that_does_not_state_its_experts_fits_a_model_with_more():
    trace = numbered(4, experts_stated=False)
    world = bare_setting(gpus=1, experts=9, top_k=1, layers=1, tokens_per_gpu=4, seed=0, read_trace=lambda path: trace)
    assert Recorded(trace="t").begin(world)(0).layers[0].counts.tolist() == [[1, 1, 1, 1, 0, 0, 0, 0, 0]]
    counts = counted([[[[2, 2]]]], by_source=True, top_k=0, experts_stated=False)
    world = bare_setting(gpus=1, experts=3, top_k=2, layers=1, tokens_per_gpu=2, seed=0, read_trace=lambda path: counts)
    assert Recorded(trace="c").begin(world)(0).layers[0].counts.tolist() == [[2, 2, 0]]


def test_a_task_is_asked_of_the_reader():
    asked = []

    def read(path, **options):
        asked.append((path, options))
        return numbered(2)

    world = bare_setting(gpus=1, experts=2, top_k=1, layers=1, tokens_per_gpu=1, seed=0, read_trace=read)
    Recorded(trace="t").begin(world)
    Recorded(trace="t", task="law").begin(world)
    assert asked == [("t", {}), ("t", {"task": "law"})]


def test_missing_choices_stay_missing():
    trace = Trace(name="t", digest="", layers=1, experts=3, top_k=2, ids=np.array([[[0, 2]], [[1, -1]]], dtype=np.int8))
    layer = Recorded(trace="t").begin(world_for(trace, gpus=1, tokens=2))(0).layers[0]
    assert layer.ids.tolist() == [[0, 2], [1, -1]]
    assert layer.counts.tolist() == [[1, 1, 1]]
