"""Tokens per expert for measurements of one device that plays the most loaded rank of an expert-parallel group."""

from __future__ import annotations

import re

import numpy as np
from numpy.typing import NDArray

from moesim.base.errors import UsageError
from moesim.base.streams import stream

Ints = NDArray[np.int64]


def exponent_of(distribution: str) -> float | None:
    """Return the exponent of ``power_law_A``, or None for ``balanced``.

    Raises
    ------
    UsageError
        If the name is neither.

    Examples
    --------
    >>> exponent_of("power_law_1.2"), exponent_of("balanced")
    (1.2, None)
    """
    if distribution == "balanced":
        return None
    match = re.fullmatch(r"power_law_(\d+(?:\.\d+)?)", distribution)
    if match is None:
        raise UsageError(f"unknown distribution {distribution!r}: balanced, or power_law_A with an exponent such as power_law_1.2")
    return float(match[1])


def expert_loads(distribution: str, tokens: int, top_k: int, experts: int, seed: int) -> Ints:
    """Return int[experts]: routes of ``tokens`` tokens with ``top_k`` distinct choices each, to every expert.

    Parameters
    ----------
    distribution : str
        ``balanced`` deals routes evenly; the first experts get what is left over. ``power_law_A`` draws a weight per expert from a density
        that falls with the power A on [1, 0.8 tokens] and shares routes in proportion; an expert gets at most one route of a token.
    tokens, top_k, experts : int
        Of the whole group.
    seed : int
        Of the draw.

    Notes
    -----
    The power law is that of ai-dynamo/aiconfigurator, whose tables of expert kernels under skew moesim ships, so that own measurements can
    stand beside them; theirs are unseeded means of several draws.

    Examples
    --------
    >>> expert_loads("balanced", 5, 2, 4, 0).tolist()
    [3, 3, 2, 2]
    """
    if top_k > experts:
        raise UsageError(f"top_k is {top_k}, but there are only {experts} experts")
    power = exponent_of(distribution)
    routes = tokens * top_k
    if power is None:
        return np.asarray(routes // experts + (np.arange(experts) < routes % experts), dtype=np.int64)
    uniform = stream(seed, "power_law", distribution, experts).random(experts)
    most = max(0.8 * tokens, 2.0)
    # The inverse of the distribution function; its limit where the exponent is 1.
    rest = 1.0 - power
    return _shared(most**uniform if rest == 0 else (1.0 + uniform * (most**rest - 1.0)) ** (1.0 / rest), routes, tokens)


def _shared(weight: NDArray[np.float64], routes: int, most: int) -> Ints:
    """Share routes in proportion to weights, none more than ``most``: what the full ones cannot take goes to the others."""
    share = np.zeros(len(weight))
    free = np.ones(len(weight), dtype=bool)
    while True:
        left = routes - share[~free].sum()
        share[free] = weight[free] * left / weight[free].sum()
        over = free & (share > most)
        if not over.any():
            break
        share[over] = most
        free &= ~over
        if not free.any():
            break
    counts = np.floor(share).astype(np.int64)
    # Largest remainders get the routes that rounding left over; a full expert gets none.
    order = np.argsort(-np.where(counts < most, share - counts, -1.0), kind="stable")
    counts[order[: routes - int(counts.sum())]] += 1
    return counts


def hottest_first(counts: Ints, ep: int) -> Ints:
    """Return the counts with the most loaded of ``ep`` contiguous ranks swapped to the front.

    Examples
    --------
    >>> hottest_first(np.array([1, 1, 2, 5]), 2).tolist()
    [2, 5, 1, 1]
    """
    parts = counts.reshape(ep, -1).copy()
    hottest = int(parts.sum(axis=1).argmax())
    parts[[0, hottest]] = parts[[hottest, 0]]
    return parts.reshape(-1)


def choices(counts: Ints, tokens: int, top_k: int, seed: int) -> Ints:
    """Return int[tokens, top_k] experts such that each expert is chosen as often as ``counts`` says, and no token chooses one twice.

    Routes sorted by expert are dealt to tokens in turn: an expert with at most ``tokens`` routes reaches as many different tokens. Tokens
    are shuffled afterwards.
    """
    routes = np.repeat(np.arange(len(counts)), counts)
    # Route r goes to token r mod T, as its choice number r div T.
    table = routes.reshape(top_k, tokens).T
    return np.ascontiguousarray(stream(seed, "choices").permutation(table, axis=0), dtype=np.int64)
