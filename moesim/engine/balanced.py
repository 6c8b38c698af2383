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


def kept_shares(load: StepLoad) -> Floats:
    """Return float[L], the share of its routes that each layer keeps."""
    return np.array([layer.kept.routing.counts.sum() / max(layer.chosen.counts.sum(), 1) for layer in load.layers])


def balanced_step(scenario: Scenario, setting: Setting, placement: Placement, tokens: int, shares: Sequence[float] | Floats) -> float:
    """Return the seconds of a step whose routes are spread evenly over experts and GPUs, everything else equal.

    Parameters
    ----------
    scenario : Scenario
    setting : Setting
    placement : Placement
    tokens : int
        Of the step to compare with, over all GPUs; each GPU gets an equal share.
    shares : float[L]
        The share of its routes that each layer keeps: even loads alone would drop fewer, and the comparison would be of more work.
    """
    per_gpu = max(1, round(tokens / setting.gpus))
    even = dataclasses.replace(setting, workload=dataclasses.replace(setting.workload, tokens_per_gpu=per_gpu))
    policies = dataclasses.replace(fresh_policies(scenario, even), choose=plugin("gate", "as_given")().begin(even))
    machine = Machine(scenario, even, policies, placement)
    drawn = plugin("source", "balanced")().begin(even)(0)
    layers = [thinned(layer, float(share)) for layer, share in zip(drawn.layers, shares, strict=True)]
    mark = machine.play(machine.load(Routing(layers=layers), 0), 0)
    return mark.end - mark.start


def balanced_steps(scenario: Scenario, setting: Setting, placement: Placement, tokens: Sequence[int], shares: Sequence[Floats]) -> Floats:
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
    """
    seconds = np.empty(len(tokens))
    for count in sorted(set(tokens)):
        same = np.flatnonzero(np.asarray(tokens) == count)
        seconds[same] = balanced_step(scenario, setting, placement, count, np.mean([shares[int(step)] for step in same], axis=0))
    return seconds
