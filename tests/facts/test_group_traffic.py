"""Stages kept group by group, against the whole matrices that they stand for."""

import dataclasses
import pickle

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from moesim.facts.group_traffic import GroupTraffic, added
from moesim.facts.traffic import Traffic


@st.composite
def pairs(draw):
    """A stage in groups, and the same as a whole matrix."""
    groups, ranks = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    rng = np.random.default_rng(draw(st.integers(0, 2**20)))
    copies, padding = rng.integers(0, 9, (2, groups, ranks, ranks)) * (rng.random((2, groups, ranks, ranks)) < 0.7)
    size = (copies + padding) * 16.5
    inside = GroupTraffic.of_groups(size, copies, padding)
    whole = [np.zeros((groups * ranks,) * 2, dtype=values.dtype) for values in (size, copies, padding)]
    for group in range(groups):
        mine = slice(group * ranks, (group + 1) * ranks)
        for matrix, values in zip(whole, (size, copies, padding), strict=True):
            matrix[mine, mine] = values[group]
    return inside, Traffic(bytes=whole[0], copies=whole[1], padding=whole[2]), ranks


@settings(max_examples=60, deadline=None)
@given(case=pairs())
def test_a_stage_in_groups_says_what_its_matrix_says(case):
    inside, whole, ranks = case
    for name in ("bytes", "copies", "padding"):
        assert getattr(inside, name).tolist() == getattr(whole, name).tolist()
        assert not getattr(inside, name).flags.writeable
    for name in ("among", "copies_among", "padding_among"):
        # Groups that together are one group of all are a group, too.
        for size in {ranks, inside.gpus}:
            assert getattr(inside, name)(size).tolist() == getattr(whole, name)(size).tolist()
    for name in ("sent", "received", "flows"):
        assert np.array_equal(getattr(inside, name)(), getattr(whole, name)())
    assert inside.gpus == whole.gpus
    assert inside.astray(ranks) is None
    assert whole.astray(ranks) is None


@settings(max_examples=30, deadline=None)
@given(case=pairs())
def test_sums_copies_and_changed_copies_stay_what_they_are(case):
    inside, whole, _ = case
    assert isinstance(added([inside, inside]), GroupTraffic)
    for stages in ([inside, inside], [inside, whole], [whole, whole]):
        for name in ("bytes", "copies", "padding"):
            assert getattr(added(stages), name).tolist() == (2 * getattr(whole, name)).tolist()
    again = pickle.loads(pickle.dumps(inside))
    assert isinstance(again, GroupTraffic)
    assert again.bytes.tolist() == inside.bytes.tolist()
    # Other people's wrappers change a stage as they change any dataclass.
    changed = dataclasses.replace(inside, padding=whole.padding * 0)
    assert changed.bytes.tolist() == whole.bytes.tolist()
    assert not changed.padding.any()


def test_bytes_to_another_group_are_named():
    size = np.zeros((4, 4))
    size[0, 1], size[2, 1] = 5.0, 7.0
    stage = Traffic(bytes=size, copies=np.zeros((4, 4), dtype=np.int64))
    assert stage.astray(4) is None
    assert stage.astray(2) == (2, 1)
    assert GroupTraffic.of_groups(size[None], np.zeros((1, 4, 4), dtype=np.int64)).astray(2) == (2, 1)


def test_a_stage_without_padding_says_so_in_zeros():
    stage = GroupTraffic.of_groups(np.ones((2, 1, 1)), np.ones((2, 1, 1), dtype=np.int64))
    assert stage.padding.tolist() == [[0, 0], [0, 0]]
    assert stage.bytes.tolist() == [[1.0, 0.0], [0.0, 1.0]]
