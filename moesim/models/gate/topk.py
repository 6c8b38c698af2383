"""Top-k choice from the router's scores."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray

from moesim.base.fields import Choice, Flag
from moesim.base.registry import register
from moesim.facts.contracts import Choose
from moesim.facts.routing import LayerRouting
from moesim.facts.scenario import Setting
from moesim.models.gate.select import chosen, largest, softmax

SMALLEST_SUM = np.float32(1e-20)


@register("gate", "topk")
@dataclass(frozen=True, slots=True, kw_only=True)
class TopK:
    """Choose the k experts of the largest scores; of equal scores the lower expert id. k is the model's ``top_k``.

    Parameters
    ----------
    scoring : str
        ``softmax``, ``sigmoid``, or ``sqrtsoftplus``, the square root of softplus.
    pre_softmax : bool
        With ``softmax``: take the softmax over all experts first, and let the weights be the chosen probabilities as they are. By
        default the k largest logits are chosen first and the softmax is taken over those.
    normalise : bool
        Divide the weights of a token by their sum. The softmax over the chosen ones adds up to 1 without it; ``sigmoid`` and
        ``sqrtsoftplus`` weights are always normalised for k > 1, as Megatron does.

    Notes
    -----
    Source: NVIDIA/Megatron-LM, ``megatron/core/transformer/moe/moe_utils.py``, ``topk_routing_with_score_function``, in single
    precision like there.
    """

    scoring: Annotated[str, Choice(("softmax", "sigmoid", "sqrtsoftplus"))] = "softmax"
    pre_softmax: Flag = False
    normalise: Flag = False

    def begin(self, setting: Setting) -> Choose:
        """Return the gate for one run."""
        top_k = setting.model.top_k

        def choose(routing: LayerRouting, *, step: int, moe_layer: int) -> LayerRouting:  # noqa: ARG001 - the contract of the slot
            ids, weights = self.choose(routing.need_scores("gate 'topk'"), top_k)
            return chosen(routing, ids, weights)

        return choose

    def choose(self, logits: NDArray[Any], top_k: int) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        """Return int32[T, k] experts, best first, and float32[T, k] weights of float[T, E] ``logits``."""
        single = logits.astype(np.float32)
        scores = self._score(single)
        forbidden = np.isneginf(single)
        if forbidden.any():  # also where the score of such an expert would be a finite 0
            scores = np.where(forbidden, np.float32(-np.inf), scores)
        ids = largest(scores, top_k, "gate 'topk'")
        weights = np.take_along_axis(scores, ids, axis=1)
        if self.scoring == "softmax" and not self.pre_softmax:
            weights = softmax(weights)
        if self.normalise or (self.scoring != "softmax" and top_k > 1):
            weights = weights / (weights.sum(axis=1, keepdims=True) + SMALLEST_SUM)
        return ids, weights

    def _score(self, logits: NDArray[np.float32]) -> NDArray[np.float32]:
        if self.scoring == "softmax":
            return softmax(logits) if self.pre_softmax else logits
        if self.scoring == "sigmoid":
            with np.errstate(over="ignore"):  # exp of a very negative logit is infinite and its sigmoid 0, as it should be
                return np.asarray(1 / (1 + np.exp(-logits)), dtype=np.float32)
        return np.asarray(np.sqrt(np.logaddexp(np.float32(0), logits)), dtype=np.float32)
