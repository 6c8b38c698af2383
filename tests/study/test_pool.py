"""Playing cells: the same answers from every executor, deaths of workers, interruptions."""

from __future__ import annotations

import multiprocessing
import threading
import time
from concurrent.futures import process
from dataclasses import replace

import playing_cells as playing
import pytest

from moesim.base.errors import SimulationError, UsageError
from moesim.study import pool
from moesim.study.pool import play_all


def squares(answers):
    return [answer.samples["square"].item() if answer.done else None for answer in answers]


@pytest.mark.parametrize("executor", ["inline", "processes"])
def test_answers_come_in_the_order_of_the_cells(executor):
    heard = []
    answers = play_all(playing.cells(7), playing.square, executor=executor, jobs=2, on_answer=heard.append)
    assert squares(answers) == [0, 1, 4, 9, 16, 25, 36]
    assert [answer.name for answer in answers] == [f"cell {at}" for at in range(7)]
    assert sorted(answer.digest for answer in heard) == sorted(answer.digest for answer in answers)


def test_cells_with_one_digest_are_played_once_and_keep_their_names():
    first, other = playing.cells(2)
    twin = replace(first, name="twin", axes={"at": "the same"})
    heard = []
    answers = play_all([first, other, twin], playing.square, executor="inline", on_answer=heard.append)
    assert [answer.name for answer in heard] == ["cell 0", "cell 1"]
    assert (answers[2].name, answers[2].axes) == ("twin", {"at": "the same"})
    assert squares(answers) == [0, 1, 0]


def test_cells_are_made_only_when_they_are_needed():
    heard, asked = [], []

    def slowly():
        for cell in playing.cells(6):
            asked.append(len(heard))
            yield cell

    play_all(slowly(), playing.square, executor="inline", on_answer=heard.append)
    assert asked == [0, 1, 2, 3, 4, 5]


def test_an_error_in_a_worker_is_the_failure_of_its_cell():
    answers = play_all(playing.cells(4), playing.square_or_raise, executor="processes", jobs=2)
    assert squares(answers) == [0, None, 4, 9]
    assert answers[1].error == "RuntimeError: cell 1 is odd"


def test_the_cell_that_kills_its_worker_twice_has_failed_and_no_other():
    answers = play_all(playing.cells(6), playing.square_or_die, executor="processes", jobs=2)
    assert squares(answers) == [0, 1, None, 9, 16, 25]
    assert "died 2 times" in answers[2].error


def test_a_worker_that_is_killed_once_costs_no_cell(tmp_path):
    answers = play_all(playing.cells(6, str(tmp_path)), playing.square_or_die_once, executor="processes", jobs=2)
    assert squares(answers) == [0, 1, 4, 9, 16, 25]
    assert (tmp_path / "died").exists()


def test_processes_that_all_die_end_the_study():
    with pytest.raises(SimulationError, match="no worker process lives long enough"):
        play_all(playing.cells(50), playing.die, executor="processes", jobs=1)


def test_an_interruption_ends_the_workers_and_keeps_what_was_answered():
    heard = []

    def interrupt(answer):
        heard.append(answer)
        if len(heard) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        play_all(playing.cells(40), playing.square_slowly, executor="processes", jobs=1, on_answer=interrupt)
    assert len(heard) == 2
    for child in multiprocessing.active_children():
        child.join(10)
    assert multiprocessing.active_children() == []


@pytest.mark.parametrize(
    ("executor", "message"),
    [("threads", "there is no executor 'threads'"), ("process", "did you mean 'processes'"), ("dask:/x", "there is no executor 'dask:/x'")],
)
def test_an_unknown_executor_is_named(executor, message):
    with pytest.raises(UsageError, match=message):
        play_all(playing.cells(1), playing.square, executor=executor)


def test_jobs_start_at_one():
    with pytest.raises(UsageError, match="jobs is 0"):
        play_all(playing.cells(1), playing.square, jobs=0)


def test_nothing_to_play_is_no_error():
    for executor in ("inline", "processes"):
        assert play_all([], playing.square, executor=executor, jobs=2) == []


@pytest.fixture
def thread_errors(monkeypatch):
    """What threads die of."""
    found = []
    monkeypatch.setattr(threading, "excepthook", found.append)
    return found


def wait_for_threads(names):
    for thread in threading.enumerate():
        if thread.name not in names:
            thread.join(20)
            assert not thread.is_alive(), thread


@pytest.mark.skipif(not hasattr(process, "_ExecutorManagerThread"), reason="the thread that looks after the processes has another name")
def test_the_thread_of_the_pool_outlives_an_interruption_that_kills_a_worker_first(monkeypatch, thread_errors):
    # Ctrl-C reaches all processes at once. Here the thread always learns of the dead workers before it learns that the study was given up,
    # as happens on a busy machine: it then hands the error of a broken pool to every future that is left.
    manager = process._ExecutorManagerThread  # there is no public way to make two threads meet in one order
    before, given_up = {thread.name for thread in threading.enumerate()}, threading.Event()

    def wait_until_they_are_dead(self):
        given_up.wait(20)
        for worker in list(self.processes.values()):
            worker.join()
        return None, True, None

    def interrupted(*_, **__):
        given_up.set()
        raise KeyboardInterrupt

    monkeypatch.setattr(manager, "wait_result_broken_or_wakeup", wait_until_they_are_dead)
    monkeypatch.setattr(pool, "wait", interrupted)
    with pytest.raises(KeyboardInterrupt):
        play_all(playing.cells(40), playing.square_slowly, executor="processes", jobs=2)
    wait_for_threads(before)
    assert thread_errors == []


def test_an_interruption_ends_though_a_pipe_is_full(monkeypatch, thread_errors):
    # Cells of a megabyte, and workers that are still loading: the pipe to them holds 64 KiB, and nobody reads it once they are dead.
    before = {thread.name for thread in threading.enumerate()}

    def interrupted(*_, **__):
        time.sleep(0.2)
        raise KeyboardInterrupt

    monkeypatch.setattr(pool, "wait", interrupted)
    with pytest.raises(KeyboardInterrupt):
        play_all(playing.cells(8, "x" * 2**20), playing.square_slowly, executor="processes", jobs=2)
    wait_for_threads(before)
    assert thread_errors == []
