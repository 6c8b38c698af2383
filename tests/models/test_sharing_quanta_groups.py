"""Quanta filled by groups against quanta filled flow by flow: ways to the same rates."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moesim.models.sharing import quanta
from moesim.models.sharing.never_full import follows_of
from moesim.models.sharing.quanta import QuantaCore

pytest.importorskip("numba")


@st.composite
def stories(draw):
    """Flows over a few links, in batches; some are taken away, and links change."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    links, flows = draw(st.integers(2, 12)), draw(st.integers(1, 120))
    route = np.full((flows, 3), -1, dtype=np.int32)
    for flow in range(flows):
        many = int(rng.integers(1, min(3, links) + 1))
        route[flow, :many] = rng.choice(links, many, replace=False)
    batches = np.sort(rng.integers(0, draw(st.integers(1, 5)), flows))
    return {
        "capacity": rng.uniform(1.0, 10.0, links),
        "route": route,
        "size": rng.lognormal(0.0, 1.0, flows),
        "batches": batches,
        "times": np.concatenate([[0.0], np.cumsum(rng.uniform(0.1, 2.0, 5))]),
        "leavers": rng.random(flows) < draw(st.sampled_from([0.0, 0.2])),
        "changes": draw(st.booleans()),
        "prune": draw(st.booleans()),
        "heavy": draw(st.booleans()),
    }


EVERY, LARGEST, NONE = "every group counts its links", "the largest do", "flow by flow"


def play(story, way):
    """Return when each flow ended (never for one taken away), what went over each link, and what the cancelled still had."""
    capacity, route, size = story["capacity"], story["route"], story["size"]
    flows, links = len(size), len(capacity)
    # Groups of twice as many flows as there are links get rows, of which there is one: it is taken, given back and wanted in vain.
    patch = pytest.MonkeyPatch()
    if way == LARGEST:
        patch.setattr(quanta, "GROUPED", 0)
        patch.setattr(quanta, "WIDE", links + 1)
    try:
        core = QuantaCore(capacity, hops=3, pairs=flows, follows=follows_of(route, links) if story["prune"] else None)
    finally:
        patch.undo()
    pending, woken = np.ones(flows + 1, dtype=np.int64), np.empty(flows + 1, dtype=np.int64)
    pending[flows] = 2**40
    ends, ids, left = np.full(flows, np.nan), np.full(flows, -1), np.zeros(flows)

    def until(moment):
        while True:
            now, woke = core.advance(moment, pending, woken)
            if not woke:
                return
            ends[woken[:woke]] = now

    for batch, moment in enumerate(story["times"].tolist()):
        until(moment)
        new = np.flatnonzero(story["batches"] == batch)
        if len(new):
            watch = np.stack([new, np.full(len(new), flows)], axis=1).astype(np.int32)
            # Weights of 1 change nothing but that groups are given up from then on, with flows on their way.
            weight = np.ones(len(new)) if way == NONE or (story["heavy"] and batch == 1) else None
            ids[new] = core.join(moment, route[new], new, size[new], weight, None, watch, pending)
        gone = np.flatnonzero(story["leavers"] & (story["batches"] < batch) & np.isnan(ends) & (ids >= 0))
        if len(gone):
            left[gone], _ = core.leave(moment, ids[gone], pending, woken)
            ids[gone] = -1
        if story["changes"]:
            link = batch % links
            core.change_capacity(moment, np.array([link]), np.array([capacity[link] * (3.0 if batch % 2 else 0.4)]))
    until(np.inf)
    core.catch_up(story["times"][-1])
    assert core.live == 0
    return ends, core.through.copy(), left


@settings(max_examples=150, deadline=None)
@given(story=stories())
def test_groups_and_single_flows_end_alike(story):
    every, largest, single = (play(story, way) for way in (EVERY, LARGEST, NONE))
    for one, other in zip(every, largest, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-12)
    # What is carried in a quantum is the same. A flow that ends in it, and that two links limit alike, may be counted with either of them,
    # and ends at another moment of the quantum then: a hundredth of the time that others need, of which a fifth is allowed here.
    for one, other in zip(every[1:], single[1:], strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(every[0], single[0], rtol=0, atol=0.002 * np.nanmax(single[0], initial=0.0))


def test_a_route_that_crosses_a_link_twice_takes_two_shares_of_it():
    # On the list of link 0 the first flow stands twice, so 10 B/s are three shares of 10/3 B/s. The second ends at 3 s with its 10 B;
    # the first has its own 10 B then too.
    core = QuantaCore(np.array([10.0]), hops=2, pairs=2)
    route = np.array([[0, 0], [0, -1]], dtype=np.int32)
    pending, woken = np.array([1, 1, 9]), np.empty(3, dtype=np.int64)
    watch = np.array([[0, 2], [1, 2]], dtype=np.int32)
    core.join(0.0, route, np.arange(2), np.full(2, 10.0), None, None, watch, pending)
    now, woke = core.advance(np.inf, pending, woken)
    assert (now, woke) == (pytest.approx(3.0, rel=1e-9), 2)
