"""Alarms among the warnings of a run: each with its name and the step in which it began."""

import dataclasses

from worlds import play, small_model

from moesim.base.registry import plugin
from moesim.facts.scenario import Parallel, Scenario, Workload


def test_a_warning_says_since_when():
    world = Scenario(
        name="alarms",
        steps=4,
        warmup=1,
        model=small_model(8, 2),
        cluster=plugin("topology", "one_switch")(gpus=4),
        parallel=Parallel(ep=4),
        workload=Workload(tokens_per_gpu=64, phase="decode"),
        routing=plugin("source", "balanced")(),
    )
    result = play(world)
    assert [alarm["step"] for alarm in result.facts["health"]] == [1]
    assert [warning for warning in result.warnings if warning.startswith("unrealistic routing since step 1: experts are as even as chance")]
    uneven = dataclasses.replace(world, routing=plugin("source", "power_law")(alpha=1.5))
    assert not [warning for warning in play(uneven).warnings if warning.startswith("unrealistic routing")]
