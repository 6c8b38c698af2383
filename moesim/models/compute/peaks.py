"""Which rate a GPU has for a dtype."""

from __future__ import annotations

from moesim.base.errors import UsageError, did_you_mean
from moesim.facts.gpu import Gpu

WIDER: dict[str, tuple[str, ...]] = {
    "fp4": ("fp4", "fp8", "bf16", "fp16"),
    "mxfp4": ("fp4", "bf16", "fp16"),
    "fp8": ("fp8", "bf16", "fp16"),
    "int8": ("int8", "fp8", "bf16", "fp16"),
    "fp16": ("fp16", "bf16"),
    "bf16": ("bf16", "fp16"),
    "fp32": ("fp32", "tf32"),
}
"""Where the weights' dtype has no matrix unit, kernels unpack them and compute in the next wider one: 4-bit weights on Hopper run at the
16-bit rate. ``fp32`` tensors run on the TF32 units if the GPU states no other rate for them."""


def arithmetic_dtype(gpu: Gpu, dtype: str) -> str:
    """Return the dtype in which ``gpu`` computes with values of ``dtype``.

    Raises
    ------
    UsageError
        If the GPU states no rate that would do.
    """
    for candidate in WIDER.get(dtype, (dtype,)):
        if candidate in gpu.flops:
            return candidate
    raise UsageError(f"gpu {gpu.name!r} states no rate for {dtype}: add it to the gpu's flops{did_you_mean(dtype, gpu.flops)}")


def peak(gpu: Gpu, dtype: str) -> float:
    """Return the peak of ``gpu`` in flop/s for values of ``dtype``."""
    return float(gpu.flops[arithmetic_dtype(gpu, dtype)])
