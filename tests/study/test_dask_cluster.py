"""A real scheduler with real workers, started here as processes; and what is said when there are none."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import playing_cells as playing
import pytest
from scenario_texts import SMALL

from moesim.base.errors import UsageError
from moesim.desk.sweep_cells import plan_sweep
from moesim.desk.sweep_files import write_sweep
from moesim.desk.sweep_run import Progress, prepare, run_sweep
from moesim.study.pool import play_all

distributed = pytest.importorskip("distributed")
WORDS = ("policy.capacity.factor=0.8..1.6:0.2", "policy.placement=contiguous,round_robin")


@dataclass
class Cluster:
    address: str
    workers: list[subprocess.Popen]


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def start(tool: str, *words: str) -> subprocess.Popen:
    command = [sys.executable, "-m", f"distributed.cli.dask_{tool}", *words]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    address = f"127.0.0.1:{free_port()}"
    host, port = address.split(":")
    scheduler = start("scheduler", "--host", host, "--port", port, "--no-dashboard", "--no-jupyter")
    # Without a nanny nobody starts a killed worker again: the other one has to do its work.
    workers = [
        start("worker", address, "--nthreads", "1", "--no-nanny", "--no-dashboard", "--local-directory", str(tmp_path)) for _ in range(2)
    ]
    try:
        until = time.monotonic() + 60
        while time.monotonic() < until:
            try:
                with distributed.Client(f"tcp://{address}", timeout=1) as client:
                    client.wait_for_workers(2, timeout=30)
                break
            except (OSError, TimeoutError):
                time.sleep(0.1)
        yield Cluster(address, workers)
    finally:
        for process in (*workers, scheduler):
            process.kill()
            process.wait()


def files(folder: Path) -> dict[str, bytes]:
    """Every file of a sweep but the one that says how it was played."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "meta.json"
    }


def swept(scenario: Path, folder: Path, **how) -> dict[str, bytes]:
    plan = plan_sweep(scenario, WORDS)
    prepare(folder)
    sweep, meta = run_sweep(plan, folder, **how)
    assert not sweep.failed
    write_sweep(plan, sweep, folder, meta)
    return files(folder)


def test_one_process_two_processes_and_a_cluster_that_loses_a_worker_write_the_same_files(cluster, tmp_path):
    scenario = tmp_path / "small.yaml"
    scenario.write_text(SMALL.replace("steps: 3", "steps: 2"), encoding="utf-8")
    killed = []

    def kill_one(progress: Progress) -> None:
        if progress.played == 3 and not killed:
            killed.append(progress.known)
            cluster.workers[0].kill()

    # One folder for all three, one after the other: the resolved scenario names its files relative to where it stands.
    found = {}
    for name, how in {
        "one": {"executor": "inline"},
        "two": {"executor": "processes", "jobs": 2},
        "dask": {"executor": f"dask://{cluster.address}", "progress": Progress(10, on_change=kill_one)},
    }.items():
        found[name] = swept(scenario, tmp_path / name, **how)
    assert killed == [3]
    assert cluster.workers[0].wait(10) != 0
    assert sum(path.startswith("cells/") for path in found["one"]) == 10  # 5 factors, 2 placements
    assert found["two"] == found["one"]
    assert found["dask"] == found["one"]


def test_a_cluster_that_is_started_here_plays_and_is_gone_afterwards():
    answers = play_all(playing.cells(5), playing.square_or_raise, executor="dask", jobs=1)
    assert [answer.samples["square"].item() if answer.done else None for answer in answers] == [0, None, 4, 9, 16]
    assert answers[1].error == "RuntimeError: cell 1 is odd"


def test_a_scheduler_that_is_not_there_is_said(monkeypatch):
    # Without a limit of its own, Dask would wait for half a minute.
    monkeypatch.setattr("moesim.study.dask_cluster.PATIENCE", 0.5)
    with pytest.raises(UsageError, match=r"the Dask scheduler at 127\.0\.0\.1:1 does not answer"):
        play_all(playing.cells(1), playing.square, executor="dask://127.0.0.1:1")


def test_a_scheduler_without_workers_is_said(monkeypatch):
    monkeypatch.setattr("moesim.study.dask_cluster.PATIENCE", 0.5)
    with distributed.LocalCluster(n_workers=0, dashboard_address=None, processes=False) as empty:
        address = empty.scheduler_address.removeprefix("tcp://") if empty.scheduler_address.startswith("tcp") else empty.scheduler_address
        with pytest.raises(UsageError, match="has no workers; start some with 'dask worker"):
            play_all(playing.cells(1), playing.square, executor=f"dask://{address}")


@pytest.mark.parametrize("address", ["nowhere", "127.0.0.1:notaport", "127.0.0.1:99999", ":8786"])
def test_an_address_that_is_none_is_refused(address):
    with pytest.raises(UsageError, match=r"is no address of a scheduler; write dask://host:port"):
        play_all(playing.cells(1), playing.square, executor=f"dask://{address}")


def test_without_distributed_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(UsageError, match=r"pip install 'moesim\[dask\]'"):
        play_all(playing.cells(1), playing.square, executor="dask")
