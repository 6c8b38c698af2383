"""Tornado, Sobol indices and winners on functions whose answers are known."""

import math

import numpy as np
import pytest

from moesim.study.sensitivity import Input, points_of, sobol, tornado, winners


def inputs(*keys, low=-math.pi, high=math.pi):
    return [Input(key=key, base=0.0, low=low, high=high) for key in keys]


def ishigami(x):
    return np.sin(x[0]) + 7 * np.sin(x[1]) ** 2 + 0.1 * x[2] ** 4 * np.sin(x[0])


def test_the_indices_of_ishigami_and_homma():
    # a = 7, b = 0.1 on [-pi, pi]^3. Variance: a^2/8 + b pi^4/5 + b^2 pi^8/18 + 1/2 = 13.8446; of x1 alone (1 + b pi^4/5)^2 / 2 = 4.3459;
    # of x2 alone a^2/8 = 6.125; x1 and x3 together b^2 pi^8 (1/18 - 1/50) = 3.3737.
    found, variance = sobol(inputs("x1", "x2", "x3"), ishigami, samples=2048, seed=3)
    assert variance == pytest.approx(13.8446, rel=0.02)
    for index, first, total in zip(found, (0.3139, 0.4424, 0.0), (0.5576, 0.4424, 0.2437), strict=True):
        assert index.first == pytest.approx(first, abs=0.03)
        assert index.total == pytest.approx(total, abs=0.03)
        assert index.first_low - 0.01 <= first <= index.first_high + 0.01
        assert index.total_low - 0.01 <= total <= index.total_high + 0.01


def test_a_sum_has_no_interactions():
    # 3 x + y on [0, 1]: variances 9/12 and 1/12.
    found, _ = sobol(inputs("x", "y", low=0.0, high=1.0), lambda x: 3 * x[0] + x[1], samples=512, seed=1)
    assert [index.first for index in found] == pytest.approx([0.9, 0.1], abs=0.02)
    assert [index.total for index in found] == pytest.approx([0.9, 0.1], abs=0.02)


def test_the_same_seed_gives_the_same_numbers_and_one_batch_of_points():
    asked = []

    def values(x):
        asked.append(x.shape)
        return ishigami(x)

    one, other = (sobol(inputs("a", "b", "c"), values, samples=16, seed=5) for _ in range(2))
    assert one == other
    assert asked == [(3, 16 * 5), (3, 16 * 5)]  # N (d + 2) points


def test_what_does_not_vary_has_no_indices():
    found, variance = sobol(inputs("a", "b"), lambda x: np.full(x.shape[1], 4.0), samples=8, seed=0)
    assert variance == 0.0
    assert all(index.first == index.total == 0.0 for index in found)


def test_whole_numbers_stay_whole():
    given = [Input(key="n", base=5.0, low=2.0, high=9.0, whole=True), Input(key="x", base=0.5, low=0.0, high=1.0)]
    first, second = points_of(given, 64, 0)
    for points in (first, second):
        assert (points[0] == np.rint(points[0])).all()
        assert points[0].min() >= 2
        assert points[0].max() <= 9
        assert not (points[1] == np.rint(points[1])).all()
    assert not np.array_equal(first, second)


def play(points):
    found = []
    for point in points:
        x, y, z = point.get("x", 1.0), point.get("y", 1.0), point.get("z", 1.0)
        found.append({} if z > 2 else {"time": 10 * x + y, "drops": y, "none": math.nan})
    return found


def test_the_tornado_puts_the_widest_first_and_finds_what_changes_nothing():
    given = [
        Input(key="idle", base=1.0, low=0.5, high=1.5), Input(key="y", base=1.0, low=0.0, high=2.0),
        Input(key="x", base=1.0, low=0.9, high=1.2), Input(key="z", base=1.0, low=0.5, high=3.0),
    ]  # fmt: skip
    base, swings = tornado(given, play, "time")
    assert base == 11.0
    assert [swing.given.key for swing in swings] == ["x", "y", "idle", "z"]
    assert [(swing.at_low, swing.at_high) for swing in swings] == [(10.0, 13.0), (10.0, 12.0), (11.0, 11.0), (11.0, None)]
    assert [swing.changed for swing in swings][:3] == [("time",), ("drops", "time"), ()]


def test_winners_share_what_they_tie_in():
    shares = winners({"a": np.array([1.0, 5.0, 2.0, 2.0]), "b": np.array([2.0, 4.0, 2.0, 1.0])}, higher=False)
    assert shares == {"a": (1 + 0.5) / 4, "b": (2 + 0.5) / 4}
    assert winners({"a": np.array([1.0]), "b": np.array([2.0])}, higher=True) == {"a": 0.0, "b": 1.0}
