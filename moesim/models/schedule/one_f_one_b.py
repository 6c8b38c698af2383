"""The forward pass of one micro-batch beside the backward pass of the one before it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from moesim.base.errors import PluginError
from moesim.base.fields import Whole
from moesim.base.registry import register
from moesim.facts.model import MoeModel
from moesim.facts.program import BACKWARD, FORWARD, Program
from moesim.facts.scenario import Workload
from moesim.models.schedule.building import Builder


@register("schedule", "one_f_one_b")
@dataclass(frozen=True, slots=True, kw_only=True)
class OneFOneB:
    """Run the forward pass of a micro-batch together with the backward pass of the one before it, layer by layer.

    A step has ``microbatches`` of them. The first goes forward alone and the last backward alone. In between, layer j of the forward pass
    and layer L - 1 - j of the backward pass run together:

    - communication: combine backward, dispatch forward, dispatch backward, combine forward;
    - computing: attention and gate forward; experts backward, experts forward; gate and attention backward.

    So combine backward hides behind attention forward, dispatch forward behind experts backward, dispatch backward behind experts forward,
    and combine forward behind attention backward. Shared experts stand with the gate. Only training has a backward pass.

    Parameters
    ----------
    microbatches : int
        Micro-batches of a step, 2 to 64; their tokens are equal parts of each GPU's.

    Notes
    -----
    The order is that of ``--overlap-moe-expert-parallel-comm`` in NVIDIA/Megatron-LM,
    ``megatron/core/models/common/model_chunk_schedule_plan.py``, whose two streams exchange and compute so; DualPipe (DeepSeek-V3,
    arXiv:2412.19437, section 3.2.1) hides the same pairs. One pipeline stage is simulated: its layers are those of the model. The routing
    must tell tokens apart.
    """

    microbatches: Annotated[int, Whole(2, 64)] = 4

    def program(self, model: MoeModel, workload: Workload) -> Program:
        """Return the tasks of one step.

        Raises
        ------
        PluginError
            If the workload has no backward pass, or a micro-batch would have no tokens.
        """
        if workload.phase != "training":
            raise PluginError(f"schedule one_f_one_b needs a backward pass, and workload.phase is {workload.phase}: use two_batch instead")
        if workload.tokens_per_gpu < self.microbatches:
            raise PluginError(
                f"schedule one_f_one_b cuts {workload.tokens_per_gpu} tokens of a GPU into {self.microbatches} micro-batches: give it at "
                f"most as many, or more workload.tokens_per_gpu"
            )
        builder = Builder(model)
        layers = range(model.layers)
        for layer in layers:
            self._run(builder, _forward(model, layer), layer, FORWARD, 0)
        for microbatch in range(1, self.microbatches):
            for layer in layers:
                self._together(builder, layer, microbatch)
        for layer in reversed(layers):
            self._run(builder, _backward(model, layer), layer, BACKWARD, self.microbatches - 1)
        return builder.program()

    def _run(self, builder: Builder, parts: tuple[tuple[str, ...], ...], layer: int, direction: str, microbatch: int) -> None:
        for part in parts:
            for phase in part:
                builder.path(phase, layer, direction, microbatch)

    def _together(self, builder: Builder, layer: int, microbatch: int) -> None:
        """Add a layer forward and the mirrored layer of the micro-batch before it backward, in the order of the lanes."""
        model = builder.model
        mirrored = model.layers - 1 - layer
        ahead, back = _forward(model, layer), _backward(model, mirrored)
        for number in range(3):
            # Of each third the backward collective is launched first (combine backward), so that it is under way while forward computes; in
            # the second third experts backward come before experts forward, whose tokens are still on their way.
            for phase in back[number] if number < len(back) else ():
                builder.path(phase, mirrored, BACKWARD, microbatch - 1)
            for phase in ahead[number] if number < len(ahead) else ():
                builder.path(phase, layer, FORWARD, microbatch)


def _forward(model: MoeModel, layer: int) -> tuple[tuple[str, ...], ...]:
    """Return the phases of a layer forward, in thirds that end where another lane takes over."""
    if layer not in model.moe_layers:
        return (("attention", "dense"),)
    shared = ("shared",) if model.shared_width else ()
    return (("attention", "gate", *shared, "dispatch"), ("experts",), ("combine",))


def _backward(model: MoeModel, layer: int) -> tuple[tuple[str, ...], ...]:
    """Return the phases of a layer backward, likewise."""
    if layer not in model.moe_layers:
        return (("dense", "attention"),)
    shared = ("shared",) if model.shared_width else ()
    return (("combine",), ("experts", "dispatch"), (*shared, "gate", "attention"))
