"""Which physical expert sits where."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from moesim.base.errors import PluginError
from moesim.facts.arrays import Ints, frozen


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """The slots of one expert-parallel group of W ranks; every group holds the same.

    Parameters
    ----------
    expert_of_slot : int[L, S]
        Logical expert in each slot of each MoE layer. A slot holds one physical expert; an expert may have replicas.
    rank_of_slot : int[S]
        Rank within the group (0 to W - 1) that holds each slot, the same in all layers.
    """

    expert_of_slot: Ints
    rank_of_slot: Ints

    def __post_init__(self) -> None:
        object.__setattr__(self, "expert_of_slot", frozen(self.expert_of_slot, np.int64))
        object.__setattr__(self, "rank_of_slot", frozen(self.rank_of_slot, np.int64))

    @property
    def slots(self) -> int:
        """S."""
        return len(self.rank_of_slot)

    @property
    def layers(self) -> int:
        """L."""
        return len(self.expert_of_slot)

    def slots_per_rank(self, ranks: int) -> Ints:
        """Return int[W]."""
        return np.bincount(self.rank_of_slot, minlength=ranks)

    def check(self, *, layers: int, experts: int, ranks: int, who: str) -> None:
        """Law L11: every expert lives somewhere, and every slot exists.

        Raises
        ------
        PluginError
            On behalf of ``who``, naming the expert or slot that breaks the law.
        """
        if self.expert_of_slot.shape != (layers, self.slots):
            raise PluginError(f"{who}: expert_of_slot has shape {self.expert_of_slot.shape}, expected ({layers}, {self.slots}) (law L11)")
        if self.slots and (self.rank_of_slot.min() < 0 or self.rank_of_slot.max() >= ranks):
            bad = int(self.rank_of_slot.max() if self.rank_of_slot.max() >= ranks else self.rank_of_slot.min())
            raise PluginError(f"{who}: a slot sits on rank {bad}, but the ranks are 0 to {ranks - 1} (law L11)")
        for layer in range(layers):
            row = self.expert_of_slot[layer]
            if row.size and (row.min() < 0 or row.max() >= experts):
                bad = int(row.max() if row.max() >= experts else row.min())
                raise PluginError(f"{who}: layer {layer} holds expert {bad}, but experts are 0 to {experts - 1} (law L11)")
            missing = np.flatnonzero(np.bincount(row, minlength=experts) == 0)
            if missing.size:
                raise PluginError(f"{who}: expert {int(missing[0])} of layer {layer} lives nowhere (law L11)")
