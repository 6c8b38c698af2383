"""The arithmetic of comparisons against cases worked out by hand, other implementations, and simulated coverage."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from moesim.study.batches import batches, neighbour_correlation
from moesim.study.many import ALPHA, confidence_of, holm
from moesim.study.paired import difference, estimate, relative, unpaired, unpaired_relative

NUMBERS = st.floats(min_value=0.1, max_value=100.0)


def test_a_paired_difference_by_hand():
    # Differences 1, 2, 3: mean 2, standard deviation 1, standard error 1 / sqrt(3), t(2 degrees, 97.5 %) = 4.302653.
    found = difference(np.array([11.0, 12.0, 13.0]), np.array([10.0, 10.0, 10.0]))
    assert (found.value, found.n, found.freedom) == (2.0, 3, 2)
    assert found.error == pytest.approx(1 / math.sqrt(3))
    assert found.interval() == pytest.approx((2 - 4.302653 / math.sqrt(3), 2 + 4.302653 / math.sqrt(3)), rel=1e-6)
    # t = 2 sqrt(3); with 2 degrees of freedom p = 1 - t / sqrt(2 + t**2), and t**2 = 12.
    assert found.p_value() == pytest.approx(1 - math.sqrt(12 / 14))


@given(st.lists(st.tuples(NUMBERS, NUMBERS), min_size=2, max_size=12))
def test_a_paired_difference_is_scipys_paired_t_test(pairs):
    of, base = np.array(pairs).T
    found = difference(of, base)
    if found.error == 0:
        return
    other = stats.ttest_rel(of, base)
    assert found.p_value() == pytest.approx(other.pvalue, rel=1e-6, abs=1e-12)
    assert found.interval(0.9) == pytest.approx(tuple(other.confidence_interval(0.9)), rel=1e-6, abs=1e-9)


@pytest.mark.filterwarnings("ignore:Precision loss:RuntimeWarning")
@given(st.lists(NUMBERS, min_size=2, max_size=9), st.lists(NUMBERS, min_size=2, max_size=9))
def test_an_unpaired_difference_is_scipys_welch_test(of, base):
    found = unpaired(estimate(np.array(of)), estimate(np.array(base)))
    if not found.error:
        return
    other = stats.ttest_ind(of, base, equal_var=False)
    assert found.p_value() == pytest.approx(other.pvalue, rel=1e-6, abs=1e-12)


def test_weights_count_steps():
    # A block of three steps and one of one: mean (3 * 2 + 1 * 6) / 4 = 3; 2 / 1 * (0.75**2 * 1 + 0.25**2 * 9) = 2.25, error 1.5.
    found = estimate(np.array([2.0, 6.0]), np.array([3.0, 1.0]))
    assert (found.value, found.error, found.freedom) == (3.0, 1.5, 1)


def test_equal_differences_are_certain_and_rounding_is_no_difference():
    certain = difference(np.array([3.0, 5.0]), np.array([1.0, 3.0]))
    assert (certain.value, certain.error, certain.p_value(), certain.interval()) == (2.0, 0.0, 0.0, (2.0, 2.0))
    # 0.1 + 0.2 is not 0.3 in floats, in every piece of evidence alike.
    tie = difference(np.array([0.1 + 0.2, 0.1 + 0.2]), np.array([0.3, 0.3]))
    assert (tie.value, tie.error, tie.p_value()) == (0.0, 0.0, 1.0)


def test_one_piece_of_evidence_says_nothing_of_spread():
    found = difference(np.array([3.0]), np.array([1.0]))
    assert (found.value, found.interval(), found.p_value()) == (2.0, (None, None), None)
    part = relative(np.array([3.0]), np.array([1.0]))
    assert (part.value, part.interval()) == (2.0, (None, None))


@given(st.lists(st.tuples(NUMBERS, NUMBERS), min_size=3, max_size=8), st.floats(0.5, 0.999))
def test_a_relative_interval_leaves_out_0_when_the_difference_does(pairs, confidence):
    of, base = np.array(pairs).T
    apart, part = difference(of, base), relative(of, base)
    low, high = part.interval(confidence)
    if low is None or not apart.error:
        return
    first, last = apart.interval(confidence)
    if min(abs(first), abs(last)) < 1e-6 * abs(apart.value):
        return  # on the edge, where rounding decides
    assert (low > 0) == (first > 0)
    assert (high < 0) == (last < 0)
    assert low <= part.value <= high
    assert part.value == pytest.approx(apart.value / base.mean())


def test_a_relative_interval_stays_above_minus_100_per_cent_where_the_absolute_one_does_not():
    # The variant is always a hundredth of the base, which varies a lot.
    base = np.array([1.0, 2.0, 1.5, 1.2, 2.4])
    of = base / 100 * np.array([1.01, 0.99, 1.0, 1.0, 1.0])
    low, high = relative(of, base).interval()
    assert -1 < low < -0.99 < high < -0.98
    assert difference(of, base).interval()[0] < -base.mean()


def test_nothing_is_relative_to_nothing():
    assert relative(np.array([1.0, 2.0]), np.zeros(2)) is None
    assert unpaired_relative(estimate(np.array([1.0, 2.0])), estimate(np.zeros(2))) is None


@given(st.lists(st.floats(0, 1), min_size=1, max_size=30))
def test_holm_is_scipys_and_statsmodels_step_down(p_values):
    # Written out from the definition: p of rank i is multiplied by m - i + 1, then made monotone.
    order = np.argsort(p_values, kind="stable")
    expected, largest = np.zeros(len(p_values)), 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        expected[index] = largest
    found = holm(dict(enumerate(p_values)))
    assert [found[index] for index in range(len(p_values))] == pytest.approx(expected.tolist())
    # It rejects at least what Bonferroni rejects, and nothing above 5 % by itself.
    for index, p in enumerate(p_values):
        assert found[index] >= p
        assert found[index] <= min(1.0, p * len(p_values)) or found[index] == pytest.approx(min(1.0, p * len(p_values)))


def test_holm_leaves_out_what_was_not_tested():
    assert holm({"a": None, "b": 0.04}) == {"a": None, "b": 0.04}


@given(st.floats(0, 0.2), st.floats(1, 40))
def test_the_corrected_interval_agrees_with_the_verdict(p, factor):
    adjusted = min(1.0, p * factor)
    inside = p > 1 - confidence_of(p, adjusted)  # p above the level of the interval: 0 lies in it
    if abs(adjusted - ALPHA) > 1e-9:
        assert inside == (adjusted > ALPHA)


def test_few_steps_are_pieces_of_their_own_and_many_are_joined():
    assert [len(part) for part in batches(np.arange(7.0) % 2, np.ones(7))] == [1] * 7
    # 27 steps without correlation: 27 ** (1/3) = 3 of them a batch.
    values = np.array([1.0, -1.0, 0.0] * 9)
    assert [len(part) for part in batches(values, np.ones(27))] == [3] * 9
    # Two long plateaus: neighbours are alike at every size, so batches grow until fewer than 8 are left.
    assert len(batches(np.repeat([0.0, 1.0], 50), np.ones(100))) < 8


def test_neighbour_correlation_by_hand():
    # Deviations -1, 1, -1, 1: -3 / 4.
    assert neighbour_correlation(np.array([1.0, 3.0, 1.0, 3.0])) == -0.75
    assert neighbour_correlation(np.ones(5)) == 0.0


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 200), st.integers(0, 10))
def test_batches_hold_every_step_once_in_order(count, seed):
    values = np.random.default_rng(seed).standard_normal(count).cumsum()
    parts = batches(values, np.ones(count))
    assert np.concatenate(parts).tolist() == list(range(count))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def covered(*, count, correlation, batched, trials=1500):
    """How often a 95 % interval holds the true mean 0 of a series whose neighbours are correlated."""
    rng = np.random.default_rng(20)
    hits = 0
    for _ in range(trials):
        noise = rng.standard_normal(count + 50)
        series = np.zeros(count + 50)
        for step in range(1, count + 50):
            series[step] = correlation * series[step - 1] + noise[step]
        values = series[50:]
        if batched:
            values = np.array([values[part].mean() for part in batches(values, np.ones(count))])
        low, high = estimate(values).interval()
        hits += low <= 0 <= high
    return hits / trials


def test_intervals_of_independent_pieces_cover_95_per_cent():
    # 1,500 trials: the standard error of the share is 0.6 %.
    assert covered(count=5, correlation=0.0, batched=False) == pytest.approx(0.95, abs=0.02)


def test_batches_repair_intervals_of_correlated_steps():
    # Neighbours correlated by 0.7: intervals of steps taken as independent cover 6 of 10, those of batches 89 of 100.
    assert covered(count=60, correlation=0.7, batched=False, trials=600) < 0.7
    assert covered(count=60, correlation=0.7, batched=True, trials=600) > 0.85
    assert covered(count=60, correlation=0.0, batched=True, trials=600) > 0.92
