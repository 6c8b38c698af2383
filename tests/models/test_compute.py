"""Expert kernels: hand-worked tiles and waves, and the contract: at least 0, 0 for no rows, never falling."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from moesim.base.errors import FieldError, UsageError
from moesim.base.registry import build, kinds
from moesim.facts.gpu import Gpu
from moesim.facts.model import Attention, MoeModel
from moesim.models.compute.grouped_gemm import GroupedGemm
from moesim.models.compute.peaks import arithmetic_dtype
from moesim.models.compute.profiles import ASSUMED, PROFILES, profile_of
from moesim.models.compute.roofline import Roofline
from moesim.models.compute.tiles import row_tiles, waves_of_depths, waves_of_rows

H200 = Gpu(name="h200-sxm", flops={"bf16": 989e12, "fp8": 1979e12}, memory=141e9, memory_bandwidth=4.8e12, nvlink=450e9, nic=50e9, sms=132)


def model(expert_dtype="bf16", hidden=256, width=128, experts=8):
    return MoeModel(
        name="m",
        layers=1,
        moe_layers=(0,),
        hidden=hidden,
        experts=experts,
        top_k=2,
        expert_width=width,
        dispatch_width=hidden,
        expert_dtype=expert_dtype,
        attention=Attention(heads=1, score_width=1.0, projection_parameters=1, cache_bytes_per_token=1),
    )


def setting(of, gpu=H200):
    return SimpleNamespace(cluster=SimpleNamespace(gpu=gpu), model=of)


rows_of_two_gpus = arrays(np.int64, (2, 6), elements=st.integers(0, 700))


def test_an_expert_takes_the_smallest_tile_that_holds_its_rows():
    tiles, height = row_tiles(np.array([0, 1, 16, 17, 128, 129, 256]), (16, 32, 64, 128))
    assert tiles.tolist() == [0, 1, 1, 1, 1, 2, 2]
    assert height.tolist() == [0, 16, 16, 32, 128, 128, 128]


def test_waves_by_hand():
    # 4 SMs, 2 column tiles. Experts of 100, 10 and 10 rows: tiles of 128, 128, 16, 16, 16, 16. Tallest first, four at a time: waves of
    # 128 and 16 rows. Alone, the expert of 100 rows is one wave of 128.
    ladder = (16, 32, 64, 128)
    assert waves_of_rows(np.array([[100, 10, 10], [100, 0, 0], [0, 0, 0]]), ladder, 2, 4).tolist() == [144.0, 128.0, 0.0]


def test_one_tile_more_than_the_sms_is_a_whole_wave_more():
    assert waves_of_rows(np.array([[128 * 4], [128 * 4 + 1]]), (128,), 1, 4).tolist() == [128.0, 256.0]


def test_weight_gradient_waves_by_hand():
    # 3 tiles per expert on 4 SMs, depths 64, 32, 16: order 64 64 64 32 | 32 32 16 16 | 16: waves of 64, 32 and 16.
    assert waves_of_depths(np.array([[16, 64, 32]]), 3, 4).tolist() == [112.0]


@settings(max_examples=50, deadline=None)
@given(rows=rows_of_two_gpus, sms=st.integers(1, 9), columns=st.integers(1, 7))
def test_waves_equal_a_schedule_written_out(rows, sms, columns):
    tiles, height = row_tiles(rows, (16, 32, 64, 128))
    for gpu in range(2):
        order = sorted((h for t, h in zip(tiles[gpu], height[gpu], strict=True) for _ in range(t * columns)), reverse=True)
        assert waves_of_rows(rows, (16, 32, 64, 128), columns, sms)[gpu] == sum(order[::sms])
        deep = sorted((d for d in rows[gpu] for _ in range(columns)), reverse=True)
        assert waves_of_depths(rows, columns, sms)[gpu] == sum(deep[::sms])


@pytest.mark.parametrize("plugin", [GroupedGemm(), Roofline(), GroupedGemm(tile_rows=(128,)), GroupedGemm(profile="h200-sxm-deepgemm")])
@pytest.mark.parametrize("direction", ["forward", "backward"])
@settings(max_examples=50, deadline=None)
@given(rows=rows_of_two_gpus, more=rows_of_two_gpus, dtype=st.sampled_from(["bf16", "fp8", "fp4", "mxfp4"]))
def test_times_never_fall_when_rows_are_added(plugin, direction, rows, more, dtype):
    kernels = plugin.begin(setting(model(dtype)))
    before = kernels.experts(rows, direction=direction)
    after = kernels.experts(rows + more, direction=direction)
    assert before.shape == (2,)
    assert (before >= 0).all()
    assert ((before == 0) == (rows.sum(axis=1) == 0)).all()
    assert (after >= before * (1 - 1e-12)).all()


@settings(max_examples=30, deadline=None)
@given(rows=rows_of_two_gpus)
def test_l7_grouped_gemm_is_never_faster_than_arithmetic_or_weights(rows):
    kernels = GroupedGemm(compute_efficiency=1.0, memory_efficiency=1.0, launch=0.0).begin(setting(model()))
    seconds = kernels.experts(rows, direction="forward")
    of = model()
    arithmetic = rows.sum(axis=1) * of.routed_flops / H200.flops["bf16"]
    weights = np.count_nonzero(rows, axis=1) * of.expert_bytes / H200.memory_bandwidth
    assert (seconds >= np.maximum(arithmetic, weights) * (1 - 1e-12)).all()


def test_decode_pays_for_active_experts_not_for_rows():
    # 64 rows on one expert or one row on each of 64: the same arithmetic, 64 times the weights (44 MB each against 4.8 TB/s).
    kernels = GroupedGemm().begin(setting(model("fp8", hidden=7168, width=2048, experts=64)))
    one = np.zeros((1, 64), dtype=np.int64)
    one[0, 0] = 64
    spread = np.ones((1, 64), dtype=np.int64)
    few, many = kernels.experts(one, direction="forward")[0], kernels.experts(spread, direction="forward")[0]
    assert 5 < many / few < 64


def test_all_weights_of_deepseek_v3_take_the_measured_time():
    # moe_ffn_h200.csv: deepseek-v3 fp8_block, EP 1, 32 tokens balanced over 256 experts, one row each: 2644.91 us.
    kernels = GroupedGemm().begin(setting(model("fp8", hidden=7168, width=2048, experts=256)))
    seconds = kernels.experts(np.ones((1, 256), dtype=np.int64), direction="forward")[0]
    assert seconds == pytest.approx(2644.91e-6, rel=0.02)


def test_backward_costs_about_twice_forward_when_arithmetic_binds():
    kernels = GroupedGemm().begin(setting(model("bf16", hidden=4096, width=4096)))
    rows = np.full((1, 8), 4096)
    forward, backward = (kernels.experts(rows, direction=way)[0] for way in ("forward", "backward"))
    assert backward / forward == pytest.approx(2.0, rel=0.1)


def test_roofline_by_hand():
    # 2 experts, 3 and 1 rows of width 4, inner 2: 4 rows * 2 * 24 flops at 96 flop/s = 2 s; 2 * 48 B of weights + 64 B at 10 B/s = 16 s.
    gpu = Gpu(name="toy", flops={"bf16": 96.0}, memory=1e9, memory_bandwidth=10.0, nvlink=1.0, nic=1.0, sms=1)
    kernels = Roofline(compute_efficiency=1.0, memory_efficiency=1.0, launch=1.0).begin(setting(model(hidden=4, width=2), gpu))
    assert kernels.experts(np.array([[3, 1, 0], [0, 0, 0]]), direction="forward").tolist() == [17.0, 0.0]
    # Backward: 4 s of arithmetic; weights 96 B, rows twice 64 B, gradients 2 * 24 * 4 B = 192 B: 41.6 s.
    assert kernels.experts(np.array([[3, 1, 0]]), direction="backward").tolist() == [pytest.approx(42.6)]
    assert kernels.dense(np.array([0.0, 960.0]), np.array([0.0, 10.0]), dtype="bf16").tolist() == [0.0, 11.0]


def test_grouped_gemm_without_a_gate_by_hand():
    # 1 SM at 1000 flop/s, memory at 1e9 B/s; one expert of width 4 and inner 2, 3 rows in one tile of 4 x 2. Down: 2 column tiles of
    # 4*2*2*2 flops. Up: 2 columns (4 if gated), so 1 tile (2) of 4*2*2*4 flops. The rest moves some 100 bytes: under a microsecond.
    gpu = Gpu(name="toy", flops={"bf16": 1000.0}, memory=1e9, memory_bandwidth=1e9, nvlink=1.0, nic=1.0, sms=1)
    own = {"compute_efficiency": 1.0, "memory_efficiency": 1.0, "launch": 0.0, "tile_rows": (4,), "tile_columns": 2}
    for gated, flops in ((True, 2 * 64 + 2 * 32), (False, 64 + 2 * 32)):
        kernels = GroupedGemm(**own).begin(setting(replace(model(hidden=4, width=2), gated=gated), gpu))
        assert kernels.experts(np.array([[3]]), direction="forward")[0] == pytest.approx(flops / 1000, abs=1e-6)


def test_basis_is_the_weakest_number_used():
    # Dense phases rest on assumptions in every profile, so the whole does; an own number is an assumption too.
    assert GroupedGemm().begin(setting(model())).basis == "assumed"
    assert PROFILES["h200-sxm"].memory_efficiency.basis == "measured"
    assert PROFILES["h100-sxm"].memory_efficiency.basis == "assumed"


def test_profile_goes_by_gpu_name_and_falls_back_to_assumptions():
    assert profile_of(None, "h200-sxm") is PROFILES["h200-sxm"]
    assert profile_of(None, "some-gpu") is ASSUMED
    assert profile_of("h200-sxm-deepgemm", "h200-sxm") is PROFILES["h200-sxm-deepgemm"]
    with pytest.raises(UsageError, match=r"unknown profile 'h200'.*h200-sxm"):
        profile_of("h200", "h200-sxm")


def test_own_numbers_replace_the_profile():
    slow = GroupedGemm(memory_efficiency=0.444).begin(setting(model()))
    assert slow.bandwidth == pytest.approx(4.8e12 * 0.444)


def test_a_dtype_without_units_runs_at_the_next_wider_rate():
    assert arithmetic_dtype(H200, "mxfp4") == "bf16"
    assert arithmetic_dtype(H200, "fp4") == "fp8"
    with pytest.raises(UsageError, match="states no rate for fp32"):
        arithmetic_dtype(H200, "fp32")


def test_tile_rows_must_increase():
    with pytest.raises(FieldError, match="must be increasing") as caught:
        GroupedGemm(tile_rows=(128, 64))
    assert caught.value.field == "tile_rows"
    with pytest.raises(FieldError, match="empty"):
        GroupedGemm(tile_rows=())


def test_plugins_build_from_plain_data():
    made = build(kinds("compute")["grouped_gemm"], {"profile": None, "tile_rows": [64, 128], "launch": "5 us"})
    assert made == GroupedGemm(tile_rows=(64, 128), launch=5e-6)
