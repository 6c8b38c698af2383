"""The capacity of Grug, the MoE of Levanter, whose shapes are fixed when it is compiled."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from moesim.base.fields import Positive
from moesim.base.registry import register
from moesim.facts.arrays import Ints
from moesim.facts.contracts import Limit
from moesim.facts.routing import Kept, LayerRouting
from moesim.facts.scenario import Setting
from moesim.models.capacity.hybrid_ep import rows_in_budget
from moesim.models.capacity.orders import by_position
from moesim.models.capacity.scopes import at_home, by_group, experts_per_rank, first_to_arrive
from moesim.models.capacity.survivors import keep_first, leave


@register("capacity", "grug")
@dataclass(frozen=True, slots=True, kw_only=True)
class Grug:
    """Compute exactly ceil(factor T k / R) rows on every rank, full or not, for all its experts together; drop what does not fit.

    T are the tokens of all GPUs of the expert-parallel group, k the choices of a token, R the ranks of the group. The rows of a rank lie
    expert after expert, each expert's in the order of its sources and tokens; those beyond the budget are dropped, so a rank's last
    experts lose first. Where fewer arrive, the rows that are missing are zeros, computed as rows of the rank's last expert: XLA compiles
    for one shape. A rank has at least as many rows as experts, and no more than there are routes. Gate weights are not renormalised.

    Grug gathers all tokens of a group on each of its ranks and reduces the results (``exchange: {kind: allgather, algorithm: ring}``), so
    its communication does not depend on the factor.

    Parameters
    ----------
    factor : float
        ``capacity_factor`` of the ring backend; 1.25 in its first versions, then 1.0.

    Notes
    -----
    Source: marin-community/marin, ``lib/levanter/src/levanter/grug/_moe/ep_ring.py``, ``_moe_mlp_ep_ring_local``. Which experts share a
    rank is that of the contiguous placement.
    """

    by_rank: ClassVar[bool] = True

    factor: Positive = 1.0

    def begin(self, setting: Setting) -> Limit:
        """Return the rule for one run."""
        ranks = setting.parallel.ep
        local = experts_per_rank(setting, "capacity rule 'grug'")

        def limit(routing: LayerRouting, *, step: int, moe_layer: int) -> Kept:  # noqa: ARG001 - the contract of the slot
            arrived = by_group(routing.counts, ranks).sum(axis=1)
            choices = setting.model.top_k if routing.ids is None else routing.ids.shape[1]
            tokens = np.diff(routing.token_start).reshape(-1, ranks).sum(axis=1)
            budget = rank_budget(tokens * choices, self.factor, ranks, local)
            taken, padding = rows_in_budget(arrived, budget, local, 1)
            computed = taken.reshape(len(arrived), ranks, local).sum(axis=2)
            padding[:, local - 1 :: local] += budget[:, None] - computed
            counts = first_to_arrive(routing, taken, ranks)
            keep = None if routing.ids is None else keep_first(routing, counts, by_position(routing))
            return leave(
                routing,
                counts=counts,
                keep=keep,
                weights=routing.weights,
                padding=at_home(padding, ranks),
                room=int(budget.sum()) * ranks,
                at_receiver=True,
            )

        return limit


def rank_budget(routes: Ints, factor: float, ranks: int, experts_per_rank: int) -> Ints:
    """Return int[groups], the rows that each rank of a group computes.

    Parameters
    ----------
    routes : int[groups]
        T k: routes of all tokens of a group.
    factor : float
        More than 0.
    ranks, experts_per_rank : int
        Of a group.

    Examples
    --------
    >>> rank_budget(np.array([100, 3, 0]), 1.25, 4, 2).tolist()
    [32, 2, 0]
    """
    asked = np.ceil(factor * routes / ranks).astype(np.int64)
    budget: Ints = np.minimum(routes, np.maximum(experts_per_rank, asked))
    return budget
