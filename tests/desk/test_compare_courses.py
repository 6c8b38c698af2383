"""The figure of a comparison that shows how variants develop over their steps."""

from __future__ import annotations

from pathlib import Path

import pytest

from moesim.desk.comparing import ask, conclude
from moesim.desk.report.comparison.courses import FEWEST
from moesim.desk.report.comparison.page import drawings
from moesim.desk.study_cells import play

ROOT = Path(__file__).resolve().parents[2]
SCENARIO = ROOT / "scenarios" / "do-trainings-develop-as-recorded.yaml"
RECORDED = "routing={kind: recorded, trace: ../tests/data/trainings/training-none-seed-0.npz}"


def drawn(words, variants):
    question = ask(SCENARIO, words, variants, replicates=1)
    return drawings(conclude(question, [play(cell) for cell in question.cells()])).get("courses")


@pytest.fixture(scope="module")
def figure():
    return drawn([f"steps={FEWEST}", "model.layers=4"], [f"as_written recorded:{RECORDED}", "loss:routing.auxiliary=0.1"])


def test_a_strategy_and_its_recording_have_one_colour(figure):
    colours = {name: (colour, pattern) for name, colour, pattern in figure.legend}
    assert colours["as_written"][0] == colours["as_written recorded"][0] != colours["loss"][0]
    assert [pattern for _, pattern in colours.values()] == ["", "dashed", ""]


def test_it_says_what_it_shows(figure):
    assert "MaxVio" in figure.svg
    assert "step time" in figure.svg
    assert "as_written recorded" in figure.alt
    assert figure.caption.startswith("Dashes replay a recording")


def test_where_nothing_develops_there_is_none():
    even = "routing={kind: uniform}"
    assert drawn(["steps=2"], ["loss:routing.auxiliary=0.1"]) is None  # too few steps
    assert drawn([f"steps={FEWEST}", even], ["other:policy.placement=round_robin"]) is None
