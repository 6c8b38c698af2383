"""What sources with a fixed popularity of experts share: when popularity is drawn, and how tokens follow it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import numpy as np

from moesim.base.fields import Choice
from moesim.facts.arrays import Floats
from moesim.facts.contracts import Draw
from moesim.facts.routing import LayerRouting, Routing
from moesim.facts.scenario import Setting
from moesim.models.source.on_demand import LayersOnDemand
from moesim.models.source.plackett_luce import draw_popular_layer

Redraw = Annotated[str, Choice(("run", "step"))]


def begin_popular(kind: str, setting: Setting, log_popularity: Callable[[np.random.Generator], Floats], redraw: str) -> Draw:
    """Return the draws of a source whose experts have popularities.

    Parameters
    ----------
    kind : str
        Names the random streams.
    setting : Setting
        The run.
    log_popularity : callable
        From a random stream to float[E], one layer's log popularities. Every layer has its own stream.
    redraw : str
        ``run``: popularity stays for the whole run; ``step``: every step has new popularities.
    """
    model = setting.model

    def draw(step: int) -> Routing:
        token_start = setting.token_start(step)

        def layer(index: int) -> LayerRouting:
            when: tuple[str | int, ...] = ("run",) if redraw == "run" else ("step", step)
            popularity = log_popularity(setting.rng("source", kind, "popularity", *when, index))
            rng = setting.rng("source", kind, step, index)
            ids, weights = draw_popular_layer(rng, popularity, tokens=int(token_start[-1]), top_k=model.top_k)
            return LayerRouting.of_tokens(ids, token_start, model.experts, weights=weights)

        return Routing(layers=LayersOnDemand(layer, len(model.moe_layers)), basis="assumed")

    return draw
