"""Token-choices per second of the gates, on one core: what a token's scores become choices and weights in."""

from functools import lru_cache

import numpy as np
import pytest

from moesim.base.registry import plugin
from moesim.facts.routing import LayerRouting
from moesim.facts.trace import Trace
from moesim.models.bare_setting import bare_setting

TOKENS, EXPERTS, GPUS, TOP_K = 65_536, 256, 64, 8


def no_trace(path: str) -> Trace:
    raise AssertionError(path)


@lru_cache
def scored() -> LayerRouting:
    """65,536 tokens on 64 GPUs, and their logits for 256 experts, skewed; nothing is chosen yet."""
    rng = np.random.default_rng(0)
    logits = rng.standard_normal((TOKENS, EXPERTS), dtype=np.float32) + rng.laplace(scale=0.32, size=EXPERTS).astype(np.float32)
    none = np.zeros((TOKENS, 1), dtype=np.int32)
    return LayerRouting.of_tokens(none, np.arange(GPUS + 1) * (TOKENS // GPUS), EXPERTS, scores=logits)


GATES = [
    ("topk", {}, TOP_K),
    ("topk", {"scoring": "sigmoid"}, TOP_K),
    ("group_limited", {"groups": 8, "top_groups": 4, "scoring": "sigmoid"}, TOP_K),
    ("loss_free", {"scoring": "sigmoid"}, TOP_K),
    ("loss_free", {"scoring": "sigmoid", "groups": 8, "top_groups": 4}, TOP_K),
    ("quantile", {}, TOP_K),
    ("noisy_topk", {}, TOP_K),
    ("input_jitter", {}, TOP_K),
    ("zero_computation", {}, TOP_K),
    ("top_p", {"mass": 0.4}, TOP_K),
    ("expert_choice", {"factor": TOP_K}, TOP_K),
    ("hash", {"words": "zipf", "vocabulary": 128_000}, TOP_K),
    ("gshard_top2", {}, 2),
    ("deepspeed_top2", {}, 2),
    ("sinkhorn", {}, TOP_K),
]
"""``base`` has its own benchmark: its auction is of another order."""


@pytest.mark.parametrize(("kind", "keys", "top_k"), GATES)
def test_gate(benchmark, kind, keys, top_k):
    setting = bare_setting(gpus=GPUS, layers=1, experts=EXPERTS, top_k=top_k, tokens_per_gpu=TOKENS // GPUS, seed=0, read_trace=no_trace)
    choose = plugin("gate", kind)(**keys).begin(setting)
    found = benchmark.pedantic(lambda: choose(scored(), step=0, moe_layer=0), rounds=5, warmup_rounds=1)
    benchmark.extra_info["million_choices_per_s"] = found.routes / benchmark.stats["median"] / 1e6
    assert found.routes >= TOKENS
