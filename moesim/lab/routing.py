"""Tokens find their experts: a gate with skewed popularity, capacity and drops, and the order in which rows travel."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import linear


@dataclass(frozen=True, kw_only=True)
class Gate:
    """The router: logits = x · weight + popularity; ``popularity`` [experts] is fixed and not trained."""

    weight: Any
    popularity: Any


def make_gate(generator: Any, experts: int, hidden: int, skew: float, *, in_order: bool) -> Gate:
    """Draw a gate on the CPU.

    Parameters
    ----------
    generator : torch.Generator
        The same for all ranks.
    experts, hidden : int
        Shape.
    skew : float
        The expert of popularity rank r has -skew · ln(r) added to its logit, so that without the gate's own noise its probability goes with
        r to the power -skew.
    in_order : bool
        Popularity falls with the number of the expert; otherwise it is shuffled.
    """
    weight = torch.randn(experts, hidden, generator=generator) / math.sqrt(hidden)
    falling = -skew * torch.log(torch.arange(1, experts + 1, dtype=torch.float32))
    if in_order:
        return Gate(weight=weight, popularity=falling)
    popularity = torch.empty(experts)
    popularity[torch.randperm(experts, generator=generator)] = falling
    return Gate(weight=weight, popularity=popularity)


def choose(x: Any, gate: Gate, top_k: int) -> tuple[Any, Any]:
    """Return probability [tokens, k] and number [tokens, k] of each token's experts.

    Probabilities are those of a float32 softmax over all experts, not renormalised over the chosen.
    """
    probability = torch.softmax(linear(x, gate.weight).float() + gate.popularity, dim=-1)
    best = probability.topk(top_k, dim=-1)
    return best.values, best.indices


def capacity(tokens: int, top_k: int, experts: int, factor: float | None) -> int:
    """Return how many rows an expert takes from one rank: ceil(tokens k / experts · factor), at most ``tokens``.

    Source: NVIDIA/Megatron-LM, ``megatron/core/transformer/moe/moe_utils.py``, ``get_capacity``. None means no limit but the tokens.
    """
    return tokens if factor is None else min(tokens, math.ceil(tokens * top_k / experts * factor))


def keep(experts_of: Any, probability: Any, experts: int, limit: int, drop: str) -> Any:
    """Return the routes that survive, grouped by expert and in token order within each: indices into the flat [tokens × k] routes.

    Parameters
    ----------
    experts_of, probability : tensor [tokens, k]
        Choices of the tokens.
    experts : int
        Experts of the layer.
    limit : int
        Rows that each takes.
    drop : str
        ``probs`` keeps the largest probabilities (of equal ones the earlier token), ``position`` the earliest tokens.
    """
    flat = experts_of.reshape(-1)
    counts = torch.bincount(flat, minlength=experts)
    if limit >= experts_of.shape[0]:
        return torch.argsort(flat, stable=True)
    if drop == "probs":
        by_probability = torch.argsort(probability.detach().reshape(-1), descending=True, stable=True)
        order = by_probability[torch.argsort(flat[by_probability], stable=True)]
    else:
        order = torch.argsort(flat, stable=True)
    first = torch.cumsum(counts, 0) - counts
    position = torch.arange(flat.numel(), device=flat.device) - first[flat[order]]
    taken = torch.zeros(flat.numel(), dtype=torch.bool, device=flat.device)
    taken[order[position < limit]] = True
    survivors = taken.nonzero().squeeze(1)
    return survivors[torch.argsort(flat[survivors], stable=True)]


def weighted_sum(rows: Any, weights: Any, token_of: Any, tokens: int) -> Any:
    """Return [tokens, hidden]: each token's rows, weighted and added."""
    out = rows.new_zeros(tokens, rows.shape[1])
    return out.index_add(0, token_of, rows * weights.unsqueeze(1).to(rows.dtype))


def by_expert(counts: Any) -> Any:
    """Return the order that groups received rows by expert: rows arrive by source and, within a source, by expert.

    Parameters
    ----------
    counts : tensor int64 [sources, local experts]
        Rows of each.
    """
    local = torch.arange(counts.shape[1], device=counts.device).repeat(counts.shape[0])
    return torch.argsort(torch.repeat_interleave(local, counts.reshape(-1)), stable=True)
