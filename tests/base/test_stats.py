from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import stdtrit

from moesim.base.stats import STUDENT_95, Estimate, mean_interval, student_quantile

samples = st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=20)


def test_interval_by_hand() -> None:
    # 1 2 3 4 5: mean 3, sample variance 2.5, standard error sqrt(0.5); the 97.5 % quantile of Student's t with 4 degrees of freedom
    # is 2.776445 in every table.
    estimate = mean_interval([1, 2, 3, 4, 5])
    assert estimate.value == 3.0
    assert estimate.n == 5
    assert estimate.low == pytest.approx(3 - 2.776445 * math.sqrt(0.5), abs=1e-6)
    assert estimate.high == pytest.approx(3 + 2.776445 * math.sqrt(0.5), abs=1e-6)


def test_interval_with_another_confidence_by_hand() -> None:
    # The 95 % quantile (two-sided 90 %) with 4 degrees of freedom is 2.131847.
    estimate = mean_interval([1, 2, 3, 4, 5], confidence=0.9)
    assert estimate.high == pytest.approx(3 + 2.131847 * math.sqrt(0.5), abs=1e-6)


def test_one_sample_says_nothing_of_spread() -> None:
    assert mean_interval([4.0]) == Estimate(value=4.0, low=None, high=None, n=1)


def test_equal_samples_give_exactly_their_value() -> None:
    # 0.1 added ten times is not 1.0; an unchanging metric must not get an interval of rounding errors.
    assert mean_interval([0.1] * 10) == Estimate(value=0.1, low=0.1, high=0.1, n=10)


@settings(max_examples=50)
@given(values=samples, factor=st.floats(0.1, 100), shift=st.floats(-1e3, 1e3))
def test_interval_moves_and_scales_with_the_samples(values: list[float], factor: float, shift: float) -> None:
    one = mean_interval(values)
    other = mean_interval([factor * value + shift for value in values])
    size = max(1.0, *(abs(value) for value in values)) * factor + abs(shift)
    for name in ("value", "low", "high"):
        assert getattr(other, name) == pytest.approx(factor * getattr(one, name) + shift, abs=1e-9 * size)


@settings(max_examples=50)
@given(values=samples)
def test_interval_holds_the_mean_and_widens_with_confidence(values: list[float]) -> None:
    narrow, wide = mean_interval(values, 0.5), mean_interval(values, 0.99)
    assert wide.low <= narrow.low <= narrow.value <= narrow.high <= wide.high


def test_interval_covers_the_mean_as_often_as_it_says() -> None:
    # System: 4000 experiments of 6 normal samples with mean 2. Expectation: the 95 % interval holds 2 in 95 % of them, give or take
    # four standard errors of a proportion, sqrt(0.95 * 0.05 / 4000) each.
    trials = 4000
    draws = np.random.default_rng(20240811).normal(2.0, 3.0, size=(trials, 6))
    covered = sum(estimate.low <= 2.0 <= estimate.high for estimate in map(mean_interval, draws))
    assert covered / trials == pytest.approx(0.95, abs=4 * math.sqrt(0.95 * 0.05 / trials))


@pytest.mark.parametrize("degrees", [*range(1, len(STUDENT_95) + 3)])
def test_the_table_of_student_quantiles_is_that_of_scipy(degrees: int) -> None:
    # Two more than the table holds: those are computed. 1e-14 is what versions of SciPy may differ by.
    assert student_quantile(degrees, 0.95) == pytest.approx(stdtrit(degrees, 0.975), rel=1e-14)
