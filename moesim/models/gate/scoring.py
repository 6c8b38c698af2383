"""What a router makes of its logits: the scores that experts are chosen by, and the gate weights of the chosen ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray

from moesim.base.fields import Choice, Flag, Positive
from moesim.models.gate.select import largest, softmax

SCORINGS = ("softmax", "sigmoid", "sqrtsoftplus")
SMALLEST_SUM = np.float32(1e-20)
BLOCK = 1024
"""Tokens that are scored together: with 256 experts, 1 MB of scores."""

Scores = NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scored:
    """The keys that gates share which turn logits into gate weights.

    Parameters
    ----------
    scoring : str
        ``softmax``, ``sigmoid``, or ``sqrtsoftplus``, the square root of softplus.
    pre_softmax : bool
        With ``softmax``: take the softmax over all experts first, and let the weights be the chosen probabilities as they are. By
        default the k largest logits are chosen first and the softmax is taken over those.
    normalise : bool or None
        Whether to divide the weights of a token by their sum. By default as Megatron does: ``sigmoid`` and ``sqrtsoftplus`` weights are
        normalised for k > 1, others are not (the softmax over the chosen ones adds up to 1 anyway).
    scale : float
        What the weights are multiplied by in the end.
    """

    scoring: Annotated[str, Choice(SCORINGS)] = "softmax"
    pre_softmax: Flag = False
    normalise: Flag | None = None
    scale: Positive = 1.0

    def score(self, logits: NDArray[Any]) -> Scores:
        """Return float32[T, E], what experts are chosen by; an expert whose logit is minus infinity may not be chosen."""
        single = logits.astype(np.float32, copy=False)
        scores = score_by(self.scoring, single, pre_softmax=self.pre_softmax)
        if np.isneginf(single.min(initial=np.inf)):  # also where the score of such an expert would be a finite 0
            scores = np.where(np.isneginf(single), np.float32(-np.inf), scores)
        return scores

    def choose_best(
        self, logits: NDArray[Any], wanted: Callable[[Scores], Scores], top_k: int, who: str
    ) -> tuple[NDArray[np.int32], Scores]:
        """Return int32[T, k] experts, best first, and float32[T, k] their gate weights.

        Parameters
        ----------
        logits : float[T, E]
            Of the router.
        wanted : callable
            Makes of float32[t, E] scores of some tokens what their experts are chosen by: with a bias, say, or within groups.
        top_k : int
            1 to E.
        who : str
            Whose question this is, for errors.

        Notes
        -----
        A token's choice depends on its own logits alone, so tokens are taken in blocks that fit into a core's cache.
        """
        ids, weights = np.empty((len(logits), top_k), dtype=np.int32), np.empty((len(logits), top_k), dtype=np.float32)
        for first in range(0, len(logits), BLOCK):
            mine = slice(first, first + BLOCK)
            scores = self.score(logits[mine])
            ids[mine] = largest(wanted(scores), top_k, who, first=first)
            weights[mine] = self.weigh(scores, ids[mine])
        return ids, weights

    def weigh(self, scores: Scores, ids: NDArray[Any]) -> Scores:
        """Return float32[T, k], the gate weights of the chosen experts.

        Parameters
        ----------
        scores : float32[T, E]
            As :meth:`score` returns them, without any bias.
        ids : int[T, k]
            From 0 to E - 1.
        """
        weights = np.take_along_axis(scores, ids, axis=1)
        if self.scoring == "softmax" and not self.pre_softmax:
            weights = softmax(weights)
        normalise = self.scoring != "softmax" and ids.shape[1] > 1 if self.normalise is None else self.normalise
        if normalise:
            weights = weights / (weights.sum(axis=1, keepdims=True) + SMALLEST_SUM)
        return np.asarray(weights if self.scale == 1.0 else weights * np.float32(self.scale), dtype=np.float32)


def score_by(scoring: str, logits: Scores, *, pre_softmax: bool = True) -> Scores:
    """Return float32[T, E], the score function of a router in single precision.

    Source: NVIDIA/Megatron-LM, ``megatron/core/transformer/moe/moe_utils.py``, ``topk_routing_with_score_function``.
    """
    if scoring == "softmax":
        return softmax(logits) if pre_softmax else logits
    if scoring == "sigmoid":
        with np.errstate(over="ignore"):  # exp of a very negative logit is infinite and its sigmoid 0, as it should be
            return np.asarray(1 / (1 + np.exp(-logits)), dtype=np.float32)
    return np.asarray(np.sqrt(np.logaddexp(np.float32(0), logits)), dtype=np.float32)
