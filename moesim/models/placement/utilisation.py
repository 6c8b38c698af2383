"""How evenly a placement would have carried the loads of a window."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from moesim.facts.arrays import Floats, Ints
from moesim.facts.placement import Placement

TINY = 1e-5
"""Added to both loads of the ratio, so that a layer without load counts as even (sgl-project/sglang, ``compute_utilization_rate``)."""


def loads_of_ranks(loads: Ints, placement: Placement, ranks: int) -> Floats:
    """Return float[steps, L, ranks], the load of each rank if each expert's load splits evenly over its replicas.

    Parameters
    ----------
    loads : int[steps, L, E]
        Routes to each logical expert.
    placement : Placement
        Of one group.
    ranks : int
        W.
    """
    layers, experts = loads.shape[1:]
    count = np.zeros((layers, experts))
    layer = np.arange(layers)[:, None]
    np.add.at(count, (layer, placement.expert_of_slot), 1.0)
    # What one unit of each expert's load puts on each rank.
    share = np.zeros((layers, experts, ranks))
    np.add.at(share, (layer, placement.expert_of_slot, placement.rank_of_slot), 1.0 / count[layer, placement.expert_of_slot])
    return np.asarray(np.einsum("sle,ler->slr", loads.astype(np.float64), share, optimize=True))


def relative_gain(loads: Ints, present: Placement, planned: Placement, ranks: int) -> float:
    """Return by how much of itself max / mean of the ranks would fall, loads summed over steps and layers; negative if it would rise.

    Parameters
    ----------
    loads : int[steps, L, E]
        Routes to each logical expert; without any, both are 1.
    present, planned : Placement
        Of one group.
    ranks : int
        W.

    Notes
    -----
    Source: vllm-project/vllm 0.33.0, ``rank_load_imbalance`` in ``EplbState.rearrange`` of ``vllm/distributed/eplb/eplb_state.py``.
    """
    most = []
    for placement in (present, planned):
        of_rank = loads_of_ranks(loads, placement, ranks).sum(axis=(0, 1))
        most.append(float(of_rank.max() / of_rank.mean()) if of_rank.any() else 1.0)
    return (most[0] - most[1]) / most[0]


def mean_utilisation(loads: Ints, placement: Placement, ranks: int, *, without: Sequence[int] = ()) -> float:
    """Return the mean over steps and layers of mean load over largest load of the ranks, 1 if even.

    Parameters
    ----------
    loads : int[steps, L, E]
        Routes to each logical expert.
    placement : Placement
        Of one group.
    ranks : int
        W.
    without : sequence of int
        Ranks that do not count.

    Notes
    -----
    Source: sgl-project/sglang, ``compute_utilization_rate`` of ``python/sglang/srt/eplb/expert_distribution.py``.
    """
    of_rank = np.delete(loads_of_ranks(loads, placement, ranks), list(without), axis=2)
    return float(((of_rank.mean(axis=2) + TINY) / (of_rank.max(axis=2) + TINY)).mean())
