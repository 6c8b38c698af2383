"""GPUs at work: one SimPy process per GPU lane, running the tasks of a program in order."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import simpy

from moesim.engine.collective import Collective
from moesim.engine.fabric import Fabric
from moesim.engine.load import StepLoad
from moesim.engine.recorder import Recorder
from moesim.facts.arrays import Floats, Ints
from moesim.facts.program import COLLECTIVES, Program, Task, Work
from moesim.facts.traffic import Exchange


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
    ) -> None:
        self._env = env
        self._fabric = fabric
        self._recorder = recorder
        self._program = program
        self._load = load
        self._ranks = ranks
        self._gpus = gpus
        self._collectives: dict[tuple[Work, int, int], Collective] = {}
        self.waiting: dict[tuple[int, str], str | Collective] = {}
        lanes: dict[str, list[int]] = {}
        for index, task in enumerate(program.tasks):
            lanes.setdefault(task.lane, []).append(index)
        elsewhere = {
            before for task in program.tasks for before in task.after if program.tasks[before].lane != task.lane
        }  # only these need an event: within a lane, order is enough
        self._done = [{index: env.event() for index in sorted(elsewhere)} for _ in range(gpus)]
        self._processes = [env.process(self._lane(gpu, lane, indices)) for gpu in range(gpus) for lane, indices in lanes.items()]

    def all_done(self) -> simpy.Event:
        """Return an event that fires when every lane of every GPU has finished."""
        return self._env.all_of(self._processes)

    def _lane(self, gpu: int, lane: str, indices: list[int]) -> Generator[simpy.Event, Any, None]:
        done = self._done[gpu]
        for index in indices:
            task = self._program.tasks[index]
            for before in task.after:
                if before in done and not done[before].processed:
                    self.waiting[gpu, lane] = f"{self._program.tasks[before].work.phase} of layer {self._program.tasks[before].work.layer}"
                    yield done[before]
            if task.work.phase in COLLECTIVES:
                yield from self._communicate(gpu, task)
            else:
                yield from self._compute(gpu, task)
            if index in done:
                done[index].succeed()
        self.waiting.pop((gpu, lane), None)

    def _compute(self, gpu: int, task: Task) -> Generator[simpy.Event, Any, None]:
        start = self._env.now
        seconds = float(self._load.seconds[task.work][gpu])
        self.waiting[gpu, task.lane] = f"its own {task.work.phase} of layer {task.work.layer}"
        yield self._env.timeout(seconds)
        tokens = self._tokens(task.work)
        self._recorder.span(task.work, gpu, task.lane, start, self._env.now, tokens=int(tokens[gpu]))

    def _communicate(self, gpu: int, task: Task) -> Generator[simpy.Event, Any, None]:
        if self._ranks == 1:
            return  # law L15: a group of one rank has nobody to exchange with, and no library launches anything
        work = task.work
        exchange = self._load.layers[work.moe_layer].exchange[work.direction]
        stages = exchange.dispatch if work.phase == "dispatch" else exchange.combine
        start = self._env.now
        size = 0.0
        waited_for: dict[int, float] = {}
        if exchange.launch > 0:
            self.waiting[gpu, task.lane] = f"the launch of its own {work.phase} of layer {work.layer}"
            yield self._env.timeout(exchange.launch)
        for number, stage in enumerate(stages):
            collective = self._collective(work, gpu // self._ranks, number, stage.bytes, exchange)
            self.waiting[gpu, task.lane] = collective
            yield collective.arrive(gpu)
            for peer, seconds in collective.at[gpu].waited_for.items():
                waited_for[peer] = waited_for.get(peer, 0.0) + seconds
            size += float(stage.bytes[gpu].sum())
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

    def _collective(self, work: Work, group: int, number: int, size: Floats, exchange: Exchange) -> Collective:
        key = (work, group, number)
        if key not in self._collectives:
            ranks = range(group * self._ranks, (group + 1) * self._ranks)
            collective = Collective(self._env, self._fabric, ranks, size, barrier=exchange.barrier)
            self._collectives[key] = collective
            self._recorder.collective(work, group, collective, size)
        return self._collectives[key]

    def _tokens(self, work: Work) -> Ints:
        layer = self._load.layers[max(work.moe_layer, 0)]
        return layer.rows if work.phase == "experts" else layer.tokens
