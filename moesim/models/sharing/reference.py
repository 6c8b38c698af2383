r"""Max-min fair rates and the fluid model in plain NumPy: the oracle that faster solvers are held against.

Flows :math:`f` cross links :math:`l` of capacity :math:`C_l`. An allocation :math:`x` is feasible if on every link
:math:`\sum_{f \ni l} x_f \le C_l`, and no flow exceeds its own cap. It is *max-min fair* with weights :math:`w` if no
:math:`x_f / w_f` can grow without shrinking some :math:`x_g / w_g \le x_f / w_f`; there is exactly one such allocation.
Progressive filling finds it: one level :math:`\lambda` rises from 0 and every flow runs at :math:`w_f \lambda` until one of its
links is full or its cap is reached; there it stays.

Source: D. Bertsekas, R. Gallager, *Data Networks*, 2nd ed., 1992, section 6.5.2; SimGrid solves the same system in
``src/kernel/lmm/maxmin.cpp``.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from moesim.base.errors import UsageError
from moesim.facts.arrays import Bools, Floats, Ints


def fair_rates(
    capacity: ArrayLike, route_start: ArrayLike, route_link: ArrayLike, weight: ArrayLike | None = None, cap: ArrayLike | None = None
) -> Floats:
    r"""Return the weighted max-min fair rate of every flow.

    Parameters
    ----------
    capacity : float[K]
        Of each link, in B/s; more than 0.
    route_start : int[F + 1]
    route_link : int[...]
        Flow f crosses ``route_link[route_start[f] : route_start[f + 1]]``. A link that appears twice is loaded twice.
    weight : float[F] or None
        Share of a flow relative to others; more than 0. None for 1.
    cap : float[F] or None
        The most a flow can use, in B/s; more than 0, may be infinite. None for no caps.

    Returns
    -------
    float[F]
        In B/s; infinite for a flow that crosses no link and has no cap.

    Raises
    ------
    UsageError
        If a number is out of range or arrays do not fit; the message names the index and the value.

    Notes
    -----
    In each round a link with free capacity :math:`r_l` and growing flows of weight :math:`W_l` would fill up at level
    :math:`r_l / W_l`, a capped flow stops at :math:`c_f / w_f`; the lowest of these is the next level, and the flows that stop there are
    settled. Free capacities are summed anew in every round, so errors do not pile up, and a level never falls below the one before it,
    as arithmetic without rounding would have it.
    """
    capacities, start, links = check_system(capacity, route_start, route_link)
    flows = len(start) - 1
    weights = np.ones(flows) if weight is None else _positive("weight", weight, flows, "flow")
    caps = np.full(flows, np.inf) if cap is None else _positive("cap", cap, flows, "flow", infinite=True)
    flow_of_hop = np.repeat(np.arange(flows), np.diff(start))
    rates = caps.copy()
    growing: Bools = np.diff(start) > 0
    rates[growing] = 0.0
    level = 0.0
    while growing.any():
        load = np.bincount(links, weights=rates[flow_of_hop], minlength=len(capacities))
        growth = np.bincount(links, weights=(weights * growing)[flow_of_hop], minlength=len(capacities))
        fills_at = np.full(len(capacities), np.inf)
        np.divide(capacities - load, growth, out=fills_at, where=growth > 0)
        stops_at = np.where(growing, caps / weights, np.inf)
        level = max(level, min(fills_at.min(), stops_at.min()))
        settled = stops_at <= level
        settled[flow_of_hop[(fills_at <= level)[links]]] = True
        settled &= growing
        rates[settled] = np.minimum(weights[settled] * level, caps[settled])
        growing &= ~settled
    return rates


def drain(
    capacity: ArrayLike,
    route_start: ArrayLike,
    route_link: ArrayLike,
    bytes: ArrayLike,  # noqa: A002 - the word of Traffic
    start: ArrayLike,
    weight: ArrayLike | None = None,
    cap: ArrayLike | None = None,
) -> Floats:
    """Return when each flow has carried its last byte, in the fluid model with max-min fair sharing.

    Parameters
    ----------
    capacity, route_start, route_link
        As for :func:`fair_rates`.
    bytes : float[F]
        To carry; at least 0.
    start : float[F]
        When each flow starts, in s.
    weight, cap : float[F] or None
        As for :func:`fair_rates`.

    Returns
    -------
    float[F]
        End times in s. A flow without bytes or without links ends when it starts.

    Raises
    ------
    UsageError
        As for :func:`fair_rates`.

    Notes
    -----
    Rates are constant between two events (a start or an end), so advancing from event to event is exact up to rounding. There are at
    most 2 F events and each solves for all rates: use it for small systems.
    """
    capacities, routes, links = check_system(capacity, route_start, route_link)
    flows = len(routes) - 1
    left = _at_least_zero("bytes", bytes, flows).copy()
    begins = _finite("start", start, flows)
    weights = np.ones(flows) if weight is None else np.asarray(weight, dtype=np.float64)
    caps = np.full(flows, np.inf) if cap is None else np.asarray(cap, dtype=np.float64)
    ends = begins.copy()
    waiting: Bools = (left > 0) & (np.diff(routes) > 0)
    active: Bools = np.zeros(flows, dtype=np.bool_)
    now = float(begins[waiting].min()) if waiting.any() else 0.0
    while waiting.any() or active.any():
        arrived = waiting & (begins <= now)
        active |= arrived
        waiting &= ~arrived
        index = np.flatnonzero(active)
        rates = fair_rates(capacities, *_part(routes, links, index), weights[index], caps[index])
        finish = now + left[index] / rates
        arrival = float(begins[waiting].min()) if waiting.any() else np.inf
        following = min(arrival, float(finish.min(initial=np.inf)))
        left[index] = np.maximum(left[index] - rates * (following - now), 0.0)
        done = index[finish <= following]
        ends[done] = following
        active[done] = False
        now = following
    return ends


def check_system(capacity: ArrayLike, route_start: ArrayLike, route_link: ArrayLike) -> tuple[Floats, Ints, Ints]:
    """Return links and routes as arrays, or say what is wrong with them.

    Raises
    ------
    UsageError
        If a capacity is not a positive finite number, a route leaves the links, or the starts of routes do not fit.
    """
    capacities = np.asarray(capacity, dtype=np.float64)
    capacities = _positive("capacity", capacities, capacities.size, "link")
    start = _whole("route_start", route_start)
    links = _whole("route_link", route_link)
    if not start.size or start[0] != 0 or start[-1] != len(links):
        ends = f"{start[0]} … {start[-1]}" if start.size else "nothing"
        raise UsageError(f"route_start must run from 0 to the {len(links)} entries of route_link, but it holds {ends}")
    falling = np.flatnonzero(np.diff(start) < 0)
    if falling.size:
        flow = int(falling[0])
        raise UsageError(f"route_start falls from {start[flow]} to {start[flow + 1]} at flow {flow}: routes follow each other")
    outside = np.flatnonzero((links < 0) | (links >= len(capacities)))
    if outside.size:
        hop = int(outside[0])
        flow = int(np.searchsorted(start, hop, side="right")) - 1
        raise UsageError(f"route_link[{hop}] of flow {flow} is link {links[hop]}, but there are {len(capacities)} links, counted from 0")
    return capacities, start, links


def _part(start: Ints, links: Ints, flows: Ints) -> tuple[Ints, Ints]:
    """Return the routes of some of the flows, in their order."""
    lengths = np.diff(start)[flows]
    part = np.concatenate(([0], np.cumsum(lengths)))
    hop = np.repeat(start[flows] - part[:-1], lengths) + np.arange(part[-1])
    return part, links[hop]


def _whole(name: str, values: ArrayLike) -> Ints:
    array = np.asarray(values)
    if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
        raise UsageError(f"{name} must be one row of whole numbers, but it has shape {array.shape} and type {array.dtype}")
    return array.astype(np.int64)


def _row(name: str, values: ArrayLike, length: int) -> Floats:
    array: NDArray[np.float64] = np.asarray(values, dtype=np.float64)
    if array.shape != (length,):
        raise UsageError(f"{name} has shape {array.shape}, expected ({length},)")
    return array


def _refuse(name: str, array: Floats, bad: Bools, rule: str) -> None:
    if bad.any():
        index = int(np.argmax(bad))
        raise UsageError(f"{name}[{index}] is {array[index]:g}: {rule}")


def _positive(name: str, values: ArrayLike, length: int, of: str, *, infinite: bool = False) -> Floats:
    array = _row(name, values, length)
    allowed = array > 0 if infinite else (array > 0) & np.isfinite(array)
    _refuse(name, array, ~allowed, f"the {name} of a {of} must be more than 0{'' if infinite else ' and finite'}")
    return array


def _at_least_zero(name: str, values: ArrayLike, length: int) -> Floats:
    array = _row(name, values, length)
    _refuse(name, array, ~((array >= 0) & np.isfinite(array)), "it must be a finite number, at least 0")
    return array


def _finite(name: str, values: ArrayLike, length: int) -> Floats:
    array = _row(name, values, length)
    _refuse(name, array, ~np.isfinite(array), "it must be a finite number")
    return array
