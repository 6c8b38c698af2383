"""What the kernels of a GPU achieve of its peaks, each number with where it comes from.

A profile is a set of plain numbers, not a fit: one row of a table each, or an assumption that says so. Fitting belongs to calibration.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from moesim.base.errors import UsageError, did_you_mean
from moesim.facts.evidence import weakest


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """One number: its value in SI units, how well it is known, and its source."""

    value: float
    basis: str
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """The numbers that :class:`moesim.models.compute.grouped_gemm.GroupedGemm` needs of a GPU and its kernels.

    Parameters
    ----------
    compute_efficiency : mapping of str to Known
        Achieved part of the peak, by dtype of the arithmetic, of a grouped GEMM with many rows.
    memory_efficiency : Known
        Achieved part of the peak memory bandwidth of kernels that read weights.
    launch : Known
        Seconds that one grouped GEMM costs beside its work, its helpers (sorting, activation, quantisation) included.
    dense_efficiency : Known
        Achieved part of the peak of an ordinary GEMM or attention kernel.
    dense_launch : Known
        Seconds that one dense phase costs beside its work.
    """

    compute_efficiency: Mapping[str, Known]
    memory_efficiency: Known
    launch: Known
    dense_efficiency: Known
    dense_launch: Known

    def basis(self, dtype: str) -> str:
        """Return the weakest basis of the numbers used when experts compute in ``dtype``."""
        used = (self.compute_efficiency[dtype], self.memory_efficiency, self.launch, self.dense_efficiency, self.dense_launch)
        return weakest(number.basis for number in used)


TABLES = "ai-dynamo/aiconfigurator@095f58a:aic-core/src/aiconfigurator_core/systems/data/h200_sxm/moe"
VLLM = f"{TABLES}/vllm/0.22.0/moe_perf.parquet (H200 SXM, fused MoE"
FFN = f"{VLLM}, balanced, moe_ep_size 1)"
DEEPGEMM = f"{TABLES}/sglang/0.5.10/wideep_{{phase}}_moe_perf.parquet (H200 SXM, DeepGEMM, uniform)"
CONTEXT, GENERATION = DEEPGEMM.format(phase="context"), DEEPGEMM.format(phase="generation")
_DENSE = Known(value=0.7, basis="assumed", source="large GEMMs reach 0.6 to 0.8 of the dense peak; attention kernels less")
_DENSE_LAUNCH = Known(value=5e-6, basis="assumed", source="two to three kernels started from a CUDA graph")
_UNKNOWN_DTYPE = "no measurement in this dtype; taken from the bf16 rows"

_H200_BF16 = Known(
    value=0.601, basis="measured", source=f"{FFN}: mixtral-8x7b bfloat16, 2048 tokens, 2428.3 us, 512 rows per expert, peak 989 Tflop/s"
)
_H200_FP8 = Known(
    value=0.281, basis="measured", source=f"{FFN}: mixtral-8x7b fp8_block, 8192 tokens, 10390.2 us, 2048 rows per expert, peak 1979 Tflop/s"
)
_H200_MEMORY = Known(
    value=0.888,
    basis="measured",
    source=f"{FFN}: deepseek-v3 fp8_block, 32 tokens, 2644.91 us for the weights of 256 experts, peak 4.8 TB/s",
)
_H200_LAUNCH = Known(
    value=11e-6,
    basis="fitted",
    source=f"{VLLM}, moe_ep_size 8): qwen3-30b-a3b bfloat16, 2 tokens, 26.6 us less 4.4 us of weight traffic, half for each GEMM",
)


def _other(known: Known, why: str) -> Known:
    return Known(value=known.value, basis="assumed", source=f"{why}; there: {known.source}")


def _carried(why: str) -> Profile:
    return Profile(
        compute_efficiency={"bf16": _other(_H200_BF16, why), "fp16": _other(_H200_BF16, why), "fp8": _other(_H200_FP8, why)},
        memory_efficiency=_other(_H200_MEMORY, why),
        launch=_other(_H200_LAUNCH, why),
        dense_efficiency=_DENSE,
        dense_launch=_DENSE_LAUNCH,
    )


PROFILES: dict[str, Profile] = {
    "h200-sxm": Profile(
        compute_efficiency={"bf16": _H200_BF16, "fp16": _other(_H200_BF16, "same units and rate as bf16"), "fp8": _H200_FP8},
        memory_efficiency=_H200_MEMORY,
        launch=_H200_LAUNCH,
        dense_efficiency=_DENSE,
        dense_launch=_DENSE_LAUNCH,
    ),
    "h200-sxm-deepgemm": Profile(
        compute_efficiency={
            "fp8": Known(value=0.593, basis="measured", source=f"{CONTEXT}: moe_ep_size 4, 65536 tokens, 9843.1 us, peak 1979 Tflop/s"),
            "bf16": _other(_H200_BF16, "the table has fp8 only; taken from vLLM's bf16 rows"),
        },
        memory_efficiency=Known(
            value=0.816,
            basis="fitted",
            source=f"{GENERATION}: line through moe_ep_size 256 (256 tokens, 29.8 us) and 4 (32 tokens, 738.6 us), 4.8 TB/s",
        ),
        launch=Known(value=9.3e-6, basis="fitted", source=f"{GENERATION}: intercept of the same line (18.5 us), half for each GEMM"),
        dense_efficiency=_DENSE,
        dense_launch=_DENSE_LAUNCH,
    ),
    "h100-sxm": _carried("the H100 has the H200's SMs and clocks, and other memory; taken over from the H200"),
    "a100-sxm-80": _carried("no measurement of an A100 is at hand; taken over from the H200"),
}

ASSUMED = Profile(
    compute_efficiency={
        "bf16": Known(value=0.5, basis="assumed", source="published grouped GEMMs reach 0.4 to 0.6 of the dense bf16 peak on Hopper"),
        "fp8": Known(value=0.4, basis="assumed", source="between vLLM's fused kernel (0.28) and DeepGEMM (0.59) on an H200"),
    },
    memory_efficiency=Known(value=0.85, basis="assumed", source="between DeepGEMM (0.83) and vLLM's fused kernel (0.89) on an H200"),
    launch=Known(value=11e-6, basis="assumed", source="as on an H200"),
    dense_efficiency=_DENSE,
    dense_launch=_DENSE_LAUNCH,
)
"""For a GPU without a profile."""


def profile_of(name: str | None, gpu_name: str) -> Profile:
    """Return the profile called ``name``; without a name, that of the GPU, or assumptions if it has none.

    Raises
    ------
    UsageError
        If there is no profile of that name.
    """
    if name is None:
        return PROFILES.get(gpu_name, ASSUMED)
    if name not in PROFILES:
        raise UsageError(f"compute.profile: unknown profile {name!r}{did_you_mean(name, PROFILES)}")
    return PROFILES[name]


def efficiency_in(profile: Profile, dtype: str) -> Known:
    """Return the compute efficiency in ``dtype``; a dtype the profile does not have takes the bf16 number, as an assumption."""
    if dtype in profile.compute_efficiency:
        return profile.compute_efficiency[dtype]
    return _other(profile.compute_efficiency["bf16"], _UNKNOWN_DTYPE)
