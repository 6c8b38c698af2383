"""Least squares on logarithms against answers that are known beforehand."""

import numpy as np
import pytest

from moesim.base.errors import CalibrationError
from moesim.facts.profile import Parameter, Section
from moesim.models.fitted.estimate import (
    interval,
    least_squares_log,
    leave_group_out,
    leave_one_out,
    parameters_of,
    range_of,
    refuse_degenerate,
    scatter_by,
    spread,
)
from moesim.models.fitted.rows import each, join, labels, numbers, take

SIZE = np.array([1.0, 10.0, 100.0, 1000.0, 1e4, 1e5])


def line(values, size=SIZE):
    return values["alpha"] + values["beta"] * size


def test_exact_data_give_the_parameters_back():
    truth = {"alpha": 3e-6, "beta": 2e-9}
    found = least_squares_log(line, {"alpha": 1e-3, "beta": 1e-12}, line(truth))
    assert found.by_name() == pytest.approx(truth, rel=1e-6)
    assert found.scatter < 1e-6
    assert found.degrees == 4


def test_a_factor_alone_is_the_geometric_mean():
    # log y = log c + noise: the least squares of logs is their mean, its variance s^2 / n.
    seconds = np.array([1.0, 2.0, 4.0])
    found = least_squares_log(lambda values: np.full(3, values["c"]), {"c": 1.0}, seconds)
    assert found.values[0] == pytest.approx(2.0)
    # Residuals are -log 2, 0, log 2; s^2 = 2 log(2)^2 / 2; the variance of the mean is a third of it.
    assert found.scatter == pytest.approx(np.log(2))
    assert found.covariance[0, 0] == pytest.approx(np.log(2) ** 2 / 3)
    assert found.errors()["c"] == pytest.approx(2 * np.log(2) / np.sqrt(3))


def test_weights_count_as_repeated_rows():
    seconds = np.array([1.0, 8.0])
    found = least_squares_log(lambda values: np.full(2, values["c"]), {"c": 1.0}, seconds, weights=np.array([2.0, 1.0]))
    assert found.values[0] == pytest.approx(2.0)  # exp((2 log 1 + log 8) / 3)


def test_the_covariance_is_what_repeated_experiments_show():
    # 300 experiments with 5 % noise: the spread of the fitted logarithms must be what a single fit says of itself.
    rng = np.random.default_rng(5)
    truth = {"alpha": 3e-6, "beta": 2e-9}
    points = np.repeat(SIZE, 4)
    fits = []
    for _ in range(300):
        seconds = line(truth, points) * np.exp(0.05 * rng.standard_normal(len(points)))
        fits.append(least_squares_log(lambda values: line(values, points), truth, seconds))
    logs = np.log([fit.values for fit in fits])
    said = np.mean([fit.covariance for fit in fits], axis=0)
    seen = np.cov(logs.T)
    # The standard error of a variance over 300 experiments is sqrt(2 / 300) = 8 %.
    assert np.diag(seen) == pytest.approx(np.diag(said), rel=0.25)
    assert seen[0, 1] / np.sqrt(seen[0, 0] * seen[1, 1]) == pytest.approx(said[0, 1] / np.sqrt(said[0, 0] * said[1, 1]), abs=0.1)
    assert np.mean([fit.scatter for fit in fits]) == pytest.approx(0.05, rel=0.05)


def test_rows_of_one_group_count_as_one_piece_of_evidence():
    # Four groups of 50 equal rows, off by a factor each: 200 rows know the mean no better than 4 do.
    offsets = np.repeat(np.array([-0.3, -0.1, 0.1, 0.3]), 50)
    groups = np.repeat(np.array(["a", "b", "c", "d"]), 50)
    seconds = np.exp(offsets)
    naive = least_squares_log(lambda values: np.full(200, values["c"]), {"c": 1.0}, seconds)
    robust = least_squares_log(lambda values: np.full(200, values["c"]), {"c": 1.0}, seconds, groups=groups)
    # By hand: sum of squares of group sums 50^2 (0.09 + 0.01) 2 over (200)^2, times 4 / 3.
    assert robust.covariance[0, 0] == pytest.approx(0.2 * 2500 / 40000 * 4 / 3)
    assert robust.covariance[0, 0] > 40 * naive.covariance[0, 0]


def test_a_held_parameter_keeps_its_value_and_has_no_variance():
    truth = {"alpha": 3e-6, "beta": 2e-9}
    found = least_squares_log(line, {"alpha": 5e-6, "beta": 1e-9}, line(truth), held=["alpha"])
    assert found.by_name()["alpha"] == 5e-6
    assert found.covariance[0].tolist() == [0, 0]
    nothing_free = least_squares_log(line, truth, line(truth), held=["alpha", "beta"])
    assert nothing_free.by_name() == truth
    assert nothing_free.scatter == 0


def test_a_parameter_on_its_bound_is_told():
    truth = {"alpha": 3e-6, "beta": 2e-9}
    found = least_squares_log(line, {"alpha": 2e-6, "beta": 2e-9}, line(truth), bounds={"alpha": (1e-9, 2.5e-6)})
    assert found.on_bound == ("alpha",)
    assert found.by_name()["alpha"] == pytest.approx(2.5e-6)
    assert found.covariance[0, 0] == 0 < found.covariance[1, 1]


def test_one_outlier_moves_a_robust_fit_less():
    truth = {"alpha": 3e-6, "beta": 2e-9}
    seconds = line(truth)
    seconds[-1] *= 3
    plain = least_squares_log(line, truth, seconds).by_name()["beta"]
    robust = least_squares_log(line, truth, seconds, robust=0.05).by_name()["beta"]
    assert abs(np.log(robust / 2e-9)) < 0.8 * abs(np.log(plain / 2e-9))


@pytest.mark.parametrize(
    ("seconds", "why"),
    [
        (np.array([1.0, 1.0, 0.0, 1.0, 1.0, 1.0]), "row 2 .* 0 s"),
        (np.array([1.0, -1.0, 1.0, 1.0, 1.0, 1.0]), "row 1 .* -1 s"),
        (np.array([1.0, np.nan, 1.0, 1.0, 1.0, 1.0]), "row 1 "),
    ],
)
def test_times_that_are_none_are_refused(seconds, why):
    with pytest.raises(CalibrationError, match=why):
        least_squares_log(line, {"alpha": 1.0, "beta": 1.0}, seconds)


def test_what_the_rows_do_not_determine_is_refused_by_name():
    with pytest.raises(CalibrationError, match=r"2 rows cannot determine 2 parameters \(alpha, beta\)"):
        least_squares_log(lambda values: line(values, SIZE[:2]), {"alpha": 1.0, "beta": 1.0}, np.ones(2))
    # One size only: a larger latency and a smaller slope fit as well.
    one = np.full(5, 100.0)
    with pytest.raises(CalibrationError, match="cannot tell alpha from beta"):
        least_squares_log(lambda values: line(values, one), {"alpha": 1e-6, "beta": 1e-8}, np.array([1.0, 1.1, 0.9, 1.0, 1.0]) * 2e-6)
    with pytest.raises(CalibrationError, match="do not determine gamma"):
        least_squares_log(line, {"alpha": 1e-6, "beta": 1e-8, "gamma": 1.0}, line({"alpha": 3e-6, "beta": 2e-9}) * [1, 1, 1, 1, 1, 1.01])
    lenient = least_squares_log(lambda values: line(values, one), {"alpha": 1e-6, "beta": 1e-8}, np.full(5, 2e-6), strict=False)
    assert np.all(np.isfinite(lenient.covariance))


def test_a_model_that_gives_no_time_is_refused():
    with pytest.raises(CalibrationError, match="not above 0"):
        least_squares_log(lambda values: values["a"] * np.array([0.0, 1.0, 1.0]), {"a": 1.0}, np.ones(3))


def rows_of(values, groups):
    return {"value": np.asarray(values, dtype=float), "group": np.asarray(groups)}


def test_leaving_a_group_out_by_hand():
    # The model is the mean of the rows that it saw. Without a (1, 3): mean of 10 and 20 is 15; without b (10): (1 + 3 + 20) / 3 = 8;
    # without c (20): (1 + 3 + 10) / 3.
    rows = rows_of([1, 3, 10, 20], ["a", "a", "b", "c"])
    found = leave_group_out(rows, rows["group"], lambda part: part["value"].mean(), lambda mean, part: np.full(len(part["value"]), mean))
    assert found.values == pytest.approx([15, 15, 8, 14 / 3])
    assert found.reasons == {}
    one = leave_one_out(rows, lambda part: part["value"].mean(), lambda mean, part: np.full(len(part["value"]), mean))
    assert one.values == pytest.approx([11, 31 / 3, 8, 14 / 3])


def test_a_group_without_which_nothing_can_be_fitted_is_told():
    rows = rows_of([1, 2, 3], ["a", "a", "b"])

    def fit(part):
        refuse_degenerate(part, what="mean", least=2)
        return part["value"].mean()

    found = leave_group_out(rows, rows["group"], fit, lambda mean, part: np.full(len(part["value"]), mean))
    assert np.isnan(found.values[:2]).all()
    assert found.values[2] == 1.5
    assert found.reasons == {"a": "mean: 1 rows are too few, at least 2 are needed"}
    with pytest.raises(CalibrationError, match=r"one group \(x\)"):
        leave_group_out(rows, np.array(["x"] * 3), fit, lambda mean, part: part["value"])


def test_degenerate_rows_are_refused_with_what_they_lack():
    rows = {"size": np.array([8, 8, 8]), "time": np.ones(3)}
    with pytest.raises(CalibrationError, match="m: size holds only 8; at least 2 different values are needed"):
        refuse_degenerate(rows, what="m", least=3, varied={"size": 2})
    with pytest.raises(CalibrationError, match="m: width holds only nothing"):
        refuse_degenerate(rows, what="m", least=3, varied={"width": 1})
    refuse_degenerate(rows, what="m", least=3, varied={"size": 1})


def section(covariance=None, scatter=None, values=(3e-6, 2e-9)):
    parameters = tuple(
        Parameter(name=name, value=value, unit="s", basis="fitted", source="t", date="2026-11")
        for name, value in zip(("alpha", "beta"), values, strict=True)
    )
    return Section(model="line", parameters=parameters, covariance=covariance, scatter=scatter or {})


def test_the_spread_of_a_prediction_adds_variances():
    # d log t / d log alpha = alpha / t and d log t / d log beta = beta s / t.
    made = section(np.array([[0.01, 0.0], [0.0, 0.04]]), {"": 0.05})
    seconds = line(made.values())
    by_hand = np.sqrt(0.05**2 + 0.01 * (3e-6 / seconds) ** 2 + 0.04 * (2e-9 * SIZE / seconds) ** 2)
    assert spread(made, line) == pytest.approx(by_hand, rel=1e-6)
    outside = np.array([True] + [False] * 5)
    assert spread(made, line, outside=outside)[0] == pytest.approx(2 * by_hand[0])
    assert spread(made, line, carried=True) == pytest.approx(np.sqrt(by_hand**2 + 0.2**2))


def test_a_regime_without_a_scatter_takes_the_largest():
    made = section(scatter={"": 0.05, "decode": 0.2, "prefill": 0.03})
    regimes = np.array(["decode", "prefill", "new", "new", "new", "new"])
    assert spread(made, line, regimes=regimes)[:3] == pytest.approx([0.2, 0.03, 0.2])


def test_intervals_hold_nine_of_ten():
    rng = np.random.default_rng(1)
    low, high = interval(np.ones(20000), np.full(20000, 0.1), degrees=10000)
    measured = np.exp(0.1 * rng.standard_normal(20000))
    assert np.mean((measured >= low) & (measured <= high)) == pytest.approx(0.9, abs=0.01)


def test_scatter_by_regime_is_the_root_of_mean_squares():
    found = scatter_by(np.array(["a", "a", "b", "b"]), np.array([0.3, -0.1, 0.2, np.nan]))
    assert found == pytest.approx({"": np.sqrt(0.14 / 3), "a": np.sqrt(0.05), "b": 0.2})
    assert scatter_by(np.array(["a"]), np.array([np.nan])) == {}


def test_parameters_say_what_was_fitted_and_what_was_held():
    truth = {"alpha": 3e-6, "beta": 2e-9}
    found = least_squares_log(line, truth, line(truth) * [1, 1.1, 0.9, 1, 1, 1], held=["beta"])
    alpha, beta = parameters_of(found, {"alpha": "s"}, source="here", date="2026-11", held={"beta": ("datasheet", "a sheet")})
    assert (alpha.basis, alpha.unit, alpha.source) == ("fitted", "s", "here")
    assert alpha.error > 0
    assert (beta.basis, beta.unit, beta.source, beta.error) == ("datasheet", "", "a sheet", None)


def test_rows_can_be_taken_joined_and_labelled():
    rows = {"gpu": np.array(["a", "b", "a"]), "ep": np.array([8, 8, 16]), "skew": np.array([0.5, 1.0, np.nan])}
    assert labels(rows, ("gpu", "ep", "skew")).tolist() == ["a 8 0.5", "b 8 1", "a 16 nan"]
    assert {key: mask.tolist() for key, mask in each(rows, rows["gpu"]).items()} == {"a": [True, False, True], "b": [False, True, False]}
    both = join([take(rows, np.array([0])), take(rows, rows["ep"] == 16)])
    assert both["ep"].tolist() == [8, 16]
    assert range_of(rows, ["ep"]) == {"ep": (8.0, 16.0)}
    with pytest.raises(CalibrationError, match="no column 'epp'; did you mean 'ep'"):
        numbers(rows, "epp")
    with pytest.raises(CalibrationError, match="'gpu' holds text such as 'a'"):
        numbers(rows, "gpu")
