"""Start ranks, watch them, and end all of them whatever happens; or be one rank of those that torchrun started."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from moesim.base.errors import MeasurementError, UsageError
from moesim.lab.job import Job, to_text
from moesim.lab.merging import Line, finished, parse
from moesim.lab.rank import NEEDED, Journal, play

GLANCE = 0.1
"""Seconds between two looks at the ranks: looking costs them time."""

PATIENCE = 3.0
"""Seconds between asking a rank to end and ending it."""

Progress = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What ranks left: lines of each, and why they are not complete (empty if they are)."""

    ranks: list[list[Line]]
    why: str = ""
    interrupted: bool = False
    exit_code: int = 0


def under_torchrun(environment: Mapping[str, str]) -> bool:
    """Tell whether torchrun, or somebody like it, has started this process as one of several ranks."""
    return all(environment.get(name) for name in NEEDED)


def free_port(wanted: int = 0) -> int:
    """Return a port of this machine on which ranks can meet.

    Raises
    ------
    UsageError
        If the wanted one is taken.
    """
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", wanted))
        except (OSError, OverflowError):
            raise UsageError(
                f"port {wanted} of this machine is in use or not allowed; choose another with --port, or leave it out"
            ) from None
        return int(probe.getsockname()[1])


def run_ranks(
    job: Job, ranks: int, *, timeout_s: float, port: int = 0, progress: Progress | None = None, command: Sequence[str] = ()
) -> Outcome:
    """Run a job on ranks of this machine.

    Parameters
    ----------
    job : Job
        What to measure.
    ranks : int
        How many processes.
    timeout_s : float
        After so long all ranks are ended, and what they have measured is returned as partial.
    port : int
        Where they meet; 0 takes a free one.
    progress : callable, optional
        Called with measured and all repeats.
    command : sequence of str
        What runs one rank, given the job's file and the folder; this Python with :mod:`moesim.lab.rank` if empty.

    Returns
    -------
    Outcome
        When a rank dies, the others are ended and what was measured is returned. No process is left.
    """
    job.check(ranks)
    meeting = free_port(port)
    with tempfile.TemporaryDirectory(prefix="moesim-") as name:
        folder = Path(name)
        (folder / "job.json").write_text(to_text(job), encoding="utf-8")
        processes: list[subprocess.Popen[bytes]] = []
        why, interrupted = "", False
        try:
            with terminated_like_interrupted():
                what = command or (sys.executable, "-m", "moesim.lab.rank")
                for rank in range(ranks):
                    processes.append(_start(rank, ranks, meeting, folder, what))  # noqa: PERF401 - one that fails must not hide the others
                why = _watch(job, processes, folder, time.monotonic() + timeout_s, timeout_s, progress)
        except KeyboardInterrupt:
            why, interrupted = "interrupted", True
        finally:
            end(processes)
        lines = [parse(_text(folder / f"rank-{rank}.jsonl")) for rank in range(ranks)]
        code = 2 if any(process.returncode == 2 for process in processes) else 1
    if not why and not all(map(finished, lines)):
        why = "a rank ended without finishing"
    return Outcome(ranks=lines, why=why, interrupted=interrupted, exit_code=code if why else 0)


@contextlib.contextmanager
def terminated_like_interrupted() -> Iterator[None]:
    """Turn a request to terminate into an interruption, so that ranks are ended and results kept."""

    def interrupt(number: int, frame: FrameType | None) -> None:  # noqa: ARG001 - the contract of handlers
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _start(rank: int, ranks: int, port: int, folder: Path, command: Sequence[str]) -> subprocess.Popen[bytes]:
    environment = {
        **os.environ,
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(ranks),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "MOESIM_LAB_PARENT": str(os.getpid()),
    }
    loopback = next((name for _, name in socket.if_nameindex() if name in {"lo", "lo0"}), None)
    if loopback and "GLOO_SOCKET_IFNAME" not in environment:
        environment["GLOO_SOCKET_IFNAME"] = loopback  # gloo would look up the host's name, which need not lead anywhere
    with (folder / f"rank-{rank}.err").open("wb") as errors:
        # A session of its own: Ctrl-C reaches this process alone, which then ends the ranks in order.
        return subprocess.Popen(  # noqa: S603 - this Python, or what a caller in Python gives
            [*command, str(folder / "job.json"), str(folder)],
            env=environment, stdin=subprocess.DEVNULL, stdout=errors, stderr=errors, start_new_session=True,
        )  # fmt: skip


def _watch(
    job: Job, processes: Sequence[subprocess.Popen[bytes]], folder: Path, until: float, timeout_s: float, progress: Progress | None
) -> str:
    """Wait for all ranks; return why they were not waited for any longer."""
    total = len(job.cases) * job.repeats
    looked, done = 0, 0
    while True:
        codes = [process.poll() for process in processes]
        if progress is not None:
            news = _news(folder / "rank-0.jsonl", looked)
            looked += len(news)
            done += news.count(b'"repeat"')
            progress(min(done, total), total)
        dead = [rank for rank, code in enumerate(codes) if code not in (None, 0)]
        if dead:
            time.sleep(0.2)  # the peers of a dead rank fail at once, too: see which of them knows more
            return _complaint(processes, folder)
        if None not in codes:
            return ""
        if time.monotonic() > until:
            return f"not finished after {timeout_s:g} s; --timeout allows more, --quick needs less"
        time.sleep(GLANCE)


def _news(path: Path, since: int) -> bytes:
    """Return the whole lines that a file has gained."""
    try:
        with path.open("rb") as file:
            file.seek(since)
            return file.read().rpartition(b"\n")[0]
    except OSError:
        return b""


ECHOES = ("connection closed by peer", "connection reset by peer", "socket closed", "timed out", "broken pipe")
"""What ranks say whose peer is gone: rarely the reason."""


def _complaint(processes: Sequence[subprocess.Popen[bytes]], folder: Path) -> str:
    said: list[tuple[int, str]] = []
    for rank, process in enumerate(processes):
        code = process.poll()
        if code in (None, 0):
            continue
        text = [line.strip() for line in _text(folder / f"rank-{rank}.err").splitlines() if line.strip()]
        last = text[-1] if text else "it said nothing"
        if code is not None and code < 0:
            said.append((0, f"rank {rank} was ended by {signal.Signals(-code).name}"))
        elif code == 2:
            return last
        else:
            echo = any(word in last.lower() for word in ECHOES)
            said.append((2 if echo else 1, f"rank {rank} failed: {last}"))
    return min(said, key=lambda item: item[0])[1]


def end(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """End processes that still run: ask, wait a while, then insist."""
    for process in processes:
        if process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
    until = time.monotonic() + PATIENCE
    for process in processes:
        try:
            process.wait(max(0.0, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def run_as_rank(job: Job) -> Outcome | None:
    """Be one rank of those that torchrun started.

    Parameters
    ----------
    job : Job
        The same on every rank.

    Returns
    -------
    Outcome or None
        On rank 0 what all ranks have measured, read from their common store; on every other rank None.

    Raises
    ------
    MeasurementError
        On any other rank than 0, if it fails. On rank 0 failing is part of the outcome, since there are measurements to be kept.
    """
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    with tempfile.TemporaryDirectory(prefix="moesim-") as name:
        journal = Journal(Path(name) / f"rank-{rank}.jsonl")
        why = ""
        try:
            with terminated_like_interrupted():
                play(job, journal, publish=True)
        except UsageError:
            raise
        except KeyboardInterrupt:
            why = "interrupted"
        except Exception as error:
            if rank:
                raise MeasurementError(f"rank {rank} failed: {_last_line(error)}") from error
            why = f"rank 0 failed: {_last_line(error)}"
        finally:
            journal.close()
        if rank:
            return None
        lines = [_published(journal.store, number) for number in range(world)] if journal.store is not None else [[]]
    if not why and not all(map(finished, lines)):
        why = "a rank ended without finishing"
    return Outcome(ranks=lines, why=why, interrupted=why == "interrupted", exit_code=1 if why else 0)


def _last_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


def _published(store: Any, rank: int) -> list[Line]:
    found: list[Line] = []
    part = 0
    while store.check([f"moesim/lines/{rank}/{part}"]):
        found += parse(store.get(f"moesim/lines/{rank}/{part}").decode())
        part += 1
    return found
