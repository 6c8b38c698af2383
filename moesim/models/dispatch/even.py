"""Replicas take turns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.base.registry import register
from moesim.facts.arrays import Ints
from moesim.facts.contracts import Bind
from moesim.facts.placement import Placement
from moesim.facts.routing import Assignment, Kept, LayerRouting
from moesim.facts.scenario import Setting
from moesim.models.compiled_loops import loops_for
from moesim.models.dispatch.replicas import destinations, replicas_of


@register("dispatch", "even")
@dataclass(frozen=True, slots=True, kw_only=True)
class Even:
    """Let the replicas of an expert take turns, separately for each source: the even split that EPLB plans for.

    With r replicas, in the order of their slots, the n-th kept route (n from 0, in token order) from rank g of a group uses replica
    (n + g) mod r; padding rows take the turns after the last route. So replicas differ by at most one row per source, and sources
    with a single route do not all use the first replica. Counts alone give the same loads as tokens.
    """

    def begin(self, setting: Setting) -> Bind:
        """Return the dispatch for one run."""
        ranks = setting.parallel.ep

        def bind(kept: Kept, placement: Placement, *, step: int, moe_layer: int) -> Assignment:  # noqa: ARG001 - the contract of the slot
            return split_evenly(kept, placement, moe_layer=moe_layer, ranks=ranks)

        return bind


def split_evenly(kept: Kept, placement: Placement, *, moe_layer: int, ranks: int) -> Assignment:
    """Bind the kept routes of one layer to slots.

    Parameters
    ----------
    kept : Kept
        Of G sources.
    placement : Placement
        Of one group of ``ranks`` consecutive GPUs; every group is placed alike.
    moe_layer : int
        Which row of the placement.
    ranks : int
        W; a divisor of G.

    Raises
    ------
    PluginError
        If an expert that has routes or padding has no slot.
    """
    routing = kept.routing
    replicas = replicas_of(kept, placement, moe_layer=moe_layer, who="dispatch 'even'")
    expert_of_slot, by_expert = replicas.expert_of_slot, replicas.slots
    turn = np.empty(len(expert_of_slot), dtype=np.int64)
    turn[by_expert] = np.arange(len(expert_of_slot)) - replicas.first[expert_of_slot[by_expert]]

    offset = np.arange(routing.gpus) % ranks
    share = replicas.number[expert_of_slot]
    place_in_round = (turn - offset[:, None]) % share  # int[G, S]: which of r successive routes this slot takes

    def dealt(rows: Ints) -> Ints:
        rounds: Ints = (rows[:, expert_of_slot] - place_in_round + share - 1) // share
        return rounds

    slot_counts = dealt(routing.counts)
    return Assignment(
        kept=kept,
        slot_counts=slot_counts,
        slot_padding=dealt(routing.counts + kept.padding) - slot_counts,
        slots=None if routing.ids is None else _slots(routing, replicas.number, replicas.first, by_expert, offset),
        destination=destinations(placement, gpus=routing.gpus, ranks=ranks),
    )


def _slots(routing: LayerRouting, replicas: Ints, first: Ints, by_expert: Ints, offset: Ints) -> NDArray[Any]:
    ids = routing.need_ids("dispatch 'even'")
    loops = loops_for(ids, routing.token_start, replicas, first, by_expert, offset)
    if loops is not None and ids.dtype == np.int32:
        turns: NDArray[Any] = loops.turns(ids, routing.token_start, replicas, first, by_expert, offset)
        turns.flags.writeable = False
        return turns
    known = np.array(ids >= 0, order="C")  # C order, so that the flat view of the result below is a view
    expert = np.where(known, ids, 0)
    slots = np.where(known, by_expert[np.minimum(first, len(by_expert) - 1)][expert], -1).astype(np.int32, order="C")
    several = np.flatnonzero(known & (replicas > 1)[expert])
    if several.size:
        source = routing.source_of_token()[several // ids.shape[1]]
        which = expert.ravel()[several].astype(np.int64)
        pair = source * routing.experts + which
        order = np.argsort(pair, kind="stable")
        start = np.searchsorted(pair[order], pair[order], side="left")
        number = np.empty(len(pair), dtype=np.int64)
        number[order] = np.arange(len(pair)) - start
        slots.ravel()[several] = by_expert[first[which] + (number + offset[source]) % replicas[which]]
    slots.flags.writeable = False
    return slots
