"""One layer's router from one training step to the next: what its choices, losses and noise do to its logits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.facts.arrays import Floats, Ints
from moesim.models.gate.losses import probabilities
from moesim.models.gate.scoring import score_by
from moesim.models.router.law import Law

Singles = NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Tokens:
    """What the T tokens of a step are: int[T] each, the same in all layers.

    Parameters
    ----------
    domain : int[T]
    sequence : int[T]
        From 0, over all GPUs.
    kind : int[T] or None
        Times domains: the j-th kind of domain m is m J + j. None where tokens have no kinds.
    """

    domain: Ints
    sequence: Ints
    kind: Ints | None = None


@dataclass(slots=True, kw_only=True)
class RouterState:
    """The offsets of one layer: float[E] of every token, float[D, E] of the tokens of each domain beside.

    ``driven`` float[E] and ``kinds`` float32[D J, E] are in units of their standard deviations and stay; None where there are none.
    ``grown`` float[E] is what training has added to the variance of the tokens' own part of each expert's logits.
    ``moved`` float32[D J, E] is what gradients and feedback have added to the logits of the tokens of each kind; None where they add
    nothing. ``lately`` is the load of late, over its mean: float[E], or 1 for all.
    """

    offsets: Floats
    domains: Floats
    grown: Floats | float = 0.0
    driven: Floats | None = None
    kinds: Singles | None = None
    moved: Singles | None = None
    lately: Floats | float = 1.0

    def logits(self, tokens: Tokens, noise: Singles, topics: Singles | None, *, law: Law) -> Singles:
        """Return float32[T, E].

        Parameters
        ----------
        tokens : Tokens
        noise : float32[T, E]
            Standard normal numbers; used up: the answer is made in their place.
        topics : float32[S, E] or None
            Standard normal numbers for sequences, where ``law.sequence_share`` is not 0.
        law : Law
            For the tokens' own part: its scale, and the shares of kinds and sequences in it.
        """
        rows, of_token = (self.offsets + self.domains).astype(np.float32), tokens.domain
        alone = 1.0 - law.sequence_share
        spread = np.sqrt(law.scale**2 + self.grown).astype(np.float32)
        if self.kinds is not None and tokens.kind is not None:
            each = len(self.kinds) // len(rows)
            rows = np.repeat(rows, each, axis=0) + np.float32(law.kind_share**0.5) * spread * self.kinds
            if self.moved is not None:
                rows += self.moved
            of_token = tokens.kind
            alone -= law.kind_share
        noise *= np.float32(max(alone, 0.0) ** 0.5) * spread
        noise += rows[of_token]
        if topics is not None:
            noise += (np.float32(law.sequence_share**0.5) * spread * topics)[tokens.sequence]
        return noise


def balance_gradient(likely: NDArray[Any], counts: Ints, group: Ints, top_k: int, *, steepness: NDArray[Any] | None = None) -> NDArray[Any]:
    """Return float[T, E], the gradient of the balance loss (coefficient 1) with respect to every logit.

    Parameters
    ----------
    likely : float[T, E]
        Scores over the sum of a token's scores: softmax probabilities.
    counts : int[N, E]
        Routes to each expert from the tokens of each group.
    group : int[T]
        The group of each token: all tokens of a step, those of a GPU, or those of a sequence.
    top_k : int
        k.
    steepness : float[T, E], optional
        Of other scores than those of the softmax: d ln s / dz (:func:`steepness_of`).

    Notes
    -----
    The loss of one group of n tokens is L = E sum_e f_e P_e with f_e = c_e / (n k), a constant to the gradient, and P_e the mean of p_te;
    so dL/dz_te = (E / n) p_te (f_e - sum_i f_i p_ti), times d ln s_te / dz_te where p = s / sum s of scores s(z). Losses of groups are
    averaged by their tokens, so n becomes T. Fedus et al., arXiv:2101.03961, equation 4, through the derivative of the scores.
    """
    tokens, experts = likely.shape
    sizes = np.bincount(group, minlength=len(counts))
    share = (experts / tokens * counts / np.maximum(sizes * top_k, 1)[:, None]).astype(likely.dtype)
    here = share[group]
    here -= np.einsum("te,te->t", here, likely)[:, None]
    here *= likely
    if steepness is not None:
        here *= steepness
    return np.asarray(here)


def steepness_of(logits: NDArray[Any], scoring: str) -> NDArray[Any] | None:
    """Return float[T, E], d ln s / dz of the scores of a router; None for the softmax, whose exponentials have 1.

    Sigmoid: 1 - sigmoid(z). Root of softplus: sigmoid(z) / (2 softplus(z)).
    """
    if scoring == "softmax":
        return None
    rise = score_by("sigmoid", logits.astype(np.float32))
    return np.asarray(1.0 - rise if scoring == "sigmoid" else rise / (2.0 * np.logaddexp(np.float32(0), logits.astype(np.float32))))


def z_gradient(likely: NDArray[Any], logits: NDArray[Any]) -> NDArray[Any]:
    """Return float[T, E], the gradient of the router z-loss (coefficient 1) with respect to every logit: (2 / T) lse_t p_te, p the softmax.

    Source: Zoph et al., arXiv:2202.08906, equation 5.
    """
    top = logits.max(axis=1, keepdims=True)
    total = np.log(np.exp(logits - top).sum(axis=1, keepdims=True)) + top
    return np.asarray(2.0 / len(logits) * total * likely)


def advance(
    state: RouterState,
    law: Law,
    *,
    logits: NDArray[Any],
    domain: Ints,
    chosen: Ints,
    counted: Ints,
    group: Ints,
    top_k: int,
    balance: float,
    z: float,
    scoring: str,
    walk: Floats,
    kind: Ints | None = None,
    pace: float = 1.0,
    pull: float = 1.0,
    growth: float = 0.0,
    plain: bool = False,
    noise: float = 0.0,
    dropped: float = 0.0,
) -> None:
    """Change a layer's router by one training step, in place.

    Parameters
    ----------
    state : RouterState
    law : Law
    logits : float[T, E]
        Of the step's tokens.
    domain : int[T]
        Of each token.
    chosen : int[T, k]
        What the gate chose; -1 for nothing.
    counted : int[E]
        Routes that feed back: those chosen, or those kept.
    group : int[T]
        Over which tokens the balance loss is taken.
    top_k : int
    balance, z : float
        Coefficients of the losses in this step.
    scoring : str
        Of the loss.
    walk : float[1 + D, E]
        Standard normal numbers: for the offsets, and for those of domains.
    kind : int[T], optional
        Of each token, where gradients move what kinds have in common.
    pace : float
        What feedback is multiplied by in this step.
    pull : float
        What drive is multiplied by in this step.
    growth : float
        What this step adds to the variance of the tokens' own part, for an expert of mean load.
    plain : bool
        Whether the gate chose the top-k of the logits, so that the loss counts the same.
    noise : float
        Standard deviation of what was added to logits before the gate chose.
    dropped : float
        The share of routes that were dropped.
    """
    stirred = 1.0 + law.noise_push * noise
    stronger = stirred + law.drop_push * dropped
    pace, pull, growth = pace * stronger, pull * stronger, growth * (1.0 + law.noise_growth * noise)
    counts, by_domain = _counts(chosen, domain, len(state.domains), logits.shape[1])
    better = advantage(counted)
    push = pace * law.feedback * (1.0 + law.sigmoid_push * (scoring == "sigmoid")) * better
    # 2 x / (x + 1); but losses have a gradient for every expert, and an optimiser that divides by its size moves all of them alike.
    reached = (balance + z) / (balance + z + law.reach) if balance or z else 0.0
    state.grown = state.grown + growth * (1.0 + 0.5 * (1.0 - reached) * better)
    state.lately = state.lately + law.memory * (counted / max(counted.mean(), 1.0) - state.lately)
    answer = 1.0 if law.floor is None else 1.0 / np.sqrt(state.lately + law.floor)
    of_kinds: NDArray[Any] | None = None
    if state.moved is not None and kind is not None:
        known = law.kind_feedback > 0
        of_kinds = law.kind_feedback * _shares(chosen, kind, state.moved.shape) if known else np.zeros_like(state.moved)
    if state.driven is not None:
        push += pull * law.drive * state.driven
    local = pace * law.domain_feedback * (advantage(by_domain) - advantage(counts))
    local[by_domain.sum(axis=1) == 0] = 0.0
    if balance or z:
        by_token = _slope(logits, chosen if plain else None, group, top_k, balance, z, scoring)
        slope = np.asarray(_sums(by_token, domain, len(state.domains)), dtype=np.float64)
        # All of a domain's gradients move its own offsets; together they move those of the layer.
        together = slope.sum(axis=0)
        mean = together.mean()
        # Neglected experts are lowered furthest, since their weights are used to small gradients; those in use are raised.
        alike = answer if mean > 0 or law.floor is None else 1.0 + 0.5 * _advantage_of(state.lately)
        push -= _limited(law.gain * (answer * together + (law.common - 1.0) * mean * alike), law.limit)
        local -= _limited((law.gain if law.domain_gain is None else law.domain_gain) * answer * slope, law.limit)
        if of_kinds is not None:
            of_kinds = of_kinds - law.kind_gain * answer * _sums(by_token, np.asarray(kind), len(of_kinds))
    if state.moved is not None and of_kinds is not None:
        each = of_kinds.reshape(len(state.domains), -1, of_kinds.shape[1])
        each[:, : law.shared_kinds] = each[:, : law.shared_kinds].sum(axis=0)  # one kind, whatever the domain
        state.moved *= np.float32(1.0 - law.decay)
        state.moved += of_kinds.astype(np.float32)
    state.offsets = state.offsets * (1.0 - law.decay) + push + stirred * law.drift * walk[0]
    state.domains = state.domains * (1.0 - law.decay) + local + stirred * law.domain_drift * walk[1:]


def advantage(counts: Ints) -> Floats:
    """Return float[..., E], 2 (x - 1) / (x + 1) of loads int[..., E] that are x times their mean; 0 without load.

    It is x - 1 near balance, -2 for an expert without tokens and never more than 2: what an expert learns from its tokens has diminishing
    returns, and optimisers divide gradients by their size.
    """
    mean = counts.mean(axis=-1, keepdims=True)
    return np.asarray(np.divide(2.0 * (counts - mean), counts + mean, out=np.zeros(counts.shape), where=counts + mean > 0))


def _advantage_of(load: Floats | float) -> Floats:
    """Return float[E], 2 (x - 1) / (x + 1) of loads x over their mean."""
    return np.asarray(2.0 * (load - np.float64(1.0)) / (load + np.float64(1.0)))


def _shares(chosen: Ints, kind: Ints, shape: tuple[int, ...]) -> Floats:
    """Return float[D J, E], routes of each kind to each expert beyond an equal part, over the number of tokens."""
    kinds, experts = shape
    place = kind[:, None] * experts + chosen
    routes = np.bincount(place[chosen >= 0], minlength=kinds * experts).reshape(kinds, experts)
    return np.asarray((routes - routes.mean(axis=1, keepdims=True)) / len(chosen))


def _limited(change: Floats, limit: float | None) -> Floats:
    """Return x / sqrt(1 + (x / limit)^2): x where it is small, and never more than the limit."""
    return change if limit is None else change / np.sqrt(1.0 + (change / limit) ** 2)


def _slope(logits: NDArray[Any], chosen: Ints | None, group: Ints, top_k: int, balance: float, z: float, scoring: str) -> Singles:
    """Return float32[T, E], the gradient of both losses with respect to every logit; ``chosen`` if it is plain top-k."""
    tokens, experts = logits.shape
    likely = probabilities(logits, scoring).astype(np.float32, copy=False)
    slope = np.zeros((tokens, experts), dtype=np.float32)
    if balance:
        # The frameworks take plain top-k of the scores for the loss, whatever the gate does (biases, groups, noise).
        best = np.argpartition(-logits, top_k - 1, axis=1)[:, :top_k] if chosen is None else chosen
        groups = int(group.max()) + 1
        per_group = np.bincount((group[:, None] * experts + best).ravel(), minlength=groups * experts).reshape(groups, experts)
        slope += np.float32(balance) * balance_gradient(likely, per_group, group, top_k, steepness=steepness_of(logits, scoring))
    if z:
        slope += np.float32(z) * z_gradient(likely if scoring == "softmax" else probabilities(logits, "softmax"), logits)
    return slope


def _sums(values: Singles, member: Ints, members: int) -> Singles:
    """Return float32[M, E], the sums of float32[T, E] over the tokens of each domain, or of each kind."""
    belongs = np.zeros((members, len(values)), dtype=np.float32)
    belongs[member, np.arange(len(values))] = 1.0
    return np.asarray(belongs @ values)


def _counts(chosen: Ints, domain: Ints, domains: int, experts: int) -> tuple[Ints, Ints]:
    """Return int[E] and int[D, E], the routes to each expert, of all tokens and of the tokens of each domain."""
    place = domain[:, None] * experts + chosen
    place = place.ravel() if chosen.min(initial=0) >= 0 else place[chosen >= 0]
    by_domain = np.bincount(place, minlength=domains * experts).reshape(domains, experts)
    return by_domain.sum(axis=0), by_domain
