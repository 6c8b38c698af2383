"""A step whose bytes take no time, on cores that ranks share: what :mod:`moesim.models.bounds` adds up for cores of their own."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from typing import Any

import simpy

from moesim.engine.cores import Cores
from moesim.facts.arrays import Floats
from moesim.facts.cluster import Cluster
from moesim.facts.program import COLLECTIVES, COMMUNICATES, Program, Task, Work


def no_communication_on_shared_cores(program: Program, durations: Mapping[Work, Floats], groups: int, cluster: Cluster) -> float:
    """Return the seconds of a step whose exchanges take no time but still make the ranks of a group wait for each other.

    Ranks that compute at once share their cores, so there is no longest path that could be added up: the step is played.

    Parameters
    ----------
    program : Program
        Tasks of one step.
    durations : mapping of Work to float[G]
        Seconds of every task that is not an exchange, on a core of its own.
    groups : int
        Expert-parallel groups.
    cluster : Cluster
        For its pools of cores.
    """
    env = simpy.Environment()
    cores = Cores(env, cluster)
    ranks = cluster.gpus // groups
    done = [[env.event() for _ in program.tasks] for _ in range(cluster.gpus)]
    met: dict[tuple[int, int], tuple[list[int], simpy.Event]] = {}

    def meet(number: int, gpu: int) -> simpy.Event:
        here, all_there = met.setdefault((number, gpu // ranks), ([], env.event()))
        here.append(gpu)
        if len(here) == ranks:
            all_there.succeed()
        return all_there

    def lane(gpu: int, tasks: list[tuple[int, Task]]) -> Generator[simpy.Event, Any, None]:
        for number, task in tasks:
            for before in task.after:
                yield done[gpu][before]
            if task.work.phase in COLLECTIVES:
                yield meet(number, gpu)
            elif task.work.phase not in COMMUNICATES:
                yield cores.run(gpu, float(durations[task.work][gpu]))
            done[gpu][number].succeed()

    lanes: dict[str, list[tuple[int, Task]]] = {}
    for number, task in enumerate(program.tasks):
        lanes.setdefault(task.lane, []).append((number, task))
    env.run(until=env.all_of([env.process(lane(gpu, tasks)) for gpu in range(cluster.gpus) for tasks in lanes.values()]))
    return float(env.now)
