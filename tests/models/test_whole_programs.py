"""Programs of whole steps: pipeline stages, recomputation, the update of weights, tensor parallelism, and what they need in memory."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from worlds import small_model

from moesim.base.errors import FieldError, PluginError
from moesim.base.registry import plugin
from moesim.facts.program import BACKWARD, COMMUNICATION, FORWARD, RECEIVE, RECOMPUTE, SEND, Program, may_overlap
from moesim.facts.scenario import Parallel, Setting, Workload
from moesim.facts.training import Training
from moesim.models.collective.gradients import GradientPlans
from moesim.models.memory import activation_bytes, weight_bytes
from moesim.models.optimiser import update_work
from moesim.models.parallel_memory import held_by, layers_of_stage, passes_kept, stage_weight_bytes
from moesim.models.schedule.tensor import cut_model
from moesim.models.schedule.whole import step_program
from moesim.models.stages import part_of_cluster, stage_of_layers, stage_setting

STEP = Workload(tokens_per_gpu=64, phase="training")


def program(schedule="sequential", *, layers=4, pp=1, tp=1, training=None, phase="training", tensor="sequence", **keys):
    return step_program(
        plugin("schedule", schedule)(**keys),
        small_model(16, 2, layers),
        Workload(tokens_per_gpu=64, phase=phase),
        parallel=Parallel(ep=1, tp=tp, pp=pp, tensor=tensor),
        training=training,
    )


def told(tasks, *, stage=0, phases=("attention",)):
    return [f"{t.work.direction[0]}{t.work.microbatch}" for t in tasks if t.stage == stage and t.work.phase in phases]


def test_1f1b_by_hand():
    # Two stages of one layer each, three micro-batches: the last stage alternates from the start, the first is one forward ahead.
    laid = program("pipeline", layers=2, pp=2, microbatches=3)
    assert told(laid.tasks, stage=0) == ["f0", "f1", "b0", "f2", "b1", "b2"]
    assert told(laid.tasks, stage=1) == ["f0", "b0", "f1", "b1", "f2", "b2"]
    assert passes_kept(laid, 0, 2).tolist() == [2, 0]
    assert passes_kept(laid, 1, 2).tolist() == [0, 1]
    # Each hand-over is received after it was sent, and by the other stage.
    sends = {(t.work.direction, t.work.microbatch): n for n, t in enumerate(laid.tasks) if t.work.phase == SEND}
    receives = {(t.work.direction, t.work.microbatch): n for n, t in enumerate(laid.tasks) if t.work.phase == RECEIVE}
    assert sends.keys() == receives.keys() == {(d, m) for d in (FORWARD, BACKWARD) for m in range(3)}
    assert all(sends[key] < receives[key] and laid.tasks[sends[key]].stage != laid.tasks[receives[key]].stage for key in sends)


def test_interleaved_1f1b_by_hand():
    # Megatron's order for p = 2, v = 2, m = 2: chunks in groups of two micro-batches. Stage 0 warms up with 2 (2 - 1) + 2 = 4 passes of 4.
    laid = program("pipeline", layers=4, pp=2, microbatches=2, chunks=2)
    order = [(t.work.direction[0], t.work.layer, t.work.microbatch) for t in laid.tasks if t.stage == 0 and t.work.phase == "attention"]
    assert order[:4] == [("f", 0, 0), ("f", 0, 1), ("f", 2, 0), ("f", 2, 1)]
    assert order[4:] == [("b", 2, 0), ("b", 2, 1), ("b", 0, 0), ("b", 0, 1)]
    order = [(t.work.direction[0], t.work.layer, t.work.microbatch) for t in laid.tasks if t.stage == 1 and t.work.phase == "attention"]
    assert order == [("f", 1, 0), ("f", 1, 1), ("f", 3, 0), ("b", 3, 0), ("f", 3, 1), ("b", 3, 1), ("b", 1, 0), ("b", 1, 1)]
    assert stage_of_layers(laid, 4).tolist() == [0, 1, 0, 1]
    assert layers_of_stage(laid, 1) == [1, 3]


@settings(max_examples=30, deadline=None)
@given(data=st.data(), phase=st.sampled_from(["training", "prefill"]))
def test_l6_every_pass_of_a_pipeline_is_there_once_and_after_what_it_needs(data, phase):
    stages = data.draw(st.integers(1, 4))
    chunks = data.draw(st.integers(1, 3)) if stages > 1 else 1
    layers = stages * chunks * data.draw(st.integers(1, 2))
    groups = data.draw(st.integers(1, 3))
    microbatches = stages * groups if chunks > 1 else data.draw(st.integers(stages, stages + 5))
    if layers == 1:
        layers = 2
    laid = program("pipeline", layers=layers, pp=stages, microbatches=microbatches, chunks=chunks, phase=phase)
    works = [task.work for task in laid.tasks]
    assert len(set(works)) == len(works)
    directions = (FORWARD, BACKWARD) if phase == "training" else (FORWARD,)
    passes = {(w.direction, w.layer, w.microbatch) for w in works if w.phase == "attention"}
    assert passes == {(d, layer, m) for d in directions for layer in range(layers) for m in range(microbatches)}
    place = {work: number for number, work in enumerate(works)}
    for number, task in enumerate(laid.tasks):
        assert all(before < number and laid.tasks[before].stage == task.stage for before in task.after)
        if task.work.phase == RECEIVE:
            assert place[dataclasses.replace(task.work, phase=SEND)] < number
    if phase == "training":
        for stage in range(stages):
            kept = passes_kept(laid, stage, layers)
            if chunks == 1:  # as many micro-batches as stages from this one on, and never more than there are
                assert kept[layers_of_stage(laid, stage)].tolist() == [min(stages - stage, microbatches)] * (layers // stages)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"layers": 6, "pp": 4, "microbatches": 8}, "4 stages do not divide the 6 layers"),
        ({"layers": 4, "pp": 2, "chunks": 4}, "2 stages of 4 chunks do not divide the 4 layers"),
        ({"layers": 4, "pp": 4, "microbatches": 3}, "3 micro-batches are too few for 4 stages"),
        ({"layers": 4, "pp": 2, "microbatches": 3, "chunks": 2}, "2 stages divide, and 3 is not"),
        ({"layers": 4, "microbatches": 4, "chunks": 2}, "parallel.pp is 1"),
        ({"layers": 4, "microbatches": 65}, "cuts 64 tokens of a GPU into 65"),
        ({"schedule": "sequential", "pp": 2}, "schedule sequential plays one stage"),
        ({"schedule": "sequential", "tp": 3}, "tp = 3 does not divide the model's attention.heads = 4"),
        ({"schedule": "sequential", "tp": 2, "tensor": "replicated"}, "no backward pass"),
        ({"schedule": "sequential", "phase": "prefill", "training": Training()}, "workload.phase is prefill"),
        ({"schedule": "sequential", "training": Training(sharding="data_parallel")}, "sequential does not"),
        ({"schedule": "overlapped_gradients", "training": Training(sharding="data_parallel")}, "gather_parameters: true"),
    ],
)
def test_what_does_not_go_together_is_refused_with_the_rule(keys, message):
    keys.setdefault("schedule", "pipeline")
    with pytest.raises(PluginError, match=message):
        program(**keys)


@pytest.mark.parametrize(
    ("keys", "field"),
    [
        ({"recompute": "selective"}, "recompute_modules"),
        ({"recompute_modules": ("experts",)}, "recompute_modules"),
        ({"recompute": "selective", "recompute_modules": ("moe", "experts")}, "recompute_modules"),
        ({"recompute": "selective", "recompute_modules": ("dense", "dense")}, "recompute_modules"),
        ({"optimiser": "none", "sharding": "data_parallel"}, "sharding"),
    ],
)
def test_a_training_section_that_contradicts_itself_is_refused(keys, field):
    with pytest.raises(FieldError) as caught:
        Training(**keys)
    assert caught.value.field == field


def phases_again(**keys):
    laid = program(training=Training(optimiser="none", **keys), layers=2)
    return [(t.work.phase, t.work.layer) for t in laid.tasks if t.work.direction == RECOMPUTE], laid


def test_what_is_computed_again():
    # Layer 0 is dense, layer 1 has experts and a shared one; backward begins with layer 1.
    moe = ("gate", "shared", "dispatch", "experts", "combine")
    full, laid = phases_again(recompute="full")
    assert full == [("attention", 1), *((phase, 1) for phase in moe), ("attention", 0), ("dense", 0)]
    assert not may_overlap(laid)
    assert phases_again(recompute="selective", recompute_modules=("moe",))[0] == [(phase, 1) for phase in moe]
    some = ("experts", "attention_core", "dense")
    assert phases_again(recompute="selective", recompute_modules=some)[0] == [
        ("experts", 1), ("attention_core", 1), ("dense", 0), ("attention_core", 0),
    ]  # fmt: skip
    # Right before the backward pass that needs it.
    place = {t.work: n for n, t in enumerate(laid.tasks)}
    last = next(t.work for t in laid.tasks if t.work.phase == "combine" and t.work.direction == RECOMPUTE)
    assert place[dataclasses.replace(last, direction=BACKWARD)] == place[last] + 1


@pytest.mark.parametrize("schedule", ["sequential", "two_batch", "one_f_one_b", "overlapped_gradients", "pipeline"])
def test_updates_come_after_all_gradients_and_before_what_is_gathered(schedule):
    keys = {"operation": "reduce_scatter", "gather_parameters": True} if schedule in ("overlapped_gradients", "pipeline") else {}
    laid = program(schedule, training=Training(recompute="full"), pp=2 if schedule == "pipeline" else 1, **keys)
    for stage in range(laid.stages):
        mine = [n for n, t in enumerate(laid.tasks) if t.stage == stage]
        updates = [n for n in mine if laid.tasks[n].work.phase == "optimiser"]
        assert [laid.tasks[n].work.layer for n in updates] == layers_of_stage(laid, stage)
        backward = [n for n in mine if laid.tasks[n].work.direction == BACKWARD and n not in updates]
        gathered = [n for n in backward if "parameters" in laid.tasks[n].work.phase]
        assert max(n for n in backward if n not in gathered) < min(updates)
        assert all(min(updates) < n for n in gathered)
        last = [n for n in mine if "gradients" in laid.tasks[n].work.phase][-1:]
        assert set(last) <= set(laid.tasks[updates[0]].after)
    assert all(before < n for n, t in enumerate(laid.tasks) for before in t.after)


def test_tensor_parallel_groups_stand_around_the_blocks_that_they_cut():
    laid = program(tp=2, layers=2, phase="prefill")
    assert [t.work.phase for t in laid.tasks] == [
        "attention_gather", "attention", "attention_scatter", "dense_gather", "dense", "dense_scatter",
        "attention_gather", "attention", "attention_scatter", "gate", "shared_gather", "shared", "shared_scatter",
        "dispatch", "experts", "combine",
    ]  # fmt: skip
    assert all(t.lane == COMMUNICATION for t in laid.tasks if t.work.phase.endswith(("gather", "scatter")))
    assert not may_overlap(laid)
    plain = program(tp=2, layers=2, phase="prefill", tensor="replicated")
    assert [t.work.phase for t in plain.tasks if t.work.phase.endswith(("reduce", "gather"))] == [
        "attention_reduce", "dense_reduce", "attention_reduce", "tokens_gather",
    ]  # fmt: skip


def test_a_cut_model_has_its_share_of_blocks_and_all_experts():
    model = small_model(16, 2)
    half = cut_model(model, 2)
    assert (half.attention.heads, half.dense_width, half.shared_width) == (2, 64, 16)
    assert half.attention.projection_parameters == model.attention.projection_parameters // 2
    assert (half.experts, half.expert_width, half.hidden) == (model.experts, model.expert_width, model.hidden)
    assert cut_model(model, 1) is model


def setting(*, gpus=8, layers=4, topology="one_switch", training=None, phase="training", **parallel):
    keys = {"gpus": gpus} if topology == "one_switch" else {"nodes": gpus // 4, "gpus_per_node": 4}
    return Setting(
        cluster=plugin("topology", topology)(**keys).build(),
        model=small_model(16, 2, layers),
        parallel=Parallel(**({"ep": 2} | parallel)),
        workload=Workload(tokens_per_gpu=64, phase=phase),
        seed=0,
        read_trace=None,
        training=training,
    )


def test_a_part_of_a_cluster_keeps_its_routes():
    whole = plugin("topology", "nvlink_nodes")(nodes=4, gpus_per_node=4).build()
    part = part_of_cluster(whole, 4, 8)
    assert part.node_of.tolist() == [0] * 4 + [1] * 4
    for source in range(8):
        for destination in range(8):
            assert part.route(source, destination).tolist() == whole.route(source + 4, destination + 4).tolist()


def test_stages_must_look_alike():
    assert stage_setting(setting(gpus=16, topology="nvlink_nodes", pp=8)).gpus == 2
    one = setting(pp=1)
    assert stage_setting(one) is one
    with pytest.raises(PluginError, match="whole nodes or equal parts of one"):
        # Nodes of 4 and stages of 6: the second begins in the middle of a node.
        stage_setting(setting(gpus=12, topology="nvlink_nodes", pp=2))


def test_the_update_by_hand():
    # Layer 1: attention 4 * 64 * 64, router 64 * 16, a shared expert 3 * 64 * 32; 8 slots of 3 * 64 * 32.
    plain = setting(training=Training())
    dense, experts = 16384 + 1024 + 6144, 8 * 6144
    work = update_work(plain, 1, np.full(8, 8))
    assert work.moved.tolist() == [(dense + experts) * (28 + 2)] * 8
    assert work.flops.tolist() == [(dense + experts) * 12] * 8
    # Sharded: the dense part over 8 GPUs, experts over the 4 groups.
    shared = update_work(setting(training=Training(sharding="data_parallel")), 1, np.full(8, 8))
    assert shared.moved.tolist() == [(dense / 8 + experts / 4) * 30] * 8
    # With two stages of 4 GPUs each: over 4 GPUs and 2 groups.
    staged = update_work(setting(pp=2, training=Training(sharding="data_parallel")), 1, np.full(8, 8))
    assert staged.moved.tolist() == [(dense / 4 + experts / 2) * 30] * 8


def test_gradients_go_round_within_a_stage_and_among_equal_places():
    world = setting(gpus=16, pp=2, tp=2)
    plans = GradientPlans(
        calls=plugin("schedule", "overlapped_gradients")(), model=world.model, cluster=world.cluster, ep=2,
        slots=np.array([8, 8]), stages=2, tensor=2,
    )  # fmt: skip
    work = {t.work.phase: t.work for t in program("overlapped_gradients", layers=4).tasks if t.work.layer == 1}
    groups = {name: [plans.group_of(work[name], gpu) for gpu in range(16)] for name in ("gradients", "expert_gradients")}
    assert groups["gradients"] == [0, 1] * 4 + [2, 3] * 4
    ranks = plans.prepared(work["gradients"], 3).plan.ranks.tolist()
    assert ranks == [9, 11, 13, 15]
    # Half of attention and of the shared expert, all of the router: in fp32.
    assert plans.prepared(work["gradients"], 3).plan.bytes == 4 * ((16384 + 6144) / 2 + 1024)


def test_memory_of_one_stage_with_everything_kept_is_the_plain_one():
    world = setting(training=Training())
    laid = program(training=Training())
    rows = np.array([[10.0, 20.0, 30.0]])
    weights, activations = held_by(world, laid, 3, 8, rows, np.array([64]))
    assert weights == weight_bytes(world.model, 8, "training")
    assert activations[0] == pytest.approx(activation_bytes(world.model, world.workload, rows.mean(), tokens=64))


def test_recomputation_and_sharding_need_less_by_hand():
    rows, tokens = np.zeros((1, 3)), np.array([64])
    full = Training(recompute="full")
    _, least = held_by(setting(training=full), program(training=full), 0, 8, rows, tokens)
    # Four layers keep their input (64 elements of 2 B); one is whole beside it: the dense one, with 4 * 64 + 4 * 64 + 3 * 128 elements.
    assert least[0] == 64 * 2 * (4 * 64 + (512 + 384 - 64))
    core = Training(recompute="selective", recompute_modules=("attention_core",))
    _, some = held_by(setting(training=core), program(training=core), 0, 8, rows, tokens)
    _, every = held_by(setting(training=Training()), program(training=Training()), 0, 8, rows, tokens)
    assert every[0] - some[0] == 64 * 2 * (4 * 64 - 64)  # four results of attention, less the one that is there again
    sharded = Training(sharding="data_parallel")
    parameters = weight_bytes(small_model(16, 2, 4), 0, "prefill") / 2
    experts = 3 * 8 * 6144
    saved = 12 * (parameters * 7 / 8 + experts * 3 / 4)
    plain = stage_weight_bytes(setting(training=Training()), range(4), 8)
    assert plain - stage_weight_bytes(setting(training=sharded), range(4), 8) == pytest.approx(saved)


def test_stages_divide_the_weights_and_the_first_keeps_most_activations():
    laid = program("pipeline", pp=2, microbatches=4)
    world = setting(pp=2)
    whole = stage_weight_bytes(setting(), range(4), 8)
    assert sum(stage_weight_bytes(world, layers_of_stage(laid, stage), 8) for stage in range(2)) == pytest.approx(whole)
    assert stage_weight_bytes(world, [0, 1], 8, least=True) < stage_weight_bytes(world, [0, 1], 8)
    rows = np.full((1, 3), 128.0)
    first = held_by(world, laid, 0, 8, rows, np.array([64]))[1]
    last = held_by(world, laid, 4, 8, rows, np.array([64]))[1]
    # Two micro-batches of stage 0 are kept, one of stage 1; a quarter of the tokens each.
    dense, moe = 2 * (512 + 384) * 64, 2 * ((512 + 96) * 64 + (128 + 96) * 128)
    assert first[0] == 2 * (dense + moe) / 4
    assert last[0] == 2 * moe / 4


def test_a_program_without_anything_new_is_the_schedule_s_own():
    own = plugin("schedule", "one_f_one_b")().program(small_model(16, 2, 4), STEP)
    assert program("one_f_one_b") == own
    assert Program(tasks=own.tasks).stages == 1
