"""The capacity of DeepSpeed's gates."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray

from moesim.base.errors import FieldError, PluginError
from moesim.base.fields import Choice, Count, CountOrZero, Flag, Positive
from moesim.base.registry import register
from moesim.facts.arrays import Bools, Ints
from moesim.facts.contracts import Limit
from moesim.facts.routing import Kept, LayerRouting
from moesim.facts.scenario import Setting
from moesim.models.capacity.orders import by_choice, by_position, by_weight, renormalise
from moesim.models.capacity.scopes import group_maximum, round_up
from moesim.models.capacity.survivors import keep_first, what_is_left

ORDERS = ("auto", "random", "slot_major", "probs", "position")


@register("capacity", "deepspeed")
@dataclass(frozen=True, slots=True, kw_only=True)
class DeepSpeed:
    """Cap the routes from each source GPU to each expert at C = max(ceil(T / E * factor k), min_capacity); send C rows whatever is kept.

    T are the tokens of that GPU, k the choices of a token, E the experts. Buffers are always filled up to C with empty rows. For
    k of 2 and more the gate weights of a token are renormalised over the routes it keeps, after dropping; for k = 1 they stay.

    Parameters
    ----------
    factor : float
        ``capacity_factor``.
    min_capacity : int
        4 in ``deepspeed.moe.layer.MoE``, 8 in ``TopKGate`` on its own.
    drop : str
        ``auto`` is what ``TopKGate`` does: ``random`` for k = 1 (``position`` without ``use_rts``), ``slot_major`` for k = 2, else
        ``probs``. ``random`` keeps the C routes of the largest of uniform draws (Random Token Selection, k = 1 only). ``slot_major`` is
        ``top2gating``: first choices of all tokens before any second choice, in token order (k = 2 only). ``probs`` and ``position``
        are those of ``topkgating``: largest gate weight (equal ones: the earlier token), and token order with a token's choices
        together. For k = 1 ``position`` is ``top1gating`` without draws, where DeepSpeed takes a top-k over a map of zeros and ones:
        which tokens survive depends on its backend, and only how many is comparable.
    use_rts : bool
        What ``auto`` does for k = 1.
    drop_tokens : bool
        If false nothing is dropped, and C is the largest number of routes from any source of the expert-parallel group to any expert,
        rounded up to a multiple of ``tensor_parallel``; for k = 1 it is never more than the tokens.
    tensor_parallel : int
        Size of the tensor-parallel group of the dense layers, for that rounding; nothing else of tensor parallelism is modelled.

    Notes
    -----
    Source: deepspeedai/DeepSpeed, ``deepspeed/moe/sharded_moe.py``: ``TopKGate``, ``top1gating``, ``top2gating``, ``topkgating`` and
    ``_capacity``.
    A gate weight that is exactly 0 leaves its row empty in DeepSpeed; the row is sent all the same, so it counts as kept here.
    Sampling the second expert belongs to the gate ``deepspeed_top2``. Sources with unequal tokens have unequal C, on which DeepSpeed's
    own collective would hang; C is a source's own here.
    """

    factor: Positive = 1.0
    min_capacity: CountOrZero = 4
    drop: Annotated[str, Choice(ORDERS)] = "auto"
    use_rts: Flag = True
    drop_tokens: Flag = True
    tensor_parallel: Count = 1

    def __post_init__(self) -> None:
        if self.drop == "random" and not self.use_rts:
            raise FieldError("use_rts", "use_rts: false contradicts drop: random; leave one of them out")

    def begin(self, setting: Setting) -> Limit:
        """Return the rule for one run; it draws from the stream ``capacity, deepspeed, step, layer``."""
        self.order(setting.model.top_k)  # refuses before the first step what it would refuse in it

        def limit(routing: LayerRouting, *, step: int, moe_layer: int) -> Kept:
            choices = setting.model.top_k if routing.ids is None else routing.ids.shape[1]
            order = self.order(choices)
            if not self.drop_tokens:
                capacity = round_up(group_maximum(routing.counts.max(axis=1, initial=0), setting.parallel.ep), self.tensor_parallel)
                if choices == 1:
                    capacity = np.minimum(capacity, group_maximum(np.diff(routing.token_start), setting.parallel.ep))
                return self._leave(routing, capacity, None if routing.ids is None else np.asarray(routing.ids >= 0))
            capacity = deepspeed_capacity(np.diff(routing.token_start), choices, routing.experts, self.factor, self.min_capacity)
            keep = None
            if routing.ids is not None:
                if order == "random":
                    draws = setting.rng("capacity", "deepspeed", step, moe_layer).random(routing.ids.shape, dtype=np.float32)
                    keep = keep_random(routing, capacity, draws)
                else:
                    keep = keep_first(routing, capacity, self._queue(routing, order))
            return self._leave(routing, capacity, keep)

        return limit

    def order(self, choices: int) -> str:
        """Return the order in force for tokens with so many choices: ``random``, ``slot_major``, ``probs`` or ``position``.

        Raises
        ------
        PluginError
            If DeepSpeed has no such order for that many choices.
        """
        if self.drop == "auto":
            return {1: "random" if self.use_rts else "position", 2: "slot_major"}.get(choices, "probs")
        wanted = {"random": 1, "slot_major": 2}.get(self.drop, choices)
        if wanted != choices:
            raise PluginError(
                f"capacity rule 'deepspeed': drop: {self.drop} is for {wanted} choice(s) per token, but the router makes {choices}; "
                "write drop: auto, probs or position"
            )
        return self.drop

    def _queue(self, routing: LayerRouting, order: str) -> Ints:
        if order == "position":
            return by_position(routing)
        weights = routing.need_weights(f"capacity rule 'deepspeed' with drop: {order} (drop: position needs none)")
        return by_choice(weights) if order == "slot_major" else by_weight(weights)

    def _leave(self, routing: LayerRouting, capacity: Ints, keep: Bools | None) -> Kept:
        weights = routing.weights
        if keep is not None and weights is not None and keep.shape[1] > 1:
            weights = renormalise(weights, keep)
        return what_is_left(routing, capacity=capacity, limit=capacity, rows=capacity, keep=keep, weights=weights)


def deepspeed_capacity(tokens: Ints, top_k: int, experts: int, factor: float, min_capacity: int) -> Ints:
    """Return int[G], rows of each source's buffer for each expert.

    The product of T / E and factor k is taken in single precision, as ``_capacity`` does with a tensor for the factor: 100 tokens
    per expert and factor 1.1 give 110, where double precision gives 111.

    Examples
    --------
    >>> deepspeed_capacity(np.array([50, 800, 8]), 2, 7, 1.0, 4).tolist()
    [15, 229, 4]
    >>> deepspeed_capacity(np.array([800]), 1, 8, 1.1, 4).tolist()
    [110]
    """
    product = (tokens / experts).astype(np.float32) * np.float32(factor * top_k)
    capacity: Ints = np.maximum(np.ceil(product).astype(np.int64), min_capacity)
    return capacity


def keep_random(routing: LayerRouting, limit: Ints, draws: NDArray[Any]) -> Bools:
    """Keep, of the routes from each source to each expert, those with the largest draws (Random Token Selection).

    Parameters
    ----------
    routing : LayerRouting
        With ids.
    limit : int[G]
        Routes that an expert takes from each source.
    draws : float[T, k]
        Uniform numbers, one per route; equal ones: the earlier token is kept.

    Returns
    -------
    bool[T, k]
    """
    return keep_first(routing, limit, by_weight(draws))
