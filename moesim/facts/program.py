"""A step as a graph of tasks: the schedule builds it, the engine runs it, nothing else knows about overlap."""

from __future__ import annotations

from dataclasses import dataclass

COMPUTE, COMMUNICATION = "compute", "communication"
GRADIENTS = "gradients"
"""A second lane of communication, beside that of tokens."""
PIPELINE = "pipeline"
"""The lane on which activations and their gradients leave for the next stage of a pipeline."""
FORWARD, BACKWARD = "forward", "backward"
RECOMPUTE = "recompute"
"""What was computed forward, once more before its backward pass, because its activations were not kept."""
COLLECTIVES = ("dispatch", "combine")
"""The phases in which GPUs exchange tokens and wait for their peers."""
GROUP_CALLS = ("gradients", "expert_gradients", "parameters", "expert_parameters")
"""The phases in which GPUs keep their copies of the weights equal: of what every GPU holds, and of experts."""
EXPERT_TENSOR_CALLS = ("experts_gather", "experts_scatter")
"""The phases in which GPUs that share experts gather the rows that arrived at each, or add up their parts of the results."""
TENSOR_CALLS = (
    *EXPERT_TENSOR_CALLS,
    "attention_gather",
    "attention_scatter",
    "attention_reduce",
    "dense_gather",
    "dense_scatter",
    "dense_reduce",
    "shared_gather",
    "shared_scatter",
    "tokens_gather",
)
"""The phases in which a tensor-parallel group gathers its tokens, or adds up its parts of a block's result."""
SEND, RECEIVE = "send", "receive"
"""Activations (backward: their gradients) on their way to the next stage, and a stage that waits for them."""
OPTIMISER = "optimiser"
"""The update of the weights."""
COMMUNICATES = (*COLLECTIVES, *GROUP_CALLS, *TENSOR_CALLS, SEND, RECEIVE)
"""The phases in which nothing is computed: how long they take is not known before they are played."""


@dataclass(frozen=True, slots=True)
class Work:
    """What a task does, the same on every GPU: the engine looks up how long (or how many bytes) for each.

    ``phase`` is ``attention``, ``dense``, ``gate``, ``shared``, ``dispatch``, ``experts``, ``combine``, one of ``GROUP_CALLS`` or
    ``TENSOR_CALLS``, ``optimiser``, ``attention_core`` (recomputed only), ``send`` or ``receive``. ``direction`` is ``forward``,
    ``backward`` or ``recompute``. ``layer`` counts all layers of the model; of what is sent from stage to stage it is the layer that is
    next. ``moe_layer`` counts MoE layers from 0, or is -1 in a dense layer.
    """

    phase: str
    layer: int
    moe_layer: int
    direction: str = FORWARD
    microbatch: int = 0


@dataclass(frozen=True, slots=True)
class Task:
    """One piece of work, done by every GPU of a pipeline stage on one of its lanes; without a pipeline all GPUs are stage 0.

    ``after`` are the indices of tasks of the same GPU that must be finished first. Tasks of a lane run in the order of the
    program. A task whose phase is dispatch or combine is a collective, one of ``GROUP_CALLS`` an operation of a group: it also needs
    its peers. A ``receive`` also needs what the ``send`` of the same layer, direction and micro-batch brings from a GPU of another stage.
    """

    work: Work
    lane: str
    after: tuple[int, ...]
    stage: int = 0


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

    @property
    def stages(self) -> int:
        """How many stages of a pipeline the tasks are for; GPUs with consecutive numbers form a stage."""
        return max((task.stage for task in self.tasks), default=0) + 1


def may_overlap(program: Program) -> bool:
    """Return whether any two tasks of a GPU may run at once: whether some task need not wait for the one before it.

    Tasks of one lane are always in order, so only a task that follows one of another lane can overlap. A program in which a task waits
    for a later one has no such order, and its lanes are told apart. So are those of a pipeline.
    """
    if program.stages > 1:
        return True
    if any(before >= index for index, task in enumerate(program.tasks) for before in task.after):
        return True
    pairs = zip(program.tasks, program.tasks[1:], strict=False)
    return any(after.lane != before.lane and index not in after.after for index, (before, after) in enumerate(pairs))
