"""The top-2 gate of DeepSpeed, which samples its second expert."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.base.errors import PluginError
from moesim.base.fields import Flag
from moesim.base.registry import register
from moesim.facts.contracts import Choose
from moesim.facts.routing import LayerRouting
from moesim.facts.scenario import Setting
from moesim.models.gate.select import chosen, largest, softmax


@register("gate", "deepspeed_top2")
@dataclass(frozen=True, slots=True, kw_only=True)
class DeepSpeedTop2:
    """Choose the best expert, and a second one at random with the router's probabilities among the others.

    The weights are the softmax probabilities over all experts, without noise; the capacity rule ``deepspeed`` renormalises them.

    Parameters
    ----------
    sample_second : bool
        ``top2_2nd_expert_sampling``; if false the second expert is the second best.

    Notes
    -----
    Source: deepspeedai/DeepSpeed, ``deepspeed/moe/sharded_moe.py``, ``top2gating``: the largest of logits plus Gumbel noise is a
    sample of their softmax (the Gumbel-max trick).
    """

    sample_second: Flag = True

    def begin(self, setting: Setting) -> Choose:
        """Return the gate for one run; it draws from the stream ``gate, deepspeed_top2, step, layer``.

        Raises
        ------
        PluginError
            If the model's tokens do not make two choices.
        """
        if setting.model.top_k != 2:
            raise PluginError(
                f"gate 'deepspeed_top2' makes 2 choices per token, but the model has top_k {setting.model.top_k}; use gate 'topk'"
            )

        def choose(routing: LayerRouting, *, step: int, moe_layer: int) -> LayerRouting:
            logits = routing.need_scores("gate 'deepspeed_top2'").astype(np.float32)
            noise = None
            if self.sample_second:
                noise = setting.rng("gate", "deepspeed_top2", step, moe_layer).gumbel(size=logits.shape).astype(np.float32)
            ids = two_choices(logits, noise)
            return chosen(routing, ids, np.take_along_axis(softmax(logits), ids, axis=1))

        return choose


def two_choices(logits: NDArray[Any], noise: NDArray[Any] | None) -> NDArray[np.int32]:
    """Return int32[T, 2]: the expert of the largest logit, and of the largest of logits plus noise among the others.

    Parameters
    ----------
    logits : float[T, E]
        Of the router.
    noise : float[T, E] or None
        Gumbel noise; None for none. Equal sums: the lower expert id.
    """
    first = largest(logits, 1, "gate 'deepspeed_top2'")
    others = logits.copy() if noise is None else logits + noise
    np.put_along_axis(others, first, -np.inf, axis=1)
    return np.concatenate([first, largest(others, 1, "gate 'deepspeed_top2'")], axis=1)
