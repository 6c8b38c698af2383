from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from moesim.base import loads

GOLDEN = Path(__file__).parents[1] / "golden"
CASES = [case["id"] for case in json.loads((GOLDEN / "metrics.json").read_text(encoding="utf-8"))["cases"]]
FUNCTIONS = {
    "sglang_balancedness": loads.balancedness_sglang,
    "vllm_balancedness": loads.balancedness_vllm,
    "llep_ratio": loads.max_over_mean,
    "maxvio": loads.maxvio,
    "fastmoe_cv": lambda load: loads.coefficient_of_variation(load, sample=True),
    "fastmoe_lmax_over_lmin": loads.lmax_over_lmin,
    "population_cv": loads.coefficient_of_variation,
    "gini": loads.gini,
    "entropy": loads.entropy,
    "normalised_entropy": loads.normalised_entropy,
}
# Whole tokens, as loads are in practice; at least two places.
load_arrays = arrays.arrays(np.int64, st.tuples(st.integers(1, 4), st.integers(2, 12)), elements=st.integers(0, 100_000))
some_load = load_arrays.filter(lambda load: bool((load.sum(axis=-1) > 0).all()))
SCALE_FREE = (
    loads.max_over_mean,
    loads.maxvio,
    loads.balancedness,
    loads.balancedness_vllm,
    loads.coefficient_of_variation,
    loads.gini,
    loads.entropy,
    loads.normalised_entropy,
    loads.dead,
)
PER_LOAD = (*(function for function in SCALE_FREE if function is not loads.balancedness_vllm), loads.lmax_over_lmin)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_golden_values_of_reference_implementations(case: str, name: str) -> None:
    # System: loads[layers, gpus] given to SGLang, vLLM, LeastLoadedEP, FastMoE. Expectation: their own output, 1e-5 relative,
    # including what each says of a load of zeros.
    golden = np.load(GOLDEN / "metrics.npz")
    got = FUNCTIONS[name](golden[f"{case}__in__load"])
    np.testing.assert_allclose(got, golden[f"{case}__out__{name}"], rtol=1e-5, atol=1e-12, equal_nan=True)


def test_sglang_per_layer_values_average_to_its_balancedness() -> None:
    golden = np.load(GOLDEN / "metrics.npz")
    for case in CASES:
        load = golden[f"{case}__in__load"]
        each = [loads.balancedness_sglang(row[None, :]) for row in load]
        np.testing.assert_allclose(each, golden[f"{case}__out__sglang_balancedness_per_layer"], rtol=1e-5)


def test_values_by_hand() -> None:
    # [6, 2, 0, 0]: mean 2, max 6. Population variance (16 + 0 + 4 + 4) / 4 = 6, sample variance 24 / 3 = 8.
    # Gini: sorted 0 0 2 6, ranks -3 -1 1 3: (2 + 18) / (4 * 8) = 0.625.
    load = [6, 2, 0, 0]
    assert loads.max_over_mean(load) == 3.0
    assert loads.maxvio(load) == 2.0
    assert loads.balancedness(load) == pytest.approx(1 / 3)
    assert loads.coefficient_of_variation(load) == pytest.approx(np.sqrt(6) / 2)
    assert loads.coefficient_of_variation(load, sample=True) == pytest.approx(np.sqrt(8) / 2)
    assert loads.lmax_over_lmin(load) == 7.0
    assert loads.gini(load) == pytest.approx(0.625)
    assert loads.entropy(load) == pytest.approx(-(0.75 * np.log(0.75) + 0.25 * np.log(0.25)))
    assert loads.dead(load) == 2
    assert loads.dead(load, threshold=0.25) == 3


def test_the_two_aggregations_differ_when_layers_differ_in_volume() -> None:
    # Layers [1, 3] and [100, 100]: means 2 and 100, maxima 3 and 100. SGLang (2/3 + 1) / 2, vLLM 102 / 103.
    load = [[1, 3], [100, 100]]
    assert loads.balancedness_sglang(load) == pytest.approx(5 / 6, rel=1e-5)
    assert loads.balancedness_vllm(load) == pytest.approx(102 / 103)


def test_one_place_is_balanced_and_has_no_sample_deviation() -> None:
    assert loads.max_over_mean([5]) == 1.0
    assert loads.gini([5]) == 0.0
    assert loads.normalised_entropy([5]) == 1.0
    assert loads.normalised_entropy([0]) == 0.0
    assert np.isnan(loads.coefficient_of_variation([5], sample=True))


@settings(max_examples=40)
@given(load=some_load, factor=st.integers(2, 1000))
def test_measures_do_not_depend_on_the_scale(load: np.ndarray, factor: int) -> None:
    for function in SCALE_FREE:
        np.testing.assert_allclose(function(load * factor), function(load), rtol=1e-9, atol=1e-9, err_msg=function.__name__)


@settings(max_examples=40)
@given(load=load_arrays, seed=st.integers(0, 2**31))
def test_measures_do_not_depend_on_the_order(load: np.ndarray, seed: int) -> None:
    shuffled = np.random.default_rng(seed).permuted(load, axis=-1)
    for function in (*PER_LOAD, loads.balancedness_sglang, loads.balancedness_vllm):
        np.testing.assert_allclose(function(shuffled), function(load), rtol=1e-9, atol=1e-9, err_msg=function.__name__)


@settings(max_examples=40)
@given(load=load_arrays)
def test_measures_stay_within_their_bounds(load: np.ndarray) -> None:
    n = load.shape[-1]
    bounds = {
        loads.max_over_mean: (1.0, n),
        loads.maxvio: (0.0, n - 1.0),
        loads.balancedness: (1.0 / n, 1.0),
        loads.coefficient_of_variation: (0.0, np.sqrt(n - 1.0)),
        loads.gini: (0.0, 1.0 - 1.0 / n),
        loads.entropy: (0.0, np.log(n)),
        loads.normalised_entropy: (0.0, 1.0),
        loads.dead: (0, n),
        loads.lmax_over_lmin: (1.0, load.max() + 1.0),
    }
    for function, (low, high) in bounds.items():
        values = function(load)
        assert values.shape == load.shape[:-1], function.__name__
        assert np.all(values >= low - 1e-12), function.__name__
        assert np.all(values <= high * (1 + 1e-12)), function.__name__


@settings(max_examples=40)
@given(load=some_load)
def test_moving_a_token_from_the_fullest_to_the_emptiest_place_never_looks_worse(load: np.ndarray) -> None:
    # The Pigou-Dalton principle: a transfer from more to less that does not overshoot may not raise inequality.
    row = load[0]
    fullest, emptiest = int(row.argmax()), int(row.argmin())
    gap = int(row[fullest] - row[emptiest])
    after = row.copy()
    after[fullest] -= gap // 2
    after[emptiest] += gap // 2
    for function in (loads.max_over_mean, loads.coefficient_of_variation, loads.gini):
        assert function(after) <= function(row) + 1e-9, function.__name__
    assert loads.entropy(after) >= loads.entropy(row) - 1e-9


@settings(max_examples=40)
@given(load=load_arrays)
def test_functions_of_many_loads_agree_with_one_at_a_time(load: np.ndarray) -> None:
    for function in PER_LOAD:
        np.testing.assert_allclose(function(load), [function(row) for row in load], rtol=1e-12, err_msg=function.__name__)
