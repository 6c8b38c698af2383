"""The program of a scenario's step: its schedule, and what the sections ``parallel`` and ``training`` add to it."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from moesim.base.errors import PluginError
from moesim.facts.contracts import Schedule
from moesim.facts.model import MoeModel
from moesim.facts.program import Program
from moesim.facts.scenario import Parallel, Workload
from moesim.facts.training import Training
from moesim.models.schedule.tensor import check_tensor, with_expert_tensor_parallelism, with_tensor_parallelism
from moesim.models.schedule.training_tasks import check_training, with_optimiser, with_recomputation


@runtime_checkable
class Staged(Protocol):
    """What a schedule may also have: it then plays a pipeline of several stages."""

    def staged(self, model: MoeModel, workload: Workload, stages: int) -> Program:
        """Return the tasks of one step, those of each stage for the GPUs of that stage."""
        ...


def step_program(
    schedule: Schedule, model: MoeModel, workload: Workload, *, parallel: Parallel | None = None, training: Training | None = None
) -> Program:
    """Return the tasks of one step.

    Parameters
    ----------
    schedule : Schedule
    model : MoeModel
    workload : Workload
    parallel : Parallel, optional
        More than one stage (``pp``) needs a schedule that plays them.
    training : Training, optional
        Recomputation and optimiser.

    Raises
    ------
    PluginError
        If these do not go together.
    """
    if parallel is not None and parallel.pp > 1:
        kind = getattr(schedule, "kind", type(schedule).__name__)
        if not isinstance(schedule, Staged):
            raise PluginError(f"parallel.pp is {parallel.pp}, but schedule {kind} plays one stage: use schedule pipeline, or pp: 1")
        program = schedule.staged(model, workload, parallel.pp)
    else:
        program = schedule.program(model, workload)
    if training is not None:
        check_training(training, schedule, workload.phase)
        if training.recompute != "none":
            program = with_recomputation(program, model, training)
        if training.optimiser != "none":
            program = with_optimiser(program, model)
    if parallel is not None and parallel.tp > 1:
        check_tensor(model, parallel, workload.phase)
        program = with_tensor_parallelism(program, parallel)
    if parallel is not None and parallel.etp > 1:
        program = with_expert_tensor_parallelism(program, parallel)
    return program
