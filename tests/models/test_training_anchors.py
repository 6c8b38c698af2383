"""What is published about routers in training: with the settings of the anchors, the dynamics do what the papers show, and else do not."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from moesim.models.router import law
from moesim.study import training_anchors
from moesim.study.training_anchors import ALL, Anchor

FIGURES = Path(__file__).resolve().parents[2] / "tests" / "data" / "training_figures.json"


@pytest.mark.parametrize("play", ALL, ids=lambda play: play.__name__)
def test_published_facts_hold_and_the_figures_say_what_came_out(play):
    told = {row["fact"]: row for row in json.loads(FIGURES.read_text(encoding="utf-8"))["anchors"]}
    for anchor in play():
        assert anchor.holds, anchor
        assert told[anchor.fact]["found"] == anchor.found
        assert told[anchor.fact]["published"] == anchor.published


def test_without_any_push_nothing_is_left_of_the_anchors(monkeypatch):
    # The checks can fail: a router that nothing moves keeps all its experts, and a loss that moves nothing drops as much as none.
    def still(state, constants, **_):
        state.offsets = state.offsets * (1.0 - constants.decay)

    monkeypatch.setattr("moesim.models.source.training_run.advance", still)
    assert not training_anchors.collapse()[0].holds
    assert not training_anchors.drops()[1].holds
    assert not training_anchors.loss_free()[2].holds


def test_an_anchor_holds_between_its_ends():
    anchor = Anchor(fact="x", source="y", published="1", found="1", low=1.0, high=2.0, value=2.0)
    assert anchor.holds
    assert not replace(anchor, value=2.01).holds
    assert not replace(anchor, value=float("nan")).holds
    assert law.LAWS["small-lm"].fitted_at == (16, 2)
