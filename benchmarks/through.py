"""Send the flows of a problem through whatever shares links: a bare core, or the fabric that SimPy drives; return when they end."""

from __future__ import annotations

from typing import Any

import numpy as np
import simpy
from numpy.typing import NDArray
from skewed import Problem

from moesim.engine.fabric import Fabric
from moesim.models.sharing.groups import GroupsCore
from moesim.models.sharing.never_full import follows_of
from moesim.models.sharing.quanta import QuantaCore

Floats = NDArray[np.float64]


def by_flow(problem: Problem) -> NDArray[np.int32]:
    """A counter for each flow, and one more that counts all of them."""
    return np.stack([np.arange(problem.flows), np.full(problem.flows, problem.flows)], axis=1).astype(np.int32)


def by_rank(problem: Problem) -> NDArray[np.int32]:
    """A counter for what each GPU receives, and one for what it sends: what a rank in a collective waits for."""
    return np.stack([problem.destination, problem.gpus + problem.source], axis=1).astype(np.int32)


def through_core(problem: Problem, core: Any, watch: NDArray[np.int32]) -> Floats:
    """Return when each counter of ``watch`` reached zero, from a core that nobody but this function drives."""
    counters = int(watch.max()) + 1
    pending = np.bincount(watch.ravel(), minlength=counters).astype(np.int64)
    woken, ends = np.empty(counters, dtype=np.int64), np.full(counters, np.nan)
    pair = problem.source.astype(np.int64) * problem.gpus + problem.destination
    at, link, value = problem.changes
    now = 0.0
    for moment in (*np.unique(np.concatenate([problem.start, at])).tolist(), np.inf):
        while now < moment:
            now, woke = core.advance(moment, pending, woken)
            ends[woken[:woke]] = now
            if now == np.inf or not (woke or np.isfinite(moment)):
                break
        if not np.isfinite(moment):
            break
        changed = at == moment
        if changed.any():
            core.change_capacity(moment, link[changed].astype(np.int64), value[changed])
        new = problem.start == moment
        if new.any():
            every = slice(None) if new.all() else new
            weight, cap = (None if column is None else column[every] for column in (problem.weight, problem.cap))
            core.join(moment, problem.route[every], pair[every], problem.size[every], weight, cap, watch[every], pending)
    return ends


def through_simpy(problem: Problem, fabric: Fabric, env: simpy.Environment, watch: NDArray[np.int32]) -> Floats:
    """Return when each counter of ``watch`` reached zero; flows start when SimPy says so."""
    counters = int(watch.max()) + 1
    ends = np.full(counters, np.nan)

    def noted(counter: int) -> Any:
        return lambda: ends.__setitem__(counter, env.now)

    number = np.array([fabric.watch(noted(counter)) for counter in range(counters)], dtype=np.int32)
    source, destination = problem.source.astype(np.int64), problem.destination.astype(np.int64)

    def starter(moment: float) -> Any:
        yield env.timeout(moment)
        now = problem.start == moment
        weight, cap = (None if column is None else column[now] for column in (problem.weight, problem.cap))
        fabric.transfer(source[now], destination[now], problem.size[now], number[watch[now]], weight=weight, cap=cap)

    for moment in np.unique(problem.start).tolist():
        env.process(starter(moment))
    env.run()
    return ends


def follows(problem: Problem) -> NDArray[np.int64]:
    """Which link comes after which: what a cluster knows of its routes before any flow starts."""
    return follows_of(problem.route, len(problem.capacity))


def exact(problem: Problem, after: NDArray[np.int64] | None) -> GroupsCore:
    """A fresh core of mode ``exact``; ``after`` as :func:`follows` returns it, None if links change."""
    return GroupsCore(problem.capacity, hops=problem.route.shape[1], pairs=problem.gpus**2, follows=after)


def quanta(problem: Problem, after: NDArray[np.int64] | None, quantum: float, guard: float) -> QuantaCore:
    """A fresh core of mode ``fast`` or ``coarse``."""
    return QuantaCore(problem.capacity, hops=problem.route.shape[1], pairs=problem.gpus**2, quantum=quantum, guard=guard, follows=after)
