"""A step in which every GPU does one thing after another: its events, worked out between two that anybody else can notice.

SimPy owns the clock. Where nothing is planned but the step itself, and nothing is on its way, nobody else can notice when a rank arrives or
leaves: these events, some thousands a step, are then found by compiled code (:mod:`moesim.models.sharing.rank_chains`), and SimPy hears
each time that all ranks have left a leg of an exchange. Every other step is played by :class:`~moesim.engine.lanes.StepRun`, one process
per lane, and gives the same results to the last bit where both can play it.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import simpy

from moesim.base.errors import Stuck
from moesim.engine.fabric import Fabric
from moesim.engine.load import StepLoad
from moesim.engine.recorder import Recorder
from moesim.engine.step_record import StepRecord
from moesim.facts.arrays import Floats, Ints
from moesim.facts.program import COLLECTIVES, COMMUNICATES, Program, Work, may_overlap
from moesim.facts.traffic import Exchange
from moesim.models.sharing.core import can_compile

MOST_BYTES = 256 * 2**20
"""Of the flows of a step, side by side; larger steps are played by processes."""
BYTES_A_FLOW = 20
"""Of the arrays that list the flows of a step: who sends how much to whom, and again by receiver."""
MANY_FLOWS = 50
"""Of a GPU in a leg: from so many on, exchanges that come again and again are quicker looked up (:mod:`moesim.engine.repeats`) than worked
out, if all ranks wait for each other before them. Otherwise they begin differently each time, and there is nothing to look up."""


@dataclass(frozen=True, slots=True, eq=False)
class Chain:
    """The tasks of a step, the legs of its exchanges, and the arrays of :class:`moesim.models.sharing.rank_chains.Ranks` by name.

    ``leg_task`` is int[K], the task of each leg; ``by_port`` int[K] tells which legs go through ports; ``sent`` is float[K, G], bytes, and
    ``asked`` float[G * G] those of all legs by pair of GPUs.
    """

    works: tuple[Work, ...]
    lanes: tuple[str, ...]
    ranks: int
    leg_task: Ints
    by_port: Ints
    sent: Floats
    asked: Floats
    arrays: dict[str, np.ndarray]


def chain_of(program: Program, load: StepLoad, *, ranks: int, gpus: int) -> Chain | None:
    """Return a step as a chain of kernels and exchanges; None if it is something else, or better played by processes.

    Parameters
    ----------
    program : Program
    load : StepLoad
    ranks : int
        Of an expert-parallel group.
    gpus : int
        G.
    """
    works = tuple(task.work for task in program.tasks)
    others = any(work.phase in COMMUNICATES and work.phase not in COLLECTIVES for work in works)
    if ranks == 1 or program.stages > 1 or others or may_overlap(program) or not can_compile():
        return None
    exchanges = {index: load.part(work).exchange[work.direction] for index, work in enumerate(works) if work.phase in COLLECTIVES}
    if any(exchange.overhead or exchange.in_flight for exchange in exchanges.values()):
        return None
    flows = _flows([(index, exchange, works[index].phase) for index, exchange in exchanges.items()], ranks, gpus)
    if flows is None:
        return None
    leg_task = flows.pop("leg_task")
    return Chain(
        works=works,
        lanes=tuple(task.lane for task in program.tasks),
        ranks=ranks,
        leg_task=leg_task,
        by_port=np.array([int(math.isfinite(exchanges[index].port)) for index in leg_task.tolist()], dtype=np.int64),
        sent=flows.pop("sent"),
        asked=flows.pop("asked"),
        arrays={
            **_tasks(works, exchanges, load, leg_task.tolist(), gpus),
            **flows,
            "barrier": np.array([int(exchanges[index].barrier) for index in leg_task.tolist()], dtype=np.int64),
            **_blank(len(works), flows["span"], ranks, gpus),
        },
    )


def rehearse(fabric: Fabric) -> None:
    """Let one GPU of two send the other a byte, so that compiled code is loaded before it is needed."""
    arrays = {
        "tasks": np.array([[1, 0, 1]], dtype=np.int64),
        "launch": np.zeros(1),
        "seconds": np.zeros((1, 2)),
        **_side_by_side([_pairs(np.array([[[0.0, 1.0], [0.0, 0.0]]]))], 2),
        "barrier": np.zeros(1, dtype=np.int64),
    }
    arrays |= _blank(1, arrays["span"], 2, 2)
    for _ in fabric.play_chain(arrays, np.zeros(1, dtype=np.int64), np.array([0.0, 1.0, 0.0, 0.0])):
        pass


def _stages(exchange: Exchange, phase: str, ranks: int) -> Iterator[Floats]:
    """Yield the bytes inside groups, float[G / R, R, R], that follow each other; all stages of a pipelined exchange are one."""
    stages = exchange.dispatch if phase == "dispatch" else exchange.combine
    if not exchange.pipelined or len(stages) == 1:
        yield from (stage.among(ranks) for stage in stages)
    else:
        yield np.sum([stage.among(ranks) for stage in stages], axis=0)


def _flows(exchanges: list[tuple[int, Exchange, str]], ranks: int, gpus: int) -> dict[str, np.ndarray] | None:
    """Return the flows of all legs as arrays, with the task of each leg, float[K, G], what each GPU sends, and float[G * G], bytes by pair.

    None for too many flows, or repeats.

    Matrices are looked at one by one: together they would take many times the memory of the flows.
    """
    legs: list[int] = []
    parts: list[tuple[Ints, Ints, Floats]] = []
    sent: list[Floats] = []
    seen: set[bytes] = set()
    asked = np.zeros((gpus // ranks, ranks, ranks))
    many = 0
    together = all(exchange.barrier for _, exchange, _ in exchanges)
    for index, exchange, phase in exchanges:
        for stage in _stages(exchange, phase, ranks):
            legs.append(index)
            parts.append(_pairs(stage))
            sent.append(stage.sum(axis=2).ravel())
            asked += stage
            many += len(parts[-1][0])
            if many * BYTES_A_FLOW > MOST_BYTES:
                return None
            if together:
                seen.add(hashlib.blake2b(b"".join(column.tobytes() for column in parts[-1]), digest_size=16).digest())
    if together and many >= MANY_FLOWS * gpus * len(legs) and 2 * len(seen) < len(legs):
        return None
    return {
        "leg_task": np.array(legs, dtype=np.int64),
        "sent": np.array(sent, dtype=np.float64).reshape(len(legs), gpus),
        "asked": _by_pair(asked),
        **_side_by_side(parts, gpus),
    }


def _by_pair(inside: Floats) -> Floats:
    """Return bytes by pair of GPUs, float[G * G], from those inside groups; what a GPU keeps crosses no link."""
    groups, ranks = inside.shape[:2]
    every = np.zeros((groups, ranks, groups, ranks))
    for group in range(groups):
        every[group, :, group] = inside[group]
    flat = every.reshape(groups * ranks, groups * ranks)
    np.fill_diagonal(flat, 0.0)
    return flat.ravel()


def _pairs(stage: Floats) -> tuple[Ints, Ints, Floats]:
    """Return senders, receivers and bytes of the flows of a stage, in order."""
    ranks = stage.shape[1]
    pair = np.flatnonzero(stage > 0)
    sender, receiver = np.divmod(pair, ranks)  # the sender's number in the cluster, the receiver's in its group
    away = receiver != sender % ranks
    pair, sender, receiver = pair[away], sender[away], receiver[away]
    return sender, sender // ranks * ranks + receiver, stage.ravel()[pair]


def _side_by_side(legs: list[tuple[Ints, Ints, Floats]], gpus: int) -> dict[str, np.ndarray]:
    """Return ``span``, ``flow`` and ``size`` of :class:`moesim.models.sharing.rank_chains.Ranks`."""
    first = np.cumsum([0, *(len(size) for _, _, size in legs)])
    span = np.empty((2, len(legs), gpus + 1), dtype=np.int64)
    flow = np.empty((3, int(first[-1])), dtype=np.int32)
    narrow = np.uint16 if gpus <= 2**16 else np.int64  # narrow numbers are sorted without comparing
    for leg, (sender, receiver, _) in enumerate(legs):
        mine = slice(int(first[leg]), int(first[leg + 1]))
        by_receiver = np.argsort(receiver.astype(narrow), kind="stable")
        flow[:, mine] = sender, receiver, mine.start + by_receiver
        span[0, leg] = mine.start + np.searchsorted(sender, np.arange(gpus + 1))
        span[1, leg] = mine.start + np.searchsorted(receiver[by_receiver], np.arange(gpus + 1))
    return {"span": span, "flow": flow, "size": np.concatenate([np.zeros(0), *(size for _, _, size in legs)])}


def _tasks(works: tuple[Work, ...], exchanges: dict[int, Exchange], load: StepLoad, legs: list[int], gpus: int) -> dict[str, np.ndarray]:
    tasks = np.zeros((len(works), 3), dtype=np.int64)
    launch = np.zeros(len(works))
    seconds = np.zeros((len(works), gpus))
    last = len(works) - 1
    first_leg = {index: leg for leg, index in reversed(list(enumerate(legs)))}
    many = Counter(legs)
    for index in range(len(works) - 1, -1, -1):
        if index in exchanges:
            tasks[index] = 1, first_leg[index], many[index]
            launch[index] = exchanges[index].launch_of(works[index].phase)
            last = index - 1
        else:
            tasks[index, 1] = last
            seconds[index] = load.seconds[works[index]]
    return {"tasks": tasks, "launch": launch, "seconds": seconds}


def _blank(tasks: int, span: Ints, ranks: int, gpus: int) -> dict[str, np.ndarray]:
    """Return the arrays that a step begins with."""
    groups, legs = gpus // ranks, span.shape[1]
    most = int((span[0, :, -1] - span[0, :, 0]).max(initial=0))

    def whole(*shape: int) -> Ints:
        return np.zeros(shape, dtype=np.int64)

    return {
        "rank_whole": whole(7, gpus),
        "rank_real": np.full((4, gpus), -1.0),
        "slot": whole(2, 2, gpus),
        "group_whole": whole(2, 2, groups),
        "moving_since": np.zeros((2, groups)),
        "cause": whole(2, gpus, ranks + 1),
        "cause_s": np.zeros((2, gpus, ranks + 1)),
        "leg_real": np.zeros((3, legs, gpus)),
        "leg_moving": np.zeros((legs, groups)),
        "leg_began": whole(legs, groups),
        "leg_left": whole(legs),
        "task_real": np.zeros((3, tasks, gpus)),
        "task_whole": whole(2, tasks, gpus),
        "pending": whole(gpus),
        # A rank is in one leg or in the next: so many flows can begin at one instant.
        "batch": whole(2, 2 * most),
        "next_up": np.full(2 << (gpus - 1).bit_length(), -1, dtype=np.int64),
    }


def play(env: simpy.Environment, fabric: Fabric, recorder: Recorder, chain: Chain, load: StepLoad) -> Generator[simpy.Event, Any, None]:
    """Play a step as a SimPy process; nothing else may be planned, and the fabric must be lendable.

    Raises
    ------
    Stuck
        If nothing is left to happen and somebody still waits.
    """
    for time in fabric.play_chain(chain.arrays, chain.by_port, chain.asked):
        # A sum of two times is rounded, but not where the second is at most as long again as the first.
        while time > 2 * env.now > 0:
            yield env.timeout(env.now)
        yield env.timeout(time - env.now)
    arrays = chain.arrays
    if (arrays["leg_left"] < arrays["rank_whole"].shape[1]).any():
        raise Stuck(_describe_stuck(chain, env.now))
    recorder.step_record(_record(chain, load))


def _record(chain: Chain, load: StepLoad) -> StepRecord:
    parts = [load.part(work) for work in chain.works]
    tokens = np.array([part.rows if work.phase == "experts" else part.tokens for part, work in zip(parts, chain.works, strict=True)])
    size = np.zeros(tokens.shape)
    for task, sent in zip(chain.leg_task.tolist(), chain.sent, strict=True):
        size[task] += sent
    start, end, waiting = chain.arrays["task_real"]
    peer, place = chain.arrays["task_whole"]
    arrival, left, waited = chain.arrays["leg_real"]
    return StepRecord(
        works=chain.works,
        lanes=chain.lanes,
        place=place,
        start=start,
        end=end,
        bytes=size,
        tokens=tokens,
        waiting=waiting,
        waited_for=peer,
        leg_task=chain.leg_task,
        leg_began=chain.arrays["leg_began"],
        span=chain.arrays["span"][0],
        flow=chain.arrays["flow"][:2],
        flow_bytes=chain.arrays["size"],
        arrival=arrival,
        left=left,
        waited=waited,
        moving=chain.arrays["leg_moving"],
    )


def _describe_stuck(chain: Chain, now: float) -> str:
    leg = int(np.flatnonzero(chain.arrays["leg_left"] < chain.arrays["rank_whole"].shape[1])[0])
    work = chain.works[int(chain.leg_task[leg])]
    return f"nothing is left to happen at {now:.9g} s, but not all GPUs have left the {work.phase} of layer {work.layer}"
