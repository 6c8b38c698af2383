"""Many dependent steps as one flow per neighbour."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from moesim.facts.arrays import Floats, Ints
from moesim.facts.collective import CollectivePlan, Stage


def pipelined(plan: CollectivePlan, route_latency: Floats) -> CollectivePlan:
    """Merge the stages of each phase of a plan into one, as a library does that cuts pieces into many small chunks.

    In a pipeline every pair of neighbours is busy from the first chunk to the last, so each sends all its bytes as one flow. What the
    flow does not show are the hops that the last chunk has behind it before it crosses the last link: their latencies are charged
    to each rank after its last byte (``lag``). No chunk can pass a GPU that is not there, so ranks that are joined in the merged
    stage, directly or through others, start together.

    Both fidelities take the same time where all links of the ring or tree are alike and, for trees, where messages are so short that
    only latency counts: a tree in steps hands on whole pieces, level by level. On unlike links a pipeline ends when its slowest link
    has carried its bytes; in steps every GPU moreover waits until its last piece has been delivered, latency included, before it
    sends the next.

    Parameters
    ----------
    plan : CollectivePlan
        In steps.
    route_latency : float[G, G]
        Seconds from GPU to GPU, as :meth:`~moesim.facts.cluster.Cluster.route_latency` returns them.

    Returns
    -------
    CollectivePlan
        With one stage per phase.
    """
    if plan.fidelity == "pipelined":
        return plan
    phases: dict[int, list[Stage]] = {}
    for stage in plan.stages:
        phases.setdefault(stage.phase, []).append(stage)
    place = np.full(len(route_latency), -1, dtype=np.int64)
    place[plan.ranks] = np.arange(len(plan.ranks))
    merged = tuple(_merge(stages, place, len(plan.ranks), route_latency) for stages in phases.values())
    return replace(plan, stages=merged, fidelity="pipelined")


def _merge(stages: list[Stage], place: Ints, count: int, latency: Floats) -> Stage:
    gpus = len(latency)
    total = np.zeros(gpus * gpus)
    ready = np.zeros(count)
    own = np.zeros(count)
    for stage in stages:
        total += np.bincount(stage.source * gpus + stage.destination, weights=stage.bytes, minlength=gpus * gpus)
        source, destination = place[stage.source], place[stage.destination]
        hop = latency[stage.source, stage.destination]
        arrived = ready.copy()
        np.maximum.at(arrived, destination, ready[source] + hop)
        ready = arrived
        # The flows of the merged stage show one hop each, at both of their ends.
        np.maximum.at(own, destination, hop)
        np.maximum.at(own, source, hop)
    pair = np.flatnonzero(total)
    source, destination = pair // gpus, pair % gpus
    return Stage(
        source=source,
        destination=destination,
        bytes=total[pair],
        phase=stages[0].phase,
        together=_joined(place[source], place[destination], count),
        lag=np.maximum(ready - own, 0.0),
    )


def _joined(source: Ints, destination: Ints, count: int) -> Ints:
    """Return int[count], the lowest member of each rank's connected component."""
    label = np.arange(count)
    while True:
        lower = label.copy()
        np.minimum.at(lower, source, label[destination])
        np.minimum.at(lower, destination, label[source])
        lower = lower[lower]
        if np.array_equal(lower, label):
            return label
        label = lower
