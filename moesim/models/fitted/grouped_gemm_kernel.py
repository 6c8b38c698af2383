"""One grouped GEMM of a kernel library by itself: many experts, each with its own rows and weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np

from moesim.facts.arrays import Bools, Floats
from moesim.models.fitted.estimate import refuse_degenerate
from moesim.models.fitted.expert_ffn import OUTPUT_BYTES
from moesim.models.fitted.parametric import Parametric, smooth_maximum
from moesim.models.fitted.rows import Rows, numbers, words

WIDTHS = (*range(16, 129, 8), 144, 160)
"""Of output tiles, among which DeepGEMM chooses on Hopper."""

HEIGHTS = (64, 128)
"""Of output tiles in the masked layout; the contiguous one, which pads every expert to whole tiles, has the taller alone."""

MEMORY = ("assumed", "what kernels of this library reach on an H200; in these rows arithmetic takes longer than reading throughout")
MEMORY_EFFICIENCY = 0.9


def tiles_chosen(mean: Floats, experts: Floats, columns: Floats, sms: Floats, contiguous: Bools) -> tuple[Floats, Floats]:
    """Return height and width of the output tiles that DeepGEMM takes for batches of so many rows an expert.

    Fewest waves over the SMs first, then the fullest last wave, then the smaller tile of two that differ in one way only, or the wider of
    two that differ in both (deepseek-ai/DeepGEMM v1, ``jit_kernels/gemm.py``, ``get_best_configs``). It knows the mean, not the rows.

    Parameters
    ----------
    mean, experts, columns, sms : Floats[n]
        Rows of an expert, experts, columns of the product, streaming multiprocessors.
    contiguous : Bools[n]
        Whether the rows of all experts lie one after the other, padded to whole tiles.

    Returns
    -------
    two Floats[n]

    Examples
    --------
    >>> one = np.ones(1)
    >>> [float(part[0]) for part in tiles_chosen(64 * one, 4 * one, 2048 * one, 78 * one, one > 1)]  # 4 x 16 = 64 tiles: one wave
    [64.0, 112.0]
    """
    height, width = (np.zeros(len(mean)) for _ in range(2))
    least, fullest = np.full(len(mean), np.inf), np.zeros(len(mean))
    for tall in HEIGHTS:
        blocks = np.where(contiguous, np.ceil(mean * experts / tall), np.ceil(mean / tall) * experts)
        for wide in WIDTHS:
            tiles = blocks * np.ceil(columns / wide)
            waves, last = np.ceil(tiles / sms), (tiles - 1) % sms + 1
            same = (last == fullest) & (
                ((tall == height) & (wide < width)) | ((wide == width) & (tall < height)) | ((tall != height) & (wide > width))
            )
            better = (waves < least) | ((waves == least) & ((last > fullest) | same))
            better &= ~contiguous | (tall == HEIGHTS[-1])
            least, fullest = np.where(better, waves, least), np.where(better, last, fullest)
            height, width = np.where(better, tall, height), np.where(better, wide, width)
    return height, width


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupedGemmKernel(Parametric):
    """Seconds of one grouped GEMM: ``launch + smooth_max(bytes / (memory_efficiency M), waves tile / (compute_efficiency P))``.

    Bytes are the weights of experts that have rows, and the rows in and out. An expert's rows are filled up to whole tiles, and the tiles
    of all experts to whole waves over the SMs (NVIDIA, "Matrix Multiplication Background User's Guide"); :func:`tiles_chosen` says how
    large tiles are. A tile is computed whole however few of its rows are there: on a GPU with little arithmetic for its memory that, and
    not the weights, is what decode takes (an H20 computes 64 rows of fp8 in the time in which it reads the weights twice). Before the first
    and after the last step through the depth of a product a tile fills and empties its pipeline, as if it were ``fill`` elements
    deeper. ``M`` and ``P`` are the data sheet's peaks; ``smooth_max(a, b) = (a**p + b**p)**(1/p)`` with p = ``sharpness``.

    Rows have ``active``, ``routed`` and ``tiles`` (Floats[n, D] of the whole GEMM, D draws), ``tile_rows`` and ``tile_columns``,
    ``columns`` and ``depth`` of the product, ``weight_bytes`` and ``row_bytes`` of one element, and ``memory_bandwidth``, ``peak_flops``
    and ``sms`` of the data sheet.
    """

    NAME: ClassVar[str] = "grouped_gemm_kernel"
    UNITS: ClassVar[Mapping[str, str]] = {"launch": "s"}
    RANGED: ClassVar[tuple[str, ...]] = ("rows_per_expert", "experts", "columns", "depth")

    launch: float
    memory_efficiency: float
    compute_efficiency: float
    sharpness: float
    fill: float

    @staticmethod
    def seconds_of(values: Mapping[str, float], rows: Rows) -> Floats:
        """Return the seconds of rows with the given parameters."""
        reading, computing = _parts(values, rows)
        return np.asarray(values["launch"] + smooth_maximum(reading, computing, values["sharpness"]).mean(axis=1))

    @classmethod
    def fit(cls, rows: Rows, seconds: Floats, *, source: str = "") -> Self:
        """Return the model that comes nearest to the rows; where arithmetic takes longer in all of them, reading is assumed.

        Raises
        ------
        CalibrationError
            If the rows are too few, or all of one size.
        """
        refuse_degenerate(rows, what="grouped GEMM", least=10, varied={"rows_per_expert": 4, "experts": 2})
        reading, computing = _parts(START, rows)
        held = {} if np.mean(reading > computing) > 0.05 else {"memory_efficiency": MEMORY}
        if len(np.unique(numbers(rows, "depth"))) < 2:
            held["fill"] = ("assumed", "products of one depth cannot tell it from the efficiency")
        return cls.fitted(rows, seconds, start=START, held=held, bounds=BOUNDS, regimes=words(rows, "regime"), source=source)


def _parts(values: Mapping[str, float], rows: Rows) -> tuple[Floats, Floats]:
    """Return Floats[n, D], the seconds of reading and those of computing."""
    columns, depth, sms, tall, wide = (numbers(rows, name)[:, None] for name in ("columns", "depth", "sms", "tile_rows", "tile_columns"))
    active, routed, tiles = (np.asarray(rows[name], dtype=np.float64) for name in ("active", "routed", "tiles"))
    weights = active * columns * depth * numbers(rows, "weight_bytes")[:, None]
    passing = routed * (depth * numbers(rows, "row_bytes")[:, None] + columns * OUTPUT_BYTES)
    reading = (weights + passing) / (values["memory_efficiency"] * numbers(rows, "memory_bandwidth")[:, None])
    waves = np.ceil(tiles * np.ceil(columns / wide) / sms)
    rate = values["compute_efficiency"] * numbers(rows, "peak_flops")[:, None]
    return reading, waves * sms * tall * wide * 2 * (depth + values["fill"]) / rate


START = {"launch": 5e-6, "memory_efficiency": MEMORY_EFFICIENCY, "compute_efficiency": 0.85, "sharpness": 4.0, "fill": 100.0}
BOUNDS = {
    "launch": (1e-7, 1e-3), "memory_efficiency": (0.05, 1.0), "compute_efficiency": (0.02, 1.0), "sharpness": (1.0, 12.0),
    "fill": (1.0, 2000.0),
}  # fmt: skip
