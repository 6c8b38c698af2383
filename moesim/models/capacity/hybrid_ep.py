"""The budget of a rank in Megatron-Core with HybridEP."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from moesim.base.fields import Count, Flag, Positive
from moesim.base.registry import register
from moesim.facts.arrays import Ints
from moesim.facts.contracts import Limit
from moesim.facts.routing import Kept, LayerRouting
from moesim.facts.scenario import Setting
from moesim.models.capacity.orders import by_position
from moesim.models.capacity.scopes import at_home, by_group, experts_per_rank, first_to_arrive, round_up
from moesim.models.capacity.survivors import keep_first, leave


@register("capacity", "hybrid_ep")
@dataclass(frozen=True, slots=True, kw_only=True)
class HybridEp:
    """Send every route; a rank computes at most int(T k factor) rows for all its experts together, and drops the rest on arrival.

    T are the tokens that start on one GPU, k the choices of a token. The rows of a rank lie expert after expert, each expert's in order of
    arrival (lower source rank first, then the earlier token); those beyond the budget are dropped, so a rank's last experts lose first.
    Gate weights are not renormalised.

    Parameters
    ----------
    factor : float
        ``moe_expert_rank_capacity_factor``.
    alignment : int
        The budget is rounded up to a multiple of it: 16 in Megatron-Core unless the quantisation recipe wants more (32 for MXFP8).
    pad_experts : bool
        Round the rows of each expert up to a multiple of ``alignment`` too, as Megatron-Core does in FP8 and FP4. These rows count towards
        the budget and are computed, but do not travel.

    Notes
    -----
    Source: NVIDIA/Megatron-LM, ``megatron/core/transformer/moe/token_dispatcher.py``, ``_HybridEPManager.setup_metadata``; the order of
    rows, deepseek-ai/DeepEP (branch hybrid-ep), ``csrc/hybrid_ep/extension/permute.cu``, ``permute_processing_kernel``. Which experts
    share a rank is that of the contiguous placement. Megatron-Core has equal T everywhere; where GPUs differ here, T is the largest of
    the group. With paged stashing Megatron-Core repeats a step that overflows once, without any budget, instead of losing the rows:
    the price of that is not modelled; it is the time of one ``dropless`` step for every step that drops.
    """

    by_rank: ClassVar[bool] = True

    factor: Positive = 1.5
    alignment: Count = 16
    pad_experts: Flag = False

    def begin(self, setting: Setting) -> Limit:
        """Return the rule for one run."""
        ranks = setting.parallel.ep
        local = experts_per_rank(setting, "capacity rule 'hybrid_ep'")

        def limit(routing: LayerRouting, *, step: int, moe_layer: int) -> Kept:  # noqa: ARG001 - the contract of the slot
            choices = setting.model.top_k if routing.ids is None else routing.ids.shape[1]
            tokens = np.diff(routing.token_start).reshape(-1, ranks).max(axis=1)
            budget = round_up(np.floor(tokens * choices * self.factor).astype(np.int64), self.alignment)
            arrived = by_group(routing.counts, ranks).sum(axis=1)
            multiple = self.alignment if self.pad_experts else 1
            taken, padding = rows_in_budget(arrived, budget, local, multiple)
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


def rows_in_budget(arrived: Ints, budget: Ints, experts_per_rank: int, multiple: int) -> tuple[Ints, Ints]:
    """Return two int[groups, E]: routes that each expert computes, and rows that pad it, when a rank's rows lie expert after expert.

    Parameters
    ----------
    arrived : int[groups, E]
        Routes to each expert.
    budget : int[groups]
        Rows of each rank of the group.
    experts_per_rank : int
        Neighbouring experts on one rank.
    multiple : int
        What each expert's rows are rounded up to.

    Examples
    --------
    >>> taken, padding = rows_in_budget(np.array([[5, 9, 3, 0]]), np.array([12]), 2, 4)
    >>> taken.tolist(), padding.tolist()
    ([[5, 4, 3, 0]], [[3, 0, 1, 0]])
    """
    asked = arrived.reshape(len(arrived), -1, experts_per_rank)
    padded = round_up(asked, multiple)
    start = np.cumsum(padded, axis=2) - padded
    left = np.maximum(budget[:, None, None] - start, 0)
    taken = np.minimum(asked, left)
    padding = np.minimum(padded, left) - taken
    return taken.reshape(arrived.shape), padding.reshape(arrived.shape)
