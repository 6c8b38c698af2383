"""Every GPU sends to every other at once, in one stage."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

import numpy as np

from moesim.base.errors import UsageError, did_you_mean
from moesim.base.fields import Choice, Count, Flag, Seconds
from moesim.base.registry import register
from moesim.facts.arrays import Ints
from moesim.facts.model import DTYPE_BYTES, Dtype, MoeModel
from moesim.facts.program import BACKWARD, FORWARD
from moesim.facts.routing import Assignment
from moesim.facts.scenario import Setting
from moesim.facts.traffic import Exchange, Traffic
from moesim.models.exchange.copies import copies_per_route, copies_per_token, padding_rows

SCALED = ("fp8", "int8", "fp4")
"""Dtypes that carry a scale per block beside them; ``mxfp4`` has its scales in its bytes per element."""

SCALE_BYTES = 4
INDEX_BYTES = 4
WEIGHT_BYTES = 4
GRADIENT_DTYPE = "bf16"


def payload_bytes(width: int, dtype: str, scale_block: int) -> float:
    """Return the bytes of ``width`` elements, with a 4-byte scale per block of ``scale_block`` in ``SCALED`` dtypes (as DeepEP sends fp8).

    Examples
    --------
    >>> payload_bytes(7168, "bf16", 128), payload_bytes(7168, "fp8", 128)
    (14336.0, 7392.0)
    """
    scales = -(-width // scale_block) * SCALE_BYTES if dtype in SCALED else 0
    return width * DTYPE_BYTES[dtype] + scales


def _traffic(copies: Ints, padding: Ints, each: float) -> Traffic:
    return Traffic(bytes=np.multiply(copies + padding, each, dtype=np.float64), copies=copies, padding=padding)


@dataclass(frozen=True, slots=True, kw_only=True)
class DirectCarry:
    """One run's exchange; see :class:`Direct`."""

    plan: Direct
    model: MoeModel
    counted: list[tuple[Assignment, Ints, Ints]] = field(default_factory=list)

    def _count(self, assignment: Assignment) -> tuple[Ints, Ints]:
        """Return copies and padding rows, int[G, G] each; backward asks for the same ones as forward, so the last are remembered."""
        if not self.counted or self.counted[0][0] is not assignment:
            out = copies_per_token(assignment, "exchange.deduplicate") if self.plan.deduplicate else copies_per_route(assignment)
            self.counted[:] = [(assignment, out, padding_rows(assignment))]
        return self.counted[0][1:]

    def __call__(self, assignment: Assignment, *, direction: str) -> Exchange:
        """Return the traffic of one layer in one direction."""
        plan, width = self.plan, self.model.dispatch_width
        if direction not in {FORWARD, BACKWARD}:
            raise UsageError(f"unknown direction {direction!r}{did_you_mean(direction, (FORWARD, BACKWARD))}")
        out, empty = self._count(assignment)
        choices = self.model.top_k if plan.deduplicate else 1
        if direction == FORWARD:
            to_experts = payload_bytes(width, plan.dispatch_dtype, plan.scale_block) + choices * (INDEX_BYTES + WEIGHT_BYTES)
            to_tokens = payload_bytes(width, plan.combine_dtype, plan.scale_block)
            dispatch, combine = _traffic(out, empty, to_experts), _traffic(out.T, empty.T, to_tokens)
        else:
            gradient = payload_bytes(width, GRADIENT_DTYPE, plan.scale_block)
            combine, dispatch = _traffic(out, empty, gradient), _traffic(out.T, empty.T, gradient + choices * WEIGHT_BYTES)
        return Exchange(dispatch=(dispatch,), combine=(combine,), launch=plan.launch, barrier=plan.start == "barrier")


@register("exchange", "direct")
@dataclass(frozen=True, slots=True, kw_only=True)
class Direct:
    """Send each token straight to the GPUs of its experts, and the results straight back.

    Forward dispatch: one copy of a token per destination GPU (``deduplicate``, as DeepEP does) or one per route (as an all-to-all of
    permuted tokens does). A copy is ``dispatch_width`` elements and its routing: for each choice a 4-byte expert index and a 4-byte gate
    weight, k of each with a de-duplicated copy, one of each with a route. Forward combine: the GPU of the experts adds up what it holds of
    a token and returns one copy, or returns one per route. Padding rows are sent one by one in both cases, at the price of a copy.

    Backward is the reverse: the gradient of combine goes from the tokens to the experts, the gradient of dispatch back, with a 4-byte
    gradient per gate weight; both in bf16, and the routing is remembered. What stays on its own GPU is never sent.

    Parameters
    ----------
    deduplicate : bool
        Needs to know the experts of each token.
    dispatch_dtype, combine_dtype : str
        Of the forward payload.
    scale_block : int
        Elements that share a scale in ``fp8``, ``int8`` and ``fp4``.
    launch : float
        Seconds before a GPU offers its first byte. The default is measured: nccl-tests all-to-all among 8 H200 of one node, median of the
        rows up to 8 KiB in half precision (``h200_sxm/comm/nccl/2.29.2/nccl_perf.parquet`` under
        aic-core/src/aiconfigurator_core/systems/data
        of ai-dynamo/aiconfigurator at 095f58a). It holds the latency of the links too.
    start : str
        ``pairwise``: a pair starts when both have arrived. ``barrier``: counts are exchanged first, so nobody sends before all are there.
    """

    deduplicate: Flag = True
    dispatch_dtype: Dtype = "bf16"
    combine_dtype: Dtype = "bf16"
    scale_block: Count = 128
    launch: Seconds = 8.7e-6
    start: Annotated[str, Choice(("pairwise", "barrier"))] = "pairwise"

    def begin(self, setting: Setting) -> DirectCarry:
        """Return the exchange of one run."""
        return DirectCarry(plan=self, model=setting.model)
