"""Pictures of a sweep: which there are, the same bytes twice, and every odd shape of a matrix."""

from __future__ import annotations

import pytest

from moesim.desk.sweep_pictures import pictures
from moesim.facts.record import Value
from moesim.study.cell import Answer
from moesim.study.sweep import Sweep


def answer(at: int, axes: dict, *, time: float | None = 1e-3, drops: float | None = 0.1) -> Answer:
    def value(number: float | None, unit: str) -> Value:
        return Value(
            value=number,
            unit=unit,
            low=None if number is None else number * 0.9,
            high=None if number is None else number * 1.1,
            n=2,
            basis="exact",
        )

    metrics = {"step_time": value(time, "s"), "drop_rate": value(drops, ""), "rank_max_over_mean": value(1.5, "")}
    return Answer(name=f"cell {at}", digest=str(at), axes=axes, metrics=metrics)


def drawn(*cells: dict, **numbers) -> set[str]:
    axes = tuple(dict.fromkeys(key for cell in cells for key in cell))
    answers = tuple(answer(at, cell, time=1e-3 * (at + 1), drops=0.5 / (at + 1), **numbers) for at, cell in enumerate(cells))
    sweep = Sweep(name="a sweep", axes=axes, answers=answers)
    found = pictures(sweep)
    assert pictures(sweep) == found
    for name, content in found.items():
        assert content.startswith(b"\x89PNG" if name.endswith("png") else b"<?xml")
    assert {name.replace(".png", ".svg") for name in found} <= set(found)
    return {name.removesuffix(".svg") for name in found if name.endswith(".svg")}


CURVES, MAP, FRONT = "sweep-curves", "sweep-heatmap", "sweep-front"


@pytest.mark.parametrize(
    ("cells", "expected"),
    [
        ([{"a": 1}, {"a": 2}], {CURVES, FRONT}),
        ([{"a": "x"}, {"a": "y"}], {FRONT}),  # no number to draw curves over
        ([{"a": 1, "b": "x"}, {"a": 2, "b": "x"}, {"a": 1, "b": "y"}, {"a": 2, "b": "y"}], {CURVES, MAP, FRONT}),
        ([{"a": 1, "b": "x"}, {"a": 2, "b": "y"}, {"c": None}], {CURVES, MAP, FRONT}),  # included by hand, without a value on the axes
        ([{"a": 1}, {"a": 2}, {"b": 1}, {"b": 2}], {CURVES, FRONT}),  # two axes that no cell has both of
        ([{"a": 1}], set()),
        ([{"a": at, "b": str(at % 3), "c": at % 11} for at in range(60)], {CURVES, MAP, FRONT}),
    ],
)
def test_what_is_drawn(cells, expected):
    assert drawn(*cells) == expected


def test_cells_without_numbers_are_left_out():
    cells = [answer(0, {"a": 1}), answer(1, {"a": 2}, time=None, drops=None), answer(2, {"a": 3}, time=2e-3, drops=None)]
    failed = Answer(name="f", digest="", axes={"a": 4}, status="failed", error="no")
    assert {name.partition(".")[0] for name in pictures(Sweep(name="s", axes=("a",), answers=(*cells, failed)))} == {CURVES}
    assert pictures(Sweep(name="s", axes=("a",), answers=(failed,))) == {}
