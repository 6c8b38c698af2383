"""Two micro-batches that take turns: one computes while the other's tokens are on their way."""

from __future__ import annotations

from dataclasses import dataclass

from moesim.base.errors import PluginError
from moesim.base.registry import register
from moesim.facts.model import MoeModel
from moesim.facts.program import BACKWARD, FORWARD, Program
from moesim.facts.scenario import Workload
from moesim.models.schedule.building import Builder

BATCHES = (0, 1)


@register("schedule", "two_batch")
@dataclass(frozen=True, slots=True, kw_only=True)
class TwoBatch:
    """Cut the tokens of a step into two micro-batches, and run each half of a layer of one beside an exchange of the other.

    In each MoE layer: attention and gate of the first; its dispatch beside attention and gate of the second; experts of the first beside
    the dispatch of the second; combine of the first beside experts of the second; combine of the second beside attention of the first in
    the next layer. Shared experts stand after the gate. In training, the backward pass runs the same way from the last layer to the first.

    Each GPU cuts its tokens in the middle, so unequal halves come from unequal routing only. Each half meets the capacity rule by itself,
    and kernels of half the tokens are less efficient: with few tokens, the halves together take longer than the whole, and there is a batch
    size below which this does not pay. Kernels are slower while communication holds SMs (``exchange.communication_sms``).

    Notes
    -----
    DeepSeek-V3, arXiv:2412.19437, section 3.4 (two micro-batches in prefill and decode); SGLang ``--enable-two-batch-overlap``. The routing
    must tell tokens apart: counts cannot be cut in two.
    """

    def program(self, model: MoeModel, workload: Workload) -> Program:
        """Return the tasks of one step.

        Raises
        ------
        PluginError
            If there is nothing to cut in two.
        """
        if workload.tokens_per_gpu < len(BATCHES):
            raise PluginError(
                f"schedule two_batch cuts the tokens of a GPU in two, and workload.tokens_per_gpu is {workload.tokens_per_gpu}"
            )
        builder = Builder(model)
        for layer in range(model.layers):
            self._layer(builder, layer, FORWARD)
        if workload.phase == "training":
            for layer in reversed(range(model.layers)):
                self._layer(builder, layer, BACKWARD)
        return builder.program()

    def _layer(self, builder: Builder, layer: int, direction: str) -> None:
        """Add the phases of both micro-batches in the order in which lanes run them."""
        model = builder.model
        shared = ("shared",) if model.shared_width else ()
        if layer not in model.moe_layers:
            steps: tuple[tuple[str, ...], ...] = (("attention", "dense"),)
        else:
            steps = (("attention", "gate", *shared, "dispatch"), ("experts", "combine"))
        if direction == BACKWARD:
            steps = tuple(tuple(reversed(step)) for step in reversed(steps))
            if layer in model.moe_layers:
                # Collectives come first in what is reversed; each starts what the other batch computes beside.
                steps = (("combine",), ("experts", "dispatch"), (*shared, "gate", "attention"))
        for step in steps:
            for batch in BATCHES:
                for phase in step:
                    builder.path(phase, layer, direction, batch)
