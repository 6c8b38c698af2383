"""Which GPU forwards: GPUs of the same local index in different nodes, and rows that take a way through a third GPU."""

from __future__ import annotations

import numpy as np

from moesim.base.errors import PluginError
from moesim.facts.arrays import Ints
from moesim.facts.scenario import Setting
from moesim.models.exchange.copies import without_own
from moesim.models.exchange.transport import Stage


def same_index_on_node_of(setting: Setting, who: str) -> Ints:
    """Return int[G / R, R, R]: of each source and destination, the rank with the local index of the source on the node of the destination.

    Ranks are those of an expert-parallel group, counted from 0; local indices count them on one node, in the order of the GPUs.

    Parameters
    ----------
    setting : Setting
        For the nodes and the groups.
    who : str
        On whose behalf to refuse.

    Raises
    ------
    PluginError
        If the ranks of a group are spread unevenly over nodes: some local index has then no counterpart.
    """
    node_of, ranks = setting.cluster.node_of, setting.parallel.ep
    via = np.empty((setting.groups, ranks, ranks), dtype=np.int64)
    for group in range(setting.groups):
        first = group * ranks
        nodes, column, share = np.unique(node_of[first : first + ranks], return_inverse=True, return_counts=True)
        if len(set(share.tolist())) > 1:
            spread = ", ".join(f"{count} on node {node}" for node, count in zip(nodes.tolist(), share.tolist(), strict=True))
            raise PluginError(
                f"{who} forwards between GPUs of the same local index, but the ranks of expert-parallel group {group} are spread "
                f"unevenly over nodes ({spread}): choose parallel.ep so that every node gives a group as many GPUs, or exchange: direct"
            )
        members = np.argsort(column.reshape(-1), kind="stable").reshape(len(nodes), -1)  # by node, then by local index
        local = np.empty(ranks, dtype=np.int64)
        local[members.ravel()] = np.tile(np.arange(members.shape[1]), len(nodes))
        via[group] = members[column.reshape(-1)[None, :], local[:, None]]
    return via


def through(rows: Ints, via: Ints) -> tuple[Ints, Ints]:
    """Split rows that go through a forwarding GPU into two legs.

    Parameters
    ----------
    rows : int[G / R, R, R]
        From source to destination of each group.
    via : int[G / R, R, R]
        The forwarding rank of each pair; the source or the destination itself where there is nothing to forward.

    Returns
    -------
    tuple of int[G / R, R, R]
        The rows from sources to forwarders, and from forwarders to destinations; what is there already is not sent.
    """
    first, second = np.zeros_like(rows), np.zeros_like(rows)
    group, source, destination = np.indices(via.shape)
    np.add.at(first, (group, source, via), rows)
    np.add.at(second, (group, via, destination), rows)
    return without_own(first), without_own(second)


def used(*, across: Stage, within: Stage, setting: Setting) -> tuple[Stage, ...]:
    """Return the legs that the cluster has: none across nodes in a group of one node, none within nodes of one rank each."""
    ranks = setting.parallel.ep
    nodes_of_groups = [len(set(group.tolist())) for group in setting.cluster.node_of.reshape(-1, ranks)]
    several_nodes = max(nodes_of_groups) > 1
    several_ranks = min(nodes_of_groups) < ranks
    return (across,) * several_nodes + (within,) * (several_ranks or not several_nodes)
