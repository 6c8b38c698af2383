"""Gradients on their way beside tokens: what they slow, and how tables, metrics, page and trace show it."""

import dataclasses
import gzip
import json

import numpy as np
import pytest
from worlds import RELATIVE, no_trace, play, small_model

from moesim.base.registry import plugin
from moesim.desk.chrome_trace import chrome_trace
from moesim.desk.columns import COLUMNS
from moesim.desk.report import figures
from moesim.desk.terminal import table as text
from moesim.engine.simulate import simulate
from moesim.facts.program import COLLECTIVES, GROUP_CALLS
from moesim.facts.scenario import Parallel, Scenario, Workload
from moesim.models.collective.gradients import layer_parameters
from moesim.models.topology.one_switch import OneSwitch

SEQUENTIAL = plugin("schedule", "sequential")()
BESIDE = plugin("schedule", "overlapped_gradients")
WORK = ("attention_s", "dense_s", "gate_s", "shared_s", "expert_s", "dispatch_transfer_s", "combine_transfer_s", "waiting_s")


def world(gpus=4, ep=2, bandwidth=1e9, **more) -> Scenario:
    parts = {
        "name": "gradients",
        "steps": 2,
        "warmup": 1,
        "model": small_model(4, 2),
        "cluster": OneSwitch(gpus=gpus, bandwidth=bandwidth),
        "parallel": Parallel(ep=ep),
        "workload": Workload(tokens_per_gpu=200),
        "routing": plugin("source", "power_law")(alpha=1.0),
        "schedule": BESIDE(),
    }
    return Scenario(**{**parts, **more})


@pytest.fixture(scope="module")
def beside():
    return play(world())


@pytest.fixture(scope="module")
def without():
    return play(world(schedule=SEQUENTIAL))


def test_gradients_take_bandwidth_from_dispatch(beside, without) -> None:
    # Ports of 1 GB/s that reduce 40 kB per layer beside exchanges of some 50 kB: both get slower, and nothing is computed longer.
    steps = [result.tables["steps"] for result in (beside, without)]
    assert steps[0]["dispatch_transfer_s"][0] > 1.05 * steps[1]["dispatch_transfer_s"][0]
    assert steps[0]["step_time_s"][0] > steps[1]["step_time_s"][0]
    np.testing.assert_allclose(steps[0]["expert_s"], steps[1]["expert_s"], rtol=RELATIVE)
    # Forward passes have no company.
    forward = []
    for result in (beside, without):
        spans = result.tables["spans"]
        mine = spans.where((spans["direction"] == "forward") & (spans["phase"] == "dispatch"))
        forward.append(np.sort(mine["end_s"] - mine["start_s"]))
    np.testing.assert_allclose(*forward, rtol=RELATIVE)


def test_what_a_gpu_sends_for_gradients_is_what_a_ring_sends(beside) -> None:
    # 2 (n - 1) / n of 4 bytes per weight: n = 4 GPUs for what all hold, n = 2 groups for the 2 experts of a GPU.
    scenario = world()
    spans = beside.tables["spans"]
    for layer in range(3):
        mine = spans.where((spans["phase"] == "gradients") & (spans["layer"] == layer))
        np.testing.assert_allclose(mine["bytes"], 2 * 3 / 4 * 4 * sum(layer_parameters(scenario.model, layer)), rtol=RELATIVE)
        assert len(mine) == 4
    experts = spans.where(spans["phase"] == "expert_gradients")
    np.testing.assert_allclose(experts["bytes"], 2 * 1 / 2 * 4 * 2 * scenario.model.expert_parameters, rtol=RELATIVE)
    assert len(experts) == 2 * 4
    # What the links carried beyond tokens are these bytes; every byte of a switch crosses two links.
    tokens = beside.tables["traffic"]["dispatch_bytes"].sum() + beside.tables["traffic"]["combine_bytes"].sum()
    sent = spans["bytes"][np.isin(spans["phase"], GROUP_CALLS)].sum()
    assert beside.tables["links"]["bytes"].sum() == pytest.approx(2 * (tokens + sent), rel=RELATIVE)


def test_the_parts_of_a_step_add_up_with_gradients(beside, without) -> None:
    for result in (beside, without):
        gpus, steps = result.tables["gpus"], result.tables["steps"]
        parts = sum(gpus[name] for name in (*WORK, "gradient_exposed_s", "idle_s"))
        np.testing.assert_allclose(parts, steps["step_time_s"][0], rtol=RELATIVE)
        assert steps["gradient_s"][0] == pytest.approx(gpus["gradient_s"].mean(), rel=RELATIVE)
    gpus, steps = beside.tables["gpus"], beside.tables["steps"]
    assert (gpus["gradient_exposed_s"] > 0).all()
    assert (gpus["gradient_exposed_s"] < gpus["gradient_s"]).all()
    # Exposed is what has nothing computed beside it: exchanges of tokens, and gradients beyond them.
    expected = sum(steps[name][0] for name in ("dispatch_transfer_s", "combine_transfer_s", "waiting_s", "gradient_exposed_s"))
    assert steps["exposed_communication_s"][0] == pytest.approx(expected, rel=RELATIVE)


def test_metrics_of_gradients_exist_where_there_are_gradients(beside, without) -> None:
    assert beside.metrics["gradient_time"].value == pytest.approx(beside.tables["steps"]["gradient_s"][0])
    assert 0 < beside.metrics["gradient_time_exposed"].value < beside.metrics["gradient_time"].value
    assert without.metrics["gradient_time"].value is None
    assert without.metrics["gradient_time_exposed"].value is None


def test_contention_is_that_of_all_to_alls_alone(beside) -> None:
    calls = beside.tables["collectives"]
    tokens = calls.where(np.isin(calls["phase"], COLLECTIVES))
    assert set(calls["phase"].tolist()) == {*COLLECTIVES, "gradients", "expert_gradients"}
    assert beside.metrics["all_to_all_contention"].value == pytest.approx(tokens["transfer_s"].sum() / tokens["alone_s"].sum())
    assert beside.metrics["fabric_bound_ratio"].value == pytest.approx(tokens["moving_s"].sum() / tokens["link_bound_s"].sum())


def test_rows_of_gradients_name_their_group_and_keep_their_bounds(beside) -> None:
    calls = beside.tables["collectives"]
    experts = calls.where(calls["phase"] == "expert_gradients")
    assert sorted(experts["group"].tolist()) == [0, 0, 1, 1]
    everybody = calls.where(calls["phase"] == "gradients")
    assert everybody["group"].tolist() == [0, 0, 0]
    assert everybody["layer"].tolist() == [2, 1, 0]
    assert everybody["moe_layer"].tolist() == [1, 0, -1]
    mine = calls.where(np.isin(calls["phase"], GROUP_CALLS))
    assert (mine["moving_s"] * (1 + RELATIVE) >= mine["link_bound_s"]).all()
    assert (mine["end_s"] >= mine["last_arrival_s"]).all()


def test_one_gpu_and_inference_have_no_gradients() -> None:
    for scenario in (world(gpus=1, ep=1), world(workload=Workload(phase="prefill", tokens_per_gpu=50))):
        result = play(scenario)
        assert not np.isin(result.tables["spans"]["phase"], GROUP_CALLS).any()
        assert result.tables["steps"]["gradient_s"].tolist() == [0.0]
        alone = play(dataclasses.replace(scenario, schedule=SEQUENTIAL))
        np.testing.assert_allclose(result.tables["steps"]["step_time_s"], alone.tables["steps"]["step_time_s"], rtol=RELATIVE)


def test_one_expert_parallel_group_reduces_no_experts() -> None:
    spans = play(world(ep=4)).tables["spans"]
    assert set(spans["phase"].tolist()) & set(GROUP_CALLS) == {"gradients"}
    # Without expert parallelism every GPU holds all experts, and all of them are reduced among all GPUs.
    calls = play(world(ep=1)).tables["collectives"]
    assert set(calls["phase"].tolist()) == {"gradients", "expert_gradients"}
    assert set(calls["group"].tolist()) == {0}


def test_weights_are_gathered_at_the_end_where_asked() -> None:
    result = play(world(schedule=BESIDE(operation="reduce_scatter", gather_parameters=True)))
    spans = result.tables["spans"]
    last = spans.where(spans["end_s"] == spans["end_s"].max())
    assert set(last["phase"].tolist()) <= {"parameters", "expert_parameters"}
    assert any("not sharded" in line for line in result.assumptions)


def test_assumptions_say_whether_gradients_are_part_of_the_step(beside, without) -> None:
    def told(result):
        return [line for line in result.assumptions if line.startswith(("Gradient", "The optimiser"))]

    assert told(without) == ["Gradient all-reduce, the optimiser step and recomputation are not part of the step time."]
    assert len(told(beside)) == 1
    assert "all_reduce" in told(beside)[0]
    assert not told(play(world(workload=Workload(phase="decode", tokens_per_gpu=5))))


def test_every_column_is_described_and_shown(beside) -> None:
    for name, table in beside.tables.items():
        assert set(table.columns) == set(COLUMNS[name])
    shown = text(beside, "folder", width=160)
    assert "gradients, not hidden" in shown
    assert "gradient time" in shown


def test_the_trace_gives_gradients_a_lane_that_nests(beside) -> None:
    events = json.loads(gzip.decompress(chrome_trace(beside)))["traceEvents"]
    lanes = {event["args"]["name"]: event["tid"] for event in events if event["name"] == "thread_name"}
    assert set(lanes) == {"compute", "communication", "gradients"}
    slices = [event for event in events if event["ph"] == "X" and event["tid"] == lanes["gradients"]]
    assert {event["name"] for event in slices if "waiting" not in event["name"]} == {"gradients(B)", "expert_gradients(B)"}
    assert all(event["args"]["bytes"] > 0 for event in slices if "waiting" not in event["name"])
    rates = {event["name"] for event in events if event["ph"] == "C"}
    assert rates == {"mean send rate (GB/s)", "mean send rate of gradients (GB/s)"}


def test_figures_show_gradients_where_there_are_any(beside, without) -> None:
    drawn = figures.draw(beside)
    plain = figures.draw(without)
    for name in ("timeline", "phases"):
        assert any("gradients" in label for label, *_ in drawn[name].legend)
        assert not any("gradients" in label for label, *_ in plain[name].legend)


def test_a_schedule_with_gradients_but_no_word_on_them_is_refused() -> None:
    from moesim.base.errors import PluginError

    @dataclasses.dataclass(frozen=True)
    class Mute:
        kind = "mute"

        def program(self, model, workload):
            return BESIDE().program(model, workload)

    with pytest.raises(PluginError, match="says nothing of how gradients are exchanged"):
        simulate(world(schedule=Mute()), read_trace=no_trace)


def test_l5_l6_gradients_start_when_they_are_there_and_the_lane_is_free(beside) -> None:
    # System: every GPU. Expectation: an operation starts at the end of the backward pass that made its gradients, or of the operation
    # before it on the lane, whichever is later.
    spans = beside.tables["spans"]
    made = {"gradients": "attention", "expert_gradients": "experts"}
    for gpu in range(4):
        mine = spans.where((spans["gpu"] == gpu) & (spans["direction"] == "backward"))
        ready = {
            (phase, layer): end for phase, layer, end in zip(*(mine[name].tolist() for name in ("phase", "layer", "end_s")), strict=True)
        }
        lane = mine.where(mine["lane"] == "gradients")
        free = 0.0
        assert len(lane) == 5
        order = np.argsort(lane["start_s"])
        columns = (lane[name][order].tolist() for name in ("phase", "layer", "start_s", "end_s"))
        for phase, layer, start, end in zip(*columns, strict=True):
            assert start == pytest.approx(max(ready[made[phase], layer], free), rel=RELATIVE)
            free = end
