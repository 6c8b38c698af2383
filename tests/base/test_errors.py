from __future__ import annotations

import pickle
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moesim.base import errors
from moesim.base.errors import ContractBroken, FieldError, MoesimError, Problem, ScenarioError, did_you_mean


def tree(cls: type[MoesimError] = MoesimError) -> dict[str, str]:
    """Name of each exception of the module -> name of its parent."""
    found: dict[str, str] = {}
    for child in cls.__subclasses__():
        if child.__module__ == errors.__name__:
            found |= {child.__name__: cls.__name__} | tree(child)
    return found


def drawn() -> tuple[dict[str, str], dict[str, int]]:
    """The tree and the exit codes as the module's docstring draws them."""
    parents: dict[str, str] = {}
    codes: dict[str, int] = {}
    path: list[tuple[int, str]] = []
    for line in (errors.__doc__ or "").splitlines():
        match = re.match(r"^([ │├└─]*)([A-Z]\w+) (.*)$", line)
        if match is None or (not path and match[2] != "MoesimError"):
            continue
        depth = len(match[1])
        while path and path[-1][0] >= depth:
            path.pop()
        if path:
            parents[match[2]] = path[-1][1]
            code = re.search(r"\s{2,}([0-9])(\s{2,}|$)", match[3])
            codes[match[2]] = int(code[1]) if code else codes[path[-1][1]]
        path.append((depth, match[2]))
    return parents, codes


def test_the_tree_that_is_drawn_is_the_tree_there_is() -> None:
    assert drawn()[0] == tree()


def test_exit_codes_are_those_that_are_drawn() -> None:
    codes = drawn()[1]
    assert len(codes) >= 9
    assert codes == {name: getattr(errors, name).exit_code for name in codes}


@pytest.mark.parametrize("name", sorted({"MoesimError", *tree()}))
def test_errors_survive_being_rebuilt_from_their_arguments(name: str) -> None:
    # SimPy raises type(error)(*error.args); a process pool pickles.
    cls = getattr(errors, name)
    special = {"ScenarioError": ((Problem(message="no"),),), "ContractBroken": ("law L11", "expert 3 lives nowhere")}
    error = cls(*special.get(name, ("what went wrong",)))
    for again in (type(error)(*error.args), pickle.loads(pickle.dumps(error))):
        assert (type(again), str(again), again.exit_code) == (cls, str(error), cls.exit_code)
        assert str(again)


def test_field_error_survives_pickling() -> None:
    again = pickle.loads(pickle.dumps(FieldError("top_k", "too large")))
    assert (again.field, str(again)) == ("top_k", "too large")


def test_broken_contract_names_the_rule() -> None:
    error = ContractBroken("law L11", "expert 3 lives nowhere")
    assert str(error) == "expert 3 lives nowhere [law L11]"
    assert error.rule == "law L11"


@pytest.mark.parametrize(
    ("problem", "text"),
    [
        (Problem(file="a.yaml", line=3, column=5, path="model.top_k", message="too large"), "a.yaml:3:5: model.top_k: too large"),
        (Problem(file="a.yaml", message="cannot be read"), "a.yaml: cannot be read"),
        (Problem(path="seed", message="too small"), "seed: too small"),
        (Problem(message="nothing"), "nothing"),
    ],
)
def test_problem_is_written_with_its_place(problem: Problem, text: str) -> None:
    assert str(problem) == text


@settings(max_examples=30)
@given(lines=st.lists(st.integers(1, 100), min_size=1, max_size=6))
def test_problems_are_sorted_by_place(lines: list[int]) -> None:
    error = ScenarioError([Problem(file="a.yaml", line=line, column=1, message="x") for line in lines])
    assert [problem.line for problem in error.problems] == sorted(lines)
    assert len(str(error).splitlines()) == len(lines)


@pytest.mark.parametrize(
    ("word", "known", "hint"),
    [
        ("eplbs", ["eplb", "contiguous"], "; did you mean 'eplb'? (known: contiguous, eplb)"),
        ("zzz", ["eplb"], " (known: eplb)"),
        ("gb/s", ["Gb/s", "GB/s", "b/s"], "; did you mean 'GB/s' or 'Gb/s'? (known: GB/s, Gb/s, b/s)"),
        ("x", [], ""),
    ],
)
def test_hint_names_the_nearest(word: str, known: list[str], hint: str) -> None:
    assert did_you_mean(word, known) == hint


def test_hint_does_not_list_dozens() -> None:
    # The nearest is named; 30 words would drown it.
    hint = did_you_mean("word7x", [f"word{i}" for i in range(30)])
    assert hint == "; did you mean 'word7'?"
