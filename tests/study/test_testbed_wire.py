"""What links carry besides data, how buckets and late starts tell, and flows of a fixed window through one queue: by hand."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moesim.engine.replay import Change
from moesim.models.topology.shaped_hosts import PAYLOAD, ShapedHosts
from moesim.study.testbed.predict import exchange
from moesim.study.testbed.windows import ends_of_windows
from moesim.study.testbed.wire import ANSWERED, BURST, UNSHAPED, answered, head_start, starts, waves, ways_back, with_acknowledgements


def star(ranks=3, rate=1e6):
    return ShapedHosts(ranks=ranks, rank_link=rate, payload=1.0).build()


def pairs(ranks, **sent):
    found = np.zeros((ranks, ranks))
    for name, size in sent.items():
        found[int(name[1]), int(name[2])] = size
    return found


def test_a_packet_without_data_answers_five_full_ones():
    # 8192 bytes hold five packets of 1448 bytes of data, 1514 on the wire each; the answer is 14 + 20 + 20 + 12 bytes.
    assert pytest.approx(66 / 7570) == ANSWERED


def test_every_link_knows_its_way_back():
    for cluster in (star(), ShapedHosts(ranks=4, ranks_per_node=2, rank_link=2.0, uplink=1.0).build()):
        back = ways_back(cluster)
        assert (back[back] == np.arange(cluster.links)).all()
        assert (back != np.arange(cluster.links)).all()
        assert cluster.link_names[back[cluster.link_names.index("rank-out:1")]] == "rank-in:1"


def test_acknowledgements_slow_links_whose_way_back_is_full_and_no_others():
    cluster = star()
    both = with_acknowledgements(cluster, pairs(3, p01=100, p10=100)).bandwidth / cluster.bandwidth
    one = with_acknowledgements(cluster, pairs(3, p01=100)).bandwidth / cluster.bandwidth
    used = [cluster.link_names.index(name) for name in ("rank-out:0", "rank-in:1", "rank-out:1", "rank-in:0")]
    np.testing.assert_allclose(both[used], 1 / (1 + ANSWERED))
    assert (one == 1.0).all()
    assert answered(cluster, pairs(3, p01=100, p10=100)) == pytest.approx(ANSWERED)
    # The busiest link carries 200 to rank 1; of what it answers for, rank 1 sends 100: half as much.
    assert answered(cluster, pairs(3, p01=100, p21=100, p10=100)) == pytest.approx(ANSWERED / 2)
    assert answered(cluster, pairs(3)) == 0.0


def test_a_full_bucket_saves_its_depth_at_the_busiest_link():
    cluster = star()
    assert head_start(cluster, pairs(3, p01=1e6), 0.5) == pytest.approx(BURST / 2 * (1e-6 - 1 / UNSHAPED))
    assert head_start(cluster, pairs(3, p01=100), 0.5) == pytest.approx(100 * (1e-6 - 1 / UNSHAPED))
    assert head_start(cluster, pairs(3), 0.5) == 0.0
    # Less than a bucket passes at once, and still not in no time.
    assert 0 < exchange(cluster, pairs(3, p01=100), posting=0.0).seconds < 1e-6


def test_ranks_start_one_after_the_other():
    assert sorted(starts(0.3, 4, 7)) == pytest.approx([0.0, 0.1, 0.2, 0.3])
    assert starts(0.3, 1, 0).tolist() == [0.0]
    assert any(starts(0.3, 4, 0).tolist() != starts(0.3, 4, order).tolist() for order in range(1, 5))


def test_a_late_start_tells_where_only_the_late_one_sends_and_not_where_a_link_is_busy():
    # Even traffic: whoever is last ends so much later. Three ranks send to one: its link is busy from the first on.
    cluster, even, incast = star(4), np.full((4, 4), 1e6), pairs(4, p10=1e6, p20=1e6, p30=1e6)
    for sent, later in ((even, 0.1), (incast, 0.0)):
        apart = exchange(cluster, sent, posting=0.1).seconds - exchange(cluster, sent, posting=0.0).seconds
        assert apart == pytest.approx(later, abs=0.034)  # of an incast rank 0 may be the first, and sends nothing


def windows(cluster, sent, start=None, share=0.0):
    return ends_of_windows(cluster, sent, np.zeros(len(sent)) if start is None else start, back=ways_back(cluster), answered=share)


def test_the_two_directions_of_a_pair_are_equally_fast():
    # 0 and 2 send to 1, and 1 to 0, a million bytes each over 1 MB/s. All wait in the queue to rank 1, 1's flow by its acknowledgements:
    # each moves half a megabyte a second. Max-min fairness would let 1's flow have its links for itself and end after 1 s.
    ends = windows(star(), pairs(3, p01=1e6, p21=1e6, p10=1e6))
    np.testing.assert_allclose(ends, 2.0, rtol=1e-4)
    assert exchange(star(), pairs(3, p01=1e6, p21=1e6, p10=1e6), wire=False).ends[0] == pytest.approx(2.0)
    # Two flows to one rank and none back share it equally, and one alone has the link.
    np.testing.assert_allclose(windows(star(), pairs(3, p01=1e6, p21=5e5)), [1.5, 1.5, 1.0], rtol=1e-4)


def test_windows_begin_late_and_rest():
    # Rank 2 starts when half of rank 0's bytes have moved: 0.5 s alone, then both share: 0.5 MB each take 1 s, and 0.5 MB of 2 remain.
    ends = windows(star(), pairs(3, p01=1e6, p21=1e6), start=np.array([0.0, 0.0, 0.5]))
    np.testing.assert_allclose(ends, [1.5, 2.0, 2.0], rtol=1e-4)
    # Nobody sends between 1 s and 3 s.
    np.testing.assert_allclose(windows(star(), pairs(3, p01=1e6, p21=1e6), start=np.array([0.0, 0.0, 3.0])), [1.0, 4.0, 4.0], rtol=1e-4)
    assert windows(star(), pairs(3), start=np.array([0.0, 0.25, 0.0])).tolist() == [0.0, 0.25, 0.0]


def test_even_traffic_is_the_same_with_one_queue_as_with_many():
    sent = np.full((5, 5), 2e5) * (1 - np.eye(5))
    one, many = (exchange(star(5), sent, fifo=fifo).seconds for fifo in (True, False))
    assert one == pytest.approx(many, rel=1e-4)


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 5), st.integers(0, 1000))
def test_windows_never_beat_the_port_bound_and_keep_a_link_busy(ranks, seed):
    draw = np.random.default_rng(seed)
    sent = draw.integers(0, 4, (ranks, ranks)) * 1e6 * (1 - np.eye(ranks))
    ends = windows(star(ranks), sent)
    bound = max(sent.sum(axis=0).max(), sent.sum(axis=1).max()) / 1e6
    assert ends.max() >= bound * (1 - 1e-4)
    # Some link is full at every moment, so that all bytes one after the other are the most it can take.
    assert ends.max() <= sent.sum() / 1e6 * (1 + 1e-4) + 1e-12


def test_ranks_enter_a_library_in_waves_of_as_many_as_there_are_cores():
    drawn = np.array([waves(6, 2, order, 1.0) for order in range(64)])
    assert drawn.min() == 0.0
    assert set(np.unique(drawn)) == {0.0, 1.0, 2.0}  # three pairs, each of which may be as good as one with the pair before
    sizes = np.array([np.unique(each, return_counts=True)[1] for each in drawn], dtype=object)
    assert all(count % 2 == 0 for each in sizes for count in each)
    together = np.mean([len(each) == 1 for each in sizes])
    assert 0.1 < together < 0.45  # two tosses: a quarter
    assert (waves(4, 8, 0, 1.0) == 0).all()
    np.testing.assert_array_equal(waves(6, 2, 5, 1.0), waves(6, 2, 5, 1.0))


def test_the_rank_that_is_known_to_start_first_does_and_the_others_keep_their_order():
    for order in range(8):
        any_of_them, known = starts(3.0, 4, order), starts(3.0, 4, order, 2)
        assert known[2] == 0.0
        assert sorted(known) == [0.0, 1.0, 2.0, 3.0]
        others = [0, 1, 3]
        assert np.argsort(any_of_them[others]).tolist() == np.argsort(known[others]).tolist()


def test_ranks_that_enter_a_library_at_once_hold_up_nobody_and_waves_do():
    # Four ranks, 10 B a pair, links of 10 B/s: at once 3 s; a rank after another 5 s (tests/engine/test_processor_sharing_replay.py).
    even = np.full((4, 4), 10.0)
    cluster = star(4, 10.0)
    assert exchange(cluster, even, library=True, cores=4, wire=False).seconds == pytest.approx(3.0, abs=1e-4)
    found = exchange(cluster, even, library=True, cores=1, wire=False).tried
    assert found.min() == pytest.approx(3.0, abs=1e-4)
    assert found.max() == pytest.approx(5.0, abs=1e-4)
    assert exchange(cluster, even, library=True, wire=False).seconds == pytest.approx(5.0, abs=1e-4)


def test_what_a_bucket_lets_through_is_worth_its_time_at_the_rate_in_the_end():
    # 1 MB over a link of 1 MB/s that carries 0.25 MB/s from 0.4 s on: 0.4 s, then 0.6 MB less a bucket at a quarter of the rate.
    sent = pairs(3, p01=1e6)
    cluster = star()
    links = [cluster.link_names.index("rank-out:0")]
    changes = [Change(time=0.4, link=link, bandwidth=0.25e6) for link in links]
    plain = exchange(cluster, sent, changes=changes, wire=False).seconds
    assert plain == pytest.approx(0.4 + 0.6 / 0.25)
    known = exchange(cluster, sent, changes=changes, posting=0.0, first=0).seconds
    saved = BURST * PAYLOAD
    assert known == pytest.approx(plain - saved * (1 / 0.25e6 - 1 / UNSHAPED))
    assert exchange(cluster, sent, changes=changes, posting=0.0).seconds == pytest.approx(plain - saved * (1e-6 - 1 / UNSHAPED))
