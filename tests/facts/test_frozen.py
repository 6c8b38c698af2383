"""Facts do not change: their arrays are read-only, and whoever made them cannot reach them afterwards."""

import array

import numpy as np
import pytest

from moesim.facts.arrays import frozen


def test_the_caller_s_array_does_not_reach_a_fact():
    # The fact holds 1, 2, 3 whatever happens to the array that it was made of; that one stays writable.
    mine = np.array([1, 2, 3])
    fact = frozen(mine)
    mine[0] = 9
    assert fact.tolist() == [1, 2, 3]
    assert mine.flags.writeable


@pytest.mark.parametrize("dtype", [None, np.int64])
def test_a_part_of_the_caller_s_array_does_not_reach_a_fact(dtype):
    # A slice shares memory with its array, in whatever way the array is handed over.
    mine = np.array([1, 2, 3, 4], dtype=np.int64)
    fact = frozen(mine[1:3], dtype)
    mine[:] = 9
    assert fact.tolist() == [2, 3]


@pytest.mark.parametrize("wrap", [lambda mine: mine.view(np.recarray), memoryview], ids=["subclass", "memoryview"])
def test_what_only_looks_like_an_array_does_not_reach_a_fact_either(wrap):
    # asarray of a subclass or of a buffer is a new array over the same memory.
    mine = np.array([1, 2, 3])
    fact = frozen(wrap(mine))
    mine[0] = 9
    assert fact.tolist() == [1, 2, 3]


def test_a_buffer_does_not_reach_a_fact():
    mine = array.array("d", [1.0, 2.0])
    fact = frozen(mine)
    mine[0] = 9.0
    assert fact.tolist() == [1.0, 2.0]


@pytest.mark.parametrize("given", [[1, 2], (1, 2), np.array([1, 2]), np.array([1.0, 2.0]), range(1, 3)], ids=repr)
def test_facts_cannot_be_written(given):
    fact = frozen(given, np.float64)
    assert fact.dtype == np.float64
    assert fact.tolist() == [1.0, 2.0]
    with pytest.raises(ValueError, match="read-only"):
        fact[0] = 9.0


def test_without_a_dtype_the_array_keeps_its_own():
    assert frozen(np.array([1, 2], dtype=np.int8)).dtype == np.int8
    assert frozen([0.5]).dtype == np.float64
    assert frozen([True]).dtype == np.bool_


def test_another_dtype_is_a_new_array():
    mine = np.array([1, 2], dtype=np.int32)
    fact = frozen(mine, np.int64)
    mine[0] = 9
    assert fact.tolist() == [1, 2]


def test_what_is_read_only_already_is_shared():
    # Facts are made of facts millions of times: a second copy of each would cost memory and time.
    fact = frozen(np.arange(3))
    assert frozen(fact) is fact
    assert frozen(fact, np.int64) is fact
    part = fact[1:]
    assert np.shares_memory(frozen(part), fact)


def test_numbers_are_arrays_without_axes():
    assert frozen(2, np.float64).tolist() == 2.0
    assert frozen(2, np.float64).shape == ()
