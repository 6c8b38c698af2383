"""Which rank computes the shared expert of a token, where any may: SGLang's choice of one that has little to do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.facts.arrays import Ints

LOCAL_ONLY_BELOW = 64
"""Tokens of a rank's batch: with fewer, its shared rows stay at home (``WaterfillBalancer.MIN_BATCH_FOR_BALANCE``)."""

PREFERENCE = (10, 11)
"""A remote rank's room counts for ten elevenths."""

SCATTER, FACTOR, SHIFT = 0x9E3779B9, 1664525, 1013904223
"""Of the hash of token and source: a linear congruential step of Knuth and Lewis, after the source was mixed in by the golden ratio."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fill:
    """What the ranks agree on before they choose.

    Parameters
    ----------
    load : int[W]
        Rows that each rank has already.
    target : int
        Rows of a rank if all, shared ones included, were level.
    anywhere : bool
        Whether a token may go to any rank, or only to those that it visits anyway and its own.
    """

    load: Ints
    target: int
    anywhere: bool


def static_fill(routed: Ints, top_k: int) -> Fill:
    """Return what one rank knows by itself: where its own rows go. SGLang's default.

    Parameters
    ----------
    routed : int[W]
        Rows that this rank sends to each rank.
    top_k : int
        Routed experts of a token.
    """
    return Fill(load=routed, target=_level(int(routed.sum()), int(routed.sum()) // top_k, len(routed)), anywhere=True)


def dynamic_fill(routed: Ints, tokens: Ints, top_k: int) -> Fill:
    """Return what the ranks know after an all-reduce.

    Parameters
    ----------
    routed : int[W]
        Rows that all ranks together send to each rank.
    tokens : int[W]
        Tokens of each rank: rows of its shared expert, if they stayed at home.
    top_k : int
        Routed experts of a token.
    """
    load = routed + tokens
    target = _level(int(load.sum()), int(routed.sum()) // top_k, len(routed))
    return Fill(load=load, target=target, anywhere=bool(load.max() <= target))


def _level(rows: int, tokens: int, ranks: int) -> int:
    return -(-(rows + tokens) // ranks)


def shared_ranks(visited: NDArray[Any], fill: Fill, *, source: int) -> Ints:
    """Return int[T], the rank that computes the shared expert of each token of one rank; -1 for a token without routes.

    Parameters
    ----------
    visited : int[T, k]
        The rank of each routed choice of the tokens, -1 for none.
    fill : Fill
        From :func:`static_fill` or :func:`dynamic_fill`.
    source : int
        Where the tokens start.

    Notes
    -----
    A candidate's weight is its room ``max(target - load, 0)``, a remote one's times 10/11, rounded down; one is drawn by a hash of the
    token's place and the source. Where no candidate has room, the lightest by more than a tenth wins, else the source. The reference keeps
    candidates in 32 bits and so ends at 31 ranks; this does not. Source: ``_waterfill_expand_kernel`` of sgl-project/sglang,
    ``python/sglang/kernels/ops/moe/deepep_waterfill_kernels.py``, and ``WaterfillBalancer`` of
    ``python/sglang/srt/layers/moe/waterfill.py`` (0.5.23).
    """
    tokens, ranks = len(visited), len(fill.load)
    routed = (visited >= 0).any(axis=1)
    if tokens < LOCAL_ONLY_BELOW:
        return np.where(routed, source, -1)
    near = np.zeros((tokens, ranks + 1), dtype=bool)  # the last column takes the missing routes
    np.put_along_axis(near, np.where(visited >= 0, visited, ranks), True, axis=1)
    candidate = np.ones((tokens, ranks), dtype=bool) if fill.anywhere else near[:, :ranks]
    candidate[:, source] = True

    numerator, denominator = PREFERENCE
    room = np.maximum(fill.target - fill.load, 0)
    weight = np.where(np.arange(ranks) == source, room, room * numerator // denominator) * candidate
    until = np.cumsum(weight, axis=1)
    total = until[:, -1]
    seed = np.arange(tokens, dtype=np.uint64) ^ np.uint64(source * SCATTER % 2**32)
    seed = (seed * np.uint64(FACTOR) + np.uint64(SHIFT)) % np.uint64(2**32)
    point = seed.astype(np.int64) % np.maximum(total, 1)
    drawn = (until <= point[:, None]).sum(axis=1)
    return np.where(routed, np.where(total > 0, drawn, _lightest(visited, fill, source)), -1)


def _lightest(visited: NDArray[Any], fill: Fill, source: int) -> Ints:
    """Return int[T]: the source, or a rank that is lighter by more than a tenth than what was looked at before it."""
    ranks = len(fill.load)
    numerator, denominator = PREFERENCE
    looked_at = np.tile(np.arange(ranks), (len(visited), 1)) if fill.anywhere else visited
    best, least = np.full(len(visited), source), np.full(len(visited), fill.load[source])
    for rank in looked_at.T:
        load = np.where(rank >= 0, fill.load[rank], np.iinfo(np.int64).max // denominator)
        better = load * denominator < least * numerator
        best, least = np.where(better, rank, best), np.where(better, load, least)
    return best
