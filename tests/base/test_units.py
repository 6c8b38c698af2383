from __future__ import annotations

import math

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from moesim.base.units import DIMENSIONS, format_quantity, parse_quantity

positive = st.floats(min_value=1e-18, max_value=1e21, allow_nan=False)
dimensions = st.sampled_from(sorted(DIMENSIONS))


@pytest.mark.parametrize(
    ("text", "dimension", "expected"),
    [
        ("3 us", "s", 3e-6),
        ("3us", "s", 3e-6),
        ("  3   us ", "s", 3e-6),
        ("3 µs", "s", 3e-6),
        ("3 \u03bcs", "s", 3e-6),  # Greek mu, which looks like the micro sign
        ("3 ns", "s", 3e-9),
        ("7 ns", "s", 7e-9),
        ("1e-6 s", "s", 1e-6),
        ("1.5E3 ms", "s", 1.5),
        (".5 s", "s", 0.5),
        ("2 min", "s", 120.0),
        # A bit is an eighth of a byte.
        ("400 Gb/s", "B/s", 50e9),
        ("400 Gbps", "B/s", 50e9),
        ("400 GB/s", "B/s", 400e9),
        ("1 b", "B", 0.125),
        # k is decimal, Ki binary.
        ("1 kB", "B", 1000.0),
        ("1 KiB", "B", 1024.0),
        ("80 GiB", "B", 80 * 2.0**30),
        ("80 GB", "B", 80e9),
        ("8 Kib", "B", 1024.0),
        ("989 Tflop/s", "flop/s", 989e12),
        ("989 TFLOPS", "flop/s", 989e12),
        # Nothing needs no unit.
        (0, "s", 0.0),
        (0.0, "B/s", 0.0),
        ("0", "B", 0.0),
        ("0 us", "s", 0.0),
        ("-3 us", "s", -3e-6),
    ],
)
def test_quantity_reads_as(text: object, dimension: str, expected: float) -> None:
    assert parse_quantity(text, dimension) == expected


@pytest.mark.parametrize(
    ("value", "dimension", "message"),
    [
        (5, "s", "5 has no unit; write for example '5 us'"),
        (5.5, "B", "5.5 has no unit; write for example '5.5 GiB'"),
        ("5", "B/s", "'5' has no unit; write for example '5 Gb/s'"),
        ("1e3", "s", "'1e3' has no unit"),
        (10**400, "B", "has no unit"),
        (math.nan, "s", "not a finite number"),
        (math.inf, "s", "not a finite number"),
        ("nan s", "s", "cannot read 'nan s' as a time"),
        ("inf B", "B", "cannot read"),
        ("1e400 s", "s", "'1e400 s' is too large"),
        (True, "s", "True is not a time"),
        (None, "s", "None is not a time"),
        ([1], "s", "is not a time"),
        ("fast", "B/s", "cannot read 'fast' as a bandwidth"),
        ("", "B", "cannot read '' as a size"),
        ("1 2 us", "s", "cannot read"),
        ("3 us us", "s", "cannot read"),
        ("1,000 us", "s", "cannot read"),
        ("400 Gb", "B/s", "unknown unit 'Gb' of a bandwidth; did you mean"),
        ("400 gb/s", "B/s", "did you mean 'GB/s' or 'Gb/s'"),
        ("80 Kb/s", "B/s", "unknown unit 'Kb/s' of a bandwidth; did you mean 'kB/s' or 'kb/s'"),
        ("3 m", "s", "unknown unit 'm' of a time"),
        ("80 GB", "s", "unknown unit 'GB' of a time"),
        ("\u0661\u0662 s", "s", "cannot read"),  # other digits than ours
    ],
)
def test_quantity_is_refused_with_the_reason(value: object, dimension: str, message: str) -> None:
    with pytest.raises(ValueError, match="(?s)" + message.replace("(", r"\(")):
        parse_quantity(value, dimension)


@settings(max_examples=200)
@given(value=positive, dimension=dimensions)
@example(value=3e-9, dimension="s")
@example(value=1 / 3, dimension="B")
@example(value=50e9, dimension="B/s")
def test_l13_exact_text_reads_back_to_the_same_float(value: float, dimension: str) -> None:
    assert parse_quantity(format_quantity(value, dimension, exact=True), dimension) == value


@settings(max_examples=100)
@given(value=st.floats(min_value=1e-12, max_value=1e18), dimension=dimensions)
def test_short_text_is_within_half_of_the_third_digit(value: float, dimension: str) -> None:
    # Three significant digits: at most half a unit of the third digit, 5e-3 of the value.
    assert parse_quantity(format_quantity(value, dimension), dimension) == pytest.approx(value, rel=5.01e-3)


@settings(max_examples=50)
@given(count=st.integers(1, 10**6), dimension=dimensions, data=st.data())
def test_whole_number_of_any_unit_is_the_nearest_float(count: int, dimension: str, data: st.DataObject) -> None:
    from fractions import Fraction

    # Expectation: every unit is a whole number of the base unit or one in a whole number of them, so the float nearest to the exact
    # product or quotient is what a reader expects ('3 ns' is the literal 3e-09).
    unit = data.draw(st.sampled_from(sorted(DIMENSIONS[dimension].units)))
    scale = DIMENSIONS[dimension].units[unit]
    exact = Fraction(count) * int(scale) if scale >= 1 else Fraction(count, round(1 / scale))
    assert parse_quantity(f"{count} {unit}", dimension) == float(exact)


@pytest.mark.parametrize(
    ("value", "dimension", "text"),
    [
        (0.00123456, "s", "1.23 ms"),
        (0.0, "s", "0 s"),
        (0.0, "B", "0 B"),
        (50e9, "B/s", "50 GB/s"),
        (2.5e-10, "s", "0.25 ns"),
        (999.6e9, "B", "1000 GB"),
        (1e12, "B", "1 TB"),
        (5e15, "B", "5000 TB"),
    ],
)
def test_quantity_is_written_for_people(value: float, dimension: str, text: str) -> None:
    assert format_quantity(value, dimension) == text
