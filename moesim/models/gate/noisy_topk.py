"""Top-k of noisy logits."""

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
from moesim.models.gate.scoring import Scored
from moesim.models.gate.select import chosen, largest
from moesim.models.router.coefficients import Changing, at_step

LAWS = ("normal", "gumbel", "uniform")


@register("gate", "noisy_topk")
@dataclass(frozen=True, slots=True, kw_only=True)
class NoisyTopK(Scored):
    """Add noise to every logit, then choose the k largest.

    Parameters
    ----------
    law : str
        ``normal``: a standard normal number times ``amount`` (Shazeer et al., V-MoE, Tutel). ``gumbel``: a standard Gumbel number
        times ``amount``; with 1 the first choice is a sample of the softmax (DeepSpeed's ``RSample``). ``uniform``: between plus and
        minus ``amount`` (FastMoE's ``SwitchGate``, 0.1).
    amount : float, list or None
        In units of logits; 1 / E by default, as in V-MoE and Tutel; or its corners ``[[step, amount], ...]``, straight lines between them.
    clean_weights : bool
        Let the gate weights come from the logits without noise, as with DeepSpeed's ``RSample``; by default they come from the noisy
        ones.

    Notes
    -----
    Sources: google-research/vmoe, ``vmoe/nn/routing.py``, ``NoisyTopExpertsPerItemRouter``; microsoft/tutel, ``gate_noise``;
    deepspeedai/DeepSpeed, ``sharded_moe.py``, ``top1gating``; laekov/fastmoe, ``fmoe/gates/switch_gate.py``, whose noise is 1 plus
    these draws: a constant changes no choice and no softmax.
    Shazeer et al. (arXiv:1701.06538, equation 4) let a second matrix give each logit's own amount of noise, softplus(x W_noise). A
    recording does not hold that, so the amount is one number here; an untrained matrix of zeros gives ln 2 = 0.69.
    """

    law: Annotated[str, Choice(LAWS)] = "normal"
    amount: Changing | None = None
    clean_weights: Flag = False

    def begin(self, setting: Setting) -> Choose:
        """Return the gate for one run; it draws from the stream ``gate, noisy_topk, step, layer``."""
        who, top_k = "gate 'noisy_topk'", setting.model.top_k

        def choose(routing: LayerRouting, *, step: int, moe_layer: int) -> LayerRouting:
            logits = routing.need_scores(who).astype(np.float32)
            amount = 1 / routing.experts if self.amount is None else at_step(self.amount, step)
            noisy = self.score(logits + draw(setting.rng("gate", "noisy_topk", step, moe_layer), self.law, amount, logits.shape))
            ids = largest(noisy, top_k, who)
            return chosen(routing, ids, self.weigh(self.score(logits) if self.clean_weights else noisy, ids))

        return choose


def draw(rng: np.random.Generator, law: str, amount: float, shape: tuple[int, ...]) -> NDArray[Any]:
    """Return float32 noise of one of :data:`LAWS`."""
    if law == "normal":
        unit = rng.standard_normal(shape, dtype=np.float32)
    elif law == "gumbel":
        # The logarithm of minus the logarithm of a uniform number; double precision keeps the tail that makes rare experts win.
        unit = rng.gumbel(size=shape).astype(np.float32)
    else:
        unit = 2 * rng.random(shape, dtype=np.float32) - 1
    return np.asarray(np.float32(amount) * unit)
