"""Arithmetic and memory traffic of dense phases, against sums done by hand."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moesim.base.errors import UsageError
from moesim.facts.model import Attention, MoeModel
from moesim.models.work import PHASES, dense_work, permute_bytes

MODEL = MoeModel(
    name="hand",
    layers=2,
    moe_layers=(1,),
    hidden=8,
    experts=4,
    top_k=2,
    expert_width=16,
    shared_experts=1,
    shared_width=5,
    dense_width=32,
    dispatch_width=8,
    weight_dtype="fp8",
    expert_dtype="fp8",
    activation_dtype="bf16",
    attention=Attention(heads=2, score_width=4.0, projection_parameters=256, cache_bytes_per_token=32),
)


def test_dense_block_by_hand():
    # 3 tokens, three matrices of 8 x 32: 3 * 768 * 2 flops; bytes: 768 weights of 1 B, and per token (2*8 + 6*32) elements of 2 B.
    work = dense_work("dense", MODEL, [3, 0], 100)
    assert work.flops.tolist() == [4608.0, 0.0]
    assert work.moved.tolist() == [768 + 3 * 208 * 2, 0.0]
    assert work.dtype == "fp8"


def test_backward_of_a_block_is_two_products_and_writes_fp32_gradients():
    # dgrad and wgrad: twice the flops; weights read once, 4 B of gradient for each, twice the activations.
    work = dense_work("dense", MODEL, [3], 100, "backward")
    assert work.flops.tolist() == [9216.0]
    assert work.moved.tolist() == [768 * (1 + 4) + 2 * 3 * 208 * 2]


def test_attention_by_hand():
    # 2 tokens, 256 weights, 10 tokens of context, 2 heads of 4: 2*2*256 + 4*10*8*2 flops; backward 2x and 2.5x (FlashAttention-2).
    assert dense_work("attention", MODEL, [2], 10).flops.tolist() == [1024 + 640]
    assert dense_work("attention", MODEL, [2], 10, "backward").flops.tolist() == [2048 + 1600]


def test_decode_reads_the_whole_cache_for_each_token():
    # The difference between decode and prefill: 2 tokens * 256 tokens of context * 32 B, against the same in blocks of 128 queries.
    decode = dense_work("attention", MODEL, [2], 256, workload_phase="decode").moved[0]
    prefill = dense_work("attention", MODEL, [2], 256, workload_phase="prefill").moved[0]
    assert decode - prefill == 2 * 32 * (256 - 2)


def test_gate_and_shared_by_hand():
    # Router 8 x 4 for 5 tokens: 2*32*5 flops in bf16; shared experts: three matrices of 8 x 5.
    gate = dense_work("gate", MODEL, [5], 100)
    assert gate.flops.tolist() == [320.0]
    assert gate.dtype == "bf16"
    assert gate.moved.tolist() == [32 * 2 + 5 * (8 * 2 + 2 * 4 * 4)]
    assert dense_work("shared", MODEL, [5], 100).flops.tolist() == [5 * 2 * 120]


def test_a_block_without_a_gate_has_two_matrices():
    # Two matrices of 8 x 32 for 3 tokens; per token 2*8 + 4*32 elements.
    work = dense_work("dense", replace(MODEL, gated=False), [3], 100)
    assert work.flops.tolist() == [3 * 2 * 512]
    assert work.moved.tolist() == [512 + 3 * 144 * 2]


def test_permutation_reads_and_writes_rows_twice():
    assert permute_bytes(MODEL, [0, 3]).tolist() == [0.0, 4 * 3 * 8 * 2]


@settings(max_examples=40, deadline=None)
@given(phase=st.sampled_from(PHASES), direction=st.sampled_from(["forward", "backward"]), tokens=st.integers(0, 10_000))
def test_work_never_falls_with_tokens(phase, direction, tokens):
    work = dense_work(phase, MODEL, np.array([tokens, tokens + 1]), 64, direction)
    assert work.flops[0] < work.flops[1]
    assert work.moved[0] < work.moved[1]
    assert (work.flops[0] == 0) == (work.moved[0] == 0) == (tokens == 0)


def test_unknown_phase_and_direction_are_named():
    with pytest.raises(UsageError, match="unknown phase 'atention'; did you mean 'attention'"):
        dense_work("atention", MODEL, [1], 1)
    with pytest.raises(UsageError, match="unknown direction 'sideways'"):
        dense_work("gate", MODEL, [1], 1, "sideways")


def test_attention_reads_and_writes_by_hand_in_both_directions():
    # 2 tokens, 256 tokens of context, 2 heads of 4: per token the residual stream in and out and queries and results, (2*8 + 4*8) elements
    # of 2 B = 96 B; 256 weights of 1 B; cache 32 B written per token, and 256/128 reads of it: 32 * 3.
    forward = dense_work("attention", MODEL, [2], 256)
    assert forward.moved.tolist() == [256 + 2 * 96 + 2 * 32 * 3]
    # Backward: a gradient of 4 B beside each weight, twice the activations, and the cache twice: once read, once as gradients.
    backward = dense_work("attention", MODEL, [2], 256, "backward")
    assert backward.moved.tolist() == [256 * (1 + 4) + 2 * 2 * 96 + 2 * 2 * 32 * 3]


@pytest.mark.parametrize("direction", ["forward", "backward"])
@pytest.mark.parametrize("phase", PHASES)
def test_every_gpu_pays_for_its_own_tokens(phase, direction):
    # Four GPUs with unequal tokens: each as if it were alone, in every order; a GPU without tokens does nothing at all.
    tokens = [1, 700, 0, 3]
    together = dense_work(phase, MODEL, tokens, 64, direction)
    alone = [dense_work(phase, MODEL, [count], 64, direction) for count in tokens]
    assert together.flops.tolist() == [work.flops[0] for work in alone]
    assert together.moved.tolist() == [work.moved[0] for work in alone]
    assert (together.flops[2], together.moved[2]) == (0.0, 0.0)
    # Flops are proportional to tokens; bytes are not, since weights are read once: 700 tokens share one read with each other.
    assert together.flops[1] == 700 * together.flops[0]
    if phase == "attention_core":  # it has no weights
        assert together.moved[3] == 3 * together.moved[0]
    else:
        assert together.moved[0] < together.moved[3] < 3 * together.moved[0]


def test_latent_experts_project_on_the_token_s_own_gpu():
    # Width 8 to 4 and back: 2 * 32 weights beside the router's 32; per token 8 * 2 B in and 4 scores twice in 4 B, and 2 * (8 + 4) of 2 B.
    gate = dense_work("gate", replace(MODEL, dispatch_width=4), [5], 100)
    assert gate.flops.tolist() == [5 * 2 * (32 + 64)]
    assert gate.moved.tolist() == [(32 + 64) * 2 + 5 * (16 + 32 + 48)]


def test_no_shared_experts_no_work():
    # A block of width 0 has no weights and no activations either: the residual stream does not pass through it.
    none = dense_work("shared", replace(MODEL, shared_experts=0, shared_width=0), [5, 9], 100)
    assert none.flops.tolist() == none.moved.tolist() == [0.0, 0.0]


def test_shared_block_by_hand():
    # Three matrices of 8 x 5 in fp8, once; per token (2*8 + 2*3*5) elements of 2 B.
    assert dense_work("shared", MODEL, [5], 100).moved.tolist() == [120 + 5 * 46 * 2]
