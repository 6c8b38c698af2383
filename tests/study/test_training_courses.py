"""Recorded trainings against predictions: the arithmetic, the fit, and the figures that the documentation shows."""

from __future__ import annotations

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
from moesim.study.training_courses import Course, Recorded, Strategy, order, predict, score, source_of, windows
from moesim.study.training_fit import coarser, constants_of, fit

ROOT = Path(__file__).resolve().parents[2]
RECORDINGS = ROOT / "tests" / "data" / "trainings"
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
    law = replace(LAWS["small-lm"], fading=40.0)
    coarse = coarser(law, 4)
    assert coarse.spread(25) == pytest.approx(law.spread(100))
    assert coarse.faded(25) == pytest.approx(law.faded(100))
    assert coarse.feedback == 4 * law.feedback
    assert coarse.drift == 2 * law.drift
    exact = predict(small(steps=400, tokens_per_source=256), **constants_of(law)).maxvio[-100:].mean()
    rough = predict(small(steps=400, tokens_per_source=256), times=4, **constants_of(coarse)).maxvio[-25:].mean()
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
    assert sorted(ROWS) == sorted(path.name for path in RECORDINGS.glob("*.json"))
    for name, row in ROWS.items():
        recorded = read_recorded(RECORDINGS / name)
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


def test_what_was_reached_is_what_the_figures_say():
    held = [row for row in ROWS.values() if row["role"] == "held back"]
    errors = [abs(one / other - 1) for row in held for one, other in zip(row["predicted"], row["recorded"], strict=True)]
    summary = FIGURES["summary"]["held back"]
    assert (summary["runs"], summary["median"]) == (len(held), round(100 * float(np.median(errors)), 2))
    lost = [sum(len(row["lost"][side]) for row in held) for side in (0, 1)]
    both = sum(len({*row["lost"][0]} & {*row["lost"][1]}) for row in held)
    assert (summary["lost_both"], summary["lost_predicted_only"], summary["lost_recorded_only"]) == (both, lost[0] - both, lost[1] - both)
    assert summary["layers"] == 4 * len(held)
    page = (ROOT / "docs" / "models" / "training.md").read_text(encoding="utf-8")
    assert f"{summary['median']:.1f} % on the ten held back" in page
    assert f"and {FIGURES['summary']['fitted']['median']:.1f} % on the four fitted" in page
    right = FIGURES["summary"]["pairs"] - len(FIGURES["summary"]["wrong_pairs"])
    assert f"right for {right} of the {FIGURES['summary']['pairs']} pairs" in page
    lost = f"{summary['lost_both']} that lost experts are predicted, {summary['lost_recorded_only']} are not"
    assert f"{lost}, and {summary['lost_predicted_only']} are predicted that lost none" in " ".join(page.split())
    ends = {row["file"]: row["end"] for row in ROWS.values()}
    told = [
        (one, other) for one in ends for other in ends
        if one < other and abs(ends[one][1] - ends[other][1]) > 0.1 * min(ends[one][1], ends[other][1])
    ]  # fmt: skip
    wrong = [pair for pair in told if (ends[pair[0]][0] > ends[pair[1]][0]) != (ends[pair[0]][1] > ends[pair[1]][1])]
    assert (len(told), len(wrong)) == (FIGURES["summary"]["pairs"], len(FIGURES["summary"]["wrong_pairs"]))


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
