"""The compiled core against its plain twin: same ends, same bytes, however the time is cut."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import flow_systems

from moesim.models.sharing.certificate import violations
from moesim.models.sharing.compiled import run_until
from moesim.models.sharing.reference import drain

# An end is a sum of at most 8 intervals, each from a division and a subtraction: 1e-9 leaves several orders of room.
RELATIVE = 1e-9


def ends_of(system, size, cuts):
    """Drive the core from cut to cut; every flow has a counter of its own, so that each end is seen. Also return busy times."""
    count, hops = system.count, max([len(system.route(f)) for f in range(system.count)], default=1)
    route = np.full((count, hops), -1, dtype=np.int32)
    for f in range(count):
        route[f, : len(system.route(f))] = system.route(f)
    asked, left, pair = size.copy(), size.copy(), np.arange(count)
    watch = np.stack([np.arange(count), np.full(count, count)], axis=1).astype(np.int32)
    pending = np.array([1] * count + [count + 1], dtype=np.int64)  # the shared last counter never reaches zero
    busy, through = np.zeros(len(system.capacity)), np.zeros(len(system.capacity))
    carried, woken = np.zeros(count), np.empty(count + 1, dtype=np.int64)
    ends, now, live = np.full(count, np.nan), 0.0, count
    horizons = iter([*sorted(cuts), np.inf])
    horizon = next(horizons)
    while live:
        if now >= horizon:
            horizon = next(horizons)
        now, live, woke = run_until(
            system.capacity, route, pair, asked, left, watch, live, pending, busy, through, carried, woken, now, horizon
        )
        ends[woken[:woke]] = now
    return ends, busy, through, carried


@settings(max_examples=150, deadline=None)
@given(flow_systems(), st.data())
def test_l2_l4_compiled_ends_equal_the_reference_however_time_is_cut(system, data):
    size = np.array(data.draw(st.lists(st.floats(0.5, 100.0), min_size=system.count, max_size=system.count)))
    cuts = data.draw(st.lists(st.floats(0.01, 60.0), max_size=4))
    ends, busy, through, carried = ends_of(system, size, cuts)
    expected = drain(*system.system, size, np.zeros(system.count))
    np.testing.assert_allclose(ends, expected, rtol=RELATIVE)
    np.testing.assert_allclose(carried, size, rtol=RELATIVE)
    for link in range(len(system.capacity)):
        asked = sum(size[f] for f in range(system.count) if link in system.route(f))
        np.testing.assert_allclose(through[link], asked, rtol=RELATIVE)
        assert asked <= system.capacity[link] * busy[link] * (1 + RELATIVE)


@settings(max_examples=100, deadline=None)
@given(flow_systems())
def test_l3_l4_first_rates_carry_the_max_min_certificate(system):
    """Rates are read off the first interval: how much each flow has moved, divided by the time that passed."""
    if not system.count:
        return
    size = np.ones(system.count)
    route = np.full((system.count, 4), -1, dtype=np.int32)
    for f in range(system.count):
        route[f, : len(system.route(f))] = system.route(f)
    left = size.copy()
    watch = np.zeros((system.count, 2), dtype=np.int32)
    pending, woken = np.array([10**6], dtype=np.int64), np.empty(1, dtype=np.int64)
    horizon = 1e-3
    links = len(system.capacity)
    pair, busy, through, carried = np.arange(system.count), np.zeros(links), np.zeros(links), np.zeros(system.count)
    run_until(system.capacity, route, pair, size, left, watch, system.count, pending, busy, through, carried, woken, 0.0, horizon)
    rates = (size - left) / horizon
    # No flow ends (rates are at most 100 B/s). The slowest possible moves 0.1 / 8 * 1e-3 B of 1, known to 1e-16: 11 digits of its rate.
    assert violations(*system.system, rates, tolerance=1e-9) == []
