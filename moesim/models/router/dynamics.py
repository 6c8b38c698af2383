"""One layer's router from one training step to the next: what its choices, losses and noise do to its logits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.facts.arrays import Floats, Ints
from moesim.models.gate.losses import probabilities


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """How fast a router changes, per training step and in units of the noise of a token's logits (1).

    ``feedback``: an expert that gets x times the mean load gains ``feedback * (x - 1)``: it sees more tokens, learns more from them, and is
    chosen more. ``domain_feedback``: the same for the tokens of one domain, beyond what all domains have in common. ``gain``: a gradient of
    a loss with respect to the offset of an expert moves it by ``-gain`` times the gradient. ``decay``: the share of all offsets that is
    lost. ``drift``: the standard deviation of a random walk, from everything else that training changes.
    """

    feedback: float
    domain_feedback: float
    gain: float
    decay: float
    drift: float


@dataclass(slots=True, kw_only=True)
class RouterState:
    """The offsets of one layer: float[E] of every token, float[D, E] of the tokens of each domain beside."""

    offsets: Floats
    domains: Floats

    def logits(self, domain: Ints, noise: NDArray[Any]) -> NDArray[Any]:
        """Return float32[T, E] from int[T] and float[T, E]."""
        return np.asarray(noise + (self.offsets + self.domains).astype(np.float32)[domain], dtype=np.float32)


def balance_gradient(likely: Floats, counts: Ints, group: Ints, top_k: int) -> Floats:
    """Return float[T, E], the gradient of the balance loss (coefficient 1) with respect to every logit.

    Parameters
    ----------
    likely : float[T, E]
        Softmax probabilities.
    counts : int[N, E]
        Routes to each expert from the tokens of each group.
    group : int[T]
        The group of each token: all tokens of a step, those of a GPU, or those of a sequence.
    top_k : int
        k.

    Notes
    -----
    The loss of one group of n tokens is L = E sum_e f_e P_e with f_e = c_e / (n k), a constant to the gradient, and P_e the mean of p_te;
    so dL/dz_te = (E / n) p_te (f_e - sum_i f_i p_ti). Losses of groups are averaged by their tokens, so n becomes T. Fedus et al.,
    arXiv:2101.03961, equation 4, through the derivative of the softmax.
    """
    tokens, experts = likely.shape
    sizes = np.bincount(group, minlength=len(counts))
    share = counts / np.maximum(sizes * top_k, 1)[:, None]
    here = share[group]
    return np.asarray(experts / tokens * likely * (here - (here * likely).sum(axis=1, keepdims=True)))


def z_gradient(likely: Floats, logits: Floats) -> Floats:
    """Return float[T, E], the gradient of the router z-loss (coefficient 1) with respect to every logit: (2 / T) lse_t p_te.

    Source: Zoph et al., arXiv:2202.08906, equation 5.
    """
    top = logits.max(axis=1, keepdims=True)
    total = np.log(np.exp(logits - top).sum(axis=1, keepdims=True)) + top
    return np.asarray(2.0 / len(logits) * total * likely)


def advance(
    state: RouterState,
    rates: Rates,
    *,
    logits: Floats,
    domain: Ints,
    chosen: Ints,
    counted: Ints,
    group: Ints,
    top_k: int,
    balance: float,
    z: float,
    scoring: str,
    walk: Floats,
) -> None:
    """Change a layer's router by one training step, in place.

    Parameters
    ----------
    state : RouterState
    rates : Rates
    logits : float[T, E]
        Of the step's tokens.
    domain : int[T]
        Of each token.
    chosen : int[T, k]
        What the gate chose; -1 for nothing.
    counted : int[E]
        Routes that experts learned from: those kept, where a rule drops.
    group : int[T]
        Over which tokens the balance loss is taken.
    top_k : int
    balance, z : float
        Coefficients of the losses in this step.
    scoring : str
        Of the loss.
    walk : float[E]
        Standard normal numbers.
    """
    tokens, experts = logits.shape
    counts, by_domain = _counts(chosen, domain, len(state.domains), experts)
    mean = counted.sum() / experts
    excess = counted / mean - 1.0 if mean else np.zeros(experts)
    push = rates.feedback * excess
    all_over = counts / max(counts.mean(), 1e-300)
    own = by_domain / np.maximum(by_domain.mean(axis=1, keepdims=True), 1e-300)
    local = np.where(by_domain.sum(axis=1, keepdims=True) > 0, rates.domain_feedback * (own - all_over), 0.0)
    if balance or z:
        likely = probabilities(logits, scoring)
        slope = np.zeros((tokens, experts))
        if balance:
            # The frameworks take plain top-k of the scores for the loss, whatever the gate does (biases, groups, noise).
            plain = np.argpartition(-logits, top_k - 1, axis=1)[:, :top_k]
            groups = int(group.max()) + 1
            per_group = np.bincount((group[:, None] * experts + plain).ravel(), minlength=groups * experts).reshape(groups, experts)
            slope += balance * balance_gradient(likely, per_group, group, top_k)
        if z:
            slope += z * z_gradient(likely, logits)
        push = push - rates.gain * slope.sum(axis=0)
        for number in range(len(local)):
            local[number] -= rates.gain * slope[domain == number].sum(axis=0)
    state.offsets = state.offsets * (1.0 - rates.decay) + push + rates.drift * walk
    state.domains = state.domains * (1.0 - rates.decay) + local


def _counts(chosen: Ints, domain: Ints, domains: int, experts: int) -> tuple[Ints, Ints]:
    """Return int[E] and int[D, E], the routes to each expert, of all tokens and of the tokens of each domain."""
    place = (domain[:, None] * experts + chosen)[chosen >= 0]
    by_domain = np.bincount(place, minlength=domains * experts).reshape(domains, experts)
    return by_domain.sum(axis=0), by_domain
