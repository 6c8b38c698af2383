"""Offsets that drift from step to step: their law, their correlation, and what they depend on."""

import numpy as np
import pytest
from routings import world

from moesim.base.registry import plugin
from moesim.models.source.drifting import Drifting, spread_of
from moesim.testing import check_source

LAWS = [("normal", 1.0), ("laplace", np.sqrt(2.0)), ("student_t", np.sqrt(8.0 / 6.0))]
"""Standard deviations of the laws with scale 1; Student's t of 8 degrees has variance 8 / 6."""


def drifting(offsets="normal", correlation=0.8, experts=8, scale=1.0):
    return Drifting(world(experts=experts, seed=4), offsets, scale, 8.0, correlation)


@pytest.mark.parametrize(("offsets", "deviation"), LAWS)
@pytest.mark.parametrize("correlation", [0.0, 0.5, 0.9])
def test_law_and_correlation_are_what_was_asked_for(offsets, deviation, correlation):
    offsets_at = drifting(offsets, correlation, experts=40_000)
    steps = np.stack([offsets_at.at(step, 0) for step in range(4)])
    assert steps.std(axis=1) == pytest.approx([deviation] * 4, rel=0.04)
    for apart in (1, 2, 3):
        found = np.corrcoef(steps[0], steps[apart])[0, 1]
        assert found == pytest.approx(correlation**apart, abs=0.02)


def test_a_laplace_law_has_the_kurtosis_of_one_at_every_step():
    # Fourth moment over squared variance: 6 for Laplace, 3 for normal.
    offsets_at = drifting("laplace", 0.7, experts=200_000)
    for step in (0, 2):
        values = offsets_at.at(step, 0)
        assert (values**4).mean() / (values**2).mean() ** 2 == pytest.approx(6.0, rel=0.08)


def test_correlation_one_lasts_for_the_run_and_layers_differ():
    lasting = drifting(correlation=1.0)
    np.testing.assert_array_equal(lasting.at(0, 0), lasting.at(9, 0))
    assert not np.array_equal(lasting.at(0, 0), lasting.at(0, 1))


def test_l9_an_offset_does_not_depend_on_what_was_asked_before():
    forwards, backwards = drifting(), drifting()
    ahead = [forwards.at(step, layer) for step in range(5) for layer in range(2)]
    behind = [backwards.at(step, layer) for step in reversed(range(5)) for layer in reversed(range(2))][::-1]
    np.testing.assert_array_equal(ahead, behind)


def test_loads_of_a_router_follow_its_drift():
    def loads(correlation, step):
        setting = world(experts=64, top_k=2, tokens_per_gpu=4000, moe_layers=1)
        draw = plugin("source", "router")(preset=None, offsets="normal", scale=0.5, correlation=correlation).begin(setting)
        return draw(step).layers[0].counts.sum(axis=0)

    def alike(correlation):
        return np.corrcoef(loads(correlation, 0), loads(correlation, 1))[0, 1]

    assert alike(1.0) > 0.98
    assert alike(0.0) < 0.4
    assert alike(0.0) < alike(0.8) < alike(1.0)


def test_drift_makes_a_fitted_router_an_assumption():
    setting = world(experts=256, top_k=8, tokens_per_gpu=1, moe_layers=1)
    assert plugin("source", "router")().begin(setting)(0).basis == "fitted"
    assert plugin("source", "router")(correlation=0.9).begin(setting)(0).basis == "assumed"


def test_a_drifting_router_keeps_the_contract_of_sources():
    check_source(plugin("source", "router")(correlation=0.8))


def test_spreads_are_positive():
    for offsets, _ in LAWS:
        assert (spread_of(np.random.default_rng(0), 50, offsets=offsets, scale=0.3, degrees=4.0) > 0).all()
