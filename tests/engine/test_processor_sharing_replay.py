"""Replaying given phases: by hand, with links that change, with late starts, and the all-to-all of a library."""

import numpy as np
import pytest
from clusters import star

from moesim.base.errors import UsageError
from moesim.engine.replay import AllToAll, Change, Compute, Wait, replay
from moesim.models.topology.shaped_hosts import ShapedHosts


def pair(sent, back=0.0):
    return np.array([[0.0, sent], [back, 0.0]])


def test_phases_follow_each_other_on_every_rank():
    # Ranks share one core: 1 and 3 s of work. Rank 0 ends at 2; rank 1 has 2 left, alone: 4. Then 50 B each way at 10 B/s: 5 s. Then a
    # pause.
    cluster = ShapedHosts(ranks=2, rank_link=10.0, payload=1.0, cores=1).build()
    phases = [
        Compute(name="work", seconds=np.array([1.0, 3.0])),
        AllToAll(name="swap", bytes=pair(50, 50)),
        Wait(name="pause", seconds=np.array([1.0, 0.0])),
    ]
    done = replay(cluster, phases)
    assert done.ends.tolist() == [pytest.approx([2.0, 4.0]), pytest.approx([9.0, 9.0]), pytest.approx([10.0, 9.0])]
    assert done.waiting[1].tolist() == pytest.approx([2.0, 0.0])
    assert done.seconds == pytest.approx(10.0)
    assert done.names == ("work", "swap", "pause")
    assert done.carried.sum() == pytest.approx(200.0)  # 100 B over two links each


def test_waiting_takes_no_core():
    cluster = ShapedHosts(ranks=2, cores=1).build()
    done = replay(cluster, [Wait(name="late", seconds=np.array([0.0, 5.0])), Compute(name="work", seconds=np.array([5.0, 1.0]))])
    assert done.ends[1].tolist() == pytest.approx([5.0, 6.0])


def test_a_latency_comes_before_the_first_byte_of_a_barrier_and_after_the_last_byte_otherwise():
    late = Wait(name="late", seconds=np.array([0.0, 3.0]))
    barrier = replay(star(2), [late, AllToAll(name="counts", bytes=pair(0), barrier=True, latency=0.5)])
    assert barrier.ends[1].tolist() == pytest.approx([3.5, 3.5])  # the last to come decides
    plain = replay(star(2), [late, AllToAll(name="swap", bytes=pair(10), latency=0.5)])
    assert plain.ends[1].tolist() == pytest.approx([4.5, 4.5])


def test_a_link_that_changes_carries_less_from_then_on():
    # 100 B at 10 B/s; after 4 s (40 B) the sender's link carries 5 B/s: 60 B take 12 s more. A change after the end does nothing.
    sent = [AllToAll(name="send", bytes=pair(100))]
    assert replay(star(2), sent, changes=[Change(time=4.0, link=0, bandwidth=5.0)]).seconds == pytest.approx(16.0)
    assert replay(star(2), sent, changes=[Change(time=40.0, link=0, bandwidth=5.0)]).seconds == pytest.approx(10.0)
    # And back to 10 B/s at 10 s: 40 + 30 B by then, 3 s more.
    both = [Change(time=4.0, link=0, bandwidth=5.0), Change(time=10.0, link=0, bandwidth=10.0)]
    assert replay(star(2), sent, changes=both).seconds == pytest.approx(13.0)


def test_a_library_runs_the_two_ways_of_some_pairs_one_after_the_other():
    # Four ranks that enter in order 0, 1, 2, 3; every pair 10 B each way; links of 10 B/s. Of an earlier rank a and a later one b the two
    # ways are serial, b -> a first, where (a - b) mod 4 <= 2: pairs (0, 2), (1, 3) at distance 2 and (0, 3) at (0 - 3) mod 4 = 1. So at
    # first 2 -> 0, 3 -> 1, 3 -> 0 and both ways of (0, 1), (1, 2), (2, 3) move: rank 0 receives from 1, 2, 3, rank 1 from 0, 2, 3, and
    # ranks 2 and 3 send to 0, 1, 3 and to 0, 1, 2. All of these take 3 s, as ports of three flows do; nothing serial has begun before.
    # The last three flows 0 -> 2, 1 -> 3, 0 -> 3 begin then; rank 0 sends two of them: 2 s more.
    even = AllToAll(name="swap", bytes=np.full((4, 4), 10.0), posting="alternately")
    order = Wait(name="order", seconds=np.arange(4) * 1e-9)
    assert replay(star(4), [order, even]).seconds == pytest.approx(5.0)
    first = replay(star(4), [order, AllToAll(name="swap", bytes=np.full((4, 4), 10.0))])
    assert first.seconds == pytest.approx(3.0)  # receives first: no port ever idles


def test_a_library_without_bytes_one_way_does_not_wait_for_that_way():
    # Rank 1 comes later and has nothing for rank 0: rank 0's bytes move at once.
    order = Wait(name="order", seconds=np.array([0.0, 1.0]))
    done = replay(star(2), [order, AllToAll(name="send", bytes=pair(10), posting="alternately")])
    assert done.ends[1].tolist() == pytest.approx([2.0, 2.0])
    nothing = replay(star(2), [order, AllToAll(name="send", bytes=pair(0), posting="alternately")])
    assert nothing.ends[1].tolist() == [1.0, 1.0]
    assert np.isnan(nothing.waiting[1]).all()


def test_receives_posted_before_let_messages_move_when_their_sender_comes():
    # Rank 1 starts 5 s late. Rank 0's 20 B for it move at once (2 s), so rank 1 has them long before; its own 10 B take 5 to 6 s.
    late = Wait(name="late", seconds=np.array([0.0, 5.0]))
    sent = pair(20, 10)
    before = replay(star(2), [late, AllToAll(name="swap", bytes=sent, posting="before")])
    assert before.ends[1].tolist() == pytest.approx([6.0, 6.0])
    arriving = replay(star(2), [late, AllToAll(name="swap", bytes=sent)])
    assert arriving.ends[1].tolist() == pytest.approx([7.0, 7.0])
    # Who has nothing to do with the late rank leaves before it comes.
    three = np.array([[0.0, 10.0, 0.0], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    last = Wait(name="late", seconds=np.array([0.0, 0.0, 9.0]))
    assert replay(star(3), [last, AllToAll(name="send", bytes=three, posting="before")]).ends[1].tolist() == pytest.approx([1.0, 1.0, 9.0])


@pytest.mark.parametrize(
    ("phases", "changes", "word"),
    [
        ([Compute(name="work", seconds=np.ones(3))], [], "shape (3,)"),
        ([AllToAll(name="swap", bytes=np.ones((2, 3)))], [], "shape (2, 3)"),
        ([Wait(name="late", seconds=np.array([0.0, -1.0]))], [], "'late' holds seconds below 0"),
        ([AllToAll(name="swap", bytes=pair(np.nan))], [], "bytes below 0 or not finite"),
        ([AllToAll(name="swap", bytes=pair(1), latency=-1.0)], [], "latency of -1.0 s"),
        ([AllToAll(name="swap", bytes=pair(1), posting="alternately", barrier=True)], [], "choose one"),
        ([AllToAll(name="swap", bytes=pair(1), posting="befor")], [], "did you mean 'before'"),
        ([], [Change(time=-1.0, link=0, bandwidth=1.0)], "finite time"),
        ([], [Change(time=1.0, link=9, bandwidth=1.0)], "no link 9"),
        ([AllToAll(name="swap", bytes=pair(100))], [Change(time=1.0, link=0, bandwidth=0.0)], "cannot carry 0 B/s"),
    ],
)
def test_what_cannot_be_played_is_refused(phases, changes, word):
    with pytest.raises(UsageError, match=word.replace("(", r"\(").replace(")", r"\)")):
        replay(star(2), phases, changes=changes)


def test_nothing_to_play_takes_no_time():
    assert replay(star(2), []).seconds == 0.0
