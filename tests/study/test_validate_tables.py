"""Validation of tables: nothing is left out in silence."""

from dataclasses import dataclass, field

import numpy as np
import pytest

from moesim.base.errors import CalibrationError
from moesim.desk.measured_tables import MeasuredTable, Refused, parse_csv
from moesim.facts.profile import Parameter, Profile, Section
from moesim.models.fitted.rows import count, labels, numbers, words
from moesim.study.calibrate import calibrate, carried, held_back, with_carried
from moesim.study.hold_back import validate_held_back
from moesim.study.measured import kind_of
from moesim.study.validate import validate
from moesim.study.validation import prediction, table_kinds
from moesim.study.validation.table_kind import TableKind, register_table


class Rates:
    """A kind for tests: time = size / rate, one rate per GPU."""

    name = "rates"
    files = ("rates*.csv",)
    columns = ("gpu", "size", "time_us")
    quantity = "time"
    companions = ("about*.csv",)

    def regime(self, rows):
        return np.where(numbers(rows, "size") > 100, "large", "small")

    def group(self, rows):
        return labels(rows, ("gpu", "size"))

    def seconds(self, rows):
        return numbers(rows, "time_us") / 1e6

    def baseline(self, rows):
        return "one microsecond", np.full(count(rows), 1e-6)

    def rivals(self, rows):
        return words(rows, "gpu")

    def predict(self, rows, profiles):
        values = np.full(count(rows), np.nan)
        reasons = np.array([""] * count(rows), dtype=object)
        basis = np.array(["fitted"] * count(rows), dtype=object)
        for row, gpu in enumerate(words(rows, "gpu").tolist()):
            if gpu == "bomb":
                raise CalibrationError("no data sheet of the bomb")
            if gpu == "slip":
                raise KeyError("slip")
            section = profiles[gpu].sections.get("rates") if gpu in profiles else None
            if section is None:
                reasons[row] = f"no profile of {gpu}"
                continue
            values[row] = numbers(rows, "size")[row] / section.values()["rate"]
            basis[row] = "datasheet" if section.carried_from else "fitted"
        outside = numbers(rows, "size") > 1000
        return prediction(values, values * 0.9, values * 1.1, reasons=reasons, basis=basis, outside=outside)

    def fit(self, rows):
        found = {}
        for gpu in np.unique(words(rows, "gpu")).tolist():
            mask = words(rows, "gpu") == gpu
            rate = float(np.exp(np.mean(np.log(numbers(rows, "size")[mask] / self.seconds(rows)[mask]))))
            number = Parameter(name="rate", value=rate, unit="B/s", basis="fitted", source="rates.csv", date="2026-11")
            found[f"{gpu}/rates"] = Section(model="rates", parameters=(number,), source="rates.csv", rows=int(mask.sum()))
        return found


KINDS = [Rates()]


def table(text, name="rates.csv"):
    return parse_csv(text, name)


def profile(rate=1e7, gpu="a"):
    number = Parameter(name="rate", value=rate, unit="B/s", basis="fitted", source="t", date="2026-11")
    return Profile(name=gpu, gpu=gpu, made="2026-11", sections={"rates": Section(model="rates", parameters=(number,))})


def test_errors_by_regime_with_the_rule_beside_them():
    found = validate([table("gpu,size,time_us\na,10,1\na,20,1\na,1000,125\n")], {"a": profile()}, kinds=KINDS)
    large, small = found.scores  # in the order of their names
    assert (large.regime, small.regime) == ("large", "small")
    # 10 B at 10 MB/s are 1 us (right), 20 B are 2 us (+100 %), 1000 B are 100 us (-20 %).
    assert (small.errors.n, small.errors.mape, small.errors.bias) == (2, pytest.approx(50), pytest.approx(50))
    assert (large.errors.mape, large.errors.bias) == (pytest.approx(20), pytest.approx(-20))
    assert small.baseline == "one microsecond"
    assert small.baseline_errors.mape == pytest.approx(0)
    assert large.baseline_errors.mape == pytest.approx(100 * (1 - 1 / 125))
    assert (small.with_interval, small.covered) == (2, 0.5)
    assert small.bases == {"fitted": 2}
    assert small.order.pairs == 0  # measured alike
    assert found.warnings == ()


def test_every_row_without_a_prediction_has_its_reason():
    text = "gpu,size,time_us\na,10,1\nb,10,1\nb,20,1\na,10,0\na,10,\na,10,word\na,10,-3\n"
    found = validate([table(text)], {"a": profile()}, kinds=KINDS)
    reasons = {item.reason: item.rows for score in found.scores for item in score.unpredicted}
    assert reasons == {
        "no profile of b": 2,
        "the measured value is not above 0": 1,
        "nothing was measured in this row": 1,
        "line 7: column time_us: 'word' is not a number, and the other rows hold numbers": 1,
        "line 8: column time_us: the time -3 is negative": 1,
    }
    assert sum(score.errors.n for score in found.scores) + sum(reasons.values()) == 7


def test_one_case_that_raises_does_not_cost_the_others_theirs():
    text = "gpu,size,time_us\na,10,1\nbomb,10,1\nslip,10,1\n"
    found = validate([table(text)], {"a": profile()}, kinds=KINDS)
    reasons = sorted(item.reason for score in found.scores for item in score.unpredicted)
    assert reasons == ["no data sheet of the bomb", "the rows hold something unforeseen: KeyError: 'slip'"]
    assert sum(score.errors.n for score in found.scores) == 1
    assert found.cases[0].lines.tolist() == [2, 3, 4]


def test_a_row_over_which_a_kind_stumbles_costs_only_itself():
    class Careful(Rates):
        def baseline(self, rows):
            if np.any(words(rows, "gpu") == "odd"):
                raise CalibrationError("nobody knows what is odd")
            return super().baseline(rows)

    lines = [f"a,{size},1" for size in range(1, 20)]
    text = "\n".join(["gpu,size,time_us", *lines[:7], "odd,1,1", *lines[7:], "a,-1,1", "a,1e30,1"]) + "\n"
    found = validate([table(text)], {"a": profile()}, kinds=[Careful()])
    reasons = {item.reason: item.rows for score in found.scores for item in score.unpredicted}
    assert reasons == {
        "column size: -1 is negative": 1,
        "column size: 1e+30 is larger than 1e+15": 1,
        "line 9: nobody knows what is odd": 1,
    }
    assert sum(score.errors.n for score in found.scores) == 19
    assert found.cases[0].lines.tolist() == [*range(2, 9), *range(10, 22)]


def test_files_that_are_no_known_table_are_listed():
    tables = [
        table("gpu,size\na,1\n"),
        table("x,y\n1,a\n", "rate.csv"),
        table("x,y\n1,a\n", "about.csv"),
        MeasuredTable(name="notes.json", rows={"document": np.array([1])}, lines=np.array([1])),
        table("gpu,size,time\na,1,1\n", "deep/rates_2.csv"),
    ]
    found = validate(tables, {}, unreadable=[("broken.csv", "not CSV"), ("README.md", "no table")], kinds=KINDS)
    told = {score.file: [item.reason for item in score.unpredicted] for score in found.scores}
    assert told["rates.csv"] == ["not in the format of rates: the column 'time_us' is missing"]
    assert told["rate.csv"] == ["no kind of table goes by this name; did you mean 'rates*.csv'?"]
    assert told["deep/rates_2.csv"] == [
        "not in the format of rates: the column 'time_us' is missing; is it 'time'? A unit is part of the name"
    ]
    assert told["broken.csv"] == ["not CSV"]
    assert {other.file: other.reason for other in found.others} == {
        "about.csv": "read beside rates.csv",
        "notes.json": "no kind of table goes by this name",
        "README.md": "no table",
    }
    assert all(score.errors.n == 0 for score in found.scores)


def test_a_column_of_text_where_numbers_belong_is_told():
    found = validate([table("gpu,size,time_us\na,big,1\na,small,2\n")], {"a": profile()}, kinds=KINDS)
    assert "'size' holds text such as 'big'" in found.scores[0].unpredicted[0].reason


def test_flags_are_counted_and_warned_about():
    other = carried(profile(gpu="a"), "b")
    found = validate([table("gpu,size,time_us\na,5000,500\nb,10,1\n")], {"a": profile(), "b": other}, kinds=KINDS)
    assert [score.outside for score in found.scores] == [1, 0]
    assert [score.bases for score in found.scores] == [{"fitted": 1}, {"datasheet": 1}]
    assert found.warnings == (
        "rates.csv: 1 of 2 predictions lie outside the range that their model was fitted on",
        "rates.csv: 1 of 2 predictions are carried over from another machine by data-sheet ratios",
    )
    number = other.sections["rates"].parameters[0]
    assert (other.sections["rates"].carried_from, number.basis) == ("a", "datasheet")


TWO = "gpu,size,time_us\na,10,1\na,20,2\na,1000,200\nb,10,2\nb,20,4\n"


def test_a_calibration_fits_each_gpu_and_holds_rows_back():
    found = calibrate([table(TWO)], made="2026-11", kinds=KINDS)
    # The geometric mean of 10, 10 and 5 MB/s; b is exactly 5 MB/s.
    rate = 10 * 0.5 ** (1 / 3)
    assert found.profiles["a"].sections["rates"].values()["rate"] == pytest.approx(rate * 1e6)
    assert found.profiles["b"].sections["rates"].values()["rate"] == pytest.approx(5e6)
    (fit,) = found.fits
    assert [item.way for item in fit.held_back] == ["row", "group"]
    # Without its row of 1000 B, the rate of a is 10 MB/s: that row is predicted as 100 us, half of what was measured.
    rest = (10 * 5) ** 0.5
    by_hand = [abs(10 / rest - 1), abs(10 / rest - 1), 0.5, 0, 0]
    assert fit.held_back[0].errors.mape == pytest.approx(100 * np.mean(by_hand))


def test_tables_of_one_kind_are_fitted_together():
    more = table("gpu,size,time_us,extra\na,10,1,x\n", "rates_more.csv")
    found = calibrate([table("gpu,size,time_us\na,1000,200\n"), more, table("x\ny\n", "odd.csv")], made="2026-11", kinds=KINDS, check=False)
    assert found.profiles["a"].sections["rates"].rows == 2
    assert [(item.file, item.reason) for item in found.unused] == [("odd.csv", "no kind of table goes by this name")]


def test_held_back_predictions_never_come_from_the_shipped_profile_of_the_same_kind():
    rows = dict(table("gpu,size,time_us\na,10,1\na,20,2\nc,10,1\n").rows)
    shipped = {"c": profile(gpu="c"), "a": profile(rate=1.0)}
    found = held_back(Rates(), rows, words(rows, "gpu"), shipped)
    assert np.isnan(found.values).all()  # each GPU is a group, and without its rows there is no fit of it
    assert found.reasons.tolist() == ["no profile of a", "no profile of a", "no profile of c"]
    by_size = held_back(Rates(), rows, labels(rows, ("size",)), shipped)
    assert by_size.values[:2] == pytest.approx([1e-6, 2e-6])


def test_validation_on_held_back_groups():
    found = validate_held_back([table(TWO)], {}, kinds=KINDS)
    small = next(score for score in found.scores if score.regime == "small")
    assert small.errors.n == 4
    assert small.errors.bias == pytest.approx(100 * np.mean([10 / 50**0.5 - 1, 10 / 50**0.5 - 1, 0, 0]))


def test_profiles_are_filled_up_from_their_kin():
    found = with_carried(
        {"gb200-nvl72": profile(gpu="gb200-nvl72"), "h200-sxm": profile(gpu="h200-sxm"), "h100-sxm": profile(2e7, "h100-sxm")}
    )
    assert list(found) == ["a100-sxm-80", "b200-sxm", "gb200-nvl72", "gb300-nvl72", "h100-sxm", "h200-sxm"]
    assert found["a100-sxm-80"].sections["rates"].carried_from == "h200-sxm"
    assert found["gb200-nvl72"].sections["rates"].carried_from == ""
    assert found["b200-sxm"].sections["rates"].carried_from == "gb200-nvl72"
    assert found["h100-sxm"].sections["rates"].carried_from == ""  # its own rows win
    assert found["h100-sxm"].sections["rates"].values()["rate"] == 2e7


def test_every_kind_keeps_the_contract():
    kinds = table_kinds()
    assert len({kind.name for kind in kinds}) == len(kinds) >= 10
    for kind in kinds:
        assert isinstance(kind, TableKind)
        assert kind.quantity in {"time", "count", "fraction"}
        assert kind.files
        assert kind.columns
    patterns = [pattern for kind in kinds for pattern in kind.files]
    assert len(set(patterns)) == len(patterns)


def test_the_longest_pattern_wins():
    @dataclass
    class Named:
        files: tuple = field(default_factory=tuple)

    family, one = Named(("a_*.csv",)), Named(("a_b*.csv",))
    assert kind_of("deep/a_b2.csv", [family, one]) is one
    assert kind_of("a_c.csv", [family, one]) is family
    assert kind_of("b.csv", [family, one]) is None


def test_half_a_kind_is_refused():
    with pytest.raises(TypeError, match="Half lacks baseline, columns, files"):

        @register_table
        class Half:
            name = "half"


def test_refused_rows_are_told_even_if_the_table_is_of_no_use():
    broken = MeasuredTable(
        name="rates.csv", rows={"gpu": np.array(["a"])}, lines=np.array([2]), refused=(Refused(rows=2, line=3, reason="odd"),)
    )
    found = validate([broken], {}, kinds=KINDS)
    assert [item.reason for item in found.scores[0].unpredicted][1] == "line 3: odd"
