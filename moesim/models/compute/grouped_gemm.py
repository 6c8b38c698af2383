"""Grouped GEMMs of the routed experts: tiles, waves, and the weights of the experts that have rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np

from moesim.base.errors import FieldError
from moesim.base.fields import Choice, Count, Efficiency, Seconds
from moesim.base.registry import register
from moesim.facts.arrays import Floats, Ints
from moesim.facts.evidence import weakest
from moesim.facts.gpu import Gpu
from moesim.facts.model import DTYPE_BYTES, MoeModel
from moesim.facts.program import FORWARD
from moesim.facts.scenario import Setting
from moesim.models.compute.peaks import arithmetic_dtype, peak
from moesim.models.compute.profiles import PROFILES, efficiency_in, profile_of
from moesim.models.compute.roofline import roofline_seconds
from moesim.models.compute.tiles import waves_of_depths, waves_of_rows
from moesim.models.work import GRADIENT_BYTES, permute_bytes

GEMM_BYTES_OUT = 2.0
"""Bytes per element that a GEMM writes: results are bf16 whatever the operands are (vLLM, DeepGEMM)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupedGemmKernels:
    """Kernels of one run; see :class:`GroupedGemm`. Rates are achieved ones, in flop/s and B/s."""

    gpu: Gpu
    model: MoeModel
    rate: float
    dense_efficiency: float
    bandwidth: float
    launch: float
    dense_launch: float
    tile_rows: tuple[int, ...]
    tile_columns: int
    basis: str

    def dense(self, flops: Floats, moved: Floats, *, dtype: str) -> Floats:
        """Return seconds, elementwise: the roofline at the efficiency of ordinary GEMMs."""
        return roofline_seconds(flops, moved, peak(self.gpu, dtype) * self.dense_efficiency, self.bandwidth, self.dense_launch)

    def experts(self, rows: Ints, *, direction: str) -> Floats:
        """Return float[G] from int[G, slots] rows of one layer; 0 where a GPU has no rows."""
        rows = np.asarray(rows, dtype=np.int64)
        width, inner = self.model.dispatch_width, self.model.expert_width
        first = (self.model.matrices - 1) * inner
        if direction == FORWARD:
            products = self.product(rows, first, width) + self.product(rows, width, inner)
        else:
            gradients = self.product(rows, width, first) + self.product(rows, inner, width)
            products = gradients + self.weight_gradient(rows, first, width) + self.weight_gradient(rows, width, inner)
        passes = 1.0 if direction == FORWARD else 2.0
        return np.asarray(products + self.between(rows.sum(axis=1).astype(np.float64)) * passes)

    def product(self, rows: Ints, columns: int, inner: int) -> Floats:
        """Return the seconds of one grouped GEMM: each expert multiplies its rows of ``inner`` elements by ``inner * columns`` weights.

        The slower of two: tiles in waves over the SMs, each SM having its share of the rate; or, at the achieved bandwidth, the weights
        of the experts that have rows, and the rows in and out.
        """
        model = self.model
        column_tiles = -(-columns // self.tile_columns)
        heights = waves_of_rows(rows, self.tile_rows, column_tiles, self.gpu.sms)
        computing = heights * (2.0 * self.tile_columns * inner) * self.gpu.sms / self.rate
        active = np.count_nonzero(rows, axis=1)
        weights = active * (float(inner) * columns * DTYPE_BYTES[model.expert_dtype])
        moved = weights + rows.sum(axis=1) * (inner * DTYPE_BYTES[model.expert_dtype] + columns * GEMM_BYTES_OUT)
        return np.asarray(np.where(active > 0, np.maximum(computing, moved / self.bandwidth) + self.launch, 0.0))

    def weight_gradient(self, rows: Ints, columns: int, inner: int) -> Floats:
        """Return the seconds of one weight gradient: each expert's output is ``inner * columns``, and its rows are what is summed over.

        Rows are read ``tile_rows[0]`` at a time. Gradients are written once, in fp32.
        """
        deep = self.tile_rows[0]
        depths = -(-rows // deep) * deep
        tall = self.tile_rows[-1]
        tiles = -(-inner // tall) * -(-columns // self.tile_columns)
        computing = waves_of_depths(depths, tiles, self.gpu.sms) * (2.0 * tall * self.tile_columns) * self.gpu.sms / self.rate
        active = np.count_nonzero(rows, axis=1)
        moved = active * (float(inner) * columns * GRADIENT_BYTES) + rows.sum(axis=1) * ((inner + columns) * GEMM_BYTES_OUT)
        return np.asarray(np.where(active > 0, np.maximum(computing, moved / self.bandwidth) + self.launch, 0.0))

    def between(self, count: Floats) -> Floats:
        """Return the seconds of sorting rows by expert and back, and of the activation between the two GEMMs."""
        activation = self.model.matrices * count * self.model.expert_width * GEMM_BYTES_OUT
        return np.asarray((permute_bytes(self.model, count) + activation) / self.bandwidth)


@register("compute", "grouped_gemm")
@dataclass(frozen=True, slots=True, kw_only=True)
class GroupedGemm:
    """Time the routed experts as two grouped GEMMs, from the rows of each local expert.

    Gate and up projections are one GEMM (N = 2 expert widths, or 1 without a gate; K = dispatch width), the down projection another. An
    expert's rows are filled up to whole tiles, and tiles run in waves over the SMs (NVIDIA, "Matrix Multiplication Background User's
    Guide": tile and wave quantisation). A GEMM is never faster than its memory traffic, where only experts that have rows read their
    weights: in decode that is nearly all of the time. The backward pass has a GEMM for the rows' gradient and one for the weights'
    gradient, for each forward GEMM. Weights that several row tiles of one expert share are assumed to stay in the cache between them.
    Times never fall when rows are added (:mod:`moesim.models.compute.tiles` says why).

    Parameters
    ----------
    profile : str or null
        Where the numbers below come from when they are not given. ``null``: the profile of the GPU's name, or documented assumptions.
    tile_rows : tuple of int
        Tile heights that the kernels are built for, increasing; an expert takes the smallest that holds its rows.
    tile_columns : int
        Width of a tile.
    compute_efficiency, memory_efficiency : float or null
        Achieved part of the peaks, for experts.
    dense_efficiency : float or null
        Achieved part of the peak arithmetic, for everything else.
    launch, dense_launch : float or null
        Seconds per grouped GEMM with its helper kernels; seconds per dense phase.
    """

    profile: Annotated[str, Choice(tuple(PROFILES))] | None = None
    tile_rows: tuple[Count, ...] = (16, 32, 64, 128)
    tile_columns: Count = 128
    compute_efficiency: Efficiency | None = None
    memory_efficiency: Efficiency | None = None
    dense_efficiency: Efficiency | None = None
    launch: Seconds | None = None
    dense_launch: Seconds | None = None

    def __post_init__(self) -> None:
        if not self.tile_rows:
            raise FieldError("tile_rows", "the list is empty: give at least one tile height, such as 128")
        if list(self.tile_rows) != sorted(set(self.tile_rows)):
            raise FieldError("tile_rows", f"{list(self.tile_rows)} must be increasing, each height once")

    def begin(self, setting: Setting) -> GroupedGemmKernels:
        """Return the kernels of one run.

        Raises
        ------
        UsageError
            If there is no such profile, or the GPU states no rate that the experts' dtype could use.
        """
        gpu, model = setting.cluster.gpu, setting.model
        known = profile_of(self.profile, gpu.name)
        dtype = arithmetic_dtype(gpu, model.expert_dtype)
        bases: list[str] = []

        def choose(own: float | None, value: float, basis: str) -> float:
            bases.append(basis if own is None else "assumed")
            return value if own is None else own

        numbers = {
            name: choose(own, number.value, number.basis)
            for name, own, number in (
                ("compute", self.compute_efficiency, efficiency_in(known, dtype)),
                ("memory", self.memory_efficiency, known.memory_efficiency),
                ("dense", self.dense_efficiency, known.dense_efficiency),
                ("launch", self.launch, known.launch),
                ("dense_launch", self.dense_launch, known.dense_launch),
            )
        }
        return GroupedGemmKernels(
            gpu=gpu,
            model=model,
            rate=peak(gpu, model.expert_dtype) * numbers["compute"],
            dense_efficiency=numbers["dense"],
            bandwidth=gpu.memory_bandwidth * numbers["memory"],
            launch=numbers["launch"],
            dense_launch=numbers["dense_launch"],
            tile_rows=self.tile_rows,
            tile_columns=self.tile_columns,
            basis=weakest(bases),
        )
