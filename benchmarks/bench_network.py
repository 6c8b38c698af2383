"""The sharing cores and the fabric: seconds, and ratios that are taken in turns. `network_table.py` prints the goals that these serve."""

import dataclasses
import time

import numpy as np
import pytest
import simpy
from foreign import simgrid
from interleaved import ratio, seconds
from network_table import against_simgrid, errors
from skewed import rails, two_tiers
from steps import deepseek_v3, run
from through import by_flow, by_rank, exact, follows, quanta, through_core, through_simpy

from moesim.engine.fabric import Fabric
from moesim.models.sharing.reference import drain

MODES = {"exact": (exact,), "fast": (quanta, 0.01, 2.0), "coarse": (quanta, 0.03, 0.0)}
PROBLEMS = {
    "two-tiers-2to1": two_tiers,
    "two-tiers-1to1": lambda gpus: two_tiers(gpus, oversubscription=1.0),
    "four-spines": lambda gpus: two_tiers(gpus, spines=4),
    "rails": rails,
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", PROBLEMS)
@pytest.mark.parametrize("gpus", [8, 64])
def test_all_to_all(benchmark, gpus, kind, mode):
    problem = PROBLEMS[kind](gpus)
    make, *settings = MODES[mode]
    after = follows(problem)
    ends = benchmark(lambda: through_core(problem, make(problem, after, *settings), by_rank(problem)))
    assert np.nanmax(ends) >= problem.bound * (1 - 1e-9)
    benchmark.extra_info["makespan_over_bound"] = float(np.nanmax(ends) / problem.bound)


@pytest.mark.parametrize("gpus", [64])
def test_all_to_all_through_simpy(benchmark, gpus):
    problem = two_tiers(gpus)
    cluster = problem.cluster()

    def once():
        env = simpy.Environment()
        return through_simpy(problem, Fabric(env, cluster), env, by_rank(problem))

    assert np.nanmax(benchmark(once)) > 0


def test_fast_against_exact(benchmark):
    problem = two_tiers(64)
    after = follows(problem)

    def drained(mode):
        make, *settings = MODES[mode]
        return seconds(lambda: through_core(problem, make(problem, after, *settings), by_rank(problem)))

    middle, least, most = ratio(lambda: drained("exact"), lambda: drained("fast"), 7)
    makespan, mean, worst = errors(problem)
    benchmark.extra_info.update(times_as_fast=middle, least=least, most=most, makespan_error=makespan, rank_mean=mean, rank_worst=worst)
    benchmark.pedantic(lambda: drained("fast"), rounds=5)


def test_exact_against_the_numpy_reference(benchmark):
    problem = two_tiers(16)
    after = follows(problem)
    found = {}

    def slow():
        began = time.process_time()
        found["ends"] = drain(problem.capacity, *problem.flat_routes(), problem.size, problem.start)
        return time.process_time() - began

    def quick():
        began = time.process_time()
        found["mine"] = through_core(problem, exact(problem, after), by_flow(problem))[:-1]
        return time.process_time() - began

    benchmark.extra_info["times_as_fast"] = ratio(slow, quick, 5)[0]
    np.testing.assert_allclose(found["mine"], found["ends"], rtol=1e-9)
    benchmark.pedantic(quick, rounds=5)


@pytest.mark.skipif(bool(simgrid.missing()), reason=simgrid.missing() or "SimGrid is there")
@pytest.mark.parametrize("kind", ["two-tiers-2to1", "rails"])
def test_exact_against_simgrid(benchmark, kind):
    flows = PROBLEMS[kind](64)
    middle, least, most, mode = against_simgrid(flows, 3)
    benchmark.extra_info.update(times_as_fast=middle, least=least, most=most, mode=mode)
    benchmark.pedantic(lambda: through_core(flows, exact(flows, None), by_rank(flows)), rounds=3)


def test_six_layers_of_a_deepseek_v3_step(benchmark):
    scenario = deepseek_v3(64)
    scenario = dataclasses.replace(scenario, model=dataclasses.replace(scenario.model, layers=9, moe_layers=tuple(range(3, 9))))
    told = benchmark.pedantic(lambda: run(scenario), rounds=3, warmup_rounds=1)
    benchmark.extra_info.update(told)
    assert told["step_time"] > 0
