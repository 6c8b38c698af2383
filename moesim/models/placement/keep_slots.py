"""Order the slots of a GPU so that what stays on it stays where it is."""

from __future__ import annotations

import numpy as np

from moesim.facts.arrays import Ints


def keep_slots(new: Ints, old: Ints, gpus: int) -> Ints:
    """Reorder each GPU's slots so that an expert which stays on the GPU keeps its slot; newcomers fill the rest in their order.

    Which GPU holds which experts does not change, only their slots: nothing moves inside a GPU without need.

    Parameters
    ----------
    new, old : int[L, S]
        Expert of each slot, planned and present, slots in equal blocks per GPU.
    gpus : int
        A divisor of S.

    Returns
    -------
    int[L, S]

    Notes
    -----
    Source: vllm-project/vllm 0.33.0, ``vllm/distributed/eplb/policy/default.py``, ``preserve_intragpu_slots``.
    """
    layers, slots = new.shape
    here = slots // gpus
    planned = new.reshape(layers * gpus, here)
    present = old.reshape(layers * gpus, here)
    out = np.full_like(planned, -1)
    free = np.ones(planned.shape, dtype=bool)
    for slot in range(here):
        match = (planned == present[:, slot, None]) & free
        row = np.flatnonzero(match.any(axis=1))
        which = match[row].argmax(axis=1)
        out[row, slot] = planned[row, which]
        free[row, which] = False
    # As many slots are open in a row as experts are left over, and both are read row by row.
    out[out < 0] = planned[free]
    return out.reshape(layers, slots)
