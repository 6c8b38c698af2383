"""``moesim compare``: what it prints and writes, its contract for scripts, and what it refuses."""

import csv
import errno
import io
import json
import os

import pytest
from click.testing import CliRunner
from scenario_texts import SMALL

import moesim
from moesim.base.errors import ResultError
from moesim.cli import main
from moesim.desk import folder as places
from moesim.desk.scenario_file import load_scenario
from moesim.measure.collect import metrics

VERDICTS = {"better", "worse", "not distinguishable"}
QUICK = ["workload.tokens_per_gpu=64", "--executor", "inline", "--replicates", "3"]


def invoke(*words):
    return CliRunner().invoke(main, ["compare", *(str(word) for word in words)])


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    """A comparison with a report: the folder, and what JSON on stdout said."""
    folder = tmp_path_factory.mktemp("compared")
    path = folder / "small.yaml"
    path.write_text(SMALL)
    done = invoke(path, *QUICK, "--variant", "moved:policy.placement=round_robin", "-o", folder / "out", "--format", "json")
    assert (done.exit_code, done.stderr) == (0, ""), done.stderr
    return folder / "out", json.loads(done.stdout)


@pytest.fixture
def small(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "small.yaml"
    path.write_text(SMALL)
    return path


def test_the_contract_for_scripts(compared):
    folder, found = compared
    assert found["schema"] == 1
    assert found["baseline"] == "dropless"
    assert list(found["variants"]) == ["dropless", "tight", "moved"]
    names = list(metrics())
    for variant in found["variants"].values():
        assert list(variant["metrics"]) == names
        for value in variant["metrics"].values():
            assert list(value) == ["value", "unit", "low", "high", "n", "basis"]
    assert list(found["differences"]) == ["tight", "moved"]
    for of in found["differences"].values():
        assert list(of) == names
        for one in of.values():
            assert list(one)[:3] == ["value", "low", "high"]
            assert one["verdict"] in VERDICTS
    assert found["winner"]["by"] == "step_time"
    assert found["winner"]["tied"][0] == found["winner"]["best"]
    assert found["warnings"] == []
    assert json.loads((folder / "comparison.json").read_text()) == found


def test_differences_are_those_of_the_values(compared):
    _, found = compared
    base = found["variants"]["dropless"]["metrics"]
    compared_metrics = 0
    for variant, of in found["differences"].items():
        for name, one in of.items():
            mine, other = found["variants"][variant]["metrics"][name]["value"], base[name]["value"]
            if one["value"] is None:
                assert mine is None or other is None
                continue
            compared_metrics += 1
            assert one["value"] == pytest.approx(mine - other, rel=1e-6, abs=1e-9 * abs(other))
    assert compared_metrics > 40


def test_dropping_saves_time_and_costs_tokens(compared):
    _, found = compared
    tight = found["differences"]["tight"]
    assert tight["drop_rate"]["verdict"] == "worse"
    assert tight["dispatch_transfer_time"]["value"] < 0
    # The same tokens: which expert is hot does not depend on what is dropped later.
    assert tight["expert_max_over_mean"]["value"] == 0
    assert found["variants"]["moved"]["same_choices"] is True


def test_the_folder(compared):
    folder, found = compared
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert names == {
        "comparison.json", "differences.csv", "variants.csv", "meta.json", "report.html",
        "variants/dropless.yaml", "variants/tight.yaml", "variants/moved.yaml",
        *(f"cells/{digest}.json" for one in found["variants"].values() for digest in one["cells"]),
    }  # fmt: skip
    rows = list(csv.DictReader(io.StringIO((folder / "differences.csv").read_text())))
    assert len(rows) == 2 * len(metrics())
    first = next(row for row in rows if (row["variant"], row["metric"]) == ("tight", "drop_rate"))
    assert float(first["value"]) == found["differences"]["tight"]["drop_rate"]["value"]
    assert first["verdict"] == "worse"
    rows = list(csv.DictReader(io.StringIO((folder / "variants.csv").read_text())))
    assert len(rows) == 3 * len(metrics())
    for name in ("dropless", "tight", "moved"):
        scenario = load_scenario(folder / "variants" / f"{name}.yaml")
        assert scenario.compare == {}
    assert scenario.policy.placement.kind == "round_robin"


def test_the_same_comparison_writes_the_same_bytes(compared, tmp_path):
    folder, _ = compared
    path = folder.parent / "small.yaml"
    done = invoke(path, *QUICK, "--variant", "moved:policy.placement=round_robin", "-o", tmp_path / "again", "--quiet")
    assert done.exit_code == 0
    for file in folder.rglob("*"):
        if file.is_file() and file.name != "meta.json":
            assert file.read_bytes() == (tmp_path / "again" / file.relative_to(folder)).read_bytes(), file


def test_where_runs_are_played_changes_nothing(compared, tmp_path):
    folder, _ = compared
    done = invoke(
        folder.parent / "small.yaml", *QUICK, "--executor", "processes", "--jobs", "2", "--variant", "moved:policy.placement=round_robin",
        "-o", tmp_path / "out", "--no-report",
    )  # fmt: skip
    assert done.exit_code == 0, done.stderr
    assert (tmp_path / "out" / "comparison.json").read_bytes() == (folder / "comparison.json").read_bytes()


def test_the_table_says_who_wins_and_what_it_drops(small):
    done = invoke(small, *QUICK, "--no-report")
    assert done.exit_code == 0
    lines = done.stdout.splitlines()
    assert lines[0] == "small"
    assert lines[1] == "2 variants, 3 seeds of 2 steps; the same tokens for all"
    assert lines[3].startswith(("tight wins by step time: ", "No winner: "))
    assert "▼ worse" in done.stdout
    assert lines[-1] == "Results in out/small-compared"
    assert not (small.parent / "out" / "small-compared" / "report.html").exists()


def test_csv_is_one_row_per_variant_and_metric(small):
    done = invoke(small, *QUICK, "--no-report", "--format", "csv")
    assert len(list(csv.DictReader(io.StringIO(done.stdout)))) == len(metrics())


def test_a_policy_compared_with_itself_is_not_distinguishable(small):
    done = invoke(small, *QUICK, "--no-report", "--format", "json", "--variant", "again:policy.capacity=null", "--by", "drop_rate")
    found = json.loads(done.stdout)
    assert {one["verdict"] for one in found["differences"]["again"].values()} == {"not distinguishable"}
    assert {one["value"] for one in found["differences"]["again"].values()} <= {0, None}
    assert (found["winner"]["name"], found["winner"]["tied"]) == (None, ["again", "dropless"])
    said = invoke(small, *QUICK, "--no-report", "--variant", "again:policy.capacity=null", "--by", "drop_rate").stdout
    assert "No winner: again and dropless are not distinguishable by drop rate" in said


def test_a_baseline_by_name(small):
    found = json.loads(invoke(small, *QUICK, "--no-report", "--format", "json", "--baseline", "as_written").stdout)
    assert (found["baseline"], list(found["differences"])) == ("as_written", ["dropless", "tight"])


def test_another_comparison_leaves_no_scenario_of_the_last_one(small):
    assert invoke(small, *QUICK, "--no-report", "-o", "out").exit_code == 0
    assert invoke(small, *QUICK, "policy.capacity.factor=1.0,2.0", "--no-report", "-o", "out").exit_code == 0
    assert {path.name for path in (small.parent / "out" / "variants").iterdir()} == {"factor-1-0.yaml", "factor-2-0.yaml"}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--by", "steptime"], "--by names no metric: 'steptime'; did you mean 'step_time'"),
        (["--baseline", "tihgt"], "did you mean 'tight'"),
        (["--variant", "tight:steps=2"], "two variants are called 'tight'"),
        (["--variant", "x:stepz=2"], "did you mean 'steps'"),
        (["policy.capacity.factor=1.0,-2"], "too small"),
        (["--executor", "procesess"], "did you mean 'processes'"),
        (["--replicates", "0"], "replicates"),
        (["-o", ""], "-o names no folder"),
    ],
)
def test_bad_input_is_one_message_and_nothing_is_written(small, words, said):
    done = invoke(small, *words)
    assert (done.exit_code, done.stdout) == (2, "")
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_a_file_that_is_not_there(tmp_path):
    done = invoke(tmp_path / "no.yaml")
    assert done.exit_code == 2
    assert "there is no such file" in done.stderr


def test_a_folder_of_somebody_else_is_left_alone(small):
    (small.parent / "mine").mkdir()
    (small.parent / "mine" / "report.html").write_text("mine")
    done = invoke(small, *QUICK, "-o", "mine")
    assert done.exit_code == 2
    assert (small.parent / "mine" / "report.html").read_text() == "mine"


def test_a_run_says_that_compare_plays_the_variants(small):
    done = CliRunner().invoke(main, ["run", str(small), "--no-report", "workload.tokens_per_gpu=64"])
    assert "'moesim compare' plays them" in done.stderr


def test_a_comparison_that_is_repeated_plays_nothing_again_and_says_so(compared, tmp_path):
    folder, _ = compared
    words = (folder.parent / "small.yaml", *QUICK, "-o", tmp_path / "kept")
    first = invoke(*words)
    assert first.exit_code == 0
    again = invoke(*words)
    assert again.exit_code == 0
    assert "6 runs were finished already" in again.stderr  # two variants of three seeds
    assert again.stdout == first.stdout


def test_an_interrupted_comparison_keeps_its_runs_and_its_folder(compared, tmp_path, monkeypatch):
    from moesim.desk import cell_store

    folder, _ = compared
    real, played = cell_store.play, []

    def play(cell):
        if len(played) == 3:
            raise KeyboardInterrupt
        played.append(cell)
        return real(cell)

    monkeypatch.setattr(cell_store, "play", play)
    words = (folder.parent / "small.yaml", *QUICK, "--executor", "inline", "-o", tmp_path / "kept")
    done = invoke(*words)
    assert done.exit_code == 130
    assert f"interrupted: 3 finished runs are kept in {tmp_path / 'kept'}; the same command goes on from there" in done.stderr
    other = CliRunner().invoke(
        main, ["plan", str(words[0]), "parallel.ep=4,8", "--target", "step_time <= 1 s", "-o", str(tmp_path / "kept")]
    )
    assert other.exit_code == 2
    assert "holds results of another command (moesim compare)" in other.stderr
    monkeypatch.setattr(cell_store, "play", real)
    done = invoke(*words)
    assert done.exit_code == 0
    assert "3 runs were finished already" in done.stderr


def test_runs_of_another_version_are_said_and_played_again(compared, tmp_path, monkeypatch):
    folder, _ = compared
    words = (folder.parent / "small.yaml", *QUICK, "-o", tmp_path / "kept", "--no-report")
    assert invoke(*words).exit_code == 0
    for module in ("moesim.desk.study_cells", "moesim.desk.study_folder"):
        monkeypatch.setattr(f"{module}.__version__", "9.9")
    done = invoke(*words)
    assert done.exit_code == 0
    assert f"holds cells of moesim {moesim.__version__}, and this is moesim 9.9: all cells are played again" in done.stderr
    assert "finished already" not in done.stderr


def test_a_disk_that_is_full_costs_the_runs_and_not_the_answer(compared, tmp_path, monkeypatch):
    folder, _ = compared
    put, full = places.put, f"{places.reason(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))}"

    def some(path, content):
        if path.parent.name == "cells" or path.name == "comparison.json":
            raise ResultError(f"cannot write {path}: {full}")
        put(path, content)

    monkeypatch.setattr(places, "put", some)
    done = invoke(folder.parent / "small.yaml", *QUICK, "-o", tmp_path / "kept")
    assert done.exit_code == 1
    assert "wins by step time" in done.stdout  # printed before anything is written
    assert done.stderr.count("no space left on device; free some space or choose another folder with -o") == 1
    assert "Traceback" not in done.output
