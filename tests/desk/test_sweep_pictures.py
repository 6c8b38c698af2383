"""Pictures of a sweep: which there are, the same bytes twice, and every odd shape of a matrix."""

from __future__ import annotations

import pytest

from moesim.desk.sweep_labels import brief, cell_label
from moesim.desk.sweep_pictures import curves, front, heatmap, pictures
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


def strengths(**more) -> Sweep:
    """Three weights, with and without a limit and noise: the limit decides drops, the weight decides time, noise next to nothing."""
    limits = ("null", "{rule: megatron, factor: 1.25}")
    cells = [
        {"routing.auxiliary": weight, "routing.noise": noise, "policy.capacity": limit}
        for weight in (0, 0.01, 0.1) for noise in (0, 0.3) for limit in limits
    ]  # fmt: skip
    answers = []
    for at, cell in enumerate(cells):
        milliseconds = 3 - 10 * cell["routing.auxiliary"] + 1e-3 * cell["routing.noise"]
        answers.append(answer(at, cell, time=milliseconds * 1e-3, drops=0.1 * (cell["policy.capacity"] != limits[0])))
    alone = answer(99, {"routing.auxiliary": 0.001})
    return Sweep(name="strengths", axes=tuple(cells[0]), answers=(*answers, alone), **more)


def test_the_map_is_over_what_changes_most():
    figure = heatmap(strengths())
    assert figure is not None
    area = figure.axes[0]
    assert (area.get_xlabel(), area.get_ylabel()) == ("routing.auxiliary", "policy.capacity")
    assert [text.get_text() for text in area.get_xticklabels()] == ["0", "0.01", "0.1"]  # not 0.001, which no row has
    assert [text.get_text() for text in area.get_yticklabels()] == ["none", "megatron 1.25"]


def test_every_curve_is_named_inside_the_picture_and_points_are_no_curves():
    figure = curves(strengths(shown=("step_time", "drop_rate", "rank_max_over_mean")))
    assert figure is not None
    figure.canvas.draw()
    legend = figure.legends[0]
    assert {text.get_text() for text in legend.get_texts()} == {
        f"noise={noise}, capacity={limit}" for noise in ("0", "0.3") for limit in ("none", "megatron 1.25")
    }
    inside, named = figure.bbox, legend.get_window_extent()
    assert inside.x0 <= named.x0 < named.x1 <= inside.x1
    assert inside.y0 <= named.y0 < named.y1 <= min(area.get_tightbbox().y0 for area in figure.axes)


def test_names_of_the_best_do_not_lie_on_each_other():
    cells = tuple(answer(at, {"auxiliary": at}, time=1e-3 * (1 + at / 100), drops=0.5 - at / 100) for at in range(8))
    far = answer(99, {"auxiliary": 99}, time=5e-3, drops=0.0)
    figure = front(Sweep(name="s", axes=("auxiliary",), answers=(*cells, far)))
    assert figure is not None
    figure.canvas.draw()
    boxes = [text.get_window_extent() for text in figure.axes[0].texts]
    assert len(boxes) >= 2
    assert not [1 for n, one in enumerate(boxes) for other in boxes[:n] if one.overlaps(other)]


def test_short_words():
    assert brief("{kind: loss_free, rate: 0.001}") == "loss_free 0.001"
    assert brief("[[0, 0.1], [500, 0.01]]") == "[[0, 0.1], [500, 0.01]]"
    assert cell_label(["routing.gate", "policy.gate"], {"routing.gate": "topk"}) == "routing.gate=topk"
