"""Auxiliary losses of routers as measured quantities: how uneven a router is, in the words of the frameworks that train with them.

All are 1 for a router that is even, whatever the number of experts and choices, except where said otherwise, and have coefficient 1. They
are computed from the logits by plain top-k, whatever the gate then does: that is what the frameworks do.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.facts.arrays import Floats, Ints
from moesim.facts.routing import LayerRouting
from moesim.models.gate.scoring import score_by
from moesim.models.gate.select import finite_scores, largest

SMALLEST_SUM = 1e-20


def probabilities(logits: NDArray[Any], scoring: str) -> Floats:
    """Return float[T, E], scores that add up to 1 for each token.

    Source: NVIDIA/Megatron-LM, ``moe_utils.py``, ``compute_routing_scores_for_aux_loss``.
    """
    scores = score_by(scoring, logits.astype(np.float32)).astype(np.float64)
    return scores if scoring == "softmax" else np.asarray(scores / (scores.sum(axis=1, keepdims=True) + SMALLEST_SUM))


def balance_loss(shares: Floats, likelihood: Floats) -> float:
    """Return E times the sum over experts of f P.

    Parameters
    ----------
    shares : float[E]
        f, the share of all routes that each expert has.
    likelihood : float[E]
        P, the mean probability of each expert.

    Notes
    -----
    Sources: Fedus et al., arXiv:2101.03961, equation 4; NVIDIA/Megatron-LM, ``switch_load_balancing_loss_func``. Hugging Face's
    transformers leave the division by k out: their values are k times these.
    """
    return float(len(shares) * (shares * likelihood).sum())


def first_choice_loss(logits: NDArray[Any]) -> float:
    """Return E times the sum of (share of first choices) times (mean probability): the loss of GShard, DeepSpeed top-1 and top-2, Tutel.

    Sources: arXiv:2006.16668; deepspeedai/DeepSpeed, ``top1gating`` and ``top2gating``; microsoft/tutel, ``gshard_loss``.
    """
    liked = probabilities(logits, "softmax")
    first = np.bincount(largest(logits.astype(np.float32), 1, "the balance loss")[:, 0], minlength=logits.shape[1])
    return balance_loss(first / max(len(logits), 1), liked.mean(axis=0))


def device_loss(shares: Floats, likelihood: Floats, devices: int) -> float:
    """Return the balance of devices, of equally many consecutive experts each: the sum over devices of (mean of E f) times (sum of P).

    Source: DeepSeek-V2, arXiv:2405.04434, equations 26 to 28 (their f is E times a share).
    """
    load = (len(shares) * shares).reshape(devices, -1).mean(axis=1)
    return float((load * likelihood.reshape(devices, -1).sum(axis=1)).sum())


def z_loss(logits: NDArray[Any]) -> float:
    """Return the mean over tokens of the squared logarithm of the sum of exponentials of the logits; it says nothing of balance.

    Source: Zoph et al., arXiv:2202.08906, equation 5; NVIDIA/Megatron-LM, ``z_loss_func``.
    """
    top = logits.max(axis=1, keepdims=True).astype(np.float64)
    with np.errstate(under="ignore"):
        total = np.exp(logits - top).sum(axis=1)
    return float(((np.log(total) + top[:, 0]) ** 2).mean())


@dataclass(frozen=True, slots=True, kw_only=True)
class Losses:
    """The losses of one layer of one step.

    Parameters
    ----------
    micro_batch : float
        Of each GPU's tokens, averaged over GPUs by their tokens (Megatron's ``aux_loss``).
    sequence : float
        Of each sequence, averaged by tokens (``seq_aux_loss``; DeepSeek-V3).
    batch : float
        Of all tokens together (``global_aux_loss``; Qwen3).
    device : float
        Of the devices of an expert-parallel group, with all tokens together (DeepSeek-V2).
    z : float
        The router z-loss of all tokens.
    """

    micro_batch: float
    sequence: float
    batch: float
    device: float
    z: float


def layer_losses(routing: LayerRouting, *, scoring: str, top_k: int, sequence_length: int, ranks: int) -> Losses:
    """Return the losses of one layer of one step.

    Parameters
    ----------
    routing : LayerRouting
        With scores.
    scoring : str
        ``softmax``, ``sigmoid`` or ``sqrtsoftplus``.
    top_k : int
        k.
    sequence_length : int
        Tokens of a sequence: the tokens of a GPU are cut into sequences of that length, the last may be shorter.
    ranks : int
        Of an expert-parallel group; NaN for ``device`` if they do not divide the experts.

    Raises
    ------
    FidelityError
        If there are no scores.
    """
    who = "the auxiliary loss"
    logits = finite_scores(routing, who)
    tokens, experts = logits.shape
    if not tokens:
        return Losses(micro_batch=np.nan, sequence=np.nan, batch=np.nan, device=np.nan, z=np.nan)
    liked = probabilities(logits, scoring)
    ids = largest(logits, top_k, who)  # every score function keeps the order of the logits
    start = routing.token_start
    cuts = np.concatenate([np.arange(first, last, sequence_length) for first, last in pairwise(start.tolist())])
    shares, likelihood = _share(ids, liked, np.zeros(1, dtype=np.int64))
    whole = (shares[0], likelihood[0])
    return Losses(
        micro_batch=_averaged(ids, liked, start[:-1][np.diff(start) > 0]),
        sequence=_averaged(ids, liked, cuts),
        batch=balance_loss(*whole),
        device=device_loss(*whole, ranks) if experts % ranks == 0 else np.nan,
        z=z_loss(logits),
    )


def _averaged(ids: NDArray[Any], liked: Floats, start: Ints) -> float:
    """Return the balance loss of each block of tokens, averaged by their tokens; ``start`` are the first tokens of the blocks."""
    shares, likelihood = _share(ids, liked, start)
    losses = liked.shape[1] * (shares * likelihood).sum(axis=1)
    return float((losses * np.diff(start, append=len(ids))).sum() / len(ids))


def _share(ids: NDArray[Any], liked: Floats, start: Ints) -> tuple[Floats, Floats]:
    """Return float[blocks, E] twice: the share of routes and the mean probability of each expert in each block of tokens."""
    tokens, experts = liked.shape
    length = np.diff(start, append=tokens)
    block = np.repeat(np.arange(len(start)), length)
    routes = np.bincount((block[:, None] * experts + ids).ravel(), minlength=len(start) * experts).reshape(len(start), experts)
    likelihood = np.add.reduceat(liked, start, axis=0) / length[:, None]
    return routes / (length[:, None] * ids.shape[1]), likelihood
