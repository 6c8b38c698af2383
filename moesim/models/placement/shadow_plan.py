"""FasterMoE's shadowing: which experts to send to everybody instead of sending everybody's tokens to them."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from moesim.facts.arrays import Bools


def plan_shadows(rows: ArrayLike, *, compute: float, row_transfer: float, weight_transfer: float) -> tuple[Bools, float]:
    """Choose the experts to shadow, the most loaded first, as long as the predicted latency falls.

    With the i most loaded experts shadowed and B rows for the next, the prediction is ``3 compute B + 4 row_transfer B +
    i weight_transfer``: one forward and two backward computations, dispatch and combine both ways, and the weights. The least loaded
    expert is never shadowed.

    Parameters
    ----------
    rows : int[E]
        Rows of each expert, over all sources.
    compute, row_transfer, weight_transfer : float
        Seconds for one row in one expert (forward), for one row over the network, and for one expert's weights.

    Returns
    -------
    shadowed : bool[E]
    latency : float
        The prediction, in s.

    Notes
    -----
    Source: He et al., "FasterMoE", PPoPP 2022, section 4.1; laekov/fastmoe at ee3c561, ``fmoe/fastermoe/shadow_policy.py``,
    ``global_policy``. That function adds the counts of an expert-by-rank table along the wrong axis and so ranks ranks, not experts; this
    is what the paper describes.
    """
    loads = np.asarray(rows, dtype=np.float64)
    order = np.argsort(-loads, kind="stable")
    per_row = 3.0 * compute + 4.0 * row_transfer
    latency = per_row * loads[order] + weight_transfer * np.arange(len(loads))
    falls = np.diff(latency) < 0
    number = len(falls) if falls.all() else int(np.argmin(falls))
    shadowed = np.zeros(len(loads), dtype=bool)
    shadowed[order[:number]] = True
    return shadowed, float(latency[number])
