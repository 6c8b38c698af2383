"""Senders that do not wait for the bytes in their buffers: by hand, on links of 1 B/s."""

import numpy as np
import pytest

from moesim.base.errors import UsageError
from moesim.engine.replay import AllToAll, Wait, replay
from moesim.models.topology.shaped_hosts import ShapedHosts


def play(sent, buffer, late=(0.0, 0.0, 0.0)):
    star = ShapedHosts(ranks=3, rank_link=1.0, payload=1.0).build()
    phases = [Wait(name="start", seconds=np.array(late)), AllToAll(name="x", bytes=np.array(sent, dtype=float), buffer=buffer)]
    found = replay(star, phases)
    assert found.carried.sum() == pytest.approx(2 * np.sum(sent))  # out of one rank, into another
    return found.ends[-1]


def test_a_sender_leaves_when_the_rest_fits_into_its_buffer():
    # 10 B from 0 to 1: 4 B of them are left in the buffer after 6 s, and arrive after 10 s. Rank 2 has nothing to do.
    np.testing.assert_allclose(play([[0, 10, 0], [0, 0, 0], [0, 0, 0]], 4.0), [6.0, 10.0, 0.0])
    # A message that fits as a whole costs its sender nothing, and arrives as ever.
    np.testing.assert_allclose(play([[0, 3, 0], [0, 0, 0], [0, 0, 0]], 4.0), [0.0, 3.0, 0.0])
    # Without a buffer both end together.
    np.testing.assert_allclose(play([[0, 10, 0], [0, 0, 0], [0, 0, 0]], 0.0)[:2], [10.0, 10.0])


def test_a_pair_starts_when_both_are_there():
    np.testing.assert_allclose(play([[0, 10, 0], [0, 0, 0], [0, 0, 0]], 4.0, late=(0.0, 2.0, 0.0)), [8.0, 12.0, 0.0])
    np.testing.assert_allclose(play([[0, 3, 0], [0, 0, 0], [0, 0, 0]], 4.0, late=(0.0, 2.0, 0.0)), [2.0, 5.0, 0.0])


def test_the_end_of_the_last_receiver_does_not_depend_on_buffers():
    sent = np.random.default_rng(3).integers(0, 9, (3, 3)) * (1 - np.eye(3))
    assert play(sent, 2.0).max() == pytest.approx(play(sent, 0.0).max())


@pytest.mark.parametrize(
    ("keys", "word"),
    [
        ({"buffer": -1.0}, "at least 0"),
        ({"buffer": np.inf}, "finite"),
        ({"buffer": 1.0, "barrier": True}, "without a barrier"),
        ({"buffer": 1.0, "posting": "before"}, "on_arrival"),
    ],
)
def test_buffers_that_make_no_sense_are_refused(keys, word):
    star = ShapedHosts(ranks=2, rank_link=1.0, payload=1.0).build()
    with pytest.raises(UsageError, match=word):
        replay(star, [AllToAll(name="x", bytes=np.ones((2, 2)), **keys)])
