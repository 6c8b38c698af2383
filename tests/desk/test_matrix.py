"""Axes: ranges, lists between commas, and the matrix section with the place of every problem."""

from __future__ import annotations

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scenario_texts import SMALL

from moesim.base.errors import ScenarioError, UsageError
from moesim.desk.matrix import read_words
from moesim.desk.ranges import is_range, span, split, values_of
from moesim.desk.scenario_file import load_scenario, read_scenario
from moesim.desk.scenario_text import dump
from moesim.desk.sweep_cells import plan_sweep


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("0.8..1.2:0.1", [0.8, 0.9, 1.0, 1.1, 1.2]),  # binary floats would give 0.9000000000000001 and miss the end
        ("1..4", [1, 2, 3, 4]),
        ("4..1:-1", [4, 3, 2, 1]),
        ("1..2:0.4", [1.0, 1.4, 1.8]),  # 2.2 is beyond the end
        ("256..2048:*2", [256, 512, 1024, 2048]),
        ("8..1:*0.5", [8.0, 4.0, 2.0, 1.0]),
        ("1e-3..3e-3:1e-3", [0.001, 0.002, 0.003]),
        ("100..300:100 Gb/s", ["100 Gb/s", "200 Gb/s", "300 Gb/s"]),
        ("3..3", [3]),
    ],
)
def test_ranges(text, values):
    assert is_range(text)
    found = values_of(text)
    assert found == values
    assert [type(value) for value in found] == [type(value) for value in values]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0.8..2.0", "needs a step"),
        ("1..4:0", "a step of 0 does not lead from 1 to 4"),
        ("1..4:-1", "a step of -1 does not lead"),
        ("1..4:*1", "a factor leads somewhere only"),
        ("0..4:*2", "a factor leads somewhere only"),
        ("4..1:*2", "a factor of 2 does not lead from 4 to 1"),
        ("1..1000000000", "more than 100,000 values"),
        ("1..4:", "is no range"),
        ("1..4:2:3", "is no range"),
        ("1..b", "is no range"),
    ],
)
def test_ranges_that_lead_nowhere(text, message):
    assert is_range(text)
    with pytest.raises(ValueError, match=message):
        values_of(text)


@pytest.mark.parametrize("text", ["../traces/a.npz", "../../a.npz", "eplb", "1.25", "a..b", "", "-", "1../a"])
def test_what_is_no_range(text):
    assert not is_range(text)


@given(st.integers(-50, 50), st.integers(0, 40), st.integers(1, 30), st.integers(0, 3))
def test_a_range_has_each_multiple_of_its_step_and_ends_where_it_says(first, steps, step, digits):
    scale = Decimal(10) ** -digits
    values = span(str(first * scale), str((first + steps * step) * scale), "", str(step * scale), None)
    assert [Decimal(str(value)) for value in values] == [(first + at * step) * scale for at in range(steps + 1)]


@given(st.lists(st.sampled_from(["1", "null", "[1, 2]", "{a: 1, b: [2, 3]}", "'x, y'", '"x,y"', "don't", " eplb"]), min_size=1))
def test_commas_inside_brackets_and_quotes_separate_nothing(pieces):
    assert split(",".join(pieces)) == pieces


def test_words_are_axes_or_overrides():
    words = ("a.b=1", "seed=1,2", "steps=1..3", "policy.capacity=null,dropless", "model.moe_layers=[0, 1]", "name='x, y'")
    axes, overrides, problems = read_words(words)
    assert problems == []
    assert overrides == ["a.b=1", "model.moe_layers=[0, 1]", "name='x, y'"]
    assert {axis.key: [setting.label for setting in axis.settings] for axis in axes} == {
        "seed": [1, 2],
        "steps": [1, 2, 3],
        "policy.capacity": [None, "dropless"],
    }


def test_values_may_be_sections():
    axes, _, _ = read_words(["policy.placement={kind: eplb, every: 10},contiguous"])
    assert [setting.label for setting in axes[0].settings] == ["{kind: eplb, every: 10}", "contiguous"]
    assert axes[0].settings[0].node.data() == {"kind": "eplb", "every": 10}


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("seed=1,1", "the value 1 is there twice"),
        ("seed=1,,2", "there is nothing between two commas"),
        ("sed=1,2", "unknown key 'sed'; did you mean 'seed'?"),
        ("seed=1..x", "1..x: is no range"),
        ("compare.a=1,2", "compare is the same in all cells"),
        ("policy..x=1,2", "is no dotted key"),
        ("seed=1,]", "this is not YAML"),
    ],
)
def test_words_that_are_wrong(word, message):
    _, _, problems = read_words([word])
    assert [problem.file for problem in problems] == [f"override {word}"] * len(problems)
    assert any(message in str(problem) for problem in problems)


def problems_of(matrix: str) -> list[str]:
    with pytest.raises(ScenarioError) as error:
        read_scenario(f"{SMALL}{matrix}", file="s.yaml", folder=".")
    return str(error.value).replace("s.yaml:", "").splitlines()


LINE = SMALL.count("\n") + 1


@pytest.mark.parametrize(
    ("matrix", "problem"),
    [
        ("matrix: 3\n", f"{LINE}:9: matrix: expected a mapping"),
        ("matrix:\n  seed: 1\n", f"{LINE + 1}:9: matrix.seed: expected a list of values or a range"),
        ("matrix:\n  seed: []\n", f"{LINE + 1}:9: matrix.seed: the list of values is empty"),
        ("matrix:\n  seed: 4..1\n", f"{LINE + 1}:9: matrix.seed: 4..1: a step of 1 does not lead from 4 to 1"),
        ("matrix:\n  polcy.x: [1]\n", f"{LINE + 1}:3: matrix.polcy.x: unknown key 'polcy'; did you mean 'policy'?"),
        ("matrix:\n  matrix: [1]\n", f"{LINE + 1}:3: matrix.matrix: matrix is the same in all cells"),
        ("matrix:\n  seed: [1, 2, 1]\n", f"{LINE + 1}:16: matrix.seed: the value 1 is there twice"),
        ("matrix:\n  seed: [1, 2]\n  include: {seed: 3}\n", f"{LINE + 2}:12: matrix.include: expected a list of mappings"),
        ("matrix:\n  seed: [1, 2]\n  include: [3]\n", f"{LINE + 2}:13: matrix.include.0: expected a mapping of dotted keys"),
        (
            "matrix:\n  seed: [1, 2]\n  exclude: [{steps: 3}]\n",
            f"{LINE + 2}:21: matrix.exclude.0.steps: excludes nothing: steps is no axis",
        ),
        ("matrix:\n  seed: [1, 2]\n  exclude: [{seed: 3}]\n", f"{LINE + 2}:20: matrix.exclude.0.seed: excludes nothing: seed never is 3"),
    ],
)
def test_problems_of_a_matrix_have_their_place(matrix, problem):
    found = problems_of(matrix)
    assert len(found) == 1
    assert found[0].startswith(problem)


def test_l13_a_matrix_is_written_and_read_back(tmp_path):
    (tmp_path / "a.npz").touch()
    matrix = "matrix:\n  policy.capacity.factor: 0.8..1.2:0.2\n  routing.trace: [a.npz]\n  include:\n    - {policy.capacity: null}\n"
    scenario = read_scenario(f"{SMALL}{matrix}", file="s.yaml", folder=tmp_path, check=False)
    assert scenario.matrix["policy.capacity.factor"] == "0.8..1.2:0.2"
    assert scenario.matrix["include"] == [{"policy.capacity": None}]
    again = read_scenario(dump(scenario), file="d.yaml", folder="/", check=False)
    assert again == scenario


def cells_of(tmp_path, matrix, *words):
    file = tmp_path / "s.yaml"
    file.write_text(f"{SMALL}{matrix}", encoding="utf-8")
    plan = plan_sweep(file, words)
    return plan, [plan.place(index) for index in range(len(plan))]


MATRIX = """\
matrix:
  policy.capacity.factor: [1.0, 1.5]
  policy.placement: [contiguous, round_robin]
  include:
    - {policy.capacity: null}
  exclude:
    - {policy.capacity.factor: 1.5, policy.placement: round_robin}
"""


def test_include_adds_and_exclude_takes_away(tmp_path):
    plan, cells = cells_of(tmp_path, MATRIX)
    assert cells == [
        {"policy.capacity.factor": 1.0, "policy.placement": "contiguous"},
        {"policy.capacity.factor": 1.0, "policy.placement": "round_robin"},
        {"policy.capacity.factor": 1.5, "policy.placement": "contiguous"},
        {"policy.capacity": None},
    ]
    assert plan.axes == ("policy.capacity.factor", "policy.placement", "policy.capacity")
    assert plan.name(2) == "factor=1.5, placement=contiguous"
    assert plan.scenario(1).policy.placement.kind == "round_robin"
    assert plan.scenario(3).policy.capacity.kind == "dropless"
    assert plan.scenario(0).compare == {}


def test_the_command_line_replaces_an_axis_of_the_file_and_adds_others(tmp_path):
    _, cells = cells_of(tmp_path, MATRIX, "policy.capacity.factor=2.0", "seed=1,2", "steps=2")
    assert cells[:2] == [
        {"policy.capacity.factor": 2.0, "policy.placement": "contiguous", "seed": 1},
        {"policy.capacity.factor": 2.0, "policy.placement": "contiguous", "seed": 2},
    ]
    assert len(cells) == 5  # nothing has factor 1.5 any more, so nothing is excluded


def test_the_resolved_matrix_means_the_same_cells(tmp_path):
    plan, cells = cells_of(tmp_path, MATRIX, "seed=1,2")
    other = tmp_path / "resolved.yaml"
    other.write_text(dump(plan.base, folder=tmp_path), encoding="utf-8")
    again = plan_sweep(other)
    assert [again.place(index) for index in range(len(again))] == cells
    assert [again.cell(index).digest for index in range(len(again))] == [plan.cell(index).digest for index in range(len(plan))]


def test_a_problem_of_a_cell_has_the_place_of_its_value_in_the_matrix(tmp_path):
    plan, _ = cells_of(tmp_path, "matrix:\n  policy.capacity.factor: [1.0, -1]\n")
    plan.scenario(0)
    with pytest.raises(ScenarioError, match=rf"s\.yaml:{LINE + 1}:33: policy\.capacity\.factor"):
        plan.scenario(1)


@pytest.mark.parametrize(
    ("matrix", "words", "message"),
    [
        ("", (), "has no matrix, and no word of the command line has several values"),
        ("matrix: {}\n", ("seed=3",), "has no matrix"),
        ("matrix:\n  seed: [1, 2]\n  exclude: [{seed: 1}, {seed: 2}]\n", (), "exclude leaves no cell"),
        ("", ("seed=1..1000", "steps=1..1000"), "the matrix has 1,000,000 cells"),
    ],
)
def test_a_matrix_without_cells_or_with_too_many_is_refused(tmp_path, matrix, words, message):
    with pytest.raises(UsageError, match=message):
        cells_of(tmp_path, matrix, *words)


def test_every_problem_of_file_matrix_and_words_is_reported_at_once(tmp_path):
    with pytest.raises(ScenarioError) as error:
        cells_of(tmp_path, "matrix:\n  sed: [1]\n", "steps=1,1", "warmup=x")
    assert {problem.path for problem in error.value.problems} == {"matrix.sed", "steps", "warmup"}


def test_an_ordinary_run_reads_over_the_matrix(tmp_path):
    file = tmp_path / "s.yaml"
    file.write_text(f"{SMALL}{MATRIX}", encoding="utf-8")
    assert load_scenario(file).policy.capacity.factor == 1.25
    assert load_scenario(file, ["matrix=null"]).matrix == {}
