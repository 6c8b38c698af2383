"""Gradients: how many bytes of which layer, among which GPUs, and when in the step."""

from dataclasses import replace

import numpy as np
import pytest

from moesim.base.errors import ContractBroken, FieldError, UsageError
from moesim.facts.collective import GradientCalls
from moesim.facts.model import Attention, MoeModel
from moesim.facts.program import BACKWARD, COMPUTE, GRADIENTS, GROUP_CALLS, Program, Work, may_overlap
from moesim.facts.scenario import Workload
from moesim.models.collective.gradients import GradientPlans, call_bytes, layer_parameters
from moesim.models.memory import dense_parameters
from moesim.models.schedule.overlapped_gradients import OverlappedGradients
from moesim.models.schedule.sequential import Sequential
from moesim.models.topology.nvlink_nodes import NvlinkNodes
from moesim.testing import check_schedule

MODEL = MoeModel(
    name="small",
    layers=3,
    moe_layers=(1, 2),
    hidden=10,
    experts=8,
    top_k=2,
    expert_width=5,
    shared_experts=1,
    shared_width=4,
    dense_width=20,
    dispatch_width=10,
    vocabulary=100,
    weight_dtype="fp8",
    attention=Attention(heads=2, score_width=5.0, projection_parameters=400, cache_bytes_per_token=20),
)
TRAINING = Workload(phase="training", tokens_per_gpu=4, context=8)


def work(phase, layer):
    return Work(phase=phase, layer=layer, moe_layer=layer - 1, direction=BACKWARD)


def test_layer_parameters_by_hand():
    # Layer 0: attention 400, dense 3 * 10 * 20, embedding 100 * 10. Layer 1: attention 400, shared 3 * 10 * 4, router 10 * 8. Layer 2: the
    # same and the head.
    assert [layer_parameters(MODEL, layer) for layer in range(3)] == [(1000.0, 1000.0), (520.0, 80.0), (520.0, 1080.0)]
    tied = replace(MODEL, tied_embeddings=True)
    assert [layer_parameters(tied, layer)[1] for layer in range(3)] == [1000.0, 80.0, 80.0]


@pytest.mark.parametrize("change", [{}, {"tied_embeddings": True}, {"dispatch_width": 5}, {"gated": False}, {"moe_layers": (0, 1, 2)}])
def test_layers_add_up_to_what_every_gpu_holds(change):
    model = replace(MODEL, **change)
    assert np.sum([layer_parameters(model, layer) for layer in range(model.layers)], axis=0).tolist() == list(dense_parameters(model))


def test_bytes_by_hand():
    # Gradients in 4 or 2 B whatever the weights are; weights in their own dtype: fp8 1 B, kept in bf16 2 B. An expert: 3 * 10 * 5.
    calls = GradientCalls()
    assert call_bytes(work("gradients", 2), MODEL, calls, 0) == 4 * 1600
    assert call_bytes(work("gradients", 2), MODEL, GradientCalls(gradient_dtype="bf16"), 0) == 2 * 1600
    assert call_bytes(work("parameters", 2), MODEL, calls, 0) == 520 + 2 * 1080
    assert call_bytes(work("expert_gradients", 2), MODEL, calls, 3) == 4 * 3 * 150
    assert call_bytes(work("expert_parameters", 2), MODEL, calls, 3) == 2 * 3 * 150
    with pytest.raises(UsageError, match="phase 'gradient' is no operation on gradients or weights; did you mean 'gradients'"):
        call_bytes(work("gradient", 2), MODEL, calls, 0)


def plans(ep, nodes=2, **calls):
    cluster = NvlinkNodes(nodes=nodes, gpus_per_node=4).build()
    return GradientPlans(calls=GradientCalls(**calls), model=MODEL, cluster=cluster, ep=ep, slots=np.full(ep, 8 // ep))


def test_all_gpus_reduce_the_dense_part_and_gpus_of_equal_rank_the_experts():
    made = plans(4)
    dense = made.prepared(work("gradients", 1), 0).plan
    assert dense.ranks.tolist() == list(range(8))
    assert dense.bytes == 4 * 600
    assert [made.group_of(work("gradients", 1), gpu) for gpu in range(8)] == [0] * 8
    assert [made.group_of(work("expert_gradients", 1), gpu) for gpu in range(8)] == [0, 1, 2, 3, 0, 1, 2, 3]
    experts = made.prepared(work("expert_gradients", 1), 2).plan
    assert made.prepared(work("expert_gradients", 1), 2).sent == {2: 1200.0, 6: 1200.0}
    assert experts.ranks.tolist() == [2, 6]
    assert experts.bytes == 4 * 2 * 150
    # Ring all-reduce in steps would send 2 * 1 / 2 of that each way; pipelined sends the same as one flow.
    assert experts.traffic(8)[2, 6] == experts.traffic(8)[6, 2] == 4 * 2 * 150
    assert len(experts.stages) == 1


def test_one_expert_group_has_nobody_to_reduce_experts_with():
    assert plans(8).prepared(work("expert_gradients", 1), 3).plan.stages == ()
    assert plans(8).prepared(work("gradients", 1), 0).plan.stages != ()
    assert plans(1).prepared(work("expert_gradients", 1), 0).plan.ranks.tolist() == list(range(8))


def test_gathering_parameters_is_an_all_gather_of_the_weights():
    made = plans(4, operation="reduce_scatter", gather_parameters=True, fidelity="steps", channels=1)
    assert made.prepared(work("gradients", 1), 0).plan.operation == "reduce_scatter"
    gather = made.prepared(work("parameters", 1), 0).plan
    assert gather.operation == "all_gather"
    assert gather.bytes == 520 + 2 * 80
    assert len(gather.stages) == 7
    # Layers of equal size share a plan.
    assert made.prepared(work("parameters", 1), 0).plan is gather
    assert made.prepared(work("expert_parameters", 1), 1).plan is made.prepared(work("expert_parameters", 2), 1).plan
    assert made.prepared(work("expert_parameters", 1), 1).plan is not made.prepared(work("expert_parameters", 1), 2).plan


def test_gradients_leave_as_soon_as_they_are_there():
    program = OverlappedGradients().program(MODEL, TRAINING)
    chain = [task.work for task in program.tasks if task.lane != GRADIENTS]
    assert chain == [task.work for task in Sequential().program(MODEL, TRAINING).tasks]
    beside = [task for task in program.tasks if task.lane == GRADIENTS]
    assert [(task.work.phase, task.work.layer) for task in beside] == [
        ("expert_gradients", 2),
        ("gradients", 2),
        ("expert_gradients", 1),
        ("gradients", 1),
        ("gradients", 0),
    ]
    for task in beside:
        (before,) = task.after
        own = program.tasks[before].work
        assert (own.layer, own.direction) == (task.work.layer, BACKWARD)
        assert own.phase == ("experts" if task.work.phase == "expert_gradients" else "attention")
    # The chain waits for none of them.
    for task in program.tasks:
        assert task.lane == GRADIENTS or all(program.tasks[before].lane != GRADIENTS for before in task.after)
    assert may_overlap(program)


def test_parameters_come_last_first_layer_first():
    schedule = OverlappedGradients(operation="reduce_scatter", gather_parameters=True)
    program = schedule.program(MODEL, TRAINING)
    late = [(task.work.phase, task.work.layer) for task in program.tasks[-5:]]
    wanted = [("parameters", 0), ("parameters", 1), ("expert_parameters", 1), ("parameters", 2), ("expert_parameters", 2)]
    assert late == wanted
    assert {task.work.phase for task in program.tasks if task.lane == GRADIENTS} == set(GROUP_CALLS)


@pytest.mark.parametrize("phase", ["prefill", "decode"])
def test_without_training_it_is_the_sequential_schedule(phase):
    workload = replace(TRAINING, phase=phase)
    schedule = OverlappedGradients(operation="reduce_scatter", gather_parameters=True)
    assert schedule.program(MODEL, workload) == Sequential().program(MODEL, workload)


def test_choices_that_do_not_go_together_are_refused():
    with pytest.raises(FieldError, match="no tree algorithm for reduce_scatter: use ring or hierarchical or direct"):
        OverlappedGradients(operation="reduce_scatter", algorithm="tree")
    with pytest.raises(FieldError, match="nothing to gather after an all_reduce"):
        OverlappedGradients(gather_parameters=True)


class Changed(OverlappedGradients):
    """Gradients that break a rule of schedules."""

    change: dict

    def program(self, model, workload):
        """Return the program with changed gradients."""
        tasks = super().program(model, workload).tasks
        return Program(tasks=tuple(replace(task, **self.change) if task.work.phase == "gradients" else task for task in tasks))


@pytest.mark.parametrize(
    ("rule", "change", "message"),
    [
        ("law L6", {"after": ()}, "does not wait for .*attention"),
        ("lane", {"lane": COMPUTE}, "is on lane 'compute'"),
    ],
)
def test_the_check_of_schedules_notices_gradients_out_of_place(rule, change, message):
    broken = type("Broken", (Changed,), {"change": change, "__doc__": Changed.__doc__})()
    with pytest.raises(ContractBroken, match=message) as caught:
        check_schedule(broken)
    assert caught.value.rule == rule
    check_schedule(OverlappedGradients(operation="reduce_scatter", gather_parameters=True))
