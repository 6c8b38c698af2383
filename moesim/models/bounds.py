"""Closed forms that no simulation can beat, and one that shows what communication costs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from moesim.base.errors import UsageError
from moesim.facts.arrays import Floats, Ints
from moesim.facts.cluster import Cluster
from moesim.facts.program import BACKWARD, COLLECTIVES, COMMUNICATES, RECEIVE, SEND, Program, Work

MOST_ELEMENTS = 2_000_000
"""Of a temporary array."""


def hops(pairs: Ints, cluster: Cluster) -> tuple[Ints, Ints]:
    """Return the links of the routes of some pairs, one after another, and for each the position of its pair in ``pairs``.

    A pair is ``source * G + destination``.
    """
    start = cluster.route_start[pairs]
    length = cluster.route_start[pairs + 1] - start
    owner = np.repeat(np.arange(len(pairs)), length)
    within = np.arange(len(owner)) - np.repeat(np.cumsum(length) - length, length)
    return cluster.route_link[start[owner] + within], owner


def _sending(bytes_: ArrayLike, cluster: Cluster) -> tuple[Ints, Floats]:
    """Return the pairs (flattened) that have bytes to send, and how many; a GPU sends nothing to itself."""
    asked = np.array(bytes_, dtype=np.float64)
    if asked.shape != (cluster.gpus, cluster.gpus):
        raise UsageError(f"traffic has shape {asked.shape}, but the cluster has {cluster.gpus} GPUs: give one row and one column per GPU")
    np.fill_diagonal(asked, 0.0)
    pairs = np.flatnonzero(asked.ravel())
    return pairs, asked.ravel()[pairs]


def link_bytes(bytes_: ArrayLike, cluster: Cluster) -> Floats:
    """Return float[K], what each link carries of a traffic matrix.

    Parameters
    ----------
    bytes_ : float[G, G]
        From source (row) to destination; the diagonal is ignored.
    cluster : Cluster
        For its routes.

    Raises
    ------
    UsageError
        If the matrix does not fit the cluster.
    """
    pairs, sent = _sending(bytes_, cluster)
    link, owner = hops(pairs, cluster)
    return np.bincount(link, weights=sent[owner], minlength=cluster.links).astype(np.float64)


def link_bound(bytes_: ArrayLike, cluster: Cluster, *, carried: Floats | None = None) -> tuple[float, int]:
    """Return the least time in which the busiest link carries its bytes, and which link that is.

    ``max over links of (bytes routed over it) / bandwidth``: law L7. Latencies come on top.

    Parameters
    ----------
    bytes_ : float[G, G]
        From source (row) to destination; the diagonal is ignored.
    cluster : Cluster
        For its routes and bandwidths.
    carried : float[K], optional
        :func:`link_bytes` of the same matrix, for callers that have it.

    Returns
    -------
    seconds : float
    bottleneck : int
        The link; of several the lowest number; -1 if nothing is sent.
    """
    seconds = (link_bytes(bytes_, cluster) if carried is None else carried) / cluster.bandwidth
    if not seconds.size or not seconds.any():
        return 0.0, -1
    bottleneck = int(np.argmax(seconds))
    return float(seconds[bottleneck]), bottleneck


def port_links(cluster: Cluster) -> NDArray[np.bool_]:
    """Return bool[K], the links that are some GPU's own port: all routes over them start at that GPU, or all end there."""
    gpus, links = cluster.gpus, cluster.links
    lowest, highest = np.full((2, links), gpus, dtype=np.int64), np.full((2, links), -1, dtype=np.int64)
    some = max(MOST_ELEMENTS // gpus, 1)  # sources at once
    for first in range(0, gpus, some):
        pairs = slice(first * gpus, min(first + some, gpus) * gpus)
        start = cluster.route_start[pairs.start : pairs.stop + 1]
        link = cluster.route_link[start[0] : start[-1]]
        pair = np.repeat(np.arange(pairs.start, pairs.stop), np.diff(start))
        for end, gpu in enumerate((pair // gpus, pair % gpus)):
            np.minimum.at(lowest[end], link, gpu)
            np.maximum.at(highest[end], link, gpu)
    return np.asarray((lowest == highest).any(axis=0))


def port_bound(bytes_: ArrayLike, cluster: Cluster, *, ports: NDArray[np.bool_] | None = None, carried: Floats | None = None) -> float:
    """Return the least time in which every GPU can send and receive its bytes, if nothing else were ever in the way.

    ``max over the GPUs' own ports of bytes / bandwidth`` (:func:`port_links`); at most :func:`link_bound`. For one switch this is the
    familiar ``max over GPUs of max(sent, received) / bandwidth``.

    Parameters
    ----------
    bytes_ : float[G, G]
        From source (row) to destination; the diagonal is ignored.
    cluster : Cluster
        For its routes and bandwidths.
    ports : bool[K], optional
        :func:`port_links` of the cluster, for callers that ask many times.
    carried : float[K], optional
        :func:`link_bytes` of the same matrix, for callers that have it.
    """
    own = port_links(cluster) if ports is None else ports
    seconds = np.where(own, (link_bytes(bytes_, cluster) if carried is None else carried) / cluster.bandwidth, 0.0)
    return float(seconds.max(initial=0.0))


def port_seconds(bytes_: ArrayLike, cluster: Cluster) -> Floats:
    """Return float[G], the least time in which each GPU could send and receive its own bytes if every link were its alone.

    The busiest link of each GPU's own routes, counting only the bytes that this GPU sends or receives over it: for one switch,
    ``max(sent, received) / bandwidth`` of that GPU.

    Parameters
    ----------
    bytes_ : float[G, G]
        From source (row) to destination; the diagonal is ignored.
    cluster : Cluster
        For its routes and bandwidths.
    """
    pairs, sent = _sending(bytes_, cluster)
    link, owner = hops(pairs, cluster)
    worst = np.zeros(cluster.gpus)
    for gpu in (pairs // cluster.gpus, pairs % cluster.gpus):
        place = gpu[owner] * cluster.links + link
        moved = np.bincount(place, weights=sent[owner], minlength=cluster.gpus * cluster.links).reshape(cluster.gpus, cluster.links)
        worst = np.maximum(worst, (moved / cluster.bandwidth).max(axis=1, initial=0.0))
    return worst


def no_communication(program: Program, durations: Mapping[Work, Floats], groups: int) -> float:
    """Return the seconds of a step whose exchanges take no time but still make the ranks of a group wait for each other.

    The longest path through the program: a task starts when the tasks it names and the task before it on its lane are finished; a
    dispatch or combine finishes on all GPUs of a group when the last of them has reached it; what a stage hands on is there
    at once. With balanced load it is the plain sum of the
    compute times; what it exceeds that sum by is the price of imbalance alone.

    Parameters
    ----------
    program : Program
        Tasks of one step.
    durations : mapping of Work to float[G]
        Seconds on each GPU of every task that is not an exchange; exchanges may be missing and are ignored.
    groups : int
        Expert-parallel groups: G / groups GPUs with consecutive numbers each.

    Raises
    ------
    UsageError
        If a task has no duration, or the GPUs do not divide into the groups.
    """
    computing = [task.work for task in program.tasks if task.work.phase not in COMMUNICATES]
    missing = [work for work in computing if work not in durations]
    if missing:
        raise UsageError(f"no duration for {missing[0]}: give one for every task that is not a dispatch or combine")
    if not computing:
        return 0.0
    gpus = len(durations[computing[0]])
    if groups < 1 or gpus % groups:
        raise UsageError(f"{gpus} GPUs do not divide into {groups} groups")
    finished: list[Floats] = []
    lane_free: dict[tuple[int, str], Floats] = {}
    nothing = np.zeros(gpus)
    of_stage = gpus // program.stages
    sent: dict[Work, Floats] = {}
    for task in program.tasks:
        ready = lane_free.get((task.stage, task.lane), nothing)
        for earlier in task.after:
            if finished[earlier] is not ready:
                ready = np.maximum(ready, finished[earlier])
        if task.work.phase in COLLECTIVES:
            last = ready.reshape(groups, gpus // groups).max(axis=1)
            end = np.repeat(last, gpus // groups)
        elif task.work.phase == RECEIVE:
            shift = -of_stage if task.work.direction == BACKWARD else of_stage
            end = np.maximum(ready, np.roll(sent[replace(task.work, phase=SEND)], shift))
        elif task.work.phase in COMMUNICATES:
            end = ready
        else:
            end = ready + np.asarray(durations[task.work], dtype=np.float64)
        if task.work.phase == SEND:
            sent[task.work] = end
        finished.append(end)
        lane_free[task.stage, task.lane] = end
    # Nothing on a lane ends before what stands before it.
    return float(max(end[stage * of_stage : (stage + 1) * of_stage].max() for (stage, _), end in lane_free.items()))
