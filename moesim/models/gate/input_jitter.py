"""Jitter of the router's input, as it shows in the logits."""

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
from moesim.models.gate.select import chosen, largest
from moesim.models.router.coefficients import Changing, at_step


@register("gate", "input_jitter")
@dataclass(frozen=True, slots=True, kw_only=True)
class InputJitter(Scored):
    """Multiply every element of the router's input by a number near 1, then choose the k largest scores.

    Parameters
    ----------
    epsilon : float or list
        The numbers are uniform between 1 - epsilon and 1 + epsilon; or its corners ``[[step, epsilon], ...]``, straight lines between them.

    Notes
    -----
    The rule is that of the Switch Transformer (arXiv:2101.03961), Megatron's ``moe_input_jitter_eps`` and DeepSpeed's ``Jitter`` (0.01 in
    all three). Routing holds logits, not inputs, so what is drawn is the effect on the logits. A logit z = sum of w_i x_i over the
    elements changes by the sum of w_i x_i u_i, u_i uniform within epsilon: normal for a wide model, with standard deviation
    epsilon / sqrt(3) times the root of the sum of (w_i x_i)^2. Where the terms of the sum are unrelated, that root is the standard
    deviation of the token's logits over the experts, which is what is taken here. In a trained router terms agree more than that, and
    the true effect is smaller.
    """

    epsilon: Changing = 0.01

    def begin(self, setting: Setting) -> Choose:
        """Return the gate for one run; it draws from the stream ``gate, input_jitter, step, layer``."""
        who, top_k = "gate 'input_jitter'", setting.model.top_k

        def choose(routing: LayerRouting, *, step: int, moe_layer: int) -> LayerRouting:
            logits = routing.need_scores(who).astype(np.float32)
            noise = setting.rng("gate", "input_jitter", step, moe_layer).standard_normal(logits.shape, dtype=np.float32)
            scores = self.score(logits + noise * jitter_of_logits(logits, at_step(self.epsilon, step)))
            ids = largest(scores, top_k, who)
            return chosen(routing, ids, self.weigh(scores, ids))

        return choose


def jitter_of_logits(logits: NDArray[Any], epsilon: float) -> NDArray[np.float32]:
    """Return float32[T, 1], the standard deviation that jitter of the input gives each logit of a token.

    Parameters
    ----------
    logits : float[T, E]
        Minus infinity where an expert may not be chosen.
    epsilon : float
        Of the jitter.
    """
    finite = np.isfinite(logits)
    count = np.maximum(finite.sum(axis=1, keepdims=True), 1)
    known = np.where(finite, logits, 0).astype(np.float64)
    mean = known.sum(axis=1, keepdims=True) / count
    variance = np.where(finite, (known - mean) ** 2, 0).sum(axis=1, keepdims=True) / count
    return np.asarray(epsilon / np.sqrt(3) * np.sqrt(variance), dtype=np.float32)
