"""The fabric: SimPy moves the clock, arrays move the bytes. Every expectation is derived in the comment above it."""

import numpy as np
import pytest
import simpy
from clusters import star
from examples import examples
from hypothesis import given
from hypothesis import strategies as st

from moesim.base.errors import LawBroken
from moesim.engine.fabric import Fabric
from moesim.models.sharing.reference import drain


def send(fabric: Fabric, env: simpy.Environment, flows: list[tuple[int, int, float]], log: list[tuple[str, float]], name: str) -> None:
    """Start flows that share one counter; log when all have ended."""
    counter = fabric.watch(lambda: log.append((name, env.now)))
    other = fabric.watch(lambda: None)
    source, destination, size = (np.array(column) for column in zip(*flows, strict=True))
    fabric.transfer(source, destination, size.astype(float), np.tile([counter, other], (len(flows), 1)).astype(np.int32))


def test_one_flow_takes_size_over_bandwidth_after_its_latency():
    # 100 B at 10 B/s take 10 s and start after 0.5 s.
    env = simpy.Environment()
    fabric, log = Fabric(env, star(2, latency=0.5)), []
    send(fabric, env, [(0, 1, 100.0)], log, "a")
    env.run()
    assert log == [("a", pytest.approx(10.5, rel=1e-12))]


def test_a_late_flow_changes_the_rates_from_its_start_on():
    # GPU 0 sends 100 B to GPU 1 from t = 0 (10 B/s). At t = 4 it starts 60 B to GPU 2: both get 5 B/s of its way out.
    # The first has 60 B left at t = 4 as well, so both end at t = 4 + 60/5 = 16.
    env = simpy.Environment()
    fabric, log = Fabric(env, star(3)), []
    send(fabric, env, [(0, 1, 100.0)], log, "first")

    def late():
        yield env.timeout(4)
        send(fabric, env, [(0, 2, 60.0)], log, "late")

    env.process(late())
    env.run()
    assert sorted(log) == [("first", pytest.approx(16.0, rel=1e-12)), ("late", pytest.approx(16.0, rel=1e-12))]


def test_an_event_that_concerns_nobody_does_not_disturb_the_flows():
    # Other processes wake at odd moments; the flow still ends at exactly 10 s.
    env = simpy.Environment()
    fabric, log = Fabric(env, star(2)), []
    send(fabric, env, [(0, 1, 100.0)], log, "a")

    def bystander():
        for _ in range(37):
            yield env.timeout(0.3)

    env.process(bystander())
    env.run()
    assert log == [("a", pytest.approx(10.0, rel=1e-12))]
    fabric.check()


def test_incast_shares_the_receivers_link():
    # Three senders, 30 B each, into GPU 3's 10 B/s: all end at 9 s; the senders' own links are used at a third.
    env = simpy.Environment()
    fabric, log = Fabric(env, star(4)), []
    send(fabric, env, [(0, 3, 30.0), (1, 3, 30.0), (2, 3, 30.0)], log, "incast")
    env.run()
    assert log == [("incast", pytest.approx(9.0, rel=1e-12))]
    assert fabric.busy[4 + 3] == pytest.approx(9.0)
    assert fabric.carried_on_link[4 + 3] == pytest.approx(90.0)


def test_a_byte_that_is_lost_breaks_law_l2():
    env = simpy.Environment()
    fabric = Fabric(env, star(2))
    send(fabric, env, [(0, 1, 100.0)], [], "a")
    env.run()
    fabric.asked_between[1] += 1.0
    with pytest.raises(LawBroken, match="GPU 0 asked to send 101 B to GPU 1, but 100 B were carried"):
        fabric.check()
    fabric.asked_between[1] -= 1.0
    books = fabric._periods
    books._extra_through[3] -= 2.0
    with pytest.raises(LawBroken, match="link in:1 should have carried 100 B, but carried 98 B"):
        fabric.check()
    books._extra_through[3] += 2.0
    books._extra_busy[0] = -1.0
    with pytest.raises(LawBroken, match=r"link out:0 carried 100 B in 9 s, more than its 10 B/s allow"):
        fabric.check()


@st.composite
def staggered_flows(draw):
    gpus = draw(st.integers(2, 5))
    count = draw(st.integers(1, 12))
    pairs = [(i, j) for i in range(gpus) for j in range(gpus) if i != j]
    flows = [
        (*draw(st.sampled_from(pairs)), draw(st.floats(1.0, 1e6)), draw(st.one_of(st.just(0.0), st.floats(0.0, 1e5)))) for _ in range(count)
    ]
    return gpus, flows


@examples(60)
@given(staggered_flows())
def test_l2_l6_driven_by_simpy_equals_the_fluid_model_without_a_clock(case):
    """The SimPy-driven fabric gives each flow the end that the stand-alone reference gives it, whenever the flows start."""
    gpus, flows = case
    cluster = star(gpus, bandwidth=7.0)
    env = simpy.Environment()
    fabric, ends = Fabric(env, cluster), {}

    def starter(number, source, destination, size, start):
        yield env.timeout(start)
        log: list = []
        counter = fabric.watch(lambda: ends.__setitem__(number, env.now))
        other = fabric.watch(lambda: log.append(0))
        fabric.transfer(np.array([source]), np.array([destination]), np.array([size]), np.array([[counter, other]], dtype=np.int32))

    for number, flow in enumerate(flows):
        env.process(starter(number, *flow))
    env.run()
    routes = [cluster.route(source, destination) for source, destination, _, _ in flows]
    expected = drain(
        cluster.bandwidth,
        np.cumsum([0, *[len(route) for route in routes]]),
        np.concatenate(routes),
        np.array([flow[2] for flow in flows]),
        np.array([flow[3] for flow in flows]),
    )
    # Each end is a sum of at most 2 * flows intervals, each rounded a few times: 1e-9 leaves three orders of room.
    np.testing.assert_allclose([ends[number] for number in range(len(flows))], expected, rtol=1e-9, atol=1e-9)
    fabric.check()
