"""The top-2 gate of GShard, which drops its second expert at random."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from moesim.base.errors import PluginError
from moesim.base.registry import register
from moesim.facts.contracts import Choose
from moesim.facts.routing import LayerRouting
from moesim.facts.scenario import Setting
from moesim.models.gate.select import chosen, largest, softmax


@register("gate", "gshard_top2")
@dataclass(frozen=True, slots=True, kw_only=True)
class GShardTop2:
    """Choose the two best experts, and use the second with a probability of twice its gate weight.

    The weights are the two probabilities divided by their sum; the second is used if 2 g2 exceeds a uniform number, so always when both are
    equal, and rarely when the first is sure. The first keeps its weight either way.

    Notes
    -----
    Source: GShard, arXiv:2006.16668, algorithm 1, where the draw comes before the second expert's capacity is counted, as here. FastMoE
    (laekov/fastmoe, ``fmoe/gates/gshard_gate.py``) draws after it has pruned to capacity, and rows that the draw frees stay empty there.
    """

    def begin(self, setting: Setting) -> Choose:
        """Return the gate for one run; it draws from the stream ``gate, gshard_top2, step, layer``.

        Raises
        ------
        PluginError
            If the model's tokens do not make two choices.
        """
        who = "gate 'gshard_top2'"
        if setting.model.top_k != 2:
            raise PluginError(f"{who} makes 2 choices per token, but the model has top_k {setting.model.top_k}; use gate 'topk'")

        def choose(routing: LayerRouting, *, step: int, moe_layer: int) -> LayerRouting:
            logits = routing.need_scores(who).astype(np.float32)
            ids = largest(logits, 2, who)
            weights = softmax(np.take_along_axis(logits, ids, axis=1))
            draws = setting.rng("gate", "gshard_top2", step, moe_layer).random(len(ids), dtype=np.float32)
            unused = 2 * weights[:, 1] <= draws
            ids[unused, 1] = -1
            weights[unused, 1] = 0
            return chosen(routing, ids, weights)

        return choose
