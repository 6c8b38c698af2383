"""What the lab does without PyTorch: jobs, matrices, loads, what ranks leave, files, and processes that die."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import jsonschema
import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from moesim.base.errors import ResultError, UsageError
from moesim.cli import main, measure
from moesim.desk.measured_tables import read_measured
from moesim.lab import files, launch, patterns
from moesim.lab.job import ComputeCase, ExchangeCase, Job, LayerCase, from_text, to_text, visits
from moesim.lab.launch import Outcome, free_port, run_ranks
from moesim.lab.loads import choices, expert_loads, hottest_first
from moesim.lab.merging import finished, merge, parse, started, work
from moesim.lab.spread import spread

EVEN = ((0, 8), (8, 0))
LAYER = LayerCase(name="a", tokens=4, hidden=8, expert_width=8, experts=4, top_k=2, capacity_factor=1.0)
EXCHANGE = Job(kind="exchange", cases=(ExchangeCase(name="a", bytes=EVEN), ExchangeCase(name="b", bytes=EVEN, stagger_s=(0.0, 0.1))))


@pytest.mark.parametrize(
    "job",
    [
        EXCHANGE,
        Job(kind="layer", cases=(LAYER,), cores=(0, 1), flows=True, repeats=3, timeout_s=5.0),
        Job(kind="compute", cases=(ComputeCase(name="a", operation="ffn", tokens=4, hidden=8, expert_width=8, experts=4, top_k=2),)),
    ],
)
def test_a_job_reads_back_equal(job):
    assert from_text(to_text(job)) == job
    assert from_text(to_text(job)).digest() == job.digest()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema": 2}, "schema 2 is not one that this version reads"),
        ({"kind": "exchanges"}, "unknown kind 'exchanges'; did you mean 'exchange'?"),
        ({"repeat": 3}, "unknown key 'repeat'; did you mean 'repeats'?"),
        ({"repeats": 0}, "repeats: 0 is too small"),
        ({"repeats": True}, "repeats: True is not a whole number"),
        ({"cases": [{"name": "a"}]}, "case 0: the key 'bytes' is missing"),
        ({"cases": [{"name": "a", "bytes": [[0, 1]]}]}, "bytes: row 0 has 2 entries where 1 rows need 1"),
        ({"cases": [{"name": "a", "bytes": [[0.5]]}]}, "must hold whole numbers"),
        ({"cases": [{"name": "a", "bytes": [[0]], "posting": "first"}]}, "posting: unknown choice 'first'"),
        ({"cases": {}}, "cases: expected a list"),
    ],
)
def test_a_wrong_job_is_refused_with_the_place(change, message):
    text = json.dumps({**json.loads(to_text(EXCHANGE)), **change})
    with pytest.raises(UsageError) as error:
        from_text(text, "job.json")
    assert message in str(error.value)
    assert str(error.value).startswith("job.json")


def test_what_is_no_job_is_refused():
    for text in ("{", "[]", "null"):
        with pytest.raises(UsageError, match=r"^job\.json: "):
            from_text(text, "job.json")


@pytest.mark.parametrize(
    ("job", "world", "message"),
    [
        (EXCHANGE, 3, "case 'a': its matrix has 2 rows, but there are 3 ranks"),
        (Job(kind="layer", cases=(LAYER,)), 3, "4 experts cannot be split evenly over 3 ranks"),
        (Job(kind="layer", cases=(LAYER, LAYER)), 2, "two cases are called 'a'"),
        (Job(kind="layer", cases=()), 2, "the layer job has no cases"),
    ],
)
def test_cases_that_do_not_fit_the_ranks_are_refused(job, world, message):
    with pytest.raises(UsageError) as error:
        job.check(world)
    assert message in str(error.value)


def test_every_repeat_visits_all_cases_in_an_order_of_its_own():
    cases = tuple(ExchangeCase(name=str(number), bytes=EVEN) for number in range(8))
    order = visits(Job(kind="exchange", cases=cases, repeats=5, warmup=2, seed=1))
    assert order == visits(Job(kind="exchange", cases=cases, repeats=5, warmup=2, seed=1))
    rounds = [[case for repeat, case in order if repeat == number] for number in range(-2, 5)]
    assert all(sorted(found) == list(range(8)) for found in rounds)
    assert len({tuple(found) for found in rounds[2:]}) == 5  # of 8! orders, five are equal with probability 1e-4
    assert rounds[2:] != [[case for r, case in visits(Job(kind="exchange", cases=cases, repeats=5, seed=2)) if r == n] for n in range(5)]


@settings(max_examples=40, deadline=None)
@given(kind=st.sampled_from(patterns.KINDS), ranks=st.integers(2, 9), size=st.integers(1, 1 << 20), seed=st.integers(0, 3))
def test_patterns_send_what_a_buffer_holds(kind, ranks, size, seed):
    table = patterns.matrix(kind, ranks, size, seed)
    assert (table % patterns.GRAIN == 0).all()
    assert (np.diag(table) == size // ranks // 16 * 16).all()
    away = table.sum(axis=1) - np.diag(table)
    senders = away[1:] if kind == "incast" else away
    # Whole grains, rounded down: each of at most ranks - 1 messages loses less than one.
    assert (senders <= size - size / ranks + 1e-6).all()
    assert (senders > size - size / ranks - 16 * (ranks - 1)).all()
    if kind == "incast":
        assert away[0] == 0
    assert np.array_equal(table, patterns.matrix(kind, ranks, size, seed))


def test_patterns_look_as_they_are_called():
    big = 9 << 20
    hot = patterns.matrix("hot", 4, big)
    assert hot[0, 2] == pytest.approx(4 * hot[0, 1], rel=1e-3)
    zipf = patterns.matrix("zipf", 4, big)
    assert sorted(zipf[:, 0].tolist()) != sorted(zipf[:, 1].tolist())
    assert (patterns.matrix("sparse", 8, big) == 0).sum() > 8
    assert patterns.matrix("even", 1, 100).tolist() == [[96]]
    with pytest.raises(UsageError, match="did you mean 'zipf'"):
        patterns.matrix("zip", 4, big)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0,1\n2\n", "line 2: 1 cells, but 2 rows"),
        ("# bytes\n0,x\n2,0\n", "line 2, column 2: 'x' is not a number"),
        ("0,-1\n2,0\n", "must be a whole number of bytes"),
        ("0,1.5\n2,0\n", "must be a whole number of bytes"),
        ("nan,1\n2,0\n", "must be a whole number of bytes"),
        ("# nothing\n", "the file holds no rows"),
    ],
)
def test_a_wrong_matrix_is_refused_with_the_place(tmp_path, text, message):
    path = tmp_path / "bytes.csv"
    path.write_text(text)
    with pytest.raises(UsageError) as error:
        patterns.read_matrix(path)
    assert message in str(error.value)
    path.write_text("# ours\n0,10\n 2e1 ,0\n")
    assert patterns.read_matrix(path).tolist() == [[0, 10], [20, 0]]


@settings(max_examples=60, deadline=None)
@given(
    tokens=st.integers(1, 200),
    experts=st.sampled_from([1, 4, 12]),
    top_k=st.integers(1, 4),
    distribution=st.sampled_from(["balanced", "power_law_0.6", "power_law_1", "power_law_2.5"]),
    seed=st.integers(0, 9),
)
def test_loads_are_those_of_tokens_with_distinct_choices(tokens, experts, top_k, distribution, seed):
    top_k = min(top_k, experts)
    counts = expert_loads(distribution, tokens, top_k, experts, seed)
    assert counts.sum() == tokens * top_k
    assert counts.min() >= 0
    assert counts.max() <= tokens
    if distribution == "balanced":
        assert counts.max() - counts.min() <= 1
    table = choices(counts, tokens, top_k, seed)
    assert np.array_equal(np.bincount(table.reshape(-1), minlength=experts), counts)
    assert all(len(set(row)) == top_k for row in table.tolist())
    ranks = 2 if experts > 1 else 1
    front = hottest_first(counts, ranks).reshape(ranks, -1).sum(axis=1)
    assert front[0] == front.max()


def test_a_steep_power_law_is_skewed():
    counts = np.sort(expert_loads("power_law_1.2", 4096, 8, 64, 0))
    assert counts[-1] > 4 * counts.mean()
    with pytest.raises(UsageError, match="unknown distribution 'zipf'"):
        expert_loads("zipf", 4, 1, 4, 0)


def test_spread_of_one_value_and_of_many():
    assert spread([2.0]) == {"median": 2.0, "q25": 2.0, "q75": 2.0, "min": 2.0, "max": 2.0, "n": 1}
    assert spread([5.0, 1.0, 2.0]) == {"median": 2.0, "q25": 1.5, "q75": 3.5, "min": 1.0, "max": 5.0, "n": 3}


HEADER = {
    "schema": 1, "world_size": 2, "machine": "m", "device": "cpu", "backend": "gloo", "offset_s": 0.0, "offset_error_s": 0.0,
    "lead_s": 0.01, "job": "d", "environment": {"torch": {"version": "2.9"}, "processor": "a CPU", "load": [0.1, 0.2, 0.3], "cores": 2},
}  # fmt: skip


def line(rank, repeat, arrival, end, **more):
    item = {"case": "a", "repeat": repeat, "arrival_s": arrival, "posted_s": arrival, "end_s": end, "late_s": 0.0, "iterations": 1}
    return {**item, "correct": True, **more}


def ranks_of(*samples, end=True):
    """Lines of two ranks of the exchange job, from the repeats of each."""
    tail = [{"end": True}] if end else []
    return [[{**HEADER, "rank": rank}, *lines, *tail] for rank, lines in enumerate(samples)]


JOB = Job(kind="exchange", cases=(ExchangeCase(name="a", bytes=((4, 12), (8, 0)), pattern="even", posting="library"),), repeats=2)


def test_repeats_of_all_ranks_are_put_together():
    lines = ranks_of([line(0, 0, 0.0, 1.0), line(0, 1, 0.5, 1.0)], [line(1, 0, 0.25, 2.0), line(1, 1, 0.0, 1.0)])
    case = merge(JOB, lines)[0]
    assert case["repeats"] == 2
    # From the first arrival to the last end: 2 - 0 and 1 - 0. Mean over ranks of their own times: (1 + 1.75) / 2 and (0.5 + 1) / 2.
    assert case["results"]["completion"]["median"] == 1.5
    assert case["results"]["rank_time"]["max"] == 1.375
    assert case["results"]["rank_time"]["min"] == 0.75
    assert case["results"]["arrival_skew"]["max"] == 0.5
    # Buffers of 16 and 8 bytes, of which 12 and 8 leave their rank; busiest port: the 12 bytes into rank 1.
    facts = case["facts"]
    assert (facts["bytes_per_rank"], facts["sent_per_rank"], facts["busiest_port_bytes"]) == (12.0, 10.0, 12)
    assert facts["algbw"] == pytest.approx(12 / ((1.375 + 0.75) / 2))
    assert facts["busbw"] == pytest.approx(10 / ((1.375 + 0.75) / 2))
    assert facts["correct"] is True


def test_a_rank_starts_when_somebody_it_talks_to_is_there():
    matrix = [[9, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0], [0, 0, 0, 7]]
    # 0 talks to 1; 1 to 0 and 2; 3 only to itself. 1 need not wait for 2, which is later than 0.
    assert started(np.array([[0.0, 1.0, 5.0, 2.0]]), matrix).tolist() == [[1.0, 1.0, 5.0, 2.0]]


def test_repeats_that_a_rank_did_not_finish_do_not_count():
    lines = ranks_of([line(0, 0, 0.0, 1.0), line(0, 1, 0.0, 1.0)], [line(1, 0, 0.0, 3.0)], end=False)
    assert merge(JOB, lines)[0]["results"]["completion"]["n"] == 1
    assert merge(JOB, [lines[0], []])[0]["repeats"] == 0
    wrong = ranks_of([line(0, 0, 0.0, 1.0)], [line(1, 0, 0.0, 3.0, correct=False)])
    assert merge(JOB, wrong)[0]["facts"]["correct"] is False


def test_a_line_that_was_cut_off_is_left_out():
    assert parse('{"a": 1}\n{"b": 2}\n{"c":') == [{"a": 1}, {"b": 2}]
    assert not finished(parse('{"a": 1}\n'))
    assert finished(parse('{"end": true}'))
    assert not finished([])


def test_work_of_a_case():
    shape = {"hidden": 4, "expert_width": 3, "tokens": 5, "experts": 6, "dtype": "float32"}
    facts = {"rows": 10, "active_experts": 2}
    # Three products of 10 × 4 × 3: 720 operations; 2 experts of 36 weights and 10 rows of 4 in and out, 4 bytes each.
    assert work({**shape, "operation": "ffn"}, facts) == {"flop": 720.0, "bytes": 4.0 * (72 + 80)}
    assert work({**shape, "operation": "up_proj"}, facts)["flop"] == 480.0
    assert work({**shape, "operation": "down_proj"}, facts)["flop"] == 240.0
    assert work({**shape, "operation": "gate"}, facts) == {"flop": 240.0, "bytes": 4.0 * 4 * 11}
    assert work({**shape, "operation": "permute"}, facts) == {"flop": 0.0, "bytes": 4.0 * 80}
    assert work({**shape, "operation": "ffn", "dtype": "float8_e4m3fn"}, facts)["bytes"] == 72 + 160  # rows in two bytes


def measured(*, why="", job=JOB, lines=None):
    lines = lines or ranks_of([line(0, 0, 0.0, 1.0)], [line(1, 0, 0.0, 3.0)])
    return files.document(job, Outcome(ranks=lines, why=why), system="", licence="CC0-1.0")


def test_files_read_back_and_keep_to_their_schema(tmp_path):
    found = measured()
    paths = files.write(tmp_path / "deep" / "er", found)
    assert [path.name for path in paths] == ["exchange.json", "exchange.csv"]
    again = files.read_measurement(paths[0])
    jsonschema.validate(again, files.json_schema())
    assert again == json.loads(json.dumps(found))
    assert again["system"] == "a_cpu"
    assert again["rank_headers"][1]["differs"] == {}
    table = read_measured(paths[1])
    assert table.refused == ()
    assert table.rows["time_us"].tolist() == [2e6]
    assert table.rows["num_gpus"].tolist() == [2]
    assert {note.split(":")[0] for note in table.notes} == {"source", "licence", "units", "note"}


def test_a_partial_measurement_says_so_in_every_file(tmp_path):
    paths = files.write(tmp_path, measured(why="rank 1 was ended by SIGKILL"))
    assert json.loads(paths[0].read_text())["partial"] is True
    assert "# note: PARTIAL: rank 1 was ended by SIGKILL" in paths[1].read_text()


def test_the_library_on_gpus_also_gives_a_table_of_nccl(tmp_path):
    lines = ranks_of([line(0, 0, 0.0, 1.0)], [line(1, 0, 0.0, 3.0)])
    for rank in lines:
        rank[0] = {
            **rank[0],
            "backend": "nccl",
            "environment": {**rank[0]["environment"], "gpu": {"name": "NVIDIA H200", "nccl": "2.29.2"}},
        }
    paths = files.write(tmp_path, measured(lines=lines))
    assert [path.name for path in paths] == ["exchange.json", "exchange.csv", "nccl_alltoall_nvidia_h200.csv"]
    rows = read_measured(paths[2]).rows
    assert list(rows) == ["system", "nccl", "dtype", "num_gpus", "bytes_per_rank", "time_us", "algbw_GBps", "busbw_GBps"]
    assert rows["bytes_per_rank"].tolist() == [12]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not JSON"),
        ("{}", "is no measurement of moesim"),
        ('{"what": "moesim measurement", "schema": 9}', "schema 9 is not one that this version reads"),
        ('{"what": "moesim measurement", "schema": 1, "kind": "x"}', "unknown kind of measurement 'x'"),
        ('{"what": "moesim measurement", "schema": 1, "kind": "layer"}', "the part 'made' is missing"),
    ],
)
def test_what_is_no_measurement_is_refused_and_not_overwritten(tmp_path, text, message):
    path = tmp_path / "layer.json"
    path.write_text(text)
    with pytest.raises(UsageError) as error:
        files.read_measurement(path)
    assert message in str(error.value)
    with pytest.raises(UsageError, match="choose another folder with -o"):
        files.prepare(tmp_path, "layer")
    assert path.read_text() == text
    files.prepare(tmp_path, "exchange")
    with pytest.raises(UsageError, match="no such file"):
        files.read_measurement(tmp_path / "none.json")


def test_an_earlier_measurement_may_be_overwritten(tmp_path):
    files.write(tmp_path, measured())
    files.prepare(tmp_path, "exchange")


def test_a_folder_that_cannot_be_written_is_refused_before_anything_runs(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot make the folder"):
        files.prepare(tmp_path / "file" / "folder", "layer")


def test_writing_into_a_file_is_an_error_of_the_result(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ResultError):
        files.write(tmp_path / "file", measured())


# What ranks do is a program of the test here: the launcher must cope with any.
RANK = """
import json, os, sys, time, pathlib
rank = int(os.environ["RANK"])
folder = pathlib.Path(sys.argv[2])
lines = (folder / f"rank-{rank}.jsonl").open("w", buffering=1)
(pathlib.Path(os.environ["PIDS"]) / str(os.getpid())).touch()
def say(**item): lines.write(json.dumps(item) + "\\n")
say(case="a", repeat=0, arrival_s=0, posted_s=0, end_s=1, late_s=0, iterations=1, correct=True)
BODY
say(end=True)
"""


def command(tmp_path, monkeypatch, body):
    pids = tmp_path / "pids"
    pids.mkdir()
    monkeypatch.setenv("PIDS", str(pids))
    script = tmp_path / "rank.py"
    script.write_text(RANK.replace("BODY", body))
    return pids, (sys.executable, str(script))


def gone(pids):
    assert pids
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
    return True


def started_pids(folder):
    return [int(path.name) for path in folder.iterdir()]


def test_ranks_that_finish_leave_their_lines(tmp_path, monkeypatch):
    pids, what = command(tmp_path, monkeypatch, "")
    seen = []
    outcome = run_ranks(JOB, 2, timeout_s=20, command=what, progress=lambda done, total: seen.append((done, total)))
    assert (outcome.why, outcome.exit_code) == ("", 0)
    assert [len(lines) for lines in outcome.ranks] == [2, 2]
    assert seen[-1] == (1, 2)
    assert gone(started_pids(pids))


@pytest.mark.parametrize(
    ("body", "why", "code"),
    [
        ("os.kill(os.getpid(), 9) if rank else time.sleep(60)", "rank 1 was ended by SIGKILL", 1),
        ("sys.exit('ValueError: why' if rank else 'Connection closed by peer')", "rank 1 failed: ValueError: why", 1),
        ("sys.stderr.write('it does not fit\\n') and (os._exit(2) if rank else time.sleep(60))", "it does not fit", 2),
        ("os._exit(0) if rank else None", "a rank ended without finishing", 1),
    ],
)  # fmt: skip
def test_when_a_rank_dies_the_others_are_ended_and_what_was_measured_is_kept(tmp_path, monkeypatch, body, why, code):
    pids, what = command(tmp_path, monkeypatch, body)
    begun = time.monotonic()
    outcome = run_ranks(JOB, 2, timeout_s=50, command=what)
    assert time.monotonic() - begun < 40  # nobody waited for the sleeper
    assert (outcome.why, outcome.exit_code) == (why, code)
    assert merge(JOB, outcome.ranks)[0]["repeats"] == 1
    assert gone(started_pids(pids))


def test_ranks_that_take_too_long_are_ended_even_if_they_refuse(tmp_path, monkeypatch):
    monkeypatch.setattr(launch, "PATIENCE", 0.2)
    pids, what = command(tmp_path, monkeypatch, "import signal; signal.signal(15, signal.SIG_IGN); time.sleep(60)")
    outcome = run_ranks(JOB, 2, timeout_s=1.5, command=what)
    assert outcome.why.startswith("not finished after 1.5 s")
    assert gone(started_pids(pids))


def runs(pid):
    """Tell whether a process is there and not a zombie, which only waits for whoever inherited it."""
    done = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False)
    return bool(done.stdout.strip()) and not done.stdout.startswith("Z")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_ranks_end_with_the_one_that_started_them(tmp_path, monkeypatch, number):
    if number == signal.SIGKILL and sys.platform != "linux":
        pytest.skip("only Linux tells processes that their parent was killed")
    pids, what = command(tmp_path, monkeypatch, "from moesim.lab.rank import end_with_parent; end_with_parent(); time.sleep(60)")
    parent = tmp_path / "parent.py"
    parent.write_text(
        "import sys\nfrom moesim.lab.job import *\nfrom moesim.lab.launch import run_ranks\n"
        "job = Job(kind='exchange', cases=(ExchangeCase(name='a', bytes=((0, 8), (8, 0))),), repeats=2)\n"
        f"done = run_ranks(job, 2, timeout_s=50, command={what!r})\n"
        "sys.exit(0 if done.interrupted and len(done.ranks[0]) == 1 else 1)\n"
    )
    process = subprocess.Popen([sys.executable, str(parent)], start_new_session=True)
    until = time.monotonic() + 20
    while len(list(pids.iterdir())) < 2 and time.monotonic() < until:
        time.sleep(0.02)
    time.sleep(0.5)  # past the import, into the sleep
    process.send_signal(number)
    assert process.wait(20) == (-9 if number == signal.SIGKILL else 0)
    until = time.monotonic() + 10
    left = started_pids(pids)
    while time.monotonic() < until:
        left = [pid for pid in left if runs(pid)]
        if not left:
            break
        time.sleep(0.05)
    assert left == []


def test_a_port_in_use_is_refused_by_number():
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(UsageError, match=f"port {port} of this machine is in use"):
            free_port(port)
    assert free_port() > 0


def test_without_pytorch_every_measurement_names_the_extra(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for words in (["compute"], ["exchange"], ["layer"], ["suite"]):
        done = CliRunner().invoke(main, ["measure", *words])
        assert done.exit_code == 2
        assert "pip install 'moesim[measure]'" in done.output
    assert list(tmp_path.iterdir()) == []


def test_a_measurement_from_another_machine_is_shown_without_pytorch(tmp_path):
    files.write(tmp_path, measured())
    done = CliRunner().invoke(main, ["measure", "show", str(tmp_path / "exchange.json")])
    assert done.exit_code == 0
    assert done.output.splitlines()[0].startswith("exchange on a_cpu: 2 ranks, a CPU, PyTorch 2.9")
    assert (
        CliRunner()
        .invoke(main, ["measure", "show", str(tmp_path / "exchange.json"), "--format", "csv"])
        .output.startswith("# source: moesim")
    )


def test_every_command_of_the_how_to_is_one_that_the_program_takes():
    # They need PyTorch, and some need several nodes: what can be tested everywhere is that the words are right.
    page = (Path(__file__).parents[2] / "docs" / "howto" / "measure-your-cluster.md").read_text(encoding="utf-8")
    lines = [line.partition("#")[0] for line in page.splitlines() if re.match(r"(torchrun .* -m )?moesim measure ", line)]
    told = [line.partition("moesim measure ")[2].split() for line in lines]
    assert len(told) >= 8
    for name, *words in told:
        command = measure.command.commands[name]
        command.make_context(name, list(words))
