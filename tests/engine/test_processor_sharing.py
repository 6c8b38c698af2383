"""Processor sharing: ranks that outnumber their cores, by hand, against max-min sharing of links, and through whole runs."""

import dataclasses
from itertools import pairwise

import numpy as np
import pytest
import simpy
from clusters import GPU
from examples import examples
from hypothesis import given
from hypothesis import strategies as st
from worlds import no_trace, small_model

from moesim.base.registry import plugin
from moesim.engine.balanced import fresh_policies
from moesim.engine.cores import Cores, Pool
from moesim.engine.fabric import Fabric
from moesim.engine.machine import Machine
from moesim.engine.no_network import no_communication_on_shared_cores
from moesim.engine.placing import first_placement
from moesim.engine.replay import AllToAll, Compute, replay
from moesim.engine.simulate import simulate
from moesim.facts.cluster import Cluster
from moesim.facts.program import COLLECTIVES, COMPUTE, FORWARD, Program, Task, Work
from moesim.facts.scenario import Parallel, Scenario, Setting, Sharing, Workload
from moesim.models.compute.table import ExpertTimes, Table
from moesim.models.topology.shaped_hosts import ShapedHosts


def ends_of(cores, tasks):
    """When tasks (arrival, seconds) end that share ``cores`` cores."""
    env = simpy.Environment()
    pool = Pool(env, cores)
    ends = [None] * len(tasks)

    def task(number, arrival, seconds):
        yield env.timeout(arrival)
        yield pool.run(seconds)
        ends[number] = env.now

    for number, (arrival, seconds) in enumerate(tasks):
        env.process(task(number, arrival, seconds))
    env.run()
    return ends


@pytest.mark.parametrize(("tasks", "cores", "seconds"), [(1, 1, 3.0), (2, 2, 3.0), (4, 1, 12.0), (8, 2, 12.0), (3, 2, 4.5), (2, 0.5, 12.0)])
def test_equal_tasks_take_n_over_c_times_as_long(tasks, cores, seconds):
    # n equal tasks of w = 3 s on c cores: each gets min(1, c / n) of a core, so all end at w * max(1, n / c).
    assert ends_of(cores, [(0.0, 3.0)] * tasks) == [pytest.approx(seconds)] * tasks


def test_a_task_that_comes_later_slows_the_first_from_then_on():
    # One core. 0 to 2: A alone, 2 of its 4 s done. From 2 both at 1/2: B needs 1 s, done at 4; A has 1 s left then, alone again: 5.
    assert ends_of(1, [(0.0, 4.0), (2.0, 1.0)]) == [pytest.approx(5.0), pytest.approx(4.0)]


def test_tasks_that_leave_give_their_share_to_the_others():
    # Two cores, three tasks at 2/3: the first (2 s) ends at 3; the others have 4 and 7 s done of 2 each, so 2 and 5 left, each with a core
    # of its own: 5 and 8.
    assert ends_of(2, [(0.0, 2.0), (0.0, 4.0), (0.0, 7.0)]) == [pytest.approx(3.0), pytest.approx(5.0), pytest.approx(8.0)]


def test_no_work_ends_at_once_and_disturbs_nobody():
    assert ends_of(1, [(0.0, 2.0), (1.0, 0.0)]) == [pytest.approx(2.0), 1.0]


def test_an_idle_pool_begins_anew():
    assert ends_of(1, [(0.0, 1.0), (10.0, 1.0), (10.0, 1.0)]) == [1.0, pytest.approx(12.0), pytest.approx(12.0)]


arrivals = st.one_of(st.integers(0, 6).map(float), st.floats(0, 20))
work = st.one_of(st.integers(1, 4).map(float), st.floats(1e-3, 10))


@examples(60)
@given(tasks=st.lists(st.tuples(arrivals, work), min_size=1, max_size=9), cores=st.integers(1, 4))
def test_shared_cores_are_max_min_shares_of_tasks_over_cores(tasks, cores):
    # The same question asked of the fabric: every task is a flow over a link of capacity 1 of its own (no task uses more than a core)
    # and a link of capacity c that all cross. Its core of exact max-min sharing shares no code with the pool.
    count = len(tasks)
    routes = [[i, count] if j == count and i != j else [] for i in range(count + 1) for j in range(count + 1)]
    cluster = Cluster(
        gpu=GPU,
        node_of=np.arange(count + 1),
        bandwidth=np.array([1.0] * count + [float(cores)]),
        latency=np.zeros(count + 1),
        link_names=tuple(f"link:{k}" for k in range(count + 1)),
        link_class=("link",) * (count + 1),
        route_start=np.cumsum([0, *map(len, routes)]),
        route_link=np.array([link for route in routes for link in route], dtype=np.int64),
    )
    env = simpy.Environment()
    fabric = Fabric(env, cluster, Sharing(mode="exact"))
    ends = [0.0] * count

    def flow(number, arrival, size):
        yield env.timeout(arrival)
        counter = fabric.watch(lambda: ends.__setitem__(number, env.now))
        fabric.transfer(np.array([number]), np.array([count]), np.array([size]), np.full((1, 2), counter, dtype=np.int32))

    for number, (arrival, size) in enumerate(tasks):
        env.process(flow(number, arrival, size))
    env.run()
    np.testing.assert_allclose(ends_of(cores, tasks), ends, rtol=1e-9, atol=1e-9)


@examples(60)
@given(tasks=st.lists(st.tuples(arrivals, work), min_size=1, max_size=12), cores=st.integers(1, 4))
def test_shared_cores_conserve_work_and_never_idle_while_tasks_wait(tasks, cores):
    # Between two changes n tasks run: exactly min(n, c) cores are busy. So the integral of min(n(t), c) is the work that was asked for.
    ends = ends_of(cores, tasks)
    times = sorted({0.0, *ends, *(arrival for arrival, _ in tasks)})
    done = 0.0
    for begin, end in pairwise(times):
        running = sum(arrival <= begin and stop >= end for (arrival, _), stop in zip(tasks, ends, strict=True))
        done += min(running, cores) * (end - begin)
    assert done == pytest.approx(sum(seconds for _, seconds in tasks), rel=1e-9)
    for (arrival, seconds), end in zip(tasks, ends, strict=True):
        assert end - arrival >= seconds * (1 - 1e-9)  # nobody has more than one core


def test_ranks_are_pinned_in_turn_or_share_all_cores():
    pinned = ShapedHosts(ranks=5, cores=2).build()
    assert pinned.core_pool.tolist() == [0, 1, 0, 1, 0]
    assert pinned.pool_cores.tolist() == [1.0, 1.0]
    pooled = ShapedHosts(ranks=5, cores=2, pinned=False).build()
    assert pooled.core_pool.tolist() == [0] * 5
    assert pooled.pool_cores.tolist() == [2.0]
    nodes = ShapedHosts(ranks=6, ranks_per_node=3, uplink=1e6, cores=2, cores_of="node").build()
    assert nodes.core_pool.tolist() == [0, 1, 0, 2, 3, 2]
    assert nodes.pool_cores.tolist() == [1.0] * 4


def test_only_pools_with_more_ranks_than_cores_are_contended():
    cores = Cores(simpy.Environment(), ShapedHosts(ranks=3, cores=2).build())
    assert [cores.contended(rank) for rank in range(3)] == [True, False, True]
    assert not ShapedHosts(ranks=2, cores=2).build().shares_cores
    assert not ShapedHosts(ranks=8).build().shares_cores
    assert ShapedHosts(ranks=3, cores=2, pinned=False).build().shares_cores


def scenario(cluster, phase="prefill", **more):
    times = ExpertTimes(rows=(1, 8, 64), forward=(1e-4, 2e-4, 1.6e-3), backward=(2e-4, 5e-4, 3e-3))
    return Scenario(
        name="shared cores",
        seed=5,
        steps=2,
        model=small_model(8, 2),
        cluster=cluster,
        parallel=Parallel(ep=4),
        workload=Workload(phase=phase, tokens_per_gpu=12, context=64),
        routing=plugin("source", "power_law")(alpha=1.1),
        compute=Table(experts=times),
        **more,
    )


HOSTS = ShapedHosts(ranks=4, rank_link=12.5e6)


def play(cluster, **more):
    return simulate(scenario(cluster, **more), read_trace=no_trace, keep_spans=True)


@pytest.mark.parametrize("phase", ["prefill", "training"])
def test_a_core_for_each_rank_changes_nothing_to_the_last_bit(phase):
    alone = play(HOSTS, phase=phase)
    for cores in (4, 9):
        same = play(dataclasses.replace(HOSTS, cores=cores), phase=phase)
        for name, table in alone.tables.items():
            for column, values in table.columns.items():
                np.testing.assert_array_equal(values, same.tables[name].columns[column], err_msg=f"{name}.{column}")
    assert not any("cores" in line for line in alone.assumptions)


def test_fewer_cores_make_a_step_slower_and_the_result_says_so():
    times = [play(dataclasses.replace(HOSTS, cores=cores)).metrics["step_time"].value for cores in (4, 2, 1)]
    assert times[0] < times[1] < times[2]
    assert any(line.startswith("4 ranks compute on 2 cores") for line in play(dataclasses.replace(HOSTS, cores=2)).assumptions)


def test_free_communication_on_one_core_is_all_work_one_after_the_other():
    # One core and no bytes: work conservation says that the step is the sum of all compute of all ranks, whatever the order.
    result = play(dataclasses.replace(HOSTS, cores=1, rank_link=1e17))
    alone = play(dataclasses.replace(HOSTS, rank_link=1e17)).tables["spans"]
    for step, free in enumerate(result.tables["steps"]["step"]):
        mine = alone.where((alone["step"] == step) & (alone["lane"] == COMPUTE))
        assert free == step
        total = (mine["end_s"] - mine["start_s"]).sum()
        steps = result.tables["steps"]
        # Exchanges launch for 8.7 us each on every rank, during which a core may idle; two layers, two exchanges.
        assert total * (1 - 1e-9) <= steps["step_time_s"][step] <= total + 2 * 2 * 8.7e-6 + 1e-9
    floor = result.metrics["step_time_if_no_communication"].value
    assert floor == pytest.approx(result.metrics["step_time"].value, rel=0.02)


def test_a_step_of_a_scenario_and_the_replay_of_its_phases_agree():
    # Two ways into the engine: lanes that play a program, and phases that are given. Same seconds and bytes, same times.
    hosts = dataclasses.replace(HOSTS, cores=2)
    asked = scenario(hosts, exchange=plugin("exchange", "direct")(launch=0.0))
    asked = dataclasses.replace(asked, model=dataclasses.replace(small_model(8, 2), layers=1, moe_layers=(0,)))
    setting = Setting(
        cluster=hosts.build(), model=asked.model, parallel=asked.parallel, workload=asked.workload, seed=asked.seed, read_trace=no_trace
    )
    plan = asked.policy.placement.begin(setting)
    machine = Machine(asked, setting, fresh_policies(asked, setting), first_placement(asked.policy.placement, setting, plan))
    load = machine.load(asked.routing.begin(setting)(0), 0)
    exchange = load.layers[0].exchange[FORWARD]
    phases = []
    for task in machine.program.tasks:
        if task.work.phase in COLLECTIVES:
            phases.append(AllToAll(name=task.work.phase, bytes=getattr(exchange, task.work.phase)[0].bytes))
        else:
            phases.append(Compute(name=task.work.phase, seconds=load.seconds[task.work]))
    mark = machine.play(load, 0)
    assert replay(setting.cluster, phases).seconds == pytest.approx(mark.end - mark.start, rel=1e-9)


def test_steps_without_communication_by_hand():
    # Two ranks on one core. Experts take 2 and 4 s, then both meet in combine, then 1 s each.
    # Sharing: the first ends at 4 (half speed), the second at 6 (2 s done at 4, alone for 2 more); 6 to 8: two tasks of 1 s share.
    works = [Work("experts", 0, 0), Work("combine", 0, 0), Work("gate", 1, 1)]
    program = Program(tuple(Task(work, "c" if work.phase == "combine" else COMPUTE, (n - 1,) if n else ()) for n, work in enumerate(works)))
    seconds = {works[0]: np.array([2.0, 4.0]), works[2]: np.array([1.0, 1.0])}
    one = ShapedHosts(ranks=2, cores=1).build()
    assert no_communication_on_shared_cores(program, seconds, 1, one) == pytest.approx(8.0)
    # Four ranks on two cores (0 and 2 on one, 1 and 3 on the other), experts 1, 4, 1 and 0 s, then 1, 1, 1 and 0 s. All meet at 4, when
    # rank 1 is done; ranks 0 and 2 then share: 6. In two groups 2 and 3 meet at 2, rank 2 is done at 3, and rank 0 has its core alone
    # from 4 on: 5.
    seconds = {works[0]: np.array([1.0, 4.0, 1.0, 0.0]), works[2]: np.array([1.0, 1.0, 1.0, 0.0])}
    two = ShapedHosts(ranks=4, cores=2).build()
    assert no_communication_on_shared_cores(program, seconds, 1, two) == pytest.approx(6.0)
    assert no_communication_on_shared_cores(program, seconds, 2, two) == pytest.approx(5.0)
