"""``moesim plan``: the JSON that scripts rely on, exit codes, resuming, and what bad input is told."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from scenario_texts import SMALL

from moesim.cli import main

PLAN = """\
plan:
  candidates:
    cluster.nodes: [1, 2]
    parallel.ep: [4, 8]
  targets: [step_time <= 1 s, drop_rate <= 50 %]
"""
KEYS = {
    "schema", "version", "name", "objective", "confidence", "replicates", "currency", "prices", "targets", "answer", "explanations",
    "chosen", "nearest", "next_cheaper", "binding", "pruned", "pareto", "candidates", "warnings",
}  # fmt: skip


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("small.yaml").write_text(SMALL)
    Path("planned.yaml").write_text(SMALL + PLAN)
    return tmp_path


def invoke(*words: object) -> Result:
    return CliRunner().invoke(main, ["plan", *(str(word) for word in words), "--executor", "inline"])


def answer(*words: object, code: int = 0) -> dict:
    done = invoke(*words, "--format", "json", "-o", "out")
    assert done.exit_code == code, done.output
    return json.loads(done.stdout)


def test_the_smallest_cluster_that_meets_is_chosen():
    found = answer("planned.yaml")
    assert found.keys() == KEYS
    by_name = {one["name"]: one for one in found["candidates"]}
    # One node has 4 GPUs: ep 8 does not divide it, and is reported, not fatal.
    assert by_name["nodes=1, ep=8"]["status"] == "invalid"
    assert "does not divide the cluster's 4 GPUs" in by_name["nodes=1, ep=8"]["reason"]
    assert found["chosen"] == "nodes=1, ep=4"
    assert by_name["nodes=1, ep=4"]["gpus"] == 4
    assert by_name["nodes=2, ep=4"]["status"] == by_name["nodes=2, ep=8"]["status"] == "not tried"
    assert found["objective"] == "gpus"
    times = by_name["nodes=1, ep=4"]["metrics"]["step_time"]
    assert times["low"] < times["value"] < times["high"]
    assert times["n"] == 2  # 3 steps, 1 of them warm-up
    written = json.loads(Path("out/plan.json").read_text())
    assert written == found


def test_the_folder_holds_all_candidates_and_the_front():
    done = invoke("planned.yaml", "--all", "-o", "out")
    assert done.exit_code == 0
    assert "nodes=1, ep=4 meets every target, each with 95 % confidence, for 4 GPUs" in done.stdout
    names = {path.name for path in Path("out").iterdir()}
    assert names == {"plan.json", "candidates.csv", "pareto.png", "pareto.svg", "report.html", "meta.json", "cells"}
    rows = list(csv.DictReader(io.StringIO(Path("out/candidates.csv").read_text())))
    assert [row["status"] for row in rows].count("meets") == 3
    assert float(rows[0]["step_time_low"]) < float(rows[0]["step_time"]) < float(rows[0]["step_time_high"])
    assert {row["parallel.ep"] for row in rows} == {"4", "8"}


def test_an_interrupted_plan_goes_on(monkeypatch):
    first = answer("planned.yaml", "--all")
    import moesim.desk.cell_store as store

    def never(*_, **__):
        raise AssertionError("everything is there already")

    monkeypatch.setattr(store, "play_all", never)
    assert answer("planned.yaml", "--all") == first
    # Another target needs no new runs either.
    assert answer("planned.yaml", "--all", "--target", "step_time <= 2 s")["chosen"] == "nodes=1, ep=4"


def test_nothing_fits_exit_3_with_the_nearest_miss():
    done = invoke("planned.yaml", "--target", "drop_rate <= 0", "-o", "out")
    assert done.exit_code == 3
    assert "nothing meets every target. Nearest: " in done.stdout
    assert "drop rate is" in done.stdout
    found = json.loads(Path("out/plan.json").read_text())
    assert found["chosen"] is None
    assert found["nearest"] is not None
    assert found["binding"] == {"drop_rate <= 0": 3}


def test_bounds_prune_before_anything_is_simulated():
    found = answer("planned.yaml", "--target", "step_time <= 1 us", code=3)
    assert found["pruned"] == {"no-communication bound": 3}
    assert not list(Path("out/cells").iterdir())


def test_candidates_targets_and_prices_of_the_command_line():
    found = answer(
        "small.yaml",
        "cluster.gpu=h100-sxm,h200-sxm",
        "--target",
        "step_time<=1s",
        "--price",
        "h100-sxm=3",
        "--price",
        "h200-sxm=2",
        "--quiet",
    )
    assert found["objective"] == "cost_per_hour"
    assert found["chosen"] == "gpu=h200-sxm"
    assert found["prices"]["h200-sxm"] == {"per_gpu_hour": 2.0, "source": None}
    assert any("has no source" in warning for warning in found["warnings"])
    cost = next(one for one in found["candidates"] if one["name"] == "gpu=h200-sxm")
    assert cost["cost_per_hour"] == 16.0
    rate = cost["metrics"]["tokens_per_second"]["value"]
    assert cost["metrics"]["cost_per_million_tokens"]["value"] == pytest.approx(16 / 3600 / rate * 1e6, rel=0.05)


def test_whole_sections_can_be_candidates():
    clusters = (
        "plan.candidates={cluster: [{kind: one_switch, gpu: h100-sxm, gpus: 8}, "
        "{kind: nvlink_nodes, gpu: h100-sxm, nodes: 2, gpus_per_node: 4}]}"
    )
    found = answer("small.yaml", clusters, "--target", "step_time <= 1 s")
    assert found["chosen"] == "cluster={kind: one_switch, gpu: h100-sxm, gpus: 8}"  # as many GPUs, and faster


def test_replicates_are_runs_with_other_seeds():
    found = answer("small.yaml", "policy.capacity.factor=1.0,1.5", "--target", "step_time <= 1 s", "--replicates", 3)
    chosen = next(one for one in found["candidates"] if one["name"] == found["chosen"])
    assert len(set(chosen["cells"])) == 3
    assert chosen["metrics"]["step_time"]["n"] == 6


def test_what_is_excluded_is_no_candidate():
    found = answer("planned.yaml", "plan.exclude=[{cluster.nodes: 1}]")
    assert [one["name"] for one in found["candidates"]] == ["nodes=2, ep=4", "nodes=2, ep=8"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["small.yaml"], "has no targets"),
        (["small.yaml", "--target", "step_time <= 1 s"], "has no candidates"),
        (["small.yaml", "parallel.ep=4,8", "--target", "step_tme <= 1 s"], "did you mean 'step_time'"),
        (["small.yaml", "parallel.ep=4,8", "--target", "step_time <= 1"], "no unit"),
        (["small.yaml", "parallel.ep=4,8", "--target", "step_time <= 1 s", "--target", "step_time >= 2 s"], "nothing can meet both"),
        (["small.yaml", "parallel.ep=4,8", "--target", "cost_per_hour <= 1"], "needs prices"),
        (["small.yaml", "parallel.ep=4,8", "--target", "step_time <= 1 s", "--price", "h100-sxm"], "write the GPU's name and a number"),
        (["small.yaml", "parallel.ep=4,8", "--target", "step_time <= 1 s", "--price", "h100-sxm=-2"], "more than 0"),
        (["small.yaml", "parallel.ep=3,5", "--target", "step_time <= 1 s"], "none of the 2 candidates can be played"),
        (["small.yaml", "paralel.ep=4,8", "--target", "step_time <= 1 s"], "unknown key 'paralel'"),
        (["small.yaml", "parallel.epp=4,8", "--target", "step_time <= 1 s"], "did you mean 'pp'"),
        (["small.yaml", "parallel.ep=4,8", "steps=2", "--target", "step_time <= 1 s"], "one step shows nothing with 95 %"),
        (["small.yaml", "parallel.ep=4,8", "--target", "step_time <= 1 s", "--price", "h200-sxm=2"], "no price of the GPU 'h100-sxm'"),
        (["planned.yaml", "plan.exclude=[{cluster.nodes: 7}]"], "excludes nothing: cluster.nodes never is 7"),
        (["missing.yaml"], "there is no such file"),
        (["small.yaml", "parallel.ep=4,8", "--target", "step_time <= 1 s", "-o", " "], "-o names no folder"),
    ],
)
def test_bad_input_is_one_message_and_exit_2(words, said):
    done = invoke(*words)
    assert done.exit_code == 2, done.output
    assert said in done.output
    assert "Traceback" not in done.output


def test_a_mistake_in_the_file_has_its_place():
    Path("wrong.yaml").write_text(SMALL + PLAN.replace("step_time <= 1 s", "step_tme <= 1 s"))
    done = invoke("wrong.yaml")
    assert done.exit_code == 2
    assert "wrong.yaml:29:13: plan.targets.0: unknown metric 'step_tme'" in done.output
    Path("wrong.yaml").write_text(SMALL + PLAN.replace("[1, 2]", "[]"))
    assert "wrong.yaml:26:3: plan.candidates: the list of cluster.nodes is empty" in invoke("wrong.yaml").output


def test_a_damaged_answer_is_played_again():
    first = answer("planned.yaml")
    cell = next(Path("out/cells").iterdir())
    cell.write_text(cell.read_text()[:100])
    assert answer("planned.yaml") == first


def test_somebody_elses_folder_is_left_alone(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "plan.json").mkdir()
    (tmp_path / "mine" / "candidates.csv").write_text("mine")
    done = invoke("planned.yaml", "-o", "mine")
    assert done.exit_code == 2
    assert (tmp_path / "mine" / "candidates.csv").read_text() == "mine"
