"""``moesim sweep``: what it writes and prints, going on where it stopped, and what bad input is told."""

from __future__ import annotations

import csv
import errno
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from scenario_texts import SMALL

import moesim
from moesim.cli import main
from moesim.desk import folder as places
from moesim.desk import sweep_run

FACTORS = "policy.capacity.factor=1.0,1.5"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "s.yaml").write_text(SMALL.replace("layers: 2", "layers: 1").replace("[0, 1]", "[0]"), encoding="utf-8")
    return tmp_path


def invoke(*words: str) -> Result:
    return CliRunner().invoke(main, ["sweep", "s.yaml", *words, "--executor", "inline", "-o", "out"])


def rows() -> list[dict[str, str]]:
    with open("out/cells.csv", encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def cells() -> dict[str, int]:
    """When each file of a cell was last written."""
    return {path.name: path.stat().st_mtime_ns for path in Path("out/cells").iterdir()}


def test_a_sweep_writes_a_table_a_summary_and_pictures():
    done = invoke(FACTORS, "policy.placement=contiguous,round_robin", "--format", "json")
    assert done.exit_code == 0, done.output
    summary = json.loads(done.stdout)
    assert summary["schema"] == 1
    assert summary["axes"] == [
        {"key": "policy.capacity.factor", "values": [1.0, 1.5]},
        {"key": "policy.placement", "values": ["contiguous", "round_robin"]},
    ]
    assert [cell["axes"]["policy.capacity.factor"] for cell in summary["cells"]] == [1.0, 1.0, 1.5, 1.5]
    assert (summary["done"], summary["failed"]) == (4, 0)
    assert {path.name for path in Path("out").iterdir()} == {
        "cells", "cells.csv", "cells.parquet", "meta.json", "report.html", "scenario.yaml", "summary.json", "sweep-curves.png",
        "sweep-curves.svg", "sweep-front.png", "sweep-front.svg", "sweep-heatmap.png", "sweep-heatmap.svg",
    }  # fmt: skip
    found = rows()
    for row, cell in zip(found, summary["cells"], strict=True):
        assert float(row["policy.capacity.factor"]) == cell["axes"]["policy.capacity.factor"]
        assert float(row["step_time"]) == cell["metrics"]["step_time"]["value"]
        assert float(row["step_time_low"]) == cell["metrics"]["step_time"]["low"]
        assert f"{cell['digest']}.json" in cells()
    # Twice as many routes may stay at factor 1.5 as are dropped at 1.0, or more: fewer drops, never more.
    assert float(found[2]["drop_rate"]) < float(found[0]["drop_rate"])


def test_a_cell_has_the_numbers_of_a_run_with_its_values():
    assert invoke(FACTORS).exit_code == 0
    result = moesim.run("s.yaml", ["policy.capacity.factor=1.5"])
    row = rows()[1]
    for name, value in result.metrics.items():
        assert row[name] == ("" if value.value is None else repr(value.value)), name


def test_parquet_holds_the_same_numbers_with_units():
    parquet = pytest.importorskip("pyarrow.parquet")
    assert invoke(FACTORS).exit_code == 0
    table = parquet.read_table("out/cells.parquet")
    assert table.column_names == list(rows()[0])
    assert table["step_time"].to_pylist() == [float(row["step_time"]) for row in rows()]
    assert table.schema.field("step_time").metadata == {b"unit": b"s"}


def test_the_terminal_shows_axes_and_metrics():
    done = invoke("policy.capacity=null,megatron", "steps=2", "warmup=0")
    assert done.exit_code == 1  # megatron needs a factor
    assert "null" in done.stdout
    assert "step time" in done.stdout
    assert "1 of 2 cells" in done.stdout
    done = invoke(FACTORS, "--metric", "maxvio")
    assert "MaxVio" in done.stdout
    assert "step time " not in done.stdout.splitlines()[2]
    done = invoke(FACTORS, "--metric", "maxvo")
    assert done.exit_code == 2
    assert "there is no metric 'maxvo'; did you mean 'maxvio'" in done.output


def test_finished_cells_are_not_played_again():
    assert invoke(FACTORS).exit_code == 0
    before, files = cells(), {path.name: path.read_bytes() for path in Path("out").iterdir() if path.is_file() and path.name != "meta.json"}
    done = invoke(FACTORS)
    assert "2 of 2 cells were finished already" in done.stderr
    assert cells() == before
    assert {path.name: path.read_bytes() for path in Path("out").iterdir() if path.name in files} == files
    assert json.loads(Path("out/meta.json").read_text())["played"] == 0
    done = invoke("policy.capacity.factor=1.0,1.5,2.0")
    assert "2 of 3 cells were finished already" in done.stderr
    assert len(cells()) == 3
    assert before.items() <= cells().items()


def test_a_damaged_cell_is_played_again():
    assert invoke(FACTORS).exit_code == 0
    name = min(cells())
    whole = Path("out/cells", name).read_bytes()
    Path("out/cells", name).write_bytes(whole[: len(whole) // 2])
    assert "1 of 2 cells were finished already" in invoke(FACTORS).stderr
    assert Path("out/cells", name).read_bytes() == whole


def test_cells_that_mean_the_same_are_played_once():
    done = invoke("policy.placement=contiguous,{kind: contiguous}", "--format", "json")
    assert done.exit_code == 0, done.output
    assert len(cells()) == 1
    assert [cell["axes"]["policy.placement"] for cell in json.loads(done.stdout)["cells"]] == ["contiguous", "{kind: contiguous}"]


def test_a_failed_cell_is_reported_and_the_others_are_finished():
    done = invoke("parallel.ep=8,3,4")
    assert done.exit_code == 1
    assert "failed: ep=3: override parallel.ep=8,3,4: parallel.ep" in done.stderr
    assert "1 of 3 cells failed" in done.stderr
    assert [row["status"] for row in rows()] == ["done", "failed", "done"]
    assert rows()[1]["step_time"] == ""
    assert len(cells()) == 2


def test_when_no_cell_can_be_read_it_is_bad_input():
    done = invoke("policy.capacity.facto=1,2")
    assert done.exit_code == 2
    assert "unknown key 'facto'; did you mean 'factor'?" in done.stderr
    assert not Path("out/cells.csv").exists()


def test_an_interruption_keeps_what_is_finished_and_says_how_to_go_on(monkeypatch):
    played, real = [], sweep_run.play

    def play(cell):
        if len(played) == 2:
            raise KeyboardInterrupt
        played.append(cell)
        return real(cell)

    monkeypatch.setattr(sweep_run, "play", play)
    done = invoke("policy.capacity.factor=1..4")
    assert done.exit_code == 130
    assert "interrupted: 2 of 4 cells are finished and kept in out; the same command goes on from there" in done.stderr
    assert len(cells()) == 2
    monkeypatch.setattr(sweep_run, "play", real)
    assert "2 of 4 cells were finished already" in invoke("policy.capacity.factor=1..4").stderr


def test_a_full_disk_costs_no_finished_cell(monkeypatch):
    put = places.put

    def full(path, content):
        if path.parent.name == "cells" and len(cells()) == 1:
            raise places.ResultError(f"cannot write {path}: {places.reason(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))}")
        put(path, content)

    with monkeypatch.context() as patch:
        patch.setattr(places, "put", full)
        done = invoke(FACTORS)
    assert done.exit_code == 1
    assert "no space left on device; free some space or choose another folder with -o. 1 of 2 cells are finished and kept" in done.stderr
    assert "Traceback" not in done.output
    assert "1 of 2 cells were finished already" in invoke(FACTORS).stderr


def test_results_of_another_version_are_said_and_not_used(monkeypatch):
    assert invoke(FACTORS).exit_code == 0
    before = cells()
    for module in ("moesim.desk.study_cells", "moesim.desk.study_folder"):
        monkeypatch.setattr(f"{module}.__version__", "9.9")
    done = invoke(FACTORS)
    assert done.exit_code == 0
    assert f"out holds cells of moesim {moesim.__version__}, and this is moesim 9.9: all cells are played again" in done.stderr
    assert len(cells()) == 4
    assert before.items() <= cells().items()


def test_a_folder_with_other_results_is_left_alone():
    assert CliRunner().invoke(main, ["run", "s.yaml", "--no-report", "-o", "out"]).exit_code == 0
    before = Path("out/summary.json").read_bytes()
    done = invoke(FACTORS)
    assert done.exit_code == 2
    assert "out holds results of another command (moesim run); choose another folder with -o" in done.stderr
    assert Path("out/summary.json").read_bytes() == before


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "has no matrix, and no word of the command line has several values"),
        (("seed=1..x",), "1..x: is no range"),
        ((FACTORS, "--memory", "4"), "--memory: "),
        ((FACTORS, "--jobs", "0"), "0 is not in the range"),
    ],
)
def test_bad_input_is_one_message(words, message):
    done = invoke(*words)
    assert done.exit_code == 2
    assert message in done.stderr
    assert "Traceback" not in done.output


def test_an_unknown_executor_is_named():
    done = CliRunner().invoke(main, ["sweep", "s.yaml", FACTORS, "--executor", "proceses", "-o", "out"])
    assert done.exit_code == 2
    assert "there is no executor 'proceses'; did you mean 'processes'?" in done.stderr


def test_check_reports_the_problems_of_every_cell():
    text = Path("s.yaml").read_text(encoding="utf-8")
    Path("s.yaml").write_text(f"{text}matrix:\n  parallel.ep: [8, 3]\n", encoding="utf-8")
    done = CliRunner().invoke(main, ["check", "s.yaml"])
    assert done.exit_code == 2
    line = text.count("\n") + 2
    assert done.stderr.startswith(f"s.yaml:{line}:20: parallel.ep: ")
    done = CliRunner().invoke(main, ["check", "s.yaml", "matrix={seed: [1, 2, 3]}"])
    assert done.exit_code == 0
    assert "3 cells" in done.stdout
    done = CliRunner().invoke(main, ["run", "s.yaml", "--no-report", "-o", "run"])
    assert done.exit_code == 0
    assert "the matrix was left alone" in done.stderr


def test_interrupting_the_command_with_worker_processes_ends_with_130(folder):
    # A real process gets a real SIGINT, in a group of its own as in a terminal, as soon as one cell is on disk.
    import signal
    import time

    command = [sys.executable, "-m", "moesim", "sweep", "s.yaml", "seed=1..2000", "-o", "out", "-j", "2"]
    process = subprocess.Popen(command, cwd=folder, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True)
    until = time.monotonic() + 60
    while not list(folder.glob("out/cells/*.json")) and time.monotonic() < until:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    said = re.search(r"interrupted: (\d+) of 2000 cells are finished and kept in out", errors)
    assert said, errors
    # The signal may come between the file of a cell and the count of it.
    assert len(list(folder.glob("out/cells/*.json"))) - int(said[1]) in {0, 1}
    assert list(folder.glob("out/cells/.*")) == []
    assert "Traceback" not in errors


def test_an_interruption_while_workers_are_loading_prints_no_traceback(folder):
    # A worker takes half a second or more to load; it is interrupted before it could say that it leaves Ctrl-C to the command. On a busy
    # machine the command itself is slow to end it; here it stands still for a while.
    import signal
    import time

    command = [sys.executable, "-m", "moesim", "sweep", "s.yaml", "seed=1..2000", "-o", "out", "-j", "2"]
    process = subprocess.Popen(command, cwd=folder, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True)
    until = time.monotonic() + 60
    while len(workers_of(process.pid)) < 2 and time.monotonic() < until:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGSTOP)
    os.killpg(process.pid, signal.SIGINT)
    time.sleep(1.0)
    os.kill(process.pid, signal.SIGCONT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert errors.splitlines()[-1:] == ["interrupted: 0 of 2000 cells are finished and kept in out; the same command goes on from there"]
    assert "Traceback" not in errors


def workers_of(pid: int) -> list[int]:
    """The processes that a process has started to play cells."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((path / "stat").read_text().rpartition(")")[2].split()[1])
            words = (path / "cmdline").read_bytes()
        except OSError:
            continue
        if parent == pid and b"spawn_main" in words:
            found.append(int(path.name))
    return found


def test_an_axis_that_changes_nothing_is_named_and_what_all_cells_share_is_said_once():
    # The name of a scenario is an input that no metric depends on; a higher factor keeps more.
    done = invoke(FACTORS, "name=a,b")
    assert done.exit_code == 0, done.output
    assert "name changed nothing: cells that differ in it alone agree in every metric" in done.stdout
    assert "factor changed nothing" not in done.stdout
    assert json.loads(Path("out/summary.json").read_text())["changed_nothing"] == ["name"]
    # Two cells that are one: no column but the step time differs, so the drop rate stands below the table.
    alike = CliRunner().invoke(main, ["sweep", "s.yaml", "name=a,b", "--executor", "inline", "-o", "alike"])
    assert re.search(r"the same in all cells: throughput .*; drop rate \d", alike.stdout)


def test_too_little_memory_for_any_worker_is_bad_input_and_no_traceback(monkeypatch):
    for words in (("--memory", "1 MB"), ("--memory", "0")):
        done = CliRunner().invoke(main, ["sweep", "s.yaml", FACTORS, *words, "-o", "out"])
        assert done.exit_code == 2
        assert f"--memory {words[1]} is too little; a worker needs 256 MB" in done.stderr
    monkeypatch.setattr("moesim.desk.memory_share.memory_of_machine", lambda: 10**9)
    done = CliRunner().invoke(main, ["sweep", "s.yaml", FACTORS, "-j", "8", "-o", "out"])
    assert done.exit_code == 2
    assert "8 jobs leave each worker 100 MB: try fewer" in done.stderr


def test_nothing_is_said_of_others_when_all_cells_fail():
    done = invoke("parallel.ep=3,5")
    assert "the others are in" not in done.stderr


@pytest.mark.parametrize("width", [60, 80, 200])
def test_a_narrow_terminal_shows_fewer_metrics_and_cuts_no_value(width):
    from moesim.desk.sweep_cells import plan_sweep
    from moesim.desk.sweep_run import prepare, run_sweep
    from moesim.desk.sweep_text import table

    plan = plan_sweep("s.yaml", [FACTORS, "policy.placement=contiguous,{kind: round_robin}"])
    prepare(Path("out"))
    sweep, _ = run_sweep(plan, Path("out"), executor="inline")
    text = table(sweep, Path("out"), width=width)
    assert "…" not in text
    assert text.count("{kind: round_robin}") == 2
    grid = text.splitlines()[2:8]
    assert max(len(line) for line in grid) <= width
    assert ("no room for: " in text) == (width < 200)
    # What is asked for is shown, however wide.
    asked = table(sweep, Path("out"), metrics=("step_time", "tokens_per_second", "drop_rate", "peak_memory"), width=60)
    assert "peak memory" in asked.splitlines()[2]
    assert "…" not in asked


def test_a_disk_that_fills_up_at_the_end_costs_no_answer(monkeypatch):
    put = places.put

    def full(path, content):
        if path.suffix in {".png", ".csv"}:
            raise places.ResultError(f"cannot write {path}: {places.reason(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))}")
        put(path, content)

    monkeypatch.setattr(places, "put", full)
    done = invoke(FACTORS)
    assert done.exit_code == 1
    assert "2 of 2 cells" in done.stdout
    assert done.stderr.count("no space left on device") == 1
