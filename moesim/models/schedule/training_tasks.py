"""Recomputation and the update of the weights, added to any schedule."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from moesim.base.errors import PluginError
from moesim.facts.collective import GradientCalls
from moesim.facts.model import MoeModel
from moesim.facts.program import BACKWARD, COMPUTE, GROUP_CALLS, OPTIMISER, RECOMPUTE, Program, Task, Work
from moesim.facts.training import Training
from moesim.models.schedule.sequential import layer_phases
from moesim.models.schedule.weaving import woven


def recomputed(model: MoeModel, layer: int, training: Training) -> dict[str, tuple[str, ...]]:
    """Return what is computed again in a layer: for the backward phase that needs it first, the phases forward, in order.

    Parameters
    ----------
    model : MoeModel
    layer : int
    training : Training

    Notes
    -----
    The modules are those of ``--recompute-modules`` of Megatron-Core (``core_attn``, ``mlp``, ``shared_experts``, ``moe``) and its
    ``--recompute-granularity full``, where the whole layer runs forward again, with dispatch and combine. ``experts`` keeps the rows that
    arrived, so nothing travels twice.
    """
    phases = layer_phases(model, layer)
    if training.recompute == "none":
        return {}
    if training.recompute == "full":
        return {phases[-1]: phases}
    names = training.recompute_modules
    again: dict[str, tuple[str, ...]] = {"attention": ("attention_core",)} if "attention_core" in names else {}
    again |= {phase: (phase,) for phase in ("experts", "shared", "dense") if phase in names and phase in phases}
    if "moe" in names and layer in model.moe_layers:
        again["combine"] = phases[1:]
    return again


def with_recomputation(program: Program, model: MoeModel, training: Training) -> Program:
    """Return a program that computes forward again what was not kept, right before the backward pass that needs it."""
    again = [recomputed(model, layer, training) for layer in range(model.layers)]
    before = {
        index: [replace(task.work, phase=phase, direction=RECOMPUTE) for phase in again[task.work.layer][task.work.phase]]
        for index, task in enumerate(program.tasks)
        if task.work.direction == BACKWARD and task.work.phase in again[task.work.layer]
    }
    return woven(program, before, {})


def with_optimiser(program: Program, model: MoeModel) -> Program:
    """Return a program in which every stage updates its weights, layer by layer, when all its gradients are complete.

    Weights that are gathered wait for the update of their layer. The norm by which gradients are clipped needs all of them, so no update
    begins before.
    """
    gathers = {index for index, task in enumerate(program.tasks) if task.work.phase in ("parameters", "expert_parameters")}
    # What is gathered comes after everything else: only tasks behind it in the list change their places.
    order = [index for index in range(len(program.tasks)) if index not in gathers]
    place = {index: number for number, index in enumerate(order)}
    tasks = [_moved(program.tasks[index], place) for index in order]
    updated: dict[int, int] = {}
    for stage in range(program.stages):
        mine = [(number, task) for number, task in enumerate(tasks) if task.stage == stage]
        if not mine:
            continue
        layers = sorted({task.work.layer for _, task in mine if task.work.phase == "attention"})
        last_microbatch = max(task.work.microbatch for _, task in mine)
        waits = _last(mine)
        for layer in layers:
            moe_layer = model.moe_layers.index(layer) if layer in model.moe_layers else -1
            work = Work(phase=OPTIMISER, layer=layer, moe_layer=moe_layer, direction=BACKWARD, microbatch=last_microbatch)
            tasks.append(Task(work=work, lane=COMPUTE, after=waits, stage=stage))
            updated[layer] = len(tasks) - 1
            waits = (len(tasks) - 1,)
    for index in sorted(gathers):
        place[index] = len(tasks)
        moved = _moved(program.tasks[index], place)
        tasks.append(replace(moved, after=tuple(sorted({*moved.after, updated[moved.work.layer]}))))
    return Program(tasks=tuple(tasks))


def _moved(task: Task, place: dict[int, int]) -> Task:
    return replace(task, after=tuple(place[earlier] for earlier in task.after))


def _last(mine: Iterable[tuple[int, Task]]) -> tuple[int, ...]:
    """Return the last operation on gradients of a stage and its last task of the backward pass."""
    last: dict[bool, int] = {}
    for number, task in mine:
        if task.work.phase in GROUP_CALLS or task.work.direction == BACKWARD:
            last[task.work.phase in GROUP_CALLS] = number
    return tuple(sorted(last.values()))


def check_training(training: Training, schedule: object, phase: str) -> None:
    """Refuse a section ``training`` that does not go with the rest.

    Raises
    ------
    PluginError
        Naming the rule and the way out.
    """
    kind = getattr(schedule, "kind", type(schedule).__name__)
    if phase != "training":
        raise PluginError(
            f"a section training needs a backward pass, and workload.phase is {phase}: leave it out, or write phase: training"
        )
    if training.sharding == "data_parallel":
        if not isinstance(schedule, GradientCalls):
            raise PluginError(
                f"sharding: data_parallel needs a schedule that exchanges gradients and weights, and {kind} does not: use "
                "overlapped_gradients with operation reduce_scatter and gather_parameters"
            )
        if not schedule.gather_parameters:
            raise PluginError(
                "sharding: data_parallel leaves each GPU with its share of the new weights: write schedule.gather_parameters: true "
                "and schedule.operation: reduce_scatter"
            )
