"""No capacity: every route is sent."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from moesim.base.registry import register
from moesim.facts.contracts import Limit
from moesim.facts.routing import Kept, LayerRouting
from moesim.facts.scenario import Setting


@register("capacity", "dropless")
@dataclass(frozen=True, slots=True, kw_only=True)
class Dropless:
    """Send every route, as all serving engines do and as Megatron-Core, torchtitan and MegaBlocks dMoE do by default."""

    def begin(self, setting: Setting) -> Limit:  # noqa: ARG002 - the contract of the slot
        """Return the rule for one run."""
        return keep_all


def keep_all(routing: LayerRouting, *, step: int, moe_layer: int) -> Kept:  # noqa: ARG001 - the contract of the slot
    """Return the routing itself, with nothing dropped and nothing padded."""
    none = np.zeros_like(routing.counts)
    return Kept(routing=routing, dropped=none, padding=none, fully_dropped=None if routing.ids is None else 0)
