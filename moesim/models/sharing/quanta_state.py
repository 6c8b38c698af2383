"""What the core of :mod:`moesim.models.sharing.quanta` knows about flows, links and parts, as arrays that compiled code shares."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from moesim.facts.arrays import Floats, Ints
from moesim.models.sharing.compiled import at, lean

# Columns of State.amount: bytes asked for; bytes still to carry, with what its group has been given if it is a member of one; and when the
# flow ends, in s since its quantum began.
ASKED, LEFT, END = range(3)
# Columns of State.number, another view of the same memory: the flow that ends next in the same part, the pair that is counted, counters.
NEXT, PAIR, SOURCE, DESTINATION = range(6, 10)
# Columns of State.tide, what a filling changes all the time: B/s in use, weight and number of flows still rising; capacity. After a filling
# RISING is the seconds that a byte for each weight takes, and RISERS the bytes of flows that have ended.
USED, RISING, RISERS, CAPACITY = range(4)
# Columns of State.link: totals; bytes to carry and weight of its flows; bytes of flows that ended in this quantum; rate and weight of flows
# that this link limits, and their level (B/s for weight 1); service given to each weight, until when; what they have; a sum for many uses;
# what each member of its group was given, up to where this has been looked ahead; weight of flows that end and have not yet.
THROUGH, BUSY, LOAD, WEIGHT, GONE, OWN, OWN_WEIGHT, LEVEL, SERVICE, UNTIL, FREE, SUM, GIVEN, EDGE, REST = range(15)
# Columns of State.place: flows on a link, its part (-1: none), the next link of the same part; flows of its group, how many flows at the
# head of its list are or were of its group, how many other links the group crosses, how many flows of the head may end soon, and the row of
# the group in the tables of counts (-1: none).
FLOWS, PART, FOLLOWING, MEMBERS, HEAD_LENGTH, NEAR, SOON, ROW = range(8)
# Columns of State.span: when the quantum of a part began, how long it lasts, when something happens next, when flows joined last,
# when they joined first.
BEGAN, LASTS, THEN, JOINED, BORN = range(5)
# Columns of State.part: first link; flows; first flow to end; the mark of a settled flow; 1 if rates must be found anew; 1 if rates
# change within this quantum; flows when it was last seen whether the part has fallen apart.
HEAD, MANY, FIRST, MARK, STALE, ENDING, CHECKED = range(7)
# Columns of State.list: where in State.pool a list starts, how long it is, how long it may grow.
START, LENGTH, ROOM = range(3)
# A flow that is no longer on its way has this mark; others have 1 or 2.
ENDED = 0


class State(NamedTuple):
    """K links and one that stands for no link; at most one part a link, named after one of its links."""

    route: NDArray[Any]  # int16 or int32[F, H + 2]: links that may be full, then -2 - link for those that cannot, then -1; limit; mark
    amount: Floats  # [F, 5]
    number: NDArray[np.int32]  # [F, 10]
    weight: Floats  # [F], or empty: all 1
    cap: Floats  # [F], or empty: none
    tide: Floats  # [K + 1, 4]
    link: Floats  # [K + 1, 15]
    place: Ints  # [K + 1, 8]
    span: Floats  # [K + 1, 5]
    part: Ints  # [K + 1, 7]
    list: Ints  # [2 K + 2, 3], the flows on each link, then the flows of each part
    pool: NDArray[np.int32]
    active: Ints  # [K + 2], how many parts there are, then which
    key: Floats  # [K + 1], heap of levels
    heap: Ints  # [K + 1], links of the heap
    carried: Floats  # [pairs]
    crossing: NDArray[Any]  # int16 or int32[R, K + 1], or empty: 1 more than the place of a link among those that a group crosses, or 0
    near: NDArray[Any]  # int16 or int32[R, K + 1], or empty: the links that a group crosses
    shared: NDArray[np.int32]  # [R, K + 1], or empty: how many flows of the group cross each of these
    rows: Ints  # [R + 1]: how many of these rows are free, then which; or empty: row k is that of link k


@lean
def rate_of(link: Floats, weight: Floats, cap: Floats, f: int, limit: int) -> float:
    """Return the rate of a flow that link ``limit`` limits and that goes on after its quantum."""
    level = float(link[limit, LEVEL])
    if weight.size:
        level *= weight[f]
    return min(float(cap[f]), level) if cap.size else level


@lean
def enlist(s: State, which: int, flow: int) -> None:
    """Append to a list that has room."""
    s.pool[at(s.list[at(which), START] + s.list[at(which), LENGTH])] = flow
    s.list[at(which), LENGTH] += 1
