"""What a GPU holds, against sums done by hand."""

import numpy as np
import pytest

from moesim.facts.model import Attention, MoeModel
from moesim.facts.scenario import Workload
from moesim.models.memory import activation_bytes, dense_parameters, peak_memory, weight_bytes


def model(**changes):
    given = {
        "name": "hand",
        "layers": 3,
        "moe_layers": (1, 2),
        "hidden": 4,
        "experts": 8,
        "top_k": 2,
        "expert_width": 5,
        "shared_width": 6,
        "dense_width": 7,
        "dispatch_width": 4,
        "expert_dtype": "fp8",
        "vocabulary": 10,
        "attention": Attention(heads=2, score_width=3.0, projection_parameters=100, cache_bytes_per_token=12),
    }
    return MoeModel(**(given | changes))


def test_weights_by_hand():
    # Attention 3 * 100, dense block 3*4*7, two shared blocks 3*4*6: 528. Routers 2 * 4 * 8, embedding and head 2 * 10 * 4: 144.
    assert dense_parameters(model()) == (528.0, 144.0)
    # bf16 both; two layers of 4 slots of 3*4*5 weights of 1 B.
    assert weight_bytes(model(), 4, "prefill") == 672 * 2 + 2 * 4 * 60
    # Training: 4 B of gradient and 12 B of Adam for each parameter.
    assert weight_bytes(model(), 4, "training") == 672 * 2 + 480 + (672 + 480) * 16


def test_bf16_training_is_18_bytes_per_parameter():
    parameters = 672 + 480
    assert weight_bytes(model(expert_dtype="bf16"), 4, "training") == 18 * parameters


def test_latent_experts_add_their_projections():
    assert dense_parameters(model(dispatch_width=2))[1] - dense_parameters(model())[1] == 2 * 2 * 4 * 2


@pytest.mark.parametrize("phase", ["training", "prefill", "decode"])
def test_one_more_slot_costs_one_expert_per_layer(phase):
    more = weight_bytes(model(), 5, phase) - weight_bytes(model(), 4, phase)
    assert more == 2 * 60 * (17 if phase == "training" else 1)


def test_decode_activations_by_hand():
    # 3 tokens of 100 tokens of context: cache 3 * 100 * 3 layers * 12 B; common 3 * (16 + 4*6) = 120 elements; in the MoE layer
    # 3 * 3 * 6 + 7 rows * (8 + 15) = 215, more than the dense layer's 3 * 3 * 7.
    step = Workload(phase="decode", tokens_per_gpu=3, context=100)
    assert activation_bytes(model(), step, [7]).tolist() == [2 * (120 + 215) + 10800]


def test_training_holds_all_layers():
    # 3 layers * 120, one dense layer of 63, two MoE layers of 215 elements of 2 B; no cache.
    step = Workload(phase="training", tokens_per_gpu=3, context=100)
    assert activation_bytes(model(), step, 7) == 2 * (360 + 63 + 430)


def test_peak_is_weights_and_activations_for_each_gpu():
    step = Workload(phase="prefill", tokens_per_gpu=3)
    rows = np.array([[0, 7], [1000, 3]])
    peak = peak_memory(model(), step, 4, rows)
    assert peak.shape == rows.shape
    assert (peak == weight_bytes(model(), 4, "prefill") + activation_bytes(model(), step, rows)).all()
    assert np.diff(peak.ravel()[np.argsort(rows.ravel())]).min() > 0


def test_a_model_of_moe_layers_only_has_no_dense_block():
    step = Workload(phase="prefill", tokens_per_gpu=3)
    wide = model(layers=2, moe_layers=(0, 1), dense_width=10_000)
    assert activation_bytes(wide, step, 0) == 2 * (120 + 54) + 3 * 2 * 12


def test_without_a_gate_blocks_have_two_matrices():
    # One matrix less: 4*7 of the dense block, 2 * 4*6 shared, 2 layers * 4 slots * 4*5 of 1 B; inside blocks 2 widths instead of 3.
    plain = model(gated=False)
    assert weight_bytes(model(), 4, "prefill") - weight_bytes(plain, 4, "prefill") == 2 * (28 + 48) + 160
    step = Workload(phase="decode", tokens_per_gpu=3, context=100)
    assert activation_bytes(model(), step, 7) - activation_bytes(plain, step, 7) == 2 * (3 * 6 + 7 * 5)


@pytest.mark.parametrize("changes", [{}, {"gated": False}, {"tied_embeddings": True}, {"dispatch_width": 2}])
def test_all_slots_together_are_the_whole_model(changes):
    whole = model(**changes)
    experts = len(whole.moe_layers) * whole.experts * whole.expert_parameters
    assert sum(dense_parameters(whole)) + experts == whole.total_parameters


def test_every_term_of_the_weights_has_its_own_dtype():
    # Attention, dense and shared blocks (528) in fp8, routers, embedding and head (144) in fp32, experts (480) in fp4.
    mixed = model(weight_dtype="fp8", activation_dtype="fp32", expert_dtype="fp4")
    assert weight_bytes(mixed, 4, "decode") == 528 * 1 + 144 * 4 + 480 * 0.5
    # Gradients and optimiser states are 4 B and 12 B whatever the weights are.
    assert weight_bytes(mixed, 4, "training") == 528 * 1 + 144 * 4 + 480 * 0.5 + (528 + 144 + 480) * 16


def test_prefill_holds_the_largest_layer_be_it_dense():
    # 3 tokens: common 3 * (16 + 24) = 120; a dense block of 100 holds 3 * 3 * 100 = 900, an MoE layer 3 * 3 * 6 = 54 and, with 1000
    # rows, 23 each more. The cache has each token once in 3 layers of 12 B, however long the context.
    wide = model(dense_width=100)
    step = Workload(phase="prefill", tokens_per_gpu=3, context=100)
    assert activation_bytes(wide, step, [0, 1000]).tolist() == [2 * (120 + 900) + 108, 2 * (120 + 54 + 23_000) + 108]
    # A model in which every layer has experts never runs that block, whatever its width says.
    assert activation_bytes(model(layers=2, moe_layers=(0, 1), dense_width=100), step, 0) == 2 * (120 + 54) + 72


def test_training_counts_layers_of_both_kinds_and_no_cache():
    # 4 layers of 120, three dense ones of 3 * 3 * 7 = 63, one with experts of 54 + 5 rows of 8 + 15 = 169.
    step = Workload(phase="training", tokens_per_gpu=3, context=100)
    assert activation_bytes(model(layers=4, moe_layers=(2,)), step, 5) == 2 * (4 * 120 + 3 * 63 + 169)
