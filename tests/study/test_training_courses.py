"""Recorded trainings against predictions: the arithmetic, the fit, and the figures that the documentation shows."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from moesim.base.errors import CalibrationError, TraceError, UsageError
from moesim.desk.training_record import read_recorded
from moesim.models.router.law import LAWS, Law
from moesim.models.source.training import CONSTANTS
from moesim.study.training_courses import (
    Course,
    Recorded,
    Strategy,
    lost_layers,
    order,
    order_of_strategies,
    predict,
    score,
    seed_noise,
    source_of,
    windows,
)
from moesim.study.training_fit import coarser, constants_of, fit

ROOT = Path(__file__).resolve().parents[2]
RECORDINGS = ROOT / "tests" / "data" / "trainings"
DATA = ROOT / "tests" / "data"
SEALED = {"sealed": DATA / "trainings_sealed", "blind": DATA / "trainings_blind", "blind again": DATA / "trainings_blind_again"}
PAGE = ROOT / "docs" / "models" / "training.md"
FIGURES = json.loads((ROOT / "tests" / "data" / "training_figures.json").read_text(encoding="utf-8"))
ROWS = {row["file"]: row for row in FIGURES["runs"]}


def course(values, idle=0.0, dropped=0.0):
    values = np.asarray(values, dtype=float)[:, None]
    return Course(maxvio=values, idle=np.full(values.shape, idle), dropped=np.full(values.shape, dropped))


def small(strategy=None, steps=100, **changes):
    given = {"experts": 8, "top_k": 2, "layers": 1, "sources": 2, "tokens_per_source": 64, "sequence_length": 32, "domains": 2}
    return Recorded(name="x", strategy=strategy or Strategy(), seed=0, course=course(np.ones(steps)), **(given | changes))


def test_windows_are_means_over_steps_and_layers():
    values = np.arange(200.0).reshape(100, 2)
    assert windows(values, 100).tolist() == [values[:50].mean(), values[50:].mean()]
    # Half as many steps stand for as many recorded ones.
    assert windows(values[:50], 100).tolist() == [values[:25].mean(), values[25:50].mean()]
    with pytest.raises(CalibrationError, match="40 steps are less than one window of 50"):
        windows(values, 40)


def test_a_score_by_hand():
    recorded = course(np.repeat([1.0, 2.0, 4.0], 50), idle=2.0)
    predicted = course(np.repeat([1.1, 2.0, 3.0], 50), dropped=0.25)
    found = score(predicted, recorded)
    assert (found.lost_predicted, found.lost_recorded) == ((), (0,))  # two idle experts of layer 0
    assert found.median == pytest.approx(10.0)  # 10 %, 0 and 25 %
    assert found.bias == pytest.approx(0.0)  # +10 %, 0 and -25 %
    assert (found.end_predicted, found.end_recorded) == (3.0, 4.0)
    assert (found.idle_predicted, found.idle_recorded, found.dropped_predicted) == (0.0, 2.0, 0.25)


def test_pairs_that_end_alike_have_no_order():
    ends = {"a": (1.0, 1.0), "b": (1.2, 1.05), "c": (1.1, 2.0)}
    found = order({name: score(course(np.full(50, mine)), course(np.full(50, theirs))) for name, (mine, theirs) in ends.items()})
    assert found == (2, (("b", "c"),))  # a and b are alike; c is truly above both, predicted above a only


def test_coarser_steps_do_the_same():
    # Pushes add up: 4 small steps are one large one. Random walks add up by squares. Compare the growth of the spread, and its fading.
    law, coarse = LAWS["small-lm"], coarser(LAWS["small-lm"], 4)
    for layer in range(4):
        mine, theirs = law.of_layer(layer, 4), coarse.of_layer(layer, 4)
        assert theirs.grown(50) == pytest.approx(mine.grown(200))
        assert theirs.faded(25) == pytest.approx(mine.faded(100))
        assert theirs.feedback == pytest.approx(4 * mine.feedback)
        assert theirs.drift == pytest.approx(2 * mine.drift)
    # Random walks take other steps, so none goes far here.
    law = replace(law, drift=1e-5, deep=tuple(line for line in law.deep if line[0] != "domain_drift"))
    exact = predict(small(steps=200, tokens_per_source=256), **constants_of(law)).maxvio[-80:].mean()
    rough = predict(small(steps=200, tokens_per_source=256), times=4, **constants_of(coarser(law, 4))).maxvio[-20:].mean()
    assert rough == pytest.approx(exact, rel=0.15)


def test_strategies_become_plug_ins():
    source = source_of(Strategy(bias=0.01, scoring="sigmoid", capacity=1.25), sequence_length=8, domains=3, preset="small-lm")
    assert (source.gate.kind, source.gate.rate, source.gate.scoring) == ("loss_free", 0.01, "sigmoid")
    assert (source.capacity.kind, source.capacity.factor) == ("megatron", 1.25)
    source = source_of(Strategy(aux=0.1, scope="batch", noise=0.3, z=0.5), sequence_length=8, domains=3)
    assert (source.gate.kind, source.gate.amount, source.scope) == ("noisy_topk", 0.3, "batch")
    assert (source.auxiliary, source.z) == (((0, 0.1),), ((0, 0.5),))
    assert source_of(Strategy(), sequence_length=8, domains=3).gate.kind == "topk"


def test_drops_are_predicted():
    found = predict(small(Strategy(capacity=1.0), steps=10), preset="small-lm")
    assert (found.dropped > 0).all()
    assert (predict(small(Strategy(capacity=4.0), steps=10), preset="small-lm").dropped == 0).all()  # 8 experts, top-2: room for all


def test_a_constant_is_found_again():
    # A training that this very model made with one feedback; the fit starts with another and is told nothing.
    true = Law(feedback=8e-3, domain_feedback=1e-9, drift=1e-3)
    where = small(steps=100)
    recorded = replace(where, course=predict(where, seed=0, **constants_of(true)))
    tried = []
    found = fit([recorded], replace(true, feedback=4e-3), ["feedback"], times=1, evaluations=14, progress=lambda *what: tried.append(what))
    assert found.feedback == pytest.approx(true.feedback, rel=0.1)
    assert 1 < len(tried) <= 14  # it may stop before when nothing changes any more
    assert min(error for _, error, _ in tried) < tried[0][1] / 4


def test_every_constant_has_a_source_on_the_page():
    table = (ROOT / "docs" / "models" / "training.md").read_text(encoding="utf-8").partition("where they are from")[2].partition("\n\n")[0]
    for name in CONSTANTS:
        assert f"`{name}`" in table, name


@pytest.mark.parametrize(("names", "message"), [(["feedbak"], "'feedbak'"), (["growth"], "'growth'"), (["fitted_at"], "'fitted_at'")])
def test_what_cannot_be_fitted_is_named(names, message):
    with pytest.raises(CalibrationError, match=message):
        fit([small()], LAWS["assumed"], names)
    with pytest.raises(CalibrationError, match="no recorded trainings"):
        fit([], LAWS["assumed"], ["feedback"])


def test_the_figures_are_those_of_the_recordings():
    assert sorted(ROWS) == sorted(path.name for folder in (RECORDINGS, *SEALED.values()) for path in folder.glob("training-*.json"))
    for name, row in ROWS.items():
        recorded = read_recorded(SEALED.get(row["role"], RECORDINGS) / name)
        assert (row["strategy"], row["seed"]) == (recorded.name, recorded.seed)
        np.testing.assert_allclose(row["recorded"], windows(recorded.course.maxvio, len(recorded.course.maxvio)), atol=1e-4)
        errors = np.array(row["predicted"]) / row["recorded"] - 1
        assert row["median"] == pytest.approx(100 * np.median(np.abs(errors)), abs=0.05)


@pytest.mark.parametrize("name", ["training-aux-0.001-seed-0.json", "training-bias-0.01-seed-0.json"])
def test_the_figures_are_those_of_the_preset(name):
    recorded = read_recorded(RECORDINGS / name)
    played = [predict(recorded, steps=100, seed=seed, preset=FIGURES["preset"]).maxvio for seed in FIGURES["seeds"]]
    found = np.mean([windows(values, 100) for values in played], axis=0)
    np.testing.assert_allclose(ROWS[name]["predicted"][:2], found, rtol=2e-3)


@pytest.mark.parametrize("role", SEALED)
def test_what_was_sealed_is_what_is_compared(role):
    text = (SEALED[role] / "predictions.json").read_bytes()
    digest = hashlib.sha256(text).hexdigest()
    assert digest in PAGE.read_text(encoding="utf-8")
    assert digest in (SEALED[role] / "README.md").read_text(encoding="utf-8")
    content = json.loads(text)
    rows = [row for row in ROWS.values() if row["role"] == role]
    assert {row["strategy"] for row in rows} == set(content["strategies"])  # none that was sealed is left out
    for row in rows:
        played = [np.array(course["maxvio"]) for course in content["strategies"][row["strategy"]]]
        np.testing.assert_allclose(row["predicted"], windows(np.mean(played, axis=0), 1200), atol=2e-4)


@pytest.mark.parametrize("role", ["fitted", "held back", *SEALED])
def test_what_was_reached_is_what_the_figures_say(role):
    mine = [row for row in ROWS.values() if row["role"] == role]
    errors = [abs(one / other - 1) for row in mine for one, other in zip(row["predicted"], row["recorded"], strict=True)]
    summary = FIGURES["summary"][role]
    assert (summary["runs"], summary["median"]) == (len(mine), pytest.approx(100 * float(np.median(errors)), abs=0.02))
    lost = [sum(len(row["lost"][side]) for row in mine) for side in (0, 1)]
    both = sum(len({*row["lost"][0]} & {*row["lost"][1]}) for row in mine)
    assert (summary["lost_both"], summary["lost_predicted_only"], summary["lost_recorded_only"]) == (both, lost[0] - both, lost[1] - both)
    told = [(2 * row["collapsed"][0] > row["played"], row["collapsed"][1] == 1) for row in mine]
    assert summary["collapsed_both"] == told.count((True, True))
    assert summary["collapsed_predicted_only"] == told.count((True, False))
    assert summary["collapsed_recorded_only"] == told.count((False, True))
    assert all((row["collapsed"][1] == 1) == any(idle > 0.5 for idle in row["idle_layers"][1]) for row in mine)
    page = " ".join(PAGE.read_text(encoding="utf-8").split())
    assert f"| {role} | {len(mine)} | {summary['median']:.1f} % | {summary['layer_median']:.1f} % |" in page


def test_the_rankings_are_those_of_the_figures():
    ranked = {"old": ("fitted", "held back"), "blind": ("blind again",), "all": ("fitted", "held back", "blind again")}
    for label, roles in ranked.items():
        found, mine = FIGURES["summary"]["order"][label], [row for row in ROWS.values() if row["role"] in roles]
        ends = {row["file"]: row["end"] for row in mine}
        told = [
            (one, other) for one in ends for other in ends
            if one < other and abs(ends[one][1] - ends[other][1]) > 0.1 * min(ends[one][1], ends[other][1])
        ]  # fmt: skip
        wrong = [(one, other) for one, other in told if (ends[one][0] - ends[other][0]) * (ends[one][1] - ends[other][1]) <= 0]
        assert (found["pairs"], len(found["wrong_pairs"])) == (len(told), len(wrong))
        page = " ".join(PAGE.read_text(encoding="utf-8").split())
        assert f"{found['strategy_pairs'] - len(found['wrong_strategy_pairs'])} of {found['strategy_pairs']} pairs of strategies" in page
        assert f"{found['pairs'] - len(found['wrong_pairs'])} of {found['pairs']} pairs of single trainings" in page


def test_what_seeds_make_of_a_strategy_by_hand():
    # Logarithms 0 and 2, mean 1, squares 1 and 1, one degree of freedom; the strategy with one seed says nothing.
    assert seed_noise({"a": [1.0, math.e**2], "b": [5.0]}) == pytest.approx(2**0.5)
    assert seed_noise({"a": [1.0, math.e**2], "b": [3.0, 3.0]}) == pytest.approx(1.0)  # two of two
    with pytest.raises(CalibrationError, match="two seeds"):
        seed_noise({"a": [1.0], "b": [2.0]})


def test_strategies_closer_than_seeds_have_no_order():
    recorded = {"a": [1.0, 1.0], "b": [math.e**0.3], "c": [math.e]}
    # Noise 0.1: a and b must be more than 0.2 sqrt(1 + 1/2) = 0.245 apart, and are; noise 0.13: 0.318, and are not.
    assert order_of_strategies({"a": 2.0, "b": 1.0, "c": 3.0}, recorded, 0.1) == (3, (("a", "b"),))
    assert order_of_strategies({"a": 2.0, "b": 1.0, "c": 3.0}, recorded, 0.13) == (2, ())
    assert order_of_strategies({"a": 2.0, "b": 3.0, "c": 3.0}, recorded, 0.13) == (2, (("b", "c"),))  # alike is no order


def test_a_layer_has_lost_experts_if_some_are_idle_at_the_end():
    idle = np.zeros((10, 3))
    idle[:8, 0], idle[8:, 1], idle[9, 2] = 9.0, 0.75, 1.0  # before the end only; at the end; half an expert, which is not more than half
    assert lost_layers(idle) == (1,)


def test_constants_over_depth_are_found_again():
    true = replace(Law(domain_feedback=1e-9, drift=1e-3), deep=(("feedback", ((0.0, 2e-3), (1.0, 1e-2))),))
    where = small(steps=50, layers=2)
    recorded = replace(where, course=predict(where, seed=0, **constants_of(true)))
    start = replace(true, deep=(("feedback", ((0.0, 4e-3), (1.0, 5e-3))),))
    found = fit([recorded], start, ["feedback"], times=1, by_layer=True, evaluations=24)
    assert [value for _, value in dict(found.deep)["feedback"]] == pytest.approx([2e-3, 1e-2], rel=0.3)


def test_recordings_that_are_damaged_are_refused(tmp_path):
    name = "training-none-seed-0"
    about = json.loads((RECORDINGS / f"{name}.json").read_text(encoding="utf-8"))
    (tmp_path / "x.json").write_text(json.dumps(about), encoding="utf-8")
    with pytest.raises(TraceError, match="no such file"):
        read_recorded(tmp_path / "x.json")
    (tmp_path / f"{name}.npz").write_bytes((RECORDINGS / f"{name}.npz").read_bytes())
    (tmp_path / "short.json").write_text(json.dumps(about | {"finished": 7}), encoding="utf-8")
    with pytest.raises(TraceError, match=r"array maxvio: has shape \(1200, 4\), expected \(7, 4\)"):
        read_recorded(tmp_path / "short.json")
    (tmp_path / "bad.json").write_text(json.dumps(about | {"settings": {}}), encoding="utf-8")
    with pytest.raises(UsageError, match="not those of a training"):
        read_recorded(tmp_path / "bad.json")
    (tmp_path / "other.json").write_text("{}", encoding="utf-8")
    with pytest.raises(UsageError, match="no recording of a training"):
        read_recorded(tmp_path / "other.json")
    assert math.isclose(read_recorded(RECORDINGS / f"{name}.json").course.maxvio.max(), np.load(tmp_path / f"{name}.npz")["maxvio"].max())
