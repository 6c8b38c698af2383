"""How much memory a GPU needs, as a distribution over steps; how large buffers must be, and how likely an unlucky GPU runs out."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.stats import binomtest

from moesim.base.errors import UsageError
from moesim.engine.own_tokens import held_tokens
from moesim.engine.rows import Rows
from moesim.facts.arrays import Floats
from moesim.facts.model import DTYPE_BYTES
from moesim.facts.scenario import Scenario
from moesim.facts.trace import Trace
from moesim.models.memory import activation_bytes, expert_bytes, weight_bytes
from moesim.models.memory_parts import activation_parts, weight_parts
from moesim.models.parallel_memory import held_by, spread_or_recomputed
from moesim.models.schedule.whole import step_program
from moesim.models.stages import setting_of

QUANTILES = {"p50": 0.5, "p99": 0.99, "max": 1.0}
LEVELS = tuple(level / 20 for level in range(21))
"""Shares of the steps at which a distribution is told: from the step with the least to the one with the most."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """A quantity that varies from step to step: its mean, its median, its 99th percentile, and its maximum over the steps."""

    mean: float
    p50: float
    p99: float
    max: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Chance:
    """A probability: the share of steps, and the exact interval of Clopper and Pearson at 95 %."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuMemory:
    """One GPU.

    ``rows`` is what it receives in the layer that counts: the fullest of a step, or the mean of all layers in training, which holds all at
    once. ``buffer`` is the receive buffer and the result buffer of the fullest layer of a step. All in B but for ``rows``.
    """

    gpu: int
    weights: float
    rows: Spread
    buffer: Spread
    activations: Spread
    total: Spread
    out_of_memory: Chance | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Breakdown:
    """What the GPU that needs most holds in the step in which it does, in B; ``rebalanced`` are experts copied to it for a batch."""

    gpu: int
    step: int
    weights: float
    gradients: float
    optimiser: float
    activations: float
    expert_rows: float
    cache: float
    rebalanced: float


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryNeed:
    """What the GPUs of a scenario need.

    Attributes
    ----------
    gpus : tuple of GpuMemory
    any_gpu : Spread
        The largest total of any GPU in a step.
    buffer_rows : Spread
        Rows of the fullest layer on the fullest GPU in a step: what a buffer of fixed size must hold.
    buffer : Spread
        Bytes of such a buffer: of the rows that come in and of their results.
    any_gpu_levels : tuple of float
        Of the largest total of any GPU in a step: what at most a share of :data:`LEVELS` of the steps need.
    mean_rows : float
        Rows of the mean GPU in the mean layer.
    gpu_memory : float
        What a GPU has, B.
    out_of_memory : Chance or None
        That any GPU needs more than the limit in a step; None without a limit.
    limit : float or None
        B.
    steps, independent : int
        Steps looked at, and how many of them had tokens of their own.
    fullest : Breakdown
        Of the GPU that needs most.
    """

    gpus: tuple[GpuMemory, ...]
    any_gpu: Spread
    buffer_rows: Spread
    buffer: Spread
    any_gpu_levels: tuple[float, ...]
    mean_rows: float
    gpu_memory: float
    out_of_memory: Chance | None
    limit: float | None
    steps: int
    independent: int
    fullest: Breakdown


def spread(values: Floats) -> Spread:
    """Return mean and quantiles of float[N]; a quantile is a value that occurred, the smallest that at least so many do not exceed."""
    p50, p99, most = (float(np.quantile(values, share, method="inverted_cdf")) for share in QUANTILES.values())
    return Spread(mean=float(np.mean(values)), p50=p50, p99=p99, max=most)


def chance(happened: int, of: int) -> Chance:
    """Return a share with the exact interval of C. J. Clopper and E. S. Pearson (Biometrika 26, 1934) at 95 %."""
    interval = binomtest(happened, of).proportion_ci(confidence_level=0.95, method="exact")
    return Chance(value=happened / of, low=float(interval.low), high=float(interval.high))


def memory_need(scenario: Scenario, rows: Rows, *, limit: float | None = None) -> MemoryNeed:
    """Return how much memory the GPUs of a scenario need.

    Parameters
    ----------
    scenario : Scenario
        Its model and workload say what a row costs (:mod:`moesim.models.memory`).
    rows : Rows
        What arrived.
    limit : float, optional
        Memory of a GPU that may be used, B.
    """
    setting = setting_of(scenario, _no_trace)
    model, workload = setting.model, scenario.workload
    received = rows.received.astype(np.float64)
    held = received.mean(axis=1) if workload.phase == "training" else received.max(axis=1)
    fullest = received.max(axis=1)
    # A row comes in and its result goes out, in the dtype of activations.
    of_row = 2.0 * model.dispatch_width * DTYPE_BYTES[model.activation_dtype]
    guests = rows.guests.max(axis=1) * expert_bytes(model, workload.phase, optimiser=False)
    laid = None
    if spread_or_recomputed(setting):
        laid = step_program(scenario.schedule, scenario.model, workload, parallel=scenario.parallel, training=scenario.training)
    tokens, contexts = held_tokens(setting, rows.tokens, np.arange(scenario.warmup, scenario.warmup + len(received)))
    gpus = []
    numbers = scenario.parallel.numbers(setting.gpus)
    totals = np.zeros(held.shape)
    fresh = rows.fresh
    for gpu, slots in enumerate(rows.slots):
        if laid is None:
            weights = weight_bytes(model, int(slots), workload.phase)
            activations = activation_bytes(model, workload, held[:, gpu], tokens=tokens[:, gpu], context=contexts[:, gpu])
        else:
            weights, activations = held_by(setting, laid, gpu, int(slots), received[:, :, gpu], tokens[:, gpu], contexts[:, gpu])
        totals[:, gpu] = weights + activations + guests[:, gpu]
        gpus.append(
            GpuMemory(
                gpu=int(numbers[gpu]),
                weights=weights,
                rows=spread(held[:, gpu]),
                buffer=spread(fullest[:, gpu] * of_row),
                activations=spread(activations),
                total=spread(totals[:, gpu]),
                out_of_memory=None if limit is None else chance(int((totals[fresh, gpu] > limit).sum()), int(fresh.sum())),
            )
        )
    worst = totals.max(axis=1)
    step, gpu = (int(index) for index in np.unravel_index(int(totals.argmax()), totals.shape))
    arrived = held[step, gpu] if laid is None else received[step, :, gpu]
    parts = activation_parts(setting, laid, gpu, arrived, tokens[step, gpu], contexts[step, gpu])
    return MemoryNeed(
        gpus=tuple(sorted(gpus, key=lambda one: one.gpu)),
        any_gpu=spread(worst),
        buffer_rows=spread(fullest.max(axis=1)),
        buffer=spread(fullest.max(axis=1) * of_row),
        any_gpu_levels=tuple(np.quantile(worst, LEVELS, method="inverted_cdf").tolist()),
        mean_rows=float(received.mean()) * scenario.parallel.pp,
        gpu_memory=float(setting.cluster.gpu.memory),
        out_of_memory=None if limit is None else chance(int((worst[fresh] > limit).sum()), int(fresh.sum())),
        limit=limit,
        steps=len(received),
        independent=int(fresh.sum()),
        fullest=Breakdown(
            gpu=int(numbers[gpu]),
            step=scenario.warmup + step,
            rebalanced=float(guests[step, gpu]),
            **weight_parts(setting, laid, gpu, int(rows.slots[gpu])),
            **{name: float(size) for name, size in parts.items()},
        ),
    )


def _no_trace(path: str) -> Trace:
    raise UsageError(f"what arrived is known already, and {path} is not read again")
