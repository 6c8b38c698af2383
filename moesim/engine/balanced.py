"""The step that the same machine would take with perfectly even loads: what imbalance costs is the difference."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from moesim.base.registry import plugin
from moesim.engine.load import Policies, StepLoad
from moesim.engine.machine import Machine
from moesim.facts.arrays import Floats
from moesim.facts.placement import Placement
from moesim.facts.routing import Routing
from moesim.facts.scenario import Scenario, Setting
from moesim.models.stages import stage_setting
from moesim.models.thinning import thinned


def fresh_policies(scenario: Scenario, setting: Setting) -> Policies:
    """Return the callables of one run; no two runs share any."""
    policy = scenario.policy
    return Policies(
        choose=policy.gate.begin(setting),
        limit=policy.capacity.begin(setting),
        bind=policy.dispatch.begin(setting),
        carry=scenario.exchange.begin(setting),
        kernels=scenario.compute.begin(setting),
    )


def kept_shares(load: StepLoad, top_k: int) -> Floats:
    """Return float[L], the routes that each layer keeps, as a share of k of every token; at most 1."""
    return np.array([min(layer.kept.routing.counts.sum() / max(layer.chosen.tokens * top_k, 1), 1.0) for layer in load.layers])


def balanced_step(
    scenario: Scenario, setting: Setting, placement: Placement, tokens: int, share: float, context: int | None = None
) -> float:
    """Return the seconds of a step whose routes are spread evenly over experts and GPUs, everything else equal.

    Parameters
    ----------
    scenario : Scenario
    setting : Setting
    placement : Placement
    tokens : int
        Of the step to compare with, over all GPUs; each GPU gets an equal share.
    share : float
        The share of its routes that the step keeps: even loads alone would drop fewer, and the comparison would be of more work.
    context : int, optional
        What a token of the step attends to on average; by default what the workload says.

    Notes
    -----
    Even means even over layers too: all layers have the same routing, so their costs are worked out once, and the network carries the
    same traffic again and again.
    """
    per_gpu = max(1, round(tokens / (setting.gpus // setting.parallel.pp)))
    read = setting.workload.context if context is None else context
    even = dataclasses.replace(setting, workload=dataclasses.replace(setting.workload, tokens_per_gpu=per_gpu, context=read, ranks=None))
    stage = stage_setting(even)
    policies = dataclasses.replace(fresh_policies(scenario, stage), choose=plugin("gate", "as_given")().begin(stage))
    machine = Machine(scenario, even, policies, placement)
    drawn = plugin("source", "balanced")().begin(stage)(0)
    layer = thinned(drawn.layers[0], share)
    mark = machine.play(machine.load(Routing(layers=[layer] * len(drawn.layers)), 0, alike=True), 0)
    return mark.end - mark.start


def balanced_steps(
    scenario: Scenario,
    setting: Setting,
    placement: Placement,
    tokens: Sequence[int],
    shares: Sequence[Floats],
    context: int | None = None,
) -> Floats:
    """Return float[steps], :func:`balanced_step` of each step; steps of equally many tokens share one, with their mean shares.

    Parameters
    ----------
    scenario : Scenario
    setting : Setting
    placement : Placement
    tokens : sequence of int
        Of each step.
    shares : sequence of float[L]
        :func:`kept_shares` of each step.
    context : int, optional
        What a token of these steps attends to on average; by default what the workload says.
    """
    seconds = np.empty(len(tokens))
    for count in sorted(set(tokens)):
        same = np.flatnonzero(np.asarray(tokens) == count)
        share = float(np.mean([shares[int(step)] for step in same]))
        seconds[same] = balanced_step(scenario, setting, placement, count, share, context)
    return seconds
