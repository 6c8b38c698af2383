"""A router that trains is refused before anything runs where it never comes to what it is told, or lacks what a policy needs."""

from __future__ import annotations

from pathlib import Path

import pytest

from moesim.base.errors import ScenarioError
from moesim.desk.scenario_file import load_scenario
from moesim.desk.trace_files import read_trace
from moesim.engine.simulate import simulate

SCENARIOS = Path(__file__).resolve().parents[2] / "scenarios"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "routing.shift={at: 1981, mixture: [1, 0, 0, 0]}",
            "routing.shift.at: .*1981 is outside the run, which shows training steps 0 to 1980",
        ),
        ("routing.serve_from=1981", "routing.serve_from: training step 1981 is outside the run"),
        ("routing.freeze_gate_at=100", "the gate 'topk' has no biases"),
        ("policy.gate={kind: loss_free}", "policy.gate: .* needs the router's scores"),
        ("routing.noise=-1", "routing.noise: -1 is too small"),
    ],
)
def test_it_is_refused_with_the_value_and_the_rule(override, message):
    with pytest.raises(ScenarioError, match=message):
        load_scenario(SCENARIOS / "how-does-balancing-develop.yaml", [override], read_trace=read_trace)


def test_a_recorded_training_raises_alarms_and_knows_its_specialisation():
    trace = SCENARIOS.parent / "tests" / "data" / "trainings" / "training-none-seed-0.npz"
    scenario = load_scenario(
        SCENARIOS / "do-trainings-develop-as-recorded.yaml",
        [f"routing={{kind: recorded, trace: '{trace}'}}", "steps=60"],
        read_trace=read_trace,
    )
    result = simulate(scenario, read_trace=read_trace)
    assert "rising variance" in {alarm["name"] for alarm in result.facts["health"]}
    assert result.metrics["domain_information"].value > 0.1  # bits, of the three steps that were looked at
    assert result.metrics["domain_information"].n <= 3
