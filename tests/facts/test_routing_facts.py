"""What a routing knows, what it refuses, and how routes are counted, by hand."""

import numpy as np
import pytest

from moesim.base.errors import FidelityError
from moesim.facts.routing import Assignment, Fidelity, Kept, LayerRouting, count_routes
from moesim.facts.trace import Trace, blocks

# 2 GPUs with 2 and 1 tokens, 3 experts, 2 choices; the second token has one choice only.
IDS = np.array([[0, 2], [2, -1], [1, 0]])
START = [0, 2, 3]
WEIGHTS = np.array([[0.6, 0.4], [1.0, 0.0], [0.5, 0.5]])
SCORES = np.arange(9.0).reshape(3, 3)
COUNTS = [[1, 0, 2], [1, 1, 0]]


def routing(**known):
    return LayerRouting(experts=3, token_start=START, counts=COUNTS, **known)


LADDER = [
    ({}, Fidelity.COUNTS_BY_SOURCE, "counts by source"),
    ({"ids": IDS}, Fidelity.TOKENS, "tokens"),
    ({"ids": IDS, "weights": WEIGHTS}, Fidelity.WEIGHTS, "tokens with gate weights"),
    ({"ids": IDS, "weights": WEIGHTS, "scores": SCORES}, Fidelity.SCORES, "scores"),
    ({"scores": SCORES}, Fidelity.SCORES, "scores"),
]


@pytest.mark.parametrize(("known", "fidelity", "name"), LADDER)
def test_a_routing_knows_what_it_was_given(known, fidelity, name):
    made = routing(**known)
    assert made.fidelity is fidelity
    assert str(made.fidelity) == name


def test_knowing_more_is_larger():
    # Policies compare: whoever needs tokens is content with weights.
    ladder = [Fidelity.COUNTS, Fidelity.COUNTS_BY_SOURCE, Fidelity.TOKENS, Fidelity.WEIGHTS, Fidelity.SCORES]
    assert sorted(ladder, reverse=True) == ladder[::-1]
    assert len(set(map(str, ladder))) == 5
    assert str(Fidelity.COUNTS) == "counts"


@pytest.mark.parametrize(
    ("ask", "known", "message"),
    [
        ("need_ids", {}, "gate 'mine' needs to know the experts of each token, but this routing has counts by source only"),
        ("need_weights", {}, "gate 'mine' needs the gate weight of each choice, but this routing has counts by source only"),
        ("need_weights", {"ids": IDS}, "gate 'mine' needs the gate weight of each choice, but this routing has tokens only"),
        (
            "need_scores",
            {"ids": IDS, "weights": WEIGHTS},
            "gate 'mine' needs the router's scores over all experts, but this routing has tokens with gate weights only",
        ),
    ],
)
def test_who_needs_more_than_there_is_is_refused_by_name(ask, known, message):
    with pytest.raises(FidelityError) as caught:
        getattr(routing(**known), ask)("gate 'mine'")
    assert str(caught.value) == message


def test_who_needs_what_there_is_gets_it():
    made = routing(ids=IDS, weights=WEIGHTS, scores=SCORES)
    assert made.need_ids("x").tolist() == IDS.tolist()
    assert made.need_weights("x").tolist() == WEIGHTS.tolist()
    assert made.need_scores("x").tolist() == SCORES.tolist()


def test_sizes_and_sources():
    made = routing(ids=IDS)
    # 3 tokens of 2 choices make 6, one of which is no route.
    assert (made.gpus, made.tokens, made.routes) == (2, 3, 5)
    assert made.source_of_token().tolist() == [0, 0, 1]
    empty = LayerRouting(experts=3, token_start=[0, 0, 2, 2], counts=np.zeros((3, 3)))
    assert empty.source_of_token().tolist() == [1, 1]


def test_counting_leaves_out_missing_choices():
    # GPU 0: expert 0 once, expert 2 twice, and a choice of -1 that is nobody's, neither of the expert before nor of the GPU before.
    assert count_routes(IDS, START, 3).tolist() == COUNTS
    assert LayerRouting.of_tokens(IDS, START, 3).counts.tolist() == COUNTS
    # The -1 of the first token of GPU 1 would be expert 2 of GPU 0 if it were counted as a place in the flattened table.
    assert count_routes(np.array([[1], [-1], [0]]), [0, 1, 3], 3).tolist() == [[0, 1, 0], [1, 0, 0]]


def test_counting_tiny_ids_does_not_overflow():
    # 3 GPUs with 100 experts make 300 counters; ids of one byte hold 127 at most.
    ids = np.full((3, 1), 99, dtype=np.int8)
    assert np.argwhere(count_routes(ids, [0, 1, 2, 3], 100)).tolist() == [[0, 99], [1, 99], [2, 99]]


@pytest.mark.parametrize("start", [[0, 0, 0], [0, 0]])
def test_counting_no_tokens(start):
    gpus = len(start) - 1
    assert count_routes(np.zeros((0, 2), dtype=int), start, 3).tolist() == [[0, 0, 0]] * gpus


def test_rows_at_a_gpu_are_real_ones_and_padding():
    # Two groups of two GPUs, 3 slots: slots 0 and 2 on the first rank, slot 1 on the second; each source sees its own group's GPUs.
    counts = [[1, 2, 4], [3, 0, 0], [0, 5, 0], [0, 0, 7]]
    padding = [[0, 10, 20], [0, 0, 0], [30, 0, 0], [0, 40, 0]]
    assignment = Assignment(
        kept=Kept(routing=LayerRouting(experts=3, token_start=np.arange(5), counts=counts), dropped=0, padding=padding),
        slot_counts=np.array(counts),
        slot_padding=np.array(padding),
        destination=np.array([[0, 1, 0], [0, 1, 0], [2, 3, 2], [2, 3, 2]]),
    )
    # GPU 0 sends 1 + 4 + 20 to itself and 2 + 10 to GPU 1; GPU 3 sends 7 to GPU 2 and 40 to itself. Nothing leaves a group.
    assert assignment.rows_at().tolist() == [[25, 12, 0, 0], [3, 0, 0, 0], [0, 0, 30, 5], [0, 0, 7, 40]]


@pytest.mark.parametrize(
    ("tokens", "ranks", "bounds"),
    [
        (8, 4, [0, 2, 4, 6, 8]),
        (10, 4, [0, 3, 6, 9, 10]),  # not divisible: the last block is shorter
        (5, 4, [0, 2, 4, 5, 5]),  # rounding up can leave the last rank nothing
        (2, 4, [0, 1, 2, 2, 2]),  # fewer tokens than ranks
        (0, 3, [0, 0, 0, 0]),
        (7, 1, [0, 7]),
    ],
)
def test_blocks_are_equal_and_contiguous(tokens, ranks, bounds):
    assert blocks(tokens, ranks).tolist() == bounds


@pytest.mark.parametrize(
    ("known", "fidelity"),
    [
        ({"counts": np.ones((1, 1, 1, 3))}, Fidelity.COUNTS),
        ({"counts": np.ones((1, 1, 2, 3)), "by_source": True}, Fidelity.COUNTS_BY_SOURCE),
        ({"ids": IDS[:, None]}, Fidelity.TOKENS),
        ({"ids": IDS[:, None], "weights": WEIGHTS[:, None]}, Fidelity.WEIGHTS),
        ({"ids": IDS[:, None], "scores": SCORES[:, None]}, Fidelity.SCORES),
    ],
)
def test_a_trace_meets_needs_up_to_what_it_knows(known, fidelity):
    trace = Trace(name="t.npz", digest="0", layers=1, experts=3, top_k=2, **known)
    assert trace.fidelity is fidelity
    assert trace.tokens == (3 if "ids" in known else 0)
    for needed in Fidelity:
        if needed <= fidelity:
            trace.need(needed, "gate 'mine'")
            continue
        with pytest.raises(FidelityError) as caught:
            trace.need(needed, "gate 'mine'")
        assert str(caught.value) == f"gate 'mine' needs {needed}, but the trace t.npz has {fidelity} only"
