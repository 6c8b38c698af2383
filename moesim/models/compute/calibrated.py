"""Expert kernels as measured: the fitted model of a kernel library, from a profile."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np

from moesim.base.errors import CalibrationError, UsageError, did_you_mean
from moesim.base.fields import Choice, ReadFile
from moesim.base.registry import register
from moesim.facts.arrays import Floats, Ints
from moesim.facts.cluster import Cluster
from moesim.facts.evidence import weakest
from moesim.facts.gpu import Gpu
from moesim.facts.model import DTYPE_BYTES, MoeModel
from moesim.facts.profile import Section
from moesim.facts.profile_data import ProfileField
from moesim.facts.program import FORWARD
from moesim.facts.scenario import Scenario, Setting
from moesim.models.compute.grouped_gemm import GroupedGemm, GroupedGemmKernels
from moesim.models.compute.looped import Looped
from moesim.models.compute.peaks import arithmetic_dtype, peak
from moesim.models.fitted.expert_ffn import TILINGS, ExpertFfn, Tiling
from moesim.models.fitted.routing_draws import distinct_tokens

SECTIONS = "expert_ffn."
"""What the names of this model's sections begin with; a kernel library follows."""

WIDE_BYTES = 2.0
"""Of an element of a row that is not quantised."""

QUANTISED = ("fp8", "int8", "fp4")
"""Weight formats whose kernels quantise the rows to one byte as well; other narrow ones are unpacked to 16 bits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibratedKernels:
    """Kernels of one run; see :class:`Calibrated`."""

    gpu: Gpu
    model: MoeModel
    fitted: ExpertFfn
    tiling: Tiling
    tokens: int
    ranks: int
    others: GroupedGemmKernels
    basis: str

    def dense(self, flops: Floats, moved: Floats, *, dtype: str) -> Floats:
        """Return seconds, elementwise: the roofline at the efficiency of ordinary GEMMs."""
        return self.others.dense(flops, moved, dtype=dtype)

    def experts(self, rows: Ints, *, direction: str) -> Floats:
        """Return float[G] from int[G, slots] rows of one layer; 0 where a GPU has no rows."""
        rows = np.asarray(rows, dtype=np.int64)
        if direction != FORWARD:
            return self.others.experts(rows, direction=direction)
        return np.asarray(np.where(rows.sum(axis=1) > 0, self.fitted.predict(self.inputs(rows)), 0.0))

    def inputs(self, rows: Ints) -> dict[str, Any]:
        """Return what :class:`moesim.models.fitted.expert_ffn.ExpertFfn` must be told of GPUs with these rows.

        Tiles are as large as the tokens of the call ask on average, whatever the experts of this GPU get of them: libraries choose them
        before they know it. The call gets the batch of the group, or, after an exchange, the tokens that reach the GPU. What a kernel does
        for the rest of its group follows from the batch as well, so a GPU's time depends on its own rows alone.
        """
        model, gpus = self.model, len(rows)
        group = self.tokens * self.ranks
        routes = group * model.top_k
        narrow = self.row_bytes < WIDE_BYTES
        reached = distinct_tokens(rows, max(group, 1))
        mean = (np.full(gpus, float(group)) if self.tiling.whole_group else reached) * model.top_k / model.experts
        slots, sms = np.full(gpus, float(rows.shape[1])), np.full(gpus, float(self.gpu.sms))
        (tall, wide), (second_tall, second_wide) = (
            self.tiling.tiles(mean, np.full(gpus, narrow), groups=slots, columns=np.full(gpus, float(columns)), sms=sms)
            for columns in ((model.matrices - 1) * model.expert_width, model.dispatch_width)
        )
        active, routed = (rows > 0).sum(axis=1), rows.sum(axis=1).astype(np.float64)
        tiles, second_tiles = ((-(-rows // height[:, None])).sum(axis=1).astype(np.float64) for height in (tall, second_tall))
        whole = np.full((gpus, 1), float(routes))
        away = max(model.experts - rows.shape[1], 0) * np.ceil(mean / tall) if self.tiling.whole_group else np.zeros(gpus)
        alike = {
            "slots": rows.shape[1], "hidden_size": model.dispatch_width, "inter_size": model.expert_width,
            "first_widths": model.matrices - 1, "weight_bytes": DTYPE_BYTES[model.expert_dtype], "row_bytes": self.row_bytes,
            "narrow": narrow,
            "memory_bandwidth": self.gpu.memory_bandwidth, "peak_flops": peak(self.gpu, model.expert_dtype), "sms": self.gpu.sms,
        }  # fmt: skip
        return {
            "active": active.astype(np.float64)[:, None],
            "routed": routed[:, None],
            "tiles": tiles[:, None],
            "tile_rows": tall.astype(np.float64),
            "tile_columns": wide,
            "second_tiles": second_tiles[:, None],
            "second_tile_rows": second_tall.astype(np.float64),
            "second_tile_columns": second_wide,
            "empty_tiles": away[:, None],
            "moved_rows": np.maximum(whole, routed[:, None]) if self.tiling.whole_group else routed[:, None],
            "summed_rows": np.maximum(whole, routed[:, None]) if self.tiling.whole_group else reached[:, None] * model.top_k,
            **{name: np.full(gpus, float(value)) for name, value in alike.items()},
        }

    @property
    def row_bytes(self) -> float:
        """Bytes of an element of a row as the GEMMs read it."""
        return row_bytes_of(self.model)


def row_bytes_of(model: MoeModel) -> float:
    """Return the bytes of an element of a row as a model's expert GEMMs read it."""
    return 1.0 if model.expert_dtype in QUANTISED else WIDE_BYTES


@register("compute", "calibrated")
@dataclass(frozen=True, slots=True, kw_only=True)
class Calibrated:
    """Time the routed experts as a kernel library was measured: launch, weights of active experts, tiles, and the work around the GEMMs.

    The formula is that of :class:`moesim.models.fitted.expert_ffn.ExpertFfn`; its numbers come from the section ``expert_ffn.KERNEL`` of a
    profile, and its peaks from the cluster's GPU. On another GPU than the profile's, rates follow by the ratio of the data sheets,
    launches stay, and results say so. Times are those of the expert FFN alone; everything else, and the backward pass, is timed as by
    ``grouped_gemm`` with the efficiencies of the profile, for the tables hold forward passes only.

    ``vllm`` is a kernel that every rank starts for the batch of the whole expert-parallel group, as after an all-gather: it skips what
    others compute, at a price. ``cutlass`` and the two of DeepGEMM are started for the rows that a rank received.

    Parameters
    ----------
    kernel : str
        The kernel library: ``vllm`` (fused Triton kernel), ``cutlass`` (TensorRT-LLM), ``deepgemm_contiguous`` (DeepGEMM as prefill uses
        it, started without a graph) or ``deepgemm_masked`` (as decode uses it).
    profile : str or None
        A shipped profile's name, such as ``h200-sxm``, or the file of one that ``moesim calibrate`` wrote. It must be given.
    fitted : profile or None
        What the profile holds; the loader fills it in.
    """

    kernel: Annotated[str, Choice(tuple(TILINGS))] = "vllm"
    profile: Annotated[str, ReadFile(reader="profile/expert_ffn", into="fitted")] | None = None
    fitted: ProfileField | None = None

    def section(self) -> Section:
        """Return the section that the profile has of the kernel library.

        Raises
        ------
        UsageError
            If there is no profile, or it has no such section.
        """
        if self.fitted is None:
            raise UsageError(
                "compute.profile: a calibrated compute model needs a profile, such as h200-sxm, or a file of 'moesim calibrate'"
            )
        name = SECTIONS + self.kernel
        if name not in self.fitted.sections:
            raise UsageError(
                f"compute.kernel: the profile {self.fitted.name!r} has no section {name!r}{did_you_mean(name, self.fitted.sections)}; "
                "'moesim calibrate' on a table of this kernel makes one"
            )
        return self.fitted.sections[name]

    def begin(self, setting: Setting) -> CalibratedKernels:
        """Return the kernels of one run.

        Raises
        ------
        UsageError
            If there is no profile, it lacks the kernel library, or the GPU states no rate that the experts' dtype could use.
        """
        section, gpu, model = self.section(), setting.cluster.gpu, setting.model
        arithmetic_dtype(gpu, model.expert_dtype)
        try:
            fitted = ExpertFfn.of_section(section)
        except CalibrationError as error:
            raise UsageError(f"compute.profile: {error}") from None
        there = fitted.compute_efficiency_8 if row_bytes_of(model) < WIDE_BYTES else fitted.compute_efficiency_16
        others = GroupedGemm(
            compute_efficiency=min(there, 1.0), memory_efficiency=min(fitted.memory_efficiency, 1.0), launch=fitted.launch / 2
        ).begin(setting)
        home = gpu.name == (self.fitted.gpu if self.fitted else "") and not section.carried_from
        return CalibratedKernels(
            gpu=gpu,
            model=model,
            fitted=fitted,
            tiling=TILINGS[self.kernel],
            tokens=setting.workload.tokens_per_gpu,
            ranks=setting.parallel.ep,
            others=others,
            basis=weakest(("fitted" if home else "datasheet", others.basis)),
        )


def outside_kernels(compute: Any, scenario: Scenario, cluster: Cluster) -> str:
    """Return what a user should know of a run beyond what its expert kernels were fitted on; empty if nothing.

    Parameters
    ----------
    compute : object
        The plug-in; one that is not calibrated has nothing to be outside of.
    scenario, cluster
        The run.
    """
    if isinstance(compute, Looped) and compute.fitted is not None:
        said = compute.told(scenario.model, cluster.gpu.name)
        return f"expert kernels of profile {compute.fitted.name!r}: {said}" if said else ""
    if not isinstance(compute, Calibrated) or compute.fitted is None:
        return ""
    section, model = compute.section(), scenario.model
    ranks = scenario.parallel.ep
    asked = {
        "num_tokens": float(scenario.workload.tokens_per_gpu * ranks),
        "ranks": float(ranks),
        "hidden_size": float(model.dispatch_width),
        "inter_size": float(model.expert_width),
        "slots": model.experts / ranks,
    }
    told = []
    measured = section.carried_from or compute.fitted.gpu
    if measured != cluster.gpu.name:
        told.append(f"they were fitted on {measured} and the cluster has {cluster.gpu.name}: rates are carried over by data-sheet ratios")
    beyond = [
        f"{name} {asked[name]:g} (fitted on {least:g} to {most:g})"
        for name, (least, most) in section.fitted_range.items()
        if name in asked and not least <= asked[name] <= most
    ]
    if beyond:
        told.append("the run lies outside their range: " + ", ".join(beyond))
    return f"expert kernels of profile {compute.fitted.name!r}: {'; '.join(told)}" if told else ""
