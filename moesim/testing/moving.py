"""Checks of the slots that decide which bytes move and over which links: exchange, topology."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import networkx as nx
import numpy as np

from moesim.base.errors import ContractBroken
from moesim.facts.arrays import Bools
from moesim.facts.cluster import Cluster
from moesim.facts.evidence import STRENGTH
from moesim.facts.program import BACKWARD, FORWARD
from moesim.facts.routing import Assignment, Kept, LayerRouting
from moesim.facts.scenario import Setting
from moesim.facts.traffic import Exchange, Traffic
from moesim.testing.rules import Trials, demand, name_of, same, seconds, whole_numbers
from moesim.testing.world import tiny_assignment, tiny_kept, tiny_placements, tiny_routings, tiny_settings


def check_exchange(exchange: Any, *, settings: Sequence[Setting] | None = None) -> None:
    """Check an exchange.

    Bytes are finite, at least 0, never from a GPU to itself and never to another group (so none with ``ep: 1``, L15); every token can reach
    the GPUs of its experts through the stages of the dispatch, and the way back through those of the combine (L1); backward, the
    gradients go the opposite ways with the same number of copies and of padding rows (L2); no tokens, no bytes. Copies are of tokens:
    padding rows are counted on their own, and there are none where the capacity rule added none and set no capacity.

    Parameters
    ----------
    exchange : object
        An instance of an exchange.
    settings : sequence of Setting or None
        Where to try it; small ones by default.

    Raises
    ------
    ContractBroken
        Naming the rule or law and the numbers.
    """
    who = name_of("exchange", exchange)
    trials = Trials(who)
    for setting in settings or tiny_settings():
        for assignment in _assignments(setting):
            both = trials.ask(_both_ways, exchange, setting, assignment)
            if both is None:
                continue
            for direction, answer in both.items():
                _check_stages(f"{who}, {direction}", answer, setting)
                _check_arrival(f"{who}, {direction}", answer, assignment, direction)
                _check_counts(f"{who}, {direction}", answer, assignment)
            _check_opposite(who, both)
            again = _both_ways(exchange, setting, assignment)
            demand(same(list(both.values()), list(again.values())), "law L8", f"{who}: two fresh runs send different bytes")
            if not assignment.rows_at().any():
                total = _total(both[FORWARD].dispatch) + _total(both[FORWARD].combine)
                demand(total == 0, "law L2", f"{who}: sends {total:g} B for a layer without tokens")
    trials.finish()


def check_topology(topology: Any, *, symmetric: bool = True) -> None:
    """Check a topology.

    The graph's GPUs are ``gpu:0`` to ``gpu:<G-1>`` and its edges are the links of the arrays; every pair of GPUs has a route, which is
    connected in the graph from the one to the other and uses no link twice; bandwidths are above 0, latencies at least 0.

    Parameters
    ----------
    topology : object
        An instance of a topology.
    symmetric : bool
        Also check that the way back is as long, as wide and as slow as the way there.

    Raises
    ------
    ContractBroken
        Naming the rule and the numbers.
    """
    who = name_of("topology", topology)
    cluster, graph = topology.build(), topology.graph()
    demand(isinstance(cluster, Cluster), "type", f"{who}: build() returned {type(cluster).__name__}, expected Cluster")
    demand(isinstance(graph, nx.DiGraph), "type", f"{who}: graph() returned {type(graph).__name__}, expected a networkx.DiGraph")
    _check_arrays(who, cluster)
    ends = _check_graph(who, cluster, graph)
    for source in range(cluster.gpus):
        for destination in range(cluster.gpus):
            _check_route(who, cluster, ends, source, destination)
            if symmetric and source < destination:
                there, back = (_character(cluster, *pair) for pair in ((source, destination), (destination, source)))
                text = f"{who}: links, bandwidth and latency are {there} from GPU {source} to {destination} and {back} back"
                demand(there == back, "symmetry", text)
    demand(same(cluster, topology.build()), "law L8", f"{who}: building it again gives another cluster")


def _assignments(setting: Setting) -> Iterator[Assignment]:
    for placement in tiny_placements(setting):
        for routing in tiny_routings(setting):
            without = np.zeros_like(routing.counts)
            most = routing.counts.max(axis=1, initial=0)
            for kept in (
                Kept(routing=routing, dropped=without, padding=without),
                tiny_kept(routing),
                Kept(routing=routing, dropped=without, padding=without, capacity=most),
                Kept(routing=routing, dropped=without, padding=most[:, None] - routing.counts, capacity=most),
            ):
                yield tiny_assignment(kept, placement, setting)
        k = setting.model.top_k
        shape = (setting.gpus, setting.model.experts)
        nothing = LayerRouting.of_tokens(np.zeros((0, k), np.int32), np.zeros(setting.gpus + 1), shape[1], weights=np.zeros((0, k)))
        none = np.zeros(shape, dtype=np.int64)
        kept = Kept(routing=nothing, dropped=none, padding=none, capacity=none[:, 0])
        yield tiny_assignment(kept, placement, setting)


def _both_ways(exchange: Any, setting: Setting, assignment: Assignment) -> dict[str, Exchange]:
    carry = exchange.begin(setting)
    return {direction: carry(assignment, direction=direction) for direction in (FORWARD, BACKWARD)}


def _total(stages: tuple[Traffic, ...]) -> float:
    return math.fsum(float(stage.bytes.sum()) for stage in stages)


def _check_stages(where: str, answer: Exchange, setting: Setting) -> None:
    demand(isinstance(answer, Exchange), "type", f"{where}: returned {type(answer).__name__}, expected Exchange")
    gpus = setting.gpus
    group = np.arange(gpus) // setting.parallel.ep
    demand(math.isfinite(answer.launch) and answer.launch >= 0, "range", f"{where}: launch is {answer.launch} s, expected at least 0")
    for phase in ("dispatch", "combine"):
        stages = getattr(answer, phase)
        demand(isinstance(stages, tuple), "type", f"{where}: {phase} is {type(stages).__name__}, expected a tuple of stages")
        for number, stage in enumerate(stages):
            here = f"{where}: stage {number} of {phase}"
            seconds(here, "bytes", stage.bytes, (gpus, gpus))
            whole_numbers(here, "copies", stage.copies, (gpus, gpus))
            whole_numbers(here, "padding", stage.padding, (gpus, gpus))
            kept_home = np.flatnonzero(np.diagonal(stage.bytes))
            if kept_home.size:
                raise ContractBroken("diagonal", f"{here}: {stage.bytes[kept_home[0], kept_home[0]]:g} B from GPU {kept_home[0]} to itself")
            strayed = np.argwhere((stage.bytes > 0) & (group[:, None] != group[None, :]))
            if strayed.size:
                source, destination = strayed[0]
                text = f"{here}: {stage.bytes[source, destination]:g} B from GPU {source} of group {group[source]}"
                rule = "law L15" if setting.parallel.ep == 1 else "own group"
                raise ContractBroken(rule, f"{text} to GPU {destination} of group {group[destination]}")


def _reach(stages: tuple[Traffic, ...], gpus: int) -> Bools:
    """Return bool[G, G]: where a row of each GPU may be after all stages, each of which may move or keep it."""
    reach = np.eye(gpus, dtype=np.int64)
    for stage in stages:
        reach = ((reach @ (np.eye(gpus, dtype=np.int64) + (stage.bytes > 0))) > 0).astype(np.int64)
    return reach > 0


def _check_arrival(where: str, answer: Exchange, assignment: Assignment, direction: str) -> None:
    rows = assignment.routes_at()  # padding may be made where it is computed
    gpus = len(rows)
    out, back = (answer.dispatch, answer.combine) if direction == FORWARD else (answer.combine, answer.dispatch)
    lost = np.argwhere((rows > 0) & ~_reach(out, gpus))
    if lost.size:
        source, home = lost[0]
        raise ContractBroken("law L1", f"{where}: {rows[source, home]} rows from GPU {source} have no way to their experts on GPU {home}")
    lost = np.argwhere((rows > 0) & ~_reach(back, gpus).T)
    if lost.size:
        source, home = lost[0]
        raise ContractBroken("law L1", f"{where}: results of {rows[source, home]} rows have no way back from GPU {home} to GPU {source}")


def _check_counts(where: str, answer: Exchange, assignment: Assignment) -> None:
    """No token, no copy; no padding bound to slots and no capacity to fill, no padding sent; and nothing is sent in 0 B."""
    capped = assignment.kept.capacity is not None  # an exchange may fill buffers that the rule leaves unfilled
    for name, allowed in (("copies", assignment.slot_counts.any()), ("padding", assignment.slot_padding.any() or capped)):
        sent = sum(int(getattr(stage, name).sum()) for stage in (*answer.dispatch, *answer.combine))
        what = "copies of tokens" if name == "copies" else "rows of padding"
        demand(bool(allowed) or not sent, "law L1", f"{where}: sends {sent} {what}, though the slots hold none")
    for stage in (*answer.dispatch, *answer.combine):
        silent = np.argwhere((stage.copies + stage.padding > 0) & (stage.bytes == 0))
        if silent.size:
            source, destination = silent[0]
            rows = f"{stage.copies[source, destination]} copies and {stage.padding[source, destination]} padding rows"
            raise ContractBroken("law L2", f"{where}: {rows} from GPU {source} to {destination} in 0 B")


def _check_opposite(who: str, both: dict[str, Exchange]) -> None:
    """Gradients of what was combined go where tokens went, and so on: as many copies, and as much padding, in all."""
    for forward, backward in (("dispatch", "combine"), ("combine", "dispatch")):
        for name in ("copies", "padding"):
            there, back = (
                sum(int(getattr(stage, name).sum()) for stage in getattr(both[direction], phase))
                for direction, phase in ((FORWARD, forward), (BACKWARD, backward))
            )
            demand(there == back, "law L2", f"{who}: {there} {name} in {forward} forward, but {back} in {backward} backward")


def _check_arrays(who: str, cluster: Cluster) -> None:
    gpus, links = cluster.gpus, cluster.links
    demand(gpus > 0, "shape", f"{who}: has no GPU")
    whole_numbers(who, "node_of", cluster.node_of, (gpus,))
    for name in ("bandwidth", "latency"):
        seconds(who, name, getattr(cluster, name), (links,))
    slow = np.flatnonzero(cluster.bandwidth <= 0)
    if slow.size:
        raise ContractBroken("bandwidth", f"{who}: link {cluster.link_names[slow[0]]!r} has bandwidth 0")
    unique = len(set(cluster.link_names)) == len(cluster.link_names) == len(cluster.link_class) == links
    demand(unique, "names", f"{who}: {links} links need as many different names and as many classes")
    whole_numbers(who, "route_start", cluster.route_start, (gpus * gpus + 1,))
    whole_numbers(who, "route_link", cluster.route_link, (int(cluster.route_start[-1]),))
    demand(bool((np.diff(cluster.route_start) >= 0).all()), "range", f"{who}: route_start falls")
    demand(bool((cluster.route_link < links).all()), "range", f"{who}: a route uses link {cluster.route_link.max(initial=0)} of {links}")
    demand(cluster.basis in STRENGTH, "evidence", f"{who}: basis {cluster.basis!r} is none of {', '.join(STRENGTH)}")


def _check_graph(who: str, cluster: Cluster, graph: Any) -> list[tuple[Any, Any]]:
    """Return the ends of each link in the order of the arrays."""
    missing = [f"gpu:{gpu}" for gpu in range(cluster.gpus) if f"gpu:{gpu}" not in graph]
    demand(not missing, "graph", f"{who}: the graph has no node {missing[0] if missing else ''!r}")
    ends: dict[str, tuple[Any, Any]] = {}
    number = {name: index for index, name in enumerate(cluster.link_names)}
    for tail, head, data in graph.edges(data=True):
        lacking = [key for key in ("name", "link_class", "bandwidth", "latency") if key not in data]
        demand(not lacking, "graph", f"{who}: the edge {tail} -> {head} carries no {lacking[0] if lacking else ''!r}")
        name = data["name"]
        demand(name in number, "graph", f"{who}: the edge {tail} -> {head} is called {name!r}, which is no link of the arrays")
        link = number[name]
        there = (float(data["bandwidth"]), float(data["latency"]), data["link_class"])
        here = (float(cluster.bandwidth[link]), float(cluster.latency[link]), cluster.link_class[link])
        demand(there == here, "graph", f"{who}: link {name!r} is {there} in the graph and {here} in the arrays")
        ends[name] = (tail, head)
    drawn = [name for name in cluster.link_names if name not in ends]
    demand(not drawn, "graph", f"{who}: link {drawn[0] if drawn else ''!r} is no edge of the graph")
    return [ends[name] for name in cluster.link_names]


def _check_route(who: str, cluster: Cluster, ends: list[tuple[Any, Any]], source: int, destination: int) -> None:
    route = [int(link) for link in cluster.route(source, destination)]
    where = f"{who}: the route from GPU {source} to {destination}"
    if source == destination:
        demand(not route, "route", f"{where} uses {len(route)} links, expected none")
        return
    demand(bool(route), "route", f"{where} is empty")
    demand(len(set(route)) == len(route), "route", f"{where} uses a link twice")
    at: Any = f"gpu:{source}"
    for link in route:
        tail, head = ends[link]
        demand(tail == at, "route", f"{where} takes link {cluster.link_names[link]!r}, which starts at {tail}, from {at}")
        at = head
    demand(at == f"gpu:{destination}", "route", f"{where} ends at {at}")


def _character(cluster: Cluster, source: int, destination: int) -> tuple[int, float, float]:
    route = cluster.route(source, destination)
    return len(route), float(cluster.bandwidth[route].min()), math.fsum(cluster.latency[route])
