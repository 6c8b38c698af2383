"""Zero-computation experts: choices that cost nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np

from moesim.base.errors import PluginError
from moesim.base.fields import Count, Flag, NotNegative, Number, Positive
from moesim.base.registry import register
from moesim.facts.arrays import Ints
from moesim.facts.contracts import Choose
from moesim.facts.routing import LayerRouting
from moesim.facts.scenario import Setting
from moesim.models.gate.memory import Memory, Remembering, Vector
from moesim.models.gate.scoring import Scored
from moesim.models.gate.select import chosen, finite_scores, largest
from moesim.models.router.coefficients import Changing, at_step

WHO = "gate 'zero_computation'"


@register("gate", "zero_computation")
@dataclass(frozen=True, slots=True, kw_only=True)
class ZeroComputation(Scored):
    """Choose the k best of the model's experts and of some that return the token as it is: those choices are neither sent nor computed.

    Such a choice has the id -1 and the weight 0 in the routing, so a token has 0 to k experts. Routing holds logits of the model's E
    experts only; those of the zero-computation ones are drawn, normal with mean ``offset`` and standard deviation ``spread``. After every
    step the bias of each of the E experts changes by ``rate`` times (active / k / E - its routes / (k T)), T tokens in the batch, so that
    a token comes to have ``active`` experts on average; the others have no bias. Biases start at 0 and change choices only.

    Parameters
    ----------
    zero_experts : int or None
        How many there are; half of the model's experts by default, as in LongCat-Flash (256 beside 512).
    offset, spread : float
        The law of their logits: an assumption, unless it is fitted to a recording.
    rate : float or list
        Mu; 0 for no bias; or its corners ``[[step, mu], ...]``, straight lines between them.
    active : float or None
        What a token should have of the model's experts on average, more than 0 and at most k; the share that they are of all, times k,
        by default (LongCat-Flash: 8 of 12).

    Notes
    -----
    Source: LongCat-Flash technical report, arXiv:2509.01322, section 2.1 (softmax over all experts, the update of the bias); MoE++,
    arXiv:2410.07348, for experts that are zero, copy or constant.
    """

    pre_softmax: Flag = True
    zero_experts: Count | None = None
    offset: Annotated[float, Number()] = 0.0
    spread: NotNegative = 1.0
    rate: Changing = 0.0
    active: Positive | None = None

    def begin(self, setting: Setting) -> Choose:
        """Return the gate for one run; it draws from the stream ``gate, zero_computation, step, layer``, and the biases are its own.

        Raises
        ------
        PluginError
            If ``active`` is more than the choices of a token.
        """
        model = setting.model
        zero = max(model.experts // 2, 1) if self.zero_experts is None else self.zero_experts
        active = model.top_k * model.experts / (model.experts + zero) if self.active is None else self.active
        if active > model.top_k:
            raise PluginError(f"{WHO}: active ({active:g}) is larger than the model's top_k ({model.top_k})")

        def next_bias(bias: Vector, shares: Ints, step: int) -> Vector:
            change = active / (model.top_k * model.experts) - shares / model.top_k
            return np.asarray(bias + np.float32(at_step(self.rate, step)) * change.astype(np.float32), dtype=np.float32)

        memory = Memory(model.experts, next_bias)

        def choose(routing: LayerRouting, *, step: int, moe_layer: int) -> LayerRouting:
            logits = finite_scores(routing, WHO)
            bias = np.zeros(model.experts + zero, dtype=np.float32)
            bias[: model.experts] = memory.at(step, moe_layer)
            drawn = setting.rng("gate", "zero_computation", step, moe_layer).standard_normal((len(logits), zero), dtype=np.float32)
            drawn *= np.float32(self.spread)
            drawn += np.float32(self.offset)
            scores = self.score(np.concatenate([logits, drawn], axis=1))
            ids = largest(scores + bias, model.top_k, WHO)
            weights = self.weigh(scores, ids)
            idle = ids >= model.experts
            ids[idle] = -1
            weights[idle] = 0
            answer = chosen(routing, ids, weights)
            if len(logits):
                memory.saw(answer.counts.sum(axis=0) / len(logits), step=step, moe_layer=moe_layer)
            return answer

        return Remembering(choose, memory)
