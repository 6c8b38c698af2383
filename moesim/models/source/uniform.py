"""Every expert equally likely: the noise floor that no balancing policy beats."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from moesim.base.registry import register
from moesim.facts.contracts import Draw
from moesim.facts.routing import LayerRouting, Routing
from moesim.facts.scenario import Setting
from moesim.models.source.on_demand import LayersOnDemand
from moesim.models.source.plackett_luce import draw_uniform, draw_weights


@register("source", "uniform")
@dataclass(frozen=True, slots=True, kw_only=True)
class Uniform:
    """Each token takes k distinct experts, every choice equally likely.

    Drawn without replacement, unlike the ``uniform_random`` strategy of vLLM's routing simulator, which may name an expert twice. Loads are
    equal on average only; :class:`moesim.models.source.balanced.Balanced` makes them equal. Gate weights are the softmax over the chosen
    logits of a router whose logits are independent Gumbel noise.
    """

    def begin(self, setting: Setting) -> Draw:
        """Return the draws of one run."""
        model = setting.model

        def draw(step: int) -> Routing:
            token_start = setting.token_start(step)

            def layer(index: int) -> LayerRouting:
                rng = setting.rng("source", "uniform", step, index)
                ids = draw_uniform(rng, tokens=int(token_start[-1]), experts=model.experts, top_k=model.top_k)
                weights = draw_weights(rng, np.full(ids.shape, 1.0 / model.experts))
                return LayerRouting.of_tokens(ids, token_start, model.experts, weights=weights)

            return Routing(layers=LayersOnDemand(layer, len(model.moe_layers)), basis="assumed")

        return draw
