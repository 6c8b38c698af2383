"""A schedule that has nothing to hide is named in the warnings of its run."""

import dataclasses

import pytest
from worlds import play, small_model

from moesim.base.registry import plugin
from moesim.facts.scenario import Parallel, Scenario, Workload

WORLD = Scenario(
    name="overlap",
    steps=1,
    model=small_model(4, 2),
    cluster=plugin("topology", "one_switch")(gpus=2),
    parallel=Parallel(ep=2),
    workload=Workload(tokens_per_gpu=8, phase="training"),
    routing=plugin("source", "uniform")(),
    schedule=plugin("schedule", "shared_expert")(),
)
ALONE = dataclasses.replace(WORLD.model, shared_experts=0, shared_width=0)


def said(scenario):
    return [line for line in play(scenario).warnings if line.startswith("schedule ")]


def test_shared_experts_that_a_model_has_not_hide_nothing():
    assert said(WORLD) == []
    bare = dataclasses.replace(WORLD, model=ALONE)
    (line,) = said(bare)
    assert line.startswith("schedule shared_expert changed nothing: small has no shared experts")
    # What the sentence says is true.
    sequential = dataclasses.replace(bare, schedule=plugin("schedule", "sequential")())
    assert play(bare).metrics["step_time"].value == play(sequential).metrics["step_time"].value
    assert said(sequential) == []


@pytest.mark.parametrize("kind", ["shared_expert", "two_batch", "one_f_one_b"])
def test_without_exchanges_there_is_nothing_to_hide(kind):
    scenario = dataclasses.replace(WORLD, schedule=plugin("schedule", kind)())
    assert said(scenario) == []
    (line,) = said(dataclasses.replace(scenario, parallel=Parallel(ep=1)))
    assert line == f"schedule {kind} hides exchanges, and parallel.ep 1 has none: it hid nothing"
