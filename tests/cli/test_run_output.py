"""``run`` and ``report``: what is printed, what is written, in which order, and what happens when the disk fails."""

from __future__ import annotations

import csv
import errno
import gzip
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from example_result import SCENARIO, example
from scenario_texts import SMALL

from moesim.cli import main
from moesim.cli import run as run_command
from moesim.desk import folder as places
from moesim.desk.columns import COLUMNS
from moesim.desk.result_files import load
from moesim.study import uncertainty


def invoke(*words: object) -> Result:
    return CliRunner().invoke(main, [str(word) for word in words])


@pytest.fixture
def scenario(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a scenario whose run is the hand-made one: these tests are about printing and writing."""
    made = example()

    def simulate(given: object, *, keep_spans: bool, **_: object) -> object:
        tables = {name: table for name, table in made.tables.items() if keep_spans or name != "spans"}
        return type(made)(
            scenario=given, tables=tables, metrics=made.metrics, warnings=made.warnings, assumptions=made.assumptions, facts=made.facts
        )

    monkeypatch.setattr(uncertainty, "simulate", simulate)
    monkeypatch.setattr("moesim.models.sharing.core.needs_compiling", lambda: False)  # on a fresh machine it would say so on stderr
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "example.yaml"
    path.write_text(SCENARIO)
    return path


def test_the_table_puts_the_answer_first_and_the_folder_last(scenario: Path) -> None:
    result = invoke("run", scenario)
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert lines[0] == "hand-made example, EP 16"
    assert "26.0 ms; 20.3 ms if balanced; 12.7 ms without communication" in result.stdout
    titles = [line for line in lines if line and not line.startswith(" ")]
    assert titles[2:-2] == ["Step", "Where the time goes (mean over GPUs)", "Drops", "Imbalance", "Network", "Memory"]
    assert lines[-1] == "Results in out/hand-made-example-ep-16"
    assert result.stderr == "Warning: The trace holds 3 steps and was read again from its start.\n"
    assert not any(line.endswith(" ") for line in lines)
    for name in ("overload factor (Megatron-LM)", "imbalance ratio (TensorRT-LLM)", "balancedness (SGLang)", "MaxVio"):
        assert name in result.stdout
    assert Path("out/hand-made-example-ep-16/report.html").is_file()


def test_shares_of_the_table_add_up_to_the_step(scenario: Path) -> None:
    # Every GPU computes, transfers or waits at all times in this run, so the shares sum to 100 % but for rounding to 0.1 %.
    lines = invoke("run", scenario, "--no-report").stdout.splitlines()
    first = lines.index("Where the time goes (mean over GPUs)") + 1
    rows = lines[first : lines.index("", first)]
    assert sum(float(row.split("%")[0].split()[-1]) for row in rows) == pytest.approx(100, abs=0.05 * len(rows))


def test_json_is_the_summary_byte_for_byte_wherever_it_is_written(scenario: Path, tmp_path: Path) -> None:
    first = invoke("run", scenario, "--format", "json", "-o", tmp_path / "a", "--no-report")
    second = invoke("run", scenario, "--format", "json", "-o", tmp_path / "deeper" / "b", "--quiet")
    assert first.stdout == second.stdout == (tmp_path / "a" / "summary.json").read_text()
    assert json.loads(first.stdout)["schema"] == 1
    assert second.stderr == ""
    assert not (tmp_path / "a" / "report.html").exists()


def test_csv_has_a_row_for_every_metric(scenario: Path) -> None:
    printed = invoke("run", scenario, "--format", "csv", "--no-report").stdout
    rows = {row["name"]: row for row in csv.DictReader(io.StringIO(printed))}
    metrics = load("out/hand-made-example-ep-16").metrics
    assert list(rows) == list(metrics)
    assert float(rows["step_time"]["value"]) == metrics["step_time"].value
    assert (rows["fully_dropped_tokens"]["value"], rows["fully_dropped_tokens"]["n"]) == ("", "0")


@pytest.mark.parametrize(
    ("options", "there", "steps"),
    [
        ([], set(), None),
        (["--spans"], {"spans.parquet"}, None),
        (["--trace"], {"trace.json.gz"}, {1}),
        (["--trace", "--trace-steps", "2"], {"trace.json.gz"}, {1, 2}),
    ],
)
def test_big_files_are_written_when_asked_for(
    scenario: Path, tmp_path: Path, options: list[str], there: set[str], steps: set[int] | None
) -> None:
    assert invoke("run", scenario, "-o", tmp_path / "out", "--no-report", *options).exit_code == 0
    assert {path.name for path in (tmp_path / "out").iterdir()} & {"spans.parquet", "spans.csv.gz", "trace.json.gz"} == there
    assert ("spans" in json.loads((tmp_path / "out" / "summary.json").read_text())["columns"]) == ("--spans" in options)
    if steps:
        events = json.loads(gzip.decompress((tmp_path / "out" / "trace.json.gz").read_bytes()))["traceEvents"]
        assert {event["args"]["step"] for event in events if "step" in event.get("args", {})} == steps


def test_a_full_disk_costs_no_result(scenario: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replace = os.replace

    def full(source: Path, target: Path) -> None:
        # There is room when the folder is tried before the run, and none when results come.
        if target.name != ".moesim":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        replace(source, target)

    monkeypatch.setattr(places.os, "replace", full)
    result = invoke("run", scenario, "--format", "json", "-o", tmp_path / "out")
    assert result.exit_code == 1
    assert json.loads(result.stdout)["metrics"]["step_time"]["value"] > 0
    assert "cannot write" in result.stderr
    assert "no space left on device" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_file_in_the_way_is_found_before_the_run(scenario: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "taken").write_text("mine")
    monkeypatch.setattr(uncertainty, "simulate", None)
    result = invoke("run", scenario, "--format", "json", "-o", tmp_path / "taken")
    assert (result.exit_code, result.stdout, (tmp_path / "taken").read_text()) == (2, "", "mine")
    assert "taken" in result.stderr
    assert "-o" in result.stderr
    assert invoke("run", scenario, "-o", " ").exit_code == 2


def test_a_folder_with_the_users_files_is_refused_before_the_run(scenario: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scenario.rename(tmp_path / "scenario.yaml")
    monkeypatch.setattr(uncertainty, "simulate", None)
    result = invoke("run", tmp_path / "scenario.yaml", "-o", tmp_path)
    assert (result.exit_code, result.stdout) == (2, "")
    assert "choose another folder" in result.stderr
    assert (tmp_path / "scenario.yaml").read_text() == SCENARIO


def test_a_closed_pipe_costs_no_files(scenario: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise BrokenPipeError

    monkeypatch.setattr(run_command, "_echo", broken)
    result = invoke("run", scenario, "-o", tmp_path / "out", "--no-report", "--quiet")
    assert result.exit_code == 1
    assert (tmp_path / "out" / "summary.json").is_file()


def test_report_draws_the_same_page_from_the_folder(scenario: Path, tmp_path: Path) -> None:
    invoke("run", scenario, "-o", tmp_path / "out")
    page = tmp_path / "out" / "report.html"
    first = page.read_bytes()
    page.unlink()
    result = invoke("report", tmp_path / "out")
    assert (result.exit_code, result.stdout) == (0, f"{page}\n")
    assert page.read_bytes() == first


def test_report_of_what_is_no_result_is_a_message(tmp_path: Path) -> None:
    for folder in (tmp_path / "nothing", tmp_path):
        result = invoke("report", folder)
        assert (result.exit_code, result.stdout) == (1, "")
        assert result.stderr.startswith("Error: ")
        assert "Traceback" not in result.stderr


def test_a_terminal_without_unicode_still_gets_its_table(tmp_path: Path) -> None:
    (tmp_path / "small.yaml").write_text(SMALL)
    done = subprocess.run(
        [sys.executable, "-c", "from moesim.cli import main; main()", "run", "small.yaml", "--no-report"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
        capture_output=True,
        check=True,
    )
    printed = done.stdout.decode("ascii")
    assert "max / mean" in printed
    assert "Results in out/small" in printed


def test_a_real_run_writes_what_the_manual_describes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small.yaml").write_text(SMALL)
    moving = "policy.placement={kind: eplb, redundant: 8, window: 1, interval: 1}"
    result = invoke("run", "small.yaml", moving, "--spans", "--save-routing", "--trace", "--trace-steps", "2", "--format", "json")
    assert result.exit_code == 0, result.stderr
    folder = tmp_path / "out" / "small"
    for name, columns in COLUMNS.items():
        if name != "spans":
            assert (folder / f"{name}.csv").read_text().splitlines()[0].split(",") == list(columns), name
    back = load(folder)
    assert list(back.tables["spans"].columns) == list(COLUMNS["spans"])
    assert back.routing is not None
    assert json.loads(result.stdout)["metrics"]["step_time"]["value"] == back.metrics["step_time"].value
    assert "A step takes" in (folder / "report.html").read_text()
    again = invoke("run", folder / "scenario.yaml", "-o", "again", "--format", "json", "--spans", "--save-routing")
    assert json.loads(again.stdout)["files"] == json.loads(result.stdout)["files"]
