"""Whole steps on the clock: pipelines and their bubbles, tensor parallelism, recomputation, the update of weights."""

import dataclasses
from functools import cache

import numpy as np
import pytest
from worlds import no_trace, play, small_model

from moesim.base.registry import plugin
from moesim.engine.check import check
from moesim.engine.rows import rows_of_steps
from moesim.facts.program import RECEIVE
from moesim.facts.scenario import Parallel, Policy, Rebalance, Scenario, Workload
from moesim.facts.training import Training
from moesim.measure.critical_path import critical_path
from moesim.study.memory import memory_need


def scenario(schedule="pipeline", *, pp=1, tp=1, ep=2, gpus=8, layers=4, tokens=256, phase="training", training=None, **more):
    tensor, source = more.pop("tensor", "sequence"), more.pop("source", "balanced")
    cluster, policy, steps = more.pop("cluster", None), more.pop("policy", Policy()), more.pop("steps", 1)
    model = dataclasses.replace(
        small_model(16, 2, layers=layers), moe_layers=tuple(range(layers)), hidden=512, dispatch_width=512, expert_width=512, dense_width=0
    )
    return Scenario(
        name="whole",
        seed=1,
        steps=steps,
        model=model,
        cluster=cluster or plugin("topology", "one_switch")(gpus=gpus),
        parallel=Parallel(ep=ep, tp=tp, pp=pp, tensor=tensor),
        workload=Workload(tokens_per_gpu=tokens, phase=phase),
        routing=plugin("source", source)(),
        schedule=plugin("schedule", schedule)(**more),
        policy=policy,
        training=training,
    )


@cache
def ran(schedule="pipeline", **keys):
    return play(scenario(schedule, **keys))


@pytest.mark.parametrize(
    ("pp", "microbatches", "chunks", "phase"),
    [(2, 4, 1, "training"), (4, 4, 1, "training"), (2, 4, 2, "training"), (4, 8, 1, "prefill")],
)
def test_the_bubble_of_a_balanced_pipeline_is_that_of_the_formula(pp, microbatches, chunks, phase):
    # (p - 1) / (m v + p - 1) of Narayanan et al., and a little for the way from stage to stage, which the formula does not know.
    result = ran(pp=pp, microbatches=microbatches, chunks=chunks, phase=phase)
    ideal = (pp - 1) / (microbatches * chunks + pp - 1)
    bubble = result.metrics["pipeline_bubble"].value
    assert ideal <= bubble * (1 + 1e-9)
    assert bubble == pytest.approx(ideal, rel=0.06)


def test_more_micro_batches_and_chunks_have_smaller_bubbles():
    few, many, cut = (
        ran(pp=2, **keys).metrics["pipeline_bubble"].value
        for keys in ({"microbatches": 4}, {"microbatches": 8}, {"microbatches": 4, "chunks": 2})
    )
    assert max(many, cut) < few


@pytest.mark.parametrize("keys", [{"pp": 2, "microbatches": 4}, {"pp": 4, "microbatches": 8, "source": "power_law"}])
def test_l1_tokens_a_pipeline_routes_every_token_once_in_every_layer(keys):
    result = ran(**keys)
    stage, pp = 8 // keys["pp"], keys["pp"]
    layers = result.tables["layers"]
    assert (layers["tokens"] == stage * 256).all()
    assert (layers["routes"] == stage * 256 * 2).all()
    ranks = result.tables["ranks"]
    for layer in range(4):
        mine = ranks["moe_layer"] == layer
        assert ranks["gpu"][mine].tolist() == [layer // (4 // pp) * stage + rank for rank in range(stage)]
        assert ranks["rows"][mine].sum() == stage * 256 * 2
    assert result.metrics["tokens_per_second"].value * result.metrics["step_time"].value == pytest.approx(stage * 256)


def test_a_pipeline_is_as_unbalanced_as_one_of_its_stages():
    # The stages of a pipeline of 8 GPUs route what a cluster of 4 routes: metrics of balance must not count GPUs of other stages.
    pipe = ran(pp=2, microbatches=4, source="power_law")
    alone = ran(pp=1, gpus=4, microbatches=4, source="power_law")
    for name in ("rank_max_over_mean", "expert_max_over_mean", "balancedness", "maxvio", "dispatch_bytes"):
        if name in pipe.metrics:
            assert pipe.metrics[name].value == pytest.approx(alone.metrics[name].value), name
    assert pipe.metrics["rank_max_over_mean"].value > 1.05


@pytest.mark.parametrize(
    "keys",
    [{"pp": 2, "microbatches": 4}, {"pp": 2, "microbatches": 4, "chunks": 2}, {"pp": 2, "tp": 2, "microbatches": 4, "source": "power_law"}],
)
def test_l7_floors_a_whole_step_is_never_below_the_one_without_communication(keys):
    metrics = ran(**keys, training=Training(recompute="full")).metrics
    assert metrics["step_time"].value >= metrics["step_time_if_no_communication"].value > 0


def test_hand_overs_by_hand():
    # 3 layers onward would be 2 boundaries; here 2 stages: each of 4 GPUs sends 256 tokens of 512 elements of 2 B forth and back.
    result = ran(pp=2, microbatches=4, phase="training")
    sent = result.tables["spans"].where(result.tables["spans"]["phase"] == "send")
    assert sent["bytes"].sum() == 4 * 2 * 256 * 512 * 2
    assert sorted(set(zip(sent["gpu"].tolist(), sent["direction"].tolist(), strict=True))) == [
        *((gpu, "forward") for gpu in range(4)), *((gpu, "backward") for gpu in range(4, 8)),
    ]  # fmt: skip
    waits = result.tables["spans"].where(result.tables["spans"]["phase"] == RECEIVE)
    assert (np.abs(waits["waited_for"] - waits["gpu"]) == 4).all()
    assert (result.tables["gpus"]["bubble_s"] > 0).all()


def test_the_critical_path_goes_through_all_stages():
    result = ran(pp=4, microbatches=4)
    path = critical_path(result.tables["spans"], result.tables["collectives"], start=0.0, ranks=2)
    assert sum(link.seconds for link in path) == pytest.approx(result.metrics["step_time"].value)
    assert {link.gpu // 2 for link in path} == {0, 1, 2, 3}
    assert not [link for link in path if link.kind == "idle"]


def test_l8_a_whole_step_is_the_same_again():
    one, other = (play(scenario(pp=2, tp=2, microbatches=4, source="power_law", training=Training(recompute="full"))) for _ in range(2))
    for name, table in one.tables.items():
        for column in table.columns:
            np.testing.assert_array_equal(table[column], other.tables[name][column], err_msg=f"{name}.{column}")


def test_tensor_parallelism_moves_what_the_groups_gather_and_scatter():
    # Attention and the shared expert of 4 layers: each is gathered and scattered. A GPU of a pair sends its 256 tokens, or its half of the
    # sum for the other's 256, 512 elements of 2 B each: 4 operations a layer, forward only.
    plain, cut = (ran("sequential", tp=tp, ep=1, phase="prefill") for tp in (1, 2))
    assert plain.tables["links"]["bytes"].sum() == 0
    sent = cut.tables["spans"]["bytes"].sum()
    assert sent == 8 * 4 * 4 * 256 * 512 * 2
    assert cut.metrics["tensor_parallel_time"].value > 0
    assert cut.tables["links"]["bytes"].sum() == pytest.approx(2 * sent)  # a port out and a port in
    # Half of the heads for twice the tokens is the same arithmetic; half of the weights are read, and twice the residual stream.
    assert cut.metrics["attention_time"].value == pytest.approx(plain.metrics["attention_time"].value, rel=0.05)


def test_experts_and_exchange_do_not_notice_tensor_parallelism():
    one, two = (ran("sequential", tp=tp, source="power_law") for tp in (1, 2))
    for table, column in (("ranks", "rows"), ("layers", "dispatch_bytes"), ("layers", "routes")):
        assert np.array_equal(one.tables[table][column], two.tables[table][column])
    assert one.metrics["expert_time"].value == pytest.approx(two.metrics["expert_time"].value)


def test_replicated_tokens_are_added_up_and_gathered_again():
    # Per layer an all-reduce of the pair's 512 tokens (a GPU sends half of them twice) and a gather of 256: 3 x 256 tokens.
    result = ran("sequential", tp=2, ep=1, phase="prefill", tensor="replicated")
    assert result.tables["spans"]["bytes"].sum() == 8 * 4 * 3 * 256 * 512 * 2


def test_recomputation_costs_a_forward_pass_and_its_exchanges():
    keys = {"optimiser": "none"}
    kept = ran("sequential")
    full = ran("sequential", training=Training(recompute="full", **keys))
    forward = ran("sequential", phase="prefill")
    more = full.metrics["step_time"].value - kept.metrics["step_time"].value
    assert more == pytest.approx(forward.metrics["step_time"].value, rel=1e-6)
    assert full.metrics["recompute_time"].value == pytest.approx(more, rel=1e-3)  # the mean GPU, and the slowest
    # The forward exchanges once more.
    bytes_of = [one.tables["layers"]["dispatch_bytes"].sum() for one in (kept, full, forward)]
    assert bytes_of[1] == pytest.approx(bytes_of[0] + bytes_of[2])
    assert full.metrics["peak_memory"].value < kept.metrics["peak_memory"].value
    experts = ran("sequential", training=Training(recompute="selective", recompute_modules=("experts",), **keys))
    assert experts.tables["layers"]["dispatch_bytes"].sum() == bytes_of[0]
    assert experts.metrics["recompute_time"].value == pytest.approx(forward.metrics["expert_time"].value, rel=1e-6)


def test_the_update_ends_the_step_and_sharding_makes_it_shorter():
    keys = {"operation": "reduce_scatter", "gather_parameters": True}
    none, whole, shared = (
        ran("overlapped_gradients", **keys, training=training) for training in (None, Training(), Training(sharding="data_parallel"))
    )
    assert np.isnan(none.tables["steps"]["optimiser_s"]).sum() == 0
    assert none.metrics["optimiser_time"].value is None
    took, quick = whole.metrics["optimiser_time"].value, shared.metrics["optimiser_time"].value
    assert 0 < quick < took
    assert shared.metrics["peak_memory"].value < whole.metrics["peak_memory"].value
    spans = whole.tables["spans"]
    update = spans["phase"] == "optimiser"
    assert spans["start_s"][update].min() >= spans["end_s"][spans["phase"] == "gradients"].max() * (1 - 1e-12)
    assert spans["start_s"][spans["phase"] == "parameters"].min() > spans["start_s"][update].min()


def test_experts_move_within_their_stage():
    policy = Policy(placement=plugin("placement", "greedy")(window=1, interval=1, redundant=4), rebalance=Rebalance(mode="sync"))
    result = play(scenario(pp=2, microbatches=4, steps=3, source="power_law", policy=policy))
    assert len(result.tables["rebalances"]["bytes"])
    moved = result.tables["rebalances"]
    alone = play(scenario(pp=1, gpus=4, microbatches=4, steps=3, source="power_law", policy=policy)).tables["rebalances"]
    # A layer's weights move between the GPUs of its own stage: as much as on one stage alone.
    assert np.array_equal(moved["copies"], alone["copies"])
    assert np.array_equal(moved["bytes"], alone["bytes"])


def test_memory_over_steps_agrees_with_the_run():
    case = scenario(pp=2, microbatches=4, training=Training(recompute="full"))
    need = memory_need(case, rows_of_steps(case, read_trace=no_trace))
    peak = play(case).tables["gpus"]["peak_memory_bytes"]
    assert [gpu.total.max for gpu in need.gpus] == pytest.approx(peak.tolist())


@pytest.mark.parametrize(
    ("keys", "path", "words"),
    [
        ({"pp": 3}, "parallel.pp", "pp = 3 does not divide the cluster's 8 GPUs into equal stages; choose one of 1, 2, 4, 8"),
        ({"pp": 4, "ep": 4}, "parallel.ep", "ep = 4 does not divide the 2 GPUs of a stage into equal groups; choose one of 1, 2"),
        ({"tp": 3}, "parallel.tp", "tp = 3 does not divide the cluster's 8 GPUs"),
        ({"tp": 8}, "parallel.tp", "tp = 8 does not divide the model's attention.heads = 4"),
        ({"pp": 2, "layers": 3}, "parallel.pp", "2 stages do not divide the 3 layers"),
        ({"pp": 4, "microbatches": 2}, "schedule", "2 micro-batches are too few for 4 stages"),
        ({"pp": 2, "chunks": 3}, "schedule", "2 stages of 3 chunks do not divide the 4 layers"),
        ({"schedule": "two_batch", "pp": 2}, "parallel.pp", "schedule two_batch plays one stage"),
        ({"phase": "decode", "training": Training()}, "training", "workload.phase is decode"),
        ({"training": Training(sharding="data_parallel")}, "training", "gather_parameters"),
        ({"schedule": "sequential", "tp": 2, "tensor": "replicated"}, "parallel.tp", "no backward pass"),
    ],
)
def test_bad_degrees_are_refused_where_they_are(keys, path, words):
    problems = check(scenario(**{"schedule": "pipeline"} | keys), no_trace)
    assert [problem.path for problem in problems] == [path]
    assert words in problems[0].message


def test_stages_that_differ_in_their_nodes_are_refused():
    problems = check(scenario(pp=2, cluster=plugin("topology", "nvlink_nodes")(nodes=3, gpus_per_node=4), ep=3), no_trace)
    assert [problem.path for problem in problems] == ["parallel.pp"]
    assert "whole nodes or equal parts of one" in problems[0].message


def test_weights_that_fit_no_stage_are_refused():
    case = scenario(pp=2, microbatches=4)
    large = dataclasses.replace(case, model=dataclasses.replace(case.model, expert_width=2**21))
    problems = check(large, no_trace)
    assert [problem.path for problem in problems] == ["parallel"]
    assert "on a GPU of stage 0" in problems[0].message
