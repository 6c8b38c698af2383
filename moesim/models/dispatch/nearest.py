"""The nearest replica: on the same GPU, else in the same node, else any."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from moesim.base.registry import register
from moesim.facts.arrays import Ints
from moesim.facts.contracts import Bind
from moesim.facts.placement import Placement
from moesim.facts.routing import Assignment, Kept
from moesim.facts.scenario import Setting
from moesim.models.dispatch.replicas import Replicas, Rows, bind_rows, destinations


@register("dispatch", "nearest")
@dataclass(frozen=True, slots=True, kw_only=True)
class Nearest:
    """Send each row to the nearest replicas of its expert: those on its own GPU, else those in its own node, else all; they take turns.

    Spares the network, and balances nothing beyond what the placement does: a node full of tokens loads its own replicas.

    Notes
    -----
    Among m equally near replicas, in the order of their slots, the n-th row (from 0, padding after the routes) from rank g of a group uses
    replica (n + g) mod m, as under ``even``. The planner of LAER-MoE splits likewise (PKU-DAIR/Hetu-Galvatron, branch ``laer-moe``: evenly
    in the source's own node, or else evenly over the others); SGLang's ``static`` takes one replica instead.
    """

    def begin(self, setting: Setting) -> Bind:
        """Return the dispatch for one run."""
        ranks, node_of = setting.parallel.ep, np.asarray(setting.cluster.node_of)

        def bind(kept: Kept, placement: Placement, *, step: int, moe_layer: int) -> Assignment:  # noqa: ARG001 - the contract of the slot
            where = destinations(placement, gpus=setting.gpus, ranks=ranks)

            def choose(rows: Rows, replicas: Replicas) -> Ints:
                number, first, slots = nearest_slots(distances(where, node_of), replicas)
                of = (rows.source, rows.expert)
                found: Ints = slots[first[of] + (rows.turn() + rows.source % ranks) % number[of]]
                return found

            return bind_rows(kept, placement, moe_layer=moe_layer, ranks=ranks, who="dispatch 'nearest'", choose=choose)

        return bind


def distances(where: Ints, node_of: Ints) -> Ints:
    """Return int[G, S]: 0 for a slot on the source's own GPU, 1 for one in its node, 2 for one elsewhere.

    Parameters
    ----------
    where : int[G, S]
        The GPU of each slot, as seen by each source.
    node_of : int[G]
        The node of each GPU.
    """
    gpus = np.arange(len(where))[:, None]
    far: Ints = (where != gpus).astype(np.int64) + (node_of[where] != node_of[gpus])
    return far


def nearest_slots(distance: Ints, replicas: Replicas) -> tuple[Ints, Ints, Ints]:
    """Return the nearest replicas of each expert for each source.

    Returns
    -------
    number : int[G, E]
        How many are equally near.
    first : int[G, E]
        They are ``slots[first : first + number]``.
    slots : int[...]
    """
    by_expert = distance[:, replicas.slots]
    held = np.flatnonzero(replicas.number)
    least = np.minimum.reduceat(by_expert, replicas.first[held], axis=1)
    near = by_expert == np.repeat(least, replicas.number[held], axis=1)
    number = np.zeros((len(distance), len(replicas.number)), dtype=np.int64)
    number[:, held] = np.add.reduceat(near, replicas.first[held], axis=1, dtype=np.int64)
    first = np.cumsum(number.ravel()).reshape(number.shape) - number
    return number, first, replicas.slots[np.nonzero(near)[1]]
