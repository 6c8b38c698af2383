"""Top-p: as many experts as a token needs to be sure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray

from moesim.base.errors import PluginError
from moesim.base.fields import Count, Flag, Number
from moesim.base.registry import register
from moesim.facts.contracts import Choose
from moesim.facts.routing import LayerRouting
from moesim.facts.scenario import Setting
from moesim.models.gate.select import chosen, finite_scores, softmax


@register("gate", "top_p")
@dataclass(frozen=True, slots=True, kw_only=True)
class TopP:
    """Choose the fewest experts whose probabilities add up to ``mass``: one where the router is sure, many where it is not.

    Experts are taken in the order of their probability (equal ones: the lower id). The model's ``top_k`` does not count. The gate weights
    are the probabilities as they are.

    Parameters
    ----------
    mass : float
        More than 0, at most 1.
    most : int or None
        Never more experts than this; all experts by default.
    normalise : bool
        Divide the weights of a token by their sum.

    Notes
    -----
    Source: Huang et al., arXiv:2403.07652, equations 4 and 5 (they use 0.4, with a loss that keeps the entropy of the router low).
    """

    mass: Annotated[float, Number(0.0, 1.0, exclusive=True)] = 0.4
    most: Count | None = None
    normalise: Flag = False

    def begin(self, setting: Setting) -> Choose:
        """Return the gate for one run.

        Raises
        ------
        PluginError
            If ``most`` is more than the model's experts.
        """
        who, experts = "gate 'top_p'", setting.model.experts
        most = experts if self.most is None else self.most
        if most > experts:
            raise PluginError(f"{who}: most ({most}) is larger than the model's experts ({experts})")

        def choose(routing: LayerRouting, *, step: int, moe_layer: int) -> LayerRouting:  # noqa: ARG001 - the contract of the slot
            logits = finite_scores(routing, who)
            ids, weights = nucleus(softmax(logits), self.mass, most)
            if self.normalise:
                weights = weights / weights.sum(axis=1, keepdims=True)
            return chosen(routing, ids, weights)

        return choose


def nucleus(probabilities: NDArray[Any], mass: float, most: int) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """Return int32[T, k] experts, best first, filled up with -1, and float32[T, k] their probabilities; k is the most of any token.

    Parameters
    ----------
    probabilities : float32[T, E]
        Rows add up to 1; 0 where an expert may not be chosen.
    mass : float
        What the chosen ones add up to at least, but for rounding; sums are taken in double precision.
    most : int
        1 to E; tokens choose no more.
    """
    order = np.argsort(-probabilities, axis=1, kind="stable").astype(np.int32)
    sorted_ = np.take_along_axis(probabilities, order, axis=1)
    before = np.cumsum(sorted_, axis=1, dtype=np.float64) - sorted_
    # An expert of probability 0 adds nothing, however far rounding keeps the sum below the mass.
    needed = (before < mass) & (sorted_ > 0)
    counts = np.minimum(needed.sum(axis=1), most)
    width = int(counts.max(initial=1))
    there = np.arange(width) < counts[:, None]
    ids = np.where(there, order[:, :width], np.int32(-1))
    return ids, np.where(there, sorted_[:, :width], np.float32(0)).astype(np.float32, copy=False)
