"""Shared experts beside the exchange of tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from moesim.base.fields import Choice
from moesim.base.registry import register
from moesim.facts.model import MoeModel
from moesim.facts.program import BACKWARD, FORWARD, Program, Work
from moesim.facts.scenario import Workload
from moesim.models.schedule.building import Builder


@register("schedule", "shared_expert")
@dataclass(frozen=True, slots=True, kw_only=True)
class SharedExpert:
    """Compute the shared experts of a layer while its tokens are on their way.

    Everything else is as in ``sequential``. Shared experts need the layer's own tokens only, so they can run from the gate on; the next
    layer waits for them and for the combine. They hide at most as much communication as they take themselves, and nothing in a model
    without them.

    Parameters
    ----------
    beside : str
        ``dispatch`` (backward: the dispatch of gradients home) or ``combine``. Megatron-Core cuts them in two and puts one half beside each
        (``--moe-shared-expert-overlap``); SGLang and vLLM run them beside one of them on a second stream.

    Notes
    -----
    In the backward pass the order is reversed. Kernels are slower while communication holds SMs (``exchange.communication_sms``).
    """

    beside: Annotated[str, Choice(("dispatch", "combine"))] = "dispatch"

    def program(self, model: MoeModel, workload: Workload) -> Program:
        """Return the tasks of one step."""
        builder = Builder(model)
        for layer in range(model.layers):
            self._layer(builder, layer, FORWARD)
        if workload.phase == "training":
            for layer in reversed(range(model.layers)):
                self._layer(builder, layer, BACKWARD)
        return builder.program()

    def _layer(self, builder: Builder, layer: int, direction: str) -> None:
        model = builder.model
        forward = direction == FORWARD
        if layer not in model.moe_layers:
            for phase in ("attention", "dense") if forward else ("dense", "attention"):
                builder.path(phase, layer, direction, 0)
            return
        order = (
            ("attention", "gate", "dispatch", "experts", "combine") if forward else ("combine", "experts", "dispatch", "gate", "attention")
        )
        before: Work | None = None
        for phase in order:
            work = builder.path(phase, layer, direction, 0)
            # On the compute lane the shared experts stand right behind the launch of the collective, and the next kernel behind them.
            if phase == self.beside and model.shared_width:
                builder.beside("shared", layer, direction, 0, *(() if before is None else (before,)))
            before = work
