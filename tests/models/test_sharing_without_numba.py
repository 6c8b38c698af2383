"""The plain core: the same ends as the oracle and as the compiled exact core, whatever happens to its flows."""

import numpy as np
import pytest
from examples import examples
from hypothesis import given
from hypothesis import strategies as st

from moesim.base.errors import UsageError
from moesim.models.sharing.groups import GroupsCore
from moesim.models.sharing.reference import drain
from moesim.models.sharing.without_numba import PlainCore

# An end is a sum of some twenty intervals, each from a division and a subtraction.
RELATIVE = 1e-9


class World:
    """Flows with starts, and changes of links and flows at certain moments, played on any core."""

    def __init__(self, capacity, routes, size, starts, *, weight=None, cap=None, slow=(), gone=()):
        self.capacity, self.size, self.starts = np.array(capacity, dtype=float), np.array(size, dtype=float), np.array(starts, dtype=float)
        self.route = np.full((len(routes), max([len(route) for route in routes] + [1])), -1, dtype=np.int32)
        for flow, links in enumerate(routes):
            self.route[flow, : len(links)] = links
        self.weight = None if weight is None else np.array(weight, dtype=float)
        self.cap = None if cap is None else np.array(cap, dtype=float)
        self.slow, self.gone = slow, gone  # (moment, link, capacity), (moment, flow)

    def core(self, kind):
        return kind(self.capacity, hops=self.route.shape[1], pairs=len(self.size))

    def play(self, core, cuts=()):
        """Return when flows ended, and what was left of each that was taken away."""
        flows = len(self.size)
        pending, woken = np.ones(flows + 1, dtype=np.int64), np.empty(flows + 1, dtype=np.int64)
        pending[flows] = 2**40
        ends, left, ids = np.full(flows, np.nan), np.zeros(flows), np.full(flows, -1)
        moments = {*self.starts.tolist(), *cuts, *(item[0] for item in (*self.slow, *self.gone))}
        for moment in [*sorted(moments), np.inf]:
            while True:
                now, woke = core.advance(moment, pending, woken)
                ends[woken[:woke]] = now
                if not woke:
                    break
            new = np.flatnonzero(self.starts == moment)
            if len(new):
                weight, cap = (None if column is None else column[new] for column in (self.weight, self.cap))
                watch = np.stack([new, np.full(len(new), flows)], axis=1).astype(np.int32)
                ids[new] = core.join(moment, self.route[new], new, self.size[new], weight, cap, watch, pending)
            for when, link, value in self.slow:
                if when == moment:
                    core.change_capacity(moment, np.array([link]), np.array([value]))
            for when, flow in self.gone:
                if when == moment and ids[flow] >= 0 and pending[flow] == 1:
                    left[flow] = core.leave(moment, ids[[flow]], pending, woken)[0][0]
        return ends, left


@st.composite
def worlds(draw, *, changing=True):
    links = draw(st.integers(1, 6))
    capacity = draw(st.lists(st.sampled_from([1.0, 2.0, 3.0, 5.0, 7.5, 40.0]), min_size=links, max_size=links))
    flows = draw(st.integers(1, 10))
    routes = draw(st.lists(st.lists(st.integers(0, links - 1), min_size=1, max_size=4, unique=True), min_size=flows, max_size=flows))
    several = {"min_size": flows, "max_size": flows}
    size = draw(st.lists(st.sampled_from([1.0, 2.0, 3.5, 10.0, 1e-3, 1e3]), **several))
    starts = draw(st.lists(st.sampled_from([0.0, 0.0, 0.5, 1.0, 3.0]), **several))
    if not changing:
        return World(capacity, routes, size, starts)
    weight = draw(st.none() | st.lists(st.sampled_from([0.5, 1.0, 3.0]), **several))
    cap = draw(st.none() | st.lists(st.sampled_from([0.25, 1.0, 4.0, np.inf]), **several))
    moment = st.sampled_from([0.25, 0.75, 2.0, 4.0])
    slow = draw(st.lists(st.tuples(moment, st.integers(0, links - 1), st.sampled_from([0.5, 4.0, 100.0])), max_size=3))
    gone = draw(st.lists(st.tuples(moment, st.integers(0, flows - 1)), max_size=3))
    return World(capacity, routes, size, starts, weight=weight, cap=cap, slow=slow, gone=gone)


@examples(60)
@given(worlds(changing=False))
def test_l2_l4_the_plain_core_equals_the_oracle(world):
    core = world.core(PlainCore)
    ends, _ = world.play(core)
    real = world.route >= 0
    expected = drain(world.capacity, np.concatenate(([0], np.cumsum(real.sum(axis=1)))), world.route[real], world.size, world.starts)
    np.testing.assert_allclose(ends, expected, rtol=RELATIVE)
    np.testing.assert_allclose(core.carried, world.size, rtol=RELATIVE)
    asked = np.bincount(world.route[real], weights=np.repeat(world.size, real.sum(axis=1)), minlength=len(world.capacity))
    np.testing.assert_allclose(core.through, asked, rtol=RELATIVE)
    assert (core.through <= world.capacity * core.busy * (1 + RELATIVE)).all()


@examples(60)
@given(worlds(), st.lists(st.floats(0.01, 30.0), max_size=4))
def test_l2_l3_the_plain_core_equals_the_compiled_one(world, cuts):
    plain, compiled = world.core(PlainCore), world.core(GroupsCore)
    (ends, left), (other_ends, other_left) = world.play(plain, cuts), world.play(compiled)
    # A flow may be taken away at the very moment of its end; rounding decides what comes first.
    both = ~np.isnan(ends) & ~np.isnan(other_ends)
    np.testing.assert_allclose(ends[both], other_ends[both], rtol=RELATIVE)
    np.testing.assert_allclose(left, other_left, rtol=RELATIVE, atol=RELATIVE * world.size.max())
    np.testing.assert_allclose(plain.carried, world.size - left, rtol=RELATIVE, atol=RELATIVE)
    compiled.catch_up(1e9)
    np.testing.assert_allclose(plain.through, compiled.through, rtol=RELATIVE, atol=RELATIVE)
    np.testing.assert_allclose(plain.busy, compiled.busy, rtol=RELATIVE, atol=RELATIVE)


@examples(40)
@given(worlds(), st.lists(st.floats(0.01, 30.0), min_size=1, max_size=5))
def test_l2_l8_ends_of_the_plain_core_do_not_depend_on_how_time_is_cut(world, cuts):
    whole, cut = world.core(PlainCore), world.core(PlainCore)
    np.testing.assert_array_equal(world.play(whole)[0], world.play(cut, cuts)[0])
    np.testing.assert_array_equal(whole.through, cut.through)


def test_what_links_did_is_known_at_any_moment():
    world = World([10.0, 5.0], [[0], [0, 1]], [10.0, 20.0], [0.0, 0.0])
    core = world.core(PlainCore)
    pending, woken = np.array([1, 1, 9]), np.empty(3, dtype=np.int64)
    core.join(0.0, world.route, np.arange(2), world.size, None, None, np.array([[0, 2], [1, 2]], dtype=np.int32), pending)
    core.advance(1.0, pending, woken)
    core.catch_up(1.0)
    assert core.through.tolist() == [10.0, 5.0]  # 5 B/s each
    core.catch_up(1.5)
    assert core.through.tolist() == [15.0, 7.5]
    assert core.busy.tolist() == [1.5, 1.5]
    assert core.on_their_way().tolist() == [0, 1]
    with pytest.raises(UsageError, match="2 flows are still on their way"):
        core.reset()


def test_flows_without_links_or_on_links_without_limit_take_no_time():
    world = World([np.inf, 10.0], [[], [0], [1]], [5.0, 8.0, 10.0], [2.0, 2.0, 2.0])
    core = world.core(PlainCore)
    ends, _ = world.play(core)
    assert ends == pytest.approx([2.0, 2.0, 3.0])
    core.reset()
    ends, _ = world.play(core)
    assert ends == pytest.approx([2.0, 2.0, 3.0])
    assert core.carried == pytest.approx([10.0, 16.0, 20.0])
