"""One rank of a testbed: ``python -m moesim.lab.inside PLACE.json JOB.json FOLDER``.

It enters its network namespace before it opens any socket, asks for the processor as the testbed wants it, and is then a rank as any other
(:mod:`moesim.lab.rank`). PLACE.json says where:

``{"namespaces": [...], "address": "10.77.0.1", "scheduling": "first" | "realtime", "change": null | {"after_s", "rank", "steps":
[[namespace, [lines]], ...], "back": [...], "notes": "changes.jsonl"}}``

``change`` makes the rank that it names give its link another rate so long after the common start of every repeat, and its old rate back
before the next. Each change is written to the file of notes: when it was asked for and when it was done, s after the start.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from subprocess import PIPE, Popen
from typing import Any

CLONE_NEWNET = 0x40000000
LARGEST_KEPT, MOST_KEPT = 32 << 20, (1 << 31) - 1
"""Bytes of an allocation, and of all free memory, up to which freed memory stays with a process: the most that glibc takes."""
NICENESS = -15
"""Of the whole session: Linux shares processors among sessions first, so a process's own niceness says nothing about others."""

Steps = Sequence[tuple[str, Sequence[str]]]


def enter(namespace: str) -> None:
    """Move this process into a network namespace.

    Raises
    ------
    OSError
        If there is no such namespace, or this process may not.
    """
    handle = os.open(f"/run/netns/{namespace}", os.O_RDONLY)
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.setns(handle, CLONE_NEWNET):
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), namespace)
    finally:
        os.close(handle)


def take_precedence(scheduling: str) -> str:
    """Ask for the processor before other programs; return what was granted: ``realtime``, ``first`` or ``as others``.

    ``realtime`` takes turns with the other ranks and waits for nobody else; only for ranks that mostly wait for the network. ``first`` is
    an ordinary process in a session that comes before others.
    """
    if scheduling == "realtime":
        with contextlib.suppress(OSError):
            os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))
            return "realtime"
    with contextlib.suppress(OSError):
        Path("/proc/self/autogroup").write_text(str(NICENESS), encoding="ascii")
        os.nice(NICENESS)
        return "first"
    return "as others"


def keep_memory() -> None:
    """Let the allocator of this process keep what is freed, as PyTorch's own does on GPUs; without glibc nothing changes.

    Otherwise large tensors are given back to the kernel, depending on what was freed before, and every page of the next one costs as much
    as filling it.
    """
    m_trim_threshold, m_mmap_threshold = -1, -3
    with contextlib.suppress(AttributeError, OSError):
        adjust = ctypes.CDLL(None).mallopt
        adjust(m_mmap_threshold, LARGEST_KEPT)
        adjust(m_trim_threshold, MOST_KEPT)


class Link:
    """The rank's link, whose rate changes some time after each start."""

    def __init__(self, change: Mapping[str, Any]) -> None:
        self.after = float(change["after_s"])
        self.steps: Steps = change["steps"]
        self.back: Steps = change["back"]
        self.notes = Path(change["notes"])
        self.changing: threading.Thread | None = None

    def restore(self) -> None:
        """Wait for a change that is still to come, and take it back."""
        if self.changing is not None:
            self.changing.join()
            self.changing = None
            _tell(_tools(self.back), self.back)

    def change_after(self, start: float) -> None:
        """Let the change happen so long after ``start``, on this machine's monotonic clock."""
        tools = _tools(self.steps)  # they are there, and wait for a line, before it is time
        self.changing = threading.Thread(target=self._change, args=(tools, start), daemon=True)
        self.changing.start()

    def _change(self, tools: Sequence[Popen[bytes]], start: float) -> None:
        time.sleep(max(0.0, start + self.after - time.monotonic()))
        asked = time.monotonic() - start
        _tell(tools, self.steps)
        with self.notes.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"asked_s": asked, "done_s": time.monotonic() - start}) + "\n")


def _tools(steps: Steps) -> list[Popen[bytes]]:
    return [Popen(["tc", "-n", namespace, "-batch", "-"], stdin=PIPE) for namespace, _ in steps]  # noqa: S603, S607 - where tc is differs


def _tell(tools: Sequence[Popen[bytes]], steps: Steps) -> None:
    for tool, (_, text) in zip(tools, steps, strict=True):
        if tool.stdin is not None:
            tool.stdin.write(("\n".join(text) + "\n").encode())
            tool.stdin.close()
    for tool in tools:
        if tool.wait():
            raise OSError(f"tc could not change a link (exit code {tool.returncode})")


def joiner(link: Link | None) -> Callable[[Any], Any] | None:
    """Return what makes the session of this rank; None for the ordinary one."""
    if link is None:
        return None
    from moesim.lab.session import Session

    changing: Link = link

    class Changing(Session):
        """A session at whose starts a link begins to change."""

        def agree(self) -> float:
            changing.restore()
            start = super().agree()
            changing.change_after(start)
            return start

        def close(self) -> None:
            changing.restore()
            super().close()

    return Changing


def main(arguments: list[str]) -> int:
    """Run one rank inside its namespace; return its exit code."""
    from moesim.lab.rank import end_with_parent
    from moesim.lab.rank import main as play

    end_with_parent()
    if len(arguments) != 3:
        sys.stderr.write("usage: python -m moesim.lab.inside PLACE.json JOB.json FOLDER\n")
        return 2
    place = json.loads(Path(arguments[0]).read_text(encoding="utf-8"))
    rank = int(os.environ["RANK"])
    try:
        enter(place["namespaces"][rank])
    except OSError as error:
        sys.stderr.write(f"rank {rank} cannot enter its network namespace: {(error.strerror or str(error)).lower()}\n")
        return 2
    os.environ |= {"MASTER_ADDR": place["address"], "GLOO_SOCKET_IFNAME": "eth0"}
    take_precedence(place["scheduling"])
    keep_memory()
    change = place["change"]
    link = Link(change) if change and int(change["rank"]) == rank else None
    return play(arguments[1:], joiner(link))


if __name__ == "__main__":
    code = main(sys.argv[1:])
    sys.stderr.flush()
    os._exit(code)
