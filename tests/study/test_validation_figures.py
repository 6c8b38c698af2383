"""The validation page and the shipped profiles are what the code gives now; no class of errors gets worse unnoticed."""

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest

from moesim.desk.presets.profiles import profile_presets, shipped_profiles
from moesim.desk.validation_files import read_folder
from moesim.study.calibrate import calibrate, with_carried
from moesim.study.hold_back import validate_held_back
from moesim.study.validate import validate

ROOT = Path(__file__).parents[2]
MEASURED = ROOT / "tests" / "data" / "measured"
HINT = "run: python docs/validation_figures.py, look at what changed, and commit it"
CHEAP = ("deepep_ll_internode.csv", "nccl_alltoall_intranode.csv")
"""Tables that are fitted again here; the others take minutes."""

SLACK = 0.2
"""An error class may grow by a fifth of what is committed."""

ROUNDING = 0.05
"""Per cent: below it, an error is as good as none."""


def script(name):
    spec = importlib.util.spec_from_file_location(f"moesim_{name}", ROOT / "docs" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


@pytest.fixture(scope="module")
def page():
    yield from script("validation_page")


@pytest.fixture(scope="module")
def maker():
    yield from script("validation_figures")


@pytest.fixture(scope="module")
def figures():
    return json.loads((ROOT / "tests" / "data" / "validation_figures.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def tables():
    return read_folder(MEASURED)[0]


@pytest.fixture(scope="module")
def now(tables, maker):
    return validate(maker.thinned(tables), shipped_profiles())


def worse(was, scores, which="mape"):
    """Return what got worse by more than a fifth, or is not predicted any more, against committed figures."""
    found = {(score.table, score.regime): score for score in scores}
    said = []
    for item in was:
        if not item["n"]:
            continue
        score = found.get((item["table"], item["regime"]))
        if score is None:
            said.append(f"{item['table']} {item['regime']}: gone")
            continue
        if score.errors.n < item["n"]:
            said.append(f"{item['table']} {item['regime']}: {score.errors.n} of {item['n']} rows are still predicted")
        error = getattr(score.errors, which)
        if item[which] is not None and error > item[which] * (1 + SLACK) + ROUNDING:
            said.append(f"{item['table']} {item['regime']}: {which} {item[which]:.2f} became {error:.2f}")
    return said


def test_no_error_class_is_worse_than_committed_and_no_case_is_lost(figures, now):
    assert worse(figures["sampled"], now.scores) == [], HINT


def test_the_committed_figures_are_those_of_this_code(figures, now):
    said = {(item["table"], item["regime"]): item for item in figures["sampled"]}
    assert {(score.table, score.regime) for score in now.scores} == set(said), HINT
    for score in now.scores:
        item = said[score.table, score.regime]
        assert score.errors.n == item["n"], (score.table, score.regime, HINT)
        if score.errors.n:
            assert score.errors.mape == pytest.approx(item["mape"], rel=2e-3, abs=1e-9), (score.table, score.regime, HINT)
            assert score.errors.bias == pytest.approx(item["bias"], rel=2e-3, abs=1e-3 * max(item["mape"], 1e-6)), (score.table, HINT)


def test_worse_figures_are_noticed(figures, now):
    # The same check on figures that claim less error, or more rows, than there is.
    item = next(item for item in figures["sampled"] if item["n"] and item["mape"] > 1)
    assert len(worse([item | {"mape": item["mape"] / 1.3}], now.scores)) == 1
    assert len(worse([item | {"n": item["n"] + 1}], now.scores)) == 1
    assert len(worse([item | {"regime": "of another time"}], now.scores)) == 1
    assert worse([item], now.scores) == []


def test_the_page_holds_the_committed_figures(page):
    assert page.page() == page.PAGE.read_text(encoding="utf-8"), "run: python docs/validation_page.py"


def test_every_table_of_the_folder_is_on_the_page(figures, tables):
    named = {item["table"] for item in figures["held_back"]}
    for table in tables:
        stem = table.name.rpartition(".")[0]
        # What a table is predicted from, and the sealed papers of a run of the testbed, are no tables of their own.
        beside = stem == "testbed/moe_fwd_calibration" or table.name.endswith(".json") or "expert_counts" in stem
        assert stem in named or stem.startswith("routing_deepseek") or beside, stem


@pytest.mark.parametrize("name", CHEAP)
def test_shipped_profiles_are_what_the_tables_give(name, tables):
    found = with_carried(calibrate([table for table in tables if table.name == name], made="2026-11", check=False).profiles)
    shipped = shipped_profiles()
    compared = 0
    for gpu, profile in found.items():
        for key, section in profile.sections.items():
            there = shipped[gpu].sections[key]
            if there.carried_from != section.carried_from:
                continue  # filled up from another GPU here because this one table does not hold its own rows
            compared += 1
            assert there.values() == pytest.approx(section.values(), rel=1e-3), (gpu, key, HINT)
            assert there.fitted_range == {name: pytest.approx(pair) for name, pair in section.fitted_range.items()}
    assert compared >= 2


def test_held_back_figures_are_those_of_this_code(figures, tables):
    one = [table for table in tables if table.name == CHEAP[0]]
    scores = validate_held_back(one, shipped_profiles()).scores
    was = [item for item in figures["held_back"] if item["table"] == CHEAP[0].removesuffix(".csv")]
    assert len(was) == len(scores)
    assert worse(was, scores) == [], HINT
    for score in scores:
        item = next(item for item in was if item["regime"] == score.regime)
        assert score.errors.mape == pytest.approx(item["mape"], rel=0.01), HINT


def test_thresholds_have_their_tables(page, figures):
    for target in json.loads(page.TARGETS.read_text(encoding="utf-8")):
        assert target["error"] in {"mean", "worst", "ratio", "wrong sign", "wrong sign beyond chance", "wrong winners"}
        assert any(page.fnmatch(item["table"], target["table"]) for item in figures["held_back"]), target["class"]


def test_intervals_of_held_back_rows_hold_about_nine_of_ten(figures):
    # Over all rows whose model was fitted; single tables stand on the page.
    parts = [
        (item["coverage"], item["coverage_rows"]) for item in figures["held_back"] if item["coverage_rows"] and "fitted" in item["basis"]
    ]
    shares, rows = np.array(parts).T
    assert 0.8 <= float(shares @ rows / rows.sum()) <= 0.99


def test_every_gpu_profile_is_committed():
    assert {"h200-sxm", "h100-sxm", "a100-sxm-80", "gb200-nvl72"} <= set(profile_presets())
