"""How GPUs post messages: order, overhead, window, port and pipelining, with times found by hand, and in whole runs."""

import dataclasses

import numpy as np
import pytest
import simpy
from clusters import star
from worlds import no_trace, play, small_model

from moesim.base.registry import plugin
from moesim.engine.collective import Collective
from moesim.engine.fabric import Fabric
from moesim.engine.posting import Rules
from moesim.engine.simulate import simulate
from moesim.facts.program import BACKWARD, COMMUNICATION, COMPUTE, FORWARD, Program, Task
from moesim.facts.scenario import Parallel, Scenario, Sharing, Workload
from moesim.models.schedule.sequential import layer_works
from moesim.models.topology.nvlink_nodes import NvlinkNodes
from moesim.models.topology.one_switch import OneSwitch

EVEN = 100.0 * (1 - np.eye(4))  # 100 B between each two of four GPUs, over links of 10 B/s: 10 s a message that is alone


def ends(rules: Rules, size=EVEN, *, port=np.inf, arrivals=(0, 0, 0, 0), bandwidth=10.0) -> list[float]:
    """Return when each GPU of a star is done with an all-to-all."""
    env = simpy.Environment()
    fabric = Fabric(env, star(len(size), bandwidth), port=port)
    collective = Collective(env, fabric, range(len(size)), size, barrier=False, rules=rules)

    def rank(gpu):
        yield env.timeout(arrivals[gpu])
        yield collective.arrive(gpu)

    for gpu in range(len(size)):
        env.process(rank(gpu))
    env.run()
    fabric.check()
    return [collective.at[gpu].end for gpu in range(len(size))]


def test_without_rules_every_port_is_full_from_the_start() -> None:
    # 300 B through a port of 10 B/s, whatever the order: all at once means that there is none.
    assert ends(Rules()) == pytest.approx([30.0] * 4)
    assert ends(Rules(order="ascending")) == pytest.approx([30.0] * 4)


def test_overhead_lets_messages_follow_each_other() -> None:
    # Rotated: the k-th message of GPU g goes to g + k and leaves at (k - 1) 20 s. It is alone on both of its ports and takes 10 s, so the
    # last one ends at 40 + 10 s.
    assert ends(Rules(overhead=20.0)) == pytest.approx([50.0] * 4)


def test_overhead_in_ascending_order_sends_to_the_same_gpu_together() -> None:
    # At 40 s each GPU posts its third message: 0, 1 and 2 to GPU 3, which share the port into it for 30 s. Earlier ones are over by then:
    # those to 0 at 30 s, and at 20 s two each go to 1 and to 2, done at 40 s.
    assert ends(Rules(order="ascending", overhead=20.0)) == pytest.approx([70.0] * 4)


def test_a_window_of_one_serialises() -> None:
    # Rotated: all send to their next neighbour, then to the one after, each alone on its ports: three times 10 s.
    assert ends(Rules(in_flight=1)) == pytest.approx([30.0] * 4)
    # The next message leaves when the last has arrived; 20 s of overhead per message then cover the 10 s of the message before.
    assert ends(Rules(in_flight=1, overhead=20.0)) == pytest.approx([50.0] * 4)
    # 4 s of overhead are over when the 10 s of a message are.
    assert ends(Rules(in_flight=1, overhead=4.0)) == pytest.approx([30.0] * 4)


def test_a_window_of_one_in_ascending_order_is_an_incast() -> None:
    # GPU 0 sends to 1, 2, 3 in 10 s each while 1, 2 and 3 share the port into 0 until 30 s. Then 1 sends to 2, and 2 and 3 share the port
    # into 1; ends follow by hand below. Rotated it took 30 s.
    #   30 s: 1 -> 2 alone, done at 40; 2 -> 1 and 3 -> 1 at 5 B/s, done at 50.
    #   40 s: 1 -> 3 alone, done at 50.
    #   50 s: 2 -> 3 and 3 -> 2 alone, done at 60.
    assert ends(Rules(order="ascending", in_flight=1)) == pytest.approx([30.0, 50.0, 60.0, 60.0])
    assert max(ends(Rules(order="ascending", in_flight=1))) > max(ends(Rules(in_flight=1)))


def test_a_window_of_two_halves_the_rounds() -> None:
    # Two messages of a GPU share its port: 20 s for both; the receivers have two each as well. Then the third alone: 10 s.
    assert ends(Rules(in_flight=2)) == pytest.approx([30.0] * 4)
    # A window that holds them all is no window.
    assert ends(Rules(in_flight=3)) == pytest.approx(ends(Rules()))


def test_a_port_limits_what_a_gpu_sends_and_receives_together() -> None:
    # 300 B through kernels that move 4 B/s, though the link carries 10 B/s.
    assert ends(Rules(by_port=True), port=4.0) == pytest.approx([75.0] * 4)
    # It limits receiving too: everybody sends 100 B to GPU 0 only.
    incast = np.zeros((4, 4))
    incast[1:, 0] = 100.0
    assert max(ends(Rules(by_port=True), incast, port=4.0)) == pytest.approx(75.0)
    # Transfers that do not ask for it are not limited.
    assert ends(Rules(), port=4.0) == pytest.approx([30.0] * 4)


def test_posting_by_rules_waits_for_late_ranks() -> None:
    # GPU 3 comes at 100 s: the six messages among the others are over by 20 s, then 3 exchanges with all: its port needs 30 s.
    for rules in (Rules(in_flight=1), Rules(in_flight=1, order="ascending")):
        assert ends(rules, arrivals=(0, 0, 0, 100))[3] == pytest.approx(130.0)
    # Overhead counts from when a message can be posted: the others' messages to 3 leave at 100 s, 3's own at 100, 120 and 140 s.
    assert ends(Rules(overhead=20.0), arrivals=(0, 0, 0, 100))[3] == pytest.approx(150.0)


def world(**more) -> Scenario:
    parts = {
        "name": "wired",
        "steps": 1,
        "model": small_model(16, 4),
        "cluster": NvlinkNodes(nodes=4, gpus_per_node=2),
        "parallel": Parallel(ep=8),
        "workload": Workload(phase="prefill", tokens_per_gpu=2000),
        "routing": plugin("source", "uniform")(),
        "exchange": plugin("exchange", "hierarchical")(),
    }
    return Scenario(**{**parts, **more})


def spent(scenario: Scenario, column: str = "dispatch_transfer_s") -> float:
    return float(simulate(scenario, read_trace=no_trace).tables["steps"][column][0])


def test_stages_that_overlap_are_faster_than_one_after_the_other_and_not_than_their_bounds() -> None:
    pipelined = play(world())
    staged = play(world(exchange=plugin("exchange", "hierarchical")(pipelined=False)))
    assert pipelined.metrics["dispatch_bytes"] == staged.metrics["dispatch_bytes"]
    times = [result.tables["steps"]["dispatch_transfer_s"][0] for result in (pipelined, staged)]
    assert times[0] < times[1]
    whole, stages = pipelined.tables["collectives"], staged.tables["collectives"]
    assert len(stages) == 2 * len(whole)  # a row for each stage; the pipeline is one
    assert (whole["moving_s"] >= whole["link_bound_s"]).all()
    assert (stages["moving_s"] >= stages["link_bound_s"]).all()
    # No less than the longer of its two stages would need by itself.
    of_stages = stages["link_bound_s"].reshape(-1, 2).max(axis=1)
    assert (np.sort(whole["moving_s"]) >= np.sort(of_stages)).all()


@pytest.mark.parametrize("barrier", [False, True])
def test_pipelining_changes_nothing_for_a_single_stage(barrier) -> None:
    exchange = plugin("exchange", "hierarchical")
    start = "barrier" if barrier else "pairwise"
    one_node = NvlinkNodes(nodes=1, gpus_per_node=8)
    both = [play(world(cluster=one_node, exchange=exchange(pipelined=flag, start=start))) for flag in (False, True)]
    np.testing.assert_array_equal(both[0].tables["steps"]["step_time_s"], both[1].tables["steps"]["step_time_s"])


def test_fewer_sms_for_communication_slow_a_dispatch_to_what_they_move() -> None:
    # System: one switch of 100 GB/s ports without latency, 2 SMs of 1 GB/s each. Expectation: everything moves at 2 instead of 100 GB/s.
    cluster = OneSwitch(gpus=4, bandwidth=100e9, latency=0.0)
    direct = plugin("exchange", "direct")
    few = direct(communication_sms=2, bandwidth_per_sm=1e9, launch=0.0, start="barrier")
    scenario = world(cluster=cluster, parallel=Parallel(ep=4), exchange=few)
    few_calls = play(scenario).tables["collectives"]
    all_calls = play(dataclasses.replace(scenario, exchange=direct(launch=0.0, start="barrier"))).tables["collectives"]
    np.testing.assert_allclose(few_calls["moving_s"], 50 * all_calls["moving_s"], rtol=1e-9)
    # Of the busiest port of a GPU at 100 GB/s; the kernels' port has a fiftieth of that.
    assert (few_calls["moving_s"] >= 50 * (1 - 1e-9) * few_calls["port_bound_s"]).all()


def test_a_run_posts_in_the_order_and_window_that_its_exchange_says() -> None:
    # One message at a time: rotated, all ports are busy all the time but for unequal loads; ascending, all queue for GPU 0 first.
    cluster = OneSwitch(gpus=8, bandwidth=1e9, latency=0.0)
    times = {}
    for order in ("rotated", "ascending"):
        exchange = plugin("exchange", "direct")(order=order, in_flight=1)
        times[order] = spent(world(cluster=cluster, exchange=exchange))
    free = spent(world(cluster=cluster, exchange=plugin("exchange", "direct")()))
    assert free < times["rotated"] < times["ascending"]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Apart:
    """The sequential program; with ``lanes`` its last task has a lane of its own, so that every GPU has three processes."""

    kind = "apart"
    lanes: bool

    def program(self, model, workload):
        works = [work for layer in range(model.layers) for work in layer_works(model, layer, FORWARD)]
        if workload.phase == "training":
            works += [work for layer in reversed(range(model.layers)) for work in layer_works(model, layer, BACKWARD)]
        tasks, last = [], ()
        for work in works:
            lane = COMMUNICATION if work.phase in ("dispatch", "combine") else COMPUTE
            tasks.append(Task(work, lane, last))
            last = (len(tasks) - 1,)
        if self.lanes:  # the last task need not wait for the one before it, so the program may overlap
            tasks[-1] = Task(tasks[-1].work, "other", (len(tasks) - 3,))
        return Program(tuple(tasks))


def test_one_process_per_gpu_and_one_per_lane_give_the_same_times() -> None:
    # The two programs differ in their last task alone: it runs on a third lane and waits for the task before the last, not for the last.
    # So one has a process per GPU, the other three, and every span but the last ones is the same.
    for phase, last in (("prefill", (2, "combine", FORWARD)), ("training", (0, "attention", BACKWARD))):
        runs = [
            play(world(schedule=Apart(lanes=lanes), workload=Workload(phase=phase, tokens_per_gpu=200), sharing=Sharing(repeats=False)))
            for lanes in (False, True)
        ]
        spans = []
        for run in runs:
            table = run.tables["spans"]
            order = np.lexsort([table[name] for name in ("gpu", "phase", "direction", "layer")])
            final = (table["layer"] == last[0]) & (table["phase"] == last[1]) & (table["direction"] == last[2])
            kept = order[~final[order]]
            spans.append({name: table[name][kept] for name in ("start_s", "end_s", "waiting_s", "bytes", "gpu")})
        for name, column in spans[0].items():
            np.testing.assert_allclose(spans[1][name], column, rtol=1e-12, atol=1e-15)
