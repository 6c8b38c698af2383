"""What tables of kernels mean by the name of a number format: bytes of weights and activations, and the units that compute."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moesim.base.errors import CalibrationError, UsageError, did_you_mean
from moesim.facts.arrays import Bools, Floats
from moesim.facts.gpu_presets import gpu_presets
from moesim.models.compute.peaks import arithmetic_dtype, peak


@dataclass(frozen=True, slots=True)
class NumberFormat:
    """Bytes of one weight and of one element of a row as GEMMs read it, scales included, and the dtype whose units compute."""

    weight_bytes: float
    row_bytes: float
    arithmetic: str


FORMATS = {
    "bfloat16": NumberFormat(2.0, 2.0, "bf16"),
    "float16": NumberFormat(2.0, 2.0, "bf16"),
    "fp8": NumberFormat(1.0, 1.0, "fp8"),
    "fp8_block": NumberFormat(1.0, 1.0, "fp8"),
    "int8": NumberFormat(1.0, 1.0, "int8"),
    "nvfp4": NumberFormat(0.5625, 0.5625, "fp4"),
    "fp4": NumberFormat(0.53125, 1.0, "fp8"),
    "w4afp8": NumberFormat(0.53125, 1.0, "fp8"),
    "w4a8_mxfp4_mxfp8": NumberFormat(0.53125, 1.03125, "fp8"),
    "w4a16_mxfp4": NumberFormat(0.53125, 2.0, "bf16"),
    "int4_wo": NumberFormat(0.53125, 2.0, "bf16"),
}
"""By the names of the tables. Blocks of 16 (nvfp4) or 32 (the others) four-bit values share a scale of one byte."""

ALSO = {
    "bf16": "bfloat16", "fp16": "float16", "half": "float16", "mxfp4": "w4a16_mxfp4", "int4": "int4_wo", "float8": "fp8", "fp8_e4m3": "fp8",
    "fp8_e5m2": "fp8", "fp8_e4m3fn": "fp8", "float8_e4m3fn": "fp8", "float8_e4m3fnuz": "fp8", "float8_e5m2": "fp8",
}  # fmt: skip
"""Other names of the same; capitals do not matter."""


def format_of(name: str) -> NumberFormat:
    """Return what a number format's name means.

    Raises
    ------
    CalibrationError
        If the name is not known.
    """
    plain = name.strip().lower().removeprefix("torch.")
    known = ALSO.get(plain, plain)
    if known not in FORMATS:
        raise CalibrationError(f"the number format {name!r} is not known{did_you_mean(name, FORMATS)}")
    return FORMATS[known]


def peak_flops(presets: NDArray[np.str_], dtypes: NDArray[np.str_]) -> Floats:
    """Return the peak arithmetic of each row's GPU for a dtype; NaN of an unknown GPU, or of one without such units.

    A GPU without units of the dtype computes in the next wider one (:mod:`moesim.models.compute.peaks`).
    """
    gpus = gpu_presets()
    found = np.full(len(presets), np.nan)
    for preset, dtype in set(zip(presets.tolist(), dtypes.tolist(), strict=True)):
        if preset in gpus:
            try:
                found[(presets == preset) & (dtypes == dtype)] = peak(gpus[preset], dtype)
            except UsageError:
                continue  # the row then has no prediction
    return found


NARROW = ("fp8", "int8", "fp4")
"""Number formats of less than 16 bits that matrix units compute in."""


def has_units(presets: NDArray[np.str_], dtypes: NDArray[np.str_]) -> Bools:
    """Tell whether each row's GPU computes in a format as narrow as the dtype asks for; an unknown GPU counts as one that does."""
    gpus = gpu_presets()
    found = np.ones(len(presets), dtype=np.bool_)
    for preset, dtype in set(zip(presets.tolist(), dtypes.tolist(), strict=True)):
        if dtype in NARROW and preset in gpus:
            try:
                there = arithmetic_dtype(gpus[preset], dtype)
            except UsageError:
                continue
            found[(presets == preset) & (dtypes == dtype)] = there in NARROW
    return found
