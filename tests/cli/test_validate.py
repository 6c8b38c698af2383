"""``moesim validate``: the JSON that scripts read, exit codes, and what bad input gets."""

import json

import pytest
from click.testing import CliRunner

from moesim.cli import main

NCCL = """# source: a laboratory
# units: bytes_per_rank B; time_us microseconds
system,num_gpus,bytes_per_rank,time_us
h200_sxm,8,1024,8.5
h200_sxm,8,1048576,21
h200_sxm,8,67108864,240
tpu_v5,8,1024,9
"""


def run(*words):
    return CliRunner().invoke(main, ["validate", *map(str, words)])


@pytest.fixture
def folder(tmp_path):
    found = tmp_path / "tables"
    found.mkdir()
    (found / "nccl_alltoall_intranode.csv").write_text(NCCL, encoding="utf-8")
    return found


def test_the_contract_of_the_json(folder):
    (folder / "what.csv").write_text("a,b\n1,x\n2,y\n", encoding="utf-8")
    (folder / "broken.npz").write_bytes(b"no archive")
    (folder / "notes.md").write_text("words", encoding="utf-8")
    done = run(folder, "--format", "json", "--quiet")
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    keys = {"table", "regime", "n", "mape", "median_ape", "p90_ape", "bias", "baseline", "baseline_mape", "unpredicted"}
    for item in told["tables"]:
        assert keys <= set(item)
        assert all(set(part) == {"rows", "reason"} for part in item["unpredicted"])
    small = next(item for item in told["tables"] if item["regime"] == "small")
    assert small["table"] == "nccl_alltoall_intranode"
    assert small["n"] == 2
    assert small["unpredicted"] == [{"rows": 1, "reason": small["unpredicted"][0]["reason"]}]
    assert "tpu_v5" in small["unpredicted"][0]["reason"]
    assert -50 < small["bias"] < 50
    other = {item["file"]: item["unpredicted"] for item in told["tables"] if not item["n"]}
    assert [item["rows"] for item in other["what.csv"]] == [2]
    assert other["what.csv"][0]["reason"].startswith("no kind of table goes by this name")
    assert other["broken.npz"][0]["rows"] == 0
    assert told["other_files"] == [{"file": "notes.md", "reason": "no table: tables end in .csv, .jsonl, .npz, .json"}]


def test_the_same_tables_give_the_same_bytes(folder):
    assert run(folder, "--format", "json", "--quiet").stdout == run(folder, "--format", "json", "--quiet").stdout


def test_other_forms_say_the_same(folder, tmp_path):
    table = run(folder)
    assert table.exit_code == 0
    assert "3 rows of 1 table predicted, 1 not." in table.stdout
    assert "tpu_v5" in table.stdout
    lines = run(folder, "--format", "csv", "--quiet").stdout.splitlines()
    assert lines[0].startswith("table,regime,n,mape")
    assert len(lines) == 3
    done = run(folder, "--quiet", "-o", tmp_path / "out")
    assert done.exit_code == 0
    cases = (tmp_path / "out" / "cases.csv").read_text(encoding="utf-8").splitlines()
    assert len(cases) == 5
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["cases.csv", "scores.csv", "validation.json"]
    assert run(folder, "--quiet", "-o", tmp_path / "out").exit_code == 0  # its own folder may be written again


def test_a_system_that_was_never_measured_is_predicted_and_flagged(folder):
    (folder / "nccl_alltoall_intranode.csv").write_text(NCCL.replace("h200_sxm", "b200_sxm"), encoding="utf-8")
    done = run(folder, "--format", "json")
    item = json.loads(done.stdout)["tables"][0]
    assert item["n"] >= 1
    assert item["basis"] == {"datasheet": item["n"]}
    assert "carried over from another machine by data-sheet ratios" in done.stderr


@pytest.mark.parametrize("name", ["h200-sxm", "my-cluster"])
def test_a_profile_of_ones_own_is_used(folder, tmp_path, name):
    before = json.loads(run(folder, "--format", "json", "--quiet").stdout)["tables"]
    text = CliRunner().invoke(main, ["calibrate", str(folder), "-o", str(tmp_path / "p.yaml")])
    assert text.exit_code == 2  # three sizes determine nothing
    from moesim.desk.presets.profiles import profile_path

    slow = profile_path("h200-sxm").read_text(encoding="utf-8").replace("name: launch, value: 6", "name: launch, value: 60")
    (tmp_path / "p.yaml").write_text(slow.replace("name: h200-sxm", f"name: {name}", 1), encoding="utf-8")
    after = json.loads(run(folder, "--format", "json", "--quiet", "--profile", tmp_path / "p.yaml").stdout)["tables"]
    assert after[-1]["bias"] > before[-1]["bias"] + 50
    (tmp_path / "q.yaml").write_text((tmp_path / "p.yaml").read_text(encoding="utf-8"), encoding="utf-8")
    twice = run(folder, "--profile", tmp_path / "p.yaml", "--profile", tmp_path / "q.yaml")
    assert twice.exit_code == 2
    assert f"both hold a profile named '{name}'" in twice.stderr


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("size,time\n1,2\n", "the column 'system' is missing"),
        ("system,num_gpus,bytes_per_rank,time\nh200_sxm,8,1024,8.5\n", "'time_us' is missing; is it 'time'?"),
        (NCCL.replace("microseconds", "milliseconds"), "time_us is in milliseconds, its name says microseconds"),
        ("", "the table is empty"),
        ("system,num_gpus,bytes_per_rank,time_us\nh200_sxm,8,1024,-8.5\n", "the time -8.5 is negative"),
        ("system,num_gpus,bytes_per_rank,time_us\nh200_sxm,eight,1024,8.5\n", "'num_gpus' holds text such as 'eight'"),
    ],
)
def test_bad_tables_are_told_with_their_reason_and_exit_code_2(folder, content, why):
    (folder / "nccl_alltoall_intranode.csv").write_text(content, encoding="utf-8")
    done = run(folder)
    assert done.exit_code == 2
    assert why in done.stdout
    assert "Traceback" not in done.output
    assert "no table that could be predicted" in done.stderr


def test_a_bad_row_costs_only_itself(folder):
    (folder / "nccl_alltoall_intranode.csv").write_text(NCCL + "h200_sxm,8,1024,fast\nh200_sxm,8,2048,-1\nh200_sxm,8\n", encoding="utf-8")
    done = run(folder)
    assert done.exit_code == 0
    for why in ("'fast' is not a number", "the time -1 is negative", "2 cells where the header has 4"):
        assert why in done.stdout
    assert "3 rows of 1 table predicted, 4 not." in done.stdout


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["nowhere"], "no such folder"),
        (["empty"], "holds no files"),
        (["tables", "--profile", "none.yaml"], "no such file"),
        (["tables", "--profile", "h201-sxm"], "did you mean 'h200-sxm'"),
        (["tables", "-o", " "], "-o names no folder"),
    ],
)
def test_bad_arguments(folder, tmp_path, monkeypatch, words, why):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    done = run(*words)
    assert done.exit_code == 2
    assert why in done.stderr
    assert "Traceback" not in done.output
