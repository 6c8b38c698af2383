"""Fewer routes, spread as before: what a capacity rule leaves, if it took the same share from everybody."""

from __future__ import annotations

import numpy as np

from moesim.facts.routing import LayerRouting


def thinned(routing: LayerRouting, share: float) -> LayerRouting:
    """Keep a share of the routes from every source to every expert, evenly spaced over the tokens.

    Parameters
    ----------
    routing : LayerRouting
        With ids.
    share : float
        From 0 to 1.

    Returns
    -------
    LayerRouting
        The same tokens; id -1 (and weight 0) where a route was taken away. Of the c routes from a source to an expert,
        ``floor(c * share + 1/2)`` stay.
    """
    ids = routing.need_ids("a balanced step with dropped routes")
    if share >= 1:
        return routing
    place = (routing.source_of_token()[:, None] * routing.experts + ids.astype(np.int64)).ravel()
    order = np.argsort(place, kind="stable")
    count = np.bincount(place, minlength=routing.gpus * routing.experts)
    rank = np.empty(len(place), dtype=np.int64)
    rank[order] = np.arange(len(place)) - np.repeat(np.cumsum(count) - count, count)
    stay = np.floor(count * share + 0.5).astype(np.int64)[place]
    of = count[place]
    # The r-th of c stays if counting in steps of stay / c passes a whole number there: evenly spaced, and exactly `stay` of them.
    kept = ((rank + 1) * stay // of > rank * stay // of).reshape(ids.shape)
    weights = None if routing.weights is None else np.where(kept, routing.weights, 0)
    signed = np.where(kept, ids.astype(np.int64), -1)
    return LayerRouting.of_tokens(signed, routing.token_start, routing.experts, weights=weights)
