from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from moesim.base import fields
from moesim.base.fields import Choice, FilePath, Line, Marker, Number, Preset, Quantity, Truth, Whole, section

# Values that a sloppy reader would turn into each other.
TRAPS: list[Any] = [True, False, None, 0, 1, -1, 4, 4.0, 0.5, -0.5, math.nan, math.inf, 10**400, "4", "true", "", " ", "4 us", [], {}, [4]]


def accepted(marker: Marker) -> list[Any]:
    kept = []
    for value in TRAPS:
        try:
            marker.parse(value)
        except ValueError:
            continue
        kept.append(value)
    return kept


@pytest.mark.parametrize(
    ("marker", "expected"),
    [
        # Nothing is coerced: true is not 1, "4" is not 4, 4.0 is not a whole number. Python's 0 == False makes repr the honest comparison.
        (Whole(0), [0, 1, 4, 10**400]),
        (Whole(1, 3), [1]),
        (Number(), [0, 1, -1, 4, 4.0, 0.5, -0.5]),
        (Number(0.0, 1.0), [0, 1, 0.5]),
        (Number(0.0, 1.0, exclusive=True), [1, 0.5]),
        (Truth(), [True, False]),
        (Line(), ["4", "true", "4 us"]),
        (FilePath(), ["4", "true", "4 us"]),
        (Quantity("s"), ["4 us"]),
        (Quantity("s", exclusive=False), [0, "4 us"]),
        (Choice(("4", "true")), ["4", "true"]),
    ],
)
def test_nothing_is_coerced(marker: Marker, expected: list[Any]) -> None:
    assert list(map(repr, accepted(marker))) == list(map(repr, expected))


def test_types_of_what_is_read() -> None:
    assert isinstance(Number().parse(4), float)
    assert isinstance(Whole().parse(4), int)
    assert isinstance(Quantity("s", exclusive=False).parse(0), float)


@pytest.mark.parametrize(
    ("marker", "value", "message"),
    [
        (Quantity("s"), 0, "0 is out of range: it must be more than 0 s"),
        (Quantity("s", exclusive=False), "-3 us", "'-3 us' is out of range: it must be at least 0 s"),
        (Quantity("B"), 80, "has no unit"),
        (Whole(1), 0, "0 is too small: it must be at least 1"),
        (Whole(0, 3), 4, "4 is too large: it must be at most 3"),
        (Whole(0), 4.0, "4.0 is not a whole number"),
        (Number(0.0, exclusive=True), 0, "0 is too small: it must be more than 0"),
        (Number(maximum=1.0), 2, "2 is too large: it must be at most 1"),
        (Number(), math.nan, "nan is not a finite number"),
        (Number(), 10**400, "a number of 401 digits is too large"),
        (Truth(), "yes", "'yes' is neither true nor false"),
        (Line(), 5, "5 is not text; put it in quotes"),
        (Line(), "  ", "the text is empty"),
        # A slip of the exponent would turn into infinity or into a warning of NumPy; the bound is named instead.
        (Quantity("B/s"), "1e-320 Gb/s", r"'1e-320 Gb/s' is out of range: a bandwidth must be at least 1 B/s"),
        (Quantity("B/s"), "1e200 GB/s", r"'1e200 GB/s' is out of range: a bandwidth must be at most 1e\+18 B/s"),
        (Quantity("s", exclusive=False), "1e300 s", r"'1e300 s' is out of range: a time must be at most 1e\+06 s"),
        (Quantity("s", exclusive=False), "1e-320 s", "a time must be at least 1e-15 s"),
        (Quantity("B"), "1e30 B", r"a size must be at most 1e\+18 B"),
        (Quantity("flop/s"), "1e30 flop/s", r"a compute rate must be at most 1e\+21 flop/s"),
        (Choice(("training", "decode")), "trainig", "unknown choice 'trainig'; did you mean 'training'"),
        (Choice(("training", "decode")), ["training"], "unknown choice"),
    ],
)
def test_refusal_gives_value_and_reason(marker: Marker, value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        marker.parse(value)


@section
@dataclass(frozen=True, slots=True, kw_only=True)
class Wire:
    """A section as plug-in authors write it."""

    name: fields.Text
    speed: fields.BytesPerSecond = 50e9
    delay: fields.Seconds = 0.0
    lanes: fields.Count = 1
    spare: fields.Flag = False


def test_section_reads_units_and_knows_its_keys() -> None:
    wire = TypeAdapter(Wire).validate_python({"name": "a", "speed": "400 Gb/s", "delay": 0})
    assert wire == Wire(name="a", speed=50e9, delay=0.0)
    with pytest.raises(ValidationError) as caught:
        TypeAdapter(Wire).validate_python({"name": "a", "sped": "400 Gb/s", "lanes": True, "spare": 1, "delay": 3})
    assert sorted(error["loc"][-1] for error in caught.value.errors()) == ["delay", "lanes", "spare", "sped"]


def test_section_describes_itself() -> None:
    schema = TypeAdapter(Wire).json_schema()
    assert schema["required"] == ["name"]
    assert schema["additionalProperties"] is False
    assert schema["properties"]["lanes"]["minimum"] == 1
    assert schema["properties"]["speed"]["examples"] == ["400 Gb/s"]


def test_preset_is_a_name_or_a_mapping_or_the_thing_itself() -> None:
    table = {"fast": Wire(name="fast", speed=100e9)}
    marker = Preset(lambda: table, Wire)
    assert marker.parse("fast") is table["fast"]
    assert marker.parse({"name": "own", "speed": "1 GB/s"}) == Wire(name="own", speed=1e9)
    assert marker.parse(table["fast"]) is table["fast"]
    with pytest.raises(ValueError, match="unknown preset 'fst'; did you mean 'fast'"):
        marker.parse("fst")
    # What is written back: the name only if it still means the same.
    assert marker.text(table["fast"]) == "fast"
    changed = Wire(name="fast", speed=1.0)
    assert marker.text(changed) is changed
    assert marker.json_schema() == {"anyOf": [{"enum": ["fast"]}, {"type": "object"}]}


@settings(max_examples=50)
@given(data=st.data())
def test_l13_quantity_reads_what_it_writes(data: st.DataObject) -> None:
    for dimension, (least, most) in fields.BOUNDS.items():
        marker = Quantity(dimension)
        value = data.draw(st.floats(least, most))
        assert marker.parse(marker.text(value)) == value


@pytest.mark.parametrize("dimension", fields.BOUNDS)
def test_the_bounds_themselves_are_accepted_and_described(dimension: str) -> None:
    marker = Quantity(dimension)
    for bound in fields.BOUNDS[dimension]:
        assert marker.parse(marker.text(bound)) == bound
        assert f"{bound:g} {dimension}" in marker.json_schema()["description"]


def test_every_count_has_a_bound_and_a_seed_has_none() -> None:
    for alias in (fields.Count, fields.CountOrZero):
        assert TypeAdapter(alias).validate_python(2**40) == 2**40
        with pytest.raises(ValidationError, match="is too large: it must be at most 1099511627776"):
            TypeAdapter(alias).validate_python(2**40 + 1)
    assert TypeAdapter(fields.Seed).validate_python(10**40) == 10**40


def test_alias_works_in_annotations_of_others() -> None:
    # The alias must stay usable inside another Annotated, as dataclasses of plug-ins nest them.
    inner = Annotated[fields.Count, "a remark"]
    assert TypeAdapter(inner).validate_python(3) == 3
    with pytest.raises(ValidationError, match="not a whole number"):
        TypeAdapter(inner).validate_python("3")


@pytest.mark.parametrize("text", ["a\x1b[31mred", "two\nlines", "bell\x07"])
def test_text_with_control_characters_is_refused(text):
    with pytest.raises(ValueError, match="control character"):
        Line().parse(text)
