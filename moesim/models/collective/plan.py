"""From a question (which operation, how, how many bytes, among whom) to a plan."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import chain

import numpy as np
from numpy.typing import ArrayLike

from moesim.base.errors import UsageError, did_you_mean
from moesim.facts.arrays import Ints
from moesim.facts.collective import ALGORITHMS, OPERATIONS, OPERATIONS_OF, CollectivePlan, Stage
from moesim.models.collective import direct
from moesim.models.collective.hierarchical import grid, hierarchical_stages
from moesim.models.collective.orders import default_channels, ring_order
from moesim.models.collective.ring import along, around
from moesim.models.collective.tree import levels, spanning_trees


def plan_collective(
    operation: str,
    algorithm: str,
    size: float,
    *,
    ranks: ArrayLike,
    node_of: ArrayLike,
    channels: int = 0,
    root: int = 0,
    peer: int = 1,
) -> CollectivePlan:
    """Return who sends what to whom, and after what, step by step.

    Parameters
    ----------
    operation : str
        ``all_reduce``, ``all_gather``, ``reduce_scatter``, ``all_to_all``, ``broadcast``, ``reduce`` or ``send``.
    algorithm : str
        ``ring`` (not for ``all_to_all`` and ``send``), ``tree`` (``all_reduce``, ``broadcast``, ``reduce``), ``hierarchical``
        (``all_reduce``, ``all_gather``, ``reduce_scatter``) or ``direct`` (anything).
    size : float
        S, bytes of the whole vector, as nccl-tests counts; see :class:`~moesim.facts.collective.CollectivePlan`.
    ranks : int[n]
        GPUs of the group, each once.
    node_of : int[G]
        The node of every GPU of the cluster.
    channels : int
        Rings or double trees that share the bytes equally; 0 for as many as use every network card of the group
        (:func:`~moesim.models.collective.orders.default_channels`). Of no consequence for the other algorithms.
    root : int
        The rank of the group that a broadcast or a message starts from, or a reduction ends at.
    peer : int
        The rank of the group that a message (``send``) goes to.

    Returns
    -------
    CollectivePlan
        Without stages if the group has one rank or nothing is to be sent.

    Raises
    ------
    UsageError
        If the words are unknown or do not go together, or a number does not fit the group.
    """
    if operation not in OPERATIONS:
        raise UsageError(f"unknown operation {operation!r}{did_you_mean(operation, OPERATIONS)}")
    if algorithm not in ALGORITHMS:
        raise UsageError(f"unknown algorithm {algorithm!r}{did_you_mean(algorithm, ALGORITHMS)}")
    known = [name for name in ALGORITHMS if operation in OPERATIONS_OF[name]]
    if algorithm not in known:
        raise UsageError(f"there is no {algorithm} algorithm for {operation}: use {' or '.join(known)}")
    members, nodes = _group(ranks, node_of)
    count = len(members)
    if not (math.isfinite(size) and size >= 0):
        raise UsageError(f"size is {size} B: give a finite number of bytes, 0 or more")
    if channels < 0:
        raise UsageError(f"channels is {channels}: give 1 or more, or 0 for one per network card of a node")
    for name, value in (("root", root), *((("peer", peer),) if operation == "send" else ())):
        if not 0 <= value < count:
            raise UsageError(f"{name} is {value}, but the group has the ranks 0 to {count - 1}")
    if operation == "send" and root == peer:
        raise UsageError(f"rank {root} cannot send to itself: give another peer")
    own = channels or default_channels(members, nodes)
    ask = _Ask(operation=operation, ranks=members, node_of=nodes, size=float(size), channels=own, root=root, peer=peer)
    stages, home = BUILDERS[algorithm](ask)
    return CollectivePlan(
        operation=operation,
        algorithm=algorithm,
        ranks=members,
        bytes=ask.size,
        stages=tuple(stages) if size > 0 and count > 1 else (),
        pieces=np.full(len(home), ask.size / len(home)),
        home=home,
        root=root,
        channels=own if algorithm in {"ring", "tree"} else 1,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Ask:
    """The question, checked."""

    operation: str
    ranks: Ints
    node_of: Ints
    size: float
    channels: int
    root: int
    peer: int


Answer = tuple[Iterable[Stage], Ints]
"""The stages, and the rank that each piece belongs to; all pieces are equal."""


def _ring(ask: _Ask) -> Answer:
    orders = np.stack([ring_order(ask.ranks, ask.node_of, channel) for channel in range(ask.channels)])
    if ask.operation in {"broadcast", "reduce"}:
        stages = along(orders, ask.ranks, ask.size / ask.channels, ask.root, adds=ask.operation == "reduce")
        return stages, np.full(ask.channels, ask.root)
    rounds = {"reduce_scatter": ((-1, True),), "all_gather": ((0, False),), "all_reduce": ((-1, True), (0, False))}[ask.operation]
    return around(orders, ask.ranks, ask.size / orders.size, rounds), orders.ravel()


def _tree(ask: _Ask) -> Answer:
    root = None if ask.operation == "all_reduce" else ask.root
    trees = [spanning_trees(ask.ranks, ask.node_of, channel, root) for channel in range(ask.channels)]
    parents = list(chain.from_iterable(trees))
    up, down = (levels(parents, ask.ranks, ask.size / len(parents), up=way) for way in (True, False))
    stages = {"all_reduce": chain(up, down), "reduce": up, "broadcast": down}[ask.operation]
    return stages, np.array([int(np.flatnonzero(parent < 0)[0]) for parent in parents])


def _hierarchical(ask: _Ask) -> Answer:
    cells = grid(ask.ranks, ask.node_of)
    stages = hierarchical_stages(ask.operation, ask.ranks, cells, ask.size / cells.size)
    return stages, np.ascontiguousarray(cells.T).ravel()


def _direct(ask: _Ask) -> Answer:
    ranks, count, size = ask.ranks, len(ask.ranks), ask.size
    each = size / count
    match ask.operation:
        case "broadcast" | "reduce":
            return (direct.fan(ranks, size, ask.root, adds=ask.operation == "reduce"),), np.array([ask.root])
        case "send":
            return (direct.message(ranks, size, ask.root, ask.peer),), np.array([ask.peer])
        case "all_to_all":
            return (direct.exchange(ranks, each / count),), np.tile(np.arange(count), count)
        case "reduce_scatter":
            return (direct.scatter(ranks, each),), np.arange(count)
        case "all_gather":
            return (direct.gather(ranks, each),), np.arange(count)
    return (direct.scatter(ranks, each), direct.gather(ranks, each, phase=1)), np.arange(count)


BUILDERS: dict[str, Callable[[_Ask], Answer]] = {"ring": _ring, "tree": _tree, "hierarchical": _hierarchical, "direct": _direct}
"""How each algorithm answers; ``OPERATIONS_OF`` says which operations it knows."""


def _group(ranks: ArrayLike, node_of: ArrayLike) -> tuple[Ints, Ints]:
    members, nodes = np.asarray(ranks, dtype=np.int64), np.asarray(node_of, dtype=np.int64)
    if members.ndim != 1 or not len(members):
        raise UsageError(f"ranks have shape {members.shape}: give a list of at least one GPU")
    outside = members[(members < 0) | (members >= len(nodes))]
    if len(outside):
        raise UsageError(f"rank {outside[0]} is no GPU of this cluster, which has the GPUs 0 to {len(nodes) - 1}")
    if len(np.unique(members)) < len(members):
        twice = np.flatnonzero(np.bincount(members) > 1)[0]
        raise UsageError(f"GPU {twice} is in the group more than once")
    return members, nodes
