"""Expert choice: experts choose tokens."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray

from moesim.base.fields import Choice, Count, Positive
from moesim.base.registry import register
from moesim.facts.arrays import Bools, Ints
from moesim.facts.contracts import Choose
from moesim.facts.routing import LayerRouting
from moesim.facts.scenario import Setting
from moesim.models.gate.select import chosen, finite_scores, ranked, softmax

SCOPES = ("gpu", "group", "batch")


@register("gate", "expert_choice")
@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertChoice:
    """Let every expert take its C = ceil(T / E * factor) best tokens; a token goes to any number of experts, also to none.

    An expert likes the tokens of the largest probability (softmax over the experts of a token), of equal ones the earlier. All experts have
    the same load. The gate weights are these probabilities as they are.

    Parameters
    ----------
    factor : float
        How many experts a token has on average.
    scope : str
        Among which tokens an expert chooses, T in number: those that start on one ``gpu``, each for itself; those of an expert-parallel
        ``group``; or those of the whole ``batch``.
    multiple_of : int
        C is rounded up to a multiple of it; V-MoE has 4. It is never more than T.

    Notes
    -----
    Sources: Zhou et al., arXiv:2202.09368 (factor 2, equation 2); google-research/vmoe, ``vmoe/moe.py``, ``compute_capacity`` and
    ``get_top_items_per_expert_dispatcher``. Whether a token is taken depends on later tokens, so this does not work for decoders.
    """

    factor: Positive = 2.0
    scope: Annotated[str, Choice(SCOPES)] = "gpu"
    multiple_of: Count = 1

    def begin(self, setting: Setting) -> Choose:
        """Return the gate for one run."""
        width = {"gpu": 1, "group": setting.parallel.ep, "batch": setting.gpus}[self.scope]

        def choose(routing: LayerRouting, *, step: int, moe_layer: int) -> LayerRouting:  # noqa: ARG001 - the contract of the slot
            logits = finite_scores(routing, "gate 'expert_choice'")
            liking = softmax(logits)
            taken = np.zeros(liking.shape, dtype=np.bool_)
            bounds = np.append(routing.token_start[:-1:width], routing.token_start[-1])
            for first, last in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
                capacity = expert_choice_capacity(last - first, routing.experts, self.factor, self.multiple_of)
                taken[first:last] = best_tokens(liking[first:last], capacity)
            taken &= ~np.isneginf(logits)
            ids = ranked(taken, liking)
            weights = np.where(ids >= 0, np.take_along_axis(liking, np.maximum(ids, 0), axis=1), np.float32(0))
            return chosen(routing, ids, weights)

        return choose


def expert_choice_capacity(tokens: int, experts: int, factor: float, multiple_of: int) -> int:
    """Return how many of ``tokens`` tokens each expert takes.

    Examples
    --------
    >>> expert_choice_capacity(20, 4, 1.0, 4), expert_choice_capacity(96, 12, 1.0, 1), expert_choice_capacity(3, 4, 2.0, 4)
    (8, 8, 3)
    """
    rows = ceil(tokens * factor / experts)
    return min(-(-rows // multiple_of) * multiple_of, tokens)


def best_tokens(liking: NDArray[Any], capacity: int) -> Bools:
    """Return bool[T, E], the ``capacity`` tokens that each expert likes best; of equal ones the earlier."""
    order: Ints = np.argsort(-liking, axis=0, kind="stable")[:capacity]
    taken = np.zeros(liking.shape, dtype=np.bool_)
    np.put_along_axis(taken, order, True, axis=0)
    return taken
