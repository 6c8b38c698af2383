from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moesim.base.streams import stream

names = st.lists(st.one_of(st.text(max_size=8), st.integers(0, 1000)), min_size=1, max_size=4)


def first(*names: str | int, seed: int = 7) -> list[int]:
    return stream(seed, *names).integers(0, 2**63, size=4).tolist()


@settings(max_examples=50)
@given(one=names, other=names)
def test_l8_streams_do_not_depend_on_what_was_taken_before(one: list[str | int], other: list[str | int]) -> None:
    alone = first(*one)
    stream(7, *other).random(100)
    assert first(*one) == alone


@settings(max_examples=50)
@given(one=names, other=names)
def test_other_names_are_another_stream(one: list[str | int], other: list[str | int]) -> None:
    assert (first(*one) == first(*other)) == (one == other)


def test_names_are_told_apart_by_type_place_and_border() -> None:
    different = [(1,), ("1",), ("a", "b"), ("b", "a"), ("ab",), ("a", "b", ""), ("str:a",), ("a",), ()]
    drawn = [tuple(first(*names)) for names in different]
    assert len(set(drawn)) == len(different)


def test_numpy_scalars_name_the_same_stream_as_numbers_of_python() -> None:
    # A loop over an array of layers must not start other streams than a loop over a range.
    assert first("source", np.int64(3)) == first("source", 3)
    assert first(str(np.str_("source"))) == first("source")


def test_seed_takes_part() -> None:
    assert first("source", seed=1) != first("source", seed=2)


@pytest.mark.parametrize("salt", ["0", "1", "4242"])
def test_l8_streams_do_not_depend_on_the_hash_seed(salt: str) -> None:
    # Python salts hash() per process; streams must be the same in all.
    code = "from moesim.base.streams import stream; print(stream(7, 'source', 3).integers(0, 2**63, size=4).tolist())"
    out = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | {"PYTHONHASHSEED": salt}, capture_output=True, text=True, check=True
    )
    assert out.stdout.strip() == str(first("source", 3))


def test_streams_stay_what_they_were() -> None:
    # The numbers of a stream are part of every result on disk: a change of the hash or of NumPy's generator must be noticed.
    assert stream(0, "source", 0, 0).integers(0, 1000, size=5).tolist() == [239, 587, 47, 102, 383]
