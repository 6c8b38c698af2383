"""In which order rings and trees visit the GPUs of a group."""

from __future__ import annotations

import math

import numpy as np

from moesim.facts.arrays import Ints


def members_by_node(ranks: Ints, node_of: Ints) -> list[Ints]:
    """Return the positions in ``ranks`` of the GPUs of each node, node by node in the order of their numbers.

    Parameters
    ----------
    ranks : int[n]
        GPUs of a group.
    node_of : int[G]
        The node of every GPU of the cluster.
    """
    nodes = np.asarray(node_of)[np.asarray(ranks)]
    return [np.flatnonzero(nodes == node) for node in np.unique(nodes)]


def default_channels(ranks: Ints, node_of: Ints) -> int:
    """Return how many rings use every network card of a group: its GPUs on the node with the fewest; 1 if it has one node only."""
    members = members_by_node(ranks, node_of)
    return min(len(local) for local in members) if len(members) > 1 else 1


def ring_order(ranks: Ints, node_of: Ints, channel: int = 0) -> Ints:
    """Return int[n], the positions in ``ranks`` in the order in which ring ``channel`` visits them.

    A ring goes through one node after another, so it enters and leaves each node once. Channel c enters the first node at its GPU c,
    goes round the node and leaves from GPU c - 1; the next node is entered at GPU c - 1 and walked the other way, and so on. With m equal
    GPUs in every node, channels 0 to m - 1 use each network card once for sending and once for receiving, and neighbours in different
    nodes are on the same rail (with an odd number of nodes, all but the step from the last node to the first). This is how rings of NCCL
    stay on their rail (``NCCL_CROSS_NIC=0``), for GPUs that each have a card of their own.

    Inside a single node there is no card to share: channel c then walks in strides of the c-th number that has no common divisor with the
    number of GPUs, so that on a mesh of direct links each channel uses links of its own while there are any.

    Parameters
    ----------
    ranks : int[n]
        GPUs of the group.
    node_of : int[G]
        The node of every GPU of the cluster.
    channel : int
        Which ring, from 0.
    """
    members = members_by_node(ranks, node_of)
    if len(members) == 1:
        count = len(members[0])
        strides = [stride for stride in range(1, max(count, 2)) if math.gcd(stride, count) == 1]
        return members[0][np.arange(count) * strides[channel % len(strides)] % count]
    walks = []
    for number, local in enumerate(members):
        walk = np.roll(local, -(channel % len(local)))
        walks.append(walk[::-1] if number % 2 else walk)
    return np.concatenate(walks)


def in_order_tree(count: int) -> Ints:
    """Return int[count], the parent of each vertex of a binary tree whose in-order numbers are 0 to count - 1; -1 for its root.

    Counted from 1, a vertex whose lowest set bit is b hangs below ``(v - b) | 2 b`` if there is such a vertex, and below ``v - b``
    otherwise; the largest power of two is the root. So odd vertices are leaves and even ones have children, two at most (Sanders, Speck and
    Träff, "Two-tree algorithms for full bandwidth broadcast, reduction and scan", Parallel Computing 35(12), 2009; NCCL's
    ``ncclGetBtree`` in src/graph/trees.cc is the same tree below an extra root).

    Parameters
    ----------
    count : int
        Vertices, at least 1.

    Examples
    --------
    >>> in_order_tree(5).tolist()
    [1, 3, 1, -1, 3]
    """
    vertex = np.arange(1, count + 1)
    lowest = vertex & -vertex
    wanted = (vertex ^ lowest) | (lowest << 1)
    return np.where(wanted <= count, wanted, vertex ^ lowest) - 1


def two_trees(count: int) -> tuple[Ints, Ints]:
    """Return the parents of both trees of a double binary tree over ``count`` vertices; no vertex has children in both.

    The second tree is the mirror image of the first if ``count`` is even, and otherwise the first moved on by one vertex: either way its
    leaves are the inner vertices of the first (Sanders, Speck and Träff 2009). Half of the bytes go through each tree, so a
    vertex sends and receives no more than all of them, in each direction of a reduction or a broadcast.

    Parameters
    ----------
    count : int
        Vertices, at least 1.

    Returns
    -------
    first, second : int[count]
        The parent of each vertex, -1 for the root of the tree.
    """
    first = in_order_tree(count)
    twin = count - 1 - np.arange(count) if count % 2 == 0 else (np.arange(count) + 1) % count
    second = np.full(count, -1, dtype=np.int64)
    second[twin] = np.where(first >= 0, twin[first], -1)
    return first, second
