"""The tables of the exact sharing core: how they begin, how they grow, and how compiled functions take them."""

from __future__ import annotations

from typing import Any

import numpy as np

from moesim.facts.arrays import Floats
from moesim.models.sharing import bottleneck_groups as kernel
from moesim.models.sharing.bottleneck_groups import State

FLOW = 128
"""Bytes that are kept of a flow; the first 64 hold all that its start, its moves and its end need while all weights are 1."""
PAIR = 18
"""Bytes that are kept of a pair of links."""


def blank(capacity: Floats, hops: int, carried: Floats) -> State:
    """Return tables without flows.

    Parameters
    ----------
    capacity : float[K]
        Of each link, in B/s.
    hops : int
        Links on the longest route.
    carried : float[pairs]
        Where bytes are counted by pair.
    """
    links = len(capacity)
    tables = State(
        route=np.full((0, hops), -1, dtype=np.int32),
        flow_whole=np.zeros((0, FLOW // 4), dtype=np.int32),
        group_of=np.zeros(0, dtype=np.int32),
        flow_real=np.zeros((0, FLOW // 8)),
        link_whole=np.zeros((2 * links + 1, 16), dtype=np.int32),
        link_real=np.zeros((2 * links + 1, 8)),
        fixed=np.zeros((4, 2 * links)),
        open=np.zeros((links, 4)),
        **_pairs_of_links(links),
        shared_weight=np.zeros((1, 1)),
        listed=np.zeros(0, dtype=np.int32),
        members=np.zeros(links, dtype=np.int32),
        candidates=np.zeros(2 * links, dtype=np.int32),
        part_whole=np.zeros((kernel.OLD + kernel.PART_ROWS, links + 1), dtype=np.int64),
        part_real=np.zeros((kernel.OLD_TIMES + kernel.PART_TIMES, links + 1)),
        capped=np.zeros(0, dtype=np.int32),
        carried=carried,
        key=np.zeros(links),
        entry=np.zeros(links, dtype=np.int32),
        start_key=np.zeros(0),
        start_entry=np.zeros(0, dtype=np.int32),
        joined=np.zeros(links + 1, dtype=np.int32),
        counts=np.zeros(5, dtype=np.int64),
    )
    tables.link_whole[:, kernel.HEAP] = -1
    tables.link_whole[:, kernel.COMPONENT] = -1
    tables.link_real[:links, kernel.CAPACITY] = capacity
    return tables


def grown(tables: State, room: int) -> State:
    """Return tables with room for so many flows, and in them what the old ones hold."""
    had, hops = tables.route.shape
    more = room - had
    # What is needed together stands together, at a multiple of 64 B, as processors fetch it.
    raw = np.zeros(FLOW * room + 64, dtype=np.uint8)
    first = -raw.ctypes.data % 64
    both = raw[first : first + FLOW * room].reshape(room, FLOW)
    both[:had] = tables.flow_whole.view(np.uint8)
    return tables._replace(
        route=np.concatenate([tables.route, np.full((more, hops), -1, dtype=np.int32)]),
        flow_whole=both.view(np.int32),
        group_of=np.concatenate([tables.group_of, np.full(more, kernel.ENDED, dtype=np.int32)]),
        flow_real=both.view(np.float64),
        entry=np.zeros(max(room, len(tables.open)), dtype=np.int32),
        start_key=np.concatenate([tables.start_key, np.zeros(more)]),
        start_entry=np.concatenate([tables.start_entry, np.zeros(more, dtype=np.int32)]),
    )


def given(tables: State, names: tuple[str, ...]) -> tuple[Any, ...]:
    """Return arrays by name, as a compiled function takes them."""
    return tuple(getattr(tables, name).reshape(-1) if name in kernel.FLAT else getattr(tables, name) for name in names)


def _pairs_of_links(links: int) -> dict[str, Any]:
    """Return what is known of pairs of links, in one piece of memory: a large one stands in large pages, which are quicker to find."""
    many, shape = links * links, (links, links)
    raw = np.zeros(PAIR * many, dtype=np.uint8)
    return {
        "before": raw[: 8 * many].view(np.float64).reshape(shape),
        "neighbours": raw[8 * many : 12 * many].view(np.int32).reshape(shape),
        "shared": raw[12 * many : 16 * many].view(np.int32).reshape(shape),
        "crossing": raw[16 * many :].view(np.uint16).reshape(shape),
    }
