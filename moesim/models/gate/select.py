"""Choosing the largest scores of each token, deterministically."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.base.errors import FidelityError
from moesim.facts.routing import LayerRouting
from moesim.models.compiled_loops import loops_for


def largest(scores: NDArray[Any], top_k: int, who: str, *, first: int = 0) -> NDArray[np.int32]:
    """Return int32[T, k], the experts of each token's ``top_k`` largest scores, best first; equal scores: the lower expert id first.

    Parameters
    ----------
    scores : float[T, E]
        Minus infinity where an expert may not be chosen.
    top_k : int
        1 to E.
    who : str
        Whose question this is, for the error.
    first : int
        Number of the first of these tokens, for the error.

    Raises
    ------
    FidelityError
        If a token has fewer than ``top_k`` experts with a finite score.

    Notes
    -----
    k passes of ``argmax``, which returns the first of equal values: quicker than a partition for the k of real models, and, unlike
    a partition, with a rule for ties. For many tokens a compiled pass does the same (:func:`moesim.models.route_loops.best_first`).
    """
    ids = np.empty((len(scores), top_k), dtype=np.int32)
    loops = loops_for(ids, scores) if scores.dtype == np.float32 and 0 < top_k <= scores.shape[1] else None
    if loops is not None:
        found: NDArray[np.int32] = loops.best_first(scores, top_k)
        if (found[:, 0] >= 0).all():
            return found
    left = np.array(scores, order="C")
    tokens = np.arange(len(left))
    for choice in range(top_k):
        best = left.argmax(axis=1)
        wrong = np.flatnonzero(~np.isfinite(left[tokens, best]))
        if wrong.size:
            raise FidelityError(
                f"{who}: token {first + int(wrong[0])} has no {choice + 1}. expert with a finite score; check the recorded scores"
            )
        ids[:, choice] = best
        left[tokens, best] = -np.inf
    return ids


def softmax(scores: NDArray[Any]) -> NDArray[np.float32]:
    """Return float32[T, n], the softmax of each row in single precision."""
    single = scores.astype(np.float32, copy=False)
    with np.errstate(invalid="ignore"):  # a row without a finite score becomes NaN, which ``largest`` refuses by name
        exponential = np.exp(single - single.max(axis=1, keepdims=True))
    return np.asarray(exponential / exponential.sum(axis=1, keepdims=True), dtype=np.float32)


def blocks(routing: LayerRouting) -> list[tuple[int, int]]:
    """Return, for each GPU, its first token and the one after its last."""
    return list(pairwise(routing.token_start.tolist()))


def chosen(routing: LayerRouting, ids: NDArray[Any], weights: NDArray[Any]) -> LayerRouting:
    """Return ``routing`` with these choices."""
    for array in (ids, weights):
        array.flags.writeable = False  # fresh arrays: shared by the facts, not copied
    return LayerRouting.of_tokens(
        ids,
        routing.token_start,
        routing.experts,
        weights=weights,
        scores=routing.scores,
        vocabulary_ids=routing.vocabulary_ids,
        domains=routing.domains,
    )


def finite_scores(routing: LayerRouting, who: str) -> NDArray[np.float32]:
    """Return float32[T, E], the logits of a routing; minus infinity marks an expert that a token may not choose.

    Raises
    ------
    FidelityError
        On behalf of ``who``, if there are no scores, or a token has one that is no number, or plus infinity, or none that is finite.
    """
    logits = routing.need_scores(who).astype(np.float32)
    best = logits.max(axis=1, initial=-np.inf)  # NaN if one of a token's is
    wrong = np.flatnonzero(~np.isfinite(best))
    if wrong.size:
        raise FidelityError(f"{who}: token {int(wrong[0])} has scores that are no numbers, or no finite one; check the recorded scores")
    return logits


def ranked(wanted: NDArray[np.bool_], liking: NDArray[Any]) -> NDArray[np.int32]:
    """Return int32[T, k], the wanted experts of each token, best liked first (equal ones: the lower id), filled up with -1.

    Parameters
    ----------
    wanted : bool[T, E]
        Any number per token; k is the largest, at least 1.
    liking : float[T, E]
        Finite or minus infinity.
    """
    counts = wanted.sum(axis=1)
    width = int(counts.max(initial=1))
    order = np.argsort(np.where(wanted, -liking, np.inf), axis=1, kind="stable")[:, :width].astype(np.int32)
    order[np.arange(width) >= counts[:, None]] = -1
    return order
