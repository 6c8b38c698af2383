"""Sinkhorn routing: top-k of a matrix whose rows and columns are balanced."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray

from moesim.base.errors import SimulationError
from moesim.base.fields import Count, Number
from moesim.base.registry import register
from moesim.facts.arrays import Floats
from moesim.facts.contracts import Choose
from moesim.facts.routing import LayerRouting
from moesim.facts.scenario import Setting
from moesim.models.gate.scoring import score_by
from moesim.models.gate.select import blocks, chosen, finite_scores, largest, softmax

TINY = 1e-8
SAME = 1e-6
"""How much ratios of factors may differ that count as one common ratio."""
FARTHEST, HALVINGS, SETTLING = 64.0, 40, 10
"""How far a common factor is looked for, as an exponent of 2, how finely, and after how many rounds."""


@register("gate", "sinkhorn")
@dataclass(frozen=True, slots=True, kw_only=True)
class Sinkhorn:
    """Choose the k largest of exp(logits) after its rows and columns were scaled to equal sums in turn, on each GPU by itself.

    In training only: prefill and decode choose the k largest logits. The balance is soft: the largest entries of a balanced matrix are
    not balanced themselves. The gate weights are the sigmoid (k = 1) or the softmax over all experts of the logits as they were. With k = 1
    this is the router of S-BASE (Clark et al., arXiv:2202.01169).

    Parameters
    ----------
    tolerance : float
        The scaling stops when the factors of the experts change by less than this on average.
    most_rounds : int
        Give up after so many rounds.

    Notes
    -----
    Source: NVIDIA/Megatron-LM, ``megatron/core/transformer/moe/moe_utils.py``, ``sinkhorn``, and ``router.py``,
    ``sinkhorn_load_balancing``; in double precision, since single precision decides by its rounding when to stop. Megatron has no
    bound on the rounds.
    """

    tolerance: Annotated[float, Number(0.0, exclusive=True)] = 1e-4
    most_rounds: Count = 10_000

    def begin(self, setting: Setting) -> Choose:
        """Return the gate for one run."""
        who, top_k = "gate 'sinkhorn'", setting.model.top_k
        training = setting.workload.phase == "training"

        def choose(routing: LayerRouting, *, step: int, moe_layer: int) -> LayerRouting:  # noqa: ARG001 - the contract of the slot
            logits = finite_scores(routing, who)
            plan = logits
            if training:
                plan = np.empty_like(logits)
                for first, last in blocks(routing):
                    plan[first:last] = balanced_plan(logits[first:last], self.tolerance, self.most_rounds)
                plan[np.isneginf(logits)] = -np.inf
            ids = largest(plan, top_k, who)
            scores = score_by("sigmoid", logits) if top_k == 1 else softmax(logits)
            return chosen(routing, ids, np.take_along_axis(scores, ids, axis=1))

        return choose


def balanced_plan(logits: NDArray[Any], tolerance: float, most_rounds: int) -> NDArray[np.float32]:
    """Return float32[T, E], exp(logits) with rows of sum 1 / T and columns of sum 1 / E, as nearly as the tolerance asks.

    Raises
    ------
    SimulationError
        If ``most_rounds`` are not enough, or a logit is too large for the exponential function in double precision.

    Notes
    -----
    Megatron adds 1e-8 to every sum. That makes all factors of the experts shrink or grow together, so slowly that strongly skewed logits
    take Megatron several 100,000 rounds, during which the plan stays what it was. Once nothing but such a common factor changes from
    round to round, the rounds in between are skipped.
    """
    tokens, experts = logits.shape
    if not tokens:
        return np.zeros((0, experts), dtype=np.float32)
    with np.errstate(over="ignore"):
        cost = np.exp(logits.astype(np.float64))
    if not np.isfinite(cost).all():
        raise SimulationError(f"gate 'sinkhorn': the exponential of the logit {float(logits.max()):g} is infinite in double precision")

    def scaled(of_expert: Floats) -> tuple[Floats, Floats]:
        of_token = (1 / tokens) / (cost @ of_expert + TINY)
        return of_token, np.asarray((1 / experts) / (of_token @ cost + TINY))

    before = np.ones(experts)
    for _ in range(most_rounds):
        of_token, of_expert = scaled(before)
        if distance(before, of_expert) < tolerance:
            return np.asarray(of_expert * cost * of_token[:, None], dtype=np.float32)
        ratio = of_expert / before
        if np.ptp(ratio) <= SAME:
            of_expert = of_expert * skipped(of_expert, lambda factors: scaled(factors)[1], tolerance)
        before = of_expert
    raise SimulationError(f"gate 'sinkhorn' did not settle within {most_rounds} rounds; raise tolerance or most_rounds")


def skipped(of_expert: Floats, scaled: Callable[[Floats], Floats], tolerance: float) -> float:
    """Return the common factor that brings float[E] to where a round changes it by about ``tolerance``, on the way that it takes."""
    way = -1.0 if float((scaled(of_expert) / of_expert).mean()) < 1 else 1.0

    def arrived(exponent: float) -> bool:
        here = of_expert * 2.0 ** (way * exponent)
        for _ in range(SETTLING):  # the shift disturbs the ratios a little; they are back in place after some rounds
            here = scaled(here)
        there = scaled(here)
        return distance(here, there) < tolerance or (float((there / here).mean()) - 1) * way <= 0

    far = 1.0
    while not arrived(far) and far < FARTHEST:
        far *= 2
    near = 0.0
    for _ in range(HALVINGS):
        middle = (near + far) / 2
        near, far = (near, middle) if arrived(middle) else (middle, far)
    return float(2.0 ** (way * near))


def distance(one: Floats, other: Floats) -> float:
    """Return the mean absolute difference."""
    return float(np.abs(one - other).mean())
