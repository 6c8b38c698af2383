"""vLLM's choice: a hash of the token's place in the batch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from moesim.base.errors import FidelityError
from moesim.base.registry import register
from moesim.facts.arrays import Ints
from moesim.facts.contracts import Bind
from moesim.facts.placement import Placement
from moesim.facts.routing import Assignment, Fidelity, Kept
from moesim.facts.scenario import Setting
from moesim.models.dispatch.replicas import Replicas, Rows, bind_rows

KNUTH = 2654435769
"""2^32 divided by the golden ratio: multiplying by it modulo 2^32 scatters successive numbers."""


@register("dispatch", "token_hash")
@dataclass(frozen=True, slots=True, kw_only=True)
class TokenHash:
    """Choose the replica by a hash of the token's place in its GPU's batch: vLLM's choice.

    With r replicas, in the order of their slots, token n of a GPU (from 0) uses replica ((n * 2654435769) mod 2^32) mod r. All experts
    with r replicas so use the same one for a token, whoever loads it. Needs tokens; padding rows take turns.

    Notes
    -----
    Source: ``_eplb_map_and_record_i32_kernel`` of vllm-project/vllm, ``vllm/model_executor/layers/fused_moe/router/base_router.py``
    (0.33.0).
    """

    def begin(self, setting: Setting) -> Bind:
        """Return the dispatch for one run."""
        ranks, who = setting.parallel.ep, "dispatch 'token_hash'"

        def bind(kept: Kept, placement: Placement, *, step: int, moe_layer: int) -> Assignment:  # noqa: ARG001 - the contract of the slot
            def choose(rows: Rows, replicas: Replicas) -> Ints:
                number = token_rows(rows, ranks, who)
                number[: rows.routes] = number[: rows.routes] * KNUTH % 2**32
                return replicas.slot(rows.expert, np.asarray(number % replicas.number[rows.expert]))

            return bind_rows(kept, placement, moe_layer=moe_layer, ranks=ranks, who=who, choose=choose)

        return bind


def token_rows(rows: Rows, ranks: int, who: str) -> Ints:
    """Return int[n]: of a route, its token's place in the batch of its GPU; of a padding row, whose turn it is, as under ``even``.

    Raises
    ------
    FidelityError
        On behalf of ``who``, where tokens are unknown.
    """
    if rows.token is None:
        raise FidelityError(f"{who} needs to know the token of each route, but this routing has {Fidelity.COUNTS_BY_SOURCE} only")
    number = rows.token.copy()
    if rows.routes < len(number):  # taking turns needs an order of all rows: spared where there is no padding
        number[rows.routes :] = (rows.turn() + rows.source % ranks)[rows.routes :]
    return number
