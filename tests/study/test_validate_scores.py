"""Errors, order, ratios and coverage, by hand."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moesim.study.scores import coverage_of, errors_of, order_of, ratios_of, summary_of


def test_errors_are_signed_and_relative_or_absolute():
    measured, predicted = np.array([10.0, 20.0]), np.array([11.0, 15.0])
    assert errors_of(measured, predicted, "time").tolist() == pytest.approx([10, -25])
    assert errors_of(np.array([0.1]), np.array([0.0985]), "fraction").tolist() == pytest.approx([-1.5])
    assert errors_of(np.array([0.0, 4.0]), np.array([1.0, 5.0]), "count").tolist() == [100, 25]


def test_a_summary_leaves_out_what_was_not_predicted():
    found = summary_of(np.array([10.0, -20.0, np.nan, 30.0]))
    assert (found.n, found.mape, found.median_ape, found.worst) == (3, 20, 20, 30)
    assert found.bias == pytest.approx(20 / 3)
    assert found.p90_ape == pytest.approx(28)  # between the second and the third: 20 + 0.8 x 10
    assert summary_of(np.array([np.nan])).n == 0
    assert np.isnan(summary_of(np.zeros(0)).mape)


def test_coverage_counts_rows_with_an_interval():
    measured = np.array([1.0, 2.0, 3.0, 4.0])
    low, high = np.array([0.5, 2.5, np.nan, 4.0]), np.array([1.5, 3.0, 9.0, 4.0])
    assert coverage_of(measured, low, high) == (3, pytest.approx(2 / 3))
    assert coverage_of(measured[:0], low[:0], high[:0])[0] == 0


def test_order_counts_pairs_beyond_noise():
    # Experiment x: measured 1, 2, 3 and predicted 1, 3, 2: of three pairs one is the wrong way round. Spearman: 1 - 6 (0+1+1) / (3 x 8).
    measured = np.array([1.0, 2.0, 3.0, 1.0, 1.01])
    predicted = np.array([1.0, 3.0, 2.0, 2.0, 1.0])
    rivals = np.array(["x", "x", "x", "y", "y"])
    found = order_of(measured, predicted, rivals, np.full(5, 0.015))
    assert (found.experiments, found.pairs, found.wrong) == (2, 3, 1)  # the pair of y differs by less than noise
    assert found.correlation == pytest.approx(0.5)
    assert found.wrong_rate == pytest.approx(1 / 3)
    nothing = order_of(measured, predicted, np.array([""] * 5), np.full(5, 0.015))
    assert nothing.experiments == 0
    assert np.isnan(nothing.wrong_rate)


def test_a_tie_in_the_prediction_finds_no_winner():
    found = order_of(np.array([1.0, 2.0]), np.array([1.0, 1.0]), np.array(["x", "x"]), np.full(2, 0.01))
    assert (found.pairs, found.wrong) == (1, 1)


@given(st.lists(st.floats(0.1, 10), min_size=2, max_size=8, unique=True), st.floats(0.1, 5))
def test_order_does_not_depend_on_a_common_factor(times, factor):
    measured = np.array(times)
    found = order_of(measured, factor * measured, np.full(len(times), "x"), np.full(len(times), 0.01))
    assert found.wrong == 0
    assert np.isnan(found.correlation) or found.correlation == pytest.approx(1)


def test_ratios_forgive_a_common_factor():
    # Skewed over balanced: measured 2, predicted 2 although both times are 30 % too long; the second ratio is on the wrong side of 1.
    measured = np.array([1.0, 2.0, 1.0, 0.8])
    predicted = 1.3 * np.array([1.0, 2.0, 1.0, 1.1])
    reference = np.array([-1, 0, -1, 2])
    rule = ("max over mean", np.array([np.nan, 2.2, np.nan, 0.8]))
    found = ratios_of(measured, predicted, reference, np.full(4, 0.015), np.ones(4, dtype=bool), rule)
    assert found.errors.n == 2
    assert found.errors.mape == pytest.approx((0 + 37.5) / 2)
    assert found.baseline_errors.mape == pytest.approx((10 + 0) / 2)
    assert (found.told, found.wrong_sign) == (2, 1)
    assert (found.told_beyond, found.wrong_beyond) == (None, None)
    # Twice the root of 2 (0.015^2 + 0.1^2) is 0.29: a doubling is beyond it, the fall to 0.8 is not.
    found = ratios_of(measured, predicted, reference, np.full(4, 0.015), np.ones(4, dtype=bool), rule, np.full(4, 0.1))
    assert (found.told, found.wrong_sign, found.told_beyond, found.wrong_beyond) == (2, 1, 1, 0)
