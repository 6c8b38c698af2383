"""How a dragonfly is wired between groups, and which routers bytes pass."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from moesim.facts.arrays import Ints
from moesim.models.topology.ecmp import flow_hash


@dataclass(frozen=True, slots=True, kw_only=True)
class DragonflyWiring:
    """What a walk needs to know.

    Parameters
    ----------
    group, home, node : int[G]
        Of each GPU: its group, its router counted inside the group, its node.
    nvswitch : int[G]
        The vertex of each GPU's NVSwitch; not read where a node has one GPU.
    router : int[g, a]
        Vertices.
    ends : int[g, g, t]
        See :func:`global_ends`.
    """

    group: Ints
    home: Ints
    node: Ints
    nvswitch: Ints
    router: Ints
    ends: Ints


def global_ends(groups: int, routers: int, global_links: int) -> Ints:
    """Return which router of a group holds each link to another group.

    Parameters
    ----------
    groups, routers, global_links : int
        g, a routers per group, h links per router to other groups.

    Returns
    -------
    int[g, g, t]
        At [i, j, r]: the router of group i, counted inside it, that holds link r to group j; t = a h // (g - 1) links join every two
        groups. Link r at i is link r at j. The diagonal holds routers, but means nothing.

    Notes
    -----
    Ports of a group are numbered 0 to a h - 1, router by router. In round r, port r (g - 1) + k of group i leads to group i + k + 1, modulo
    g, and there to port r (g - 1) + (g - 2 - k), which by the same rule leads back. This is the *relative* arrangement of
    E. Hastings et al., "Comparing global link arrangements for dragonfly networks", IEEE Cluster 2015. That spare links are dealt
    out evenly over the pairs of groups is from Kim et al., ISCA 2008.

    Examples
    --------
    >>> global_ends(3, 2, 1)[0].ravel().tolist()  # group 0: its router 0 to group 1, its router 1 to group 2
    [0, 0, 1]
    """
    rounds = routers * global_links // (groups - 1) if groups > 1 else 0
    group = np.arange(groups)
    port = (group[None, :] - group[:, None] - 1) % groups
    port[group, group] = 0
    return np.asarray((port[:, :, None] + (groups - 1) * np.arange(rounds)) // global_links)


def walk(wiring: DragonflyWiring, source: int, *, valiant_seed: int | None) -> Ints:
    """Return int[G, W], the vertices that bytes from one GPU pass to each other GPU; -1 is skipped.

    Parameters
    ----------
    wiring : DragonflyWiring
        Of the dragonfly.
    source : int
        The sender.
    valiant_seed : int or None
        If given, routes between groups pass a third one, chosen by :func:`~moesim.models.topology.ecmp.flow_hash`.

    Notes
    -----
    Where t links join two groups, link (source + destination) modulo t carries the bytes of a pair, there and back.
    """
    goal = np.arange(len(wiring.group))
    away = wiring.group != wiring.group[source]
    inside = wiring.node == wiring.node[source]
    group, at = np.full(len(goal), wiring.group[source]), np.full(len(goal), wiring.home[source])
    passed = [np.full(len(goal), source), np.where(inside, wiring.nvswitch[source], wiring.router[group, at])]
    targets = [wiring.group]
    if valiant_seed is not None:
        targets.insert(0, _third(wiring, source, valiant_seed))
    for target in targets:
        if away.any():
            link = (source + goal) % wiring.ends.shape[2]
            out, into = wiring.ends[group, target, link], wiring.ends[target, group, link]
            passed.append(np.where(away & (out != at), wiring.router[group, out], -1))
            passed.append(np.where(away, wiring.router[target, into], -1))
            group, at = np.where(away, target, group), np.where(away, into, at)
    passed.append(np.where(~inside & (at != wiring.home), wiring.router[wiring.group, wiring.home], -1))
    return np.stack([*passed, goal], axis=1)


def _third(wiring: DragonflyWiring, source: int, seed: int) -> Ints:
    """Return int[G], a group that is neither the sender's nor the receiver's; for receivers in the sender's group, any number."""
    groups, own, other = len(wiring.router), wiring.group[source], wiring.group
    draw = flow_hash(np.full(len(other), source), np.arange(len(other)), seed) % (groups - 2)
    # Count up from 0, stepping over the two groups that are taken, the lower one first.
    draw = draw + (draw >= np.minimum(own, other))
    return np.asarray((draw + (draw >= np.maximum(own, other))) % groups)
