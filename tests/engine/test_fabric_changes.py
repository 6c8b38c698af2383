"""What can happen to flows on their way: links that change, cancellations, weights, caps, ports; and modes, repeats, verification."""

import dataclasses

import numpy as np
import pytest
import simpy
from clusters import star
from examples import examples
from hypothesis import given
from hypothesis import strategies as st

from moesim.base.errors import UsageError
from moesim.engine.fabric import Fabric
from moesim.facts.scenario import Sharing
from moesim.models.sharing.groups import GroupsCore


class Log:
    """Who ended when; ``send`` counts all flows of a call on one counter."""

    def __init__(self, env, fabric):
        self.env, self.fabric, self.ends = env, fabric, {}

    def send(self, name, flows, **more):
        counter = self.fabric.watch(lambda: self.ends.__setitem__(name, self.env.now))
        source, destination, size = (np.array(column) for column in zip(*flows, strict=True))
        watch = np.full((len(flows), 2), counter, dtype=np.int32)
        return self.fabric.transfer(source, destination, size.astype(float), watch, **more)

    def at(self, when, what):
        def later():
            yield self.env.timeout(when)
            what()

        self.env.process(later())


def world(gpus, sharing=None, **more):
    env = simpy.Environment()
    fabric = Fabric(env, star(gpus, **{key: more[key] for key in more if key != "port"}), sharing, port=more.get("port", float("inf")))
    return env, fabric, Log(env, fabric)


def test_a_link_that_degrades_slows_its_flow_from_then_on():
    # 100 B at 10 B/s; at t = 4 (60 B left) the sender's link falls to 5 B/s: 12 s more.
    env, fabric, log = world(2)
    log.send("a", [(0, 1, 100.0)])
    log.at(4.0, lambda: fabric.change_bandwidth(0, 5.0))
    env.run()
    assert log.ends == {"a": pytest.approx(16.0, rel=1e-12)}
    fabric.check()


def test_a_link_that_recovers_speeds_its_flow_up():
    # 5 B/s for 4 s (20 B), then 10 B/s for the other 80 B: 12 s. The law of capacity knows the faster time.
    env, fabric, log = world(2)
    fabric.change_bandwidth(0, 5.0)
    log.send("a", [(0, 1, 100.0)])
    log.at(4.0, lambda: fabric.change_bandwidth(0, 10.0))
    env.run()
    assert log.ends == {"a": pytest.approx(12.0, rel=1e-12)}
    fabric.check()


def test_a_window_that_opens_and_closes_is_integrated():
    # A congestion window that lets 2, 8, 4 B/s through for a second each, then 1 B/s: 14 B in three seconds, 3 B in three more.
    env, fabric, log = world(2)
    log.send("a", [(0, 1, 17.0)])
    for when, rate in enumerate((2.0, 8.0, 4.0, 1.0)):
        log.at(float(when), lambda rate=rate: fabric.change_bandwidth(0, rate))
    env.run()
    assert log.ends == {"a": pytest.approx(6.0, rel=1e-12)}


def test_a_bandwidth_of_nothing_is_refused():
    _, fabric, _ = world(2)
    with pytest.raises(UsageError, match="link out:0 cannot carry 0 B/s: it must be a finite number above 0"):
        fabric.change_bandwidth(0, 0.0)


def test_a_rank_that_is_slowed_changes_everybodys_rates_from_then_on():
    # GPUs 0 and 1 send 100 B each into GPU 2 (10 B/s): 5 B/s each. At t = 4 GPU 0's own link falls to 2 B/s: GPU 1 gets 8 B/s for its
    # 80 B and ends at 14 s; GPU 0 has 80 - 20 = 60 B left then, still at 2 B/s: 44 s.
    env, fabric, log = world(3)
    log.send("slowed", [(0, 2, 100.0)])
    log.send("other", [(1, 2, 100.0)])
    log.at(4.0, lambda: fabric.change_bandwidth(0, 2.0))
    env.run()
    assert log.ends == {"slowed": pytest.approx(44.0, rel=1e-12), "other": pytest.approx(14.0, rel=1e-12)}


def test_a_cancelled_flow_frees_its_share_and_counts_what_it_carried():
    # Two flows of 100 B share 10 B/s; at t = 4 (20 B each) one is cancelled; the other has 80 B left at 10 B/s: 12 s.
    env, fabric, log = world(3)
    ticket = log.send("gone", [(0, 2, 100.0)])
    log.send("stays", [(1, 2, 100.0)])
    log.at(4.0, lambda: fabric.cancel(ticket))
    env.run()
    assert log.ends == {"gone": pytest.approx(4.0), "stays": pytest.approx(12.0, rel=1e-12)}
    assert fabric.carried_between.reshape(3, 3)[0, 2] == pytest.approx(20.0)
    fabric.check()


def test_a_flow_that_has_not_started_can_be_cancelled():
    env, fabric, log = world(2, latency=3.0)
    ticket = log.send("gone", [(0, 1, 100.0)])
    log.at(1.0, lambda: fabric.cancel(ticket))
    env.run()
    assert log.ends == {"gone": pytest.approx(1.0)}
    assert fabric.carried_on_link.tolist() == [0.0] * 4
    fabric.check()


def test_cancelling_what_has_ended_does_nothing():
    env, fabric, log = world(2)
    ticket = log.send("a", [(0, 1, 10.0)])
    log.at(5.0, lambda: log.send("b", [(0, 1, 50.0)]))
    log.at(6.0, lambda: fabric.cancel(ticket))
    env.run()
    assert log.ends == {"a": pytest.approx(1.0), "b": pytest.approx(10.0)}


def test_weights_and_caps_reach_the_core():
    # Weights 3 and 1 on 8 B/s, the heavier capped at 4: 4 and 4 B/s.
    env, _fabric, log = world(3, bandwidth=8.0)
    log.send("both", [(0, 1, 40.0), (0, 2, 20.0)], weight=np.array([3.0, 1.0]), cap=np.array([4.0, np.inf]))
    log.send("ten", [(1, 2, 8.0)])
    env.run()
    # The second flow ends at 5 s; the first goes on at its cap of 4 B/s, not at 8: 40 B end at 10 s.
    assert log.ends["both"] == pytest.approx(10.0, rel=1e-12)


def test_the_port_of_a_gpu_limits_what_its_kernels_send():
    # Links of 10 B/s, but kernels that send 4 B/s: two flows of 20 B from one GPU take 10 s. A transfer by other means is not limited.
    env, fabric, log = world(3, port=4.0)
    log.send("kernels", [(0, 1, 20.0), (0, 2, 20.0)], by_port=True)
    env.run()
    assert log.ends == {"kernels": pytest.approx(10.0, rel=1e-12)}
    env, fabric, log = world(3, port=4.0)
    log.send("copy engine", [(0, 1, 20.0), (0, 2, 20.0)])
    env.run()
    assert log.ends == {"copy engine": pytest.approx(4.0, rel=1e-12)}
    fabric.check()


def test_messages_that_are_posted_later_start_later():
    # Posted 0, 2 and 4 s after the call on links of their own: 10 B at 10 B/s each take a second.
    env, fabric, _log = world(4)
    ends = []
    for peer, wait in ((1, 0.0), (2, 2.0), (3, 4.0)):
        counter = fabric.watch(lambda: ends.append(env.now))
        fabric.transfer(np.array([0]), np.array([peer]), np.array([10.0]), np.full((1, 2), counter, dtype=np.int32), delay=np.array([wait]))
    env.run()
    assert ends == pytest.approx([1.0, 3.0, 5.0])


# ---- modes


def all_to_all(gpus, seed):
    size = np.random.default_rng(seed).lognormal(4.0, 0.7, (gpus, gpus))
    np.fill_diagonal(size, 0.0)
    return size


def run_all(sharing, gpus=24, seed=3, rounds=1, pause=50.0):
    """An all-to-all with a counter per receiver, some rounds of it; ends of receivers by round."""
    env, fabric, log = world(gpus, sharing)
    size = all_to_all(gpus, seed)
    source, destination = np.nonzero(size)
    fabric.expect(len(source))

    def rounds_of():
        for number in range(rounds):
            counters = np.array([fabric.watch(lambda d=d, n=number: log.ends.__setitem__((n, d), env.now)) for d in range(gpus)])
            watch = np.stack([counters[destination], counters[destination]], axis=1).astype(np.int32)
            fabric.transfer(source, destination, size[source, destination], watch)
            yield env.timeout(1e4 + pause * number)

    env.process(rounds_of())
    env.run()
    fabric.check()
    starts = np.cumsum([0.0, *[1e4 + pause * number for number in range(rounds - 1)]])
    return np.array([[log.ends[number, d] - starts[number] for d in range(gpus)] for number in range(rounds)]), fabric


def test_fast_sharing_stays_within_the_bound_that_it_states():
    exact, _ = run_all(Sharing(mode="exact"))
    fast, fabric = run_all(Sharing(mode="fast"))
    report = fabric.report()
    assert report["mode"] == "fast"
    assert abs(fast.max() / exact.max() - 1) <= report["error_bound"]["makespan"]
    assert np.abs(fast / exact - 1).max() <= report["error_bound"]["rank_worst"]


def test_the_bound_is_the_fullest_link():
    # The largest of what a GPU sends or receives, over 10 B/s: no allocation ends sooner, and the exact one not much later here.
    size = all_to_all(24, 3)
    bound, fabric = run_all(Sharing(mode="bound"))
    assert bound.max() == pytest.approx(max(size.sum(axis=0).max(), size.sum(axis=1).max()) / 10.0, rel=1e-12)
    assert fabric.report()["error_bound"]["makespan"] is None
    exact, _ = run_all(Sharing(mode="exact"))
    assert bound.max() <= exact.max() * (1 + 1e-12)


def test_auto_chooses_by_how_many_flows_there_will_be():
    _, fabric, _ = world(2)
    fabric.expect(20_000)
    assert fabric.report()["mode"] == "exact"
    fabric.expect(20_001)
    assert fabric.report()["mode"] == "fast"


def test_verifying_reports_the_error_of_a_sample():
    exact, _ = run_all(Sharing(mode="exact"), rounds=3)
    coarse, fabric = run_all(Sharing(mode="coarse", quantum=0.2, verify=True, repeats=False), rounds=3)
    verified = fabric.report()["verified"]
    # Of three equal rounds the first two are in the sample (0, 1, 3, 7 …): the error of the last receiver and the worst are known.
    assert verified["periods"] == 2
    assert verified["makespan"] == pytest.approx(np.abs(coarse[:2].max(axis=1) / exact[:2].max(axis=1) - 1).max(), rel=1e-6)
    assert verified["rank_worst"] == pytest.approx(np.abs(coarse[:2] / exact[:2] - 1).max(), rel=1e-6)
    assert verified["rank_worst"] > 0


def test_numbers_that_nobody_measured_state_no_error():
    _, fabric, _ = world(2, Sharing(mode="fast", quantum=0.5))
    assert fabric.report()["error_bound"] == {"makespan": None, "rank_mean": None, "rank_worst": None, "rank_of_whole": None}


# ---- repeats


@pytest.mark.parametrize("mode", ["exact", "fast", "bound"])
def test_l8_repeats_change_no_bit(mode):
    with_, fabric = run_all(Sharing(mode=mode), rounds=4)
    without, other = run_all(Sharing(mode=mode, repeats=False), rounds=4)
    assert np.array_equal(with_, without)
    assert fabric.report()["repeated"] == 3
    assert other.report()["repeated"] == 0
    np.testing.assert_allclose(fabric.carried_on_link, other.carried_on_link, rtol=1e-12)
    np.testing.assert_allclose(fabric.busy, other.busy, rtol=1e-12)


@examples(25)
@given(st.floats(0.1, 60.0), st.sampled_from(["flow", "link", "cancel", "look"]))
def test_l8_a_repeat_that_is_disturbed_goes_on_as_without(when, what):
    """A second round is replayed until something new happens in it: then the core takes over, in exactly the state it would have."""

    def play(repeats):
        env, fabric, log = world(8, Sharing(mode="exact", repeats=repeats))
        size = all_to_all(8, 1)
        source, destination = np.nonzero(size)
        seen = []

        def one_round(number):
            counters = np.array([fabric.watch(lambda d=d: log.ends.__setitem__((number, d), env.now)) for d in range(8)])
            watch = np.stack([counters[destination], counters[destination]], axis=1).astype(np.int32)
            return fabric.transfer(source, destination, size[source, destination], watch)

        def rounds_of():
            one_round(0)
            yield env.timeout(1000.0)
            ticket = one_round(1)
            yield env.timeout(when)
            if what == "flow":
                log.send("late", [(0, 5, 300.0)])
            elif what == "link":
                fabric.change_bandwidth(3, 4.0)
            elif what == "cancel":
                fabric.cancel(ticket)
            else:
                seen.append(fabric.carried_on_link)

        env.process(rounds_of())
        env.run()
        fabric.check()
        return log.ends, seen

    (ends, seen), (plain, plain_seen) = play(True), play(False)
    assert ends == plain
    for one, other in zip(seen, plain_seen, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-9)


def test_simpy_driven_ends_equal_the_core_alone():
    """In exact mode the fabric under SimPy ends every flow when the core alone does, with ranks waking in between."""
    gpus = 20
    size = all_to_all(gpus, 7)
    env, fabric, _ = world(gpus, Sharing(mode="exact", repeats=False))
    source, destination = np.nonzero(size)
    ends = np.zeros(len(source))
    counters = np.array([fabric.watch(lambda f=f: ends.__setitem__(f, env.now)) for f in range(len(source))])
    fabric.transfer(source, destination, size[source, destination], np.stack([counters, counters], axis=1).astype(np.int32))

    def bystander():
        for _ in range(300):
            yield env.timeout(0.37)

    env.process(bystander())
    env.run()
    cluster = star(gpus)
    route = np.array([cluster.route(i, j) for i, j in zip(source, destination, strict=True)], dtype=np.int32)
    core = GroupsCore(cluster.bandwidth, hops=2, pairs=1)
    pending, woken = np.full(len(source), 2), np.zeros(len(source), dtype=np.int64)
    watch = np.stack([np.arange(len(source))] * 2, axis=1).astype(np.int32)
    core.join(0.0, route, np.zeros(len(source), dtype=np.int64), size[source, destination], None, None, watch, pending)
    alone = np.zeros(len(source))
    while core.live:
        now, woke = core.advance(np.inf, pending, woken)
        alone[woken[:woke]] = now
    np.testing.assert_allclose(ends, alone, rtol=1e-12)


def test_a_sharing_section_is_part_of_the_scenario():
    assert dataclasses.asdict(Sharing()) == {"mode": "auto", "quantum": None, "guard": None, "verify": False, "repeats": True}
