"""One grouped GEMM of a kernel library by itself: many experts, each with its own rows and weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np

from moesim.facts.arrays import Floats
from moesim.models.fitted.estimate import refuse_degenerate
from moesim.models.fitted.expert_ffn import OUTPUT_BYTES
from moesim.models.fitted.parametric import Parametric, smooth_maximum
from moesim.models.fitted.rows import Rows, numbers, words

WIDTHS = tuple(range(32, 129, 16))
"""Of output tiles, from which the library chooses (deepseek-ai/DeepGEMM, ``jit_kernels/heuristics``: fewest waves first)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupedGemmKernel(Parametric):
    """Seconds of one grouped GEMM: ``launch + smooth_max(bytes / (memory_efficiency M), waves tile / (compute_efficiency P))``.

    Bytes are the weights of experts that have rows, and the rows in and out. An expert's rows are filled up to whole tiles, and the tiles
    of all experts to whole waves over the SMs (NVIDIA, "Matrix Multiplication Background User's Guide"); of the widths in ``WIDTHS`` the
    library takes the one whose waves end first. A tile is computed whole however few of its rows are there: on a GPU with little arithmetic
    for its memory that, and not the weights, is what decode takes (an H20 computes 64 rows of fp8 in the time in which it reads the weights
    twice). ``M`` and ``P`` are the data sheet's peaks; ``smooth_max(a, b) = (a**p + b**p)**(1/p)`` with p = ``sharpness``.

    Rows have ``active``, ``routed`` and ``tiles`` (Floats[n, D] of the whole GEMM, D draws), ``tile_rows``, ``columns`` and ``depth`` of
    the product, ``weight_bytes`` and ``row_bytes`` of one element, and ``memory_bandwidth``, ``peak_flops`` and ``sms`` of the data
    sheet.
    """

    NAME: ClassVar[str] = "grouped_gemm_kernel"
    UNITS: ClassVar[Mapping[str, str]] = {"launch": "s"}
    RANGED: ClassVar[tuple[str, ...]] = ("rows_per_expert", "experts", "columns", "depth")

    launch: float
    memory_efficiency: float
    compute_efficiency: float
    sharpness: float

    @staticmethod
    def seconds_of(values: Mapping[str, float], rows: Rows) -> Floats:
        """Return the seconds of rows with the given parameters."""
        columns, depth, sms = (numbers(rows, name)[:, None] for name in ("columns", "depth", "sms"))
        active, routed, tiles = (np.asarray(rows[name], dtype=np.float64) for name in ("active", "routed", "tiles"))
        weights = active * columns * depth * numbers(rows, "weight_bytes")[:, None]
        passing = routed * (depth * numbers(rows, "row_bytes")[:, None] + columns * OUTPUT_BYTES)
        reading = (weights + passing) / (values["memory_efficiency"] * numbers(rows, "memory_bandwidth")[:, None])
        across = np.min([np.ceil(tiles * np.ceil(columns / width) / sms) * width for width in WIDTHS], axis=0)
        rate = values["compute_efficiency"] * numbers(rows, "peak_flops")[:, None]
        computing = across * sms * numbers(rows, "tile_rows")[:, None] * 2 * depth / rate
        return np.asarray(values["launch"] + smooth_maximum(reading, computing, values["sharpness"]).mean(axis=1))

    @classmethod
    def fit(cls, rows: Rows, seconds: Floats, *, source: str = "") -> Self:
        """Return the model that comes nearest to the rows.

        Raises
        ------
        CalibrationError
            If the rows are too few, or all of one size.
        """
        refuse_degenerate(rows, what="grouped GEMM", least=10, varied={"rows_per_expert": 4, "experts": 2})
        return cls.fitted(rows, seconds, start=START, held={}, bounds=BOUNDS, regimes=words(rows, "regime"), source=source)


START = {"launch": 5e-6, "memory_efficiency": 0.8, "compute_efficiency": 0.8, "sharpness": 4.0}
BOUNDS = {"launch": (1e-7, 1e-3), "memory_efficiency": (0.05, 1.0), "compute_efficiency": (0.02, 1.0), "sharpness": (1.0, 12.0)}
