"""The capacity of V-MoE, with or without batch priority."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np

from moesim.base.errors import PluginError
from moesim.base.fields import Choice, CountOrZero, Flag, Positive
from moesim.base.registry import register
from moesim.facts.arrays import Ints
from moesim.facts.contracts import Limit
from moesim.facts.routing import Kept, LayerRouting
from moesim.facts.scenario import Setting
from moesim.models.capacity.orders import slot_major
from moesim.models.capacity.scopes import round_up
from moesim.models.capacity.survivors import keep_first, what_is_left


@register("capacity", "vmoe")
@dataclass(frozen=True, slots=True, kw_only=True)
class VMoe:
    """Cap the routes from each source GPU to each expert at T k factor / E, rounded up to a multiple of 4; send buffers filled to the cap.

    T are the tokens of that GPU (V-MoE's group), k the choices of a token, E the experts. First choices of all tokens come before any
    second choice. Gate weights are not renormalised.

    Parameters
    ----------
    factor : float
        ``capacity_factor``: 1.05 in V-MoE's pre-training configurations, 1.5 in fine-tuning.
    batch_priority : bool
        Batch Priority Routing: among equal choices the tokens of the largest gate weight come first (equal weights: the earlier token),
        not the earlier tokens. V-MoE's weights are softmax probabilities over all experts: use the gate ``topk`` with
        ``pre_softmax: true``.
    rounding : str
        ``ceil`` or ``round`` (to the even number from halves), before the multiple.
    multiple_of : int
        What the capacity is a multiple of; 0 leaves it.

    Notes
    -----
    Source: google-research/vmoe, ``vmoe/moe.py``, ``compute_capacity`` and ``get_top_experts_per_item_dispatcher``. Dropped before the
    dispatch; shapes are static, so buffers travel and are computed whole. Its other dispatcher, where experts choose tokens, is a gate.
    """

    factor: Positive = 1.05
    batch_priority: Flag = False
    rounding: Annotated[str, Choice(("ceil", "round"))] = "ceil"
    multiple_of: CountOrZero = 4

    def begin(self, setting: Setting) -> Limit:
        """Return the rule for one run."""

        def limit(routing: LayerRouting, *, step: int, moe_layer: int) -> Kept:  # noqa: ARG001 - the contract of the slot
            choices = setting.model.top_k if routing.ids is None else routing.ids.shape[1]
            tokens = np.diff(routing.token_start)
            capacity = vmoe_capacity(tokens, choices, routing.experts, self.factor, self.rounding, self.multiple_of)
            keep = None
            if routing.ids is not None:
                if (routing.counts > capacity[:, None]).any():
                    keep = keep_first(routing, capacity, slot_major(routing, "capacity rule 'vmoe'", priority=self.batch_priority))
                else:
                    keep = np.asarray(routing.ids >= 0)
            return what_is_left(routing, capacity=capacity, limit=capacity, rows=capacity, keep=keep, weights=routing.weights)

        return limit


def vmoe_capacity(tokens: Ints, top_k: int, experts: int, factor: float, rounding: str, multiple_of: int) -> Ints:
    """Return int[G], rows of each source's buffer for each expert: (T k factor) / E in double precision, rounded in that order.

    Raises
    ------
    PluginError
        If there are tokens but no row, which V-MoE refuses too. One token alone is forgiven.

    Examples
    --------
    >>> vmoe_capacity(np.array([64, 96]), 2, 8, 1.05, "ceil", 4).tolist()
    [20, 28]
    >>> vmoe_capacity(np.array([64, 96]), 2, 8, 1.05, "round", 0).tolist()
    [17, 25]
    """
    share = tokens * top_k * factor / experts
    capacity: Ints = (np.ceil(share) if rounding == "ceil" else np.round(share)).astype(np.int64)
    # What a run is checked with is one token per GPU: a factor that suits the real batches must not fail there.
    empty = np.flatnonzero((capacity == 0) & (tokens > 1))
    if empty.size:
        raise PluginError(
            f"capacity rule 'vmoe': factor {factor:g} leaves no row for the {tokens[empty[0]]} tokens of GPU {empty[0]}: "
            f"{share[empty[0]]:g} is rounded to 0; write a larger factor, or rounding: ceil"
        )
    return round_up(capacity, multiple_of) if multiple_of else capacity
