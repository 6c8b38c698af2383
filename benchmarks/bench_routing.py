"""Token-choices per second of the capacity rules, on one core."""

import numpy as np
import pytest

from moesim.base.registry import plugin
from moesim.facts.routing import LayerRouting
from moesim.facts.trace import Trace
from moesim.models.bare_setting import bare_setting

TOKENS, EXPERTS, TOP_K, GPUS = 65_536, 256, 8, 64


def no_trace(path: str) -> Trace:
    raise AssertionError(path)


@pytest.fixture(scope="module")
def routing() -> LayerRouting:
    rng = np.random.default_rng(0)
    popularity = rng.lognormal(sigma=0.5, size=EXPERTS)
    noise = rng.gumbel(size=(TOKENS, EXPERTS)).astype(np.float32) + np.log(popularity).astype(np.float32)
    ids = np.argpartition(-noise, TOP_K, axis=1)[:, :TOP_K].astype(np.uint8)
    weights = rng.random((TOKENS, TOP_K), dtype=np.float32)
    return LayerRouting.of_tokens(ids, np.arange(GPUS + 1) * (TOKENS // GPUS), EXPERTS, weights=weights)


@pytest.mark.parametrize(("rule", "keys"), [("megatron", {"drop": "probs"}), ("megatron", {"drop": "position"}), ("deepspeed", {})])
def test_capacity(benchmark, routing, rule, keys):
    setting = bare_setting(gpus=GPUS, layers=1, experts=EXPERTS, top_k=TOP_K, tokens_per_gpu=TOKENS // GPUS, seed=0, read_trace=no_trace)
    limit = plugin("capacity", rule)(factor=1.25, **keys).begin(setting)
    kept = benchmark(lambda: limit(routing, step=0, moe_layer=0))
    benchmark.extra_info["million_choices_per_s"] = TOKENS * TOP_K / benchmark.stats["median"] / 1e6
    assert kept.dropped.sum() > 0
