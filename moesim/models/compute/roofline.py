"""The roofline: a kernel is as slow as its arithmetic or its memory traffic, whichever is slower."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from moesim.base.fields import Efficiency, Seconds
from moesim.base.registry import register
from moesim.facts.arrays import Floats, Ints
from moesim.facts.gpu import Gpu
from moesim.facts.model import DTYPE_BYTES, MoeModel
from moesim.facts.program import FORWARD
from moesim.facts.scenario import Setting
from moesim.models.compute.peaks import peak
from moesim.models.work import GRADIENT_BYTES


def roofline_seconds(flops: Floats, moved: Floats, rate: float, bandwidth: float, launch: float) -> Floats:
    """Return ``max(flops / rate, moved / bandwidth) + launch``, and 0 where there is no work.

    Williams, Waterman and Patterson, "Roofline", Communications of the ACM 52(4), 2009, with a fixed time per call added.

    Parameters
    ----------
    flops, moved : float[...]
        Operations, and bytes through memory.
    rate, bandwidth : float
        Achieved flop/s and B/s.
    launch : float
        Seconds per call that does anything.
    """
    work = np.maximum(np.asarray(flops, dtype=np.float64) / rate, np.asarray(moved, dtype=np.float64) / bandwidth)
    return np.asarray(np.where(work > 0, work + launch, 0.0))


@dataclass(frozen=True, slots=True, kw_only=True)
class RooflineKernels:
    """Kernels of one run; see :class:`Roofline`."""

    gpu: Gpu
    model: MoeModel
    compute_efficiency: float
    bandwidth: float
    launch: float
    basis: str = "assumed"

    def dense(self, flops: Floats, moved: Floats, *, dtype: str) -> Floats:
        """Return seconds, elementwise."""
        return roofline_seconds(flops, moved, peak(self.gpu, dtype) * self.compute_efficiency, self.bandwidth, self.launch)

    def experts(self, rows: Ints, *, direction: str) -> Floats:
        """Return float[G] from int[G, slots] rows: weights of the experts that have rows, and every row in and out."""
        model = self.model
        count = np.asarray(rows, dtype=np.float64).sum(axis=1)
        active = np.count_nonzero(rows, axis=1).astype(np.float64)
        weights = active * model.expert_bytes
        flops = count * model.routed_flops
        in_and_out = 2.0 * count * model.dispatch_width * DTYPE_BYTES[model.activation_dtype]
        if direction == FORWARD:
            moved = weights + in_and_out
        else:
            flops = 2.0 * flops
            moved = weights + 2.0 * in_and_out + active * model.expert_parameters * GRADIENT_BYTES
        rate = peak(self.gpu, model.expert_dtype) * self.compute_efficiency
        return roofline_seconds(flops, moved, rate, self.bandwidth, self.launch)


@register("compute", "roofline")
@dataclass(frozen=True, slots=True, kw_only=True)
class Roofline:
    """Time everything by the roofline of the GPU, without tiles or waves.

    Experts: flops of all rows against the weights of the experts that have rows plus the rows in and out. Backward does twice the flops,
    reads the weights once, twice the rows, and writes gradients in fp32.

    Parameters
    ----------
    compute_efficiency, memory_efficiency : float
        The achieved part of the GPU's peak arithmetic and memory bandwidth. The defaults are assumptions.
    launch : float
        Seconds that each call costs beside its work. The default is an assumption.
    """

    compute_efficiency: Efficiency = 0.7
    memory_efficiency: Efficiency = 0.85
    launch: Seconds = 5e-6

    def begin(self, setting: Setting) -> RooflineKernels:
        """Return the kernels of one run."""
        gpu = setting.cluster.gpu
        return RooflineKernels(
            gpu=gpu,
            model=setting.model,
            compute_efficiency=self.compute_efficiency,
            bandwidth=gpu.memory_bandwidth * self.memory_efficiency,
            launch=self.launch,
        )
