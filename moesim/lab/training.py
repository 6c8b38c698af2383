"""Train a small Mixture-of-Experts language model under a strategy, and write down what its routers do."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from moesim.base.balance_health import idle
from moesim.base.errors import MeasurementError, UsageError
from moesim.base.loads import maxvio
from moesim.base.streams import stream
from moesim.lab.training_model import LanguageModel, Routed, Size
from moesim.lab.training_strategy import Strategy
from moesim.lab.training_text import Batches, Domain

Progress = Callable[[int, float], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """One training.

    Parameters
    ----------
    strategy : Strategy
    size : Size
    steps : int
    sequences : int
        B, of a step, over all sources.
    sources : int
        S, ranks that the step's sequences are thought to lie on, equally many on each: for micro-batches and capacity limits.
    seed : int
        Of parameters, text and noise.
    rate : float
        Learning rate of AdamW (betas 0.9 and 0.95, weight decay 0.1, gradients clipped to norm 1), reached after ``warmup`` steps.
    warmup : int
    every : int
        Steps between recorded counts.
    look : int
        Steps between recorded statistics of logits.
    sample : int
        Steps between samples of logits.
    sampled : int
        Tokens of a sample.
    """

    strategy: Strategy
    size: Size = field(default_factory=Size)
    steps: int = 1500
    sequences: int = 16
    sources: int = 4
    seed: int = 0
    rate: float = 2e-3
    warmup: int = 100
    every: int = 1
    look: int = 25
    sample: int = 250
    sampled: int = 256

    def __post_init__(self) -> None:
        size = self.size
        if self.sequences % self.sources:
            raise UsageError(f"{self.sequences} sequences cannot be shared equally by {self.sources} sources; take a multiple")
        if not 1 <= size.top_k <= size.experts:
            raise UsageError(f"top-{size.top_k} of {size.experts} experts cannot be chosen")
        if size.hidden % size.heads:
            raise UsageError(f"a hidden size of {size.hidden} cannot be shared equally by {size.heads} heads; take a multiple")
        if self.sampled > self.sequences * size.length:
            raise UsageError(f"{self.sampled} tokens cannot be sampled from {self.sequences * size.length} of a step")


@dataclass(slots=True, kw_only=True)
class Recording:
    """What a training left: arrays by name, of which ``n`` first steps were finished, and how long it took.

    Arrays (L layers, S sources, E experts, D domains): ``counts`` uint16[m, L, S, E] routes before drops; ``maxvio`` float32[n, L] of them;
    ``dropped`` uint16[n, L]; ``idle_now`` uint8[n, L], experts below a hundredth of the mean; ``lm_loss`` float32[n]. Every ``look``
    steps, at ``looked_at``: ``logit_mean`` float32[q, L, D, E] over tokens of each domain (NaN if there were none), ``logit_noise``
    float32[q, L], standard deviation within domains over tokens, root mean square over experts; ``gate_bias`` float32[q, L, E];
    ``domain_routes`` uint16[q, L, D, E]. Every ``sample`` steps, at ``sampled_at``: ``logit_sample`` float16[p, L, tokens, E] and
    ``sample_domain`` uint8[p, tokens].
    """

    plan: Plan
    arrays: dict[str, NDArray[Any]]
    seconds: float
    finished: int
    why: str = ""
    interrupted: bool = False


def train(plan: Plan, domains: Sequence[Domain], *, progress: Progress | None = None, threads: int = 1) -> Recording:
    """Train a model and return what its routers did; what was recorded is kept when the training is interrupted or breaks off.

    Parameters
    ----------
    plan : Plan
    domains : sequence of Domain
        Each sequence of a batch is from one of them.
    progress : callable, optional
        Called with the finished steps and the loss.
    threads : int
        CPU threads; the result depends on them in the last bits.

    Raises
    ------
    MeasurementError
        If the very first step fails.
    """
    torch.set_num_threads(threads)
    started = time.perf_counter()
    generator = torch.Generator().manual_seed(int(stream(plan.seed, "training", "parameters").integers(2**62)))
    model = LanguageModel(plan.size, plan.strategy, plan.sources, generator)
    optimiser = torch.optim.AdamW(model.parameters, lr=plan.rate, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    batches = Batches(domains=domains, seed=plan.seed, sequences=plan.sequences, length=plan.size.length)
    notes = _Notes(plan, len(domains))
    why, interrupted = "", False
    try:
        for step in range(plan.steps):
            text, domain = batches.at(step)
            bytes_ = torch.from_numpy(text.astype(np.int64))
            guess, routed = model.forward(bytes_[:, :-1], _noise(plan, step))
            loss = functional.cross_entropy(guess, bytes_[:, 1:].reshape(-1))
            if not bool(torch.isfinite(loss.detach())):
                why = f"the loss of step {step} is not finite; take a smaller --rate"
                break
            notes.write(step, routed, domain, float(loss.detach()), [layer.bias for layer in model.moe])
            optimiser.zero_grad()
            sum((what.loss for what in routed), loss).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters, 1.0)
            for group in optimiser.param_groups:
                group["lr"] = plan.rate * min((step + 1) / max(plan.warmup, 1), 1.0)
            optimiser.step()
            for layer, what in zip(model.moe, routed, strict=True):
                layer.learn(what)
            if progress is not None:
                progress(step + 1, float(loss.detach()))
    except KeyboardInterrupt:
        why, interrupted = "interrupted", True
    if not notes.steps:
        raise MeasurementError(f"no step of {plan.strategy.name} was finished: {why}")
    return Recording(
        plan=plan, arrays=notes.arrays(), seconds=time.perf_counter() - started, finished=notes.steps, why=why, interrupted=interrupted
    )


def _noise(plan: Plan, step: int) -> list[Any]:
    """Return standard normal numbers for every layer, or None for each if the strategy adds no noise."""
    size = plan.size
    if not plan.strategy.noise:
        return [None] * size.layers
    rng = stream(plan.seed, "training", "noise", step)
    return list(torch.from_numpy(rng.standard_normal((size.layers, plan.sequences * size.length, size.experts), dtype=np.float32)))


class _Notes:
    """What is written down, step by step."""

    def __init__(self, plan: Plan, domains: int) -> None:
        self._plan, self._domains = plan, domains
        self._kept: dict[str, list[NDArray[Any]]] = {}
        self.steps = 0

    def write(self, step: int, routed: Sequence[Routed], domain: NDArray[np.int64], loss: float, bias: Sequence[Any]) -> None:
        """Note one step."""
        plan, experts = self._plan, self._plan.size.experts
        tokens = plan.sequences * plan.size.length
        ids = np.stack([what.ids.numpy() for what in routed])
        source = np.arange(tokens) // (tokens // plan.sources)
        counts = np.stack([_table(layer, source, plan.sources, experts) for layer in ids])
        total = counts.sum(axis=1)
        if step % plan.every == 0:
            self._add("counts", counts.astype(np.uint16))
            self._add("recorded_at", np.array(step, dtype=np.int32))
        self._add("maxvio", maxvio(total).astype(np.float32))
        self._add("idle_now", np.array([idle(load).sum() for load in total], dtype=np.uint8))
        self._add("dropped", np.array([int((~what.kept).sum()) for what in routed], dtype=np.uint16))
        self._add("lm_loss", np.array(loss, dtype=np.float32))
        if step % plan.look == 0:
            self._look(step, routed, ids, np.repeat(domain, plan.size.length), bias)
        if step % plan.sample == 0:
            few = stream(plan.seed, "training", "sample", step).choice(tokens, size=plan.sampled, replace=False)
            few.sort()
            self._add("sampled_at", np.array(step, dtype=np.int32))
            self._add("logit_sample", np.stack([what.logits.numpy()[few] for what in routed]).astype(np.float16))
            self._add("sample_domain", np.repeat(domain, plan.size.length)[few].astype(np.uint8))
        self.steps = step + 1

    def _look(self, step: int, routed: Sequence[Routed], ids: NDArray[Any], domain: NDArray[Any], bias: Sequence[Any]) -> None:
        experts = self._plan.size.experts
        tokens = np.bincount(domain, minlength=self._domains)
        means, noises = [], []
        for what in routed:
            logits = what.logits.numpy().astype(np.float64)
            sums = np.stack([logits[domain == number].sum(axis=0) for number in range(self._domains)])
            mean = np.divide(sums, tokens[:, None], out=np.full_like(sums, np.nan), where=tokens[:, None] > 0)
            # A shift of all logits of a token changes no choice, so it is not noise.
            rest = logits - mean[domain]
            rest -= rest.mean(axis=1, keepdims=True)
            means.append(mean)
            noises.append(np.sqrt((rest**2).mean()))
        self._add("looked_at", np.array(step, dtype=np.int32))
        self._add("logit_mean", np.stack(means).astype(np.float32))
        self._add("logit_noise", np.array(noises, dtype=np.float32))
        self._add("gate_bias", np.stack([item.numpy() for item in bias]).astype(np.float32))
        self._add("domain_routes", np.stack([_table(layer, domain, self._domains, experts) for layer in ids]).astype(np.uint16))

    def _add(self, name: str, value: NDArray[Any]) -> None:
        self._kept.setdefault(name, []).append(value)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Return every array, steps first."""
        return {name: np.stack(values) for name, values in self._kept.items()}


def _table(ids: NDArray[Any], row: NDArray[Any], rows: int, experts: int) -> NDArray[np.int64]:
    """Return int[rows, E], routes of the tokens of each row to each expert."""
    return np.bincount((row[:, None] * experts + ids).ravel(), minlength=rows * experts).reshape(rows, experts)


def settings(plan: Plan) -> Mapping[str, Any]:
    """Return a plan as plain data."""
    return {**asdict(plan), "strategy": {"name": plan.strategy.name, **asdict(plan.strategy)}}
