"""A small language model with Mixture-of-Experts layers: causal attention and routed experts, in PyTorch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional

from moesim.lab.training_strategy import Strategy

VOCABULARY = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """The shape of a model: L layers of hidden size d with n-token sequences, E experts of width f, k of which a token uses."""

    layers: int = 4
    hidden: int = 64
    heads: int = 2
    width: int = 64
    experts: int = 16
    top_k: int = 2
    length: int = 64


@dataclass(slots=True, kw_only=True)
class Routed:
    """What one MoE layer did with the T tokens of a step.

    Parameters
    ----------
    logits : tensor [T, E]
        With noise, where there is some.
    ids : tensor [T, k]
    kept : tensor of bool [T, k]
        False for a route that the capacity limit dropped.
    loss : tensor
        Balance loss and z-loss, with their coefficients.
    """

    logits: Any
    ids: Any
    kept: Any
    loss: Any


def scores_of(logits: Any, scoring: str) -> Any:
    """Return tensor [T, E] of router scores."""
    return torch.softmax(logits, dim=1) if scoring == "softmax" else torch.sigmoid(logits)


def losses(logits: Any, plan: Strategy, top_k: int, blocks: int) -> Any:
    """Return the balance loss over so many equal blocks of tokens, and the z-loss, times their coefficients.

    Shares of routes are those of plain top-k of the scores and constants to the gradient; sigmoid scores are divided by their sum.
    """
    total = logits.new_zeros(())
    if plan.aux:
        scores = scores_of(logits, plan.scoring)
        if plan.scoring == "sigmoid":
            scores = scores / (scores.sum(dim=1, keepdim=True) + 1e-20)
        tokens, experts = logits.shape
        chosen = torch.zeros_like(logits).scatter_(1, logits.topk(top_k, dim=1).indices, 1.0)
        shares = chosen.view(blocks, -1, experts).mean(dim=1) / top_k
        likely = scores.view(blocks, tokens // blocks, experts).mean(dim=1)
        total = total + plan.aux * experts * (shares * likely).sum(dim=1).mean()
    if plan.z:
        total = total + plan.z * torch.logsumexp(logits, dim=1).square().mean()
    return total


def within_capacity(ids: Any, weights: Any, experts: int, sources: int, factor: float) -> Any:
    """Return tensor of bool [T, k]: of each source's routes to an expert, the ceil(T k / E factor) of largest weight are kept.

    Equal weights: the earlier token first. T are the tokens of a source; sources have equal, consecutive shares of the tokens.
    """
    tokens, top_k = ids.shape
    per_source = tokens // sources
    capacity = min(-int(-(per_source * top_k / experts * factor) // 1), per_source)
    source = torch.arange(tokens).div(per_source, rounding_mode="floor")
    key = (source[:, None] * experts + ids).flatten()
    order = torch.argsort(weights.flatten(), descending=True, stable=True)
    order = order[torch.argsort(key[order], stable=True)]
    counts = torch.bincount(key, minlength=sources * experts)
    place = torch.empty_like(order)
    place[order] = torch.arange(len(order)) - (torch.cumsum(counts, 0) - counts)[key[order]]
    return (place < capacity).view(tokens, top_k)


def next_bias(bias: Any, load: Any, rate: float) -> Any:
    """Return tensor [E]: the bias goes up by ``rate`` for experts below the mean load and down for those above."""
    load = load.to(torch.float32)
    return bias + rate * torch.sign(load.mean() - load)


class MoeLayer:
    """Experts behind a router; parameters are tensors of its own."""

    def __init__(self, size: Size, plan: Strategy, sources: int, make: Any) -> None:
        self.size, self.plan, self.sources = size, plan, sources
        self.router = make((size.experts, size.hidden), 0.02)
        self.up = make((size.experts, size.hidden, size.width), size.hidden**-0.5)
        self.down = make((size.experts, size.width, size.hidden), size.width**-0.5 / (2 * size.layers) ** 0.5)
        self.bias = torch.zeros(size.experts)

    @property
    def parameters(self) -> list[Any]:
        """What training changes; the bias is not among them, it follows a rule of its own."""
        return [self.router, self.up, self.down]

    def forward(self, x: Any, noise: Any) -> tuple[Any, Routed]:
        """Return tensor [T, d] and what was routed, from normalised tokens [T, d] and standard normal numbers [T, E] or None."""
        size, plan = self.size, self.plan
        logits = functional.linear(x, self.router)
        noisy = logits if noise is None else logits + plan.noise * noise
        scores = scores_of(noisy, plan.scoring)
        ids = (scores + self.bias if plan.bias else scores).topk(size.top_k, dim=1).indices
        weights = scores.gather(1, ids)
        weights = weights / (weights.sum(dim=1, keepdim=True) + 1e-20)
        kept = torch.ones_like(ids, dtype=torch.bool)
        if plan.capacity:
            kept = within_capacity(ids, weights.detach(), size.experts, self.sources, plan.capacity)
        blocks = {"micro_batch": self.sources, "sequence": len(x) // size.length, "batch": 1}[plan.scope]
        output = self.experts(x, ids, weights, kept)
        return output, Routed(logits=noisy.detach(), ids=ids, kept=kept, loss=losses(logits, plan, size.top_k, blocks))

    def experts(self, x: Any, ids: Any, weights: Any, kept: Any) -> Any:
        """Return the weighted sum of what the kept experts of each token make of it."""
        where = kept.flatten().nonzero().squeeze(1)
        expert = ids.flatten()[where]
        order = where[torch.argsort(expert, stable=True)]
        token = order.div(self.size.top_k, rounding_mode="floor")
        parts = x.index_select(0, token).split(torch.bincount(expert, minlength=self.size.experts).tolist())
        made = [
            functional.gelu(part @ up) @ down
            for part, up, down in zip(parts, self.up.unbind(0), self.down.unbind(0), strict=True)
        ]  # fmt: skip
        weighted = torch.cat(made) * weights.flatten().index_select(0, order)[:, None]
        return torch.zeros_like(x).index_add(0, token, weighted)

    def learn(self, routed: Routed) -> None:
        """Move the bias by the loads of a step, counted before drops."""
        if self.plan.bias:
            self.bias = next_bias(self.bias, torch.bincount(routed.ids.flatten(), minlength=self.size.experts), self.plan.bias)


class Attention:
    """Causal attention of several heads."""

    def __init__(self, size: Size, make: Any) -> None:
        self.size = size
        self.into = make((3 * size.hidden, size.hidden), size.hidden**-0.5)
        self.out = make((size.hidden, size.hidden), size.hidden**-0.5 / (2 * size.layers) ** 0.5)

    @property
    def parameters(self) -> list[Any]:
        """What training changes."""
        return [self.into, self.out]

    def forward(self, x: Any) -> Any:
        """Return tensor [T, d] from [T, d]; tokens are those of whole sequences, one after the other."""
        size = self.size
        parts = functional.linear(x, self.into).view(-1, size.length, 3, size.heads, size.hidden // size.heads)
        query, key, value = parts.permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        return functional.linear(mixed.transpose(1, 2).reshape(len(x), size.hidden), self.out)


class LanguageModel:
    """Bytes in, the next byte out."""

    def __init__(self, size: Size, plan: Strategy, sources: int, generator: Any) -> None:
        def make(shape: tuple[int, ...], deviation: float) -> Any:
            return (deviation * torch.randn(shape, generator=generator)).requires_grad_()

        self.size = size
        self.embedding = make((VOCABULARY, size.hidden), 0.5)
        self.position = make((size.length, size.hidden), 0.1)
        self.attention = [Attention(size, make) for _ in range(size.layers)]
        self.moe = [MoeLayer(size, plan, sources, make) for _ in range(size.layers)]
        self.scales = [torch.ones(size.hidden, requires_grad=True) for _ in range(2 * size.layers + 1)]
        self.head = make((VOCABULARY, size.hidden), size.hidden**-0.5)

    @property
    def parameters(self) -> list[Any]:
        """What training changes."""
        blocks = [block for pair in zip(self.attention, self.moe, strict=True) for block in pair]
        return [self.embedding, self.position, self.head, *self.scales, *(item for block in blocks for item in block.parameters)]

    def forward(self, tokens: Any, noise: Sequence[Any]) -> tuple[Any, list[Routed]]:
        """Return logits of the next byte [T, 256], and what every MoE layer routed, from bytes int64[B, n]."""
        hidden = self.size.hidden
        x = (functional.embedding(tokens, self.embedding) + self.position).view(-1, hidden)
        routed = []
        for number, (attention, moe) in enumerate(zip(self.attention, self.moe, strict=True)):
            x = x + attention.forward(functional.rms_norm(x, (hidden,), self.scales[2 * number], 1e-6))
            added, what = moe.forward(functional.rms_norm(x, (hidden,), self.scales[2 * number + 1], 1e-6), noise[number])
            x = x + added
            routed.append(what)
        return functional.linear(functional.rms_norm(x, (hidden,), self.scales[-1], 1e-6), self.head), routed
