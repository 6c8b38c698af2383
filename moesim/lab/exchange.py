"""Measure all-to-alls with given split sizes, and check that what arrives is what was sent."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from moesim.lab.alltoall import all_to_all, keep_own, post, send
from moesim.lab.job import ExchangeCase, Job, visits
from moesim.lab.rank import Journal
from moesim.lab.session import Session, wait_until

SMALL = 1 << 20
"""Buffers below this many bytes are exchanged many times between two looks at a GPU's clock."""


def contents(source: int, target: int, size: int, device: Any) -> Any:
    """Return the bytes that rank ``source`` sends to rank ``target``: no two pairs send the same, nor does a shifted message match."""
    position = torch.arange(size, dtype=torch.int64, device=device)
    return ((position * 131 + (position >> 8) * 29 + source * 67 + target * 17 + 1) & 0xFF).to(torch.uint8)


MOST_HELD = 2 << 30
"""Bytes of buffers that are kept from visit to visit of a case; larger ones are filled anew."""


@dataclass(frozen=True, kw_only=True)
class Buffers:
    """What one rank sends and receives in a case."""

    source: Any
    target: Any
    expected: Any
    sends: Sequence[int]
    receives: Sequence[int]


def buffers(session: Session, case: ExchangeCase) -> Buffers:
    """Return filled buffers of this rank."""
    place = session.device.place
    sends = list(case.bytes[session.rank])
    receives = [row[session.rank] for row in case.bytes]
    source = torch.cat([contents(session.rank, peer, size, place) for peer, size in enumerate(sends)])
    expected = torch.cat([contents(peer, session.rank, size, place) for peer, size in enumerate(receives)])
    return Buffers(source=source, target=torch.empty_like(expected), expected=expected, sends=sends, receives=receives)


def measure_exchange(job: Job, session: Session, journal: Journal) -> None:
    """Measure every case of a job, in its order, and write one line per repeat.

    Parameters
    ----------
    job : Job
        Of kind ``exchange``.
    session : Session
        The ranks.
    journal : Journal
        Where lines go; :mod:`moesim.lab.rank` says what is in them.
    """
    held: dict[int, Buffers] = {}
    room = MOST_HELD
    round_of = -1
    for repeat, number in visits(job):
        case = job.cases[number]
        if not isinstance(case, ExchangeCase):
            raise TypeError(type(case).__name__)
        if repeat > round_of:
            journal.publish()
            round_of = repeat
        these = held.get(number)
        if these is None:
            these = buffers(session, case)
            size = these.source.numel() + 2 * these.target.numel()
            if size <= room:
                held[number] = these
                room -= size
        sample = _once(job, session, case, these)
        if repeat >= 0:
            journal.write({"case": case.name, "repeat": repeat, **sample})
    journal.publish()


def _once(job: Job, session: Session, case: ExchangeCase, held: Buffers) -> Mapping[str, Any]:
    held.target.fill_(0xA5)  # what an earlier repeat received must not pass for this one's
    biggest = max(sum(row) for row in case.bytes)
    iterations = job.iterations or (20 if session.device.on_gpu and biggest < SMALL else 1)
    stagger = case.stagger_s[session.rank] if case.stagger_s else 0.0
    if case.posting == "receives_first" and session.backend == "gloo" and session.world > 1 and iterations == 1:
        sample = _posted(job, session, held, stagger)
    else:
        sample = _called(session, case, held, stagger, iterations)
    return {**sample, "iterations": iterations, "correct": bool(torch.equal(held.target, held.expected))}


def _called(session: Session, case: ExchangeCase, held: Buffers, stagger: float, iterations: int) -> dict[str, Any]:
    """Time whole calls, the posting of receives included."""
    exchange = all_to_all(session, case.posting)
    start = session.agree()
    marks = session.device.marks()
    late = wait_until(start + stagger)
    marks.mark()
    for _ in range(iterations):
        exchange(held.source, held.target, held.sends, held.receives)
    marks.mark()
    arrival, end = marks.seconds()
    return {"arrival_s": arrival - start, "posted_s": arrival - start, "end_s": end - start, "late_s": late}


def _posted(job: Job, session: Session, held: Buffers, stagger: float) -> dict[str, Any]:
    """Time an exchange whose receives all ranks have posted before any of them starts to send."""
    expected = post(session, held.target, held.receives)
    keep_own(session, held.source, held.target, held.sends, held.receives)
    start = session.agree()
    flows: dict[int, float] = {}
    watchers = _watch(expected, lambda peer: flows.__setitem__(peer, time.monotonic() - start)) if job.flows else []
    late = wait_until(start + stagger)
    arrival = time.monotonic()
    going = send(session, held.source, held.sends)
    posted = time.monotonic()
    if watchers:
        for watcher in watchers:
            watcher.join()
    else:
        for _, work in expected:
            work.wait()
    for work in going:
        work.wait()
    end = time.monotonic()
    sample: dict[str, Any] = {"arrival_s": arrival - start, "posted_s": posted - start, "end_s": end - start, "late_s": late}
    return {**sample, "flows_s": {str(peer): flows[peer] for peer in sorted(flows)}} if job.flows else sample


def _watch(expected: Sequence[tuple[int, Any]], note: Callable[[int], None]) -> list[threading.Thread]:
    def watch(peer: int, work: Any) -> None:
        work.wait()
        note(peer)

    threads = [threading.Thread(target=watch, args=item, daemon=True) for item in expected]
    for thread in threads:
        thread.start()
    return threads
