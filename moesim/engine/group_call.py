"""A collective operation on the fabric: each rank goes through its stages as its neighbours do through theirs."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import simpy

from moesim.engine.fabric import Fabric
from moesim.facts.arrays import Ints
from moesim.models.collective.prepared import PreparedPlan


@dataclass(slots=True)
class Part:
    """How one rank fares in one operation, in s; ``waited_for`` says how long it waited for each peer to arrive."""

    arrival: float
    done: simpy.Event = field(repr=False)
    counter: int
    latest: int
    end: float = 0.0
    waited_for: dict[int, float] = field(default_factory=dict)
    idle_since: float | None = None
    step: int = 0
    unstarted: int = 0

    @property
    def waiting(self) -> float:
        """Seconds in which none of its bytes moved because a rank on which its next transfer depended had not arrived."""
        return sum(self.waited_for.values())


class GroupCall:
    """One operation among the ranks of a plan, such as a ring all-reduce.

    A rank is *at* a stage when all its transfers of earlier stages have ended; stages without a transfer of its own do not hold it up.
    A transfer starts when both of its ranks are at its stage: so what a rank sends in step k of a ring waits for what it received in
    step k - 1, and nothing goes to a rank that has not arrived. In a stage whose ranks are joined (``Stage.together``) all transfers
    of the joined ranks start when the last of them is there. A rank is done after its last stage.

    A rank *waits* while none of its bytes move and a rank on which its next transfer depends, directly or through others, has not
    arrived. Gaps because of slow links or long chains are part of the transfer.

    All flows go over the same :class:`~moesim.engine.fabric.Fabric` as any other traffic, so they share links with a dispatch.

    Parameters
    ----------
    env : simpy.Environment
    fabric : Fabric
    prepared : PreparedPlan
        :func:`~moesim.models.collective.prepared.prepare` of a plan, in steps or pipelined; many calls can share it.

    Attributes
    ----------
    ranks : tuple of int
        The GPUs that take part.
    at : dict of int to Part
        How each rank (a GPU) that has arrived fares.
    moving : float
        Seconds in which at least one byte was on its way, latency included.
    """

    def __init__(self, env: simpy.Environment, fabric: Fabric, prepared: PreparedPlan) -> None:
        self._env = env
        self._fabric = fabric
        self._stages = prepared.legs
        self._path = prepared.path
        self._missing = set(self._path)
        self._starting: list[tuple[int, Ints]] = []
        self._moving = 0
        self._moving_since = 0.0
        self.moving = 0.0
        self.ranks = tuple(prepared.path)
        self.at: dict[int, Part] = {}

    @property
    def missing(self) -> tuple[int, ...]:
        """Ranks that have not arrived."""
        return tuple(sorted(self._missing))

    def arrive(self, rank: int) -> simpy.Event:
        """Let a rank in; the event it gets back fires when this rank is done.

        Raises
        ------
        ValueError
            If the rank is not in the group or has arrived before.
        """
        if rank not in self._missing:
            raise ValueError(f"GPU {rank} {'has already arrived' if rank in self.at else 'is not in this group'}")
        counter = self._fabric.watch(lambda: self._quiet(rank))
        part = Part(self._env.now, self._env.event(), counter, latest=rank, idle_since=self._env.now)
        self.at[rank] = part
        self._missing.discard(rank)
        self._enter(rank, part)
        return part.done

    def _stage_of(self, rank: int) -> int:
        """Return the stage that a rank is at; -1 if it has not arrived or is done."""
        part = self.at.get(rank)
        path = self._path[rank]
        return path[part.step] if part is not None and part.step < len(path) else -1

    def _enter(self, rank: int, part: Part) -> None:
        """Start what can start now that a rank has come to its next stage."""
        number = self._stage_of(rank)
        if number < 0:
            self._finish(part)
            return
        stage = self._stages[number]
        part.unstarted = len(stage.flows_of[rank])
        joined = stage.joined.get(rank)
        if joined is None:
            own = stage.flows_of[rank]
            peer = np.where(stage.source[own] == rank, stage.destination[own], stage.source[own])
            self._start(number, own[[self._stage_of(other) == number for other in peer.tolist()]])
        elif all(self._stage_of(other) == number for other in joined):
            cause = self._latest(*joined)
            for other in joined:
                self.at[other].latest = cause
            self._start(number, np.unique(np.concatenate([stage.flows_of[other] for other in joined])))

    def _latest(self, *ranks: int) -> int:
        """Return who came last of those on whom some ranks depend; of several the first named."""
        return max((self.at[rank].latest for rank in ranks), key=lambda rank: self.at[rank].arrival)

    def _start(self, number: int, flows: Ints) -> None:
        if not len(flows):
            return
        stage = self._stages[number]
        if not self._moving:
            self._moving_since = self._env.now
        for ends in zip(stage.source[flows].tolist(), stage.destination[flows].tolist(), strict=True):
            cause = self._latest(*ends)
            for part in (self.at[rank] for rank in ends):
                part.unstarted -= 1
                part.latest = cause
                if part.idle_since is not None:
                    self._moving += 1
                    waited = self.at[cause].arrival - part.idle_since
                    if waited > 0:
                        part.waited_for[cause] = part.waited_for.get(cause, 0.0) + waited
                    part.idle_since = None
        if not self._starting:
            # Ranks often come to a stage at the same instant: their flows are handed over together, after the last of them.
            self._env.event().succeed().callbacks.append(lambda _: self._hand_over())
        self._starting.append((number, flows))

    def _hand_over(self) -> None:
        starting, self._starting = self._starting, []
        source = np.concatenate([self._stages[number].source[flows] for number, flows in starting])
        destination = np.concatenate([self._stages[number].destination[flows] for number, flows in starting])
        size = np.concatenate([self._stages[number].size[flows] for number, flows in starting])
        counter = np.array(
            [[self.at[s].counter, self.at[d].counter] for s, d in zip(source.tolist(), destination.tolist(), strict=True)], dtype=np.int32
        )
        self._fabric.transfer(source, destination, size, counter)

    def _quiet(self, rank: int) -> None:
        """All flows of a rank have ended for now."""
        part = self.at[rank]
        lag = self._stages[self._stage_of(rank)].lag.get(rank, 0.0)
        if part.unstarted:
            self._idle(part)
        elif lag > 0:
            self._env.timeout(lag).callbacks.append(lambda _: self._leave(rank, part))
        else:
            self._leave(rank, part)

    def _leave(self, rank: int, part: Part) -> None:
        self._idle(part)
        part.step += 1
        self._enter(rank, part)

    def _idle(self, part: Part) -> None:
        part.idle_since = self._env.now
        self._moving -= 1
        if not self._moving:
            self.moving += self._env.now - self._moving_since

    def _finish(self, part: Part) -> None:
        part.idle_since = None
        part.end = self._env.now
        self._fabric.unwatch(part.counter)
        part.done.succeed()
