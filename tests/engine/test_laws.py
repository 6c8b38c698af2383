"""The laws of docs/laws.md on whole runs of small random worlds."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from worlds import LAWS, RELATIVE, no_trace, play, scenarios, small_model

from moesim.base.errors import Stuck
from moesim.base.registry import plugin
from moesim.engine.simulate import simulate
from moesim.facts.program import COMMUNICATION, COMPUTE, Program, Task, Work
from moesim.facts.scenario import Parallel, Policy, Scenario, Workload
from moesim.models.bounds import link_bytes
from moesim.models.topology.nvlink_nodes import NvlinkNodes
from moesim.models.topology.one_switch import OneSwitch


@LAWS
@given(scenarios())
def test_l1_tokens_are_computed_once_or_counted_as_dropped(scenario):
    result = play(scenario)
    layers, ranks = result.tables["layers"], result.tables["ranks"]
    np.testing.assert_array_equal(layers["routes"], layers["kept"] + layers["dropped"])
    np.testing.assert_array_equal(layers["routes"], layers["tokens"] * scenario.model.top_k)
    computed = (ranks["rows"] - ranks["padding"]).reshape(len(layers), -1).sum(axis=1)
    np.testing.assert_array_equal(computed, layers["kept"])
    assert result.tables["experts"]["routes"].sum() == layers["routes"].sum()
    assert result.tables["experts"]["dropped"].sum() == layers["dropped"].sum()


@LAWS
@given(scenarios())
def test_l2_bytes_on_the_links_are_the_bytes_of_the_traffic_matrix(scenario):
    result = play(scenario)
    cluster = scenario.cluster.build()
    traffic, links, steps = result.tables["traffic"], result.tables["links"], len(result.tables["steps"])
    matrix = np.zeros((cluster.gpus, cluster.gpus))
    matrix[traffic["source"], traffic["destination"]] = traffic["dispatch_bytes"] + traffic["combine_bytes"]
    np.testing.assert_allclose(links["bytes"], link_bytes(matrix, cluster), rtol=RELATIVE)
    np.testing.assert_allclose(result.tables["collectives"]["bytes"].sum() / steps, matrix.sum(), rtol=RELATIVE)
    # Law L3: no link ever carries more than its bandwidth allows while it is busy.
    assert (links["busy_utilisation"] <= 1 + RELATIVE).all()


@LAWS
@given(scenarios())
def test_l5_l6_lanes_keep_order_and_never_idle_with_work_at_hand(scenario):
    spans = play(scenario).tables["spans"]
    steps = play(scenario).tables["steps"]
    assert (spans["end_s"] >= spans["start_s"]).all()
    assert (spans["waiting_s"] <= (spans["end_s"] - spans["start_s"]) * (1 + RELATIVE) + 1e-15).all()
    for step, start, length in zip(steps["step"], steps["start_s"], steps["step_time_s"], strict=True):
        for gpu in range(scenario.cluster.build().gpus):
            mine = spans.where((spans["step"] == step) & (spans["gpu"] == gpu))
            order = np.argsort(mine["start_s"], kind="stable")
            begins, ends = mine["start_s"][order], mine["end_s"][order]
            # A sequential schedule is a chain: each task starts the instant the one before it ended.
            np.testing.assert_allclose(begins[1:], ends[:-1], rtol=RELATIVE)
            assert begins[0] == pytest.approx(start, rel=RELATIVE)
            assert ends[-1] <= (start + length) * (1 + RELATIVE)


@LAWS
@given(scenarios())
def test_l7_no_step_is_faster_than_its_floors(scenario):
    result = play(scenario)
    collectives = result.tables["collectives"]
    floor = result.metrics["step_time_if_no_communication"].value
    assert result.metrics["step_time"].value >= floor * (1 - RELATIVE)
    took = collectives["end_s"] - collectives["first_arrival_s"]
    slack = RELATIVE * collectives["end_s"]  # an interval late in a long run is the difference of two large numbers
    assert (collectives["moving_s"] + slack >= collectives["link_bound_s"]).all()
    assert (collectives["link_bound_s"] >= collectives["port_bound_s"] * (1 - RELATIVE)).all()
    assert (took + slack >= collectives["moving_s"]).all()


@LAWS
@given(scenarios())
def test_l8_the_same_scenario_gives_the_same_result(scenario):
    first, second = play(scenario), play(scenario)
    assert first.metrics == second.metrics
    assert first.warnings == second.warnings
    for name, table in first.tables.items():
        for column, values in table.columns.items():
            np.testing.assert_array_equal(values, second.tables[name][column])


@LAWS
@given(scenarios())
def test_l9_all_policies_see_the_same_tokens(scenario):
    other = Policy(capacity=plugin("capacity", "megatron")(factor=0.5), placement=plugin("placement", "round_robin")())
    changed = dataclasses.replace(scenario, policy=other, exchange=plugin("exchange", "direct")(deduplicate=False))
    np.testing.assert_array_equal(play(scenario).tables["experts"]["routes"], play(changed).tables["experts"]["routes"])


@LAWS
@given(scenarios())
def test_l14_replaying_a_runs_own_routing_gives_the_same_run(scenario):
    recorded = play(scenario, keep_routing=True)
    replay = dataclasses.replace(scenario, routing=plugin("source", "recorded")(trace="own", deal="recorded"))
    again = simulate(replay, read_trace=lambda path: recorded.routing, keep_spans=True)
    for name in ("steps", "layers", "ranks", "links", "collectives"):
        for column, values in recorded.tables[name].columns.items():
            np.testing.assert_array_equal(values, again.tables[name][column], err_msg=f"{name}.{column}")


@LAWS
@given(scenarios())
def test_l15_a_capacity_factor_of_experts_over_top_k_drops_nothing(scenario):
    factor = scenario.model.experts / scenario.model.top_k
    roomy = dataclasses.replace(scenario, policy=Policy(capacity=plugin("capacity", "megatron")(factor=factor)))
    assert play(roomy).metrics["drop_rate"].value == 0


@LAWS
@given(scenarios())
def test_l15_one_rank_has_no_all_to_all(scenario):
    alone = dataclasses.replace(scenario, parallel=Parallel(ep=1))
    result = play(alone)
    assert result.tables["links"]["bytes"].sum() == 0
    assert len(result.tables["collectives"]["step"]) == 0
    assert result.metrics["dispatch_transfer_time"].value == 0
    # Every GPU then only computes: the step takes what it takes without communication.
    assert result.metrics["step_time"].value == pytest.approx(result.metrics["step_time_if_no_communication"].value, rel=RELATIVE)


def test_l15_balanced_routing_loads_all_ranks_equally():
    cluster = OneSwitch(gpus=4)
    scenario = Scenario(
        name="even",
        steps=1,
        # One MoE layer: in balanced routing another pairs other experts, which moves some copies; the balanced step repeats one layer.
        model=small_model(8, 2, layers=2),
        cluster=cluster,
        parallel=Parallel(ep=4),
        workload=Workload(tokens_per_gpu=16),
        routing=plugin("source", "balanced")(),
    )
    result = play(scenario)
    assert result.metrics["rank_max_over_mean"].value == 1.0
    assert result.metrics["step_time"].value == pytest.approx(result.metrics["step_time_if_balanced"].value, rel=RELATIVE)


def test_l16_changing_the_topology_changes_the_bytes_between_nodes():
    # Eight GPUs in one node send nothing between nodes; in four nodes of two, 6 of 7 peers are elsewhere; in two nodes, 4 of 7.
    def cross(nodes: int, per_node: int) -> float:
        scenario = Scenario(
            name="where",
            steps=1,
            model=small_model(8, 2),
            cluster=NvlinkNodes(nodes=nodes, gpus_per_node=per_node),
            parallel=Parallel(ep=8),
            workload=Workload(tokens_per_gpu=64),
            routing=plugin("source", "uniform")(),
        )
        return play(scenario).metrics["cross_node_bytes"].value

    assert cross(1, 8) == 0
    assert 0 < cross(2, 4) < cross(4, 2)


@dataclasses.dataclass(frozen=True)
class Deadlock:
    """A schedule whose two lanes wait for each other."""

    kind = "deadlock"

    def program(self, model, workload):
        gate = Work("gate", 1, 0)
        return Program(
            (
                Task(Work("attention", 1, 0), COMPUTE, (2,)),
                Task(Work("dispatch", 1, 0), COMMUNICATION, (0,)),
                Task(gate, COMMUNICATION, ()),
            )
        )


def test_a_stuck_run_names_who_waits_for_what():
    scenario = Scenario(
        name="stuck",
        steps=1,
        model=small_model(4, 2),
        cluster=OneSwitch(gpus=2),
        parallel=Parallel(ep=2),
        workload=Workload(tokens_per_gpu=4),
        routing=plugin("source", "uniform")(),
        schedule=Deadlock(),
    )
    with pytest.raises(Stuck, match=r"GPU 0 \(communication\) waits for attention of layer 1; GPU 0 \(compute\) waits for gate of layer 1"):
        simulate(scenario, read_trace=no_trace)


@LAWS
@given(scenarios(), st.sampled_from([1e-9, 1e9]))
def test_extreme_capacity_factors_still_give_a_step(scenario, factor):
    extreme = dataclasses.replace(scenario, policy=Policy(capacity=plugin("capacity", "megatron")(factor=factor)))
    result = play(extreme)
    assert np.isfinite(result.metrics["step_time"].value)
    assert 0 <= result.metrics["drop_rate"].value <= 1
