"""Eight workloads that isolate one kind of imbalance each, W0 to W7 by name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray

from moesim.base.errors import UsageError
from moesim.base.fields import Choice, Count, Number
from moesim.base.registry import register
from moesim.facts.arrays import Floats, Ints
from moesim.facts.contracts import Draw
from moesim.facts.routing import LayerRouting, Routing
from moesim.facts.scenario import Setting
from moesim.models.source.balanced import balanced_tokens
from moesim.models.source.on_demand import LayersOnDemand
from moesim.models.source.plackett_luce import draw_popular_layer

WORKLOADS = (
    "W0_balanced",
    "W1_hot_expert_set",
    "W2_hot_rank",
    "W3_spread_hot_experts",
    "W4_source_ragged",
    "W5_zero_expert_rank",
    "W6_rotating_hotspot",
    "W7_burst",
)


def experts_of_rank(experts: int, ranks: int, rank: int) -> Ints:
    """Return the experts that a contiguous placement puts on a rank; the first ranks hold one more where it does not divide."""
    return np.asarray(np.array_split(np.arange(experts), ranks)[rank], dtype=np.int64)


def ragged_tokens(gpus: int, tokens: int, ratio: float) -> Ints:
    """Return int[G], tokens of each source GPU: a ramp whose last GPU has ``ratio`` times the tokens of the first, the sum as if even.

    Rounded by largest remainders, so the ratio holds up to one token.
    """
    ramp = np.linspace(1.0, ratio, gpus) if gpus > 1 else np.ones(1)
    exact = ramp * (gpus * tokens / ramp.sum())
    whole = np.floor(exact).astype(np.int64)
    rest = gpus * tokens - int(whole.sum())
    whole[np.argsort(whole - exact, kind="stable")[:rest]] += 1
    return np.asarray(whole, dtype=np.int64)


@register("source", "imbalance")
@dataclass(frozen=True, slots=True, kw_only=True)
class Imbalance:
    """Play one of the workloads W0 to W7, each of which isolates one kind of imbalance.

    The names and what each one isolates are those of a public benchmark proposal (NVIDIA/Megatron-LM pull request 7488); how large an
    imbalance is, is said here. H is the number of experts that one rank holds in a contiguous placement. A hot expert is ``heat`` times as
    popular as any other, and tokens choose by popularity without replacement, so no expert gets more than one route of a token.

    - ``W0_balanced``: every expert has the same load. The control.
    - ``W1_hot_expert_set``: H experts, drawn at random in each layer, are hot. Heat of experts, wherever they are.
    - ``W2_hot_rank``: the H experts of rank 0 are hot. As hot as in W1, and all in one place.
    - ``W3_spread_hot_experts``: H hot experts at equal distances, so every rank has its share. As hot as in W1, placed well.
    - ``W4_source_ragged``: experts are chosen evenly, but GPUs start with unequal numbers of tokens: a ramp from the first GPU to the
      last, which has ``heat`` times as many. Their mean is ``tokens_per_gpu``.
    - ``W5_zero_expert_rank``: the experts of the last rank get nothing; the others are equally popular.
    - ``W6_rotating_hotspot``: as W2, but after every ``period`` steps the next rank is the hot one. Plans made from the past go stale.
    - ``W7_burst``: as W0, but the last of every ``period`` steps is W2. Means over steps hide it.

    Parameters
    ----------
    workload : str
        Which one.
    heat : float
        How many times as popular a hot expert is, or, in W4, how many times as many tokens the last GPU has. An assumption: measured hot
        experts have 3 to 11 times the mean load.
    period : int
        Steps, in W6 and W7.

    Notes
    -----
    Which experts are hot depends on the seed, the layer and the step alone. Ranks are those of ``parallel.ep`` in a contiguous layout.
    """

    workload: Annotated[str, Choice(WORKLOADS)]
    heat: Annotated[float, Number(1.0, 1e6)] = 4.0
    period: Count = 4

    def begin(self, setting: Setting) -> Draw:
        """Return the draws of one run.

        Raises
        ------
        UsageError
            In W5, if the ranks that are left have fewer experts than a token chooses, or if there is one rank only; in W4, if the workload
            has unequal ranks of its own.
        """
        model, gpus, tokens = setting.model, setting.gpus, setting.workload.tokens_per_gpu
        ranks = setting.parallel.ep
        ragged: Ints | None = None
        if self.workload == "W4_source_ragged":
            if setting.workload.ranks is not None:
                raise UsageError("routing.workload W4_source_ragged gives GPUs unequal tokens itself: leave workload.ranks out")
            ragged = np.concatenate(([0], np.cumsum(ragged_tokens(gpus, tokens, self.heat)))).astype(np.int64)
        alive = np.arange(model.experts)
        if self.workload == "W5_zero_expert_rank":
            alive = np.setdiff1d(alive, experts_of_rank(model.experts, ranks, ranks - 1))
            if alive.size < model.top_k:
                raise UsageError(
                    f"routing.workload W5_zero_expert_rank leaves {alive.size} of {model.experts} experts to choose from, and a token of "
                    f"{model.name} chooses {model.top_k}: use more ranks (parallel.ep is {ranks}) or another workload"
                )

        def draw(step: int) -> Routing:
            token_start = setting.token_start(step) if ragged is None else ragged

            def layer(index: int) -> LayerRouting:
                rng = setting.rng("source", "imbalance", step, index)
                hot = self._hot(setting, step, index)
                if hot is None and self.workload in {"W0_balanced", "W7_burst"}:
                    ids = balanced_tokens(rng, token_start, experts=model.experts, top_k=model.top_k)
                    weights = np.full(ids.shape, 1.0 / model.top_k, dtype=np.float32)
                else:
                    ids, weights = self._chosen(rng, hot, alive, tokens=int(token_start[-1]), top_k=model.top_k)
                return LayerRouting.of_tokens(ids, token_start, model.experts, weights=weights)

            return Routing(layers=LayersOnDemand(layer, len(model.moe_layers)), basis="assumed")

        return draw

    def _hot(self, setting: Setting, step: int, layer: int) -> Ints | None:
        """Return the hot experts of a layer in a step; None where none is hotter than the others."""
        experts, ranks = setting.model.experts, setting.parallel.ep
        many = len(experts_of_rank(experts, ranks, 0))
        if self.workload == "W1_hot_expert_set":
            return np.sort(setting.rng("source", "imbalance", "hot", layer).permutation(experts)[:many])
        if self.workload == "W3_spread_hot_experts":
            return np.asarray(np.arange(many) * experts // many, dtype=np.int64)
        if self.workload == "W6_rotating_hotspot":
            return experts_of_rank(experts, ranks, step // self.period % ranks)
        if self.workload == "W2_hot_rank" or (self.workload == "W7_burst" and step % self.period == self.period - 1):
            return experts_of_rank(experts, ranks, 0)
        return None

    def _chosen(
        self, rng: np.random.Generator, hot: Ints | None, alive: Ints, *, tokens: int, top_k: int
    ) -> tuple[NDArray[Any], NDArray[Any]]:
        log_popularity: Floats = np.zeros(alive.size)
        if hot is not None:
            log_popularity[np.isin(alive, hot)] = np.log(self.heat)
        ids, weights = draw_popular_layer(rng, log_popularity, tokens=tokens, top_k=top_k)
        return alive.astype(np.int32)[ids], weights
