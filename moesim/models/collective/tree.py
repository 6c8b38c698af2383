"""Double binary trees over nodes, chains inside them."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from moesim.facts.arrays import Ints
from moesim.facts.collective import Stage
from moesim.models.collective.orders import members_by_node, two_trees


def spanning_trees(ranks: Ints, node_of: Ints, channel: int, root: int | None = None) -> tuple[Ints, Ints]:
    """Return the parents of two trees over the GPUs of a group.

    In every node the GPUs form a chain that begins at GPU ``channel`` of the node, its *leader*; the leaders form a double binary tree.
    That is the shape of NCCL's trees since 2.4 (``ncclTopoPreset`` in src/graph/connect.cc makes the chains, ``ncclGetDtree`` in
    src/graph/trees.cc the trees), with one difference: NCCL gives each channel one of the two trees, here each channel has both, with
    half of its bytes in each. With one node this is a chain, with one GPU per node a double binary tree.

    With a ``root`` the node of the root stands outside the two trees and feeds both, as in Sanders, Speck and Träff 2009;
    its chain starts at the root, and its leader hands on.

    Parameters
    ----------
    ranks : int[n]
        GPUs.
    node_of : int[G]
        The node of every GPU of the cluster.
    channel : int
        Which pair of trees, from 0.
    root : int, optional
        Position in ``ranks`` from which a broadcast starts, or at which a reduction ends.

    Returns
    -------
    first, second : int[n]
        The parent of each position in ``ranks``, -1 for the root of the tree.
    """
    members = members_by_node(ranks, node_of)
    leaders = np.array([local[channel % len(local)] for local in members])
    parents = np.full((2, len(ranks)), -1, dtype=np.int64)
    home = -1
    for number, local in enumerate(members):
        begin = leaders[number]
        if root is not None and root in local:
            home, begin = number, root
        chain = np.roll(local, -int(np.flatnonzero(local == begin)[0]))
        parents[:, chain[1:]] = chain[:-1]
    trees = np.delete(np.arange(len(members)), home) if home >= 0 else np.arange(len(members))
    if len(trees):
        for parent, tree in zip(parents, two_trees(len(trees)), strict=True):
            above = leaders[home] if home >= 0 else -1
            parent[leaders[trees]] = np.where(tree >= 0, leaders[trees[tree]], above)
    return parents[0], parents[1]


def levels(parents: list[Ints], ranks: Ints, size: float, *, up: bool) -> Iterator[Stage]:
    """Yield the stages in which one piece per tree goes from the leaves to the root (``up``, adding up) or from the root to the leaves.

    A stage is one level of all trees: every GPU passes the whole piece on before it takes the next. A GPU hands its piece up one stage
    after the last of its children can have handed theirs, counted from the deepest leaf.

    Parameters
    ----------
    parents : list of int[n]
        Of each tree; the piece of tree t has the number t.
    ranks : int[n]
        GPUs.
    size : float
        Bytes of a piece.
    up : bool
        A reduction.
    """
    depths = [_depths(parent) for parent in parents]
    deepest = max((int(depth.max()) for depth in depths), default=0)
    for level in range(deepest, 0, -1) if up else range(1, deepest + 1):
        child = [np.flatnonzero(depth == level) for depth in depths]
        piece = np.repeat(np.arange(len(child)), [len(one) for one in child])
        lower = ranks[np.concatenate(child)]
        upper = ranks[np.concatenate([parent[one] for parent, one in zip(parents, child, strict=True)])]
        source, destination = (lower, upper) if up else (upper, lower)
        yield Stage(source=source, destination=destination, bytes=np.full(len(piece), size), piece=piece, adds=up)


def _depths(parent: Ints) -> Ints:
    """Return int[n], how far each vertex is from its root."""
    depth = np.zeros(len(parent), dtype=np.int64)
    above = parent.copy()
    while (above >= 0).any():
        depth += above >= 0
        above = np.where(above >= 0, parent[above], -1)
    return depth
