"""The exact core against the oracle, by hand, and against itself: alone, together, cut, cancelled, slowed."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moesim.base.errors import UsageError
from moesim.models.sharing.groups import GroupsCore
from moesim.models.sharing.never_full import follows_of, never_full
from moesim.models.sharing.reference import drain


class Play:
    """Flows with staggered starts on a core, until all have ended; each flow has a counter of its own."""

    def __init__(self, capacity, routes, size, start, *, weight=None, cap=None, prune=True):
        self.hops = max(len(route) for route in routes)
        self.route = np.full((len(routes), self.hops), -1, dtype=np.int32)
        for flow, links in enumerate(routes):
            self.route[flow, : len(links)] = links
        self.size, self.start = np.asarray(size, dtype=float), np.asarray(start, dtype=float)
        self.weight = None if weight is None else np.asarray(weight, dtype=float)
        self.cap = None if cap is None else np.asarray(cap, dtype=float)
        capacity = np.asarray(capacity, dtype=float)
        follows = follows_of(self.route, len(capacity)) if prune else None
        self.core = GroupsCore(capacity, hops=self.hops, pairs=len(routes), follows=follows)
        self.pending = np.ones(len(routes) + 1, dtype=np.int64)
        self.pending[-1] = len(routes)
        self.woken = np.zeros(len(routes) + 1, dtype=np.int64)
        self.ends = np.full(len(routes), np.nan)
        self.ids = np.full(len(routes), -1)

    def join(self, now, flows):
        watch = np.stack([flows, np.full(len(flows), len(self.ends))], axis=1).astype(np.int32)
        weight = None if self.weight is None else self.weight[flows]
        cap = None if self.cap is None else self.cap[flows]
        self.ids[flows] = self.core.join(now, self.route[flows], flows, self.size[flows], weight, cap, watch, self.pending)

    def until(self, horizon):
        while True:
            now, woke = self.core.advance(horizon, self.pending, self.woken)
            for counter in self.woken[:woke].tolist():
                if counter < len(self.ends):
                    self.ends[counter] = now
            if not woke:
                return now

    def run(self, cuts=()):
        moments = sorted({*self.start.tolist(), *cuts})
        for moment in moments:
            self.until(moment)
            flows = np.flatnonzero(self.start == moment)
            if len(flows):
                self.join(moment, flows)
        self.until(np.inf)
        assert self.core.live == 0
        return self.ends


def csr(routes):
    return np.cumsum([0, *[len(route) for route in routes]]), np.array([link for route in routes for link in route])


@st.composite
def systems(draw, *, most_links=7, most_flows=14):
    links = draw(st.integers(1, most_links))
    capacity = draw(st.lists(st.sampled_from([1.0, 2.0, 3.0, 5.0, 7.5, 40.0]), min_size=links, max_size=links))
    flows = draw(st.integers(1, most_flows))
    routes = [draw(st.lists(st.integers(0, links - 1), min_size=1, max_size=min(4, links), unique=True)) for _ in range(flows)]
    size = draw(st.lists(st.sampled_from([1.0, 2.0, 3.5, 10.0, 1e-3, 1e4]), min_size=flows, max_size=flows))
    start = draw(st.lists(st.sampled_from([0.0, 0.0, 0.5, 1.0, 3.0]), min_size=flows, max_size=flows))
    weight = draw(st.none() | st.lists(st.sampled_from([0.5, 1.0, 3.0]), min_size=flows, max_size=flows))
    cap = draw(st.none() | st.lists(st.sampled_from([0.25, 1.0, 4.0, np.inf]), min_size=flows, max_size=flows))
    return capacity, routes, size, start, weight, cap


@settings(deadline=None)  # the first example compiles
@given(systems(), st.booleans())
def test_l2_l3_exact_core_equals_the_oracle(system, prune):
    """Ends equal those of the plain twin, links carry what was asked and no more than they can."""
    capacity, routes, size, start, weight, cap = system
    play = Play(capacity, routes, size, start, weight=weight, cap=cap, prune=prune)
    ends = play.run()
    expected = drain(capacity, *csr(routes), size, start, weight, cap)
    # Rounding of one subtraction an event, and at most 2 F events, of numbers that differ by up to 1e7 here.
    assert ends == pytest.approx(expected, rel=1e-9)
    play.core.catch_up(float(ends.max()))
    through = np.zeros(len(capacity))
    for route, asked in zip(routes, size, strict=True):
        through[route] += asked
    assert play.core.through == pytest.approx(through, rel=1e-9)
    assert (play.core.through <= np.array(capacity) * play.core.busy * (1 + 1e-9)).all()
    assert play.core.carried == pytest.approx(np.array(size), rel=1e-9)


@settings(deadline=None)  # the first example compiles
@given(systems(), st.lists(st.floats(0.0, 50.0), max_size=12))
def test_l8_being_stopped_changes_no_bit(system, cuts):
    capacity, routes, size, start, weight, cap = system
    once = Play(capacity, routes, size, start, weight=weight, cap=cap).run()
    assert np.array_equal(Play(capacity, routes, size, start, weight=weight, cap=cap).run(cuts), once)


@settings(deadline=None)  # the first example compiles
@given(systems(), systems())
def test_islands_do_not_feel_each_other(one, other):
    """Two systems without a common link end as each does alone, to the last bit."""
    shift = len(one[0])
    routes = [*one[1], *[[link + shift for link in route] for route in other[1]]]
    both = Play([*one[0], *other[0]], routes, [*one[2], *other[2]], [*one[3], *other[3]]).run()
    alone = np.concatenate([Play(*system[:4]).run() for system in (one, other)])
    assert np.array_equal(both, alone)


@settings(deadline=None)  # the first example compiles
@given(systems())
def test_a_second_busy_period_repeats_the_first(system):
    capacity, routes, size, _, weight, cap = system
    play = Play(capacity, routes, size, np.zeros(len(size)), weight=weight, cap=cap)
    first = play.run().copy()
    play.core.reset()
    play.pending[:-1], play.pending[-1] = 1, len(size)
    assert np.array_equal(play.run(), first)


@settings(deadline=None)  # the first example compiles
@given(systems(), st.integers(0, 13), st.sampled_from([0.1, 0.7, 2.0]))
def test_a_cancelled_flow_leaves_its_share_to_the_others(system, which, when):
    """Until it leaves, everything is as with it; afterwards the others go on as if they had started then with what is left."""
    capacity, routes, size, _, weight, cap = system
    gone = which % len(size)
    play = Play(capacity, routes, size, np.zeros(len(size)), weight=weight, cap=cap)
    play.join(0.0, np.arange(len(size)))
    play.until(when)
    if np.isfinite(play.ends[gone]):
        return
    left, _ = play.core.leave(when, play.ids[[gone]], play.pending, play.woken)
    rest = [flow for flow in range(len(size)) if not np.isfinite(play.ends[flow]) and flow != gone]
    play.until(np.inf)
    assert play.core.live == 0
    assert play.core.carried[gone] + left[0] == pytest.approx(size[gone], rel=1e-9)
    # The oracle: the same flows, but the one that leaves is as large as what it had carried by then.
    smaller = list(size)
    smaller[gone] = size[gone] - left[0]
    expected = drain(capacity, *csr(routes), smaller, np.zeros(len(size)), weight, cap)
    assert expected[gone] == pytest.approx(when, rel=1e-6)
    for flow in rest:
        assert play.ends[flow] == pytest.approx(expected[flow], rel=1e-6)


@settings(deadline=None)  # the first example compiles
@given(systems(), st.sampled_from([0.3, 1.1]), st.sampled_from([0.2, 1.0, 3.0]), st.integers(0, 6), st.booleans())
def test_a_link_that_changes_changes_rates_from_then_on(system, when, factor, which, prune):
    capacity, routes, size, _, weight, cap = system
    link = which % len(capacity)
    play = Play(capacity, routes, size, np.zeros(len(size)), weight=weight, cap=cap, prune=prune)
    play.join(0.0, np.arange(len(size)))
    play.until(when)
    early = play.ends.copy()
    play.core.change_capacity(when, np.array([link]), np.array([capacity[link] * factor]))
    play.until(np.inf)
    assert play.core.live == 0
    # The oracle in two parts: the first by the old capacities, the second by the new ones with what is left.
    from moesim.models.sharing.reference import fair_rates

    left, done, now = np.array(size), np.zeros(len(size), dtype=bool), 0.0
    weights = np.ones(len(size)) if weight is None else np.array(weight)
    caps = np.full(len(size), np.inf) if cap is None else np.array(cap)
    while now < when and not done.all():
        alive = np.flatnonzero(~done)
        rates = fair_rates(capacity, *csr([routes[flow] for flow in alive]), weights[alive], caps[alive])
        step = min(float((left[alive] / rates).min()), when - now)
        left[alive] -= rates * step
        done[alive[left[alive] <= 1e-12 * np.array(size)[alive]]] = True
        now += step
    changed = list(capacity)
    changed[link] *= factor
    rest = np.flatnonzero(~done)
    assert np.isnan(early[rest]).all()
    expected = (
        drain(changed, *csr([routes[flow] for flow in rest]), left[rest], np.zeros(len(rest)), weights[rest], caps[rest])
        if len(rest)
        else []
    )
    assert play.ends[rest] == pytest.approx(when + np.asarray(expected), rel=1e-6)
    play.core.catch_up(float(play.ends.max()))
    through = np.zeros(len(capacity))
    for route, asked in zip(routes, size, strict=True):
        through[route] += asked
    assert play.core.through == pytest.approx(through, rel=1e-6)


def test_two_flows_by_hand():
    """Two flows share a link of 10 B/s: 5 each until the first (10 B) ends at 2 s; the other (30 B) has 20 B left and 10 B/s: 4 s."""
    assert Play([10.0], [[0], [0]], [10.0, 30.0], [0.0, 0.0]).run().tolist() == [2.0, 4.0]


def test_weights_by_hand():
    """Weights 3 and 1 on 8 B/s: 6 and 2 B/s. 12 B end at 2 s; the other has 16 - 4 = 12 B left at 8 B/s: 3.5 s."""
    assert Play([8.0], [[0], [0]], [12.0, 16.0], [0.0, 0.0], weight=[3.0, 1.0]).run().tolist() == [2.0, 3.5]


def test_a_cap_by_hand():
    """On 10 B/s a flow capped at 2 leaves 8 to the other: 16 B end at 2 s, then the capped one goes on at 2 B/s: 10 B end at 5 s."""
    assert Play([10.0], [[0], [0]], [10.0, 16.0], [0.0, 0.0], cap=[2.0, np.inf]).run().tolist() == [5.0, 2.0]


def test_extreme_ratios_stay_exact():
    """1 B beside 100 GB on 100 GB/s: the byte gets half the link, 2e-11 s; the rest loses just that byte's time: 1 s + 1e-11 s."""
    ends = Play([1e11], [[0], [0]], [1.0, 1e11], [0.0, 0.0]).run()
    assert ends[0] == pytest.approx(2e-11, rel=1e-12)
    assert ends[1] == pytest.approx(1.0 + 1e-11, rel=1e-15)


def test_a_nanosecond_beside_a_second():
    """A flow that starts 1 ns before another ends joins at exactly that time."""
    ends = Play([1e9], [[0], [0]], [1e9, 1.0], [0.0, 1.0 - 1e-9]).run()
    # From then on 1 B is left of each: both get 0.5 GB/s and end 2 ns later.
    assert ends == pytest.approx([1.0 + 1e-9, 1.0 + 1e-9], rel=1e-15)


def test_busy_time_and_bytes_in_the_middle():
    play = Play([4.0, 100.0], [[0, 1], [0, 1]], [8.0, 16.0], [0.0, 0.0])
    play.join(0.0, np.arange(2))
    play.until(1.0)
    play.core.catch_up(1.0)
    assert play.core.busy.tolist() == [1.0, 1.0]
    assert play.core.through == pytest.approx([4.0, 4.0])
    assert play.until(np.inf)
    play.core.catch_up(6.0)
    assert play.core.through == pytest.approx([24.0, 24.0])


def test_time_begins_anew_only_when_nothing_moves():
    play = Play([1.0], [[0]], [1.0], [0.0])
    play.join(0.0, np.arange(1))
    with pytest.raises(UsageError, match="1 flows are still on their way"):
        play.core.reset()


def test_numbers_of_ended_flows_are_used_again():
    """Flows that come and go without the core ever being idle do not fill the memory: 20,000 flows, a few at a time."""
    core = GroupsCore(np.array([10.0]), hops=1, pairs=1)
    pending, woken = np.zeros(1, dtype=np.int64), np.zeros(1, dtype=np.int64)
    route, watch = np.zeros((1, 1), dtype=np.int32), np.zeros((1, 2), dtype=np.int32)
    highest, now = 0, 0.0
    for number in range(20_000):
        pending[0] = 10**9
        ids = core.join(now, route, np.zeros(1, dtype=np.int64), np.array([1.0 + number % 3]), None, None, watch, pending)
        highest = max(highest, int(ids.max()))
        now, _ = core.advance(now + 0.25, pending, woken)
    assert highest < 5000
    assert core.live < 10


@settings(deadline=None)  # the first example compiles
@given(systems(most_links=6, most_flows=12))
def test_a_link_that_is_left_out_is_never_full(system):
    """Whatever flows there are on these routes, the sum of the fair rates on a link that was left out is at most its capacity."""
    from moesim.models.sharing.reference import fair_rates

    capacity, routes, *_ = system
    route = np.full((len(routes), 4), -1, dtype=np.int32)
    for flow, links in enumerate(routes):
        route[flow, : len(links)] = links
    pruned = never_full(np.array(capacity), follows_of(route, len(capacity)))
    assert not all(pruned[links].all() for links in [np.array(route) for route in routes])
    free = [1e9 if left_out else value for value, left_out in zip(capacity, pruned, strict=True)]
    rates = fair_rates(free, *csr(routes))
    for link in np.flatnonzero(pruned):
        assert sum(rate for rate, links in zip(rates, routes, strict=True) if link in links) <= capacity[link] * (1 + 1e-9)


def test_the_uplinks_of_a_leaf_that_is_not_oversubscribed_are_left_out():
    """Two cards of 1 feed an uplink of 2, which feeds two cards of 1: only the cards can be full."""
    route = np.array([[0, 2, 3, 4], [0, 2, 3, 5], [1, 2, 3, 4], [1, 2, 3, 5]], dtype=np.int32)
    follows = follows_of(route, 6)
    assert never_full(np.array([1.0, 1.0, 2.0, 2.0, 1.0, 1.0]), follows).tolist() == [False, False, True, True, False, False]
    # The second of two equal links in a row can be no fuller than the first.
    assert never_full(np.array([1.0, 1.0, 1.9, 1.9, 1.0, 1.0]), follows).tolist() == [False, False, False, True, False, False]
    assert never_full(np.array([1.0, 1.0, 1.9, 1.8, 1.0, 1.0]), follows).tolist() == [False, False, True, False, False, False]
