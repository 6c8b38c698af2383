"""A setting without a machine: enough to draw routing or to apply a capacity rule, where no time passes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from moesim.facts.cluster import Cluster
from moesim.facts.gpu import Gpu
from moesim.facts.model import Attention, MoeModel
from moesim.facts.scenario import Parallel, Setting, Workload
from moesim.facts.trace import Trace


def bare_setting(
    *,
    gpus: int,
    experts: int,
    top_k: int,
    layers: int,
    tokens_per_gpu: int,
    seed: int,
    read_trace: Callable[..., Trace],
    name: str = "bare",
) -> Setting:
    """Return a setting of G unconnected GPUs and a model of MoE layers only.

    Parameters
    ----------
    gpus, experts, top_k, layers, tokens_per_gpu : int
        G, E, k, L, and the tokens of one GPU in one step.
    seed : int
        For the random streams.
    read_trace : callable
        Reads recordings for sources that replay one.
    name : str
        Of the model, for messages.

    Notes
    -----
    All speeds are 1 in their SI unit and no two GPUs are joined by a link: nothing that costs time may be asked of this setting.
    """
    gpu = Gpu(name=name, flops={"bf16": 1.0}, memory=1.0, memory_bandwidth=1.0, nvlink=1.0, nic=1.0, sms=1)
    cluster = Cluster(
        gpu=gpu,
        node_of=np.zeros(gpus, dtype=np.int64),
        bandwidth=np.empty(0),
        latency=np.empty(0),
        link_names=(),
        link_class=(),
        route_start=np.zeros(gpus * gpus + 1, dtype=np.int64),
        route_link=np.empty(0, dtype=np.int64),
        basis="exact",
    )
    model = MoeModel(
        name=name,
        layers=layers,
        moe_layers=tuple(range(layers)),
        hidden=1,
        experts=experts,
        top_k=top_k,
        expert_width=1,
        dispatch_width=1,
        attention=Attention(heads=1, score_width=1.0, projection_parameters=0, cache_bytes_per_token=0),
    )
    workload = Workload(tokens_per_gpu=tokens_per_gpu)
    return Setting(cluster=cluster, model=model, parallel=Parallel(ep=gpus), workload=workload, seed=seed, read_trace=read_trace)
