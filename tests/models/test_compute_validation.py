"""The documented errors of the kernel model are those of the code: recomputed from the measured rows."""

import importlib.util
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("moesim_compare_kernels", ROOT / "benchmarks" / "compare_kernels.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


@pytest.fixture(scope="module")
def compared(script):
    return script.compare()


def test_an_even_split_is_even_and_keeps_every_route(script):
    # 3 routes on 6 experts: every second one. 7 on 3: two or three each.
    assert script.even_rows(3, 6).tolist() == [0, 1, 0, 1, 0, 1]
    assert sorted(script.even_rows(7, 3).tolist()) == [2, 2, 3]


def test_error_and_bias_are_told_apart(script):
    rows = [script.Compared(model="m", dtype="bf16", ranks=1, tokens=1, error=error) for error in (-0.3, 0.1)]
    # Half of 0.3 + 0.1, half of 0.1 - 0.3.
    assert script.told(rows) == "20.0 % (−10.0 %)"


@pytest.mark.parametrize(
    ("page", "tables"), [("docs/validation.md", ("regimes", "models", "groups")), ("docs/models/compute.md", ("regimes",))]
)
def test_the_tables_of_a_page_are_what_the_model_gives_now(script, compared, page, tables):
    assert len(compared) == 621
    text = (ROOT / page).read_text(encoding="utf-8")
    assert "621 measured rows" in text or page != "docs/validation.md"
    for table in tables:
        assert getattr(script, table)(compared) in text, f"run: python benchmarks/compare_kernels.py, and bring {page} up to date"


def test_the_calibrated_model_is_what_the_page_says_and_its_bias_is_gone(script):
    compared = script.compare(kind="calibrated")
    text = (ROOT / "docs/validation.md").read_text(encoding="utf-8")
    assert script.regimes(compared) in text, "run: python benchmarks/compare_kernels.py, and bring docs/validation.md up to date"
    # docs/models/compute.md: "5.0 % (+0.8 %)".
    spread = [row.error for row in compared if row.regime == "prefill" and row.ranks > 1]
    assert script.told([row for row in compared if row.regime == "prefill" and row.ranks > 1]) in (
        ROOT / "docs/models/compute.md"
    ).read_text(encoding="utf-8")
    assert abs(sum(spread) / len(spread)) < 0.03


def test_the_sentences_about_the_bias_are_true(compared):
    # "In prefill the bias of every model is negative, from ... to ..."; "too fast in every group but one".
    def bias(keep):
        errors = [row.error for row in compared if keep(row)]
        return 100 * sum(errors) / len(errors)

    prefill = [row for row in compared if row.regime == "prefill"]
    by_model = [
        bias(lambda row, key=key: (row.model, row.dtype) == key and row.regime == "prefill")
        for key in {(r.model, r.dtype) for r in prefill}
    ]
    told = (ROOT / "docs/models/compute.md").read_text(encoding="utf-8")
    for value in (max(by_model), min(by_model)):
        assert value < 0
        assert f"{value:.1f} %".replace("-", "−") in told
    groups = {(row.model, row.dtype, row.ranks) for row in prefill}
    slow = [
        group for group in groups if bias(lambda row, key=group: (row.model, row.dtype, row.ranks) == key and row.regime == "prefill") > 0
    ]
    assert slow == [("mixtral-8x7b", "fp8", 1)]
    # "at EP 16 in prefill by a factor of two and a half to four"
    wide = [
        1 / (1 + bias(lambda row, key=group: (row.model, row.dtype, row.ranks) == key and row.regime == "prefill") / 100)
        for group in groups
        if group[2] == 16
    ]
    assert min(wide) >= 2.4
    assert max(wide) <= 4
