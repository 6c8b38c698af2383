"""Phases that are given, not planned: compute seconds and bytes of every rank, played on fabric, collectives and shared cores.

What a measured step has done can so be predicted from what it was asked to do (rows that were kept, seconds of kernels alone), without a
scenario that would have to draw the same tokens.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import simpy

from moesim.base.errors import UsageError, did_you_mean
from moesim.engine.collective import Collective
from moesim.engine.cores import Cores
from moesim.engine.fabric import Fabric
from moesim.engine.posted_calls import BufferedCall, LibraryCall, PostedCall
from moesim.facts.arrays import Floats, frozen
from moesim.facts.cluster import Cluster
from moesim.facts.scenario import Sharing


@dataclass(frozen=True, slots=True, kw_only=True)
class Compute:
    """Kernels: float[G] seconds of each rank on a core of its own."""

    name: str
    seconds: Floats

    def __post_init__(self) -> None:
        object.__setattr__(self, "seconds", frozen(self.seconds, np.float64))


@dataclass(frozen=True, slots=True, kw_only=True)
class Wait:
    """Float[G] seconds in which a rank does nothing and needs no core: a late start, or a delay that is known to be no work."""

    name: str
    seconds: Floats

    def __post_init__(self) -> None:
        object.__setattr__(self, "seconds", frozen(self.seconds, np.float64))


@dataclass(frozen=True, slots=True, kw_only=True)
class AllToAll:
    """An exchange: float[G, G] bytes from each rank (row) to each other.

    ``barrier``: nobody sends before all are there. ``latency``: seconds that it takes besides moving bytes, after a barrier before the
    first byte, otherwise after a rank's last. ``posting`` is a word of ``POSTINGS``. ``buffer``: bytes of each message that its sender
    does not wait for, with ``on_arrival`` and no barrier only.
    """

    name: str
    bytes: Floats
    barrier: bool = False
    latency: float = 0.0
    posting: str = "on_arrival"
    buffer: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "bytes", frozen(self.bytes, np.float64))


POSTINGS = ("on_arrival", "before", "alternately")
"""How messages are posted. ``on_arrival``: each rank posts its receives when it comes, then its sends, so a pair starts when both are
there. ``before``: receives are posted before anybody starts, and a rank's messages move when it comes. ``alternately``: sends and
receives in turn, as gloo's own all-to-all does (:class:`~moesim.engine.posted_calls.LibraryCall`)."""

Phase: TypeAlias = Compute | Wait | AllToAll


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """From ``time`` on (s) a link carries ``bandwidth`` (B/s)."""

    time: float
    link: int
    bandwidth: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Replayed:
    """What became of the phases.

    Parameters
    ----------
    names : tuple of str
        Of the phases.
    ends : float[P, G]
        When each rank ended each phase, s after the start.
    waiting : float[P, G]
        Seconds of an exchange in which none of a rank's bytes could move, because its peers were not there; NaN where nobody counted (an
        exchange that is not posted ``on_arrival``, or has a buffer).
    carried, busy : float[K]
        Bytes over each link, and seconds in which it carried some.
    """

    names: tuple[str, ...]
    ends: Floats
    waiting: Floats
    carried: Floats = field(repr=False)
    busy: Floats = field(repr=False)

    @property
    def seconds(self) -> float:
        """From the start to the end of the last rank's last phase."""
        return float(self.ends[-1].max()) if len(self.ends) else 0.0


def replay(cluster: Cluster, phases: Sequence[Phase], *, changes: Sequence[Change] = (), sharing: Sharing | None = None) -> Replayed:
    """Play phases one after the other on every rank; ranks wait for each other only where they exchange.

    Parameters
    ----------
    cluster : Cluster
        Links, routes and pools of cores; every GPU is a rank of one group.
    phases : sequence of Compute, Wait or AllToAll
        The same for all ranks, but for their seconds and bytes.
    changes : sequence of Change
        Links that change while this goes on.
    sharing : Sharing or None
        How exactly links are shared; exactly, if left out.

    Raises
    ------
    UsageError
        If a phase is not of as many ranks as the cluster has, or holds a number that is no time or size.
    LawBroken
        If the bytes carried are not those asked for.
    """
    _check(cluster, phases, changes)
    env = simpy.Environment()
    fabric = Fabric(env, cluster, Sharing(mode="exact") if sharing is None else sharing)
    most = [np.count_nonzero(phase.bytes) for phase in phases if isinstance(phase, AllToAll)]
    fabric.expect(int(max(most, default=0)))
    cores = Cores(env, cluster)
    ranks = range(cluster.gpus)
    calls: dict[int, Collective | PostedCall] = {}
    for number, phase in enumerate(phases):
        if isinstance(phase, AllToAll) and phase.buffer > 0:
            calls[number] = BufferedCall(env, fabric, phase.bytes, phase.buffer)
        elif isinstance(phase, AllToAll) and phase.posting == "on_arrival":
            calls[number] = Collective(env, fabric, ranks, phase.bytes, barrier=phase.barrier)
        elif isinstance(phase, AllToAll):
            calls[number] = (PostedCall if phase.posting == "before" else LibraryCall)(env, fabric, phase.bytes)
    ends, waiting = np.zeros((len(phases), cluster.gpus)), np.zeros((len(phases), cluster.gpus))

    def play(rank: int) -> Generator[simpy.Event, Any, None]:
        for number, phase in enumerate(phases):
            if isinstance(phase, AllToAll):
                # Everybody's latency before a barrier is as good as the latency of the barrier: the last to arrive decides.
                if phase.barrier and phase.latency:
                    yield env.timeout(phase.latency)
                call = calls[number]
                yield call.arrive(rank)
                waiting[number, rank] = call.at[rank].waiting if isinstance(call, Collective) else np.nan
                if phase.latency and not phase.barrier:
                    yield env.timeout(phase.latency)
            elif isinstance(phase, Wait):
                yield env.timeout(float(phase.seconds[rank]))
            else:
                yield cores.run(rank, float(phase.seconds[rank]))
            ends[number, rank] = env.now

    def change(what: Change) -> Generator[simpy.Event, Any, None]:
        yield env.timeout(what.time)
        fabric.change_bandwidth(what.link, what.bandwidth)

    for what in changes:
        env.process(change(what))
    env.run(until=env.all_of([env.process(play(rank)) for rank in ranks]))
    fabric.check()
    names = tuple(phase.name for phase in phases)
    return Replayed(names=names, ends=frozen(ends), waiting=frozen(waiting), carried=fabric.carried_on_link, busy=fabric.busy)


def _check(cluster: Cluster, phases: Sequence[Phase], changes: Sequence[Change]) -> None:
    ranks = cluster.gpus
    for phase in phases:
        given = phase.bytes if isinstance(phase, AllToAll) else phase.seconds
        wanted = (ranks, ranks) if isinstance(phase, AllToAll) else (ranks,)
        what = "bytes" if isinstance(phase, AllToAll) else "seconds"
        if given.shape != wanted:
            raise UsageError(
                f"phase {phase.name!r} has {what} of shape {given.shape}, but the cluster has {ranks} ranks: expected {wanted}"
            )
        if not (np.isfinite(given).all() and (given >= 0).all()):
            raise UsageError(f"phase {phase.name!r} holds {what} below 0 or not finite")
        if isinstance(phase, AllToAll) and phase.posting not in POSTINGS:
            raise UsageError(f"phase {phase.name!r} cannot be posted {phase.posting!r}{did_you_mean(phase.posting, POSTINGS)}")
        if isinstance(phase, AllToAll) and phase.posting != "on_arrival" and phase.barrier:
            raise UsageError(f"phase {phase.name!r} has a barrier, and messages posted {phase.posting!r} have none: choose one")
        if isinstance(phase, AllToAll) and not (np.isfinite(phase.buffer) and phase.buffer >= 0):
            raise UsageError(f"phase {phase.name!r} has a buffer of {phase.buffer} B: it must be finite and at least 0")
        if isinstance(phase, AllToAll) and phase.buffer > 0 and (phase.barrier or phase.posting != "on_arrival"):
            raise UsageError(f"phase {phase.name!r} has a buffer, which only messages have that are posted 'on_arrival' without a barrier")
        if isinstance(phase, AllToAll) and not (np.isfinite(phase.latency) and phase.latency >= 0):
            raise UsageError(f"phase {phase.name!r} has a latency of {phase.latency} s: it must be finite and at least 0")
    for change in changes:
        if not (np.isfinite(change.time) and change.time >= 0):
            raise UsageError(f"a link cannot change {change.time} s after the start: give a finite time of at least 0 s")
        if not 0 <= change.link < cluster.links:
            raise UsageError(f"there is no link {change.link}: links are 0 to {cluster.links - 1}")
