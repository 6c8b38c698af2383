"""Where the experts of one layer are for one batch, when they are placed anew for each."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from moesim.base.errors import PluginError
from moesim.facts.arrays import Floats, Ints, frozen
from moesim.facts.routing import Assignment

COPIES = "copies"
BROADCAST = "broadcast"
NOWHERE = -1
"""What an empty slot holds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchPlan:
    """One MoE layer of one step: which slots there are, who computes what, and which weights move for it.

    Parameters
    ----------
    expert_of_slot : int[N, S]
        Logical expert in each slot, for each of the N expert-parallel groups; -1 where a slot is empty in a group.
    rank_of_slot : int[S]
        Rank within the group that holds each slot.
    assignment : Assignment
        Every kept route and padding row bound to a slot.
    moved : float[G, G]
        Weights that travel from GPU to GPU before the experts compute, counted in experts (1.0 is one expert's weights).
    how : str
        ``copies``: each pair for itself. ``broadcast``: a row of ``moved`` is the same weights sent from one GPU to all of its group.
    returned : float[G, G]
        Gradients that travel from GPU to GPU after the experts' backward pass, counted in experts; training only.
    seconds : float
        Time that planning takes, before anything moves.
    """

    expert_of_slot: Ints
    rank_of_slot: Ints
    assignment: Assignment
    moved: Floats
    returned: Floats
    how: str = COPIES
    seconds: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "expert_of_slot", frozen(self.expert_of_slot, np.int64))
        object.__setattr__(self, "rank_of_slot", frozen(self.rank_of_slot, np.int64))
        object.__setattr__(self, "moved", frozen(self.moved, np.float64))
        object.__setattr__(self, "returned", frozen(self.returned, np.float64))

    def held(self, ranks: int) -> Ints:
        """Return int[N, ranks], the experts of this layer that each rank holds while it computes."""
        out = np.zeros((len(self.expert_of_slot), ranks), dtype=np.int64)
        np.add.at(out.T, self.rank_of_slot, (self.expert_of_slot != NOWHERE).T.astype(np.int64))
        return out

    def check(self, *, experts: int, ranks: int, who: str) -> None:
        """Laws L1 and L11 for one batch: slots exist, and hold the experts of the rows that are bound to them.

        Raises
        ------
        PluginError
            On behalf of ``who``.
        """
        groups, slots = self.expert_of_slot.shape
        if self.rank_of_slot.shape != (slots,) or (slots and not 0 <= self.rank_of_slot.min() <= self.rank_of_slot.max() < ranks):
            raise PluginError(f"{who}: every slot of a batch sits on one of ranks 0 to {ranks - 1} (law L11)")
        if slots and not NOWHERE <= self.expert_of_slot.min() <= self.expert_of_slot.max() < experts:
            raise PluginError(f"{who}: a slot of a batch holds an expert that is not among 0 to {experts - 1} (law L11)")
        for name, table in (("moved", self.moved), ("returned", self.returned)):
            if table.shape != (groups * ranks,) * 2 or not (np.isfinite(table) & (table >= 0)).all() or np.diag(table).any():
                raise PluginError(f"{who}: {name} is float[G, G], finite, at least 0, and 0 from a GPU to itself (law L2)")
        kept = self.assignment.kept
        held = np.zeros((2, *kept.routing.counts.shape), dtype=np.int64)
        for group in range(groups):
            mine = slice(group * ranks, (group + 1) * ranks)
            for table, rows in zip(held, (self.assignment.slot_counts, self.assignment.slot_padding), strict=True):
                if (rows[mine][:, self.expert_of_slot[group] == NOWHERE] != 0).any() or (rows < 0).any():
                    raise PluginError(f"{who}: rows are bound to a slot that holds no expert (law L1)")
                np.add.at(table[mine].T, self.expert_of_slot[group], rows[mine].T)
        for name, table, wanted in zip(("routes", "padding rows"), held, (kept.routing.counts, kept.padding), strict=True):
            wrong = np.argwhere(table != wanted)
            if wrong.size:
                gpu, expert = (int(i) for i in wrong[0])
                raise PluginError(
                    f"{who}: {table[gpu, expert]} of {wanted[gpu, expert]} {name} of GPU {gpu} for expert {expert} are bound (law L1)"
                )
