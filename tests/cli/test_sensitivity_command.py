"""``moesim sensitivity``: what moves, what does not and why, who wins, and what bad input is told."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from scenario_texts import SMALL

from moesim.cli import main
from moesim.desk.scenario_file import read_scenario
from moesim.desk.sensitivity_inputs import numbers, override

FAST = ["steps=2", "workload.tokens_per_gpu=64"]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("small.yaml").write_text(SMALL)
    return tmp_path


def invoke(*words: object) -> Result:
    return CliRunner().invoke(main, ["sensitivity", *(str(word) for word in words), "--executor", "inline"])


def answer(*words: object) -> dict:
    done = invoke(*words, "--format", "json", "-o", "out")
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def test_every_input_goes_down_and_up():
    found = answer("small.yaml", *FAST)
    by_key = {one["key"]: one for one in found["inputs"]}
    nic = by_key["cluster.nic"]
    assert (nic["low"], nic["high"]) == (40e9, 60e9)  # 400 Gb/s, 20 % down and up
    assert nic["at_high"] < found["base"] < nic["at_low"]  # faster cards, shorter steps
    assert by_key["compute.compute_efficiency"]["base"] == pytest.approx(0.601)  # what null stands for on an H100
    assert by_key["cluster.nvlink"]["base"] > 100e9
    reach = [one["reach"] for one in found["inputs"]]
    assert reach == sorted(reach, reverse=True)
    assert not any(key.startswith(("model.", "parallel.", "cluster.nodes", "cluster.gpu")) for key in by_key)


def test_what_changes_nothing_is_listed_with_why():
    words = ["cluster.nic=25 GB/s..50 GB/s", "exchange.bandwidth_per_sm=10 GB/s..20 GB/s", "exchange.launch=0 s..50 us"]
    found = answer("small.yaml", *FAST, *words, "cluster.nodes=1", "cluster.gpus_per_node=8")
    assert found["no_effect"]["cluster.nic"] == "nothing crosses nodes"
    assert "communication_sms is null" in found["no_effect"]["exchange.bandwidth_per_sm"]
    assert "exchange.launch" not in found["no_effect"]
    for one in found["inputs"]:
        assert (one["key"] in found["no_effect"]) == (one["changed"] == [])


def test_ranges_of_the_command_line_and_sobol_indices():
    words = ["cluster.nic=25 GB/s..50 GB/s", "policy.capacity.factor=0.5..1.5", "cluster.gpu=h100-sxm", *FAST]
    found = answer("small.yaml", *words, "--samples", 4)
    assert {one["key"] for one in found["inputs"]} == {"cluster.nic", "policy.capacity.factor"}
    assert {one["key"] for one in found["sobol"]} == {"cluster.nic", "policy.capacity.factor"}
    assert found["variance"] > 0
    again = answer("small.yaml", *words, "--samples", 4)
    assert again == found


def test_the_winner_of_the_variants():
    # tight drops more, so it has less to send and to compute: it wins wherever the factor is not what is varied.
    found = answer("small.yaml", *FAST, "cluster.nic=25 GB/s..100 GB/s", "--samples", 4)
    assert found["winner"] == "tight"
    assert found["winners"] == {"dropless": 0.0, "tight": 1.0}
    assert found["winner_changes_at"] == []


def test_other_metrics_and_files():
    done = invoke("small.yaml", *FAST, "policy.capacity.factor=0.5..1.5", "--metric", "drop_rate", "-o", "out")
    assert done.exit_code == 0
    assert "policy.capacity.factor moves drop rate most" in done.stdout
    assert {path.name for path in Path("out").iterdir()} == {
        "sensitivity.json",
        "sensitivity.csv",
        "tornado.png",
        "tornado.svg",
        "meta.json",
        "report.html",
        "cells",
    }
    (row,) = csv.DictReader(io.StringIO(Path("out/sensitivity.csv").read_text()))
    assert float(row["at_low"]) > float(row["at_high"])


def test_ranges_of_the_file():
    section = "sensitivity: {ranges: {cluster.nic: [40 GB/s, 50 GB/s]}, metric: waiting_time}\n"
    Path("with.yaml").write_text(SMALL + section)
    found = answer("with.yaml", *FAST)
    assert found["metric"] == "waiting_time"
    assert [(one["key"], one["low"], one["high"]) for one in found["inputs"]] == [("cluster.nic", 40e9, 50e9)]


def test_what_null_stands_for_changes_nothing_when_written_out():
    scenario = read_scenario(SMALL, file="small.yaml", folder=".")
    from moesim.study.sensitivity import Input

    known = numbers(scenario)
    assert known["cluster.nvlink_latency"].value is not None
    words = [
        override(Input(key=one.key, base=one.value, low=0.0, high=0.0, dimension=one.dimension, whole=one.whole), one.value)
        for one in known.values()
        if one.value is not None and one.key.split(".")[0] in {"cluster", "compute", "exchange"} and not one.key.startswith("cluster.gpu.")
    ]
    again = read_scenario(SMALL, file="small.yaml", folder=".", overrides=words)
    one, other = scenario.cluster.build(), again.cluster.build()
    assert one.bandwidth == pytest.approx(other.bandwidth, rel=1e-12)
    assert one.latency == pytest.approx(other.latency, rel=1e-12)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["small.yaml", "cluster.nick=1..2"], "did you mean 'cluster.nic'"),
        (["small.yaml", "cluster.nic=1..2"], "has no unit"),
        (["small.yaml", "cluster.nic=50 GB/s..40 GB/s"], "ends below that"),
        (["small.yaml", "policy.capacity.factor=a..b"], "is not a number"),
        (["small.yaml", "--metric", "step_tme"], "did you mean 'step_time'"),
        (["small.yaml", "--samples", "3"], "power of two"),
        (["small.yaml", "--spread", "2"], "not in the range"),
        (["missing.yaml"], "there is no such file"),
    ],
)
def test_bad_input_is_one_message_and_exit_2(words, said):
    done = invoke(*words)
    assert done.exit_code == 2, done.output
    assert said in done.output
    assert "Traceback" not in done.output


def test_an_end_that_cannot_be_played_is_said_and_the_others_count():
    # ep 3 does not divide 8 GPUs.
    done = invoke("small.yaml", *FAST, "parallel.ep=3..8", "cluster.nic=25 GB/s..50 GB/s", "-o", "out")
    assert done.exit_code == 0
    assert "parallel.ep cannot be at both ends of its range" in done.output
    assert "does not divide" in done.output
    found = json.loads(Path("out/sensitivity.json").read_text())
    assert found["inputs"][-1]["problem"] or found["inputs"][0]["problem"]
    assert any(one["key"] == "cluster.nic" and one["reach"] > 0 for one in found["inputs"])
