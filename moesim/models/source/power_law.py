"""Expert popularity from a power law, as aiconfigurator draws it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from moesim.base.fields import Positive
from moesim.base.registry import register
from moesim.facts.arrays import Floats
from moesim.facts.contracts import Draw
from moesim.facts.scenario import Setting
from moesim.models.source.popular import Redraw, begin_popular


def log_power_law(rng: np.random.Generator, *, size: int, alpha: float, low: float, high: float) -> Floats:
    """Return float[size], logarithms of numbers x between ``low`` and ``high`` with density proportional to ``x ** -alpha``.

    Notes
    -----
    By inversion of the distribution function; at alpha = 1 its limit, which is uniform in log x. ai-dynamo/aiconfigurator,
    ``docs/POWER_LAW_DISTRIBUTION.md`` section 3 and ``sample_power_law``.
    """
    uniform = rng.random(size)
    span = np.log(high / low)
    bend = (1.0 - alpha) * span
    if abs(bend) < 1e-9:
        return np.asarray(np.log(low) + uniform * span)
    return np.asarray(np.log(low) + np.log1p(uniform * np.expm1(bend)) / (1.0 - alpha))


@register("source", "power_law")
@dataclass(frozen=True, slots=True, kw_only=True)
class PowerLaw:
    """Draw each expert's popularity from a power law, then each token's k distinct experts by popularity.

    Parameters
    ----------
    alpha : float
        The exponent. The authors of the law name 1.01 a slight and 1.2 a moderate imbalance, and read 1.2 for Qwen3-235B.
    redraw : str
        ``run``: an expert keeps its popularity for the whole run; ``step``: new popularities in every step.

    Notes
    -----
    Popularity is a number between 1 and 0.8 T with density proportional to ``x ** -alpha``, T being the tokens of a step over all
    GPUs; between 0.01 and 2 when a step has no more routes than experts (ai-dynamo/aiconfigurator, ``power_law_logits_v3``). Every
    layer draws its own. Tokens then choose without replacement (Plackett-Luce), as aiconfigurator's ``sampled_power_law_logits``
    does, so that the loads follow popularity only approximately: no expert takes more than one route of a token, which caps it at E
    / k times the mean. Unlike there, the hottest rank is not moved to rank 0.
    """

    alpha: Positive = 1.2
    redraw: Redraw = "run"

    def begin(self, setting: Setting) -> Draw:
        """Return the draws of one run."""
        tokens = setting.gpus * setting.workload.tokens_per_gpu
        experts = setting.model.experts
        many = tokens * setting.model.top_k > experts
        low, high = (1.0, max(0.8 * tokens, 1.0)) if many else (0.01, 2.0)

        def popularity(rng: np.random.Generator) -> Floats:
            return log_power_law(rng, size=experts, alpha=self.alpha, low=low, high=high)

        return begin_popular("power_law", setting, popularity, self.redraw)
