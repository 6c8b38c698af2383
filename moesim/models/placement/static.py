"""Placements that never change."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from moesim.base.errors import PluginError
from moesim.facts.arrays import Ints
from moesim.facts.contracts import View
from moesim.facts.placement import Placement
from moesim.facts.scenario import Setting


@dataclass(slots=True)
class Once:
    """Give one placement at the first call, and keep it."""

    placement: Placement
    given: bool = field(default=False, init=False)

    def __call__(self, view: View) -> Placement | None:
        """Return the placement the first time, then None."""
        if self.given and view.placement is not None:
            return None
        self.given = True
        return self.placement


def experts_per_rank(setting: Setting, who: str) -> int:
    """Return how many experts each rank of a group holds.

    Raises
    ------
    PluginError
        If the ranks do not share the experts equally; the message names group sizes that would.
    """
    experts, ranks = setting.model.experts, setting.parallel.ep
    if experts % ranks:
        fitting = [str(size) for size in range(1, min(experts, setting.gpus) + 1) if experts % size == 0 and setting.gpus % size == 0]
        raise PluginError(f"{who}: {experts} experts do not divide over ep = {ranks} ranks; choose parallel.ep of {', '.join(fitting)}")
    return experts // ranks


def same_in_all_layers(setting: Setting, expert_of_slot: Ints) -> Placement:
    """Return the placement with int[E] ``expert_of_slot`` in every MoE layer, its slots dealt to the ranks in equal blocks."""
    slots = len(expert_of_slot)
    return Placement(
        expert_of_slot=np.tile(expert_of_slot, (len(setting.model.moe_layers), 1)),
        rank_of_slot=np.arange(slots) // (slots // setting.parallel.ep),
    )
