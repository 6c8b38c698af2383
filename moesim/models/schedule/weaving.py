"""More tasks before and after those of a program."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from moesim.facts.program import COLLECTIVES, COMMUNICATION, COMPUTE, TENSOR_CALLS, Program, Task, Work

Works = Mapping[int, Sequence[Work]]


def lane_of(work: Work) -> str:
    """Return the lane on which a work goes that is no operation of many GPUs on weights."""
    return COMMUNICATION if work.phase in COLLECTIVES or work.phase in TENSOR_CALLS else COMPUTE


def woven(program: Program, before: Works, after: Works) -> Program:
    """Return a program with chains of works before and after some of its tasks.

    Parameters
    ----------
    program : Program
    before, after : mapping of int to sequence of Work
        For the index of a task, what is done first or last, in this order. Who waited for the task now waits for the last of them; what
        the task waited for, the first of them waits for.
    """
    tasks: list[Task] = []
    finished: dict[int, int] = {}

    def add(task: Task, work: Work, lane: str, earlier: tuple[int, ...]) -> tuple[int, ...]:
        tasks.append(replace(task, work=work, lane=lane, after=earlier))
        return (len(tasks) - 1,)

    for index, task in enumerate(program.tasks):
        waits = tuple(sorted({finished[earlier] for earlier in task.after}))
        for work in before.get(index, ()):
            waits = add(task, work, lane_of(work), waits)
        waits = add(task, task.work, task.lane, waits)
        for work in after.get(index, ()):
            waits = add(task, work, lane_of(work), waits)
        finished[index] = waits[0]
    return Program(tasks=tuple(tasks))
