"""Limits that several sources or several experts share: those of an expert-parallel group, and those of a GPU.

An expert-parallel group is ``ranks`` consecutive GPUs; rank r of it holds the experts r E / ranks to (r + 1) E / ranks - 1, as the trainers
place them. A rule whose drops depend on that has ``by_rank = True``, and is refused with a placement other than ``contiguous``.
"""

from __future__ import annotations

import numpy as np

from moesim.base.errors import PluginError
from moesim.facts.arrays import Ints
from moesim.facts.routing import LayerRouting
from moesim.facts.scenario import Setting


def experts_per_rank(setting: Setting, who: str) -> int:
    """Return E / ranks.

    Raises
    ------
    PluginError
        If the experts do not divide over the ranks; then nobody can say whose limit an expert counts for.
    """
    experts, ranks = setting.model.experts, setting.parallel.ep
    if experts % ranks:
        fitting = ", ".join(str(ep) for ep in range(1, min(experts, setting.gpus) + 1) if experts % ep == 0 and setting.gpus % ep == 0)
        raise PluginError(
            f"{who} has a limit per rank, but {experts} experts do not divide over parallel.ep = {ranks} ranks; choose ep among {fitting}"
        )
    return experts // ranks


def by_group(counts: Ints, ranks: int) -> Ints:
    """Return int[groups, ranks, E] of int[G, E]: the sources of each expert-parallel group together."""
    return counts.reshape(-1, ranks, counts.shape[1])


def group_maximum(values: Ints, ranks: int) -> Ints:
    """Return int[G], the largest of ``values`` in each source's group of ``ranks`` consecutive GPUs."""
    groups = np.arange(len(values)) // ranks
    largest = np.zeros(int(groups.max(initial=-1)) + 1, dtype=np.int64)
    np.maximum.at(largest, groups, values)
    return largest[groups]


def first_to_arrive(routing: LayerRouting, limit: Ints, ranks: int) -> Ints:
    """Return int[G, E], how many routes each expert takes from each source if lower ranks come first.

    Parameters
    ----------
    routing : LayerRouting
        Its counts.
    limit : int[groups, E]
        Routes that an expert takes from all sources of its group.
    ranks : int
        GPUs of a group.
    """
    asked = by_group(routing.counts, ranks)
    before = np.cumsum(asked, axis=1) - asked
    return np.clip(limit[:, None, :] - before, 0, asked).reshape(routing.counts.shape)


def at_home(rows: Ints, ranks: int) -> Ints:
    """Return int[G, E] of int[groups, E]: rows that an expert's own GPU adds, which therefore never travel."""
    groups, experts = rows.shape
    placed = np.zeros((groups, ranks, experts), dtype=np.int64)
    placed[:, np.arange(experts) * ranks // experts, np.arange(experts)] = rows
    return placed.reshape(groups * ranks, experts)


def round_up(values: Ints, multiple: int) -> Ints:
    """Return ``values``, each rounded up to a multiple."""
    rounded: Ints = -(-values // multiple) * multiple
    return rounded
