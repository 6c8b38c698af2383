"""How a value is written: as the member of its union that reads the text back to the value."""

from dataclasses import dataclass
from typing import Annotated

import pytest

from moesim.base.fields import BytesPerSecond, Choice, Count, File, Flag, Preset, Seconds, Text, section
from moesim.desk.plain_data import plain_data, relative_to

Auto = Annotated[str, Choice(("auto", "never"))]


def nowhere(path: str) -> str:
    raise AssertionError(f"{path} is no path")


@pytest.mark.parametrize(
    ("value", "annotation", "written"),
    [
        # One marker writes without being asked, whatever stands beside None.
        (2e-6, Seconds, "2 us"),
        (2e-6, Seconds | None, "2 us"),
        (None, Seconds | None, None),
        # Of two, the first that reads its own text back: a word is no time, and a time is none of the words.
        (2e-6, Seconds | Auto, "2 us"),
        ("auto", Seconds | Auto, "auto"),
        (2e-6, Auto | Seconds, "2 us"),
        ("never", Auto | Seconds, "never"),
        # Both would write something, but a rate of 0 is out of range, so that only the time reads back.
        (0.0, BytesPerSecond | Seconds, "0 s"),
        (5e9, Flag | BytesPerSecond, "5 GB/s"),
        # None of them: as it is, for the loader to refuse.
        ("sometimes", Seconds | Auto, "sometimes"),
        (-3, Count | Auto, -3),
        # Without a marker there is nothing to ask.
        (1.5, float, 1.5),
    ],
)
def test_a_union_is_written_by_the_member_that_reads_it_back(value, annotation, written):
    found = plain_data(value, annotation, nowhere)
    assert found == written
    assert type(found) is type(written)


def test_items_of_lists_and_mappings_are_written_by_their_own_type():
    assert plain_data((2e-6, "auto"), tuple[Seconds | Auto, ...], nowhere) == ["2 us", "auto"]
    assert plain_data({"a": 2e-6}, dict[str, Seconds], nowhere) == {"a": "2 us"}
    assert plain_data(frozenset({3, 1, 2}), frozenset[Count], nowhere) == [1, 2, 3]
    assert plain_data([1e9], tuple[BytesPerSecond, ...] | None, nowhere) == ["1 GB/s"]


def test_files_are_written_as_the_folder_sees_them():
    seen = relative_to("/a/b")
    assert plain_data("/a/c/t.npz", File | None, seen) == "../c/t.npz"
    assert plain_data("/a/b/t.npz", File, seen) == "t.npz"
    assert plain_data("/a/b/t.npz", File, relative_to(None)) == "/a/b/t.npz"
    assert plain_data("t.npz", File, seen) == "t.npz"
    # Text that looks like a path is none.
    assert plain_data("/a/b", Text, nowhere) == "/a/b"


@section
@dataclass(frozen=True, slots=True, kw_only=True)
class Thing:
    name: Text
    delay: Seconds


SHIPPED = {"quick": Thing(name="quick", delay=1e-6)}


def test_a_preset_is_named_only_while_it_is_the_preset():
    field = Annotated[Thing, Preset(lambda: SHIPPED, Thing)]
    assert plain_data(SHIPPED["quick"], field, nowhere) == "quick"
    # Another delay under the same name: spelled out.
    assert plain_data(Thing(name="quick", delay=2e-6), field, nowhere) == {"name": "quick", "delay": "2 us"}
    assert plain_data(Thing(name="own", delay=0.0), field, nowhere) == {"name": "own", "delay": "0 s"}
