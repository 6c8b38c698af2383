"""One thing after another: no communication hides behind computation."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from moesim.base.registry import register
from moesim.facts.model import MoeModel
from moesim.facts.program import BACKWARD, COLLECTIVES, COMMUNICATION, COMPUTE, FORWARD, Program, Task, Work
from moesim.facts.scenario import Workload


def layer_phases(model: MoeModel, layer: int) -> tuple[str, ...]:
    """Return the phases of one layer's forward pass, in order."""
    if layer not in model.moe_layers:
        return ("attention", "dense")
    shared = ("shared",) if model.shared_width else ()
    return ("attention", "gate", *shared, "dispatch", "experts", "combine")


def layer_works(model: MoeModel, layer: int, direction: str) -> Iterator[Work]:
    """Yield the works of one layer, backward in the reverse order of forward."""
    moe_layer = model.moe_layers.index(layer) if layer in model.moe_layers else -1
    phases = layer_phases(model, layer)
    for phase in phases if direction == FORWARD else reversed(phases):
        yield Work(phase=phase, layer=layer, moe_layer=moe_layer, direction=direction)


@register("schedule", "sequential")
@dataclass(frozen=True, slots=True, kw_only=True)
class Sequential:
    """Run each layer as attention, gate, shared experts, dispatch, experts, combine, each waiting for the one before.

    Dense layers are attention and feed-forward. In training the backward pass follows, from the last layer to the first, every layer in
    reverse: combine, experts, dispatch, shared experts, gate, attention.
    """

    def program(self, model: MoeModel, workload: Workload) -> Program:
        """Return the tasks of one step: a chain."""
        works = [work for layer in range(model.layers) for work in layer_works(model, layer, FORWARD)]
        if workload.phase == "training":
            works += [work for layer in reversed(range(model.layers)) for work in layer_works(model, layer, BACKWARD)]
        return Program(
            tasks=tuple(
                Task(work=work, lane=COMMUNICATION if work.phase in COLLECTIVES else COMPUTE, after=(number - 1,) if number else ())
                for number, work in enumerate(works)
            )
        )
