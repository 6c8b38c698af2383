"""How much memory GPUs need: quantiles and chances by hand, and the same rows as a run with a clock."""

import dataclasses

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from worlds import no_trace, play, scenarios, small_model

from moesim.base.registry import plugin
from moesim.engine.rows import Rows, rows_of_steps
from moesim.facts.scenario import Parallel, Policy, Rebalance, Scenario, Workload
from moesim.models.memory import peak_memory
from moesim.study.memory import chance, memory_need, spread


def scenario(**changes):
    plain = Scenario(
        name="skewed",
        seed=4,
        steps=6,
        model=small_model(16, 2),
        cluster=plugin("topology", "one_switch")(gpus=4),
        parallel=Parallel(ep=4),
        workload=Workload(tokens_per_gpu=64, phase="prefill"),
        routing=plugin("source", "imbalance")(workload="W6_rotating_hotspot", heat=8.0, period=2),
    )
    return dataclasses.replace(plain, **changes)


def test_quantiles_are_values_that_occurred():
    # 200 steps: 198 of them are 99 %, so p99 is the 198th smallest; the two largest are beyond.
    values = np.arange(1.0, 201.0)
    assert spread(values) == dataclasses.replace(spread(values), mean=100.5, p50=100.0, p99=198.0, max=200.0)


def test_chance_has_the_exact_interval():
    # None of n: the upper end solves (1 - p)^n = 0.025.
    none = chance(0, 50)
    assert (none.value, none.low) == (0.0, 0.0)
    assert none.high == pytest.approx(1 - 0.025 ** (1 / 50), rel=1e-6)
    # All of n: by symmetry.
    assert chance(50, 50).low == pytest.approx(0.025 ** (1 / 50), rel=1e-6)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(case=scenarios())
def test_l1_tokens_the_same_rows_arrive_with_and_without_a_clock(case):
    result = play(case)
    rows = rows_of_steps(case, read_trace=no_trace)
    assert np.array_equal(rows.received.ravel(), result.tables["ranks"]["rows"])
    need = memory_need(case, rows)
    assert need.any_gpu.max == pytest.approx(result.metrics["peak_memory"].value, rel=1e-12)


def test_a_placement_that_moves_has_the_rows_of_free_rebalancing():
    eplb = plugin("placement", "eplb")(redundant=4, window=1, interval=2)
    case = scenario(policy=Policy(placement=eplb, rebalance=Rebalance(mode="free")))
    rows = rows_of_steps(case, read_trace=no_trace)
    assert np.array_equal(rows.received.ravel(), play(case).tables["ranks"]["rows"])
    still = dataclasses.replace(case, policy=Policy(placement=plugin("placement", "eplb")(redundant=4, window=1, interval=1000)))
    assert not np.array_equal(rows.received, rows_of_steps(still, read_trace=no_trace).received)


def test_one_gpu_over_the_limit_in_one_step_of_four():
    # Four steps, one layer, two GPUs; GPU 1 gets 100 rows once and 10 otherwise.
    received = np.array([[[10, 10]], [[10, 100]], [[10, 10]], [[10, 10]]])
    case = scenario(model=small_model(16, 2, layers=2))  # the first of the two is dense
    rows = Rows(
        received=received,
        tokens=np.full((4, 2), 64),
        slots=np.array([4, 4]),
        guests=np.zeros_like(received),
        fresh=np.ones(4, dtype=bool),
    )
    low, high = peak_memory(case.model, case.workload, 4, np.array([10, 100]))
    need = memory_need(case, rows, limit=(low + high) / 2)
    assert [gpu.out_of_memory.value for gpu in need.gpus] == [0.0, 0.25]
    assert need.out_of_memory.value == 0.25
    assert (need.any_gpu.p50, need.any_gpu.max) == (low, high)
    assert need.buffer_rows.max == 100
    assert need.mean_rows == pytest.approx((7 * 10 + 100) / 8)
    # Of steps whose tokens come again only the first counts.
    again = dataclasses.replace(rows, fresh=np.array([True, True, False, False]))
    assert memory_need(case, again, limit=(low + high) / 2).out_of_memory.value == 0.5
