"""Every scenario that ships runs, and answers with numbers that can be true."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from moesim.desk.result_files import load, save
from moesim.desk.scenario_file import load_scenario
from moesim.desk.trace_files import read_trace
from moesim.engine.simulate import simulate

ROOT = Path(__file__).resolve().parents[1]
SCENARIOS = sorted((ROOT / "scenarios").glob("*.yaml"))


def test_there_are_at_least_six_scenarios():
    assert len(SCENARIOS) >= 6


@pytest.mark.parametrize("path", SCENARIOS, ids=lambda path: path.stem)
def test_each_scenario_runs(path, tmp_path):
    scenario = load_scenario(path, ["steps=1", "warmup=0"])
    result = simulate(scenario, read_trace=read_trace)
    value = {name: metric.value for name, metric in result.metrics.items()}
    # A step lasts at least as long as its computation, and its transfers are part of it.
    assert value["step_time"] >= value["step_time_if_no_communication"] > 0
    assert value["dispatch_transfer_time"] + value["combine_transfer_time"] + value["waiting_time"] <= value["step_time"]
    assert value["all_to_all_contention"] >= 1 - 1e-9
    assert value["fabric_bound_ratio"] >= 1 - 1e-9
    assert 0 <= value["drop_rate"] <= 1
    assert value["rank_max_over_mean"] >= 1
    assert value["tokens_per_second"] == pytest.approx(result.tables["steps"]["tokens"][0] / value["step_time"])
    save(result, tmp_path / "out", report=False)
    again = load(tmp_path / "out")
    assert again.metrics == result.metrics


def folder_bytes(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.name != "meta.json"}


def test_l8_the_same_scenario_gives_the_same_folder_whatever_the_hash_seed(tmp_path):
    shutil.copytree(ROOT / "scenarios", tmp_path / "scenarios")
    printed, folders = [], []
    for salt in ("0", "4242"):
        done = subprocess.run(
            [sys.executable, "-m", "moesim", "run", "scenarios/what-does-real-routing-cost.yaml", "steps=2", "--format", "json",
             "--spans", "--trace", "--save-routing", "-o", f"out-{salt}"],
            cwd=tmp_path, env=os.environ | {"PYTHONHASHSEED": salt}, capture_output=True, text=True, check=True,
        )  # fmt: skip
        printed.append(done.stdout)
        folders.append(folder_bytes(tmp_path / f"out-{salt}"))
    assert printed[0] == printed[1]
    assert folders[0].keys() == folders[1].keys()
    for name, content in folders[0].items():
        assert content == folders[1][name], name


def test_l14_the_saved_routing_of_a_run_replays_it(tmp_path):
    shutil.copytree(ROOT / "scenarios", tmp_path / "scenarios")
    path = tmp_path / "scenarios" / "which-capacity-factor.yaml"
    first = simulate(load_scenario(path, ["steps=2"]), read_trace=read_trace, keep_routing=True)
    save(first, tmp_path / "out", report=False)
    replay = ["steps=2", f"routing.trace={tmp_path / 'out' / 'routing.npz'}", "routing.deal=recorded"]
    again = simulate(load_scenario(path, replay), read_trace=read_trace)
    assert again.metrics == first.metrics
    assert again.tables["steps"]["step_time_s"].tolist() == first.tables["steps"]["step_time_s"].tolist()
