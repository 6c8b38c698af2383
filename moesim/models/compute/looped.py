"""Experts one after the other on a device of one's own, as 'moesim measure' timed them and 'moesim calibrate' fitted them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np

from moesim.base.errors import CalibrationError, UsageError, did_you_mean
from moesim.base.fields import ReadFile, Text
from moesim.base.registry import register
from moesim.facts.arrays import Floats, Ints
from moesim.facts.model import DTYPE_BYTES, MoeModel
from moesim.facts.profile import Section
from moesim.facts.profile_data import ProfileField
from moesim.facts.program import FORWARD
from moesim.facts.scenario import Setting
from moesim.models.compute.roofline import roofline_seconds
from moesim.models.compute.table import BACKWARD_OVER_FORWARD
from moesim.models.fitted.expert_loop import ExpertLoop

SECTIONS = "expert_loop."
"""What the names of this model's sections begin with; kernel and number format follow."""

TOGETHER = ".together"
"""What the name ends with of a section that was measured while all ranks of the machine were computing, as in a step they are."""

FORMATS = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16", "fp8": "float8_e4m3fn"}
"""PyTorch's names of number formats."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoopedKernels:
    """Kernels of one run; see :class:`Looped`."""

    model: MoeModel
    fitted: ExpertLoop
    basis: str = "assumed"
    """Experts are fitted; what is not an expert, and the backward pass, follow from their rates."""

    def dense(self, flops: Floats, moved: Floats, *, dtype: str) -> Floats:  # noqa: ARG002 - one rate was measured
        """Return seconds, elementwise: the roofline at the rates of the experts."""
        known = self.fitted
        return roofline_seconds(flops, moved, known.compute_rate, known.memory_rate, known.launch)

    def experts(self, rows: Ints, *, direction: str) -> Floats:
        """Return float[G] from int[G, slots] rows of one layer; 0 where a GPU has no rows."""
        given = np.asarray(rows, dtype=np.float64)
        gpus, model = len(given), self.model
        alike = {
            "hidden_size": model.dispatch_width, "inter_size": model.expert_width, "matrices": model.matrices,
            "weight_bytes": DTYPE_BYTES[model.expert_dtype], "row_bytes": max(DTYPE_BYTES[model.expert_dtype], 2.0),
        }  # fmt: skip
        asked = {"expert_rows": given, **{name: np.full(gpus, float(value)) for name, value in alike.items()}}
        seconds = self.fitted.predict(asked) * (1.0 if direction == FORWARD else BACKWARD_OVER_FORWARD)
        return np.asarray(np.where(given.sum(axis=1) > 0, seconds, 0.0))


@register("compute", "looped")
@dataclass(frozen=True, slots=True, kw_only=True)
class Looped:
    """Time the routed experts one after the other, at the rates that a device of your own was measured to have.

    The formula is that of :class:`moesim.models.fitted.expert_loop.ExpertLoop`; its numbers come from the section
    ``expert_loop.KERNEL.DTYPE.together`` of a profile that ``moesim calibrate`` made of 'moesim measure overlap' (all ranks of the
    machine compute), or, if there is none, ``expert_loop.KERNEL.DTYPE`` of 'moesim measure compute' (one rank computes). Nothing of a
    data sheet is used, so it serves CPUs, and says nothing of a device other than the measured one. Gate, attention and dense layers run
    at the same rates (assumed); the backward pass of an expert takes twice its forward pass, two products for each (assumed).

    Parameters
    ----------
    kernel : str
        As the measurement calls it: ``loop``, ``grouped_mm`` (on a CPU) or ``scaled_mm_loop``.
    profile : str or None
        The file of a profile. It must be given.
    fitted : profile or None
        What the profile holds; the loader fills it in.
    """

    kernel: Text = "loop"
    profile: Annotated[str, ReadFile(reader="profile/expert_loop", into="fitted")] | None = None
    fitted: ProfileField | None = None

    def section(self, model: MoeModel) -> Section:
        """Return the section that the profile has of the kernel in the number format of a model's experts.

        Raises
        ------
        UsageError
            If there is no profile, or it has no such section.
        """
        if self.fitted is None:
            raise UsageError("compute.profile: a looped compute model needs a profile: a file of 'moesim calibrate' on a compute.csv")
        name = f"{SECTIONS}{self.kernel}.{FORMATS.get(model.expert_dtype, model.expert_dtype)}"
        if name + TOGETHER in self.fitted.sections:
            return self.fitted.sections[name + TOGETHER]
        if name not in self.fitted.sections:
            raise UsageError(
                f"compute.kernel: the profile {self.fitted.name!r} has no section {name!r}{did_you_mean(name, self.fitted.sections)}; "
                f"measure that kernel in {model.expert_dtype} ('moesim measure compute --dtype'), or say model.expert_dtype"
            )
        return self.fitted.sections[name]

    def told(self, model: MoeModel, gpu: str) -> str:
        """Return what a user should know of a run on a device, or of experts, unlike what was measured; empty if nothing."""
        section = self.section(model)
        measured = "" if self.fitted is None else self.fitted.gpu
        said = []
        if gpu != measured:
            said.append(
                f"they were measured on {measured} and the cluster has {gpu}: these are rates of that machine and say nothing of another"
            )
        asked = {"hidden_size": float(model.dispatch_width), "inter_size": float(model.expert_width)}
        said += [
            f"{name} {asked[name]:g} lies outside their range ({least:g} to {most:g})"
            for name, (least, most) in section.fitted_range.items()
            if name in asked and not least <= asked[name] <= most
        ]
        return "; ".join(said)

    def begin(self, setting: Setting) -> LoopedKernels:
        """Return the kernels of one run.

        Raises
        ------
        UsageError
            If there is no profile, or it lacks the kernel in this number format.
        """
        try:
            fitted = ExpertLoop.of_section(self.section(setting.model))
        except CalibrationError as error:
            raise UsageError(f"compute.profile: {error}") from None
        return LoopedKernels(model=setting.model, fitted=fitted)
