"""Traffic matrices of the questions that people ask of a network: an all-to-all, even or skewed, and many senders with one receiver."""

from __future__ import annotations

import numpy as np

from moesim.base.errors import UsageError
from moesim.base.streams import stream
from moesim.facts.arrays import Floats, Ints
from moesim.facts.cluster import Cluster

ELEMENT = 4
"""Bytes of the elements that tables in the shape of nccl-tests count: ``float``."""


def whole_parts(size: float, ranks: int) -> int:
    """Return the largest buffer of at most ``size`` bytes that ``ranks`` ranks share in equal parts of whole elements.

    Source: nccl-tests ``src/alltoall.cu``, ``AlltoAllGetCollByteCount``: ``(count / nranks) * nranks`` elements.

    Examples
    --------
    >>> whole_parts(1000, 16), whole_parts(8, 16)
    (960, 0)
    """
    part = ELEMENT * ranks
    return int(size) // part * part


def all_to_all(gpus: int, ranks: int, size: float, *, skew: float = 0.0, seed: int = 0) -> Floats:
    """Return float[G, G], what the GPUs send when every group of ``ranks`` neighbours has an all-to-all at once.

    Parameters
    ----------
    gpus, ranks : int
        G, and how many GPUs have one all-to-all; divides G.
    size : float
        Bytes of a GPU's buffer, its own part included.
    skew : float
        Sigma of the log-normal popularity of destinations: every GPU sends a share of its buffer to each rank in proportion to it. 0 gives
        equal parts.
    seed : int
        Of the popularities; each group draws its own.

    Raises
    ------
    UsageError
        If the GPUs do not divide into groups.
    """
    if ranks < 1 or gpus % ranks:
        raise UsageError(f"{gpus} GPUs do not divide into groups of {ranks} ranks")
    bytes_ = np.zeros((gpus, gpus))
    for first in range(0, gpus, ranks):
        group = slice(first, first + ranks)
        popularity = np.exp(skew * stream(seed, "network", "skew", first // ranks).standard_normal(ranks))
        bytes_[group, group] = size * popularity / popularity.sum()
    np.fill_diagonal(bytes_, 0.0)
    return bytes_


def neighbour_to_neighbour(gpus: int, ranks: int, size: float) -> Floats:
    """Return float[G, G]: in every group of ``ranks`` neighbours each GPU sends ``size`` bytes to the next, the last to the first.

    Source: nccl-tests ``src/sendrecv.cu``, ``SendRecvRunColl``.

    Raises
    ------
    UsageError
        If the GPUs do not divide into groups of at least two.
    """
    if ranks < 2 or gpus % ranks:
        raise UsageError(f"{gpus} GPUs do not divide into groups of {ranks} ranks, at least two, that send to each other")
    bytes_ = np.zeros((gpus, gpus))
    gpu = np.arange(gpus)
    bytes_[gpu, gpu // ranks * ranks + (gpu + 1) % ranks] = size
    return bytes_


def senders_to(cluster: Cluster, receiver: int) -> Ints:
    """Return the other GPUs in the order in which they join an incast: those of other nodes first, each in the order of their numbers."""
    others = np.delete(np.arange(cluster.gpus), receiver)
    return others[np.argsort(cluster.node_of[others] == cluster.node_of[receiver], kind="stable")]


def incast(cluster: Cluster, receiver: int, senders: int, size: float) -> Floats:
    """Return float[G, G]: the first of :func:`senders_to` send ``size`` bytes each to one receiver.

    Raises
    ------
    UsageError
        If there is no such receiver, or there are not so many other GPUs.
    """
    if not 0 <= receiver < cluster.gpus:
        raise UsageError(f"there is no GPU {receiver}: the cluster has GPUs 0 to {cluster.gpus - 1}")
    if not 1 <= senders < cluster.gpus:
        raise UsageError(f"{senders} senders do not fit: beside the receiver the cluster has {cluster.gpus - 1} GPUs")
    bytes_ = np.zeros((cluster.gpus, cluster.gpus))
    bytes_[senders_to(cluster, receiver)[:senders], receiver] = size
    return bytes_
