"""SGLang's dynamic choice: any replica, at random."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np

from moesim.base.fields import Choice
from moesim.base.registry import register
from moesim.facts.arrays import Ints
from moesim.facts.contracts import Bind
from moesim.facts.placement import Placement
from moesim.facts.routing import Assignment, Kept
from moesim.facts.scenario import Setting
from moesim.models.dispatch.replicas import Replicas, Rows, bind_rows
from moesim.models.dispatch.token_hash import token_rows


@register("dispatch", "dynamic")
@dataclass(frozen=True, slots=True, kw_only=True)
class Dynamic:
    """Draw a replica at random for every route: SGLang's ``dynamic``.

    Parameters
    ----------
    by : str
        ``random`` draws for each route by itself; ``row`` takes the token's place in its GPU's batch modulo the number of replicas, as
        SGLang does where ranks hold the same tokens and must agree. ``row`` needs tokens; its padding rows take turns.

    Notes
    -----
    A draw is a whole number below 65,536 modulo the number of replicas, so three replicas are not quite alike (1.5e-5 apart). Source:
    ``_topk_ids_logical_to_physical_dynamic`` of sgl-project/sglang, ``python/sglang/srt/eplb/expert_location_dispatch.py`` (0.5.23); its
    default without an all-to-all backend. SGLang's ``fake`` is this choice after it has replaced the router's scores by noise: here,
    ``routing: {kind: uniform}`` with this dispatch.
    """

    by: Annotated[str, Choice(("random", "row"))] = "random"

    def begin(self, setting: Setting) -> Bind:
        """Return the dispatch for one run."""
        ranks, who = setting.parallel.ep, "dispatch 'dynamic'"

        def bind(kept: Kept, placement: Placement, *, step: int, moe_layer: int) -> Assignment:
            def choose(rows: Rows, replicas: Replicas) -> Ints:
                if self.by == "row":
                    number = token_rows(rows, ranks, f"{who} with by: row")
                else:
                    number = (rows.draws(setting.rng("dispatch", "dynamic", step, moe_layer)) * 65536).astype(np.int64)
                return replicas.slot(rows.expert, np.asarray(number % replicas.number[rows.expert]))

            return bind_rows(kept, placement, moe_layer=moe_layer, ranks=ranks, who=who, choose=choose)

        return bind
