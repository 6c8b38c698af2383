"""Direct exchange: the bytes it asks for, against counting one route at a time."""

from types import SimpleNamespace

import numpy as np
import pytest
from assignments import WIDTH, assign, assignments, model
from examples import examples
from hypothesis import given, settings
from hypothesis import strategies as st

from moesim.base.errors import FidelityError, UsageError
from moesim.base.registry import build, kinds
from moesim.facts.routing import Assignment
from moesim.facts.traffic import Traffic
from moesim.models.exchange.direct import Direct
from moesim.models.exchange.payload import payload_bytes


def carry(plan, assignment, top_k, direction="forward"):
    group = SimpleNamespace(ep=len(set(assignment.destination[0].tolist())))  # every GPU of a group holds slots
    return plan.begin(SimpleNamespace(model=model(top_k), parallel=group))(assignment, direction=direction)


def count_by_hand(assignment, deduplicate):
    gpus = len(assignment.slot_counts)
    copies = np.zeros((gpus, gpus), dtype=int)
    start = assignment.kept.routing.token_start
    for source in range(gpus):
        for token in range(start[source], start[source + 1]):
            there = [int(assignment.destination[source, slot]) for slot in assignment.slots[token] if slot >= 0]
            for destination in set(there) if deduplicate else there:
                copies[source, destination] += 1
    np.fill_diagonal(copies, 0)
    return copies


def padding_by_hand(assignment):
    gpus = len(assignment.slot_counts)
    rows = np.zeros((gpus, gpus), dtype=int)
    for source in range(gpus):
        for slot, count in enumerate(assignment.slot_padding[source]):
            rows[source, assignment.destination[source, slot]] += count
    np.fill_diagonal(rows, 0)
    return rows


@examples(60)
@given(case=assignments(), deduplicate=st.booleans())
def test_l2_bytes_asked_equal_counting_one_by_one(case, deduplicate):
    assignment, top_k, _ = case
    plan = Direct(deduplicate=deduplicate)
    copies, padding = count_by_hand(assignment, deduplicate), padding_by_hand(assignment)
    expected = copies + padding  # both are sent
    choices = top_k if deduplicate else 1
    forward = carry(plan, assignment, top_k)
    assert (forward.dispatch[0].copies == copies).all()
    assert (forward.dispatch[0].padding == padding).all()
    assert (forward.combine[0].padding == padding.T).all()
    assert (forward.dispatch[0].bytes == expected * (2 * WIDTH + 8 * choices)).all()
    assert (forward.combine[0].bytes == expected.T * 2 * WIDTH).all()
    backward = carry(plan, assignment, top_k, "backward")
    assert (backward.combine[0].bytes == expected * 2 * WIDTH).all()
    assert (backward.dispatch[0].bytes == expected.T * (2 * WIDTH + 4 * choices)).all()
    assert (backward.dispatch[0].copies == copies.T).all()
    assert (backward.dispatch[0].padding == padding.T).all()


@settings(max_examples=40, deadline=None)
@given(case=assignments(), deduplicate=st.booleans())
def test_l1_tokens_no_token_has_more_copies_than_choices_whatever_the_padding(case, deduplicate):
    assignment, top_k, _ = case
    sent = carry(Direct(deduplicate=deduplicate), assignment, top_k).dispatch[0]
    tokens = np.diff(assignment.kept.routing.token_start)
    assert (sent.copies.sum(axis=1) <= tokens * top_k).all()


def test_traffic_without_padding_says_so_in_zeros():
    plain = Traffic(bytes=np.ones((2, 2)), copies=np.ones((2, 2)))
    assert plain.padding.tolist() == [[0, 0], [0, 0]]
    assert not plain.padding.flags.writeable
    empty = Traffic(bytes=np.zeros((0, 0)), copies=np.zeros((0, 0)))
    assert empty.padding.shape == (0, 0)


@settings(max_examples=40, deadline=None)
@given(case=assignments())
def test_deduplication_never_sends_more_copies(case):
    assignment, top_k, _ = case
    once = carry(Direct(), assignment, top_k).dispatch[0].copies
    each = carry(Direct(deduplicate=False), assignment, top_k).dispatch[0].copies
    assert (once <= each).all()


@settings(max_examples=40, deadline=None)
@given(case=assignments(), deduplicate=st.booleans(), direction=st.sampled_from(["forward", "backward"]))
def test_groups_never_exchange(case, deduplicate, direction):
    assignment, top_k, groups = case
    gpus = len(assignment.slot_counts)
    group = np.arange(gpus) // (gpus // groups)
    apart = group[:, None] != group[None, :]
    exchange = carry(Direct(deduplicate=deduplicate), assignment, top_k, direction)
    for stage in (*exchange.dispatch, *exchange.combine):
        assert not stage.bytes[apart].any()
        assert not np.diag(stage.bytes).any()


@pytest.mark.parametrize("tokens_known", [True, False])
def test_l15_expert_parallelism_of_one_sends_nothing(tokens_known):
    # Two groups of one GPU each: every expert is at home, so counts alone are enough even with de-duplication.
    assignment = assign([[0, 1], [1, 2], [0, 2]], [0, 2, 3], 3, groups=2, padding=np.ones((2, 3)), tokens_known=tokens_known)
    exchange = carry(Direct(), assignment, 2)
    assert not exchange.dispatch[0].bytes.any()
    assert not exchange.combine[0].bytes.any()


def test_by_hand():
    # GPU 0 has slots 0 and 1, GPU 1 has 2 and 3. GPU 0's tokens: {2, 3} (one copy, or two) and {0, 2}; GPU 1's: {2, 1}.
    assignment = assign([[2, 3], [0, 2], [2, 1]], [0, 2, 3], 2)
    assert carry(Direct(), assignment, 2).dispatch[0].copies.tolist() == [[0, 2], [1, 0]]
    assert carry(Direct(deduplicate=False), assignment, 2).dispatch[0].copies.tolist() == [[0, 3], [1, 0]]
    # 2 copies of 256 fp8 elements, two 4-byte scales, and two choices of 8 bytes.
    fp8 = carry(Direct(dispatch_dtype="fp8"), assignment, 2)
    assert fp8.dispatch[0].bytes[0, 1] == 2 * (256 + 8 + 16)
    assert fp8.combine[0].bytes[1, 0] == 2 * 512


def test_payload_carries_scales_only_where_there_are_some():
    assert payload_bytes(7168, "bf16", 128) == 14336
    assert payload_bytes(7168, "fp8", 128) == 7168 + 56 * 4
    assert payload_bytes(130, "fp8", 128) == 130 + 2 * 4
    assert payload_bytes(32, "mxfp4", 128) == 17


def test_counts_refuse_deduplication_by_name():
    assignment = assign([[2, 3], [0, 2]], [0, 1, 2], 2, tokens_known=False)
    with pytest.raises(FidelityError, match=r"exchange\.deduplicate needs to know the experts of each token.*counts by source only"):
        carry(Direct(), assignment, 2)
    assert carry(Direct(deduplicate=False), assignment, 2).dispatch[0].copies.tolist() == [[0, 2], [1, 0]]


def test_slots_that_nobody_bound_are_refused():
    known = assign([[2, 3], [0, 2]], [0, 1, 2], 2)
    unbound = Assignment(
        kept=known.kept, slot_counts=known.slot_counts, slot_padding=known.slot_padding, destination=known.destination, slots=None
    )
    with pytest.raises(FidelityError, match="needs the slot of each route"):
        carry(Direct(), unbound, 2)


def test_start_and_launch_reach_the_engine():
    assignment = assign([[0], [1]], [0, 1, 2], 1)
    made = build(kinds("exchange")["direct"], {"start": "barrier", "launch": "3 us"})
    exchange = carry(made, assignment, 1)
    assert exchange.barrier
    assert exchange.launch == 3e-6
    assert not carry(Direct(), assignment, 1).barrier
    with pytest.raises(UsageError, match="unknown direction"):
        carry(Direct(), assignment, 1, "sideways")
