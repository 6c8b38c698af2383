"""What arrives at each GPU in many steps, without a clock: routing, gate, capacity, placement and dispatch only."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from moesim.engine.balanced import fresh_policies
from moesim.engine.machine import Machine
from moesim.engine.placing import first_placement
from moesim.engine.rebalancing import Rebalancing
from moesim.facts.arrays import Bools, Ints
from moesim.facts.contracts import PlanBatch
from moesim.facts.scenario import Scenario
from moesim.facts.trace import Trace
from moesim.models.stages import setting_of, stage_setting


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """Rows and tokens of the measured steps.

    Attributes
    ----------
    received : int[N, L, G]
        Rows that each GPU computes, padding included, by step and MoE layer.
    tokens : int[N, G]
        Tokens that start on each GPU.
    slots : int[G]
        Physical experts of a layer on each GPU.
    guests : int[N, L, G]
        Experts that a GPU holds for a batch beyond those.
    fresh : bool[N]
        False for a step whose tokens an earlier one had already.
    """

    received: Ints
    tokens: Ints
    slots: Ints
    guests: Ints
    fresh: Bools


def rows_of_steps(scenario: Scenario, *, read_trace: Callable[..., Trace], progress: Callable[[int, int], None] | None = None) -> Rows:
    """Return what arrives at each GPU in the scenario's measured steps.

    Parameters
    ----------
    scenario : Scenario
        A new placement holds from the step for which it was planned: without a clock no move can be late.
    read_trace : callable
        As :func:`moesim.engine.simulate.simulate` takes it.
    progress : callable, optional
        Called with (steps done, steps).

    Returns
    -------
    Rows
        The same rows as a run with ``policy.rebalance.mode: free`` has.
    """
    setting = setting_of(scenario, read_trace)
    stage = stage_setting(setting)
    plan = scenario.policy.placement.begin(stage)
    placement = first_placement(scenario.policy.placement, stage, plan)
    policies = replace(fresh_policies(scenario, stage), place=plan if isinstance(plan, PlanBatch) else None)
    machine = Machine(scenario, setting, policies, placement)
    free = replace(scenario.policy.rebalance, mode="free")
    rebalancing = Rebalancing(machine, plan, free, f"placement {scenario.policy.placement.kind!r}")
    draw = scenario.routing.begin(stage)
    received, tokens, guests, repeats = [], [], [], []
    for step in range(scenario.steps):
        if step:
            rebalancing.before(step)
        routing = draw(step)
        load = machine.load(routing, step)
        if step >= scenario.warmup:
            received.append([layer.rows for layer in load.layers])
            guests.append([layer.guests for layer in load.layers])
            tokens.append(load.layers[0].tokens)
            repeats.append(step if routing.repeats is None or routing.repeats < 0 else routing.repeats)
        rebalancing.learn(load)
        if progress is not None:
            progress(step + 1, scenario.steps)
    fresh = np.zeros(len(repeats), dtype=np.bool_)
    fresh[np.unique(repeats, return_index=True)[1]] = True
    return Rows(
        received=np.array(received, dtype=np.int64),
        tokens=np.array(tokens, dtype=np.int64),
        slots=np.tile(placement.slots_per_rank(setting.parallel.ep), setting.groups),
        guests=np.array(guests, dtype=np.int64),
        fresh=fresh,
    )
