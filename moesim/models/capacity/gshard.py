"""The capacity of the GShard paper."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from moesim.base.errors import PluginError
from moesim.base.fields import CountOrZero, Positive
from moesim.base.registry import register
from moesim.facts.contracts import Limit
from moesim.facts.routing import Kept, LayerRouting
from moesim.facts.scenario import Setting
from moesim.models.capacity.orders import renormalise, slot_major
from moesim.models.capacity.survivors import keep_first, what_is_left
from moesim.models.capacity.switch import mesh_capacity


@register("capacity", "gshard")
@dataclass(frozen=True, slots=True, kw_only=True)
class GShard:
    """Cap the routes from each source GPU to each expert at 2 T factor / E, first choices before second; send buffers filled to the cap.

    T are the tokens of that GPU (GShard's local group) and E the experts; for routers that choose two experts per token. The two gate
    weights of a token are divided by their sum before dropping: what a lost route carried is not given to the other.

    Parameters
    ----------
    factor : float
        Of the mean number of routes; 1 in the paper, where C = 2 N / (G E). Mesh TensorFlow's top-2 gate has 1.25 T / E in training,
        which is a factor of 0.625 here.
    min_capacity : int
        C is never below it; 4 in Mesh TensorFlow.

    Notes
    -----
    Source: Lepikhin et al., arXiv:2006.16668, section 2.2 and Algorithm 1; rounding down, and never more than T rows, as
    ``mesh_tensorflow/transformer/moe.py`` does. That a second choice is dispatched only with the probability of twice its weight is the
    gate's business: a choice that was not made takes no row. Dropped before the dispatch; shapes are static, so buffers travel and are
    computed whole.
    """

    factor: Positive = 1.0
    min_capacity: CountOrZero = 4

    def begin(self, setting: Setting) -> Limit:
        """Return the rule for one run.

        Raises
        ------
        PluginError
            If the model's tokens do not make two choices.
        """
        if setting.model.top_k != 2:
            raise PluginError(
                f"capacity rule 'gshard' is for two choices per token, but the model has top_k {setting.model.top_k}; "
                "use switch (1 choice), deepspeed or megatron"
            )

        def limit(routing: LayerRouting, *, step: int, moe_layer: int) -> Kept:  # noqa: ARG001 - the contract of the slot
            capacity = mesh_capacity(np.diff(routing.token_start), routing.experts, 2 * self.factor, self.min_capacity)
            keep, weights = None, routing.weights
            if routing.ids is not None:
                there = np.asarray(routing.ids >= 0)
                full = (routing.counts > capacity[:, None]).any()
                keep = keep_first(routing, capacity, slot_major(routing, "capacity rule 'gshard'")) if full else there
                weights = None if weights is None else renormalise(weights, there)
            return what_is_left(routing, capacity=capacity, limit=capacity, rows=capacity, keep=keep, weights=weights)

        return limit
