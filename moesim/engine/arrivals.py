"""Rows are computed where they arrived: what a capacity rule drops on arrival leaves the others in the slots that they were sent to."""

from __future__ import annotations

import dataclasses

import numpy as np

from moesim.facts.arrays import Ints
from moesim.facts.routing import Assignment


def where_it_arrived(bound: Assignment, travelling: Assignment, expert_of_slot: Ints) -> Assignment:
    """Return what is computed, bound to the slots to which it travelled.

    A dispatch that is asked about the kept routes alone may choose other replicas than for all that were sent: ``lp`` levels other loads.

    Parameters
    ----------
    bound : Assignment
        Of the kept routes, as the dispatch binds them by themselves; its padding stays where it is.
    travelling : Assignment
        Of all routes that were sent; no expert has fewer of any source.
    expert_of_slot : int[S]
        Of the layer.

    Returns
    -------
    Assignment
        The same as ``bound`` where every expert has one slot.
    """
    if len(np.unique(expert_of_slot)) == len(expert_of_slot):
        return bound
    ids = bound.kept.routing.ids
    if ids is not None and travelling.slots is not None:
        slots = np.where(ids >= 0, travelling.slots, -1).astype(np.int32)
        source = np.broadcast_to(bound.kept.routing.source_of_token()[:, None], slots.shape)
        counts = np.zeros_like(bound.slot_counts)
        np.add.at(counts, (source[slots >= 0], slots[slots >= 0]), 1)
        return dataclasses.replace(bound, slots=slots, slot_counts=counts)
    # Of counts it is not known which rows of an expert were dropped: as many as can stay where the dispatch put them.
    counts = np.minimum(bound.slot_counts, travelling.slot_counts)
    room = travelling.slot_counts - counts
    for gpu, expert in np.argwhere(_by_expert(bound.slot_counts - counts, expert_of_slot)).tolist():
        mine = np.flatnonzero(expert_of_slot == expert)
        missing = int((bound.slot_counts[gpu, mine] - counts[gpu, mine]).sum())
        before = np.concatenate([[0], np.cumsum(room[gpu, mine])[:-1]])
        counts[gpu, mine] += np.clip(missing - before, 0, room[gpu, mine])
    return dataclasses.replace(bound, slot_counts=counts)


def _by_expert(rows: Ints, expert_of_slot: Ints) -> Ints:
    """Return int[G, E], int[G, S] rows of each source summed over the slots of each expert."""
    found = np.zeros((len(rows), int(expert_of_slot.max(initial=-1)) + 1), dtype=np.int64)
    np.add.at(found.T, expert_of_slot, rows.T)
    return found
