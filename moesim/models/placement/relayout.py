"""What LAER and FlexMoE share in a run: a layout per layer and group that changes from batch to batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from moesim.facts.arrays import Floats, Ints
from moesim.facts.batch_plan import BatchPlan
from moesim.facts.contracts import View
from moesim.facts.placement import Placement
from moesim.facts.routing import Kept
from moesim.models.placement.batch_rows import common_layout, deal_rows
from moesim.models.placement.laer_plan import split_to_nearest
from moesim.models.placement.static import Once

Planned = Callable[[Ints, Ints], Ints]
"""From the rows of a batch, int[W, E], and the present layout, int[W, E], to the next layout."""
Moves = Callable[[Ints, Ints], tuple[Floats, Floats]]
"""From the layout before and the layout now, what moves and what gradients return, float[W, W] each, counted in experts."""


@dataclass(slots=True)
class Relayout:
    """The layouts of one run.

    Parameters
    ----------
    ranks, nodes : int
        Of an expert-parallel group.
    start : int[W, E]
        The layout before any batch is known.
    home : Once
        The same as a placement.
    planned, moves : callable
        The policy.
    from_last : bool
        Plan from the batch before, beside its computation, or from the one at hand, for ``seconds``.
    seconds : float
    who : str
    """

    ranks: int
    nodes: int
    start: Ints
    home: Once
    planned: Planned
    moves: Moves
    from_last: bool
    seconds: float
    who: str
    layouts: dict[tuple[int, int], Ints] = field(default_factory=dict, init=False)
    last: dict[tuple[int, int], Ints] = field(default_factory=dict, init=False)

    def __call__(self, view: View) -> Placement | None:
        """Return the layout with which the run starts, once."""
        return self.home(view)

    def for_batch(self, kept: Kept, *, step: int, moe_layer: int) -> BatchPlan:  # noqa: ARG002 - the contract of the slot
        """Return the plan of one layer of one batch."""
        ranks = self.ranks
        rows = kept.routing.counts + kept.padding
        gpus, experts = rows.shape
        moved, returned = np.zeros((gpus, gpus)), np.zeros((gpus, gpus))
        takes = np.zeros((gpus, experts, ranks), dtype=np.int64)
        layouts = []
        for group in range(gpus // ranks):
            mine = slice(group * ranks, (group + 1) * ranks)
            key = (moe_layer, group)
            before = self.layouts.get(key, self.start)
            known = self.last.get(key) if self.from_last else rows[mine]
            now = before if known is None else self.planned(known, before)
            self.layouts[key], self.last[key] = now, np.array(rows[mine])
            moved[mine, mine], returned[mine, mine] = self.moves(before, now)
            takes[mine] = split_to_nearest(rows[mine], now, self.nodes).astype(np.int64)
            layouts.append(now)
        expert_of_slot, rank_of_slot, _ = common_layout(layouts, ranks)
        return BatchPlan(
            expert_of_slot=expert_of_slot,
            rank_of_slot=rank_of_slot,
            assignment=deal_rows(
                kept,
                _over_slots(takes, expert_of_slot, rank_of_slot, ranks),
                expert_of_slot,
                rank_of_slot,
                ranks=ranks,
                who=self.who,
            ),
            moved=moved,
            returned=returned,
            seconds=0.0 if self.from_last else self.seconds,
        )


def _over_slots(takes: Ints, expert_of_slot: Ints, rank_of_slot: Ints, ranks: int) -> Ints:
    """Return int[G, S]: what a rank takes of an expert, dealt evenly to the slots that hold it there."""
    groups, slots = expert_of_slot.shape
    out = np.zeros((len(takes), slots), dtype=np.int64)
    for group in range(groups):
        mine = slice(group * ranks, (group + 1) * ranks)
        holds = expert_of_slot[group]
        full = np.flatnonzero(holds >= 0)
        pair = holds[full] * ranks + rank_of_slot[full]
        _, which, twins = np.unique(pair, return_inverse=True, return_counts=True)
        # Slots lie rank by rank with experts in order, so twins are neighbours: the number of a twin is its distance to the first.
        turn = np.arange(len(pair)) - np.flatnonzero(np.diff(pair, prepend=-1))[np.cumsum(np.diff(pair, prepend=-1) != 0) - 1]
        rows = takes[mine][:, holds[full], rank_of_slot[full]]
        out[mine, full] = (rows + twins[which] - 1 - turn) // twins[which]
    return out


def placement_of(held: Ints, layers: int) -> Placement:
    """Return the placement with int[W, E] replicas on each rank, alike in all layers."""
    expert_of_slot, rank_of_slot, _ = common_layout([held], len(held))
    return Placement(expert_of_slot=np.tile(expert_of_slot, (layers, 1)), rank_of_slot=rank_of_slot)
