"""What memory is made of: parts that add up, in every phase and spread; and DeepSeek-V3 by hand."""

import dataclasses
from functools import cache

import pytest
from worlds import no_trace

from moesim.desk.memory_answer import answer, text
from moesim.desk.scenario_file import read_scenario
from moesim.engine.rows import rows_of_steps
from moesim.study.memory import memory_need

DEEPSEEK = """
name: DeepSeek-V3
model: {preset: deepseek-v3}
cluster: {kind: nvlink_nodes, nodes: 4, gpus_per_node: 8, gpu: h200-sxm}
parallel: {ep: 32}
workload: {phase: decode, tokens_per_gpu: 128, context: 4096}
routing: {kind: balanced}
"""
SMALL = """
name: small
model: {preset: deepseek-v2-lite, layers: 4, moe_layers: [1, 2, 3]}
cluster: {kind: nvlink_nodes, nodes: 2, gpus_per_node: 4}
parallel: {ep: 2}
workload: {tokens_per_gpu: 256}
routing: {kind: uniform}
"""
SPREAD = (
    "parallel.tp=2",
    "parallel.pp=2",
    "schedule={kind: pipeline, microbatches: 4, operation: reduce_scatter, gather_parameters: true}",
)
SHARDED = (*SPREAD, "training={sharding: data_parallel, recompute: full}")


@cache
def need(written, *overrides):
    scenario = read_scenario(written, file="here", folder=".", overrides=overrides)
    return scenario, memory_need(scenario, rows_of_steps(scenario, read_trace=no_trace))


def parts(found):
    values = dataclasses.asdict(found.fullest)
    return {name: value for name, value in values.items() if name not in ("gpu", "step")}


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("workload.phase=decode",),
        ("workload.phase=prefill",),
        SPREAD,
        SHARDED,
        ("training={recompute: selective, recompute_modules: [moe]}",),
    ],
)
def test_the_parts_add_up_to_what_the_fullest_gpu_holds(overrides):
    _, found = need(SMALL, *overrides)
    assert sum(parts(found).values()) == pytest.approx(found.any_gpu.max, rel=1e-12)
    assert all(value >= 0 for value in parts(found).values())
    gpu = found.gpus[found.fullest.gpu]
    assert found.fullest.weights + found.fullest.gradients + found.fullest.optimiser == pytest.approx(gpu.weights, rel=1e-12)


def test_training_without_sharding_is_18_bytes_of_each_bf16_parameter():
    # Megatron-LM's mixed precision: 2 of the weight, 4 of the gradient, 12 of Adam's states and the fp32 copy.
    _, found = need(SMALL)
    assert found.fullest.gradients == pytest.approx(2 * found.fullest.weights)
    assert found.fullest.optimiser == pytest.approx(6 * found.fullest.weights)
    assert found.fullest.cache == 0


def test_sharding_divides_states_and_nothing_else():
    _, whole = need(SMALL, *SPREAD)
    _, shared = need(SMALL, *SHARDED)
    assert (shared.fullest.weights, shared.fullest.gradients) == (whole.fullest.weights, whole.fullest.gradients)
    # 4 GPUs of a stage: attention and shared experts have 4 / tp = 2 copies, an expert 4 / ep = 2.
    assert shared.fullest.optimiser == pytest.approx(whole.fullest.optimiser / 2)


def test_deepseek_v3_by_hand():
    # Expert: 3 x 7168 x 2048 parameters of one byte (fp8); 256 / 32 = 8 of each of 58 layers.
    experts = 58 * 8 * 3 * 7168 * 2048
    # Attention (MLA): queries down 7168 x 1536 and up 1536 x 128 x 192; keys and values down 7168 x (512 + 64), up 512 x 128 x (128 + 128);
    # output 128 x 128 x 7168: 187.1 M in each of 61 layers.
    attention = 61 * (7168 * 1536 + 1536 * 128 * 192 + 7168 * 576 + 512 * 128 * 256 + 128 * 128 * 7168)
    dense, shared = 3 * 3 * 7168 * 18432, 58 * 3 * 7168 * 2048
    kept = 2 * (58 * 7168 * 256 + 2 * 129280 * 7168)  # routers, embedding and head in bf16
    scenario, found = need(DEEPSEEK)
    assert found.fullest.weights == pytest.approx(experts + attention + dense + shared + kept, rel=1e-9)
    # Published: 671 B parameters (arXiv:2412.19437), here with all 256 experts and without the module that predicts further tokens.
    assert experts * 32 + attention + dense + shared + kept / 2 == pytest.approx(671e9, rel=2e-3)
    # Published: 70.272 KB of keys and values per token (arXiv:2505.09343, table 1): (512 + 64) x 2 B x 61 layers.
    assert scenario.model.layers * scenario.model.attention.cache_bytes_per_token == 70_272
    assert found.fullest.cache == 128 * 4096 * 70_272
    # 8 routes of each of 128 tokens on every GPU: 1,024 rows, bf16, in and out (2 x 7168) and 3 x 2048 between.
    assert found.fullest.expert_rows == pytest.approx(1024 * 2 * (2 * 7168 + 3 * 2048))
    assert found.fullest.gradients == found.fullest.optimiser == 0


def test_the_answer_says_it():
    scenario, found = need(DEEPSEEK)
    said = text(answer(scenario, found))
    assert "which needs most, in step 0" in said
    assert "keys and values" in said
    assert "optimiser states" not in said
