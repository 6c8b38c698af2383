"""Drop rates of a random router against the capacity factor."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from moesim.base.stats import student_quantile
from moesim.base.streams import stream
from moesim.facts.arrays import Floats
from moesim.facts.profile import Profile, Section
from moesim.facts.routing import LayerRouting
from moesim.models.capacity.megatron import Megatron
from moesim.models.fitted.intervals import CONFIDENCE
from moesim.models.fitted.rows import Rows, count, labels, numbers
from moesim.models.source.plackett_luce import draw_uniform
from moesim.study.validation.table_kind import Prediction, prediction, register_table

DRAWS = 16
"""Batches that a prediction is the mean of: the rate of one batch of 32768 tokens scatters by 0.0006 at factor 1."""

LARGEST = 2**26
"""Tokens times experts of a batch that is drawn; a larger one is refused instead of filling the memory."""


@register_table
class DropRates:
    """Routes over ``ceil(factor T k / E)`` per expert, of tokens that choose k distinct experts at random, as a share of all routes.

    Predicted by the simulator itself: its uniform source and its capacity rule. The simple rule beside it takes the load of an expert as
    normal with the variance of a binomial one, ``T k/E (1 - k/E)``.
    """

    name = "drop_rate_random_router"
    files = ("drop_rate_random_router*.csv",)
    columns = ("num_tokens", "num_experts", "top_k", "capacity_factor", "avg_drop_rate")
    quantity = "fraction"

    def regime(self, rows: Rows) -> NDArray[np.str_]:
        """Return the band of the factor: below 1, at 1, above."""
        factor = numbers(rows, "capacity_factor")
        return np.asarray(np.where(factor < 1, "below 1", np.where(factor > 1, "above 1", "at 1")), dtype=np.str_)

    def group(self, rows: Rows) -> NDArray[np.str_]:
        """Return one label per router."""
        return labels(rows, ("num_tokens", "num_experts", "top_k"))

    def seconds(self, rows: Rows) -> Floats:
        """Return the dropped share."""
        return numbers(rows, "avg_drop_rate")

    def baseline(self, rows: Rows) -> tuple[str, Floats]:
        """Return the overflow of a normal variable beyond the capacity."""
        from scipy.special import ndtr

        tokens, experts, top_k, factor = _shape(rows)
        mean = tokens * top_k / experts
        spread = np.sqrt(mean * (1.0 - top_k / experts))
        at = (np.ceil(mean * factor) - mean) / np.where(spread > 0, spread, 1.0)
        density = np.exp(-0.5 * at**2) / np.sqrt(2 * np.pi)
        return "normal overflow", np.asarray(spread * (density - at * ndtr(-at)) / mean)

    def predict(self, rows: Rows, profiles: Mapping[str, Profile]) -> Prediction:  # noqa: ARG002 - counting needs no profile
        """Draw batches and apply the capacity rule."""
        values, low, high = (np.full(count(rows), np.nan) for _ in range(3))
        reasons = np.asarray([""] * count(rows), dtype=object)
        tokens, experts, top_k, factor = _shape(rows)
        routers = sorted({(int(t), int(e), int(k)) for t, e, k in zip(tokens, experts, top_k, strict=True)})
        for router in routers:
            which = np.flatnonzero((tokens == router[0]) & (experts == router[1]) & (top_k == router[2]))
            refused = _refused(*router)
            if refused:
                reasons[which] = refused
                continue
            batches = [_counts(*router, draw) for draw in range(DRAWS)]
            for row in which:
                if not factor[row] > 0:
                    reasons[row] = f"the capacity factor {factor[row]:g} is not above 0"
                    continue
                rule = Megatron(factor=float(factor[row]))
                rates = np.asarray([rule.apply(batch, top_k=router[2]).dropped.sum() / batch.routes for batch in batches])
                reach = student_quantile(DRAWS - 1, CONFIDENCE) * float(rates.std(ddof=1)) * float(np.sqrt(1 + 1 / DRAWS))
                values[row], low[row], high[row] = rates.mean(), max(rates.mean() - reach, 0.0), rates.mean() + reach
        return prediction(values, low, high, reasons=reasons, basis="exact")

    def fit(self, rows: Rows) -> dict[str, Section]:  # noqa: ARG002 - part of the contract
        """Return nothing: there is nothing to fit."""
        return {}


def _shape(rows: Rows) -> tuple[Floats, Floats, Floats, Floats]:
    return numbers(rows, "num_tokens"), numbers(rows, "num_experts"), numbers(rows, "top_k"), numbers(rows, "capacity_factor")


def _refused(tokens: int, experts: int, top_k: int) -> str:
    if tokens < 1 or experts < 1 or not 1 <= top_k <= experts:
        return f"{tokens} tokens that choose {top_k} of {experts} experts are no router"
    return "" if tokens * experts <= LARGEST else f"{tokens} tokens over {experts} experts are more than {LARGEST} scores"


def _counts(tokens: int, experts: int, top_k: int, draw: int) -> LayerRouting:
    """Return one batch as counts, which is all that the rule needs without weights."""
    ids = draw_uniform(stream(0, "validation", "drop rates", tokens, experts, top_k, draw), tokens=tokens, experts=experts, top_k=top_k)
    whole = LayerRouting.of_tokens(ids, [0, tokens], experts)
    return LayerRouting(experts=experts, token_start=whole.token_start, counts=whole.counts)
