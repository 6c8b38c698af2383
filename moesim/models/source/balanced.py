"""Perfectly balanced routing: the target that policies are measured against."""

from __future__ import annotations

from dataclasses import dataclass
from math import gcd
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.base.registry import register
from moesim.facts.arrays import Ints
from moesim.facts.contracts import Draw
from moesim.facts.routing import LayerRouting, Routing
from moesim.facts.scenario import Setting
from moesim.models.source.on_demand import LayersOnDemand


def prime_factors(number: int) -> list[int]:
    """Return the prime factors, smallest first, repeated as often as they divide.

    Examples
    --------
    >>> prime_factors(12)
    [2, 2, 3]
    """
    factors = []
    factor = 2
    while number > 1:
        while number % factor == 0:
            factors.append(factor)
            number //= factor
        factor += 1
    return factors


def spread_order(rng: np.random.Generator, experts: int) -> Ints:
    """Return int[E], an order of the experts that visits every block of a contiguous placement in turn.

    Notes
    -----
    The van der Corput sequence in the mixed radix of the prime factors of E, with the digits permuted at random. Any W neighbours
    of the order (taken as a ring) lie in W different blocks of E / W experts, for every W that is a product of the first few prime
    factors: for a power of two, every W.
    """
    position = np.arange(experts)
    order = np.zeros(experts, dtype=np.int64)
    block = experts
    for factor in prime_factors(experts):
        block //= factor
        order += rng.permutation(factor)[position % factor] * block
        position //= factor
    return order


def balanced_ids(rng: np.random.Generator, *, gpus: int, tokens: int, experts: int, top_k: int) -> NDArray[Any]:
    """Return int32[gpus * tokens, k], distinct experts for each token, equal loads for every expert.

    Loads differ by at most one route within each source GPU, and by at most one over any run of consecutive GPUs.

    Notes
    -----
    As many tokens of a GPU as possible are made in rounds of lcm(E, k) routes: a round lays a random order of the experts end to
    end and cuts it into tokens, so every expert is used equally and partners are random. What does not fill a round takes the next
    routes of one ring of experts that all GPUs walk along (see :func:`spread_order`); a GPU deals its share, grouped by expert, one
    choice to each of its tokens in turn, so that the copies of an expert land on different tokens.
    """
    period = experts // gcd(experts, top_k)
    rounds, rest = divmod(tokens, period)
    parts = []
    if rounds:
        orders = rng.permuted(np.tile(np.arange(experts, dtype=np.int32), (gpus * rounds, 1)), axis=1)
        parts.append(orders[:, np.arange(period * top_k) % experts].reshape(gpus, rounds * period, top_k))
    if rest:
        ring = spread_order(rng, experts)
        start = int(rng.integers(experts)) + np.arange(gpus)[:, None] * (rest * top_k)
        share = ring[(start + np.arange(rest * top_k)) % experts]
        order = rng.permuted(np.tile(np.arange(experts), (gpus, 1)), axis=1)
        place = np.sort(np.take_along_axis(np.argsort(order, axis=1), share, axis=1), axis=1)
        dealt = np.take_along_axis(order, place, axis=1).reshape(gpus, top_k, rest)
        parts.append(dealt.transpose(0, 2, 1).astype(np.int32))
    return np.ascontiguousarray(np.concatenate(parts, axis=1).reshape(gpus * tokens, top_k))


def balanced_tokens(rng: np.random.Generator, token_start: Ints, *, experts: int, top_k: int) -> NDArray[Any]:
    """Return int32[T, k] as :func:`balanced_ids` does, for GPUs that may have unequally many tokens.

    Parameters
    ----------
    rng : numpy.random.Generator
    token_start : int[G + 1]
        The bounds of each GPU's tokens.
    experts, top_k : int
        E and k.

    Notes
    -----
    Where GPUs have unequally many tokens, those of a step are made as if they were one GPU's, and cut where a GPU ends. Loads still differ
    by at most one route over the step; over the tokens of one GPU they are only nearly even.
    """
    each = np.diff(token_start)
    if each.size and (each == each[0]).all():
        return balanced_ids(rng, gpus=each.size, tokens=int(each[0]), experts=experts, top_k=top_k)
    return balanced_ids(rng, gpus=1, tokens=int(token_start[-1]), experts=experts, top_k=top_k)


@register("source", "balanced")
@dataclass(frozen=True, slots=True, kw_only=True)
class Balanced:
    """Give every expert the same load, from every source GPU and overall, up to rounding.

    Tokens have distinct experts, and every contiguous block of experts has its equal share, so no rank idles (synthetic loads of
    two serving engines left half the ranks without work: sgl-project/sglang 37741, vllm-project/afd-plugin 156). Which experts
    share a token is random and differs between layers and steps. Every choice has gate weight 1 / k.
    """

    def begin(self, setting: Setting) -> Draw:
        """Return the draws of one run."""
        model = setting.model

        def draw(step: int) -> Routing:
            token_start = setting.token_start(step)

            def layer(index: int) -> LayerRouting:
                rng = setting.rng("source", "balanced", step, index)
                ids = balanced_tokens(rng, token_start, experts=model.experts, top_k=model.top_k)
                weights = np.full(ids.shape, 1.0 / model.top_k, dtype=np.float32)
                return LayerRouting.of_tokens(ids, token_start, model.experts, weights=weights)

            return Routing(layers=LayersOnDemand(layer, len(model.moe_layers)), basis="assumed")

        return draw
