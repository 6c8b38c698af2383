"""Intervals that contain the uncertainty of fitted parameters."""

import json

import numpy as np
import pytest
from click.testing import CliRunner

from moesim.base.errors import UsageError
from moesim.cli import main
from moesim.desk.presets.profiles import profile_preset
from moesim.desk.scenario_file import read_scenario
from moesim.desk.study_cells import cell_of, play
from moesim.desk.trace_files import read_trace
from moesim.engine.simulate import simulate
from moesim.facts.profile import Profile, Section
from moesim.facts.record import Value
from moesim.models.fitted.intervals import spread
from moesim.models.fitted.nccl_all_to_all import NcclAllToAll
from moesim.study.uncertainty import deviation, drawn, profiles_in, simulate_uncertain, uncertain_parameters, widened, with_drawn_parameters

TEXT = """
name: uncertain
steps: 3
model: {preset: deepseek-v2-lite, layers: 3, moe_layers: [1, 2]}
cluster: {kind: nvlink_nodes, gpu: h200-sxm, nodes: 1, gpus_per_node: 8}
parallel: {ep: 8}
workload: {phase: decode, tokens_per_gpu: 16}
routing: {kind: lognormal}
exchange: {kind: low_latency, profile: h200-sxm}
uncertainty: {draws: 6}
"""


def load(*overrides):
    return read_scenario(TEXT, file="u.yaml", folder=".", overrides=overrides)


def value(number, low=None, high=None):
    return Value(value=number, unit="s", low=low, high=high, n=3, basis="fitted")


def test_half_widths_add_as_squares():
    # Two draws at 9 and 11: standard deviation sqrt(2), Student's t for one degree of freedom 12.706.
    reach = 12.706204736174694 * np.sqrt(2)
    found = widened({"t": value(100.0, 97.0, 105.0)}, [{"t": value(99.0)}, {"t": value(101.0)}])["t"]
    assert found.low == pytest.approx(100 - np.hypot(3, reach))
    assert found.high == pytest.approx(100 + np.hypot(5, reach))
    assert found.value == 100


def test_what_the_parameters_do_not_touch_keeps_its_interval():
    base = {"drops": value(0.1, 0.05, 0.15), "none": value(None), "peak": value(7.0), "once": value(3.0, 2.0, 4.0)}
    others = [
        {"drops": value(0.1), "none": value(None), "peak": value(6.0), "once": value(3.5)},
        {"drops": value(0.1), "none": value(1.0), "peak": value(8.0), "once": value(None)},
    ]
    found = widened(base, others)
    assert found["drops"] == base["drops"]
    assert found["none"] == base["none"]
    assert found["once"] == base["once"]  # one draw alone says nothing of spread
    assert found["peak"].low < 7 < found["peak"].high


def test_no_interval_goes_below_nothing():
    found = widened({"t": value(1.0)}, [{"t": value(0.5)}, {"t": value(1.5)}])["t"]
    assert found.low == 0


def test_draws_belong_to_the_seed_and_the_section():
    scenario = load()
    profile = profiles_in(scenario)["exchange.fitted"]
    again = drawn(profile, 3, 1)
    assert again == drawn(profile, 3, 1)
    assert again != drawn(profile, 3, 2)
    assert again != drawn(profile, 4, 1)
    for name, section in profile.sections.items():
        there = again.sections[name]
        for before, after in zip(section.parameters, there.parameters, strict=True):
            assert (before.value == after.value) == (before.error is None), before
        assert there.matrix.tolist() == section.matrix.tolist()
    assert uncertain_parameters(scenario) > 0


def test_draws_scatter_as_the_interval_of_a_single_prediction_says():
    # What `validate` works out to first order, `run` and `compare` draw: the same scatter, covariance, and widening on another GPU.
    section = profile_preset("h200-sxm").sections["nccl_all_to_all"]
    profile = Profile(name="one", gpu="h200-sxm", made="", sections={"nccl_all_to_all": section})
    rows = {
        "num_gpus": np.asarray([8.0]), "bytes_per_rank": np.asarray([5e8]), "link_bandwidth": np.asarray([4.5e11]),
        "memory_bandwidth": np.asarray([4.8e12]),
    }  # fmt: skip
    for carried in (False, True):
        wanted = spread(section, lambda values: NcclAllToAll.seconds_of(values, rows), carried=carried)[0]
        wide = {"nccl_all_to_all": deviation(section, phase="prefill", carried=carried)}
        times = [
            NcclAllToAll.of_section(drawn(profile, 1, draw, deviations=wide).sections["nccl_all_to_all"]).predict(rows)[0]
            for draw in range(1, 401)
        ]
        assert np.log(times).std() == pytest.approx(wanted, rel=0.15)


def test_the_scatter_of_the_phase_counts():
    section = Section(model="m", parameters=(), scatter={"": 0.1, "decode": 0.3, "prefill_even": 0.02, "prefill_skewed": 0.04})
    assert deviation(section, phase="decode") == 0.3
    assert deviation(section, phase="training") == 0.04  # the larger of two that fit
    assert deviation(section, phase="prefill", carried=True) == pytest.approx(np.hypot(0.04, 0.2))
    assert deviation(section, phase="prefill", outside=True) == pytest.approx(0.08)
    assert deviation(Section(model="m", parameters=(), scatter={"": 0.1, "large": 0.2}), phase="decode") == 0.1


def test_intervals_of_a_run_grow_and_values_stay():
    scenario = load()
    done = []
    base = simulate(scenario, read_trace=read_trace)
    found = simulate_uncertain(scenario, read_trace=read_trace, progress=lambda at, of: done.append((at, of)))
    for name in ("step_time", "dispatch_transfer_time", "combine_transfer_time"):
        before, after = base.metrics[name], found.metrics[name]
        assert after.value == before.value
        assert after.low < before.low
        assert after.high > before.high
    assert found.metrics["drop_rate"] == base.metrics["drop_rate"]
    assert found.metrics["rank_max_over_mean"] == base.metrics["rank_max_over_mean"]
    assert found.facts["uncertainty"]["draws"] == 6
    assert "6 draws" in found.assumptions[-1]
    assert done[-1] == (21, 21)
    assert [at for at, _ in done] == list(range(1, 22))
    again = simulate_uncertain(scenario, read_trace=read_trace)
    assert again.metrics == found.metrics


def test_without_draws_nothing_changes():
    scenario = load("uncertainty.draws=0")
    assert simulate_uncertain(scenario, read_trace=read_trace).metrics == simulate(scenario, read_trace=read_trace).metrics
    plain = load("uncertainty=null", "exchange.profile=null")
    assert profiles_in(plain) == {}
    assert with_drawn_parameters(plain) == plain


def test_draws_of_nothing_are_refused():
    with pytest.raises(UsageError, match="no profile of this scenario has a covariance"):
        simulate_uncertain(load("exchange.profile=null"), read_trace=read_trace)


def test_each_seed_of_a_study_has_parameters_of_its_own_the_same_for_all_variants(tmp_path):
    file = tmp_path / "u.yaml"
    file.write_text(TEXT.replace("steps: 3", "steps: 1").replace("{kind: lognormal}", "{kind: balanced}"), encoding="utf-8")

    def times(*overrides):
        answer = play(cell_of(str(file), overrides, name="c", axes={}))
        assert answer.done, answer.error
        return answer.metrics["dispatch_transfer_time"].value

    assert times("seed=1") != times("seed=2")  # balanced routing: only the parameters differ
    assert times("seed=1", "uncertainty=null") == times("seed=2", "uncertainty=null")
    capped = "policy.capacity={rule: megatron, factor: 4.0, drop: position}"
    assert times("seed=1", capped) == times("seed=1")  # another variant that drops nothing: the same draw


def test_the_command_says_what_an_interval_contains(tmp_path):
    file = tmp_path / "u.yaml"
    file.write_text(TEXT, encoding="utf-8")
    done = CliRunner().invoke(main, ["run", str(file), "-o", str(tmp_path / "out"), "--no-report", "--format", "json"])
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert told["facts"]["uncertainty"]["draws"] == 6
    assert any("fitted parameters" in line for line in told["assumptions"])
    refused = CliRunner().invoke(main, ["run", str(file), "exchange.profile=null", "-o", str(tmp_path / "out"), "--no-report"])
    assert refused.exit_code == 2
    assert "uncertainty.draws" in refused.stderr


def test_a_profile_that_is_not_there_is_told_with_its_place(tmp_path):
    file = tmp_path / "u.yaml"
    file.write_text(TEXT.replace("profile: h200-sxm", "profile: h200_sxm"), encoding="utf-8")
    done = CliRunner().invoke(main, ["check", str(file)])
    assert done.exit_code == 2
    assert "u.yaml:9:" in done.output
    assert "unknown profile 'h200_sxm'; did you mean 'h200-sxm'" in done.output
    file.write_text(TEXT.replace("profile: h200-sxm", "profile: mine.yaml"), encoding="utf-8")
    done = CliRunner().invoke(main, ["check", str(file)])
    assert "there is no such file" in done.output
    (tmp_path / "mine.yaml").write_text("name: x\n", encoding="utf-8")
    done = CliRunner().invoke(main, ["check", str(file)])
    assert "the key 'schema' is missing" in done.output
    assert done.exit_code == 2
