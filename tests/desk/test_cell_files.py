"""Cells and their answers as files: the same bytes, and what a damaged file is told."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scenario_texts import SMALL

from moesim.base.errors import ResultError, UsageError
from moesim.desk import study_cells
from moesim.desk.cell_files import file_of, read_answer, to_bytes, write_answer
from moesim.desk.scenario_file import load_scenario, read_scenario
from moesim.desk.study_cells import cell_of, play
from moesim.engine.simulate import simulate
from moesim.study.cell import Answer

SHIPPED = Path(__file__).parents[2] / "scenarios" / "traces" / "deepseek-v2-lite-intent.npz"


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "small.yaml"
    path.write_text(SMALL, encoding="utf-8")
    return path


def cell(file, *overrides, **more):
    return cell_of(file, overrides, name="cell", axes={"seed": 1}, **more)


def test_a_cell_means_what_the_file_means(file):
    made = cell(file, "seed=7")
    again = read_scenario(made.text, file="cell", folder=made.folder)
    assert again == replace(load_scenario(file, ["seed=7"]), compare={})


def test_a_variant_is_the_policy_of_a_cell(file):
    assert read_scenario(cell(file, variant="tight").text, file="cell", folder="/").policy.capacity.factor == 1.0
    with pytest.raises(UsageError, match="no variant 'tigt' under compare; did you mean 'tight'"):
        cell(file, variant="tigt")


def test_the_digest_changes_with_all_that_changes_the_answer(file, monkeypatch):
    known = cell(file).digest
    assert cell(file).digest == known
    assert replace(cell(file), name="other").digest == known
    assert cell(file, "compare={}").digest == known  # variants are not played
    assert cell(file, "seed=2").digest != known
    assert cell(file, tables=["steps"]).digest != known
    monkeypatch.setattr(study_cells, "__version__", "0.0.9")
    assert cell(file).digest != known


def traced(folder, content):
    folder.mkdir()
    (folder / "t.npz").write_bytes(content)
    scenario = folder / "s.yaml"
    text = (Path(__file__).parents[2] / "scenarios" / "which-capacity-factor.yaml").read_text(encoding="utf-8")
    scenario.write_text(text.replace("traces/deepseek-v2-lite-intent.npz", "t.npz"), encoding="utf-8")
    return cell_of(scenario, ["steps=1"], name="c", axes={})


def test_what_a_recording_holds_counts_and_not_where_it_lies(tmp_path):
    content = SHIPPED.read_bytes()
    here, there = traced(tmp_path / "here", content), traced(tmp_path / "there", content)
    assert list(here.inputs) == [str(tmp_path / "here" / "t.npz")]
    assert here.text != there.text
    assert here.digest == there.digest
    ids = np.load(SHIPPED)
    np.savez(tmp_path / "other.npz", **{name: ids[name] for name in ids.files})  # packed differently: other bytes
    assert traced(tmp_path / "third", (tmp_path / "other.npz").read_bytes()).digest != here.digest


def test_a_recording_that_changed_since_fails_the_cell(tmp_path):
    made = traced(tmp_path / "here", SHIPPED.read_bytes())
    (tmp_path / "here" / "t.npz").write_bytes(b"PK not any more")
    answer = play(made)
    assert answer.status == "failed"
    assert "is not the file that the study began with" in answer.error


def test_an_answer_has_the_numbers_of_a_run(file):
    answer = play(cell(file, tables=["steps", "experts"]))
    result = simulate(load_scenario(file), read_trace=study_cells.read_trace)
    assert answer.done
    assert answer.metrics == result.metrics
    assert answer.steps.tolist() == [1, 2]  # step 0 is warm-up
    assert answer.fresh.tolist() == [True, True]
    assert answer.samples["step_time"].mean() == pytest.approx(answer.metrics["step_time"].value, rel=1e-12)
    assert set(answer.samples) == set(answer.metrics)
    assert list(answer.tables) == ["steps", "experts"]
    assert "graph" not in answer.facts


def test_an_answer_reads_back_to_the_same_bytes(file, tmp_path):
    answer = play(cell(file, tables=["steps", "layers", "collectives"]))
    path = write_answer(tmp_path, answer)
    assert path == file_of(tmp_path, answer.digest)
    again = read_answer(path)
    assert to_bytes(again) == to_bytes(answer) == path.read_bytes()
    assert again.metrics == answer.metrics
    for name, samples in answer.samples.items():
        np.testing.assert_array_equal(again.samples[name], samples)
    for name, table in answer.tables.items():
        for column, values in table.columns.items():
            assert again.tables[name][column].dtype.kind == values.dtype.kind
            np.testing.assert_array_equal(again.tables[name][column], values)
    assert list(tmp_path.glob(".*")) == []


def test_what_is_unknown_is_null_and_comes_back_as_nan(tmp_path):
    answer = Answer(
        name="c", digest="d", axes={"a": None}, samples={"x": np.array([1.0, np.nan])}, steps=np.arange(2), fresh=np.ones(2, bool)
    )
    again = read_answer(write_answer(tmp_path, answer))
    assert again.samples["x"].tolist()[0] == 1.0
    assert np.isnan(again.samples["x"][1])
    assert again.axes == {"a": None}


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda text: text[:-20], "is damaged"),
        (lambda _: "", "is damaged"),
        (lambda _: "[]", "is no answer of a cell"),
        (lambda text: text.replace('"schema": 1', '"schema": 2'), "has schema 2"),
        (lambda text: text.replace('"digest": "d"', '"digest": "e"'), "holds the answer of cell e"),
        (lambda text: text.replace('"facts": {}', '"facts": 3'), "is damaged: TypeError"),
        (lambda text: text.replace('"samples"', '"sample"'), "is damaged: KeyError"),
    ],
)
def test_damaged_files_are_refused(tmp_path, damage, message):
    path = write_answer(tmp_path, Answer(name="c", digest="d", axes={}))
    json.loads(path.read_bytes())
    path.write_text(damage(path.read_text(encoding="utf-8")), encoding="utf-8")
    with pytest.raises(ResultError, match=message):
        read_answer(path)
    with pytest.raises(ResultError, match="is not there"):
        read_answer(tmp_path / "nothing.json")


def test_whatever_goes_wrong_is_in_the_answer(file, monkeypatch):
    made = cell(file)
    assert play(replace(made, text="steps: x")).error.startswith("cell")
    assert play(replace(made, version="0.0.9")).error.startswith("this worker runs moesim")
    assert "a run has no table 'step'; did you mean 'steps'" in play(replace(made, tables=("step",))).error
    for raised, said in ((MemoryError("7 GB"), "not enough memory for one worker: 7 GB"), (ZeroDivisionError("x"), "ZeroDivisionError: x")):

        def fail(*_, error=raised, **__):
            raise error

        monkeypatch.setattr("moesim.engine.simulate.simulate", fail)
        answer = play(made)
        assert answer.status == "failed"
        assert said in answer.error
