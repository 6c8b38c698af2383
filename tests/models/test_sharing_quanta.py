"""The approximate core: by hand, against the oracle within its bound, and the laws that it keeps exactly."""

from itertools import pairwise

import numpy as np
import pytest
from examples import examples
from hypothesis import given, settings
from hypothesis import strategies as st

from moesim.base.errors import UsageError
from moesim.models.sharing.groups import GroupsCore
from moesim.models.sharing.never_full import follows_of
from moesim.models.sharing.quanta import QuantaCore
from moesim.models.sharing.quanta_order import in_order
from moesim.models.sharing.reference import drain

EXACT = 1e-12
"""What nothing approximates: sums of a few products."""


def padded(routes):
    table = np.full((len(routes), max([len(route) for route in routes] + [1])), -1, dtype=np.int32)
    for flow, links in enumerate(routes):
        table[flow, : len(links)] = links
    return table


class Drive:
    """Flows on a core; every flow has a counter of its own, so that each end is seen."""

    def __init__(self, core, routes, size, *, weight=None, cap=None):
        self.core, self.route, self.size = core, padded(routes), np.array(size, dtype=float)
        self.weight = None if weight is None else np.array(weight, dtype=float)
        self.cap = None if cap is None else np.array(cap, dtype=float)
        flows = len(self.size)
        self.pending = np.ones(flows + 1, dtype=np.int64)
        self.pending[flows] = 2**40  # shared by all flows, and never zero
        self.woken = np.empty(flows + 1, dtype=np.int64)
        self.ends, self.ids = np.full(flows, np.nan), np.full(flows, -1)

    def join(self, now, flows=None):
        flows = np.arange(len(self.size)) if flows is None else np.array(flows)
        watch = np.stack([flows, np.full(len(flows), len(self.size))], axis=1).astype(np.int32)
        weight, cap = (None if column is None else column[flows] for column in (self.weight, self.cap))
        self.ids[flows] = self.core.join(now, self.route[flows], flows, self.size[flows], weight, cap, watch, self.pending)

    def until(self, horizon):
        while True:
            now, woke = self.core.advance(horizon, self.pending, self.woken)
            if not woke:
                return now
            self.ends[self.woken[:woke]] = now

    def leave(self, now, flows):
        left, _ = self.core.leave(now, self.ids[flows], self.pending, self.woken)
        return left

    def all_from(self, starts, cuts=()):
        """Run everything, with stops at ``cuts`` at which nothing happens."""
        starts = np.array(starts, dtype=float)
        for moment in sorted({*starts.tolist(), *cuts}):
            self.until(moment)
            if (starts == moment).any():
                self.join(moment, np.flatnonzero(starts == moment))
        self.until(np.inf)
        return self.ends


def core_of(capacity, routes, *, quantum=0.01, guard=2.0, prune=False):
    follows = follows_of(padded(routes), len(capacity)) if prune else None
    hops = padded(routes).shape[1]
    return QuantaCore(np.array(capacity, dtype=float), hops=hops, pairs=len(routes), quantum=quantum, guard=guard, follows=follows)


def driven(capacity, routes, size, *, weight=None, cap=None, **kind):
    return Drive(core_of(capacity, routes, **kind), routes, size, weight=weight, cap=cap)


def asked_of_links(drive, links):
    asked = np.zeros(links)
    for route, size in zip(drive.route, drive.size, strict=True):
        np.add.at(asked, route[route >= 0], size)
    return asked


def oracle(capacity, routes, size, starts):
    route_start = np.cumsum([0, *[len(route) for route in routes]])
    route_link = np.array([link for route in routes for link in route], dtype=np.int64)
    return drain(capacity, route_start, route_link, size, starts)


@st.composite
def systems(draw, *, most_links=6, most_flows=12):
    links = draw(st.integers(1, most_links))
    number = st.one_of(st.integers(1, 4).map(float), st.floats(0.1, 100.0))
    capacity = draw(st.lists(number, min_size=links, max_size=links))
    flows = draw(st.integers(1, most_flows))
    routes = [draw(st.lists(st.integers(0, links - 1), min_size=1, max_size=4, unique=True)) for _ in range(flows)]
    size = draw(st.lists(st.floats(0.5, 100.0), min_size=flows, max_size=flows))
    starts = draw(st.lists(st.sampled_from([0.0, 0.0, 0.5, 1.0, 3.0]), min_size=flows, max_size=flows))
    return capacity, routes, size, starts


@st.composite
def odd_flows(draw, flows):
    weight = draw(st.none() | st.lists(st.sampled_from([0.5, 1.0, 3.0]), min_size=flows, max_size=flows))
    cap = draw(st.none() | st.lists(st.sampled_from([0.25, 1.0, 4.0, np.inf]), min_size=flows, max_size=flows))
    return weight, cap


def all_to_all(gpus, seed, *, spread=0.5, through=None):
    """Routes and bytes of a skewed all-to-all: out-links, then in-links, then one shared link if ``through`` is given."""
    rng = np.random.default_rng(seed)
    pairs = [(s, d) for s in range(gpus) for d in range(gpus) if s != d]
    popular = np.exp(rng.normal(0, spread, gpus))
    size = np.array([popular[d] * (1 + 0.2 * rng.random()) for _, d in pairs]) * 1e6
    routes = [[s, gpus + d] if through is None else [s, 2 * gpus, gpus + d] for s, d in pairs]
    capacity = np.full(2 * gpus + (through is not None), 50e9)
    if through is not None:
        capacity[-1] = through
    return capacity, routes, size, np.array([s for s, _ in pairs]), np.array([d for _, d in pairs])


def test_one_flow_takes_its_bytes_over_its_narrowest_link():
    drive = driven([10.0, 4.0], [[0, 1]], [20.0])
    assert drive.all_from([0.0]) == pytest.approx([5.0], rel=EXACT)  # 20 B at 4 B/s
    assert drive.core.busy == pytest.approx([5.0, 5.0], rel=EXACT)
    assert drive.core.through == pytest.approx([20.0, 20.0], rel=EXACT)
    assert drive.core.carried == pytest.approx([20.0], rel=EXACT)


def test_two_flows_share_until_the_shorter_ends():
    # 5 B/s each until 2 s, when the first has its 10 B; then 10 B/s for the 10 B that the second still has.
    assert driven([10.0], [[0], [0]], [10.0, 20.0]).all_from([0.0, 0.0]) == pytest.approx([2.0, 3.0], rel=EXACT)


def test_weights_divide_a_link():
    # 7.5 and 2.5 B/s; both have what they need after 4 s.
    assert driven([10.0], [[0], [0]], [30.0, 10.0], weight=[3.0, 1.0]).all_from([0.0, 0.0]) == pytest.approx([4.0, 4.0], rel=EXACT)


def test_a_capped_flow_leaves_the_rest_to_others():
    # 1 B/s is all that the first takes, so the second has 9 B/s and ends at 2 s; the first goes on alone, as slowly as before.
    assert driven([10.0], [[0], [0]], [5.0, 18.0], cap=[1.0, np.inf]).all_from([0.0, 0.0]) == pytest.approx([5.0, 2.0], rel=EXACT)


def test_a_flow_without_links_takes_no_time_unless_it_has_a_cap():
    drive = driven([10.0], [[], [], [0]], [5.0, 8.0, 10.0], cap=[np.inf, 4.0, np.inf])
    assert drive.all_from([1.0, 1.0, 1.0]) == pytest.approx([1.0, 3.0, 2.0], rel=EXACT)


def test_a_late_flow_shares_from_its_start_on():
    # Alone until 1 s (10 of 20 B); 5 B/s each until both have had their 10 B, at 3 s.
    assert driven([10.0], [[0], [0]], [20.0, 10.0]).all_from([0.0, 1.0]) == pytest.approx([3.0, 3.0], rel=EXACT)


def test_a_change_of_capacity_counts_from_its_moment_on():
    drive = driven([10.0], [[0]], [20.0])
    drive.join(0.0)
    drive.until(1.0)
    drive.core.change_capacity(1.0, np.array([0]), np.array([2.0]))
    drive.until(np.inf)
    assert drive.ends[0] == pytest.approx(6.0, rel=EXACT)  # 10 B until 1 s, then 10 B at 2 B/s
    assert drive.core.through[0] == pytest.approx(20.0, rel=EXACT)


def test_a_flow_that_leaves_gives_its_share_to_the_others():
    drive = driven([10.0], [[0], [0]], [20.0, 20.0])
    drive.join(0.0)
    drive.until(1.0)
    assert drive.leave(1.0, [0]) == pytest.approx([15.0], rel=EXACT)  # 5 B/s for 1 s
    assert drive.core.live == 1
    assert drive.pending[0] == 0
    drive.until(np.inf)
    assert drive.ends[1] == pytest.approx(2.5, rel=EXACT)  # 15 B at 10 B/s
    assert drive.core.carried == pytest.approx([5.0, 20.0], rel=EXACT)
    assert drive.core.through[0] == pytest.approx(25.0, rel=EXACT)


def test_the_last_flow_that_leaves_leaves_nothing_behind():
    drive = driven([10.0, 10.0], [[0, 1], [1]], [20.0, 20.0], prune=True)
    drive.join(0.0)
    drive.until(1.0)
    drive.leave(1.0, [0, 1])
    assert drive.core.live == 0
    assert drive.core.advance(7.0, drive.pending, drive.woken) == (7.0, 0)
    drive.core.catch_up(7.0)
    assert drive.core.busy == pytest.approx([1.0, 1.0], rel=EXACT)
    drive.core.reset()
    drive.join(0.0)
    drive.until(np.inf)
    assert drive.core.through == pytest.approx([5.0 + 20.0, 10.0 + 40.0], rel=EXACT)


def test_time_begins_anew_only_when_nothing_is_on_its_way():
    drive = driven([10.0], [[0]], [20.0])
    drive.join(0.0)
    with pytest.raises(UsageError, match="1 flows are still on their way"):
        drive.core.reset()


def test_counters_that_reach_zero_together_are_told_together():
    drive = driven([10.0, 30.0], [[0], [1]], [10.0, 30.0])
    drive.join(0.0)
    now, woke = drive.core.advance(np.inf, drive.pending, drive.woken)
    assert (now, woke) == (pytest.approx(1.0, rel=EXACT), 2)  # two parts, one instant
    assert sorted(drive.woken[:2].tolist()) == [0, 1]


def test_a_link_that_widens_until_another_can_be_full():
    # Link 1 takes what two links of 10 B/s bring, so it is left out; when link 0 is widened it can be full: 20 B/s for the two.
    routes = [[0, 1], [2, 1]]
    drive = driven([10.0, 20.0, 10.0], routes, [40.0, 60.0], prune=True)
    drive.join(0.0)
    drive.until(1.0)
    drive.core.change_capacity(1.0, np.array([0, 2]), np.array([100.0, 100.0]))
    drive.until(np.inf)
    # 10 B each until 1 s; then 10 B/s each (link 1 is full): flow 0 ends at 4 s, and flow 1 has 20 B left for 20 B/s.
    assert drive.ends == pytest.approx([4.0, 5.0], rel=EXACT)
    assert drive.core.through == pytest.approx([40.0, 100.0, 60.0], rel=EXACT)
    assert drive.core.busy == pytest.approx([4.0, 5.0, 5.0], rel=EXACT)


@pytest.mark.parametrize("prune", [False, True])
def test_a_byte_beside_a_hundred_gigabytes_and_a_nanosecond_beside_a_second(prune):
    capacity, routes = [1e9, 1e9, 1e20], [[0, 1], [0, 1], [1], [2]]
    size = [1.0, 100e9, 50e9, 1e11]
    drive = driven(capacity, routes, size, prune=prune)
    ends = drive.all_from([0.0, 0.0, 1.0, 1.0])
    # The byte at 0.5 GB/s; link 1 alone until 1 s (1 GB), shared until the third has 50 GB, alone for the rest; 1e11 B at 1e20 B/s.
    assert ends == pytest.approx([2e-9, 150.0 + 1e-9, 101.0, 1.0 + 1e-9], rel=1e-9)
    assert drive.core.busy == pytest.approx([150.0, 150.0, 1e-9], rel=1e-7)


@examples(80)
@given(systems(), st.data(), st.booleans())
def test_l2_l3_the_approximate_core_carries_what_was_asked_and_no_link_more_than_it_can(system, data, prune):
    capacity, routes, size, starts = system
    weight, cap = data.draw(odd_flows(len(routes)))
    stops = sorted(data.draw(st.lists(st.floats(0.01, 30.0), max_size=5)))
    drive = driven(capacity, routes, size, weight=weight, cap=cap, prune=prune, quantum=0.05)
    seen = [(0.0, np.zeros(len(capacity)))]
    for moment in sorted({*starts, *stops}):
        drive.until(moment)
        drive.core.catch_up(moment)
        assert (drive.core.through <= np.array(capacity) * drive.core.busy * (1 + 1e-9)).all()
        assert (drive.core.busy <= moment * (1 + 1e-9)).all()
        seen.append((moment, drive.core.through.copy()))
        if moment in starts:
            drive.join(moment, np.flatnonzero(np.array(starts) == moment))
    for (_, had), (_, has) in pairwise(seen):
        assert (has >= had * (1 - 1e-12)).all()
    drive.until(np.inf)
    assert drive.core.live == 0
    np.testing.assert_allclose(drive.core.carried, size, rtol=1e-9)
    np.testing.assert_allclose(drive.core.through, asked_of_links(drive, len(capacity)), rtol=1e-9)
    assert (drive.core.through <= np.array(capacity) * drive.core.busy * (1 + 1e-9)).all()


@examples(80)
@given(systems(), st.data(), st.sampled_from([0.0, 2.0]))
def test_l2_l8_the_ends_do_not_depend_on_how_time_is_cut(system, data, guard):
    capacity, routes, size, starts = system
    weight, cap = data.draw(odd_flows(len(routes)))
    cuts = data.draw(st.lists(st.floats(0.001, 40.0), min_size=1, max_size=8))
    whole, cut = (driven(capacity, routes, size, weight=weight, cap=cap, guard=guard, quantum=0.05) for _ in range(2))
    whole.all_from(starts)
    cut.all_from(starts, cuts)
    np.testing.assert_array_equal(whole.ends, cut.ends)
    np.testing.assert_array_equal(whole.core.through, cut.core.through)
    np.testing.assert_array_equal(whole.core.busy, cut.core.busy)


@examples(80)
@given(systems(), st.data(), st.lists(st.floats(0.001, 40.0), max_size=6))
def test_l2_l8_looking_at_links_changes_nothing(system, data, moments):
    capacity, routes, size, starts = system
    weight, cap = data.draw(odd_flows(len(routes)))
    blind, seen = (driven(capacity, routes, size, weight=weight, cap=cap, prune=True, quantum=0.05) for _ in range(2))
    blind.all_from(starts)
    for moment in sorted({*starts, *moments}):
        seen.until(moment)
        seen.core.catch_up(moment)
        if moment in starts:
            seen.join(moment, np.flatnonzero(np.array(starts) == moment))
    seen.until(np.inf)
    np.testing.assert_array_equal(blind.ends, seen.ends)
    np.testing.assert_array_equal(blind.core.through, seen.core.through)


@examples(60)
@given(systems(most_links=4, most_flows=8), systems(most_links=4, most_flows=8))
def test_l10_islands_do_not_notice_each_other(one, two):
    alone = [driven(*part[:3], quantum=0.05) for part in (one, two)]
    ends = [drive.all_from(part[3]) for drive, part in zip(alone, (one, two), strict=True)]
    away = len(one[0])
    routes = [*one[1], *[[link + away for link in route] for route in two[1]]]
    together = driven([*one[0], *two[0]], routes, [*one[2], *two[2]], quantum=0.05)
    # Ends of one instant are told together, at the first of them; nothing else may differ by a bit.
    np.testing.assert_allclose(together.all_from([*one[3], *two[3]]), np.concatenate(ends), rtol=2e-12)
    np.testing.assert_array_equal(together.core.busy, np.concatenate([drive.core.busy for drive in alone]))
    np.testing.assert_array_equal(together.core.through, np.concatenate([drive.core.through for drive in alone]))
    np.testing.assert_array_equal(together.core.carried, np.concatenate([drive.core.carried for drive in alone]))


@examples(60)
@given(systems(), st.booleans())
def test_l4_short_quanta_come_close_to_the_oracle(system, prune):
    capacity, routes, size, starts = system
    ends = driven(capacity, routes, size, quantum=1e-4, guard=0.0, prune=prune).all_from(starts)
    expected = oracle(capacity, routes, size, starts)
    # A flow is off by a few quanta at most, and a quantum is 1e-4 of no more than the whole time.
    np.testing.assert_allclose(ends, expected, rtol=0, atol=1e-3 * expected.max())


@pytest.mark.parametrize(("gpus", "through"), [(12, None), (12, 300e9), (24, None), (24, 500e9)])
def test_l4_a_skewed_all_to_all_ends_when_it_should(gpus, through):
    capacity, routes, size, _, to = all_to_all(gpus, 3, through=through)
    ends = driven(capacity, routes, size).all_from(np.zeros(len(size)))
    expected = exact_ends(capacity, routes, size, np.zeros(len(size)))
    ranks, right = (np.array([column[to == d].max() for d in range(gpus)]) for column in (ends, expected))
    assert ranks.max() == pytest.approx(right.max(), rel=1e-3)
    assert np.abs(ranks / right - 1).mean() < 2e-3
    assert np.abs(ranks / right - 1).max() < 0.03


@pytest.mark.parametrize("spread", [0.02, 0.5])
def test_l6_ranks_that_start_late_join_when_they_start(spread):
    """The bias of joining at the end of a quantum would be half of one in a hundred."""
    gpus = 24
    capacity, routes, size, source, _ = all_to_all(gpus, 5, through=500e9)
    together = exact_ends(capacity, routes, size, np.zeros(len(size))).max()
    starts = (np.random.default_rng(1).random(gpus) * spread * together)[source]
    ends = driven(capacity, routes, size).all_from(starts)
    expected = exact_ends(capacity, routes, size, starts)
    assert ends.max() == pytest.approx(expected.max(), rel=5e-4)
    assert abs(np.mean((ends - starts) / (expected - starts)) - 1) < 5e-4


def exact_ends(capacity, routes, size, starts):
    core = GroupsCore(capacity, hops=padded(routes).shape[1], pairs=len(routes))
    return Drive(core, routes, size).all_from(starts)


def test_numbers_of_flows_are_used_again_and_lists_stay_short():
    drive = driven([10.0, 10.0, 10.0], [[0, 1], [1, 2], [0, 2], [1]], [1.0, 2.0, 3.0, 1e6])
    drive.join(0.0, [3])
    highest = 0
    for turn in range(2000):
        now = drive.until(float(turn))
        drive.pending[:3] = 1
        drive.join(now, [0, 1, 2])
        highest = max(highest, int(drive.ids.max()))
    assert highest < 2000  # of 6,001 flows, few of them at the same time
    drive.until(np.inf)
    assert drive.core.carried == pytest.approx([2000.0, 4000.0, 6000.0, 1e6], rel=1e-9)
    assert drive.core.through == pytest.approx([8000.0, 1006000.0, 10000.0], rel=1e-9)


def test_a_part_that_falls_apart_lets_its_pieces_go_their_own_ways():
    # A short flow ties two islands together. Once it has gone, each must go on as it would from the same state alone.
    routes = [[0], [0], [0], [1], [1], [0, 1]]
    drive = driven([10.0, 10.0], routes, [31.0, 32.0, 33.0, 20.0, 21.0, 1.0])
    ends = drive.all_from(np.zeros(6))
    np.testing.assert_allclose(ends, oracle([10.0, 10.0], routes, drive.size, np.zeros(6)), rtol=0.01)
    assert drive.core.busy == pytest.approx([9.7, 4.2], rel=EXACT)  # neither link is ever idle before its last flow ends: bytes / 10


@settings(max_examples=100, deadline=None)  # the first example compiles
@given(
    st.one_of(st.lists(st.floats(0.0, 1.0), max_size=200), st.lists(st.sampled_from([0.0, 1e-300, 1e-9, 0.5, 1.0, 1e300]), max_size=200))
)
def test_ends_are_put_in_order_stably(keys):
    keys = np.array(keys, dtype=float)
    np.testing.assert_array_equal(in_order(keys), np.argsort(keys, kind="stable"))
