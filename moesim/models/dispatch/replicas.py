"""The replicas of each expert of a layer, and how a choice among them becomes an assignment."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.base.errors import PluginError
from moesim.facts.arrays import Floats, Ints
from moesim.facts.placement import Placement
from moesim.facts.routing import Assignment, Kept


@dataclass(frozen=True, slots=True, kw_only=True)
class Replicas:
    """Where the copies of each expert are, in the order of their slots.

    Parameters
    ----------
    number : int[E]
        Copies of each expert.
    first : int[E]
        The slots of expert e are ``slots[first[e] : first[e] + number[e]]``.
    slots : int[S]
        Slots sorted by expert, then by slot.
    expert_of_slot : int[S]
        What each slot holds.
    """

    number: Ints
    first: Ints
    slots: Ints
    expert_of_slot: Ints

    def slot(self, expert: Ints, turn: Ints) -> Ints:
        """Return the slot of the ``turn``-th copy (from 0) of each expert."""
        found: Ints = self.slots[self.first[expert] + turn]
        return found


def replicas_of(kept: Kept, placement: Placement, *, moe_layer: int, who: str) -> Replicas:
    """Return the replicas of one layer.

    Raises
    ------
    PluginError
        On behalf of ``who``, if an expert that has routes or padding has no slot (law L11).
    """
    experts = kept.routing.experts
    expert_of_slot = placement.expert_of_slot[moe_layer]
    number = np.bincount(expert_of_slot, minlength=experts)
    homeless = np.flatnonzero((number[:experts] == 0) & ((kept.routing.counts + kept.padding).sum(axis=0) > 0))
    if homeless.size:
        raise PluginError(f"{who}: expert {int(homeless[0])} of MoE layer {moe_layer} has tokens, but lives nowhere (law L11)")
    return Replicas(
        number=number,
        first=np.cumsum(number) - number,
        slots=np.argsort(expert_of_slot, kind="stable"),
        expert_of_slot=expert_of_slot,
    )


def destinations(placement: Placement, *, gpus: int, ranks: int) -> Ints:
    """Return int[G, S], the GPU that holds each slot as seen by each source: that of the source's own group of ``ranks`` GPUs."""
    found: Ints = (np.arange(gpus) // ranks * ranks)[:, None] + placement.rank_of_slot
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """The n rows of a layer that have a choice: routes to experts with several replicas in token order, then their padding rows.

    Parameters
    ----------
    source, expert : int[n]
        The GPU where each row starts, and its expert.
    token : int[n] or None
        Which token of its source's batch a row is, from 0; -1 for padding. None where tokens are unknown.
    routes : int
        How many of the rows are routes; they come first.
    place : int[routes]
        Where each route stands in the flat table of choices, of ``choices`` entries; empty where tokens are unknown.
    choices : int
        T k, or 0 where tokens are unknown.
    """

    source: Ints
    expert: Ints
    token: Ints | None
    routes: int
    place: Ints
    choices: int

    def turn(self) -> Ints:
        """Return int[n]: of its source's rows to its expert, the how manieth a row is (from 0), padding after the routes."""
        pair = self.source * (int(self.expert.max(initial=0)) + 1) + self.expert
        order = np.argsort(pair, kind="stable")
        start = np.searchsorted(pair[order], pair[order], side="left")
        turn = np.empty(len(pair), dtype=np.int64)
        turn[order] = np.arange(len(pair)) - start
        return turn

    def draws(self, rng: np.random.Generator) -> Floats:
        """Return float[n], a random number below 1 for each row; that of a route does not depend on which other routes were kept."""
        if self.token is None:
            return rng.random(len(self.source))
        of_choices = rng.random(self.choices)
        return np.concatenate([of_choices[self.place], rng.random(len(self.source) - self.routes)])


def bind_rows(
    kept: Kept, placement: Placement, *, moe_layer: int, ranks: int, who: str, choose: Callable[[Rows, Replicas], Ints]
) -> Assignment:
    """Bind the kept routes and the padding of one layer to slots, row by row.

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
    who : str
        The dispatch, for messages.
    choose : callable
        Gives int[n], the slot of every row that has a choice. It is not called if no row has one.

    Returns
    -------
    Assignment
        The same slot tables for counts as for tokens, if ``choose`` looks at neither tokens nor random numbers.
    """
    routing = kept.routing
    replicas = replicas_of(kept, placement, moe_layer=moe_layer, who=who)
    several = replicas.number[: routing.experts] > 1
    rows = _rows(kept, several)
    chosen = choose(rows, replicas) if len(rows.source) else np.empty(0, dtype=np.int64)

    alone = (replicas.number == 1)[replicas.expert_of_slot]
    slots = len(replicas.expert_of_slot)

    def table(counts: Ints, part: slice) -> Ints:
        mine = np.bincount(rows.source[part] * slots + chosen[part], minlength=routing.gpus * slots).reshape(routing.gpus, slots)
        bound: Ints = mine + counts[:, replicas.expert_of_slot] * alone
        return bound

    return Assignment(
        kept=kept,
        slot_counts=table(routing.counts, slice(rows.routes)),
        slot_padding=table(kept.padding, slice(rows.routes, None)),
        slots=None if routing.ids is None else _slots(routing.ids, replicas, rows.place, chosen[: rows.routes]),
        destination=destinations(placement, gpus=routing.gpus, ranks=ranks),
    )


def _rows(kept: Kept, several: NDArray[np.bool_]) -> Rows:
    routing = kept.routing
    pad_source, pad_expert = _listed(kept.padding, several)
    place, choices, token = np.empty(0, dtype=np.int64), 0, None
    if routing.ids is None:
        source, expert = _listed(routing.counts, several)
    else:
        place, choices = np.flatnonzero((routing.ids >= 0) & several[routing.ids]), routing.ids.size
        row = place // routing.ids.shape[1]
        source = routing.source_of_token()[row]
        expert = np.asarray(routing.ids).ravel()[place].astype(np.int64)
        token = np.concatenate([row - routing.token_start[source], np.full(len(pad_source), -1)])
    return Rows(
        source=np.concatenate([source, pad_source]),
        expert=np.concatenate([expert, pad_expert]),
        token=token,
        routes=len(source),
        place=place,
        choices=choices,
    )


def _listed(counts: Ints, several: NDArray[np.bool_]) -> tuple[Ints, Ints]:
    """Return source and expert of every row that int[G, E] ``counts`` has for experts with several replicas."""
    source, expert = np.nonzero(counts * several)
    times = counts[source, expert]
    return np.repeat(source, times), np.repeat(expert, times)


def _slots(ids: NDArray[Any], replicas: Replicas, place: Ints, chosen: Ints) -> NDArray[Any]:
    known = np.array(ids >= 0, order="C")  # C order, so that the flat view of the result below is a view
    first = np.minimum(replicas.first, len(replicas.slots) - 1)  # experts without a slot may come last
    slots = np.where(known, replicas.slots[first][np.where(known, ids, 0)], -1).astype(np.int32, order="C")
    slots.ravel()[place] = chosen
    slots.flags.writeable = False
    return slots
