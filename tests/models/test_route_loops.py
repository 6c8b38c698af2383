"""Compiled loops over routes against the NumPy code that they stand in for."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moesim.base.errors import FidelityError
from moesim.facts.placement import Placement
from moesim.facts.routing import Kept, LayerRouting, count_routes
from moesim.models import compiled_loops, route_loops
from moesim.models.capacity.orders import by_position, by_weight
from moesim.models.capacity.survivors import keep_first, keep_in_queues, what_is_left
from moesim.models.dispatch.even import split_evenly
from moesim.models.exchange.copies import copies_per_token
from moesim.models.gate.groups import best_groups
from moesim.models.gate.select import largest


def both_ways(call):
    """Return what a call gives with compiled loops, whatever the size, and without."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compiled_loops, "FEWEST", 1)
        patch.setattr(compiled_loops, "WORTH_LOADING", 0)
        used = []
        for name in ("keep_lowest", "strike", "tokens_between", "turns", "best_first", "within_best_groups"):
            inner = getattr(route_loops, name)
            patch.setattr(route_loops, name, lambda *given, inner=inner, name=name: used.append(name) or inner(*given))
        compiled = call()
        patch.setattr(compiled_loops, "_loops", lambda: None)
        return compiled, call(), used


@st.composite
def layers(draw) -> LayerRouting:
    """Up to 600 tokens on up to 5 GPUs, with missing choices and weights that tie."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    experts, gpus = draw(st.integers(2, 12)), draw(st.integers(1, 5))
    choices = draw(st.integers(1, min(experts, 4)))
    start = np.concatenate([[0], np.cumsum(rng.integers(0, draw(st.integers(1, 120)), size=gpus))])
    shares = rng.dirichlet(np.full(experts, draw(st.sampled_from([0.2, 1.0, 50.0]))))
    shares = (shares + 1e-6) / (shares + 1e-6).sum()
    ids = np.array([rng.choice(experts, choices, replace=False, p=shares) for _ in range(start[-1])]).reshape(-1, choices).astype(np.int32)
    ids[rng.random(ids.shape) < draw(st.sampled_from([0.0, 0.2]))] = -1
    levels = draw(st.sampled_from([2, 2**20]))
    weights = (rng.integers(1, levels, size=ids.shape, endpoint=True) / levels).astype(np.float32)
    return LayerRouting.of_tokens(ids, start, experts, weights=weights)


@settings(max_examples=60, deadline=None)
@given(routing=layers(), share=st.floats(0.0, 1.2), order=st.sampled_from([by_position, lambda routing: by_weight(routing.weights)]))
def test_what_stays_is_the_same_both_ways(routing, share, order) -> None:
    limit = np.full(routing.gpus, int(share * routing.counts.max(initial=0)), dtype=np.int64)

    def kept():
        keep = keep_first(routing, limit, order(routing))
        return keep, what_is_left(routing, capacity=limit, limit=limit, rows=None, keep=keep, weights=routing.weights)

    (keep, left), (keep_expected, expected), used = both_ways(kept)
    np.testing.assert_array_equal(keep, keep_expected)
    np.testing.assert_array_equal(left.routing.ids, expected.routing.ids)
    np.testing.assert_array_equal(left.routing.weights, expected.routing.weights)
    assert left.routing.ids.dtype == expected.routing.ids.dtype
    assert left.fully_dropped == expected.fully_dropped
    assert not left.routing.ids.flags.writeable
    assert ("keep_lowest" in used) == bool((routing.counts > limit[:, None]).any())
    assert ("strike" in used) == bool(routing.ids.size)


@settings(max_examples=60, deadline=None)
@given(routing=layers(), spare=st.integers(0, 6), seed=st.integers(0, 1000))
def test_slots_and_copies_are_the_same_both_ways(routing, spare, seed) -> None:
    # Every expert has a slot, some have several; slots of a rank are in any order.
    rng = np.random.default_rng(seed)
    ranks = routing.gpus
    slots = -(-(routing.experts + spare) // ranks) * ranks
    held = rng.permutation(np.concatenate([np.arange(routing.experts), rng.integers(routing.experts, size=slots - routing.experts)]))
    placement = Placement(expert_of_slot=held[None, :], rank_of_slot=np.repeat(np.arange(ranks), slots // ranks))
    none = np.zeros_like(routing.counts)

    def bound():
        assignment = split_evenly(Kept(routing=routing, dropped=none, padding=none), placement, moe_layer=0, ranks=ranks)
        own, sent = (copies_per_token(assignment, "a test", ranks=ranks, own=own) for own in (True, False))
        return assignment, own, sent

    (one, own, sent), (other, own_expected, sent_expected), used = both_ways(bound)
    np.testing.assert_array_equal(one.slots, other.slots)
    assert one.slots.dtype == other.slots.dtype
    assert not one.slots.flags.writeable
    np.testing.assert_array_equal(own, own_expected)
    np.testing.assert_array_equal(sent, sent_expected)
    assert ("turns" in used) == bool(routing.ids.size)
    assert ("tokens_between" in used) == (bool(routing.ids.size) and ranks > 1)


@pytest.mark.parametrize("shape", ["rising", "falling", "organ pipe", "saw", "equal", "highest first"])
def test_orders_that_defeat_pivots_are_sorted_all_the_same(shape) -> None:
    # A queue of 5,000 with room for every number of routes that is interesting; the lowest are kept, of equal ones the first.
    many = 5000
    place = np.arange(many)
    order = {
        "rising": place,
        "falling": many - place,
        "organ pipe": np.minimum(place, many - place),
        "saw": place % 7,
        "equal": np.zeros(many, dtype=np.int64),
        "highest first": np.where(place == 0, 2**32 - 1, place),
    }[shape]
    ranked = np.argsort(order, kind="stable")
    for room in (0, 1, 17, 2500, 4999):
        keep = np.ones(many, dtype=np.bool_)
        route_loops.keep_lowest(keep, np.zeros(many, dtype=np.int64), np.array([many]), np.array([room]), order.astype(np.int64))
        np.testing.assert_array_equal(np.flatnonzero(keep), np.sort(ranked[:room]), err_msg=str(room))


def test_many_partitions_end_in_a_sort(monkeypatch) -> None:
    # The plain Python of the loop, with one round allowed: the rest of the queue is sorted.
    monkeypatch.setattr(route_loops, "ROUNDS", 1)
    words = np.random.default_rng(3).permutation(1000).astype(np.int64)
    route_loops._lowest_first.py_func(words, 0, 1000, 400)
    assert sorted(words[:400].tolist()) == list(range(400))


def test_lengths_that_are_wrong_are_refused() -> None:
    keep, queue, order = np.ones(3, dtype=np.bool_), np.zeros(3, dtype=np.int64), np.arange(3)
    for length, room in (([2], [1]), ([4], [1])):
        with pytest.raises(ValueError, match="routes stand in a queue than it is long"):
            route_loops.keep_lowest(keep.copy(), queue, np.array(length), np.array(room), order)
    with pytest.raises(ValueError, match="does not exist"):
        route_loops.keep_lowest(keep, queue + 1, np.array([3]), np.array([1]), order)
    with pytest.raises(ValueError, match="slot that does not exist"):
        route_loops.tokens_between(np.array([[2]], dtype=np.int32), np.array([0, 1]), np.zeros((1, 2), dtype=np.int64), 1)
    with pytest.raises(ValueError, match="leaves the group"):
        route_loops.tokens_between(np.array([[0]], dtype=np.int32), np.array([0, 1, 1]), np.ones((2, 1), dtype=np.int64), 1)
    one = np.array([1])
    for expert, number in ((1, 1), (0, 0)):
        with pytest.raises(ValueError, match="has no slot"):
            route_loops.turns(np.array([[expert]], dtype=np.int32), np.array([0, 1]), np.array([number]), 0 * one, 0 * one, 0 * one)


def test_compiled_code_is_loaded_only_when_it_pays(monkeypatch) -> None:
    monkeypatch.setattr(compiled_loops, "_HANDLED", compiled_loops._Handled())
    monkeypatch.setattr(compiled_loops, "WORTH_LOADING", 3000)
    few, many = np.zeros(100), np.zeros(2000)
    assert compiled_loops.loops_for(few) is None
    assert compiled_loops.loops_for(many) is None  # 2,000 so far; few routes do not count
    assert compiled_loops.loops_for(many) is route_loops
    assert compiled_loops.loops_for(np.zeros((2000, 2)).T) is None


@settings(max_examples=40, deadline=None)
@given(routing=layers())
def test_routes_are_counted_the_same_gpu_by_gpu(routing) -> None:
    counted = np.zeros((routing.gpus, routing.experts), dtype=np.int64)
    for token, source in enumerate(routing.source_of_token().tolist()):
        for expert in routing.ids[token].tolist():
            if expert >= 0:
                counted[source, expert] += 1
    np.testing.assert_array_equal(count_routes(routing.ids, routing.token_start, routing.experts), counted)


def test_queues_of_devices_use_the_same_loop() -> None:
    # Queues that are not those of a source and an expert: three, one with room for all.
    rng = np.random.default_rng(5)
    queue = rng.integers(3, size=(400, 2))
    length = np.bincount(queue.ravel(), minlength=3)
    room = np.array([50, length[1], 0])
    order = rng.integers(10, size=queue.shape)
    one, other, used = both_ways(lambda: keep_in_queues(np.ones(queue.shape, dtype=np.bool_), queue, length, room, order))
    np.testing.assert_array_equal(one, other)
    assert used == ["keep_lowest"]
    assert [int(one[queue == number].sum()) for number in range(3)] == room.tolist()


@settings(max_examples=60, deadline=None)
@given(data=st.data(), tokens=st.integers(0, 40), experts=st.integers(1, 20), levels=st.sampled_from([3, 2**20]))
def test_the_best_experts_are_the_same_both_ways(data, tokens, experts, levels) -> None:
    # Few levels make many ties; some experts may not be chosen.
    top_k = data.draw(st.integers(1, experts))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    scores = (rng.integers(-levels, levels, size=(tokens, experts)) / levels).astype(np.float32)
    for token in range(tokens):
        scores[token, rng.permutation(experts)[: int(rng.integers(0, experts - top_k + 1))]] = -np.inf
    compiled, plain, used = both_ways(lambda: largest(scores, top_k, "a test"))
    np.testing.assert_array_equal(compiled, plain)
    assert compiled.dtype == plain.dtype == np.int32
    assert used == (["best_first"] if tokens else [])
    # Best first, and of equal ones the lower first: no pair is the other way round, and nothing better was left out.
    for row, ids in zip(scores, compiled, strict=True):
        pairs = list(zip((-row[ids]).tolist(), ids.tolist(), strict=True))
        assert pairs == sorted((-value, expert) for expert, value in enumerate(row.tolist()))[:top_k]


@pytest.mark.parametrize("bad", [np.nan, np.inf, "few"])
def test_a_token_without_enough_scores_is_refused_both_ways(bad) -> None:
    scores = np.zeros((3, 4), dtype=np.float32)
    scores[1, 2] = 0.0 if bad == "few" else bad
    if bad == "few":
        scores[1, 1:] = -np.inf

    def refused():
        with pytest.raises(FidelityError, match=r"a test: token 1 has no \d. expert with a finite score") as error:
            largest(scores, 2, "a test")
        return str(error.value)

    compiled, plain, used = both_ways(refused)
    assert compiled == plain
    assert used == ["best_first"]


def test_best_first_refuses_sizes_that_would_read_beyond_the_scores() -> None:
    for top_k in (0, 5):
        with pytest.raises(ValueError, match="between one choice"):
            route_loops.best_first(np.zeros((2, 4), dtype=np.float32), top_k)


@settings(max_examples=100, deadline=None)
@given(data=st.data(), tokens=st.integers(1, 30), groups=st.integers(1, 6), size=st.integers(1, 12), levels=st.sampled_from([2, 2**20]))
def test_the_best_groups_are_the_same_both_ways(data, tokens, groups, size, levels) -> None:
    # Few levels make many ties of groups; some experts, and with them whole groups, may not be chosen.
    top_groups, count = data.draw(st.integers(1, groups)), data.draw(st.integers(1, size))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    scores = (rng.integers(-levels, levels, size=(tokens, groups * size)) / levels).astype(np.float32)
    scores[rng.random(scores.shape) < data.draw(st.sampled_from([0.0, 0.5, 0.95]))] = -np.inf
    compiled, plain, used = both_ways(lambda: best_groups(scores, groups, top_groups, count))
    np.testing.assert_array_equal(compiled, plain)
    assert used == (["within_best_groups"] if top_groups < groups and count <= 8 else [])
    # No group that is left out has a larger sum than one that is not, but for the rounding of up to 12 sums below 16 (2**-21 each).
    by_group = np.sort(scores.reshape(tokens, groups, size).astype(np.float64), axis=2)[:, :, -count:].sum(axis=2)
    left = np.isfinite(compiled.reshape(tokens, groups, size)).any(axis=2)
    for total, allowed in zip(by_group, left, strict=True):
        assert allowed.sum() <= top_groups
        if allowed.any() and np.isfinite(total[~allowed]).any():
            assert total[allowed].min() >= total[~allowed].max() - 2.0**-17


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_scores_that_are_no_numbers_are_left_to_the_plain_code(bad) -> None:
    scores = np.linspace(0, 1, 24, dtype=np.float32).reshape(2, 12)
    scores[1, 2] = bad
    compiled, plain, used = both_ways(lambda: best_groups(scores, 3, 2, 2))
    np.testing.assert_array_equal(compiled, plain)
    assert used == ["within_best_groups"]


def test_best_groups_refuses_sizes_that_would_read_beyond_the_scores() -> None:
    scores = np.zeros((2, 6), dtype=np.float32)
    for groups, count in ((4, 1), (0, 1), (3, 3), (3, 0)):
        with pytest.raises(ValueError, match="do not divide"):
            route_loops.within_best_groups(np.empty_like(scores), scores, groups, 1, count)
