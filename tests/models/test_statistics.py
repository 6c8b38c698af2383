"""What a recording says by itself, added up over several steps by hand."""

import numpy as np
import pytest

from moesim.base.errors import UsageError
from moesim.base.registry import plugin
from moesim.facts.trace import Trace
from moesim.models.statistics import NO_SOURCES, NO_TOP_K, layer_statistics, questions, ranks_of, why_no_drops, with_shape

MEGATRON = plugin("capacity", "megatron")(factor=1.0)


def two_steps(**changes):
    """Return 12 tokens of one choice among 4 experts: 8 of step 0 all take expert 0, 4 of step 5 all take expert 1."""
    given = {
        "name": "t.npz",
        "digest": "0",
        "layers": 1,
        "experts": 4,
        "top_k": 1,
        "ids": np.array([0] * 8 + [1] * 4).reshape(12, 1, 1),
        "weights": np.linspace(0.9, 0.1, 12).reshape(12, 1, 1),
        "step": np.array([0] * 8 + [5] * 4),
    }
    return Trace(**(given | changes))


def test_drops_of_all_steps_are_added_and_capacity_is_the_largest():
    # One rank, factor 1: step 0 takes ceil(8 * 1 / 4) = 2 of 8 to an expert, step 5 takes 1 of 4: 6 + 3 tokens lose their only route.
    (row,) = layer_statistics(two_steps(), ranks=1, begin=MEGATRON.begin)
    assert (row["tokens"], row["routes"], row["dropped"], row["fully_dropped"], row["capacity"]) == (12, 12, 9, 9, 2)
    assert row["drop_rate"] == 9 / 12
    # Loads 8, 4, 0, 0: mean 3, two experts without a token.
    assert (row["expert_max"], row["expert_mean"], row["dead_experts"]) == (8, 3.0, 2)
    assert row["expert_max_over_mean"] == 8 / 3


def test_each_rank_has_its_own_capacity_and_ranks_hold_blocks_of_experts():
    # Two ranks get halves of each step: 4 tokens each take 1 of 4 (3 dropped, twice), then 2 each take ceil(2 / 4) = 1 of 2 (twice).
    (row,) = layer_statistics(two_steps(), ranks=2, begin=MEGATRON.begin)
    assert (row["dropped"], row["fully_dropped"], row["capacity"]) == (2 * 3 + 2 * 1, 8, 1)
    # Experts 0 and 1 sit on rank 0.
    assert (row["rank_max"], row["rank_mean"], row["dead_ranks"]) == (12, 6.0, 1)


def test_a_token_that_keeps_one_route_is_not_lost():
    # Top 2, two steps of two tokens, C = ceil(2 * 2 / 4) = 1: both tokens of a step want expert 0, which drops one of them; the other
    # choices (1 and 2, then 3 and 1) meet nobody, so every token keeps one.
    ids = np.array([[0, 1], [0, 2], [0, 3], [0, 1]]).reshape(4, 1, 2)
    trace = two_steps(top_k=2, ids=ids, weights=np.full((4, 1, 2), 0.5), step=np.array([0, 0, 1, 1]))
    (row,) = layer_statistics(trace, ranks=1, begin=MEGATRON.begin)
    assert (row["routes"], row["dropped"], row["fully_dropped"]) == (8, 2, 0)


def test_counts_know_no_tokens_that_lose_everything():
    # Two steps of one source: 6 and 2 routes to expert 0, top 1: at least as many tokens, C = 2 and 1, so 4 and 1 dropped.
    counts = np.array([[[[6, 0, 0, 0]]], [[[2, 0, 0, 0]]]])
    trace = two_steps(ids=None, weights=None, step=None, counts=counts, by_source=True)
    (row,) = layer_statistics(trace, ranks=1, begin=MEGATRON.begin)
    assert (row["tokens"], row["routes"], row["dropped"], row["fully_dropped"], row["capacity"]) == (8, 8, 5, None, 2)


def test_without_a_rule_drops_are_unknown_not_zero():
    (row,) = layer_statistics(two_steps(), ranks=1, begin=None)
    assert (row["dropped"], row["drop_rate"], row["fully_dropped"], row["capacity"]) == (None, None, None, None)
    assert (row["tokens"], row["routes"]) == (12, 12)


def test_experts_that_do_not_divide_leave_the_load_of_ranks_unknown():
    (row,) = layer_statistics(two_steps(), ranks=3, begin=None)
    assert row["rank_max"] is row["rank_mean"] is row["dead_ranks"] is None
    assert row["expert_max"] == 8


def test_ranks_are_those_that_were_recorded():
    assert ranks_of(two_steps(source=np.array([0] * 4 + [2] * 4 + [1] * 4))) == 3
    assert ranks_of(two_steps()) == 1
    assert ranks_of(two_steps(ids=None, weights=None, step=None, counts=np.ones((1, 1, 5, 4), dtype=int), by_source=True)) == 5


COUNTS = {"ids": None, "weights": None, "step": None}


def test_experts_that_a_file_does_not_state_come_after_those_it_uses():
    # Counts of experts 0 and 1; the model has 4: the last two have no routes.
    counts = np.array([[[[3, 5]]]])
    trace = with_shape(two_steps(**COUNTS, counts=counts, experts=2, experts_stated=False, by_source=True), experts=4, top_k=None)
    assert trace.experts == 4
    assert trace.counts.tolist() == [[[[3, 5, 0, 0]]]]
    (row,) = layer_statistics(trace, ranks=1, begin=None)
    assert (row["expert_max"], row["expert_mean"], row["dead_experts"]) == (5, 2.0, 2)


def test_numbers_that_contradict_a_file_are_refused():
    with pytest.raises(UsageError, match=r"--experts 8 contradicts the trace t\.npz, which says it has 4 experts"):
        with_shape(two_steps(), experts=8, top_k=None)
    with pytest.raises(UsageError, match=r"--experts 3 is too small: the trace t\.npz uses expert 3"):
        with_shape(two_steps(experts_stated=False), experts=3, top_k=None)
    with pytest.raises(UsageError, match=r"--top-k 2 contradicts the trace t\.npz, which has 1 choices per token"):
        with_shape(two_steps(), experts=None, top_k=2)
    # What agrees, and what the file leaves open, is taken.
    assert with_shape(two_steps(), experts=4, top_k=1).top_k == 1
    open_to_all = two_steps(**COUNTS, counts=np.ones((1, 1, 1, 4), dtype=int), top_k=0)
    assert with_shape(open_to_all, experts=None, top_k=2).top_k == 2


def test_drops_need_sources_and_choices():
    counts = np.ones((1, 1, 1, 4), dtype=int)
    without = two_steps(**COUNTS, counts=counts)
    # One rank is its own source, so nothing is missing; of two nobody knows which sends a route.
    assert (why_no_drops(without, 1), why_no_drops(without, 2)) == ("", NO_SOURCES)
    by_source = np.ones((1, 1, 2, 4), dtype=int)
    assert why_no_drops(two_steps(**COUNTS, counts=by_source, by_source=True), 2) == ""
    assert why_no_drops(two_steps(**COUNTS, counts=by_source, by_source=True, top_k=0), 2) == NO_TOP_K
    assert why_no_drops(two_steps(), 2) == ""


def answered(**changes):
    return [answer.possible for answer in questions(two_steps(**changes))]


def test_a_trace_answers_what_it_knows_and_says_why_not():
    # Load, bytes and drops, lost tokens, drops by weight, other gates, conversations, changes from step to step.
    counts = np.ones((1, 1, 1, 4), dtype=int)
    assert answered() == [True, True, True, True, False, False, True]
    assert answered(weights=None, step=None) == [True, True, True, False, False, False, False]
    assert answered(scores=np.zeros((12, 1, 4)), sample_length=np.array([12])) == [True] * 7
    assert answered(**COUNTS, counts=counts) == [True] + [False] * 6
    assert answered(**COUNTS, counts=counts, by_source=True) == [True, True] + [False] * 5
    # Several steps of counts show changes as well as numbered tokens do.
    assert answered(**COUNTS, counts=np.ones((2, 1, 1, 4), dtype=int)) == [True, *[False] * 5, True]
    for answer in questions(two_steps(**COUNTS, counts=counts)):
        assert answer.possible or answer.reason, answer.question
