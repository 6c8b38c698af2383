"""Expert popularity from a log-normal law."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from moesim.base.fields import NotNegative
from moesim.base.registry import register
from moesim.facts.arrays import Floats
from moesim.facts.contracts import Draw
from moesim.facts.scenario import Setting
from moesim.models.source.popular import Redraw, begin_popular


@register("source", "lognormal")
@dataclass(frozen=True, slots=True, kw_only=True)
class LogNormal:
    """Draw each expert's popularity from a log-normal law, then each token's k distinct experts by popularity.

    Parameters
    ----------
    sigma : float
        Standard deviation of the logarithm of popularity; 0 makes all experts equally popular.
    redraw : str
        ``run``: an expert keeps its popularity for the whole run; ``step``: new popularities in every step.

    Notes
    -----
    deepseek-ai/DeepEP pull request 393 found the log-normal law the closest of several to the loads of DeepSeek-V3's experts on
    MMLU-Pro. Tokens choose without replacement (Plackett-Luce), so that the loads follow popularity only approximately: no expert
    takes more than one route of a token, which caps it at E / k times the mean.
    """

    sigma: NotNegative = 1.0
    redraw: Redraw = "run"

    def begin(self, setting: Setting) -> Draw:
        """Return the draws of one run."""
        experts = setting.model.experts

        def popularity(rng: np.random.Generator) -> Floats:
            return np.asarray(self.sigma * rng.standard_normal(experts))

        return begin_popular("lognormal", setting, popularity, self.redraw)
