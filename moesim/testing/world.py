"""A cluster, models and routings that are small enough to check by hand, made from facts alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.base.errors import TraceError
from moesim.base.streams import stream
from moesim.facts.arrays import Ints
from moesim.facts.cluster import Cluster
from moesim.facts.gpu import Gpu
from moesim.facts.model import Attention, MoeModel
from moesim.facts.placement import Placement
from moesim.facts.routing import Assignment, Fidelity, Kept, LayerRouting
from moesim.facts.scenario import Parallel, Setting, Workload
from moesim.facts.trace import Trace

SEED = 20240828


def tiny_cluster(gpus: int = 4, nodes: int = 2) -> Cluster:
    """Return GPUs in equal nodes, each with one link out and one in; the route from i to j is out of i, into j."""
    gpu = Gpu(
        name="tiny",
        flops={"fp32": 1e12, "bf16": 2e12, "fp16": 2e12, "fp8": 4e12, "int8": 4e12, "fp4": 8e12},
        memory=2.0**34,
        memory_bandwidth=1e11,
        nvlink=1e10,
        nic=1e9,
        sms=16,
    )
    pairs = [(i, j) for i in range(gpus) for j in range(gpus)]
    return Cluster(
        gpu=gpu,
        node_of=np.arange(gpus) * nodes // gpus,
        bandwidth=np.full(2 * gpus, 1e9),
        latency=np.full(2 * gpus, 1e-6),
        link_names=tuple(f"{way}:{i}" for way in ("out", "in") for i in range(gpus)),
        link_class=("nic",) * (2 * gpus),
        route_start=np.cumsum([0, *(0 if i == j else 2 for i, j in pairs)]),
        route_link=np.array([hop for i, j in pairs if i != j for hop in (i, gpus + j)], dtype=np.int64),
        basis="exact",
    )


def tiny_model(*, experts: int = 8, top_k: int = 2, shared: bool = True, dense: bool = True) -> MoeModel:
    """Return a model of two MoE layers, after a dense one if ``dense``; experts form four groups of which a token may use two."""
    return MoeModel(
        name="tiny",
        layers=3 if dense else 2,
        moe_layers=(1, 2) if dense else (0, 1),
        hidden=64,
        experts=experts,
        top_k=top_k,
        expert_width=32,
        shared_experts=1 if shared else 0,
        shared_width=32 if shared else 0,
        dense_width=128 if dense else 0,
        groups=4,
        top_groups=2,
        dispatch_width=64,
        vocabulary=256,
        attention=Attention(heads=4, score_width=16.0, projection_parameters=4 * 64 * 64, cache_bytes_per_token=256),
    )


def no_traces(path: str, **keys: Any) -> Trace:
    """Refuse to read a file: the checks have none."""
    raise TraceError(f"the check has no trace {path!r} {keys or ''}: pass settings whose read_trace gives one")


def tiny_setting(
    *,
    gpus: int = 4,
    ep: int = 4,
    experts: int = 8,
    top_k: int = 2,
    tokens_per_gpu: int = 16,
    phase: str = "training",
    seed: int = SEED,
    read_trace: Callable[..., Trace] = no_traces,
) -> Setting:
    """Return what a plug-in may know when a run begins, for the tiny cluster and model.

    Parameters
    ----------
    gpus, ep, experts, top_k, tokens_per_gpu, phase, seed : int or str
        As in a scenario; ``gpus`` must be even.
    read_trace : callable
        Gives the recording for a name; the default has none.
    """
    return Setting(
        cluster=tiny_cluster(gpus),
        model=tiny_model(experts=experts, top_k=top_k),
        parallel=Parallel(ep=ep),
        workload=Workload(phase=phase, tokens_per_gpu=tokens_per_gpu, context=32),
        seed=seed,
        read_trace=read_trace,
    )


def tiny_settings(read_trace: Callable[..., Trace] = no_traces) -> tuple[Setting, ...]:
    """Return the settings that a check uses unless it is given others: one group, two groups, no parallelism, one choice, many experts."""
    return (
        tiny_setting(read_trace=read_trace),
        tiny_setting(ep=2, read_trace=read_trace),
        tiny_setting(ep=1, read_trace=read_trace),
        tiny_setting(top_k=1, read_trace=read_trace),
        tiny_setting(experts=16, top_k=4, tokens_per_gpu=24, seed=SEED + 1, read_trace=read_trace),
    )


def tiny_routing(setting: Setting, fidelity: Fidelity = Fidelity.SCORES, *, number: int = 0, uneven: bool = False) -> LayerRouting:
    """Return a skewed routing of one layer.

    Parameters
    ----------
    setting : Setting
        For its sizes and seed.
    fidelity : Fidelity
        What the routing knows; the choices are the same for all.
    number : int
        Another number, other choices.
    uneven : bool
        Take tokens away from the second GPU, and all of them from the last.
    """
    rng = stream(setting.seed, "testing", "routing", number)
    tokens = np.full(setting.gpus, setting.workload.tokens_per_gpu)
    if uneven:
        tokens[1] //= 3
        tokens[-1] = 0
    token_start = np.concatenate(([0], np.cumsum(tokens)))
    experts, top_k = setting.model.experts, setting.model.top_k
    scores = rng.standard_normal((int(token_start[-1]), experts)) + rng.laplace(size=experts)
    ids = np.argsort(-scores, axis=1, kind="stable")[:, :top_k].astype(np.int32)
    chosen = np.exp(np.take_along_axis(scores, ids.astype(np.int64), axis=1))
    known = LayerRouting.of_tokens(
        ids,
        token_start,
        experts,
        weights=(chosen / chosen.sum(axis=1, keepdims=True)).astype(np.float32) if fidelity >= Fidelity.WEIGHTS else None,
        scores=scores.astype(np.float32) if fidelity >= Fidelity.SCORES else None,
    )
    if fidelity >= Fidelity.TOKENS:
        return known
    return LayerRouting(experts=experts, token_start=token_start, counts=known.counts)


def tiny_routings(setting: Setting) -> Iterator[LayerRouting]:
    """Yield routings of every fidelity from scores to counts by source, with equal and with uneven sources."""
    for fidelity in sorted(Fidelity, reverse=True)[:-1]:
        yield tiny_routing(setting, fidelity)
        yield tiny_routing(setting, fidelity, number=1, uneven=True)


def tiny_kept(routing: LayerRouting, *, number: int = 0) -> Kept:
    """Return the routing after a rule that drops about a fifth of the routes and adds some padding; nothing is dropped of bare counts."""
    rng = stream(SEED, "testing", "kept", number)
    padding = rng.integers(0, 3, size=routing.counts.shape)
    if routing.ids is None:
        return Kept(routing=routing, dropped=np.zeros_like(routing.counts), padding=padding)
    gone = rng.random(routing.ids.shape) < 0.2
    left = LayerRouting.of_tokens(
        np.where(gone, -1, routing.ids).astype(routing.ids.dtype),
        routing.token_start,
        routing.experts,
        weights=None if routing.weights is None else np.where(gone, 0, routing.weights).astype(routing.weights.dtype),
        scores=routing.scores,
    )
    return Kept(routing=left, dropped=routing.counts - left.counts, padding=padding, fully_dropped=int(gone.all(axis=1).sum()))


def tiny_placements(setting: Setting) -> Iterator[Placement]:
    """Yield placements: experts in order, one slot each; and with one more slot per rank, which layers fill differently."""
    experts, ranks, layers = setting.model.experts, setting.parallel.ep, len(setting.model.moe_layers)
    per_rank = experts // ranks
    yield Placement(expert_of_slot=np.tile(np.arange(experts), (layers, 1)), rank_of_slot=np.arange(experts) // per_rank)
    rows = []
    for layer in range(layers):
        slots = np.arange(experts).reshape(ranks, per_rank)
        extra = (np.arange(ranks)[:, None] * 3 + 5 * layer) % experts
        rows.append(np.concatenate([slots, extra], axis=1).ravel())
    yield Placement(expert_of_slot=np.stack(rows), rank_of_slot=np.repeat(np.arange(ranks), per_rank + 1))


def tiny_assignment(kept: Kept, placement: Placement, setting: Setting, *, moe_layer: int = 0) -> Assignment:
    """Bind every kept route to the first slot that holds its expert."""
    expert_of_slot = placement.expert_of_slot[moe_layer]
    first = np.array([int(np.argmax(expert_of_slot == expert)) for expert in range(kept.routing.experts)])

    def spread(rows: Ints) -> Ints:
        slots = np.zeros((len(rows), placement.slots), dtype=np.int64)
        slots[:, first] = rows
        return slots

    slots: NDArray[Any] | None = None
    if kept.routing.ids is not None:
        slots = np.where(kept.routing.ids < 0, -1, first[kept.routing.ids])
    return Assignment(
        kept=kept,
        slot_counts=spread(kept.routing.counts),
        slot_padding=spread(kept.padding),
        destination=home(placement, setting),
        slots=slots,
    )


def home(placement: Placement, setting: Setting) -> Ints:
    """Return int[G, S], the GPU that holds each slot in the group of each source."""
    ranks = setting.parallel.ep
    return np.asarray(np.arange(setting.gpus)[:, None] // ranks * ranks + placement.rank_of_slot[None, :])
