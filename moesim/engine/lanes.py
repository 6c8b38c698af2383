"""GPUs at work: one SimPy process per GPU lane, running the tasks of a program in order."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import numpy as np
import simpy

from moesim.base.errors import PluginError
from moesim.engine.collective import Collective
from moesim.engine.cores import Cores
from moesim.engine.fabric import Fabric
from moesim.engine.group_call import GroupCall
from moesim.engine.hand_over import HandOvers
from moesim.engine.held_sms import HeldSms
from moesim.engine.load import StepLoad
from moesim.engine.posting import rules_of
from moesim.engine.recorder import Recorder
from moesim.facts.arrays import Floats, Ints
from moesim.facts.program import (
    COLLECTIVES,
    COMMUNICATES,
    EXPERT_TENSOR_CALLS,
    PIPELINE,
    RECEIVE,
    SEND,
    TENSOR_CALLS,
    Program,
    Task,
    Work,
    may_overlap,
)
from moesim.facts.traffic import Exchange
from moesim.models.collective.expert_tensor_calls import ExpertTensorPlans
from moesim.models.collective.gradients import GradientPlans
from moesim.models.collective.tensor_calls import TensorPlans

ONE_AFTER_THE_OTHER = "in order"
"""The process of a GPU whose tasks never overlap, whatever their lanes."""


class StepRun:
    """One step on all GPUs.

    Parameters
    ----------
    env, fabric, recorder
        The clock, the links, the book-keeping.
    program : Program
        What every GPU does.
    load : StepLoad
        How long it takes, and what it sends.
    ranks : int
        Ranks of an expert-parallel group.
    gpus : int
        G.
    gradients : GradientPlans or None
        What keeps the copies of the weights equal, if the program has such tasks.
    tensor : TensorPlans or None
        What tensor-parallel groups gather and add up, if there are any.
    expert_tensor : ExpertTensorPlans or None
        What GPUs that share experts gather and add up, if there are any.
    hand_over : float
        Bytes of a token that go from stage to stage of a pipeline.
    cores : Cores or HeldSms or None
        The processors that ranks share, or that communication takes away; if left out, every GPU computes alone and at full speed.
    """

    def __init__(
        self,
        env: simpy.Environment,
        fabric: Fabric,
        recorder: Recorder,
        program: Program,
        load: StepLoad,
        *,
        ranks: int,
        gpus: int,
        gradients: GradientPlans | None = None,
        tensor: TensorPlans | None = None,
        expert_tensor: ExpertTensorPlans | None = None,
        hand_over: float = 0.0,
        cores: Cores | HeldSms | None = None,
    ) -> None:
        self._cores = cores
        self._env = env
        self._fabric = fabric
        self._recorder = recorder
        self._program = program
        self._load = load
        self._ranks = ranks
        self._gpus = gpus
        self._gradients = gradients
        self._tensor = tensor
        self._expert_tensor = expert_tensor
        self._stage_gpus = gpus // program.stages
        self._hand_overs = HandOvers(env, fabric, gpus, self._stage_gpus, hand_over)
        self._calls: dict[tuple[Work, int], GroupCall] = {}
        self._inside: dict[Work, tuple[Floats, ...]] = {}
        self._collectives: dict[tuple[Work, int, int], Collective] = {}
        self.waiting: dict[tuple[int, str], tuple[str, str | Collective | GroupCall]] = {}
        # Lanes that never run at once need no process each, and no events between them.
        together = not may_overlap(program)
        process_of = [ONE_AFTER_THE_OTHER if together else task.lane for task in program.tasks]
        lanes: dict[tuple[int, str], list[int]] = {}
        for index, name in enumerate(process_of):
            lanes.setdefault((program.tasks[index].stage, name), []).append(index)
        elsewhere = {
            before for index, task in enumerate(program.tasks) for before in task.after if process_of[before] != process_of[index]
        }  # only these need an event: within a process, order is enough
        self._done = [{index: env.event() for index in sorted(elsewhere)} for _ in range(gpus)]
        segments = {key: _segments(program, indices, elsewhere) for key, indices in lanes.items()}
        self._processes = [
            env.process(self._lane(gpu, lane, segments[stage, lane]))
            for gpu in range(gpus)
            for stage, lane in lanes
            if stage == gpu // self._stage_gpus
        ]

    def all_done(self) -> simpy.Event:
        """Return an event that fires when every lane of every GPU has finished."""
        return self._env.all_of(self._processes)

    def _lane(self, gpu: int, name: str, segments: list[list[int]]) -> Generator[simpy.Event, Any, None]:
        done, tasks = self._done[gpu], self._program.tasks
        reached = -1.0
        for number, segment in enumerate(segments):
            for before in tasks[segment[0]].after:
                if before in done and not done[before].processed:
                    self.waiting[gpu, name] = (name, f"{tasks[before].work.phase} of layer {tasks[before].work.layer}")
                    yield done[before]
            task = tasks[segment[0]]
            if task.work.phase in COLLECTIVES:
                yield from self._communicate(gpu, name, task, reached)
                reached = -1.0
            elif task.work.phase == SEND:
                yield from self._send(gpu, name, task)
            elif task.work.phase == RECEIVE:
                yield from self._receive(gpu, name, task)
            elif task.work.phase in COMMUNICATES:
                yield from self._call(gpu, name, task)
            else:
                reached = yield from self._compute(
                    gpu, name, [tasks[index] for index in segment], self._launch_after(segment, number, segments)
                )
            if segment[-1] in done:
                done[segment[-1]].succeed()
        self.waiting.pop((gpu, name), None)

    def _compute(self, gpu: int, name: str, tasks: list[Task], launch: float) -> Generator[simpy.Event, Any, float]:
        """Run kernels that follow each other without anybody else noticing when one ends and the next begins: one event for all.

        So does the launch of a collective that comes right after them. Returns when the last kernel ended, or -1 if nothing was launched.
        """
        if self._cores is not None and self._cores.contended(gpu):
            return (yield from self._compute_beside_others(self._cores, gpu, name, tasks, launch))
        start = self._env.now
        ends = []
        end = start
        for task in tasks:
            end += float(self._load.seconds[task.work][gpu])
            ends.append(end)
        self.waiting[gpu, name] = (tasks[0].lane, f"its own {tasks[0].work.phase} of layer {tasks[0].work.layer}")
        yield self._env.timeout(end + launch - start)
        if not launch:
            ends[-1] = self._env.now
        for task, end in zip(tasks, ends, strict=True):
            self._recorder.span(task.work, gpu, task.lane, start, end, tokens=int(self._tokens(task.work)[gpu]))
            start = end
        return end if launch else -1.0

    def _compute_beside_others(
        self, cores: Cores | HeldSms, gpu: int, name: str, tasks: list[Task], launch: float
    ) -> Generator[simpy.Event, Any, float]:
        """Run kernels on cores that other ranks use too: nobody knows when one ends before it has. A launch takes no core."""
        end = self._env.now
        for task in tasks:
            start = self._env.now
            self.waiting[gpu, name] = (task.lane, f"its own {task.work.phase} of layer {task.work.layer}")
            alone = float(self._load.seconds[task.work][gpu])
            yield cores.run(gpu, alone)
            end = self._env.now
            slowed = max(end - start - alone, 0.0)
            self._recorder.span(task.work, gpu, task.lane, start, end, tokens=int(self._tokens(task.work)[gpu]), slowed=slowed)
        if not launch:
            return -1.0
        yield self._env.timeout(launch)
        return end

    def _launch_after(self, segment: list[int], number: int, segments: list[list[int]]) -> float:
        """Return how long the launch of the collective takes that follows a segment at once; 0 if none does."""
        if segment[-1] in self._done[0] or number + 1 == len(segments) or self._ranks == 1:
            return 0.0
        following = self._program.tasks[segments[number + 1][0]]
        if following.work.phase not in COLLECTIVES or any(before in self._done[0] for before in following.after):
            return 0.0
        return self._exchange(following.work).launch_of(following.work.phase)

    def _exchange(self, work: Work) -> Exchange:
        return self._load.part(work).exchange[work.direction]

    def _communicate(self, gpu: int, name: str, task: Task, launched_at: float) -> Generator[simpy.Event, Any, None]:
        if self._ranks == 1:
            return  # law L15: a group of one rank has nobody to exchange with, and no library launches anything
        work = task.work
        exchange = self._exchange(work)
        stages = self._stages(work, exchange)
        start = self._env.now if launched_at < 0 else launched_at
        size = 0.0
        waited_for: dict[int, float] = {}
        if isinstance(self._cores, HeldSms):
            self._cores.hold(gpu, exchange.held_sms)
        launch = exchange.launch_of(work.phase)
        if launch > 0 and launched_at < 0:
            self.waiting[gpu, name] = (task.lane, f"the launch of its own {work.phase} of layer {work.layer}")
            yield self._env.timeout(launch)
        group, rank = divmod(gpu, self._ranks)
        for number, sent in enumerate(stages):
            collective = self._collective(work, group, number, sent[group], exchange)
            self.waiting[gpu, name] = (task.lane, collective)
            yield collective.arrive(gpu)
            for peer, seconds in collective.at[gpu].waited_for.items():
                waited_for[peer] = waited_for.get(peer, 0.0) + seconds
            size += float(sent[group, rank].sum())
        if isinstance(self._cores, HeldSms):
            self._cores.hold(gpu, -exchange.held_sms)
        self._recorder.span(
            work,
            gpu,
            task.lane,
            start,
            self._env.now,
            tokens=int(self._tokens(work)[gpu]),
            size=size,
            waiting=sum(waited_for.values()),
            # The peer it waited for longest; of several the one with the lowest number.
            waited_for=min(waited_for, key=lambda peer: (-waited_for[peer], peer), default=-1),
        )

    def _stages(self, work: Work, exchange: Exchange) -> tuple[Floats, ...]:
        """Return the bytes inside groups, float[G / R, R, R], that follow each other; all stages of a pipelined exchange are one."""
        if work not in self._inside:
            stages = exchange.dispatch if work.phase == "dispatch" else exchange.combine
            inside = tuple(stage.among(self._ranks) for stage in stages)
            self._inside[work] = (np.sum(inside, axis=0),) if exchange.pipelined and len(inside) > 1 else inside
        return self._inside[work]

    def _call(self, gpu: int, name: str, task: Task) -> Generator[simpy.Event, Any, None]:
        work = task.work
        plans = self._plans(work.phase)
        if plans is None:
            raise PluginError(f"the schedule has a task {work.phase!r}, but says nothing of how gradients are exchanged")
        group = plans.group_of(work, gpu)
        prepared = plans.prepared(work, group)
        if not prepared.legs:
            return  # law L15: nobody else holds these weights
        key = (work, group)
        if key not in self._calls:
            self._calls[key] = GroupCall(self._env, self._fabric, prepared)
            self._recorder.call(work, group, self._calls[key], prepared.plan)
        call = self._calls[key]
        start = self._env.now
        self.waiting[gpu, name] = (task.lane, call)
        yield call.arrive(gpu)
        part = call.at[gpu]
        self._recorder.span(
            work,
            gpu,
            task.lane,
            start,
            self._env.now,
            tokens=0,
            size=float(prepared.sent[gpu]),
            waiting=part.waiting,
            waited_for=min(part.waited_for, key=lambda peer: (-part.waited_for[peer], peer), default=-1),
        )

    def _plans(self, phase: str) -> TensorPlans | ExpertTensorPlans | GradientPlans | None:
        if phase in EXPERT_TENSOR_CALLS:
            return self._expert_tensor
        return self._tensor if phase in TENSOR_CALLS else self._gradients

    def _send(self, gpu: int, name: str, task: Task) -> Generator[simpy.Event, Any, None]:
        """Hand on what a stage has computed; the lane is free for the next when all of it has arrived."""
        tokens = int(self._tokens(task.work)[gpu])
        start = self._env.now
        self.waiting[gpu, name] = (task.lane, f"the arrival of what it sends to layer {task.work.layer}")
        size, arrived = self._hand_overs.send(task.work, gpu, tokens)
        yield arrived
        self._recorder.span(task.work, gpu, task.lane, start, self._env.now, tokens=tokens, size=size)

    def _receive(self, gpu: int, name: str, task: Task) -> Generator[simpy.Event, Any, None]:
        """Wait for what the stage before has computed; nothing is written down if it is there already."""
        peer, arrived = self._hand_overs.receive(task.work, gpu)
        if arrived.processed:
            return
        start = self._env.now
        self.waiting[gpu, name] = (task.lane, f"what GPU {peer} sends to layer {task.work.layer}")
        yield arrived
        tokens = int(self._tokens(task.work)[gpu])
        self._recorder.span(
            task.work, gpu, PIPELINE, start, self._env.now, tokens=tokens, waiting=self._env.now - start, waited_for=peer
        )  # fmt: skip

    def _collective(self, work: Work, group: int, number: int, size: Floats, exchange: Exchange) -> Collective:
        key = (work, group, number)
        if key not in self._collectives:
            ranks = range(group * self._ranks, (group + 1) * self._ranks)
            collective = Collective(self._env, self._fabric, ranks, size, barrier=exchange.barrier, rules=rules_of(exchange))
            self._collectives[key] = collective
            self._recorder.collective(work, group, collective, size)
        return self._collectives[key]

    def _tokens(self, work: Work) -> Ints:
        layer = self._load.part(work)
        return layer.rows if work.phase == "experts" else layer.tokens


def _segments(program: Program, indices: list[int], elsewhere: set[int]) -> list[list[int]]:
    """Return the tasks of a lane, with kernels together that follow each other unnoticed: no other lane waits for one or is waited for."""
    segments: list[list[int]] = []
    for index in indices:
        task = program.tasks[index]
        kernel = task.work.phase not in COMMUNICATES
        previous = segments[-1][-1] if segments else -1
        joins = (
            kernel
            and previous >= 0
            and program.tasks[previous].work.phase not in COMMUNICATES
            and previous not in elsewhere
            and not any(before in elsewhere for before in task.after)
        )
        if joins:
            segments[-1].append(index)
        else:
            segments.append([index])
    return segments
