"""The capacity of MegaBlocks, which the receiver enforces."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from moesim.base.fields import NotNegative
from moesim.base.registry import register
from moesim.facts.arrays import Ints
from moesim.facts.contracts import Limit
from moesim.facts.routing import Kept, LayerRouting
from moesim.facts.scenario import Setting
from moesim.models.capacity.orders import by_position
from moesim.models.capacity.scopes import at_home, by_group, experts_per_rank, first_to_arrive
from moesim.models.capacity.survivors import keep_first, leave


@register("capacity", "megablocks")
@dataclass(frozen=True, slots=True, kw_only=True)
class MegaBlocks:
    """Send every route; each expert computes exactly C = int(factor k T / E) rows, those that arrive first, and drops the rest.

    T are the tokens of all GPUs of the expert-parallel group, k the choices of a token, E the experts: the limit is shared by all sources.
    The all-to-all carries every route, both ways, so dropping saves compute and no communication. Missing rows are zeros that are
    computed but do not travel. Routes of the lower source rank arrive first, then those of the earlier token. Gate weights are not
    renormalised. The dropless layer of MegaBlocks is ``dmoe``.

    Parameters
    ----------
    factor : float
        ``moe_capacity_factor``. Where int() gives 0, as for a factor of 0, nothing is dropped, and every expert of a rank computes as many
        rows as the fullest of them.

    Notes
    -----
    Source: databricks/megablocks, ``megablocks/layers/moe.py``, ``ParallelMLP``: ``expert_capacity``, ``parallel_forward_once``,
    ``permute_and_compute``. Which experts share a rank is that of the contiguous placement.
    """

    factor: NotNegative = 1.0

    def begin(self, setting: Setting) -> Limit:
        """Return the rule for one run."""
        ranks = setting.parallel.ep
        local = experts_per_rank(setting, "capacity rule 'megablocks'")

        def limit(routing: LayerRouting, *, step: int, moe_layer: int) -> Kept:  # noqa: ARG001 - the contract of the slot
            choices = setting.model.top_k if routing.ids is None else routing.ids.shape[1]
            arrived = by_group(routing.counts, ranks).sum(axis=1)
            tokens = np.diff(routing.token_start).reshape(-1, ranks).sum(axis=1)
            capacity = megablocks_capacity(tokens, choices, self.factor, arrived, local)
            counts = first_to_arrive(routing, capacity, ranks)
            keep = None if routing.ids is None else keep_first(routing, counts, by_position(routing))
            padding = at_home(capacity - np.minimum(arrived, capacity), ranks)
            room = int(capacity.sum())
            return leave(routing, counts=counts, keep=keep, weights=routing.weights, padding=padding, room=room, at_receiver=True)

        return limit


def megablocks_capacity(tokens: Ints, top_k: int, factor: float, arrived: Ints, experts_per_rank: int) -> Ints:
    """Return int[groups, E], the rows that each expert computes.

    Parameters
    ----------
    tokens : int[groups]
        Of all GPUs of a group.
    top_k : int
        k.
    factor : float
        At least 0.
    arrived : int[groups, E]
        Routes to each expert.
    experts_per_rank : int
        Neighbouring experts on one rank.

    Examples
    --------
    >>> megablocks_capacity(np.array([100]), 1, 1.25, np.array([[70, 10, 20, 0]]), 2).tolist()
    [[31, 31, 31, 31]]
    >>> megablocks_capacity(np.array([100]), 1, 0.0, np.array([[70, 10, 20, 0]]), 2).tolist()
    [[70, 70, 20, 20]]
    """
    experts = arrived.shape[1]
    allowed = np.floor(factor * (top_k * tokens / experts)).astype(np.int64)
    fullest = arrived.reshape(len(arrived), -1, experts_per_rank).max(axis=2).repeat(experts_per_rank, axis=1)
    capacity: Ints = np.where(allowed[:, None] > 0, allowed[:, None], fullest)
    return capacity
