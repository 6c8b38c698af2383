"""Experts that are placed anew for every batch: whose weights travel before they compute, and what that adds to the exchange."""

from __future__ import annotations

import dataclasses

import numpy as np

from moesim.base.errors import PluginError
from moesim.facts.arrays import Floats, Ints
from moesim.facts.batch_plan import BatchPlan
from moesim.facts.contracts import PlanBatch
from moesim.facts.program import BACKWARD, FORWARD
from moesim.facts.routing import Kept
from moesim.facts.scenario import Setting
from moesim.facts.traffic import Exchange, Traffic
from moesim.models.memory import expert_bytes


def plan_batch(place: PlanBatch, kept: Kept, setting: Setting, *, step: int, moe_layer: int) -> BatchPlan:
    """Return the plan of one layer of one step, checked against laws L1 and L11.

    Raises
    ------
    PluginError
        If the plan breaks a law, or the capacity rule sends more than it computes, which such a plan knows nothing of.
    """
    who = f"placement {getattr(place, 'kind', type(place).__name__)!r}"
    if kept.sent is not None:
        raise PluginError(
            f"{who} binds the routes that are computed, but the capacity rule sends others too: choose one that drops before the dispatch"
        )
    plan = place.for_batch(kept, step=step, moe_layer=moe_layer)
    plan.check(experts=setting.model.experts, ranks=setting.parallel.ep, who=who)
    return plan


def guests(plan: BatchPlan, home: Ints, ranks: int) -> Ints:
    """Return int[G], the experts that each GPU holds for this batch beyond the ``home`` slots (int[ranks]) of its rank."""
    return np.asarray(np.maximum(plan.held(ranks) - home, 0).ravel())


def with_weights(exchanges: dict[str, Exchange], plan: BatchPlan, setting: Setting) -> dict[str, Exchange]:
    """Return the exchanges of a layer with the weights that travel for it.

    Weights go out beside the tokens of the forward dispatch, over the same links, and planning comes before both; in training the gradients
    of guests go home beside those of the tokens. A broadcast is counted pair by pair, as it is planned.
    """
    weights = expert_bytes(setting.model, setting.workload.phase, optimiser=False)
    gradients = weights
    out = {FORWARD: _beside(exchanges[FORWARD], plan.moved * weights, plan.seconds)}
    if BACKWARD in exchanges:
        out[BACKWARD] = _beside(exchanges[BACKWARD], plan.returned * gradients, 0.0)
    return out


def _beside(exchange: Exchange, extra: Floats, seconds: float) -> Exchange:
    if not extra.any() and not seconds:
        return exchange
    first = exchange.dispatch[0]
    heavier = Traffic(bytes=first.bytes + extra, copies=first.copies, padding=first.padding)
    return dataclasses.replace(exchange, dispatch=(heavier, *exchange.dispatch[1:]), launch=exchange.launch + seconds)
