"""Small worlds and routings for tests of policies: a setting of G GPUs, and routings with ties, skew, gaps and idle sources."""

import numpy as np
from clusters import star
from hypothesis import strategies as st

from moesim.facts.model import Attention, MoeModel
from moesim.facts.routing import LayerRouting
from moesim.facts.scenario import Parallel, Setting, Workload


def no_trace(path: str) -> None:
    raise AssertionError(f"nobody should read {path}")


def world(
    *,
    gpus: int = 1,
    ep: int | None = None,
    experts: int = 8,
    top_k: int = 2,
    moe_layers: int = 2,
    seed: int = 0,
    tokens_per_gpu: int = 1,
    phase: str = "training",
    **facts: int,
) -> Setting:
    """Return a setting; only sizes matter to the policies. ``facts`` are further keys of the model."""
    model = MoeModel(
        name="test",
        layers=moe_layers,
        moe_layers=tuple(range(moe_layers)),
        hidden=4,
        experts=experts,
        top_k=top_k,
        expert_width=4,
        dispatch_width=4,
        **facts,
        attention=Attention(heads=1, score_width=1.0, projection_parameters=1, cache_bytes_per_token=1),
    )
    return Setting(
        cluster=star(gpus),
        model=model,
        parallel=Parallel(ep=gpus if ep is None else ep),
        workload=Workload(phase=phase, tokens_per_gpu=tokens_per_gpu),
        seed=seed,
        read_trace=no_trace,
    )


def random_routing(seed: int, *, gpus: int, experts: int, top_k: int, most: int, gaps: bool = False) -> LayerRouting:
    """Return a skewed routing with many equal weights; sources have 0 to ``most`` tokens; with ``gaps`` some choices are missing."""
    rng = np.random.default_rng(seed)
    start = np.concatenate([[0], np.cumsum(rng.integers(0, most + 1, gpus))])
    liking = rng.exponential(size=(start[-1], experts)) / np.linspace(0.2, 2.0, experts)
    ids = np.argsort(-liking, axis=1)[:, :top_k].astype(np.int32)
    ids = rng.permuted(ids, axis=1)  # recordings have slots in any order
    weights = (rng.integers(1, 5, ids.shape) / 4).astype(np.float32)
    if gaps:
        ids[rng.random(ids.shape) < 0.2] = -1
        weights[ids < 0] = 0
    return LayerRouting.of_tokens(ids, start, experts, weights=weights)


def routings(*, gaps: bool = True, top_k: int | None = None) -> st.SearchStrategy[LayerRouting]:
    """Draw tiny routings."""
    return st.builds(
        random_routing,
        st.integers(0, 2**32 - 1),
        gpus=st.integers(1, 4),
        experts=st.integers(4, 7),
        top_k=st.integers(1, 4) if top_k is None else st.just(top_k),
        most=st.integers(0, 12),
        gaps=st.booleans() if gaps else st.just(False),
    )


def counts_of(routing: LayerRouting) -> LayerRouting:
    """Return what a trace of counts by source would know of ``routing``."""
    return LayerRouting(experts=routing.experts, token_start=routing.token_start, counts=routing.counts)
