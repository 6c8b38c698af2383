"""The capacity factor of Megatron-Core."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np

from moesim.base.fields import Choice, Flag, Positive
from moesim.base.registry import register
from moesim.facts.arrays import Ints
from moesim.facts.contracts import Limit
from moesim.facts.routing import Kept, LayerRouting
from moesim.facts.scenario import Setting
from moesim.models.capacity.orders import by_position, by_weight
from moesim.models.capacity.survivors import keep_first, what_is_left


@register("capacity", "megatron")
@dataclass(frozen=True, slots=True, kw_only=True)
class Megatron:
    """Cap the routes from each source GPU to each expert at C = ceil(T k / E * factor), before the dispatch.

    T are the tokens of that GPU in that call, k the choices of a token, E the experts; there is no minimum. If C is more than T nothing
    is dropped. Gate weights are not renormalised.

    Parameters
    ----------
    factor : float
        ``moe_expert_capacity_factor``.
    drop : str
        ``probs`` keeps the C routes of largest gate weight per expert (equal weights: the earlier token). ``position`` keeps the first
        C in token order; Megatron itself takes a top-k over a map of zeros and ones there, so which tokens survive depends on its
        backend, and only how many is comparable.
    pad_to_capacity : bool
        Fill each expert's spare slots with meaningless rows, which cost communication and compute: up to C rows, or up to T where C is
        more than T (the map is then all ones).

    Notes
    -----
    Source: NVIDIA/Megatron-LM, ``megatron/core/transformer/moe/moe_utils.py``, ``get_capacity`` and ``apply_router_token_dropping``.
    """

    factor: Positive
    drop: Annotated[str, Choice(("probs", "position"))] = "probs"
    pad_to_capacity: Flag = False

    def begin(self, setting: Setting) -> Limit:
        """Return the rule for one run."""

        def limit(routing: LayerRouting, *, step: int, moe_layer: int) -> Kept:  # noqa: ARG001 - the contract of the slot
            return self.apply(routing, top_k=setting.model.top_k)

        return limit

    def apply(self, routing: LayerRouting, *, top_k: int) -> Kept:
        """Return what is left of ``routing``; ``top_k`` counts where its tokens are unknown.

        Raises
        ------
        FidelityError
            If tokens are known, their gate weights are not, and ``drop`` is ``probs``.
        """
        tokens = np.diff(routing.token_start)
        choices = top_k if routing.ids is None else routing.ids.shape[1]
        capacity = megatron_capacity(tokens, choices, routing.experts, self.factor)
        limit = np.minimum(capacity, tokens)
        keep = None
        if routing.ids is not None:
            if self.drop == "probs":
                order = by_weight(routing.need_weights("capacity rule 'megatron' with drop: probs (drop: position needs none)"))
            else:
                order = by_position(routing)
            keep = keep_first(routing, limit, order)
        rows = limit if self.pad_to_capacity else None
        return what_is_left(routing, capacity=capacity, limit=limit, rows=rows, keep=keep, weights=routing.weights)


def megatron_capacity(tokens: Ints, top_k: int, experts: int, factor: float) -> Ints:
    """Return int[G], rows that each source may send to each expert: ceil((T k / E) factor) in double precision, rounded in that order.

    Source: NVIDIA/Megatron-LM, ``moe_utils.py``, ``get_capacity`` called with T k tokens.

    Examples
    --------
    >>> megatron_capacity(np.array([50, 4096]), 2, 7, 1.0).tolist()
    [15, 1171]
    """
    return np.ceil(tokens * top_k / experts * factor).astype(np.int64)
