"""What worker processes may take."""

from __future__ import annotations

import sys
from functools import partial

import playing_cells as playing
import pytest

from moesim.desk import memory_share
from moesim.desk.worker import cores, ready
from moesim.study.pool import play_all


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux counts private data for RLIMIT_DATA")
def test_a_cell_that_wants_more_memory_than_a_worker_may_hold_fails_alone():
    answers = play_all(playing.cells(3), playing.square_or_take_much, executor="processes", jobs=1, ready=partial(ready, 2 * 2**30))
    assert [answer.done for answer in answers] == [True, False, True]
    assert "not enough memory" in answers[1].error


def test_workers_leave_the_cores_to_each_other():
    answer = play_all(playing.cells(1), playing.threads_of_libraries, executor="processes", jobs=1, ready=ready)[0]
    assert answer.samples["threads"].tolist() == [1.0, 1.0]


def test_the_share_of_a_worker_is_its_part_of_four_fifths(monkeypatch):
    monkeypatch.setattr(memory_share, "memory_of_machine", lambda: 10 * 2**30)
    assert memory_share.memory_share(2) == 4 * 2**30
    monkeypatch.setattr(memory_share, "memory_of_machine", lambda: None)
    assert memory_share.memory_share(2) is None


def test_a_container_may_have_less_than_the_machine(monkeypatch, tmp_path):
    whole = memory_share.memory_of_machine()
    limit = tmp_path / "memory.max"
    monkeypatch.setattr(memory_share, "LIMITS", (str(limit),))
    for text, expected in (("1048576\n", 2**20), ("max\n", None), (str(2**70), None)):
        limit.write_text(text)
        found = memory_share.memory_of_machine()
        assert found == expected or (expected is None and found is not None and found >= whole)


def test_there_is_a_core():
    assert cores() >= 1
