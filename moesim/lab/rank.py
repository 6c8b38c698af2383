"""One rank of a measurement: ``python -m moesim.lab.rank JOB.json FOLDER``.

Who starts it sets the environment as torchrun does: ``RANK``, ``WORLD_SIZE``, ``MASTER_ADDR``, ``MASTER_PORT`` and, where ranks have GPUs,
``LOCAL_RANK``. gloo listens on the interface that ``GLOO_SOCKET_IFNAME`` names. All ranks read the same job (:mod:`moesim.lab.job`). A rank
writes ``FOLDER/rank-R.jsonl`` as it goes, one JSON value in a line, so that whatever ends it, what was measured is there:

- first ``{"schema", "rank", "world_size", "machine", "device", "backend", "offset_s", "offset_error_s", "lead_s", "job", "environment"}``;
- ``{"case", "facts": {...}}`` once for every case: what does not change from repeat to repeat (for a layer: ``kept``, rows that this rank
  sends to every expert, ``routes``, ``dropped``, ``phases``, ``kernel``);
- ``{"case", "repeat", ...}`` for every measured repeat. Instants are seconds after the common start of that repeat, on one clock:

  - exchange: ``arrival_s`` (it begins), ``posted_s`` (all its sends are handed over, on a CPU), ``end_s`` (of ``iterations`` calls),
    ``late_s`` (how late it noticed the start), ``correct``, ``flows_s`` (source → end; with ``flows`` only)
  - layer: ``marks_s`` (start, then the end of each phase), ``cpu_s`` (CPU time of each phase, all threads), ``dropped``, ``reference_s``
    (with ``reference`` only)
  - compute: ``time_s`` of one call, ``iterations``
  - overlap: ``compute_s`` and ``exchange_s``, each alone; ``compute_beside_s`` and ``exchange_beside_s``, started together; ``correct``

- ``{"case", "error"}`` instead, where the device cannot do what the case asks for;
- last ``{"end": true}``. A file without it is partial.

Exit codes: 0 fine, 2 the job does not fit this machine, 1 anything else; the message is on stderr.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

from moesim.base.errors import MoesimError, UsageError
from moesim.lab.job import Job, from_text

SCHEMA = 1
NEEDED = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""What the environment says of a rank; torchrun's names."""


class Journal:
    """Lines of one rank: on disk at once, and in the ranks' common store after every round, so that rank 0 can read them all."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.file: IO[str] = path.open("w", encoding="utf-8", buffering=1)
        self.lines: list[str] = []
        self.store: Any = None
        self.rank = 0
        self.published = 0

    def write(self, item: Mapping[str, Any]) -> None:
        """Add a line."""
        line = json.dumps(item, allow_nan=False)
        self.file.write(line + "\n")
        self.lines.append(line)

    def publish(self) -> None:
        """Leave the lines of this round in the store."""
        if self.store is not None:
            self.store.set(f"moesim/lines/{self.rank}/{self.published}", "\n".join(self.lines))
            self.published += 1
            self.lines.clear()

    def close(self) -> None:
        """Close the file."""
        self.file.close()


def place_of(environment: Mapping[str, str]) -> tuple[int, int]:
    """Return rank and number of ranks as the environment gives them.

    Raises
    ------
    UsageError
        If a variable is missing or is no number in range.
    """
    missing = [name for name in NEEDED if not environment.get(name)]
    if missing:
        raise UsageError(f"the environment lacks {', '.join(missing)}: torchrun sets them, and so does `moesim measure`")
    try:
        rank, world = int(environment["RANK"]), int(environment["WORLD_SIZE"])
    except ValueError:
        raise UsageError(f"RANK={environment['RANK']!r} and WORLD_SIZE={environment['WORLD_SIZE']!r} must be whole numbers") from None
    if not 0 <= rank < world:
        raise UsageError(f"RANK={rank} is out of range for WORLD_SIZE={world}")
    return rank, world


def end_with_parent() -> None:
    """Ask Linux to end this process when the one that started it is gone, however that happened."""
    if sys.platform != "linux" or not os.environ.get("MOESIM_LAB_PARENT"):
        return
    import ctypes

    pr_set_pdeathsig = 1
    ctypes.CDLL(None, use_errno=True).prctl(pr_set_pdeathsig, signal.SIGTERM)
    if os.getppid() != int(os.environ["MOESIM_LAB_PARENT"]):  # it was gone before the request
        raise SystemExit(1)


def settle(job: Job, rank: int) -> None:
    """Put this process where the job wants it: on its core, and only then with its threads."""
    if job.cores and hasattr(os, "sched_setaffinity"):
        core = job.cores[rank % len(job.cores)]
        try:
            os.sched_setaffinity(0, {core})
        except OSError:
            raise UsageError(f"rank {rank} cannot run on core {core}: this process may use {sorted(os.sched_getaffinity(0))}") from None
    import torch

    if job.threads:
        torch.set_num_threads(job.threads)


def play(job: Job, journal: Journal, *, publish: bool = False, join: Callable[[Job], Any] | None = None) -> None:
    """Join the peers and measure every case of a job.

    Parameters
    ----------
    job : Job
        What to measure.
    journal : Journal
        Where results go.
    publish : bool
        Leave them in the ranks' store as well.
    join : callable, optional
        Makes the session of a job; :class:`moesim.lab.session.Session` if left out.
    """
    settle(job, place_of(os.environ)[0])
    from moesim.lab.environment import describe
    from moesim.lab.session import Session, machine

    session = Session(job) if join is None else join(job)
    if publish:
        journal.store, journal.rank = session.store, session.rank
    try:
        journal.write(
            {
                "schema": SCHEMA,
                "rank": session.rank,
                "world_size": session.world,
                "machine": machine(),
                "device": session.device.kind,
                "backend": session.backend,
                "offset_s": session.offset,
                "offset_error_s": session.offset_error,
                "lead_s": session.lead,
                "job": job.digest(),
                "environment": describe(session.device),
            }
        )
        if job.kind == "exchange":
            from moesim.lab.exchange import measure_exchange as measure
        elif job.kind == "layer":
            from moesim.lab.layer import measure_layer as measure
        elif job.kind == "overlap":
            from moesim.lab.overlap import measure_overlap as measure
        else:
            from moesim.lab.compute import measure_compute as measure
        measure(job, session, journal)
        session.meet()
        journal.write({"end": True})
        journal.publish()
    finally:
        session.close()


def main(arguments: list[str], join: Callable[[Job], Any] | None = None) -> int:
    """Run one rank; return its exit code. ``join`` is that of :func:`play`."""
    end_with_parent()
    if len(arguments) != 2:
        sys.stderr.write("usage: python -m moesim.lab.rank JOB.json FOLDER\n")
        return 2
    path, folder = map(Path, arguments)
    try:
        job = from_text(path.read_text(encoding="utf-8"), str(path))
        journal = Journal(folder / f"rank-{int(os.environ.get('RANK', '0'))}.jsonl")
        try:
            play(job, journal, join=join)
        finally:
            journal.close()
    except MoesimError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    except OSError as error:
        sys.stderr.write(f"{error.filename or path}: {(error.strerror or str(error)).lower()}\n")
        return 1
    return 0


if __name__ == "__main__":
    # Past this line nothing is left to do, and PyTorch's threads have nothing to say: leave without waiting for them.
    try:
        code = main(sys.argv[1:])
    except Exception:  # noqa: BLE001 - whoever started this rank reads the last line of what it says
        import traceback

        traceback.print_exc()
        code = 1
    sys.stderr.flush()
    os._exit(code)
