"""Gradients travel while the backward pass goes on."""

from __future__ import annotations

from dataclasses import dataclass

from moesim.base.registry import register
from moesim.facts.collective import GradientCalls
from moesim.facts.model import MoeModel
from moesim.facts.program import BACKWARD, COLLECTIVES, COMMUNICATION, COMPUTE, FORWARD, GRADIENTS, Program, Task, Work
from moesim.facts.scenario import Workload
from moesim.models.schedule.sequential import layer_works


@register("schedule", "overlapped_gradients")
@dataclass(frozen=True, slots=True, kw_only=True)
class OverlappedGradients(GradientCalls):
    """Run each layer as ``sequential`` does, and reduce its gradients on a second communication lane as soon as they are there.

    The gradients of a layer's experts are ready after its expert computation backward, all others of the layer after its attention
    backward. From then on they are on their way, over the same links as dispatch and combine of earlier layers, one operation after
    the other in the order in which they become ready. What every GPU holds (attention, router, shared experts, dense feed-forward blocks,
    embedding and head) is reduced among all GPUs; experts are reduced among the GPUs of equal rank of all expert-parallel groups, and not
    at all if there is one group. With ``gather_parameters`` the updated weights are all-gathered at the end of the step, first layer
    first. The step ends when all this is done. Only training has gradients.

    This is the order of distributed data parallelism with buckets of one layer (PyTorch DDP: Li et al., VLDB 2020;
    ``--overlap-grad-reduce`` of Megatron-LM). The embedding goes with layer 0 and the head with the last layer; if they are tied, both
    go with layer 0. The update of the weights itself takes no time here.
    """

    def program(self, model: MoeModel, workload: Workload) -> Program:
        """Return the tasks of one step: a chain, and operations on gradients beside it."""
        tasks: list[Task] = []
        last: tuple[int, ...] = ()

        def beside(phase: str, like: Work) -> None:
            work = Work(phase=phase, layer=like.layer, moe_layer=like.moe_layer, direction=BACKWARD)
            tasks.append(Task(work=work, lane=GRADIENTS, after=last))

        training = workload.phase == "training"
        works = [work for layer in range(model.layers) for work in layer_works(model, layer, FORWARD)]
        if training:
            works += [work for layer in reversed(range(model.layers)) for work in layer_works(model, layer, BACKWARD)]
        for work in works:
            tasks.append(Task(work=work, lane=COMMUNICATION if work.phase in COLLECTIVES else COMPUTE, after=last))
            last = (len(tasks) - 1,)
            if work.direction == BACKWARD and work.phase == "experts":
                beside("expert_gradients", work)
            elif work.direction == BACKWARD and work.phase == "attention":
                beside("gradients", work)
        if training and self.gather_parameters:
            for layer in range(model.layers):
                first = next(layer_works(model, layer, FORWARD))
                beside("parameters", first)
                if first.moe_layer >= 0:
                    beside("expert_parameters", first)
        return Program(tasks=tuple(tasks))
