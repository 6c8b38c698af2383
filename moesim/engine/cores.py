"""Cores that several ranks share: processor sharing, for ranks that outnumber the cores of their machine.

A pool of c cores runs n tasks at once, each on at most one core: every task gets min(1, c / n) of a core until a task comes or goes. That
is max-min fairness of tasks over cores, and what a fair scheduler of an operating system does over times longer than its time slice. All
tasks of a pool are equally fast, so a pool needs no rates for each of them, only how much a task that was there from the start would have
done (its *progress*): a task that starts at progress p with w seconds of work ends at progress p + w.

Source: L. Kleinrock, "Time-shared Systems: A theoretical treatment", Journal of the ACM 14(2), 1967, where processor sharing is the limit
of round robin with a short slice.
"""

from __future__ import annotations

import heapq

import numpy as np
import simpy

from moesim.facts.cluster import Cluster


class Cores:
    """The pools of cores of a cluster.

    Parameters
    ----------
    env : simpy.Environment
        The clock.
    cluster : Cluster
        ``core_pool`` says in which pool each GPU computes, ``pool_cores`` how many cores a pool has.
    """

    def __init__(self, env: simpy.Environment, cluster: Cluster) -> None:
        self._env = env
        self._pool_of = cluster.core_pool.tolist()
        members = np.bincount(cluster.core_pool, minlength=len(cluster.pool_cores))
        crowded = members > cluster.pool_cores
        self._pools = [
            Pool(env, cores) if full else None for cores, full in zip(cluster.pool_cores.tolist(), crowded.tolist(), strict=True)
        ]

    def contended(self, gpu: int) -> bool:
        """Tell whether others may slow this GPU down: not where there is a core for every rank of its pool, or nothing is shared."""
        return bool(self._pool_of) and self._pools[self._pool_of[gpu]] is not None

    def run(self, gpu: int, seconds: float) -> simpy.Event:
        """Start work that takes ``seconds`` on a core of its own; the event fires when it is done."""
        pool = self._pools[self._pool_of[gpu]] if self._pool_of else None
        return self._env.timeout(seconds) if pool is None else pool.run(seconds)


class Pool:
    """Cores shared equally by the tasks that run on them.

    Parameters
    ----------
    env : simpy.Environment
        The clock.
    cores : float
        How many, above 0; half a core is one that is lent half of the time.
    """

    def __init__(self, env: simpy.Environment, cores: float) -> None:
        self._env = env
        self._cores = cores
        self._progress = 0.0
        self._reached = 0.0
        self._running: list[tuple[float, int, simpy.Event]] = []
        self._started = 0
        self._plans = 0

    def run(self, seconds: float) -> simpy.Event:
        """Start a task now; the event fires when it has had ``seconds`` of a core."""
        self._advance()
        event = self._env.event()
        heapq.heappush(self._running, (self._progress + seconds, self._started, event))
        self._started += 1
        self._plan()
        return event

    def _rate(self) -> float:
        """Return the share of a core that each task gets."""
        return min(1.0, self._cores / len(self._running))

    def _advance(self) -> None:
        """Bring the progress up to now; an idle pool begins again at 0, where numbers are precise."""
        if self._running:
            self._progress += (self._env.now - self._reached) * self._rate()
        else:
            self._progress = 0.0
        self._reached = self._env.now

    def _plan(self) -> None:
        """Set an alarm for the end of the next task, if no task comes or goes before; earlier alarms are stale from now on."""
        self._plans += 1
        if not self._running:
            return
        plan = self._plans
        wait = (self._running[0][0] - self._progress) / self._rate()
        alarm = self._env.timeout(max(wait, 0.0))
        alarm.callbacks.append(lambda _: self._end(plan))

    def _end(self, plan: int) -> None:
        if plan != self._plans:
            return
        # What was planned is what happens: the progress is that of the task itself, without what rounding has added on the way.
        self._progress, self._reached = self._running[0][0], self._env.now
        while self._running and self._running[0][0] <= self._progress:
            heapq.heappop(self._running)[2].succeed()
        self._plan()
