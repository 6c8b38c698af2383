"""Bounds hold for every world that can be simulated, so pruning removes no plan."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from examples import examples
from hypothesis import given
from worlds import RELATIVE, no_trace, scenarios, small_model

from moesim.base.registry import plugin
from moesim.desk.scenario_file import load_scenario
from moesim.desk.trace_files import read_trace
from moesim.engine.simulate import simulate
from moesim.facts.gpu_presets import gpu_presets
from moesim.facts.scenario import Parallel, Policy, Scenario, Setting, Workload
from moesim.study.plan_bounds import bounds_of, port_rates

H100 = gpu_presets()["h100-sxm"]
SCENARIOS = Path(__file__).resolve().parents[2] / "scenarios"


def check(scenario, result, drop_rate, read=no_trace):
    values = {name: metric.value for name, metric in result.metrics.items()}
    for bound in bounds_of(scenario, read, drop_rate=drop_rate):
        value = values[bound.metric]
        slack = RELATIVE * abs(value)
        assert bound.value >= value - slack if bound.metric == "tokens_per_second" else bound.value <= value + slack, bound
    return values


@given(scenarios())
@examples(60)
def test_no_run_beats_its_bounds(scenario):
    result = simulate(scenario, read_trace=no_trace)
    values = check(scenario, result, None)
    # Whoever drops no more than is allowed is bound by what that leaves, too: the bounds of the tightest target that it meets.
    check(scenario, result, float(np.nextafter(values["drop_rate"], 1.0)))


def some_world(**changes):
    given = {
        "name": "w", "steps": 2, "model": small_model(8, 2), "cluster": plugin("topology", "one_switch")(gpu=H100, gpus=4),
        "parallel": Parallel(ep=4), "workload": Workload(tokens_per_gpu=64), "routing": plugin("source", "uniform")(),
    }  # fmt: skip
    return Scenario(**(given | changes))


@pytest.mark.parametrize("kind", ["direct", "allgather", "low_latency", "hierarchical", "two_dimensional"])
@pytest.mark.parametrize("top_k", [2, 5])
def test_every_exchange_is_bounded(kind, top_k):
    cluster = plugin("topology", "nvlink_nodes")(gpu=H100, nodes=2, gpus_per_node=2)
    scenario = some_world(exchange=plugin("exchange", kind)(), model=small_model(8, top_k), cluster=cluster)
    check(scenario, simulate(scenario, read_trace=no_trace), None)


@pytest.mark.parametrize("compute", ["roofline", "grouped_gemm"])
@pytest.mark.parametrize("phase", ["training", "prefill", "decode"])
def test_kernels_and_phases_are_bounded_closely(compute, phase):
    # Perfectly balanced, so that only launches, weights and latencies keep the bound from being reached.
    scenario = some_world(
        compute=plugin("compute", compute)(), workload=Workload(phase=phase, tokens_per_gpu=8192), routing=plugin("source", "balanced")()
    )
    values = check(scenario, simulate(scenario, read_trace=no_trace), None)
    bound = next(bound.value for bound in bounds_of(scenario, no_trace) if bound.metric == "step_time")
    assert bound > 0.25 * values["step_time_if_no_communication"]


@pytest.mark.parametrize("compute", ["roofline", "grouped_gemm"])
def test_experts_that_fill_the_step_are_bounded_tightly(compute):
    # Wide experts, many rows, perfectly balanced, no network to speak of: the bound is the step but for tiles, launches and latency.
    model = replace(small_model(8, 4), hidden=512, dispatch_width=512, expert_width=8192)
    scenario = some_world(
        compute=plugin("compute", compute)(), model=model, workload=Workload(tokens_per_gpu=16384), routing=plugin("source", "balanced")()
    )
    values = check(scenario, simulate(scenario, read_trace=no_trace), None)
    bound = next(bound.value for bound in bounds_of(scenario, no_trace) if bound.metric == "step_time")
    assert bound > 0.8 * values["step_time_if_no_communication"]


def test_transfers_that_fill_the_step_are_bounded_tightly():
    scenario = some_world(
        exchange=plugin("exchange", "allgather")(), workload=Workload(phase="prefill", tokens_per_gpu=2**17),
        compute=plugin("compute", "roofline")(compute_efficiency=1.0, memory_efficiency=1.0),
    )  # fmt: skip
    values = check(scenario, simulate(scenario, read_trace=no_trace), None)
    bounds = {bound.name: bound.value for bound in bounds_of(scenario, no_trace) if bound.metric == "step_time"}
    assert bounds["port bound"] > 0.9 * values["step_time"]
    assert bounds["no-communication bound"] < 0.7 * values["step_time"]


def test_port_rates_by_hand():
    # 450 GB/s of NVLink and 50 GB/s of its own card leave every GPU.
    nodes = plugin("topology", "nvlink_nodes")(gpu=H100, nodes=2, gpus_per_node=2, nvlink=450e9, nic=50e9)
    assert port_rates(nodes.build()) == (500e9, 500e9)
    mesh = plugin("topology", "mesh")(gpus_per_node=4, link=48e9)
    assert port_rates(mesh.build()) == (144e9, 144e9)  # three neighbours


def test_an_allgather_is_bounded_by_its_port():
    # 4 GPUs of 4096 tokens behind one switch: each gets 3 * 4096 rows in and sends as many partial sums.
    scenario = some_world(exchange=plugin("exchange", "allgather")(), workload=Workload(phase="prefill", tokens_per_gpu=4096))
    bounds = {(bound.name, bound.metric): bound.value for bound in bounds_of(scenario, no_trace)}
    out, into = port_rates(scenario.cluster.build())
    carry = scenario.exchange.begin(_setting(scenario))
    rows = 3 * 4096
    moving = 2 * (rows * carry.price.dispatch / into + rows * carry.price.combine / out)  # two MoE layers
    compute, ports = bounds["no-communication bound", "step_time"], bounds["port bound", "step_time"]
    assert ports == pytest.approx(compute + moving)


def _setting(scenario):
    return Setting(
        cluster=scenario.cluster.build(), model=scenario.model, parallel=scenario.parallel, workload=scenario.workload, seed=0,
        read_trace=no_trace,
    )  # fmt: skip


def test_a_drop_rule_may_drop_everything_unless_a_target_forbids_it():
    scenario = some_world(
        policy=Policy(capacity=plugin("capacity", "megatron")(factor=0.25)), workload=Workload(tokens_per_gpu=4096), model=small_model(8, 4)
    )
    free, strict = (
        {(bound.name, bound.metric): bound.value for bound in bounds_of(scenario, no_trace, drop_rate=rate)} for rate in (None, 0.1)
    )
    assert strict["no-communication bound", "step_time"] > free["no-communication bound", "step_time"]
    assert strict["memory floor", "peak_memory"] > free["memory floor", "peak_memory"]
    dropless = replace(scenario, policy=Policy())
    kept = {(bound.name, bound.metric): bound.value for bound in bounds_of(dropless, no_trace)}
    assert kept["no-communication bound", "step_time"] > strict["no-communication bound", "step_time"]


def test_a_source_that_is_not_known_leaves_the_memory_floor_alone():
    ragged = plugin("source", "imbalance")(workload="W4_source_ragged")
    scenario = some_world(routing=ragged)
    bounds = bounds_of(scenario, no_trace)
    assert [bound.name for bound in bounds] == ["memory floor"]
    check(scenario, simulate(scenario, read_trace=no_trace), None)


def test_recorded_routing_is_bounded():
    scenario = load_scenario(SCENARIOS / "which-capacity-factor.yaml", ["steps=1"])
    for capacity in (scenario.policy.capacity, plugin("capacity", "dropless")()):
        one = replace(scenario, policy=replace(scenario.policy, capacity=capacity))
        result = simulate(one, read_trace=read_trace)
        values = check(one, result, None, read_trace)
        check(one, result, float(np.nextafter(values["drop_rate"], 1.0)), read_trace)
