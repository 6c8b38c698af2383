"""``moesim place``: the JSON that scripts rely on, every source of loads, exports, and what bad input is told."""

from __future__ import annotations

import csv
import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
import yaml
from click.testing import CliRunner, Result
from hypothesis import given, settings
from hypothesis import strategies as st
from scenario_texts import SMALL

from moesim.base.registry import kinds
from moesim.base.units import parse_quantity
from moesim.cli import main
from moesim.desk.place_loads import read_loads
from moesim.desk.place_plan import TIMED, Sizes, place, planning_seconds
from moesim.desk.placement_files import read_placement
from moesim.desk.presets.models import model_preset
from moesim.desk.trace_files import read_trace
from moesim.models.placement.planners import PLANNERS

SHIPPED = str(Path(__file__).parents[2] / "scenarios" / "traces" / "deepseek-v2-lite-intent.npz")
LOADS = np.random.default_rng(7).poisson(np.exp(np.random.default_rng(8).normal(5, 1, (3, 16))))
CONTRACT = {"physical_to_logical_map", "logical_count", "gpu_load", "max_over_mean"}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    np.save("loads.npy", LOADS)
    return tmp_path


def invoke(*words: object) -> Result:
    return CliRunner().invoke(main, ["place", *(str(word) for word in words)])


def answer(*words: object) -> dict:
    done = invoke(*words, "--format", "json")
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def check_answer(found: dict, loads: np.ndarray, slots: int, gpus: int) -> None:
    """The four keys agree with each other and with the loads."""
    layers, experts = loads.shape
    held = np.asarray(found["physical_to_logical_map"])
    assert held.shape == (layers, slots)
    count = np.stack([np.bincount(row, minlength=experts) for row in held])
    np.testing.assert_array_equal(count, found["logical_count"])
    assert count.min() >= 1
    share = np.take_along_axis(loads / count, held, axis=1)
    gpu_load = share.reshape(layers, gpus, -1).sum(axis=2)
    np.testing.assert_allclose(found["gpu_load"], gpu_load, rtol=1e-12)
    np.testing.assert_allclose(np.sum(found["gpu_load"], axis=1), loads.sum(axis=1), rtol=1e-12)
    mean = gpu_load.mean(axis=1)
    np.testing.assert_allclose(found["max_over_mean"], np.where(mean > 0, gpu_load.max(axis=1) / np.where(mean > 0, mean, 1), 1), rtol=1e-9)


def test_the_json_that_scripts_rely_on() -> None:
    found = answer("--kind", "eplb", "--loads", "loads.npy", "--slots", 24, "--gpus", 8, "--nodes", 2, "--groups", 4)
    assert set(found) >= CONTRACT
    check_answer(found, LOADS, 24, 8)
    assert (found["schema"], found["slots"], found["gpus"], found["nodes"], found["groups"]) == (1, 24, 8, 2, 4)
    assert max(found["max_over_mean"]) < min(found["max_over_mean_in_order"])
    in_order = LOADS.reshape(3, 8, 2).sum(axis=2)
    np.testing.assert_allclose(found["max_over_mean_in_order"], in_order.max(axis=1) / in_order.mean(axis=1))
    assert found["memory"] is None


def test_the_readme_example_of_eplb() -> None:
    # The example of the README of deepseek-ai/EPLB: 12 experts in 16 slots on 8 GPUs of 2 nodes, 4 groups. Its replica counts are those of
    # the printed map, and its GPU loads follow.
    loads = np.asarray([[90, 132, 40, 61, 104, 165, 39, 4, 73, 56, 183, 86], [20, 107, 104, 64, 19, 197, 187, 157, 172, 86, 16, 27]])
    printed = np.asarray([[5, 6, 5, 7, 8, 4, 3, 4, 10, 9, 10, 2, 0, 1, 11, 1], [7, 10, 6, 8, 6, 11, 8, 9, 2, 4, 5, 1, 5, 0, 3, 1]])
    np.save("readme.npy", loads)
    found = answer("--kind", "eplb", "--loads", "readme.npy", "--slots", 16, "--gpus", 8, "--nodes", 2, "--groups", 4)
    check_answer(found, loads, 16, 8)
    count = np.stack([np.bincount(row, minlength=12) for row in printed])
    np.testing.assert_array_equal(found["logical_count"], count)
    share = np.take_along_axis(loads / count, printed, axis=1).reshape(2, 8, 2).sum(axis=2)
    np.testing.assert_allclose(np.sort(found["gpu_load"], axis=1), np.sort(share, axis=1), rtol=1e-6)


@pytest.mark.parametrize("kind", sorted(PLANNERS))
@given(seed=st.integers(0, 2**32 - 1), experts=st.integers(4, 12), extra=st.integers(0, 2), steps=st.booleans())
@settings(max_examples=8, deadline=None)
def test_l11_every_planner_gives_every_expert_a_slot_and_keeps_the_load(tmp_path_factory, kind, seed, experts, extra, steps) -> None:
    rng = np.random.default_rng(seed)
    file = tmp_path_factory.mktemp("place") / "loads.npy"
    loads = rng.poisson(np.exp(rng.normal(3, 1.5, (2, 2, experts) if steps else (2, experts))))
    np.save(file, loads)
    slots = (-(-experts // 4) + extra) * 4
    done = invoke("--kind", kind, "--loads", file, "--slots", slots, "--gpus", 4, "--format", "json")
    if done.exit_code == 2 and kind in done.stderr:
        return  # a planner may refuse sizes by its name: the sizes of the other tests it takes
    assert done.exit_code == 0, done.output
    check_answer(json.loads(done.stdout), loads.sum(axis=0) if steps else loads, slots, 4)


@pytest.mark.parametrize("kind", sorted(PLANNERS))
def test_every_planner_takes_plain_sizes_and_is_a_placement_too(kind: str) -> None:
    found = answer("loads.npy", "--kind", kind, "--slots", 24, "--gpus", 8)
    check_answer(found, LOADS, 24, 8)
    assert kind in kinds("placement")


def test_numbers_in_csv_and_json_are_the_same_loads(folder: Path) -> None:
    np.savetxt("loads.csv", LOADS, delimiter=",", fmt="%d", header="three layers")
    (folder / "loads.json").write_text(json.dumps({"logical_count": LOADS.tolist()}))
    wanted = answer("loads.npy", "--slots", 24, "--gpus", 8)
    for name in ("loads.csv", "loads.json"):
        assert answer(name, "--slots", 24, "--gpus", 8) == wanted | {"name": name}


def test_steps_are_added_up(folder: Path) -> None:
    np.save("steps.npy", np.stack([LOADS, LOADS, np.zeros_like(LOADS)]))
    wanted = answer("loads.npy", "--slots", 24, "--gpus", 8)
    found = answer("steps.npy", "--slots", 24, "--gpus", 8)
    assert found["physical_to_logical_map"] == wanted["physical_to_logical_map"]
    np.testing.assert_allclose(found["gpu_load"], 2 * np.asarray(wanted["gpu_load"]))


def test_the_routes_of_a_recording_are_counted() -> None:
    trace = read_trace(SHIPPED)
    direct = np.stack([np.bincount(trace.ids[:, layer].ravel(), minlength=64) for layer in range(26)])
    found = answer(SHIPPED, "--slots", 72, "--gpus", 8, "--model", "deepseek-v2-lite")
    check_answer(found, direct, 72, 8)
    assert found["layers"] == list(range(1, 27))
    assert found["warnings"] == []
    expert = model_preset("deepseek-v2-lite").expert_bytes
    # 8 redundant experts in 26 layers, one for each GPU; 9 slots on each.
    assert found["memory"] == {
        "redundant_bytes_per_gpu": 26 * expert,
        "redundant_bytes": 8 * 26 * expert,
        "expert_bytes_per_gpu": 9 * 26 * expert,
    }


def test_a_table_of_counts_keeps_the_numbers_of_its_layers(folder: Path) -> None:
    lines = ["layer,expert,token_count", *(f"{layer},{expert},{10 * layer + expert}" for layer in (3, 4) for expert in range(4))]
    (folder / "counts.csv").write_text("\n".join(lines) + "\n")
    done = invoke("counts.csv", "--slots", 6, "--gpus", 2, "--format", "json")
    found = json.loads(done.stdout)
    assert found["layers"] == [3, 4]
    assert (
        "counts.csv does not state its number of experts: 4 are taken from its largest id; if there are more, give --experts" in done.stderr
    )
    check_answer(found, np.asarray([[30, 31, 32, 33], [40, 41, 42, 43]]), 6, 2)
    more = invoke("counts.csv", "--slots", 6, "--gpus", 2, "--experts", 5, "--format", "json")
    assert more.stderr == ""
    check_answer(json.loads(more.stdout), np.asarray([[30, 31, 32, 33, 0], [40, 41, 42, 43, 0]]), 6, 2)


def test_steps_of_a_recording_stay_apart_for_planners_that_look_at_them(folder: Path) -> None:
    # Expert 0 is hot in the first step, expert 1 in the second; the sum alone would not tell.
    ids = np.asarray([[[0]]] * 30 + [[[1]]] * 30 + [[[2]]] * 10 + [[[3]]] * 10)
    order = np.argsort(np.asarray([0] * 30 + [1] * 30 + [0] * 10 + [1] * 10), kind="stable")
    np.savez("t.npz", ids=ids[order], step=np.repeat([0, 1], 40), source=np.zeros(80, dtype=int), experts=4)
    from moesim.desk.place_loads import read_loads

    assert read_loads("t.npz").loads.tolist() == [[[30, 0, 10, 0]], [[0, 30, 0, 10]]]
    check_answer(answer("t.npz", "--kind", "eplb_sglang", "--slots", 6, "--gpus", 2), np.asarray([[30, 30, 10, 10]]), 6, 2)


def test_the_folder_of_a_run_knows_its_model_and_its_machine(folder: Path) -> None:
    (folder / "small.yaml").write_text(SMALL)
    assert CliRunner().invoke(main, ["run", "small.yaml", "-o", "out", "--no-report", "--quiet"]).exit_code == 0
    routes = np.zeros((2, 16))
    for row in csv.DictReader(io.StringIO((folder / "out" / "experts.csv").read_text())):
        routes[int(row["moe_layer"]), int(row["expert"])] = int(row["routes"])
    found = answer("out", "--slots", 24)
    assert (found["gpus"], found["nodes"], found["groups"], found["layers"]) == (8, 2, 1, [0, 1])
    check_answer(found, routes, 24, 8)
    assert answer("out")["slots"] == 16
    assert answer("out", "--gpus", 4)["nodes"] == 1
    (folder / "out" / "experts.csv").unlink()
    done = invoke("out")
    assert done.exit_code == 2
    assert "experts.csv" in done.stderr


@pytest.mark.parametrize("form", ["sglang", "tensorrt-llm", "vllm-ascend"])
def test_l13_an_export_is_the_plan_that_was_printed(folder: Path, form: str) -> None:
    name = "plan.yaml" if form == "tensorrt-llm" else "plan.json"
    words = [SHIPPED, "--kind", "contiguous", "--slots", 72, "--gpus", 8, "--model", "deepseek-v2-lite", "--export", form, "-o", name]
    done = invoke(*words, "--format", "json")
    assert done.exit_code == 0, done.output
    assert done.stderr == f"Placement for {form} in {name}\n"
    slots, problems = read_placement(folder / name, {})
    assert problems == []
    found = slots.of_model(model_preset("deepseek-v2-lite"))
    np.testing.assert_array_equal(found, json.loads(done.stdout)["physical_to_logical_map"])
    assert len(slots.rows) == {"sglang": 27}.get(form, 26)


def test_a_model_with_dense_layers_needs_to_be_named_for_their_numbers(folder: Path) -> None:
    done = invoke("loads.npy", "--slots", 24, "--gpus", 8, "--export", "tensorrt-llm", "-o", "p.yaml")
    assert "Warning: nothing says which layers of the model these are: they are numbered from 0; give --model" in done.stderr
    assert list(yaml.safe_load((folder / "p.yaml").read_text())["initial_global_assignments"]) == [0, 1, 2]


def test_loads_of_all_layers_of_a_model_are_taken_with_its_dense_ones_empty(folder: Path) -> None:
    # SGLang records a row for every layer; the dense first layer of this model has none.
    loads = np.random.default_rng(1).poisson(100, (27, 64))
    loads[0] = 0
    np.save("all.npy", loads)
    found = answer("all.npy", "--slots", 64, "--gpus", 8, "--model", "deepseek-v2-lite", "--export", "tensorrt-llm", "-o", "p.yaml")
    assert found["layers"] == list(range(27))
    assert found["max_over_mean"][0] == 1
    assert list(yaml.safe_load((folder / "p.yaml").read_text())["initial_global_assignments"]) == list(range(1, 27))
    loads[0, 3] = 1
    np.save("all.npy", loads)
    done = invoke("all.npy", "--slots", 64, "--gpus", 8, "--model", "deepseek-v2-lite")
    assert done.exit_code == 2
    assert "layer 0 has loads, but it is a dense layer of deepseek-v2-lite" in done.stderr


def test_the_table_and_the_csv(folder: Path) -> None:
    np.save("two.npy", np.asarray([[60, 20, 10, 10], [0, 0, 0, 0]]))
    done = invoke("two.npy", "--slots", 6, "--gpus", 2)
    lines = done.stdout.splitlines()
    assert lines[0] == "two.npy: 2 layers, 4 experts, planned by eplb"
    assert lines[1] == "6 slots on 2 GPUs in 1 node, 1 group of experts"
    # In order: 80 and 20, 1.6 times the mean. Three replicas of expert 0 are 20 each, like expert 1: 20 + 20 + 10 on both.
    assert lines[5].split() == ["0", "1.600", "1.000", "0,", "3", "replicas,", "2.4", "times", "the", "mean"]
    assert "Warning: layer 1 has no load at all (1 of 2 layers)" in done.stderr
    rows = list(csv.DictReader(io.StringIO(invoke("two.npy", "--slots", 6, "--gpus", 2, "--format", "csv").stdout)))
    assert [row["layer"] for row in rows] == ["0"] * 6 + ["1"] * 6
    assert [row["gpu"] for row in rows] == ["0", "0", "0", "1", "1", "1"] * 2
    assert {(row["expert"], row["replicas"], row["load"]) for row in rows[:6]} == {
        ("0", "3", "20.0"),
        ("1", "1", "20.0"),
        ("2", "1", "10.0"),
        ("3", "1", "10.0"),
    }


def test_experts_that_do_not_divide_have_no_order_to_compare_with(folder: Path) -> None:
    np.save("seven.npy", np.ones((1, 7)))
    assert answer("seven.npy", "--slots", 8, "--gpus", 4)["max_over_mean_in_order"] is None
    assert "? in order: 7 experts do not divide over 4 GPUs" in invoke("seven.npy", "--slots", 8, "--gpus", 4).stdout


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "there is nothing to plan by: name loads"),
        (["loads.npy"], "--gpus is missing: how many ranks share the experts"),
        (["loads.npy", "--loads", "loads.npy", "--gpus", 8], "SOURCE (loads.npy) and --loads (loads.npy) are the same thing"),
        (["none.npy", "--gpus", 8], "none.npy: there is no such file"),
        (["loads.npy", "--gpus", 8, "--kind", "epbl"], "--kind: there is no planner 'epbl'; did you mean 'eplb'?"),
        (["loads.npy", "--gpus", 8, "--slots", 8], "8 slots cannot hold 16 experts; 16 is the least"),
        (["loads.npy", "--gpus", 8, "--slots", 20], "20 slots do not divide over 8 GPUs; choose 16 or 24 slots"),
        (["loads.npy", "--gpus", 8, "--nodes", 3], "8 GPUs do not divide over 3 nodes"),
        (["loads.npy", "--gpus", 8, "--groups", 3], "16 experts do not divide into 3 groups"),
        (["loads.npy", "--gpus", 0], "0 is not in the range"),
        (["loads.npy", "--gpus", 8, "--experts", 20], "loads.npy has loads of 16 experts, but --experts says 20"),
        (
            ["loads.npy", "--gpus", 8, "--model", "deepseek-v2-lit"],
            "--model: there is neither a preset nor a file 'deepseek-v2-lit'; did you mean",
        ),
        (["loads.npy", "--gpus", 8, "--model", "mixtral-8x7b"], "loads.npy has loads of 16 experts, but the model mixtral-8x7b has 8"),
        (["loads.npy", "--gpus", 8, "--export", "sglang"], "--export and -o go together: -o FILE says where --export writes"),
        (["loads.npy", "--gpus", 8, "-o", "p.json"], "--export and -o go together: --export says what -o p.json shall hold"),
        (["loads.npy", "--gpus", 8, "--export", "sglang", "-o", "p.txt"], "SGLang takes a path for a file only if it ends in .json"),
        (["loads.npy", "--gpus", 8, "--export", "sglan", "-o", "p.json"], "'sglan' is not one of"),
        ([SHIPPED, "--gpus", 8, "--task", "x"], "holds one recording, not several tasks"),
        (["loads.npy", "--gpus", 8, "--model", "loads.npy"], "not UTF-8 text"),
    ],
)
def test_bad_words_are_told_what_is_wrong(words: list[object], said: str) -> None:
    done = invoke(*words)
    assert done.exit_code == 2, done.output
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize(
    ("loads", "said"),
    [
        (np.ones(16), "has shape [16], expected [layers, experts] or [steps, layers, experts]; one layer is [1, experts]"),
        (np.ones((1, 1, 2, 16)), "has shape [1, 1, 2, 16], expected"),
        (np.ones((0, 16)), "has shape [0, 16], expected [layers, experts]"),
        (np.asarray([[1.0, -2.0]]), "layer 0, expert 1: -2.0 is no load; a load is a finite number, at least 0"),
        (np.asarray([[1.0, 2.0], [np.nan, 0.0]]), "layer 1, expert 0: nan is no load"),
        (np.asarray([[[1.0, np.inf]]]), "step 0, layer 0, expert 1: inf is no load"),
        (np.asarray([["a", "b"]]), "holds <U1, but loads are whole numbers or floats"),
        (np.asarray([[True, False]]), "holds bool, but loads are whole numbers or floats"),
        (np.asarray([[1j, 2]]), "holds complex128, but"),
    ],
)
def test_loads_that_are_none_are_told_where_and_why(loads: np.ndarray, said: str) -> None:
    np.save("bad.npy", loads)
    done = invoke("bad.npy", "--gpus", 1)
    assert done.exit_code == 2, done.output
    assert f"bad.npy: {said}" in done.stderr


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("bad.npy", b"not an array", "bad.npy: not a NumPy array of numbers"),
        ("bad.npy", b"", "bad.npy: not a NumPy array of numbers"),
        ("bad.csv", b"1,2\n3\n", "bad.csv:2: 1 experts, but the lines above have 2"),
        ("bad.csv", b"1,2\n3,x\n", "bad.csv:2: column 2: 'x' is not a number"),
        ("bad.csv", b"", "bad.csv: has shape [0, 0], expected [layers, experts]"),
        ("bad.csv", b"1,nan\n", "layer 0, expert 1: nan is no load"),
        ("bad.csv", b"\xff\xfe1", "bad.csv: this is not text"),
        ("bad.csv", b"layer,expert\n0,1\n", "column 'token_count' is missing"),
        ("bad.json", b"{", "bad.json:1:2: not JSON"),
        ("bad.json", b"[]", "bad.json: holds no loads: expected the key logical_count"),
        ("bad.json", b'{"logical_count": [[1], [1, 2]]}', "logical_count must be a table of numbers"),
        ("bad.json", b'{"logical_count": [["a"]]}', "logical_count must be a table of numbers"),
        ("bad.pt", b"PK", "loads are read from .npy"),
        ("bad.npz", b"PK\x03\x04", "the archive is damaged"),
    ],
)
def test_files_that_hold_no_loads_are_told_so(folder: Path, name: str, content: bytes, said: str) -> None:
    (folder / name).write_bytes(content)
    done = invoke(name, "--gpus", 1)
    assert done.exit_code == 2, done.output
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_objects_are_never_unpickled_and_a_false_header_takes_no_memory(folder: Path) -> None:
    np.save("objects.npy", np.asarray([[{}]], dtype=object), allow_pickle=True)
    assert "Python objects are never unpickled" in invoke("objects.npy", "--gpus", 1).stderr
    header = b"{'descr': '<f8', 'fortran_order': False, 'shape': (1000000, 10000000), }"
    (folder / "false.npy").write_bytes(b"\x93NUMPY\x01\x00" + (len(header) + 1).to_bytes(2, "little") + header + b"\n" + b"\0" * 80)
    done = invoke("false.npy", "--gpus", 1)
    assert done.exit_code == 2
    assert "not a NumPy array" in done.stderr


def test_a_folder_that_is_no_result_is_bad_input(folder: Path) -> None:
    (folder / "empty").mkdir()
    done = invoke("empty", "--gpus", 1)
    assert done.exit_code == 2
    assert "empty holds no finished result" in done.stderr


def test_an_export_that_cannot_be_written_fails_after_the_answer(folder: Path) -> None:
    done = invoke("loads.npy", "--gpus", 8, "--export", "sglang", "-o", "no/such/p.json")
    assert done.exit_code == 1
    assert "cannot write no/such/p.json" in done.stderr.replace("\\", "/")


def test_routes_of_all_sources_count(folder: Path) -> None:
    # Two ranks, each with its own hot expert.
    counts = np.asarray([[[[90, 0, 5, 5], [0, 90, 5, 5]]]])
    np.savez("by-source.npz", counts=counts, axes=["step", "layer", "source", "expert"], experts=4)
    check_answer(answer("by-source.npz", "--slots", 6, "--gpus", 2), np.asarray([[90, 90, 10, 10]]), 6, 2)


def test_some_layers_of_a_model_are_planned_but_only_tensorrt_llm_takes_them(folder: Path) -> None:
    lines = ["layer,expert,token_count", *(f"{layer},{expert},{expert + 1}" for layer in (2, 7) for expert in range(64))]
    (folder / "two.csv").write_text("\n".join(lines) + "\n")
    words = ["two.csv", "--slots", 64, "--gpus", 8, "--model", "deepseek-v2-lite"]
    assert answer(*words, "--export", "tensorrt-llm", "-o", "p.yaml")["layers"] == [2, 7]
    assert list(yaml.safe_load((folder / "p.yaml").read_text())["initial_global_assignments"]) == [2, 7]
    done = invoke(*words, "--export", "sglang", "-o", "p.json")
    assert done.exit_code == 2
    assert "sglang needs a row for every MoE layer of the model, but only 2 of them were planned" in done.stderr
    assert not (folder / "p.json").exists()


def test_planning_is_timed_beside_the_answer_in_words_that_a_scenario_takes(folder):
    plain = invoke("loads.npy", "--gpus", 4, "--slots", 20, "--format", "json")
    timed = invoke("loads.npy", "--gpus", 4, "--slots", 20, "--format", "json", "--time")
    assert timed.exit_code == 0
    assert timed.stdout == plain.stdout
    took = re.search(r"policy\.rebalance\.planner_time='([^']+)'", timed.stderr)[1]
    assert 0 < parse_quantity(took, "s") < 60
    assert f"Planning took {took} on this machine (median of {TIMED})" in timed.stderr


def test_the_time_of_planning_is_the_middle_one_of_plannings(folder, monkeypatch):
    placed = place(read_loads("loads.npy"), "greedy", Sizes(slots=None, gpus=4, nodes=None, groups=None))
    clock = iter([0.0, 3.0, 10.0, 11.0, 20.0, 22.0])  # plannings of 3, 1 and 2 s
    monkeypatch.setattr("moesim.desk.place_plan.time.perf_counter", lambda: next(clock))
    made = []
    monkeypatch.setitem(PLANNERS, "greedy", lambda loads, **sizes: made.append((loads.shape, sizes)))
    assert planning_seconds(placed, repeats=3) == 2.0
    assert made == [((3, 16), {"slots": 16, "gpus": 4, "nodes": 1, "groups": 1})] * 3
