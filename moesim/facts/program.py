"""A step as a graph of tasks: the schedule builds it, the engine runs it, nothing else knows about overlap."""

from __future__ import annotations

from dataclasses import dataclass

COMPUTE, COMMUNICATION = "compute", "communication"
GRADIENTS = "gradients"
"""A second lane of communication, beside that of tokens."""
FORWARD, BACKWARD = "forward", "backward"
COLLECTIVES = ("dispatch", "combine")
"""The phases in which GPUs exchange tokens and wait for their peers."""
GROUP_CALLS = ("gradients", "expert_gradients", "parameters", "expert_parameters")
"""The phases in which GPUs keep their copies of the weights equal: of what every GPU holds, and of experts."""


@dataclass(frozen=True, slots=True)
class Work:
    """What a task does, the same on every GPU: the engine looks up how long (or how many bytes) for each.

    ``phase`` is ``attention``, ``dense``, ``gate``, ``shared``, ``dispatch``, ``experts``, ``combine`` or one of
    ``GROUP_CALLS``. ``layer`` counts all layers of the model. ``moe_layer`` counts MoE layers from 0, or is -1 in a dense layer.
    """

    phase: str
    layer: int
    moe_layer: int
    direction: str = FORWARD
    microbatch: int = 0


@dataclass(frozen=True, slots=True)
class Task:
    """One piece of work, done by every GPU on one of its lanes.

    ``after`` are the indices of tasks of the same GPU that must be finished first. Tasks of a lane run in the order of the
    program. A task whose phase is dispatch or combine is a collective, one of ``GROUP_CALLS`` an operation of a group: it also needs
    its peers.
    """

    work: Work
    lane: str
    after: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Program:
    """Tasks in an order in which every task comes after those it waits for.

    The step's tokens are cut into as many parts as the works' ``microbatch`` says; every part goes through all layers.
    """

    tasks: tuple[Task, ...]

    @property
    def microbatches(self) -> int:
        """How many micro-batches a step has."""
        return max((task.work.microbatch for task in self.tasks), default=0) + 1


def may_overlap(program: Program) -> bool:
    """Return whether any two tasks of a GPU may run at once: whether some task need not wait for the one before it.

    Tasks of one lane are always in order, so only a task that follows one of another lane can overlap. A program in which a task waits
    for a later one has no such order, and its lanes are told apart.
    """
    if any(before >= index for index, task in enumerate(program.tasks) for before in task.after):
        return True
    pairs = zip(program.tasks, program.tasks[1:], strict=False)
    return any(after.lane != before.lane and index not in after.after for index, (before, after) in enumerate(pairs))
