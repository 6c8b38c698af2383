"""What a sweep says of its cells: combinations, names, the table, the front."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moesim.facts.record import Value
from moesim.study.cell import Answer
from moesim.study.sweep import Sweep, combinations, short_names


def value(number: float | None, unit: str = "s") -> Value:
    return Value(value=number, unit=unit, low=None if number is None else number - 1, high=None, n=2, basis="exact")


def answer(name: str, axes: dict, **metrics: float | None) -> Answer:
    return Answer(name=name, digest=name, axes=axes, metrics={key: value(number) for key, number in metrics.items()})


def test_the_last_axis_changes_fastest():
    found = list(combinations({"a": [1, 2], "b": "xy"}, lambda cell: cell == {"a": 2, "b": "x"}))
    assert found == [{"a": 1, "b": "x"}, {"a": 1, "b": "y"}, {"a": 2, "b": "y"}]
    assert list(combinations({}, lambda _: False)) == []


@pytest.mark.parametrize(
    ("keys", "names"),
    [
        (["policy.capacity.factor", "policy.placement"], ["factor", "placement"]),
        (["policy.gate.kind", "policy.placement.kind"], ["gate.kind", "placement.kind"]),
        (["steps", "warmup.steps"], ["steps", "warmup.steps"]),  # "steps" alone would be both
    ],
)
def test_short_names_are_the_shortest_that_tell_keys_apart(keys, names):
    assert list(short_names(keys).values()) == names


SWEEP = Sweep(
    name="s",
    axes=("factor", "placement", "seed"),
    answers=(
        answer("a", {"factor": 1, "placement": "x", "seed": 1}, step_time=2.0, drop_rate=0.5),
        answer("b", {"factor": 1.5, "placement": None, "seed": 2}, step_time=3.0, drop_rate=None),
        Answer(name="c", digest="", axes={"factor": 0.5, "placement": True, "seed": 3}, status="failed", error="no"),
    ),
)


def test_the_table_has_a_row_for_every_cell():
    table = SWEEP.table()
    assert list(table.columns) == [
        "cell", "status", "error", "factor", "placement", "seed",
        "step_time", "step_time_low", "step_time_high", "drop_rate", "drop_rate_low", "drop_rate_high",
    ]  # fmt: skip
    assert table["cell"].tolist() == ["a", "b", "c"]
    assert table["status"].tolist() == ["done", "done", "failed"]
    assert table["factor"].tolist() == [1.0, 1.5, 0.5]
    assert table["placement"].tolist() == ["x", "null", "true"]
    assert table["seed"].dtype == np.int64
    assert table["step_time"].tolist()[:2] == [2.0, 3.0]
    assert math.isnan(table["step_time"][2])
    assert table["step_time_low"].tolist()[:2] == [1.0, 2.0]
    assert np.isnan(table["drop_rate"]).tolist() == [False, True, True]
    assert table.units["step_time_low"] == "s"


def test_values_of_an_axis_are_in_order():
    assert SWEEP.values("factor") == [0.5, 1, 1.5]
    assert SWEEP.values("placement") == ["x", None, True]
    assert SWEEP.numeric() == ("factor", "seed")


def test_a_cell_without_a_value_on_an_axis_is_empty_there():
    sweep = Sweep(name="s", axes=("factor",), answers=(answer("a", {"factor": 1.0}), answer("b", {})))
    assert sweep.table()["factor"].tolist() == ["1.0", ""]


points = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), max_size=12)


@given(points)
def test_the_front_is_what_nothing_dominates(found):
    sweep = Sweep(
        name="s",
        axes=(),
        answers=tuple(answer(str(at), {}, step_time=float(x), drop_rate=float(y)) for at, (x, y) in enumerate(found)),
    )

    def beaten(at: int) -> bool:
        x, y = found[at]
        return any(u <= x and v <= y and (u, v) != (x, y) for u, v in found)

    assert {answer.name for answer in sweep.front()} == {str(at) for at in range(len(found)) if not beaten(at)}


def test_a_front_of_a_metric_that_should_be_high():
    # Throughput is better higher: 30 tokens/s at 0.5 dropped, and 10 at 0.1, are both unbeaten; 20 at 0.6 is beaten by the first.
    cells = [("a", 30.0, 0.5), ("b", 20.0, 0.6), ("c", 10.0, 0.1)]
    sweep = Sweep(name="s", axes=(), answers=tuple(answer(name, {}, tokens_per_second=x, drop_rate=y) for name, x, y in cells))
    assert [answer.name for answer in sweep.front("tokens_per_second", "drop_rate")] == ["a", "c"]


def test_a_cell_without_a_number_is_not_on_the_front():
    assert [answer.name for answer in SWEEP.front()] == ["a"]
