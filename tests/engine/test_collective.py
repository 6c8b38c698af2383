"""Collectives: each rank starts when it arrives; waiting for peers is told apart from transferring."""

import numpy as np
import pytest
import simpy
from clusters import star

from moesim.engine.collective import Collective
from moesim.engine.fabric import Fabric


def run(size, arrivals, *, barrier=False, bandwidth=10.0):
    """Let rank r arrive at ``arrivals[r]``; return the collective."""
    env = simpy.Environment()
    gpus = len(arrivals)
    fabric = Fabric(env, star(gpus, bandwidth))
    collective = Collective(env, fabric, range(gpus), np.array(size, dtype=float), barrier=barrier)

    def rank(number, when):
        yield env.timeout(when)
        yield collective.arrive(number)

    for number, when in enumerate(arrivals):
        env.process(rank(number, when))
    env.run()
    fabric.check()
    return collective


def test_two_ranks_wait_for_the_later_one_and_then_transfer():
    # 50 B each way at 10 B/s: 5 s. Rank 0 comes at 0, rank 1 at 3: rank 0 waits 3 s for rank 1; both end at 8.
    done = run([[0, 50], [50, 0]], [0.0, 3.0])
    assert done.at[0].end == pytest.approx(8.0)
    assert done.at[0].waiting == pytest.approx(3.0)
    assert done.at[0].waited_for == {1: pytest.approx(3.0)}
    assert done.at[1].waiting == 0.0
    assert done.at[1].waited_for == {}


def test_early_pairs_exchange_while_a_late_rank_is_missing():
    # Ranks 0 and 1 exchange 20 B from t = 0 (2 s), then wait from 2 to 10 for rank 2, then exchange 10 B with it.
    # At t = 10 rank 2 sends 10 B to each of two and receives 10 B from each: its ports carry 20 B at 10 B/s, 2 s. End: 12.
    done = run([[0, 20, 10], [20, 0, 10], [10, 10, 0]], [0.0, 0.0, 10.0])
    assert [done.at[rank].end for rank in range(3)] == pytest.approx([12.0] * 3)
    assert [done.at[rank].waiting for rank in range(3)] == pytest.approx([8.0, 8.0, 0.0])
    assert done.at[0].waited_for == {2: pytest.approx(8.0)}
    assert done.moving == pytest.approx(4.0)  # 0 to 2, and 10 to 12


def test_a_barrier_moves_nothing_before_the_last_arrival():
    # As above, but 0 and 1 must wait 10 s first: then 0 sends 20 + 10 B, so everything ends at 13 (its port: 30 B at 10 B/s).
    done = run([[0, 20, 10], [20, 0, 10], [10, 10, 0]], [0.0, 0.0, 10.0], barrier=True)
    assert max(done.at[rank].end for rank in range(3)) == pytest.approx(13.0)
    assert done.at[0].waiting == pytest.approx(10.0)


def test_a_rank_with_nothing_to_send_still_waits_for_the_last():
    # Rank 2 exchanges nothing, yet cannot know that nothing will come before rank 1 has arrived at t = 6.
    done = run([[0, 10, 0], [10, 0, 0], [0, 0, 0]], [0.0, 6.0, 1.0])
    assert done.at[2].end == pytest.approx(6.0)
    assert done.at[2].waiting == pytest.approx(5.0)
    assert done.at[2].waited_for == {1: pytest.approx(5.0)}
    assert done.at[0].end == pytest.approx(7.0)


def test_a_collective_of_one_rank_is_over_at_once():
    done = run([[0]], [2.0])
    assert done.at[0].end == 2.0
    assert done.at[0].waiting == 0.0


def test_waiting_is_booked_on_each_peer_that_caused_it():
    # Rank 0 waits 10 s for rank 1, exchanges 10 B each way with it (1 s), waits 0.5 s more for rank 2, and exchanges 1 s with that.
    done = run([[0, 10, 10], [10, 0, 0], [10, 0, 0]], [0.0, 10.0, 11.5])
    assert done.at[0].waited_for == {1: pytest.approx(10.0), 2: pytest.approx(0.5)}
    assert done.at[0].end == pytest.approx(12.5)
