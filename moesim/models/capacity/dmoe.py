"""The dropless layer of MegaBlocks."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from moesim.base.fields import Count
from moesim.base.registry import register
from moesim.facts.contracts import Limit
from moesim.facts.routing import Kept, LayerRouting
from moesim.facts.scenario import Setting
from moesim.models.capacity.scopes import at_home, by_group, round_up
from moesim.models.capacity.survivors import leave


@register("capacity", "dmoe")
@dataclass(frozen=True, slots=True, kw_only=True)
class DMoe:
    """Send every route, drop none, and round the rows that each expert computes up to whole blocks, as MegaBlocks dMoE does.

    Parameters
    ----------
    block : int
        Rows of a block of its sparse matrix products; an expert without routes computes none.

    Notes
    -----
    Source: databricks/megablocks, ``megablocks/layers/dmoe.py`` (``blocking``, ``indices_and_padded_bins``). The rows are added where they
    are computed: they do not travel.
    """

    block: Count = 128

    def begin(self, setting: Setting) -> Limit:
        """Return the rule for one run."""
        ranks = setting.parallel.ep

        def limit(routing: LayerRouting, *, step: int, moe_layer: int) -> Kept:  # noqa: ARG001 - the contract of the slot
            arrived = by_group(routing.counts, ranks).sum(axis=1)
            keep = None if routing.ids is None else np.asarray(routing.ids >= 0)
            padding = at_home(round_up(arrived, self.block) - arrived, ranks)
            return leave(routing, counts=routing.counts, keep=keep, weights=routing.weights, padding=padding, at_receiver=True)

        return limit
