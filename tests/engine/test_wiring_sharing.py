"""What a run says of how exactly links were shared, and runs where nothing can be compiled."""

import dataclasses

import numpy as np
import pytest
from example_result import example
from worlds import play, small_model

from moesim.base.registry import plugin
from moesim.desk.report.page import provenance
from moesim.desk.terminal import table as text
from moesim.facts.scenario import Parallel, Scenario, Sharing, Workload
from moesim.models.sharing.modes import MODES
from moesim.models.sharing.told import SLOWER, assumption, beyond_bound, told, without_compiler
from moesim.models.topology.nvlink_nodes import NvlinkNodes


def world(**more) -> Scenario:
    parts = {
        "name": "shared",
        "steps": 2,
        "model": small_model(8, 2),
        "cluster": NvlinkNodes(nodes=4, gpus_per_node=2, oversubscription=2.0, nodes_per_leaf=1),
        "parallel": Parallel(ep=8),
        "workload": Workload(tokens_per_gpu=100),
        "routing": plugin("source", "power_law")(alpha=1.0),
        "schedule": plugin("schedule", "overlapped_gradients")(),
    }
    return Scenario(**{**parts, **more})


@pytest.fixture(scope="module")
def exact():
    return play(world())


def test_a_small_run_is_exact_and_says_so_everywhere(exact) -> None:
    report = exact.facts["sharing"]
    assert (report["mode"], report["verified"]) == ("exact", None)
    assert sum(report["busy_periods"].values()) > 0
    assert "Links shared exactly." in exact.assumptions
    assert "\nlinks shared exactly\n" in text(exact, "folder")
    assert ("network", "links shared exactly") in provenance(exact, {})
    assert not [line for line in exact.warnings if "numba" in line]


def test_results_from_before_there_were_modes_are_shown_without_that_line() -> None:
    old = example()
    assert "shared" not in text(old, "folder")
    assert "network" not in dict(provenance(old, {}))


def test_quanta_are_told_with_their_errors_stated_and_measured() -> None:
    result = play(world(sharing=Sharing(mode="coarse", verify=True)))
    report = result.facts["sharing"]
    assert report["mode"] == "coarse"
    assert report["verified"]["periods"] > 0
    line = told(report)
    assert line.startswith(
        "links shared in quanta (coarse, 3 % of the time to go); errors stated for it: 1 % of an all-to-all; of any rank's end, 5 % of it"
    )
    assert f"; measured here in {report['verified']['periods']} busy periods: " in line
    assert assumption(report) in result.assumptions


@pytest.mark.parametrize(
    ("report", "words"),
    [
        (
            {"mode": "bound", "busy_periods": {"bound": 2}},
            "links only bounded: each works off its bytes as if nothing else held them up, which predicts no rank's time",
        ),
        (
            {"mode": "fast", "quantum": 0.05, "guard": 2.0, "error_bound": {"makespan": None, "rank_mean": None, "rank_worst": None}},
            (
                "links shared in quanta (fast, 5 % of the time to go, cut where a flow would speed up 2-fold); "
                "nobody has measured the errors of these numbers"
            ),
        ),
        (
            {"mode": "coarse", "quantum": 0.03, "guard": 0.0, "error_bound": MODES["coarse"].errors()},
            (
                "links shared in quanta (coarse, 3 % of the time to go); "
                "errors stated for it: 1 % of an all-to-all; of any rank's end, 5 % of it"
            ),
        ),
        ({"mode": "exact", "busy_periods": {"exact": 4, "fast": 1}}, "links shared exactly; 1 busy period fast"),
        ({"mode": "exact", "verified": {"periods": 0, "makespan": None}}, "links shared exactly; none of it could be played again exactly"),
        # Plain code knows no quanta: what it does is exact.
        ({"mode": "fast", "quantum": 0.01, "guard": 2.0, "compiled": False}, "links shared exactly"),
    ],
)
def test_the_line_of_each_mode(report, words) -> None:
    assert told(report) == words


def test_errors_beyond_those_stated_are_a_warning() -> None:
    # A mode that states 0.1 % of the last end and was found 0.2 % off is told, with both; what it does not state cannot be exceeded.
    report = {"mode": "fast", "error_bound": MODES["fast"].errors(), "verified": {"periods": 1, **MODES["fast"].errors()}}
    assert not beyond_bound(report)
    report["verified"] = {"periods": 1, "makespan": 0.002, "rank_mean": 1e-4, "rank_worst": 0.05, "rank_of_whole": None}
    assert beyond_bound(report) == (
        "mode fast was off by more than it states for this traffic: 0.2 % of an all-to-all (stated: 0.1 %), 5 % of the worst rank (stated: "
        "3 %); write sharing.mode: exact, or a shorter sharing.quantum"
    )
    assert not beyond_bound({**report, "error_bound": dict.fromkeys(MODES["fast"].errors())})
    assert not beyond_bound({"mode": "exact", "verified": None})


def test_a_bound_is_no_prediction() -> None:
    bound = play(world(sharing=Sharing(mode="bound")))
    assert any(line.startswith("Links only bounded") for line in bound.assumptions)


@pytest.mark.parametrize("mode", ["auto", "fast", "coarse"])
def test_without_a_compiler_the_results_are_the_exact_ones_and_a_warning_says_what_it_costs(monkeypatch, exact, mode) -> None:
    monkeypatch.setattr("moesim.models.sharing.core.can_compile", lambda: False)
    plain = play(world(sharing=Sharing(mode=mode)))
    for name in ("steps", "gpus", "links", "collectives"):
        for column, values in exact.tables[name].columns.items():
            found = plain.tables[name][column]
            if values.dtype.kind == "f":
                np.testing.assert_allclose(found, values, rtol=1e-9, atol=1e-9 * np.abs(values).max(initial=0.0))
            else:
                np.testing.assert_array_equal(found, values)
    assert [line for line in plain.warnings if "numba" in line] == [without_compiler(plain.facts["sharing"])]
    assert f"about {SLOWER[0]} times slower" in without_compiler(plain.facts["sharing"])
    assert "Links shared exactly." in plain.assumptions


def test_a_bound_needs_no_compiler_and_no_warning(monkeypatch) -> None:
    monkeypatch.setattr("moesim.models.sharing.core.can_compile", lambda: False)
    assert not [line for line in play(world(steps=1, sharing=Sharing(mode="bound"))).warnings if "numba" in line]


@pytest.mark.parametrize("mode", ["exact", "fast", "coarse", "bound"])
def test_traffic_that_comes_again_is_looked_up_and_changes_nothing(mode) -> None:
    # System: two equal steps of balanced routing, 56 flows per exchange. Expectation: the second step repeats the first, and all times are
    # the same to the last bit; seconds and bytes of links are sums, taken in another order. Messages that cost their sender time are not
    # worked out with the whole step, which would look nothing up.
    scenario = world(
        routing=plugin("source", "balanced")(),
        schedule=plugin("schedule", "sequential")(),
        exchange=plugin("exchange", "direct")(overhead=1e-7),
        sharing=Sharing(mode=mode),
    )
    found = play(scenario)
    worked_out = play(dataclasses.replace(scenario, sharing=Sharing(mode=mode, repeats=False)))
    assert found.facts["sharing"]["repeated"] > 0
    assert worked_out.facts["sharing"]["repeated"] == 0
    for name, table in found.tables.items():
        for column, values in table.columns.items():
            if name == "links" and values.dtype.kind == "f":
                np.testing.assert_allclose(worked_out.tables[name][column], values, rtol=1e-12, err_msg=f"{name}.{column}")
            else:
                np.testing.assert_array_equal(worked_out.tables[name][column], values, err_msg=f"{name}.{column}")
