"""Placements as SGLang, TensorRT-LLM and vllm-ascend load them: written, read back, and what bad files are told."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from routings import world
from scenario_texts import SMALL

from moesim.base.errors import FieldError, MoesimError, PluginError, ScenarioError, UsageError
from moesim.desk.placement_files import Planned, exported, read_placement
from moesim.desk.scenario_file import load_scenario
from moesim.desk.scenario_text import dump
from moesim.facts.contracts import View
from moesim.models.placement.file import FORMATS, FilePlacement, WrittenSlots

# Layers 1 and 3 of five have experts; six slots on three GPUs; expert 0 has two replicas in the first row, experts 2 and 3 in the second.
TWO = Planned(slots=np.asarray([[0, 3, 1, 0, 2, 0], [3, 2, 0, 1, 2, 3]]), experts=4, gpus=3, layers=(1, 3), model_layers=5)


def setting_of(planned: Planned):
    small = world(gpus=planned.gpus, experts=planned.experts, top_k=1)
    return replace(small, model=replace(small.model, layers=planned.model_layers, moe_layers=planned.layers))


def placed(slots: WrittenSlots, setting):
    """The placement that a run begins with."""
    none = np.zeros((0, len(setting.model.moe_layers), setting.model.experts), dtype=int)
    return FilePlacement(slots=slots).begin(setting)(View(step=0, loads=none, placement=None))


def test_sglang_gets_a_row_for_every_layer_and_dense_ones_are_trivial() -> None:
    found = json.loads(exported(TWO, "sglang"))
    trivial = [0, 1, 2, 3, 0, 1]
    assert found == {"physical_to_logical_map": [trivial, TWO.slots[0].tolist(), trivial, TWO.slots[1].tolist(), trivial]}


def test_tensorrt_llm_gets_the_mapping_of_its_own_generator() -> None:
    found = yaml.safe_load(exported(TWO, "tensorrt-llm"))
    assert found == {
        "num_slots": 6,
        "layer_updates_per_iter": 0,
        "initial_global_assignments": dict(zip((1, 3), TWO.slots.tolist(), strict=True)),
    }


def test_vllm_ascend_gets_devices_of_moe_layers_counted_from_0() -> None:
    found = json.loads(exported(TWO, "vllm-ascend"))
    assert found["moe_layer_count"] == 2
    assert [layer["layer_id"] for layer in found["layer_list"]] == [0, 1]
    assert found["layer_list"][0] == {
        "layer_id": 0,
        "device_count": 3,
        "device_list": [{"device_id": device, "device_expert": held} for device, held in enumerate(([0, 3], [1, 0], [2, 0]))],
    }


def test_vllm_ascend_cannot_say_that_a_device_holds_an_expert_twice() -> None:
    twice = replace(TWO, slots=np.asarray([[0, 3, 1, 2, 0, 0], [3, 2, 0, 1, 2, 3]]))
    with pytest.raises(UsageError, match=r"puts expert 0 of MoE layer 0 twice on device 2; choose another --kind or another number"):
        exported(twice, "vllm-ascend")
    assert "physical_to_logical_map" in exported(twice, "sglang")


def test_only_tensorrt_llm_takes_some_of_the_layers() -> None:
    some = replace(TWO, complete=False)
    assert exported(some, "tensorrt-llm")
    for form in ("sglang", "vllm-ascend"):
        with pytest.raises(UsageError, match=f"{form} needs a row for every MoE layer"):
            exported(some, form)
    with pytest.raises(UsageError, match=r"unknown format 'sglan' of a placement; did you mean 'sglang'"):
        exported(TWO, "sglan")


@st.composite
def plans(draw):
    """Any placement in which no device holds an expert twice, of a model with dense layers anywhere."""
    gpus, per_gpu = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    experts = draw(st.integers(per_gpu, gpus * per_gpu))
    moe = draw(st.lists(st.booleans(), min_size=1, max_size=5).filter(any))
    layers = tuple(number for number, has in enumerate(moe) if has)
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    base = np.arange(gpus * per_gpu) % experts  # consecutive runs of at most E experts are distinct on a GPU
    slots = np.stack([rng.permutation(experts)[base] for _ in layers])
    return Planned(slots=slots, experts=experts, gpus=gpus, layers=layers, model_layers=len(moe))


@pytest.mark.parametrize("form", FORMATS)
@given(planned=plans())
@settings(max_examples=40, deadline=None)
def test_l13_an_exported_placement_reads_back_to_itself(tmp_path_factory, form: str, planned: Planned) -> None:
    file = tmp_path_factory.mktemp("placement") / ("p.yaml" if form == "tensorrt-llm" else "p.json")
    text = exported(planned, form)
    file.write_text(text)
    slots, problems = read_placement(file, {})
    assert problems == []
    placement = placed(slots, setting_of(planned))
    np.testing.assert_array_equal(placement.expert_of_slot, planned.slots)
    np.testing.assert_array_equal(placement.rank_of_slot, np.arange(planned.slots.shape[1]) // (planned.slots.shape[1] // planned.gpus))
    again = replace(planned, slots=slots.of_model(setting_of(planned).model))
    assert exported(again, form) == text


@pytest.fixture
def scenario(tmp_path: Path) -> Path:
    """SMALL with a placement of 16 experts in 24 slots for its 8 ranks."""
    rows = np.stack([np.arange(24) % 16, np.arange(24)[::-1] % 16])
    planned = Planned(slots=rows, experts=16, gpus=8, layers=(0, 1), model_layers=2)
    for form in FORMATS:
        (tmp_path / f"{form}.{'yaml' if form == 'tensorrt-llm' else 'json'}").write_text(exported(planned, form))
    file = tmp_path / "scenario.yaml"
    file.write_text(SMALL.replace("placement: {kind: contiguous}", "placement: {kind: file, path: sglang.json}"))
    return file


@pytest.mark.parametrize("name", ["sglang.json", "tensorrt-llm.yaml", "vllm-ascend.json"])
def test_l13_a_resolved_scenario_holds_the_content_and_needs_no_file(scenario: Path, name: str) -> None:
    loaded = load_scenario(scenario, [f"policy.placement.path={name}"])
    assert loaded.policy.placement.path is None
    assert loaded.policy.placement.slots.slots().tolist() == [(np.arange(24) % 16).tolist(), (np.arange(24)[::-1] % 16).tolist()]
    text = dump(loaded, folder=scenario.parent)
    (scenario.parent / name).unlink()
    scenario.write_text(text)
    assert load_scenario(scenario) == loaded


def test_a_placement_that_does_not_fit_is_told_when_the_scenario_is_read(scenario: Path) -> None:
    (scenario.parent / "sglang.json").write_text('{"physical_to_logical_map": [[0, 1], [0, "x"]]}')
    with pytest.raises(ScenarioError, match=r"sglang.json: policy.placement.path: physical_to_logical_map, row 1: 'x' is not the number"):
        load_scenario(scenario)
    (scenario.parent / "sglang.json").unlink()
    with pytest.raises(ScenarioError, match=r"scenario.yaml:\d+:\d+: policy.placement.path: .*sglang.json"):
        load_scenario(scenario)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("p.json", "", "holds no placement: expected a mapping with one of physical_to_logical_map (sglang)"),
        ("p.json", "[1]", "holds no placement: expected a mapping"),
        ("p.json", '{"a": 1}', "holds no placement: expected one of physical_to_logical_map (sglang)"),
        ("p.json", '{"logical_count": [[1]]}', "holds loads (logical_count), not a placement"),
        ("p.json", '{"layer_list": [], "physical_to_logical_map": []}', "holds more than one placement"),
        ("p.json", '{"physical_to_logical_map": ', "p.json:1:29: not JSON"),
        ("p.json", '{"physical_to_logical_map": []}', "physical_to_logical_map: expected a list with one entry or more"),
        ("p.json", '{"physical_to_logical_map": [1]}', "physical_to_logical_map, row 0: expected a list"),
        ("p.json", '{"physical_to_logical_map": [[0], [0, 1]]}', "every row must have the same number of slots, not [1, 2]"),
        ("p.json", '{"physical_to_logical_map": [[0, -1]]}', "row 0: -1 is not the number of an expert"),
        ("p.json", '{"physical_to_logical_map": [[0, true]]}', "row 0: True is not the number of an expert"),
        ("p.json", '{"physical_to_logical_map": [[0, 99999999999999999999]]}', "'99999999999999999999' is not the number of an expert"),
        ("p.yaml", "initial_global_assignments: 3", "initial_global_assignments must map the numbers of layers"),
        ("p.yaml", "initial_global_assignments: {a: [0]}", "'a' is not the number of a layer"),
        ("p.yaml", "initial_global_assignments: {3: [0, 1]}\nnum_slots: 3", "num_slots is 3, but layer 3 has 2 slots"),
        ("p.yaml", "initial_global_assignments: {3: [0, 1]", "p.yaml:2:1: this is not YAML"),
        ("p.json", '{"layer_list": [{"device_list": [{"device_expert": [0]}, {}]}]}', "entry 0, device 1: device_expert: expected a list"),
        (
            "p.json",
            '{"layer_list": [{"device_list": [{"device_expert": [0]}, {"device_expert": [1, 2]}]}]}',
            "different numbers of experts",
        ),
        (
            "p.json",
            '{"moe_layer_count": 2, "layer_list": [{"device_list": [{"device_expert": [0]}]}]}',
            "moe_layer_count is 2, but layer_list has 1 entries",
        ),
        (
            "p.json",
            (
                '{"layer_list": [{"device_list": [{"device_expert": [0]}]}, '
                '{"device_list": [{"device_expert": [0]}, {"device_expert": [1]}]}]}'
            ),
            "the layers have different numbers of devices: [1, 2]",
        ),
    ],
)
def test_a_file_that_is_no_placement_is_told_where_and_why(tmp_path: Path, name: str, content: str, said: str) -> None:
    (tmp_path / name).write_text(content)
    slots, problems = read_placement(tmp_path / name, {})
    assert slots is None
    assert len(problems) == 1
    assert said in str(problems[0])


def test_a_file_that_cannot_be_read_is_told_so(tmp_path: Path) -> None:
    (tmp_path / "p.pt").write_bytes(b"PK\x03\x04\n\xff\xfe")
    assert "a .pt file must be saved as JSON first" in str(read_placement(tmp_path / "p.pt", {})[1][0])
    assert "cannot be read: is a directory" in str(read_placement(tmp_path, {})[1][0])
    assert "cannot be read: no such file" in str(read_placement(tmp_path / "none.json", {})[1][0])


def rows_of(*rows: str, form: str = "sglang", **more) -> WrittenSlots:
    return WrittenSlots(source="p.json", format=form, rows=rows, **more)


@pytest.mark.parametrize(
    ("slots", "said"),
    [
        (rows_of("0 1 2 3 0 1"), "p.json has 1 rows, but test needs 2, one for each MoE layer or 5, one for each layer"),
        (rows_of("0 1 2 3 0 1", form="vllm-ascend"), "p.json has 1 rows, but test needs 2, one for each MoE layer$"),
        (rows_of(*["0 1 2 3 0 1"] * 5, form="vllm-ascend", ranks=3), "has 5 rows"),
        (rows_of("0 1 2 3 0 1", form="tensorrt-llm", layers=(1,)), "p.json has no row for layer 3, an MoE layer of test; it has 1 layers"),
        (rows_of(*["0 1 2 3"] * 2), "p.json has 4 slots, which do not divide over ep = 3 ranks; choose parallel.ep of 1"),
        (rows_of(*["0 1 2 3 0 1"] * 2, ranks=2, form="vllm-ascend"), "p.json is for 2 ranks, but parallel.ep is 3"),
        (rows_of("0 1 2 3 0 1", "0 1 2 4 0 3"), "p.json: layer 1 holds expert 4, but experts are 0 to 3"),
        (rows_of("0 1 2 3 0 1", "0 1 2 1 0 2"), "p.json: expert 3 of layer 1 lives nowhere"),
    ],
)
def test_a_file_of_another_model_or_machine_is_refused(slots: WrittenSlots, said: str) -> None:
    with pytest.raises(PluginError, match=said):
        placed(slots, setting_of(TWO))


def test_layers_may_come_in_any_order_where_they_are_numbered() -> None:
    slots = rows_of("3 2 0 1 2 3", "0 0 0 0 0 0", "0 3 1 0 2 0", form="tensorrt-llm", layers=(3, 2, 1))
    np.testing.assert_array_equal(placed(slots, setting_of(TWO)).expert_of_slot, TWO.slots)


def test_a_placement_from_a_file_needs_one_source_and_only_one() -> None:
    with pytest.raises(FieldError, match="needs the file's path, or its content"):
        FilePlacement()
    with pytest.raises(FieldError, match="either a path or slots, not both"):
        FilePlacement(path="p.json", slots=rows_of("0 1"))
    with pytest.raises(MoesimError, match=r"p.json was not read: load the scenario with load_scenario"):
        FilePlacement(path="p.json").begin(setting_of(TWO))
    with pytest.raises(FieldError, match="2 layers for 1 rows"):
        rows_of("0 1", layers=(1, 2))
    with pytest.raises(FieldError, match="row 0: 'x' is not the number"):
        rows_of("0 x")
