"""Inside the node first, then between equal GPUs of all nodes, then inside again."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from moesim.base.errors import UsageError
from moesim.facts.arrays import Ints
from moesim.facts.collective import Stage
from moesim.models.collective.orders import members_by_node
from moesim.models.collective.ring import around


def grid(ranks: Ints, node_of: Ints) -> Ints:
    """Return int[nodes, m], the positions in ``ranks`` of GPU l of each node.

    Raises
    ------
    UsageError
        If the nodes do not hold equally many GPUs of the group: then some GPU has no equal on another node.
    """
    members = members_by_node(ranks, node_of)
    sizes = sorted({len(local) for local in members})
    if len(sizes) > 1:
        raise UsageError(
            f"a hierarchical collective needs equally many GPUs on every node, but this group has {sizes[0]} on one and {sizes[-1]} on "
            "another: use algorithm 'ring' or 'tree'"
        )
    return np.stack(members)


def hierarchical_stages(operation: str, ranks: Ints, cells: Ints, size: float) -> Iterator[Stage]:
    """Yield the stages of an all-reduce, a reduce-scatter or an all-gather in up to three phases.

    All-reduce (BlueConnect, Cho et al., SysML 2019; "2D" all-reduce): one-shot reduce-scatter among the m GPUs of a node, ring all-reduce
    of the m-th part that each then holds among GPUs of equal index of the N nodes, one-shot all-gather in the node. A network card carries
    2 (N - 1) / N of an m-th of the bytes. A reduce-scatter is its first half, an all-gather its second.

    Parameters
    ----------
    operation : str
        ``all_reduce``, ``reduce_scatter`` or ``all_gather``.
    ranks : int[n]
        GPUs.
    cells : int[nodes, m]
        Positions in ``ranks``, as :func:`grid` returns them.
    size : float
        Bytes of a piece; piece ``l * nodes + j`` belongs to GPU l of node j.
    """
    nodes = len(cells)
    orders = np.ascontiguousarray(cells.T)  # ring l joins GPU l of every node
    rounds = {
        "all_reduce": ((-1, True), (0, False)),
        "reduce_scatter": ((-1, True),),
        "all_gather": ((0, False),),
    }[operation]
    if operation != "all_gather":
        yield from _inside(ranks, cells, size, adds=True, phase=0)
    if nodes > 1:
        yield from around(orders, ranks, size, rounds, phase=1)
    if operation != "reduce_scatter":
        yield from _inside(ranks, cells, size, adds=False, phase=2)


def _inside(ranks: Ints, cells: Ints, size: float, *, adds: bool, phase: int) -> Iterator[Stage]:
    """Yield the stage in which slices change hands in every node: each GPU sends slice l to GPU l (adding), or its own slice to all."""
    nodes, local = cells.shape
    if local == 1:
        return
    node, sender, receiver, part = (
        side.ravel() for side in np.meshgrid(np.arange(nodes), np.arange(local), np.arange(local), np.arange(nodes), indexing="ij")
    )
    real = sender != receiver
    node, sender, receiver, part = node[real], sender[real], receiver[real], part[real]
    yield Stage(
        source=ranks[cells[node, sender]],
        destination=ranks[cells[node, receiver]],
        bytes=np.full(len(node), size),
        piece=(receiver if adds else sender) * nodes + part,
        adds=adds,
        phase=phase,
    )
