"""The fluid model in full, step by step: flows that start when they like, weights, caps, and links that change.

Plain on purpose: every step asks the NumPy solver for all rates. It is the yardstick for cores that do the same faster.
"""

import numpy as np

from moesim.models.sharing.reference import fair_rates


def fluid(capacity, routes, size, start, *, weight=None, cap=None, changes=()):
    """Return float[F], when each flow ends. ``changes`` are (time, link, bandwidth) in order of time."""
    capacity = np.array(capacity, dtype=np.float64)
    begin, link = routes
    count = len(size)
    weight = np.ones(count) if weight is None else weight
    cap = np.full(count, np.inf) if cap is None else cap
    left, ends = np.array(size, dtype=np.float64), np.full(count, np.nan)
    changes = list(changes)
    now = min(start, default=0.0)
    while np.isnan(ends).any():
        while changes and changes[0][0] <= now:
            _, which, value = changes.pop(0)
            capacity[which] = value
        flying = [flow for flow in range(count) if start[flow] <= now and np.isnan(ends[flow])]
        part = [link[begin[flow] : begin[flow + 1]] for flow in flying]
        part_begin = np.cumsum([0, *[len(links) for links in part]])
        part_link = np.concatenate([*part, np.empty(0, dtype=np.int64)])
        rates = fair_rates(capacity, part_begin, part_link, weight[flying], cap[flying])
        finish = now + left[flying] / rates
        known = [begins for begins in start if begins > now] + [time for time, _, _ in changes]
        following = min([*known, *finish])
        left[flying] -= rates * (following - now)
        ends[[flow for flow, end in zip(flying, finish, strict=True) if end <= following]] = following
        now = following
    return ends


def through_core(core, route, size, start, *, weight=None, cap=None, changes=(), stops=(), pair=None):
    """Return float[F], when a core lets each flow end; it is asked to stop at ``stops`` too, which must change nothing.

    Every flow has a counter of its own, and shares one with all the others.
    """
    flows = len(size)
    pair = np.arange(flows) if pair is None else pair
    watch = np.stack([np.arange(flows), np.full(flows, flows)], axis=1).astype(np.int32)
    pending = np.concatenate([np.ones(flows, dtype=np.int64), [flows + 1]])
    woken, ends = np.empty(flows + 1, dtype=np.int64), np.full(flows, np.nan)
    now = 0.0
    for moment in sorted({*start, *stops, *[time for time, _, _ in changes], np.inf}):
        while now < moment and (core.live or np.isfinite(moment)):
            now, woke = core.advance(moment, pending, woken)
            ends[woken[:woke]] = now
        for time, link, value in changes:
            if time == moment:
                core.change_capacity(moment, np.array([link]), np.array([value]))
        new = np.flatnonzero(np.asarray(start) == moment)
        if len(new):
            weights, caps = (None if column is None else column[new] for column in (weight, cap))
            core.join(moment, route[new], pair[new], size[new], weights, caps, watch[new], pending)
    core.catch_up(now)
    return ends


def padded(routes, hops):
    """Routes as the cores take them: int32[F, hops], padded with -1."""
    begin, link = routes
    table = np.full((len(begin) - 1, hops), -1, dtype=np.int32)
    for flow in range(len(table)):
        table[flow, : begin[flow + 1] - begin[flow]] = link[begin[flow] : begin[flow + 1]]
    return table
