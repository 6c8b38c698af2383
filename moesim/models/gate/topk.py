"""Top-k choice from the router's scores."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.base.registry import register
from moesim.facts.contracts import Choose
from moesim.facts.routing import LayerRouting
from moesim.facts.scenario import Setting
from moesim.models.gate.scoring import Scored
from moesim.models.gate.select import chosen


@register("gate", "topk")
@dataclass(frozen=True, slots=True, kw_only=True)
class TopK(Scored):
    """Choose the k experts of the largest scores; of equal scores the lower expert id. k is the model's ``top_k``.

    Notes
    -----
    Source: NVIDIA/Megatron-LM, ``megatron/core/transformer/moe/moe_utils.py``, ``topk_routing_with_score_function``, in single
    precision like there. Mixtral is the default; Qwen3 is ``pre_softmax: true, normalise: true``; DeepSeek-V2 is ``pre_softmax: true``
    with a ``scale``; the Switch Transformer is ``pre_softmax: true`` with a model of one choice.
    """

    def begin(self, setting: Setting) -> Choose:
        """Return the gate for one run."""
        top_k = setting.model.top_k

        def choose(routing: LayerRouting, *, step: int, moe_layer: int) -> LayerRouting:  # noqa: ARG001 - the contract of the slot
            ids, weights = self.choose(routing.need_scores("gate 'topk'"), top_k)
            return chosen(routing, ids, weights)

        return choose

    def choose(self, logits: NDArray[Any], top_k: int) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        """Return int32[T, k] experts, best first, and float32[T, k] weights of float[T, E] ``logits``."""
        return self.choose_best(logits, lambda scores: scores, top_k, "gate 'topk'")
