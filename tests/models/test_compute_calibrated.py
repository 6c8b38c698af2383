"""The compute model that uses fitted kernels."""

from types import SimpleNamespace

import numpy as np
import pytest

from moesim.base.errors import UsageError
from moesim.facts.gpu_presets import gpu_presets
from moesim.facts.model import Attention, MoeModel
from moesim.facts.profile import Profile
from moesim.models.compute.calibrated import Calibrated, outside_kernels
from moesim.models.fitted.expert_ffn import ExpertFfn
from moesim.models.fitted.routing_draws import even_rows

FFN = {
    "launch": 20e-6, "slot": 0.0, "memory_efficiency": 0.8, "compute_efficiency_16": 0.5, "compute_efficiency_8": 0.4, "step_16": 3e-9,
    "step_8": 5e-9, "sharpness_16": 2.0, "sharpness_8": 2.5, "passes": 2.0, "empty_tile": 3e-7, "floor": 0.0,
    "tile_load": 0.0,
}  # fmt: skip


def profile(gpu="h200-sxm", **fields):
    section = ExpertFfn(**{**FFN, **fields}).section()
    return Profile(name=gpu, gpu=gpu, made="2026-11", sections={"expert_ffn.vllm": section, "expert_ffn.cutlass": section})


def world(tokens=512, ranks=8, experts=64, gpu="h200-sxm", dtype="fp8", **fields):
    model = MoeModel(
        name="test",
        layers=1,
        moe_layers=(0,),
        hidden=2048,
        dispatch_width=2048,
        experts=experts,
        top_k=4,
        expert_width=1024,
        expert_dtype=dtype,
        attention=Attention(heads=1, score_width=1.0, projection_parameters=1, cache_bytes_per_token=1),
        **fields,
    )
    return SimpleNamespace(
        cluster=SimpleNamespace(gpu=gpu_presets()[gpu]),
        model=model,
        parallel=SimpleNamespace(ep=ranks),
        workload=SimpleNamespace(tokens_per_gpu=tokens),
    )


def times(rows, setting, kernel="vllm", direction="forward", **fields):
    return Calibrated(fitted=profile(**fields), kernel=kernel).begin(setting).experts(np.asarray(rows), direction=direction)


def balanced(setting):
    routes = setting.workload.tokens_per_gpu * setting.parallel.ep * setting.model.top_k
    return even_rows(routes, setting.model.experts).reshape(setting.parallel.ep, -1)


def test_no_rows_no_time_and_one_row_costs_a_launch():
    found = times([[0] * 8, [1] + [0] * 7], world(tokens=1))
    assert found[0] == 0
    assert found[1] > 20e-6


def test_the_kernel_of_a_whole_group_grows_with_the_group():
    # A rank holds 8 experts and computes 4096 rows in both: what the others do costs it time in vLLM's kernel alone.
    small, large = world(tokens=1024, ranks=8), world(tokens=1024, ranks=32, experts=256)
    for kernel, factor in (("vllm", 1.2), ("cutlass", None)):
        few, many = (times(balanced(setting)[:1], setting, kernel=kernel)[0] for setting in (small, large))
        if factor:
            assert many > factor * few
        else:
            assert many == pytest.approx(few, rel=0.1)


def test_times_depend_on_own_rows_alone():
    setting = world()
    rows = balanced(setting)
    more = rows.copy()
    more[3, 0] += 100
    before, after = times(rows, setting), times(more, setting)
    assert np.delete(before, 3).tolist() == np.delete(after, 3).tolist()
    assert after[3] >= before[3]


def test_another_gpu_follows_its_data_sheet():
    # Decode is memory: 3.35 instead of 4.8 TB/s, and the launch stays.
    setting, other = world(tokens=64), world(tokens=64, gpu="h100-sxm")
    rows = balanced(setting)
    fast, slow = (times(rows, at, launch=1e-9, step_8=1e-12, passes=1e-9, empty_tile=1e-12)[0] for at in (setting, other))
    assert slow / fast == pytest.approx(4.8 / 3.35, rel=0.05)
    assert Calibrated(fitted=profile()).begin(other).basis == "assumed"  # dense phases are assumed everywhere; never better than that


def test_the_backward_pass_takes_longer_than_the_forward_one():
    setting = world(tokens=4096)
    rows = balanced(setting)
    assert (times(rows, setting, direction="backward") > times(rows, setting, kernel="cutlass")).all()


def test_wide_formats_use_wide_numbers():
    setting = world(dtype="bf16", tokens=8192)
    rows = balanced(setting)
    assert (times(rows, setting, compute_efficiency_16=0.25) > 1.3 * times(rows, setting, compute_efficiency_16=0.5)).all()
    assert times(rows, setting, compute_efficiency_8=0.1).tolist() == times(rows, setting).tolist()


def test_what_is_missing_is_named():
    setting = world()
    with pytest.raises(UsageError, match=r"compute\.profile.*such as h200-sxm"):
        Calibrated().begin(setting)
    with pytest.raises(UsageError, match=r"compute\.kernel.*'expert_ffn.deepgemm_masked'.*calibrate"):
        Calibrated(fitted=profile(), kernel="deepgemm_masked").begin(setting)


def test_a_run_beyond_the_range_or_on_another_gpu_is_told():
    rows = {
        "num_tokens": (1.0, 16384.0),
        "ranks": (1.0, 16.0),
        "hidden_size": (2048.0, 7168.0),
        "inter_size": (768.0, 14336.0),
        "slots": (1.0, 256.0),
    }
    section = ExpertFfn(**FFN).section()
    object.__setattr__(section, "fitted_range", rows)
    found = Calibrated(fitted=Profile(name="h200-sxm", gpu="h200-sxm", made="2026-11", sections={"expert_ffn.vllm": section}))
    inside = world()
    assert outside_kernels(found, inside, inside.cluster) == ""
    beyond = world(tokens=4096, ranks=32, gpu="gb200-nvl72")
    said = outside_kernels(found, beyond, beyond.cluster)
    assert "fitted on h200-sxm and the cluster has gb200-nvl72" in said
    assert "ranks 32 (fitted on 1 to 16)" in said
    assert "num_tokens 131072 (fitted on 1 to 16384)" in said
    assert outside_kernels(object(), inside, inside.cluster) == ""
