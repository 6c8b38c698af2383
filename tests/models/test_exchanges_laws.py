"""What every exchange obeys, against following each token or row on its own."""

import dataclasses

import numpy as np
import pytest
from assignments import WIDTH, assign, assignments_of, setting
from examples import examples
from hypothesis import given
from hypothesis import strategies as st

from moesim.base.registry import kinds
from moesim.models.exchange.allgather import AllGather
from moesim.models.exchange.direct import Direct
from moesim.models.exchange.hierarchical import Hierarchical
from moesim.models.exchange.low_latency import LowLatency
from moesim.models.exchange.padded import Padded
from moesim.models.exchange.two_dimensional import TwoDimensional

# The only exchange that needs something of the capacity rule is `padded`; it gets a rule that has a capacity and does not pad.
EXCHANGES = [kind() for kind in kinds("exchange").values()] + [
    AllGather(algorithm="ring"),
    TwoDimensional(padded=True),
    Direct(deduplicate=False),
    Hierarchical(pipelined=False),
]


@st.composite
def cases(draw, groups=(1, 2)):
    """An assignment without padding, under a rule with a capacity, and a cluster whose nodes divide every group evenly."""
    group_count, ranks, per_gpu = draw(st.sampled_from(groups)), draw(st.integers(1, 6)), draw(st.integers(1, 3))
    assignment, top_k, _ = draw(assignments_of(group_count, ranks, per_gpu))
    gpus = group_count * ranks
    nodes = draw(
        st.sampled_from([n for n in range(1, gpus + 1) if gpus % n == 0 and (ranks % (gpus // n) == 0 or (gpus // n) % ranks == 0)])
    )
    counts = assignment.slot_counts
    kept = dataclasses.replace(assignment.kept, padding=np.zeros_like(counts), capacity=counts.max(axis=1, initial=0))
    bound = dataclasses.replace(assignment, kept=kept, slot_padding=np.zeros_like(counts))
    return bound, setting(top_k, gpus=gpus, nodes=nodes, ep=ranks)


def forward(plan, assignment, world):
    return plan.begin(world)(assignment, direction="forward")


def tokens_of(assignment):
    """Yield the source of each token and the GPUs of its choices, one entry per choice."""
    start = assignment.kept.routing.token_start
    for source in range(len(start) - 1):
        for token in range(start[source], start[source + 1]):
            yield source, [int(assignment.destination[source, slot]) for slot in assignment.slots[token] if slot >= 0]


def local_index(world, gpu):
    """Position of a GPU among the ranks of its own group in its own node."""
    ranks = world.parallel.ep
    node_of = world.cluster.node_of
    return sum(node_of[other] == node_of[gpu] for other in range(gpu // ranks * ranks, gpu))


def partner(world, source, node):
    """The GPU of the source's group in a node that has the source's local index."""
    ranks = world.parallel.ep
    first = source // ranks * ranks
    there = [gpu for gpu in range(first, first + ranks) if world.cluster.node_of[gpu] == node]
    return there[local_index(world, source)]


@examples(50)
@given(case=cases())
def test_l1_hierarchical_brings_every_token_to_every_gpu_that_needs_it(case):
    # Each token is followed: who has it after each stage, with one send for each GPU that then has it for the first time.
    assignment, world = case
    gpus = world.gpus
    sent = np.zeros((2, gpus, gpus), dtype=int)
    for source, places in tokens_of(assignment):
        holders = {source}
        for node in {world.cluster.node_of[place] for place in places} - {world.cluster.node_of[source]}:
            sent[0, source, partner(world, source, node)] += 1
            holders.add(partner(world, source, node))
        landed = frozenset(holders)
        for place in sorted(set(places) - landed):
            (holder,) = [gpu for gpu in landed if world.cluster.node_of[gpu] == world.cluster.node_of[place]]
            sent[1, holder, place] += 1
            holders.add(place)
        assert set(places) <= holders
    stages = forward(Hierarchical(), assignment, world).dispatch
    total = sum(stage.copies for stage in stages)
    assert (total == sent.sum(axis=0)).all()
    if len(stages) == 2:
        assert (stages[0].copies == sent[0]).all()
        assert (stages[1].copies == sent[1]).all()


@examples(50)
@given(case=cases())
def test_l1_two_dimensional_brings_every_row_to_its_gpu(case):
    # A row first goes to the GPU of its node with the local index of its destination, then to its destination; and so on the way back.
    assignment, world = case
    exchange = forward(TwoDimensional(), assignment, world)
    for stages, rows in ((exchange.dispatch, assignment.routes_at()), (exchange.combine, assignment.routes_at().T)):
        sent = np.zeros((2, world.gpus, world.gpus), dtype=int)
        for source, place in np.argwhere(rows):
            middle = partner(world, place, world.cluster.node_of[source])
            sent[0, source, middle] += rows[source, place] * (source != middle)
            sent[1, middle, place] += rows[source, place] * (middle != place)
        assert (sum(stage.copies for stage in stages) == sent.sum(axis=0)).all()
        crosses = world.cluster.crosses_nodes()
        if len(stages) == 2:
            assert not stages[0].copies[crosses].any()
            assert not stages[1].copies[~crosses].any()


@examples(50)
@given(case=cases())
def test_l2_hierarchical_crosses_nodes_once_per_token_and_node_and_no_other_exchange_less(case):
    assignment, world = case
    crosses = world.cluster.crosses_nodes()

    def across(plan):
        exchange = forward(plan, assignment, world)
        return [sum(int(stage.copies[crosses].sum()) for stage in stages) for stages in (exchange.dispatch, exchange.combine)]

    node_of = world.cluster.node_of
    pairs = sum(len({node_of[place] for place in places} - {node_of[source]}) for source, places in tokens_of(assignment))
    hierarchical, direct, low_latency = across(Hierarchical()), across(Direct()), across(LowLatency())
    assert hierarchical == [pairs, pairs]
    assert hierarchical[0] <= direct[0] <= low_latency[0]
    # An all-to-all in two dimensions takes other ways, with the same rows between nodes; each GPU of an all-gather gets every token.
    assert across(TwoDimensional()) == low_latency
    assert across(AllGather())[0] >= direct[0]


@examples(30)
@given(case=cases(), other=st.integers(0, 2**20))
def test_l2_padded_bytes_do_not_depend_on_the_routing(case, other):
    assignment, world = case
    rng = np.random.default_rng(other)
    capacity = assignment.kept.capacity
    # Other counts that fit into the same buffers.
    counts = rng.integers(0, capacity[:, None] + 1, size=assignment.slot_counts.shape)
    changed = dataclasses.replace(assignment, slot_counts=counts)
    for plan in (Padded(), TwoDimensional(padded=True)):
        one, two = forward(plan, assignment, world), forward(plan, changed, world)
        for ours, theirs in zip((*one.dispatch, *one.combine), (*two.dispatch, *two.combine), strict=True):
            assert (ours.bytes == theirs.bytes).all()
    slots = assignment.slot_counts.shape[1]
    away = slots - slots // world.parallel.ep
    assert forward(Padded(), assignment, world).dispatch[0].bytes.sum() == (capacity * away * 2 * WIDTH).sum()


@examples(30)
@given(case=cases(), ring=st.booleans())
def test_l2_an_allgather_gives_every_token_to_every_gpu_once(case, ring):
    assignment, world = case
    ranks, k = world.parallel.ep, world.model.top_k
    tokens = np.diff(assignment.kept.routing.token_start)
    exchange = forward(AllGather(algorithm="ring" if ring else "direct"), assignment, world)
    of_group = np.repeat(tokens.reshape(-1, ranks).sum(axis=1), ranks)
    zero = np.zeros((world.gpus, world.gpus))
    received = sum((stage.bytes for stage in exchange.dispatch), zero).sum(axis=0)
    returned = sum((stage.bytes for stage in exchange.combine), zero).sum(axis=1)
    assert (received == (of_group - tokens) * (2 * WIDTH + 8 * k)).all()
    assert (returned == (of_group - tokens) * 2 * WIDTH).all()
    if ring:
        # A token is passed on only by a GPU that has it: by its own in the first step, then by who got it in the step before.
        has = np.eye(world.gpus, dtype=bool)
        for stage in exchange.dispatch:
            there = np.where(stage.copies.any(axis=1), stage.copies.argmax(axis=1), -1)
            moved = np.zeros_like(has)
            for gpu in np.flatnonzero(there >= 0):
                moved[there[gpu]] |= has[gpu]
            has |= moved
        assert (has | ~((tokens[None, :] > 0) & (np.arange(world.gpus)[:, None] // ranks == np.arange(world.gpus) // ranks))).all()


@examples(50)
@given(case=cases(), plan=st.sampled_from(EXCHANGES))
def test_l2_gradients_take_the_opposite_ways(case, plan):
    assignment, world = case
    carry = plan.begin(world)
    there, back = carry(assignment, direction="forward"), carry(assignment, direction="backward")
    for one, other in ((there.dispatch, back.combine), (there.combine, back.dispatch)):
        for ours, theirs in zip(one, other, strict=True):
            assert (ours.copies == theirs.copies).all()
            assert (ours.padding == theirs.padding).all()
            assert ((ours.bytes > 0) == (theirs.bytes > 0)).all()


@pytest.mark.parametrize("plan", EXCHANGES, ids=lambda plan: f"{plan.kind}-{EXCHANGES.index(plan)}")
def test_l15_one_rank_sends_nothing_by_any_exchange(plan):
    world = setting(2, gpus=2, nodes=1, ep=1)
    alone = assign([[0, 1], [1, 2], [0, 2]], [0, 2, 3], 3, groups=2, capacity=np.array([2, 2]))
    for direction in ("forward", "backward"):
        exchange = plan.begin(world)(alone, direction=direction)
        assert not any(stage.bytes.any() or stage.copies.any() for stage in (*exchange.dispatch, *exchange.combine))
