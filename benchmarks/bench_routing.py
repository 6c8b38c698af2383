"""Token-choices per second of the capacity rules, on one core."""

from functools import lru_cache

import numpy as np
import pytest

from moesim.base.registry import plugin
from moesim.facts.routing import LayerRouting
from moesim.facts.trace import Trace
from moesim.models.bare_setting import bare_setting

TOKENS, EXPERTS, GPUS = 65_536, 256, 64


def no_trace(path: str) -> Trace:
    raise AssertionError(path)


@lru_cache
def routing(top_k: int) -> LayerRouting:
    rng = np.random.default_rng(0)
    popularity = rng.lognormal(sigma=0.5, size=EXPERTS)
    noise = rng.gumbel(size=(TOKENS, EXPERTS)).astype(np.float32) + np.log(popularity).astype(np.float32)
    ids = np.argpartition(-noise, top_k, axis=1)[:, :top_k].astype(np.uint8)
    weights = rng.random((TOKENS, top_k), dtype=np.float32)
    return LayerRouting.of_tokens(ids, np.arange(GPUS + 1) * (TOKENS // GPUS), EXPERTS, weights=weights, scores=noise)


RULES = [
    ("megatron", {"factor": 1.25, "drop": "probs"}, 8),
    ("megatron", {"factor": 1.25, "drop": "position"}, 8),
    ("deepspeed", {"factor": 1.25}, 8),
    ("deepspeed", {"factor": 1.25}, 1),
    ("tutel", {"factor": 1.25}, 8),
    ("tutel", {"factor": 1.25, "batch_prioritized_routing": True}, 8),
    ("tutel", {"factor": 0.0}, 8),
    ("vmoe", {"factor": 1.25, "batch_priority": True}, 8),
    ("dmoe", {}, 8),
    ("megablocks", {"factor": 1.25}, 8),
    ("hybrid_ep", {"factor": 1.1}, 8),
    ("deepseek_v2", {}, 8),
    ("fastmoe", {"factor": 1.25}, 8),
    ("fastmoe", {"gate": "switch", "factor": 1.25}, 1),
    ("switch", {}, 1),
    ("gshard", {}, 2),
    ("next_best", {"factor": 1.25}, 8),
]


@pytest.mark.parametrize(("rule", "keys", "top_k"), RULES)
def test_capacity(benchmark, rule, keys, top_k):
    setting = bare_setting(gpus=GPUS, layers=1, experts=EXPERTS, top_k=top_k, tokens_per_gpu=TOKENS // GPUS, seed=0, read_trace=no_trace)
    limit = plugin("capacity", rule)(**keys).begin(setting)
    kept = benchmark(lambda: limit(routing(top_k), step=0, moe_layer=0))
    benchmark.extra_info["million_choices_per_s"] = TOKENS * top_k / benchmark.stats["median"] / 1e6
    changed = kept.dropped.sum() + kept.padding.sum() if kept.moved is None else np.abs(kept.moved).sum()
    assert changed > 0
