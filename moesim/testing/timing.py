"""Checks of the slots that decide how long things take and in which order they happen: compute, schedule."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from moesim.base.errors import ContractBroken
from moesim.base.streams import stream
from moesim.facts.evidence import STRENGTH
from moesim.facts.model import MoeModel
from moesim.facts.program import BACKWARD, COMMUNICATION, COMPUTE, FORWARD, GRADIENTS, GROUP_CALLS, Program, Task, Work
from moesim.facts.scenario import Setting, Workload
from moesim.testing.rules import Trials, demand, name_of, same, seconds
from moesim.testing.world import SEED, tiny_model, tiny_settings

ROUNDS = 40


def check_compute(compute: Any, *, settings: Sequence[Setting] | None = None) -> None:
    """Check a compute model.

    Times are finite and at least 0, 0 for no work, do not fall when work grows, and depend on a GPU's own rows alone.

    Parameters
    ----------
    compute : object
        An instance of a compute model.
    settings : sequence of Setting or None
        Where to try it; small ones by default.

    Raises
    ------
    ContractBroken
        Naming the rule or law and the numbers.
    """
    who = name_of("compute", compute)
    trials = Trials(who)
    for setting in settings or tiny_settings():
        kernels = trials.ask(compute.begin, setting)
        if kernels is None:
            continue
        demand(kernels.basis in STRENGTH, "evidence", f"{who}: basis {kernels.basis!r} is none of {', '.join(STRENGTH)}")
        _check_dense(who, kernels, setting)
        for direction in (FORWARD, BACKWARD):
            times = _check_experts(f"{who}, {direction}", kernels, setting, direction)
            again = _check_experts(f"{who}, {direction}", compute.begin(setting), setting, direction)
            demand(same(times, again), "law L8", f"{who}, {direction}: two fresh runs take different times")
    trials.finish()


def check_schedule(schedule: Any, *, models: Sequence[MoeModel] | None = None) -> None:
    """Check a schedule.

    Tasks come after those they wait for; in each direction and micro-batch every layer has each of its phases once; tokens are
    dispatched before experts compute and combined afterwards, layer after layer, backward in the reverse order (L6); only training
    has a backward pass. In training there may be gradients and weights of layers to bring round, after those of the layer are there.

    Parameters
    ----------
    schedule : object
        An instance of a schedule.
    models : sequence of MoeModel or None
        For which models; by default small ones with and without dense layers and shared experts.

    Raises
    ------
    ContractBroken
        Naming the rule or law and the numbers.
    """
    who = name_of("schedule", schedule)
    trials = Trials(who)
    for model in models or (tiny_model(), tiny_model(shared=False), tiny_model(dense=False)):
        for phase in ("training", "prefill", "decode"):
            workload = Workload(phase=phase, tokens_per_gpu=16, context=32)
            program = trials.ask(schedule.program, model, workload)
            if program is None:
                continue
            _check_program(f"{who}, {phase}", program, model, training=phase == "training")
            demand(same(program, schedule.program(model, workload)), "law L8", f"{who}: asking again gives another program")
    trials.finish()


def _check_dense(who: str, kernels: Any, setting: Setting) -> None:
    work = np.array([0.0, 1e3, 1e6, 1e9, 1e12])
    for dtype in dict.fromkeys((setting.model.activation_dtype, setting.model.weight_dtype)):
        flops, moved = (grid.ravel() for grid in np.meshgrid(work, work, indexing="ij"))
        times = kernels.dense(flops, moved, dtype=dtype)
        seconds(f"{who}: dense({dtype})", "time", times, flops.shape)
        demand(times[0] == 0, "no work", f"{who}: dense takes {times[0]:g} s for no work")
        table = np.asarray(times).reshape(len(work), len(work))
        for axis, what in enumerate(("flops", "moved bytes")):
            fallen = np.argwhere(np.diff(table, axis=axis) < 0)
            if fallen.size:
                at = tuple(int(index) for index in fallen[0])
                text = f"{who}: dense is faster with {work[at[axis] + 1]:g} than with {work[at[axis]]:g} {what}"
                raise ContractBroken("monotone", text)


def _check_experts(where: str, kernels: Any, setting: Setting, direction: str) -> Any:
    """Add rows to random experts, a few to many at a time; return all times."""
    gpus, slots = setting.gpus, setting.model.experts // setting.parallel.ep
    rng = stream(SEED, "testing", "rows", gpus, slots)
    rows = np.zeros((gpus, slots), dtype=np.int64)
    before = kernels.experts(rows, direction=direction)
    seconds(where, "experts", before, (gpus,))
    demand(not np.any(before), "no work", f"{where}: experts take {np.max(before):g} s for no rows")
    times = [before]
    for _ in range(ROUNDS):
        gpu, slot, more = int(rng.integers(gpus)), int(rng.integers(slots)), int(2 ** rng.integers(0, 10))
        rows = rows.copy()
        rows[gpu, slot] += more
        after = kernels.experts(rows, direction=direction)
        seconds(where, "experts", after, (gpus,))
        change = f"from {before[gpu]:g} to {after[gpu]:g} s when GPU {gpu} gets {more} more rows in slot {slot}"
        demand(after[gpu] >= before[gpu], "monotone", f"{where}: the time falls {change}")
        others = np.delete(np.asarray(after) != np.asarray(before), gpu)
        demand(not others.any(), "own rows", f"{where}: another GPU's time changes when GPU {gpu} gets more rows")
        times.append(after)
        before = after
    return times


def _check_program(where: str, program: Program, model: MoeModel, *, training: bool) -> None:
    demand(isinstance(program, Program), "type", f"{where}: returned {type(program).__name__}, expected Program")
    place: dict[Work, int] = {}
    for number, task in enumerate(program.tasks):
        work = task.work
        lanes = {GRADIENTS} if work.phase in GROUP_CALLS else {COMPUTE, COMMUNICATION}
        demand(task.lane in lanes, "lane", f"{where}: task {number} is on lane {task.lane!r}")
        wrong = [earlier for earlier in task.after if not 0 <= earlier < number]
        demand(not wrong, "law L6", f"{where}: task {number} waits for task {wrong[0] if wrong else ''}, which does not come before it")
        demand(work not in place, "once", f"{where}: {work} is there twice")
        place[work] = number
        expected = model.moe_layers.index(work.layer) if work.layer in model.moe_layers else -1
        text = f"{where}: task {number} says layer {work.layer} is MoE layer {work.moe_layer}, expected {expected}"
        demand(work.moe_layer == expected, "layers", text)
    directions = (FORWARD, BACKWARD) if training else (FORWARD,)
    microbatches = sorted({work.microbatch for work in place})
    wanted = {
        _work(model, phase, layer, direction, microbatch)
        for direction in directions
        for microbatch in microbatches
        for layer in range(model.layers)
        for phase in _phases(model, layer)
    }
    missing = sorted(map(str, wanted - set(place)))
    demand(not missing, "once", f"{where}: there is no {missing[0] if missing else ''}")
    copies = {work for work in place if work.phase in GROUP_CALLS} if training else set()
    extra = sorted(map(str, set(place) - wanted - copies))
    demand(not extra, "once", f"{where}: nobody asked for {extra[0] if extra else ''}")
    ancestors = _ancestors(program.tasks)
    for microbatch in microbatches:
        for direction in directions:
            order = [work for layer in range(model.layers) for work in _main_path(model, layer, direction, microbatch)]
            if direction == BACKWARD:
                order.reverse()
            for before, after in pairwise(order):
                waits = bool(ancestors[place[after]] >> place[before] & 1)
                demand(waits, "law L6", f"{where}: {after} does not wait for {before}")
    for work in sorted(copies, key=lambda work: place[work]):
        before = _work(model, "experts" if work.phase.startswith("expert") else "attention", work.layer, BACKWARD, work.microbatch)
        demand(before in place, "once", f"{where}: {work} in a layer without experts")
        demand(bool(ancestors[place[work]] >> place[before] & 1), "law L6", f"{where}: {work} does not wait for {before}")


def _phases(model: MoeModel, layer: int) -> tuple[str, ...]:
    if layer not in model.moe_layers:
        return ("attention", "dense")
    return ("attention", "gate", "dispatch", "experts", "combine", *(("shared",) if model.shared_width else ()))


def _main_path(model: MoeModel, layer: int, direction: str, microbatch: int) -> list[Work]:
    """Return the works of a layer that tokens go through one after another; shared experts stand beside the path."""
    return [_work(model, phase, layer, direction, microbatch) for phase in _phases(model, layer) if phase != "shared"]


def _work(model: MoeModel, phase: str, layer: int, direction: str, microbatch: int) -> Work:
    moe_layer = model.moe_layers.index(layer) if layer in model.moe_layers else -1
    return Work(phase=phase, layer=layer, moe_layer=moe_layer, direction=direction, microbatch=microbatch)


def _ancestors(tasks: Sequence[Task]) -> list[int]:
    """Return for each task, as bits, the tasks that are finished before it starts: those it names and those before it on its lane."""
    known: list[int] = []
    last: dict[str, int] = {}
    for number, task in enumerate(tasks):
        earlier = set(task.after) | ({last[task.lane]} if task.lane in last else set())
        bits = 0
        for other in earlier:
            bits |= known[other] | 1 << other
        known.append(bits)
        last[task.lane] = number
    return known
