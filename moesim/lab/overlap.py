"""Measure how much experts and an all-to-all slow each other down: each alone, then both at once on the same ranks."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from moesim.lab.alltoall import all_to_all, keep_own, post, send
from moesim.lab.device import DTYPES, choose_kernel
from moesim.lab.exchange import contents
from moesim.lab.experts import feed_forward, grouped_product, make_weights
from moesim.lab.job import Job, OverlapCase, visits
from moesim.lab.rank import Journal
from moesim.lab.session import Session, wait_until


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """What one rank computes and exchanges in a case, and the kernel that computes."""

    compute: Callable[[], Any]
    kernel: str
    source: Any
    target: Any
    expected: Any
    sizes: tuple[int, ...]


def deal(whole: int, parts: int) -> tuple[int, ...]:
    """Return ``whole`` in so many nearly equal parts, the first ones larger by one.

    Examples
    --------
    >>> deal(7, 3)
    (3, 2, 2)
    """
    return tuple(whole // parts + (part < whole % parts) for part in range(parts))


def prepare(job: Job, session: Session, case: OverlapCase) -> Prepared:
    """Return weights, rows and buffers of this rank."""
    device = session.device
    weights = make_weights(job.seed, range(case.experts), case.hidden, case.expert_width, case.dtype, device)
    kernel = choose_kernel(case.kernel, device, case.dtype)
    product = grouped_product(kernel, deal(case.rows, case.experts), device)
    rows = torch.randn(case.rows, case.hidden, generator=device.generator(job.seed * 1_000_003 + session.rank))
    rows = rows.to(device.place, DTYPES[case.dtype])
    sizes = deal(case.bytes, session.world)
    # Rank r receives the r-th part from everybody: all of one size.
    received = (sizes[session.rank],) * session.world
    source = torch.cat([contents(session.rank, peer, size, device.place) for peer, size in enumerate(sizes)])
    expected = torch.cat([contents(peer, session.rank, size, device.place) for peer, size in enumerate(received)])
    return Prepared(
        compute=lambda: feed_forward(rows, weights, product),
        kernel=kernel,
        source=source,
        target=torch.empty_like(expected),
        expected=expected,
        sizes=sizes,
    )


def measure_overlap(job: Job, session: Session, journal: Journal) -> None:
    """Measure every case of a job, in its order, and write one line per repeat.

    Parameters
    ----------
    job : Job
        Of kind ``overlap``.
    session : Session
        The ranks.
    journal : Journal
        Where lines go; :mod:`moesim.lab.rank` says what is in them.
    """
    held: dict[int, Prepared] = {}
    round_of = -1
    with torch.no_grad():
        for repeat, number in visits(job):
            case = job.cases[number]
            if not isinstance(case, OverlapCase):
                raise TypeError(type(case).__name__)
            if repeat > round_of:
                journal.publish()
                round_of = repeat
            if number not in held:
                held[number] = prepare(job, session, case)
                journal.write({"case": case.name, "facts": {"kernel": held[number].kernel}})
            sample = _once(session, case, held[number])
            if repeat >= 0:
                journal.write({"case": case.name, "repeat": repeat, **sample})
    journal.publish()


def _once(session: Session, case: OverlapCase, held: Prepared) -> dict[str, Any]:
    received = [held.sizes[session.rank]] * session.world
    exchange = all_to_all(session, case.posting)

    def move() -> None:
        exchange(held.source, held.target, held.sizes, received)

    alone = _timed(session, held.compute)
    moving = _timed(session, move)
    held.target.fill_(0xA5)  # what an earlier exchange left must not pass for this one's
    both = _beside_on_gpu(session, held, move) if session.device.on_gpu else _beside_on_cpu(session, case, held, received, move)
    correct = bool(torch.equal(held.target, held.expected))
    return {"compute_s": alone, "exchange_s": moving, "compute_beside_s": both[0], "exchange_beside_s": both[1], "correct": correct}


def _timed(session: Session, call: Callable[[], Any]) -> float:
    start = session.agree()
    marks = session.device.marks()
    wait_until(start)
    marks.mark()
    call()
    marks.mark()
    begun, ended = marks.seconds()
    return ended - begun


def _beside_on_gpu(session: Session, held: Prepared, move: Callable[[], None]) -> tuple[float, float]:
    """Run both on streams of their own; each stream's events say when its part ended."""
    side = torch.cuda.Stream()
    start = session.agree()
    marks = session.device.marks()
    wait_until(start)
    marks.mark()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        move()
        marks.mark()
    held.compute()
    marks.mark()
    begun, moved, computed = marks.seconds()
    return computed - begun, moved - begun


def _beside_on_cpu(
    session: Session, case: OverlapCase, held: Prepared, received: list[int], move: Callable[[], None]
) -> tuple[float, float]:
    """Compute on this thread while gloo's own threads move bytes, or, with the library's all-to-all, a thread that calls it."""
    ends: list[float] = []
    start = session.agree()
    marks = session.device.marks()
    if case.posting == "receives_first":
        expected = post(session, held.target, received)

        def finish() -> None:
            for _, work in expected:
                work.wait()
            for work in going:
                work.wait()
            note()
    else:

        def finish() -> None:
            move()
            note()

    def note() -> None:
        done = session.device.marks()
        done.mark()
        ends.extend(done.seconds())

    mover = threading.Thread(target=finish, daemon=True)
    wait_until(start)
    marks.mark()
    if case.posting == "receives_first":
        going = send(session, held.source, held.sizes)
        keep_own(session, held.source, held.target, held.sizes, received)
    mover.start()
    held.compute()
    marks.mark()
    mover.join()
    if not ends:
        raise RuntimeError("the exchange beside the experts failed; what it said stands above")
    begun, computed = marks.seconds()
    return computed - begun, ends[0] - begun
