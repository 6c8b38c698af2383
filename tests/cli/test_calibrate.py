"""``moesim calibrate``: tables, logs of nccl-tests and traces of torch.profiler become profiles; what cannot be used is told."""

import gzip
import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from moesim.cli import main
from moesim.desk.kineto_trace import class_of
from moesim.desk.profile_files import read_profile

SIZES = [2**power for power in range(10, 29)]


def seconds(size, ranks=8):
    """10 us, and 250 GB/s of what leaves a GPU."""
    return 10e-6 + size * (ranks - 1) / max(ranks, 1) / 250e9


def log(device="NVIDIA H100 80GB HBM3", ranks=8, host="node1", test="alltoall_perf"):
    lines = [
        "# nThread 1 nGpus 8 minBytes 1024 maxBytes 268435456 step: 2(factor) warmup iters: 5 iters: 20",
        f"# Collective test starting: {test}" if test else "#",
        "# Using devices",
        *(f"#  Rank  {rank} Group  0 Pid  77 on {host} device  {rank} [0x1{rank}] {device}" for rank in range(ranks)),
        "# nccl-tests version 2.13.6 nccl-headers=22304 nccl-library=22304",
        "#       size         count      type   redop    root     time   algbw   busbw #wrong     time   algbw   busbw #wrong",
        "#        (B)    (elements)                               (us)  (GB/s)  (GB/s)            (us)  (GB/s)  (GB/s)",
    ]
    for size in SIZES:
        time = seconds(size, ranks) * 1e6
        rate = size / time / 1e3
        lines.append(
            f"{size:12d} {size // 64:13d}     float    none      -1 {time:8.2f} {rate:7.2f} {rate:7.2f}      0 "
            f"{time:8.2f} {rate:7.2f} {rate:7.2f}    N/A"
        )
    return "\n".join([*lines, "# Out of bounds values : 0 OK", "# Avg bus bandwidth    : 99.9"]) + "\n"


def trace(group=8, dtype="BFloat16", device="NVIDIA H200"):
    events = [
        {"ph": "X", "cat": "kernel", "name": "ncclDevKernel_SendRecv(x)", "dur": seconds(size, group) * 1e6,
         "args": {"Collective name": "all_to_allv", "In msg nelems": size // 2, "Group size": group, "dtype": dtype,
                  "In split size": "[]", "Out split size": "[]"}}
        for size in SIZES * 2
    ]  # fmt: skip
    events += [
        {"ph": "X", "cat": "kernel", "name": "sm90_grouped_gemm_bf16", "dur": 50.0, "args": {}},
        {"ph": "X", "cat": "kernel", "name": "ncclDevKernel_SendRecv", "dur": 50.0, "args": {}},
        {"ph": "X", "cat": "kernel", "name": "ncclDevKernel_SendRecv", "dur": 50.0,
         "args": {"Collective name": "all_to_allv", "In msg nelems": 64, "Group size": 2, "dtype": "Float", "In split size": "[1, 63]"}},
        {"ph": "X", "cat": "cpu_op", "name": "aten::mm", "dur": 5.0},
        {"ph": "i", "name": "mark"},
        "noise",
    ]  # fmt: skip
    return {"deviceProperties": [{"id": 0, "name": device}], "traceEvents": events}


def run(folder, *words):
    return CliRunner().invoke(main, ["calibrate", str(folder), *map(str, words)])


@pytest.fixture
def folder(tmp_path):
    found = tmp_path / "in"
    found.mkdir()
    return found


def test_a_log_of_nccl_tests_becomes_a_profile(folder, tmp_path):
    (folder / "alltoall.log").write_text(log(), encoding="utf-8")
    done = run(folder, "-o", tmp_path / "p.yaml", "--date", "2026-11", "--name", "mine")
    assert done.exit_code == 0, done.output
    profile = read_profile(tmp_path / "p.yaml")
    assert (profile.name, profile.gpu, profile.made) == ("mine", "h100-sxm", "2026-11")
    section = profile.sections["nccl_all_to_all"]
    assert section.rows == len(SIZES)
    assert section.fitted_range["bytes_per_rank"] == (SIZES[0], SIZES[-1])
    assert section.basis in {"fitted", "assumed"}
    # The log follows latency plus bytes over bandwidth exactly, and the model holds that as a special case.
    assert "left out one by one" in done.stdout
    again = run(folder, "-o", tmp_path / "again.yaml", "--date", "2026-11", "--name", "mine")
    assert again.exit_code == 0
    assert (tmp_path / "again.yaml").read_bytes() == (tmp_path / "p.yaml").read_bytes()


def test_the_errors_of_a_fit_stand_in_the_json(folder, tmp_path):
    (folder / "alltoall.log").write_text(log(), encoding="utf-8")
    done = run(folder, "-o", tmp_path / "p.yaml", "--format", "json")
    told = json.loads(done.stdout)
    (table,) = told["tables"]
    assert table["fitted_rows"]["mape"] < 3
    assert [item["way"] for item in table["held_back"]] == ["row"]
    assert table["held_back"][0]["n"] == len(SIZES)
    assert table["held_back"][0]["mape"] < 15
    assert set(told["profiles"]) == {"h100-sxm"}


@pytest.mark.parametrize("packed", [False, True])
def test_all_to_alls_of_a_trace_become_a_profile(folder, tmp_path, packed):
    text = json.dumps(trace()).encode()
    (folder / ("t.json.gz" if packed else "t.json")).write_bytes(gzip.compress(text) if packed else text)
    done = run(folder, "-o", tmp_path / "p.yaml", "--no-check")
    assert done.exit_code == 0, done.output
    profile = read_profile(tmp_path / "p.yaml")
    assert profile.gpu == "h200-sxm"
    assert profile.sections["nccl_all_to_all"].rows == len(SIZES)  # the two kernels of each size are one row


def test_a_table_and_a_log_of_one_gpu_are_fitted_together(folder, tmp_path):
    (folder / "alltoall.log").write_text(log(), encoding="utf-8")
    (folder / "alltoall-4.log").write_text(log(ranks=4), encoding="utf-8")
    done = run(folder, "-o", tmp_path / "p.yaml")
    assert done.exit_code == 0, done.output
    section = read_profile(tmp_path / "p.yaml").sections["nccl_all_to_all"]
    assert section.rows == 2 * len(SIZES)
    assert section.fitted_range["num_gpus"] == (4, 8)
    assert "left out group by group (2)" in done.stdout


def test_several_gpus_go_into_a_folder_or_one_is_chosen(folder, tmp_path):
    (folder / "a-alltoall.log").write_text(log(), encoding="utf-8")
    (folder / "b-alltoall.log").write_text(log(device="NVIDIA A100-SXM4-80GB"), encoding="utf-8")
    refused = run(folder, "-o", tmp_path / "p.yaml", "--no-check")
    assert refused.exit_code == 2
    assert "choose one with --gpu" in refused.stderr
    assert not (tmp_path / "p.yaml").exists()
    done = run(folder, "-o", tmp_path / "all", "--no-check")
    assert done.exit_code == 0
    assert sorted(path.name for path in (tmp_path / "all").iterdir()) == ["a100-sxm-80.yaml", "h100-sxm.yaml"]


def test_a_gpu_can_be_named_where_the_log_does_not(folder, tmp_path):
    (folder / "alltoall.log").write_text(log(device="Graphics Device"), encoding="utf-8")
    refused = run(folder, "-o", tmp_path / "p.yaml")
    assert refused.exit_code == 2
    done = run(folder, "-o", tmp_path / "p.yaml", "--gpu", "b200-sxm", "--no-check")
    assert done.exit_code == 0, done.output
    assert read_profile(tmp_path / "p.yaml").gpu == "b200-sxm"


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("allreduce.log", log(test="all_reduce_perf"), "only all-to-alls are fitted"),
        ("nccl.log", log(test=""), "put 'alltoall' into the file's name"),
        ("alltoall.log", log(ranks=0), "does not list its ranks"),
        ("alltoall.log", log().replace("on node1 device  7", "on node2 device  7"), "ran on 2 hosts"),
        ("notes.txt", "hello", "no log of nccl-tests"),
        ("t.json", json.dumps({"traceEvents": []}), "holds no GPU kernel"),
        ("t.json", "{", "not JSON"),
        ("t.json.gz", "plain", "cannot be read"),
        ("t.pdf", "x", "neither a table, a log nor a trace"),
        ("nccl_alltoall_intranode.csv", "system,num_gpus,bytes_per_rank,time_us\nh200_sxm,8,1024,9\n", "at least 10 are needed"),
        (
            "nccl_alltoall_intranode.csv",
            "system,num_gpus,bytes_per_rank,time_us\n" + "h200_sxm,8,1024,9\n" * 12,
            "bytes_per_rank holds only 1024",
        ),
        (
            "nccl_alltoall_intranode.csv",
            "system,num_gpus,bytes_per_rank,time_us\n" + "h200_sxm,8,1024,-9\n" * 12,
            "no row of the table can be used: line 2: column time_us: the time -9 is negative",
        ),
    ],
)
def test_what_cannot_be_used_is_told_and_nothing_is_written(folder, tmp_path, name, content, why):
    (folder / name).write_text(content, encoding="utf-8")
    done = run(folder, "-o", tmp_path / "p.yaml")
    assert done.exit_code == 2
    assert why in done.stdout
    assert "nothing could be fitted" in done.stderr
    assert "Traceback" not in done.output
    assert not (tmp_path / "p.yaml").exists()


def test_a_trace_without_sizes_says_what_it_holds(folder, tmp_path):
    found = trace()
    found["traceEvents"] = found["traceEvents"][-6:]
    (folder / "t.json").write_text(json.dumps(found), encoding="utf-8")
    done = run(folder, "-o", tmp_path / "p.yaml")
    assert done.exit_code == 2
    assert "grouped GEMM: 1 kernels, 0.05 ms, median 50 us" in done.stdout
    assert "does not state its size" in done.stdout
    assert "has unequal splits" in done.stdout


def test_kernels_are_told_apart_by_their_names():
    names = {
        "ncclDevKernel_SendRecv(x)": "all-to-all",
        "void deep_ep::intranode::dispatch<8>": "all-to-all",
        "ncclDevKernel_AllReduce_Sum_bf16_RING_LL": "other collectives",
        "fused_moe_kernel": "grouped GEMM",
        "void flash_fwd_kernel": "attention",
        "sm90_xmma_gemm_bf16bf16": "GEMM",
        "vectorized_elementwise_kernel": "other kernels",
    }
    assert {name: class_of(name) for name in names} == names


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["--gpu", "h20O"], "no preset 'h20O'"),
        (["--date", "2026-13"], "is not a month"),
        (["--name", "x"], "--name is for one profile"),
    ],
)
def test_bad_arguments(folder, tmp_path, words, why):
    (folder / "alltoall.log").write_text(log(), encoding="utf-8")
    done = run(folder, "-o", tmp_path / ("out" if "--name" in words else "p.yaml"), *words)
    assert done.exit_code == 2
    assert why in done.stderr


def test_a_profile_that_cannot_be_written_is_told_after_the_answer(folder, tmp_path):
    (folder / "alltoall.log").write_text(log(), encoding="utf-8")
    done = run(folder, "-o", tmp_path / "no" / "p.yaml", "--no-check")
    assert done.exit_code == 1
    assert "cannot write" in done.stderr
    assert "h100-sxm: 1 section" in done.stdout
    assert not Path(tmp_path / "no").exists()


@pytest.mark.parametrize("name", ["alltoall_2.log", "a2a-8.log", "h100_all_to_all_perf_n8.txt", "AllToAll.H100.out"])
def test_the_name_of_a_file_says_that_its_log_is_an_all_to_all(folder, tmp_path, name):
    (folder / name).write_text(log(test=""), encoding="utf-8")  # older programs print no name of the test
    done = run(folder, "-o", tmp_path / "p.yaml", "--no-check")
    assert done.exit_code == 0, done.output


@pytest.mark.parametrize("name", ["all_reduce_2.log", "reduce-scatter.log", "call_to_allen.log"])
def test_other_names_do_not(folder, tmp_path, name):
    (folder / name).write_text(log(test=""), encoding="utf-8")
    assert run(folder, "-o", tmp_path / "p.yaml").exit_code == 2


def test_rows_of_a_gpu_without_a_data_sheet_are_named_among_what_was_not_used(folder, tmp_path):
    (folder / "alltoall_h100.log").write_text(log(), encoding="utf-8")
    (folder / "alltoall_v100.log").write_text(log(device="Tesla V100-SXM2"), encoding="utf-8")
    done = run(folder, "-o", tmp_path / "p.yaml", "--no-check", "--format", "json")
    assert done.exit_code == 0, done.output
    (unused,) = json.loads(done.stdout)["unused"]
    assert "v100" in unused["file"]
    assert "no GPU preset goes by the system name 'Tesla V100-SXM2'" in unused["reason"]


def test_rows_of_such_a_gpu_among_others_are_counted(folder, tmp_path):
    rows = "".join(f"{gpu},8,{size},{seconds(size) * 1e6}\n" for gpu in ("h200_sxm", "v100") for size in SIZES)
    (folder / "nccl_alltoall_mine.csv").write_text("system,num_gpus,bytes_per_rank,time_us\n" + rows, encoding="utf-8")
    done = run(folder, "-o", tmp_path / "p.yaml", "--no-check", "--format", "json")
    assert done.exit_code == 0, done.output
    (unused,) = json.loads(done.stdout)["unused"]
    assert unused["reason"].startswith(f"{len(SIZES)} rows left out: no GPU preset goes by the system name 'v100'")
    assert read_profile(tmp_path / "p.yaml").sections["nccl_all_to_all"].rows == len(SIZES)


def test_rows_that_were_left_out_of_a_fit_are_named(folder, tmp_path):
    head = "system,num_gpus,bytes_per_rank,time_us\n"
    good = "".join(f"h200_sxm,8,{size},{seconds(size) * 1e6}\n" for size in SIZES)
    (folder / "nccl_alltoall_mine.csv").write_text(f"{head}{good}h200_sxm,8,,9\nh200_sxm,8,4096,-1\n", encoding="utf-8")
    done = run(folder, "-o", tmp_path / "p.yaml", "--no-check", "--format", "json")
    assert done.exit_code == 0, done.output
    reasons = [item["reason"] for item in json.loads(done.stdout)["unused"]]
    assert any("bytes_per_rank is empty" in reason for reason in reasons)
    assert any("negative" in reason for reason in reasons)


def test_times_that_have_nothing_to_do_with_sizes_are_refused(folder, tmp_path):
    # 128 MiB in the 10 us of 1 KiB would be 13 TB/s; the best fit at the link's peak is off by hundreds of per cent.
    rows = "".join(f"h200_sxm,8,{2**power},10\n" for power in range(10, 28))
    (folder / "nccl_alltoall_mine.csv").write_text("system,num_gpus,bytes_per_rank,time_us\n" + rows, encoding="utf-8")
    done = run(folder, "-o", tmp_path / "p.yaml")
    assert done.exit_code == 2
    assert "misses the rows of h200_sxm" in done.output
    assert not (tmp_path / "p.yaml").exists()
