"""Quantile balancing: a bias per expert that would have balanced the last step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray

from moesim.base.errors import PluginError
from moesim.base.fields import Choice, Number
from moesim.base.registry import register
from moesim.facts.contracts import Choose
from moesim.facts.routing import LayerRouting
from moesim.facts.scenario import Setting
from moesim.models.gate.memory import Memory, Vector
from moesim.models.gate.scoring import SCORINGS, Scored
from moesim.models.gate.select import blocks, chosen, largest

WHO = "gate 'quantile'"


@register("gate", "quantile")
@dataclass(frozen=True, slots=True, kw_only=True)
class Quantile(Scored):
    """Choose by score minus a bias that is set, after every step, to what that expert's tokens would have had to pay for a fair share.

    With alpha_t the (k+1)-th best of token t's scores minus the biases, the next bias of an expert is the (T k / E + 1)-th largest of
    its scores minus alpha over the T tokens of a GPU; the GPUs' answers are averaged, mixed with the present bias and shifted to mean 0.
    The bias starts at 0; gate weights come from the scores without it.

    Parameters
    ----------
    ema : float
        The share of the present bias in the next; 0 forgets it. Less than 1.

    Notes
    -----
    Source: NVIDIA/Megatron-LM at d98e8a64ddf3, ``moe_utils.py``, ``qb_dual_update``, and ``distributed/finalize_model_grads.py``,
    ``_update_router_qb_beta`` (``moe_router_quantile_balancing``); used for Kimi K3. Like there, T k must be a multiple of E, and there
    are no groups. Where a recording deals other numbers of tokens than ``tokens_per_gpu``, T k / E is rounded down; a GPU with so few
    that nothing is left has no say.
    """

    scoring: Annotated[str, Choice(SCORINGS)] = "sigmoid"
    ema: Annotated[float, Number(0.0, 1.0)] = 0.0

    def begin(self, setting: Setting) -> Choose:
        """Return the gate for one run; the biases are its own.

        Raises
        ------
        PluginError
            If the tokens of a GPU cannot be shared out evenly, or every token has every expert.
        """
        model, tokens = setting.model, setting.workload.tokens_per_gpu
        if model.top_k == model.experts:
            raise PluginError(f"{WHO}: every token has all {model.experts} experts: there is nothing to balance; use gate 'topk'")
        if tokens * model.top_k % model.experts:
            raise PluginError(
                f"{WHO}: {tokens} tokens per GPU with {model.top_k} choices cannot be shared out evenly over {model.experts} experts; make "
                "tokens_per_gpu times top_k a multiple of the experts"
            )
        return QuantileRun(gate=self, top_k=model.top_k, memory=Memory(model.experts, self.next_bias))

    def next_bias(self, bias: Vector, asked: NDArray[Any], step: int = 0) -> Vector:  # noqa: ARG002 - what a memory tells
        """Return float32[E], the bias after a step in which the GPUs asked for float[E] on average."""
        mixed = np.float32(self.ema) * bias + np.float32(1 - self.ema) * asked
        return np.asarray(mixed - mixed.mean(dtype=np.float32), dtype=np.float32)


@dataclass(slots=True)
class QuantileRun:
    """The gate in one run, with its biases."""

    gate: Quantile
    top_k: int
    memory: Memory

    def __call__(self, routing: LayerRouting, *, step: int, moe_layer: int) -> LayerRouting:
        """Return the choices under the biases that earlier steps made."""
        bias = self.memory.at(step, moe_layer)
        scores = self.gate.score(routing.need_scores(WHO))
        more = largest(scores - bias, self.top_k + 1, WHO)
        ids = more[:, : self.top_k].copy()
        runner_up = np.take_along_axis(scores - bias, more[:, self.top_k :], axis=1)
        asked = [
            fair_price(scores[first:last] - runner_up[first:last], (last - first) * self.top_k // routing.experts)
            for first, last in blocks(routing)
            if (last - first) * self.top_k >= routing.experts
        ]
        if asked:
            self.memory.saw(np.asarray(np.mean(asked, axis=0, dtype=np.float32)), step=step, moe_layer=moe_layer)
        return chosen(routing, ids, self.gate.weigh(scores, ids))


def fair_price(surplus: NDArray[Any], share: int) -> NDArray[Any]:
    """Return float[E], the (share + 1)-th largest number of each column of float[T, E] ``surplus``: a bias that ``share`` tokens exceed."""
    place = len(surplus) - 1 - share
    return np.asarray(np.partition(surplus, place, axis=0)[place])
