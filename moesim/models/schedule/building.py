"""Tasks one after another on their lanes: what schedules that overlap share."""

from __future__ import annotations

from moesim.facts.model import MoeModel
from moesim.facts.program import COLLECTIVES, COMMUNICATION, COMPUTE, Program, Task, Work


def work_of(model: MoeModel, phase: str, layer: int, direction: str, microbatch: int) -> Work:
    """Return the work of a phase of a layer."""
    moe_layer = model.moe_layers.index(layer) if layer in model.moe_layers else -1
    return Work(phase=phase, layer=layer, moe_layer=moe_layer, direction=direction, microbatch=microbatch)


class Builder:
    """Collects tasks in the order in which their lanes shall run them, each after the works that it needs.

    Parameters
    ----------
    model : MoeModel
        Says which layers have experts.
    """

    def __init__(self, model: MoeModel) -> None:
        self.model = model
        self._tasks: list[Task] = []
        self._place: dict[Work, int] = {}
        self._reached: dict[int, int] = {}

    def path(self, phase: str, layer: int, direction: str, microbatch: int, *also: Work) -> Work:
        """Add a task that a micro-batch's tokens go through: after the one before it on their path, and after ``also``; return its work."""
        before = {self._reached[microbatch]} if microbatch in self._reached else set()
        work = self._add(phase, layer, direction, microbatch, before | {self._place[earlier] for earlier in also})
        self._reached[microbatch] = self._place[work]
        return work

    def beside(self, phase: str, layer: int, direction: str, microbatch: int, *after: Work) -> Work:
        """Add a task that stands beside the path: only works that name it wait for it; return its work."""
        return self._add(phase, layer, direction, microbatch, {self._place[earlier] for earlier in after})

    def _add(self, phase: str, layer: int, direction: str, microbatch: int, after: set[int]) -> Work:
        work = work_of(self.model, phase, layer, direction, microbatch)
        self._place[work] = len(self._tasks)
        lane = COMMUNICATION if phase in COLLECTIVES else COMPUTE
        self._tasks.append(Task(work=work, lane=lane, after=tuple(sorted(after))))
        return work

    def program(self) -> Program:
        """Return the program."""
        return Program(tasks=tuple(self._tasks))
