"""Replaying recordings: which token lands on which GPU in which step."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moesim.base.errors import FidelityError, TraceError, UsageError
from moesim.facts.ranks import Ranks, RankStep
from moesim.facts.routing import LayerRouting, Routing
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
    note = (
        "the trace t.npz has 7 tokens, enough for 1.75 steps of 4: after that it is read again from its start; tokens of one step come "
        "back in another, so intervals understate the spread between steps"
    )
    assert draw(1).notes == draw(2).notes == (note,)
    assert draw(0).basis == "measured"


def test_in_order_says_how_often_a_step_reads_a_short_trace():
    draw = Recorded(trace="t").begin(world_for(numbered(4), gpus=2, tokens=5))
    assert dealt(draw, 0) == [[0, 1, 2, 3, 0], [1, 2, 3, 0, 1]]
    [note] = draw(0).notes
    assert note.startswith("the trace t.npz has 4 tokens and a step takes 10: every step reads it 2.5 times; tokens of one step come back")


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
    with pytest.raises(TraceError, match=r"recorded on 3 ranks at least \(its largest source is 2\), but 2 are asked for"):
        Recorded(trace="t", deal="recorded").begin(world_for(trace, gpus=2))


def test_a_trace_that_does_not_state_its_ranks_leaves_the_last_empty_and_says_so():
    trace = numbered(4, source=np.array([0, 0, 1, 2]))
    draw = Recorded(trace="t", deal="recorded").begin(world_for(trace, gpus=5))
    assert dealt(draw, 0) == [[0, 1], [2], [3], [], []]
    [note] = draw(0).notes
    assert "its largest source is 2: the last 2 of 5 have no tokens" in note
    assert Recorded(trace="t", deal="recorded").begin(world_for(trace, gpus=3))(0).notes == ()


@pytest.mark.parametrize("gpus", [3, 5])
def test_a_trace_that_states_its_ranks_is_replayed_on_as_many_only(gpus):
    trace = numbered(4, source=np.array([0, 0, 1, 2]), ranks=4)
    draw = Recorded(trace="t", deal="recorded").begin(world_for(trace, gpus=4))
    assert (dealt(draw, 0), draw(0).notes) == ([[0, 1], [2], [3], []], ())
    with pytest.raises(TraceError, match=rf"recorded on 4 ranks .* but {gpus} are asked for"):
        Recorded(trace="t", deal="recorded").begin(world_for(trace, gpus=gpus))


# which steps are repeated


@pytest.mark.parametrize(
    ("tokens", "per_step", "expected"),
    [
        (8, 4, [None, None, 0, 1, 0]),  # two steps of four tokens each, then the same two again
        (4, 4, [None, 0, 0, 0, 0]),
        (4, 8, [None, 0, 0, 0, 0]),  # each step reads the trace twice
        (6, 4, [None, None, None, 0, 1]),  # steps begin at tokens 0, 4, 2, 0, 4
        (4, 6, [None, None, 0, 1, 0]),  # steps begin at tokens 0, 2, 0, 2, 0
        (7, 4, [None] * 5),  # steps begin at 0, 4, 1, 5, 2
    ],
)
def test_in_order_names_the_step_that_a_step_repeats(tokens, per_step, expected):
    draw = Recorded(trace="t").begin(world_for(numbered(tokens), gpus=2, tokens=per_step // 2))
    assert [draw(step).repeats for step in range(5)] == expected
    for step, earlier in enumerate(expected):
        assert next((other for other in range(step) if dealt(draw, step) == dealt(draw, other)), None) == earlier
    # Steps share some tokens, but not all, unless one of the two numbers is a multiple of the other.
    assert ("understate" in "".join(draw(4).notes)) == (tokens % per_step != 0 and per_step % tokens != 0)


def test_the_note_on_reading_again_counts_one_step_as_one():
    draw = Recorded(trace="t").begin(world_for(numbered(4), gpus=2, tokens=2))
    assert draw(0).notes == ()
    assert draw(1).notes == ("the trace t.npz has 4 tokens, enough for 1 step of 4: after that it is read again from its start",)


def test_recorded_steps_and_counts_name_the_step_that_a_step_repeats():
    one = Recorded(trace="t", deal="recorded").begin(world_for(numbered(6), gpus=2))
    assert [one(step).repeats for step in range(3)] == [None, 0, 0]
    two = Recorded(trace="t", deal="recorded").begin(world_for(numbered(6, step=np.array([3, 3, 3, 8, 8, 8])), gpus=2))
    assert [two(step).repeats for step in range(5)] == [None, None, 0, 1, 0]
    counts = Recorded(trace="c").begin(world_for(counted([[[[2, 2]]], [[[1, 3]]]], by_source=True), gpus=1))
    assert [counts(step).repeats for step in range(5)] == [None, None, 0, 1, 0]


def test_conversations_are_drawn_anew_unless_there_is_only_one():
    many = Recorded(trace="t", deal="conversations").begin(world_for(numbered(6, sample_length=np.array([2, 4])), gpus=2))
    assert [many(step).repeats for step in range(3)] == [None] * 3
    one = Recorded(trace="t", deal="conversations").begin(world_for(numbered(6, sample_length=np.array([0, 6])), gpus=2, tokens=4))
    assert [one(step).repeats for step in range(3)] == [None, 0, 0]
    assert dealt(one, 1) == dealt(one, 0) == [[0, 1, 2, 3]] * 2
    assert one(0).notes == ("the trace t.npz has one conversation only: every GPU has it in every step",)


def test_synthetic_steps_repeat_nothing():
    world = bare_setting(gpus=2, experts=4, top_k=2, layers=1, tokens_per_gpu=3, seed=0, read_trace=lambda path: None)
    assert [Uniform().begin(world)(step).repeats for step in range(3)] == [None] * 3


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


@pytest.mark.parametrize("sizes", [[2] * 8 + [1] + [0] * 7, [0] * 5 + [17] + [0] * 10, [0, 3, 0, 1, 0, 0, 2, 0, 4, 0, 1, 0, 5, 0, 1, 0]])
def test_l14_replaying_unequal_and_empty_gpus_gives_the_same_routing(sizes):
    # 17 tokens on 16 GPUs: equal blocks of ceil(17 / 16) = 2 leave the last seven without any (the first case).
    start = np.concatenate([[0], np.cumsum(sizes)])
    rng = np.random.default_rng(2)
    layers = tuple(LayerRouting.of_tokens(np.argsort(rng.random((17, 6)))[:, :2].astype(np.int32), start, 6) for _ in range(3))
    saved = trace_of([(0, Routing(layers=layers))], name="saved", top_k=2)
    assert saved.ranks == 16
    world = bare_setting(gpus=16, experts=6, top_k=2, layers=3, tokens_per_gpu=2, seed=0, read_trace=lambda path: saved)
    again = Recorded(trace="saved", deal="recorded").begin(world)(0)
    assert again.notes == ()
    for one, other in zip(layers, again.layers, strict=True):
        assert one.token_start.tolist() == other.token_start.tolist()
        assert np.array_equal(one.ids, other.ids)
    counts = [replace(layer, ids=None) for layer in layers]
    saved = trace_of([(0, Routing(layers=counts))], name="saved", top_k=2)
    assert saved.ranks == 16
    again = Recorded(trace="saved", deal="recorded").begin(replace(world, read_trace=lambda path: saved))(0)
    assert all(np.array_equal(one.counts, other.counts) for one, other in zip(counts, again.layers, strict=True))


def test_l14_a_recording_that_was_dealt_in_blocks_is_replayed_from_its_saved_routing():
    world = world_for(numbered(17), gpus=16)
    first = Recorded(trace="t", deal="recorded").begin(world)
    saved = trace_of([(0, first(0))], name="saved", top_k=1)
    again = Recorded(trace="saved", deal="recorded").begin(replace(world, read_trace=lambda path: saved))
    assert dealt(again, 0) == dealt(first, 0)
    assert dealt(again, 0)[8:] == [[16], [], [], [], [], [], [], []]


def test_steps_of_different_numbers_of_gpus_make_no_trace():
    layer = LayerRouting.of_tokens(np.array([[0]]), [0, 1], 2)
    wider = LayerRouting.of_tokens(np.array([[0]]), [0, 1, 1], 2)
    with pytest.raises(UsageError, match="step 4 has 2 GPUs, but step 3 has 1"):
        trace_of([(3, Routing(layers=(layer,))), (4, Routing(layers=(wider,)))], name="saved", top_k=1)


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
    with pytest.raises(TraceError, match=r"recorded on 2 ranks .* but 3 are asked for"):
        Recorded(trace="c").begin(world_for(replace(trace, ranks=2), gpus=3))
    with pytest.raises(TraceError, match=r"recorded on 2 ranks at least .* but 1 are asked for"):
        Recorded(trace="c").begin(world_for(trace, gpus=1))
    more = Recorded(trace="c").begin(world_for(trace, gpus=3))(0)
    assert more.layers[0].counts.tolist() == [[3, 2, 1], [2, 1, 1], [0, 0, 0]]
    assert more.layers[0].token_start.tolist() == [0, 3, 5, 5]
    assert any("the last 1 of 3 have no tokens" in note for note in more.notes)


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


def test_an_expert_beyond_the_model_is_refused_with_its_place():
    ids = np.array([[[0], [1]], [[2], [255]], [[255], [3]]], dtype=np.uint8)
    trace = Trace(name="t.npz", digest="", layers=2, experts=256, top_k=1, ids=ids, experts_stated=False)
    world = bare_setting(gpus=1, experts=4, top_k=1, layers=2, tokens_per_gpu=1, seed=0, read_trace=lambda path: trace, name="model")
    with pytest.raises(TraceError) as caught:
        Recorded(trace="t").begin(world)
    assert "t.npz: array ids: token 1, layer 1, choice 0: expert 255 does not exist in the model model, whose experts are 0 to 3" in str(
        caught.value
    )
    assert "write -1 for no choice" in str(caught.value)


@pytest.mark.parametrize(
    ("counts", "said"),
    [
        ([[[[2, 2, 0, 0]], [[3, 0, 0, 1]]]], "step 0, layer 7, source 0: expert 3 (of 1 routes) does not exist"),
        ([[[[2, 2, 0, 0]], [[3, 1, 0, 0]]]], "expert 3 (which is named, with no routes) does not exist"),
    ],
)
def test_a_count_of_an_expert_beyond_the_model_is_refused_with_its_place(counts, said):
    trace = counted(counts, by_source=True, experts_stated=False, layer_numbers=np.array([4, 7]))
    world = bare_setting(gpus=1, experts=2, top_k=2, layers=2, tokens_per_gpu=1, seed=0, read_trace=lambda path: trace)
    with pytest.raises(TraceError) as caught:
        Recorded(trace="c").begin(world)
    assert said in str(caught.value)


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


@pytest.mark.parametrize(("per_gpu", "said"), [(8, True), (9, False), (10, False), (11, False), (12, True)])
def test_counts_of_other_tokens_than_the_workload_s_are_noted_beyond_rounding(per_gpu, said):
    # 20 routes of top 2, 10 to each of two experts: 10 tokens. One more or less is what rounding up to whole tokens does; two is not.
    trace = counted([[[[10, 10]]]], by_source=True)
    notes = Recorded(trace="c").begin(world_for(trace, gpus=1, tokens=per_gpu))(0).notes
    assert any(f"has 10 to 10 tokens per GPU, not the {per_gpu} of" in note for note in notes) is said


def with_ranks(setting: Setting, ranks: Ranks, **more) -> Setting:
    return replace(setting, workload=replace(setting.workload, ranks=ranks, **more))


def test_unequal_ranks_take_their_own_next_tokens():
    trace = numbered(7)
    draw = Recorded(trace="t").begin(with_ranks(world_for(trace, gpus=2, tokens=2), Ranks(tokens=(3, 1))))
    assert dealt(draw, 0) == [[0, 1, 2], [3]]
    assert dealt(draw, 1) == [[4, 5, 6], [0]]
    assert draw(0).repeats is None
    # Every step takes 4 of 7 tokens from the same GPUs: step 7 is step 0 again.
    assert draw(7).repeats == 0
    assert dealt(draw, 7) == dealt(draw, 0)


def test_recorded_ranks_go_on_where_the_step_before_ended_in_any_order():
    trace = numbered(7)
    steps = (RankStep(tokens=(1, 2)), RankStep(tokens=(0, 1)))
    draw = Recorded(trace="t").begin(with_ranks(world_for(trace, gpus=2), Ranks(recorded=steps)))
    assert dealt(draw, 3) == [[], [0]]  # 3 + 1 + 3 = 7 tokens came before
    assert dealt(draw, 0) == [[0], [1, 2]]
    assert dealt(draw, 1) == [[], [3]]
    assert dealt(draw, 2) == [[4], [5, 6]]
    assert draw(2).repeats is None


def test_conversations_fill_unequal_ranks():
    trace = numbered(6, sample_length=np.array([2, 4], dtype=np.int64))
    draw = Recorded(trace="t", deal="conversations").begin(with_ranks(world_for(trace, gpus=2, tokens=2), Ranks(tokens=(4, 0))))
    of_first, of_second = dealt(draw, 0)
    assert len(of_first) == 4
    assert of_second == []


def test_a_deal_that_knows_its_ranks_refuses_others():
    trace = numbered(4)
    with pytest.raises(TraceError, match=r"deal: recorded says itself.*leave workload\.ranks out"):
        Recorded(trace="t", deal="recorded").begin(with_ranks(world_for(trace, gpus=2, tokens=2), Ranks(variation=0.1)))
