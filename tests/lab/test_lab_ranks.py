"""Real ranks: processes that exchange real bytes through torch.distributed on this machine."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jsonschema
import pytest
from click.testing import CliRunner

torch = pytest.importorskip("torch", reason="measuring needs PyTorch: pip install 'moesim[measure]'")

from lab_layers import reference  # noqa: E402

from moesim.cli import main  # noqa: E402
from moesim.desk.measured_tables import read_measured  # noqa: E402
from moesim.lab.device import Device  # noqa: E402
from moesim.lab.experts import make_weights  # noqa: E402
from moesim.lab.files import json_schema, read_measurement  # noqa: E402
from moesim.lab.job import ExchangeCase, Job  # noqa: E402
from moesim.lab.launch import free_port, run_ranks  # noqa: E402
from moesim.lab.merging import merge  # noqa: E402
from moesim.lab.moe_layer import Shape  # noqa: E402
from moesim.lab.routing import make_gate  # noqa: E402

NEEDS_NO_GPU = pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")


def moesim(*words: str):
    return CliRunner().invoke(main, ["measure", *words])


def test_a_layer_on_two_ranks_computes_what_one_process_does(tmp_path):
    words = "--ranks 2 --shape 16x8x4x2 --tokens 12 --skew 1 --capacity-factor none,1 --repeats 2 --warmup 0 --device cpu --seed 3"
    done = moesim("layer", *words.split(), "-o", str(tmp_path), "--licence", "CC0-1.0")
    assert done.exit_code == 0, done.output
    found = read_measurement(tmp_path / "layer.json")
    jsonschema.validate(found, json_schema())
    assert (found["partial"], found["ranks"], found["settings"]["seed"]) == (False, 2, 3)

    cpu = Device("cpu")
    gate = make_gate(cpu.generator(3 * 31 + 7), 4, 16, 1.0, in_order=False)
    weights = make_weights(3, range(4), 16, 8, "float32", cpu)
    inputs = [torch.randn(12, 16, generator=cpu.generator(3 * 1_000_003 + 500_009 + rank)) for rank in range(2)]
    for case, factor in zip(found["cases"], (None, 1.0), strict=True):
        shape = Shape(experts=4, top_k=2, capacity_factor=factor, drop="probs", kernel="loop")
        outputs, (leaves, gate_weight, up, down), kept = reference(shape, gate, weights, inputs)
        slopes = torch.autograd.grad(outputs, (*leaves, gate_weight, up, down), [torch.ones_like(x) for x in inputs])
        facts = case["facts"]
        assert facts["kept"] == kept
        assert facts["dropped"] == [24 - sum(rows) for rows in kept]
        assert case["samples"]["dropped"] == [facts["dropped"]] * 2
        for rank in range(2):
            sums = facts["sums"][rank]
            assert sums["output"] == pytest.approx(float(outputs[rank].detach().sum()), abs=1e-4)
            assert sums["x"] == pytest.approx(float(slopes[rank].sum()), abs=1e-4)
            assert sums["up"] == pytest.approx(float(slopes[3][2 * rank : 2 * rank + 2].sum()), abs=1e-4)
            assert sums["down"] == pytest.approx(float(slopes[4][2 * rank : 2 * rank + 2].sum()), abs=1e-4)
        assert sum(rank["gate"] for rank in facts["sums"]) == pytest.approx(float(slopes[2].sum()), abs=1e-4)
        # Phases follow each other on every rank, and the step is as long as its slowest rank.
        marks = case["samples"]["marks_s"]
        assert all(rank == sorted(rank) for repeat in marks for rank in repeat)
        longest = [max(rank[-1] for rank in repeat) - min(rank[0] for rank in repeat) for repeat in marks]
        assert case["results"]["step"]["max"] == pytest.approx(max(longest))
        assert case["results"]["step"]["min"] >= case["results"]["forward"]["min"] > 0
    table = read_measured(tmp_path / "layer.csv")
    assert table.rows["pass"].tolist() == ["forward", "forward_backward"] * 2
    counts = read_measured(tmp_path / "layer_expert_counts.csv").rows["counts"]
    assert counts[3] == " ".join(map(str, found["cases"][1]["facts"]["kept"][1]))
    assert len(read_measured(tmp_path / "layer_phases.csv").rows["phase"]) == 2 * 2 * 16


def test_ranks_that_torchrun_started_leave_one_measurement(tmp_path):
    port = free_port()
    words = [
        "exchange",
        "--patterns",
        "even,zipf",
        "--sizes",
        "1K,100K",
        "--repeats",
        "3",
        "--device",
        "cpu",
        "--format",
        "json",
        "--quiet",
    ]
    processes = []
    for rank in range(2):
        environment = {**os.environ, "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
        environment |= {"MASTER_PORT": str(port), "GLOO_SOCKET_IFNAME": "lo" if sys.platform == "linux" else "lo0"}
        processes.append(
            subprocess.Popen(
                [sys.executable, "-m", "moesim", "measure", *words, "-o", str(tmp_path / f"of{rank}")],
                env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            )
        )  # fmt: skip
    said = [process.communicate(timeout=150) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], said
    assert said[1] == ("", "")  # one voice is enough
    assert not (tmp_path / "of1").exists()
    found = read_measurement(tmp_path / "of0" / "exchange.json")
    assert json.loads(said[0][0]) == found
    assert len(found["cases"]) == 8  # 2 patterns × 2 sizes × own and library
    for case in found["cases"]:
        assert case["facts"]["correct"] is True
        assert case["repeats"] == 3
        samples = case["samples"]
        for arrival, start, end in zip(samples["arrival_s"], samples["start_s"], samples["end_s"], strict=True):
            assert start == [max(arrival)] * 2  # two ranks: bytes move when both are there
            assert all(early <= late for early, late in zip(arrival, end, strict=True))
        facts, seconds = case["facts"], case["results"]["rank_time"]["median"]
        assert facts["algbw"] == pytest.approx(facts["bytes_per_rank"] / seconds)
        assert facts["busbw"] == pytest.approx(facts["algbw"] / 2, rel=0.05)  # one of two shares leaves, up to 16 bytes
    assert len(found["rank_headers"]) == 2


APART = """
import os, sys
from moesim.lab import rank, session
session.machine = lambda: (os.environ["RANK"] * 12)[:12]
os._exit(rank.main(sys.argv[1:]))
"""
"""A rank that believes to be on a machine of its own, so that it must ask rank 0 for the time."""


def test_staggered_ranks_arrive_one_after_the_other_and_every_message_is_timed(tmp_path):
    case = ExchangeCase(name="a", bytes=((0, 5), (3, 0)), stagger_s=(0.0, 0.03))
    job = Job(kind="exchange", cases=(case,), repeats=2, flows=True, device="cpu", backend="gloo")
    script = tmp_path / "apart.py"
    script.write_text(APART)
    outcome = run_ranks(job, 2, timeout_s=150, command=(sys.executable, str(script)))
    assert outcome.why == ""
    first, second = (lines[0] for lines in outcome.ranks)
    assert (first["offset_s"], first["offset_error_s"]) == (0.0, 0.0)
    # Both read the same clock: what is found is what the method gets wrong, and it says how much that may be.
    assert second["offset_error_s"] > 0
    assert abs(second["offset_s"]) <= second["offset_error_s"]
    samples = merge(job, outcome.ranks)[0]["samples"]
    for arrival, start, end, flows in zip(*(samples[name] for name in ("arrival_s", "start_s", "end_s", "flows_s")), strict=True):
        assert arrival[1] >= 0.03
        assert start == [max(arrival)] * 2
        assert end[0] >= arrival[1] - second["offset_error_s"]  # what rank 0 waits for is sent from then on
        assert [sorted(item) for item in flows] == [["1"], ["0"]]
        assert flows[0]["1"] <= end[0]


def test_kernels_are_measured_and_what_a_device_cannot_do_is_said(tmp_path):
    words = "--shape 16x16x4x2 --tokens 3,8 --ep 1,2 --repeats 2 --warmup 0 --device cpu --operations ffn,gate,permute"
    words += " --kernel loop,scaled_grouped_mm"
    done = moesim("compute", *words.split(), "-o", str(tmp_path), "--system", "My Box")
    assert done.exit_code == 0, done.output
    found = read_measurement(tmp_path / "compute.json")
    jsonschema.validate(found, json_schema())
    good = [case for case in found["cases"] if "results" in case]
    bad = [case for case in found["cases"] if "error" in case]
    # ffn: 2 EP × 2 kernels × 2 distributions × 2 sizes, half of them impossible; gate: 2 EP × 2 sizes; permute: 2 × 2 × 2.
    assert (len(good), len(bad)) == (8 + 4 + 8, 8)
    assert all("does not work with float32 on cpu here" in case["error"] for case in bad)
    assert " and 7 more: kernel 'scaled_grouped_mm' does not work with float32 on cpu here" in done.output
    ffn = next(case for case in good if case["parameters"]["operation"] == "ffn" and case["parameters"]["ep"] == 2)
    assert ffn["facts"]["rows"] == sum(ffn["facts"]["rows_per_expert"])
    assert len(ffn["facts"]["rows_per_expert"]) == 2
    assert ffn["results"]["time"]["min"] > 0
    rows = read_measured(tmp_path / "compute.csv").rows
    assert set(rows["system"]) == {"my_box"}
    assert len(rows["time_us"]) == 20


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds the ranks through /proc")
def test_a_rank_that_is_killed_ends_the_measurement_and_what_is_there_is_kept(tmp_path):
    words = "layer --shape 8x8x4x2 --skew 0 --capacity-factor none --ranks 2 --repeats 10000 --device cpu --timeout 300s --quiet"
    (tmp_path / "work").mkdir()
    process = subprocess.Popen(
        [sys.executable, "-m", "moesim", "measure", *words.split(), "-o", str(tmp_path / "out")],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(tmp_path / "work")},
    )
    until = time.monotonic() + 150
    while time.monotonic() < until and process.poll() is None:
        if any('"repeat": 9,' in log.read_text() for log in tmp_path.glob("work/moesim-*/rank-1.jsonl")):
            break
        time.sleep(0.05)
    ranks = [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]
    os.kill(ranks[1], signal.SIGKILL)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "rank 1 was ended by SIGKILL; what was measured is in" in said
    assert "Traceback" not in said
    found = read_measurement(tmp_path / "out" / "layer.json")
    assert found["partial"] is True
    assert found["cases"][0]["repeats"] >= 9
    assert list((tmp_path / "work").iterdir()) == []
    for pid in ranks:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


@NEEDS_NO_GPU
@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("exchange --backend nccl", "PyTorch sees no CUDA device on this machine: NCCL and --device cuda need one"),
        ("layer --device cuda", "PyTorch sees no CUDA device"),
        ("exchange --backend nccl --device cpu", "exclude each other"),
        ("layer --ranks 3", "16 experts cannot be split evenly over 3 ranks"),
        ("layer --shape 8x8x4", "'8x8x4' is not HIDDENxWIDTHxEXPERTSxTOPK"),
        ("layer --shape 8x8x4x5 --ranks 2", "top_k is 5, but there are only 4 experts"),
        ("layer --capacity-factor 0", "--capacity-factor: 0 is out of range"),
        ("layer --skew x", "--skew: 'x' is not a number"),
        ("exchange --sizes 1K,x", "--sizes: "),
        ("exchange --patterns evn", "--patterns: unknown 'evn'; did you mean 'even'?"),
        ("exchange --matrix none.csv", "none.csv: no such file"),
        ("compute --distribution zipf", "unknown distribution 'zipf'"),
        ("compute --ep 3", "--ep 3 divides the experts of no shape"),
        ("compute --tokens 1.5", "--tokens: '1.5' must hold whole numbers"),
        ("suite --timeout 10", "--timeout: "),
        ("layer -o file", "cannot make the folder"),
    ],
)
def test_bad_input_is_refused_before_anything_is_measured(tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("")
    done = moesim(*words.split())
    assert done.exit_code == 2, done.output
    assert message in done.output
    assert "Traceback" not in done.output
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file"]


def test_a_rank_says_what_its_environment_lacks(tmp_path, monkeypatch):
    from moesim.lab.rank import place_of

    assert place_of({"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "a", "MASTER_PORT": "1"}) == (1, 2)
    for environment, message in (
        ({"RANK": "1"}, "the environment lacks WORLD_SIZE, MASTER_ADDR, MASTER_PORT"),
        ({"RANK": "x", "WORLD_SIZE": "2", "MASTER_ADDR": "a", "MASTER_PORT": "1"}, "must be whole numbers"),
        ({"RANK": "2", "WORLD_SIZE": "2", "MASTER_ADDR": "a", "MASTER_PORT": "1"}, "RANK=2 is out of range"),
    ):
        with pytest.raises(Exception, match=message):
            place_of(environment)


def test_a_core_that_is_not_there_is_named():
    job = Job(kind="exchange", cases=(ExchangeCase(name="a", bytes=((8,),)),), cores=(9999,), device="cpu")
    outcome = run_ranks(job, 1, timeout_s=150)
    assert "rank 0 cannot run on core 9999" in outcome.why
    assert outcome.exit_code == 2
