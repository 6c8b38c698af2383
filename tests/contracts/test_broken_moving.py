"""Checks of moesim.testing: each rule of exchanges and topologies is broken once, and the right one is named."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import count
from typing import Any

import networkx as nx
import numpy as np
import pytest
from plugins_of_tests import Own, broken, changed

from moesim.base.registry import plugin
from moesim.facts.cluster import Cluster
from moesim.facts.traffic import Exchange, Traffic
from moesim.testing import (
    check_exchange,
    check_topology,
    tiny_cluster,
    tiny_setting,
)


def staged(change: Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]], *phases: str) -> Callable[[Exchange], Exchange]:
    def stage(traffic: Traffic) -> Traffic:
        bytes_, copies = change(np.array(traffic.bytes), np.array(traffic.copies))
        return replace(traffic, bytes=bytes_, copies=copies)

    return lambda exchange: replace(
        exchange, **{phase: tuple(stage(traffic) for traffic in getattr(exchange, phase)) for phase in phases or ("dispatch", "combine")}
    )


def with_diagonal(bytes_: np.ndarray, copies: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    np.fill_diagonal(bytes_, 5.0)
    return bytes_, copies


def beyond(bytes_: np.ndarray, copies: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    bytes_[0, -1] = 5.0
    return bytes_, copies


@pytest.mark.parametrize(
    ("rule", "ep", "change"),
    [
        ("diagonal", 2, staged(with_diagonal)),
        ("own group", 2, staged(beyond)),
        ("law L15", 1, staged(beyond)),
        ("range", 4, staged(lambda bytes_, copies: (-bytes_, copies))),
        ("range", 4, staged(lambda bytes_, copies: (bytes_ * np.nan, copies))),
        ("range", 4, lambda exchange: replace(exchange, launch=-1.0)),
        ("law L1", 4, staged(lambda bytes_, copies: (bytes_ * 0, copies), "dispatch")),
        ("law L1", 4, staged(lambda bytes_, copies: (bytes_ * 0, copies), "combine")),
        ("law L2", 4, staged(lambda bytes_, copies: (bytes_ + 1 - np.eye(4), copies))),
        ("type", 4, lambda exchange: replace(exchange, dispatch=list(exchange.dispatch))),
        ("shape", 4, staged(lambda bytes_, copies: (bytes_[:-1], copies))),
    ],
)
def test_exchange_that_breaks_a_rule(rule: str, ep: int, change: Callable[[Any], Any]) -> None:
    broken(rule, check_exchange, changed("exchange", "direct", change), settings=[tiny_setting(ep=ep)])


def test_exchange_that_counts_what_no_slot_holds() -> None:
    # The same number added to what is sent wherever something is: bytes are there, so only the count is wrong.
    def more(exchange: Exchange) -> Exchange:
        def stage(traffic: Traffic) -> Traffic:
            return replace(traffic, padding=traffic.padding + (traffic.bytes > 0))

        return replace(exchange, dispatch=tuple(map(stage, exchange.dispatch)), combine=tuple(map(stage, exchange.combine)))

    assert "rows of padding" in broken("law L1", check_exchange, changed("exchange", "direct", more))


def test_exchange_that_counts_copies_without_bytes() -> None:
    free = staged(lambda bytes_, copies: (bytes_, copies + (1 - np.eye(4, dtype=np.int64))))
    assert "in 0 B" in broken("law L2", check_exchange, changed("exchange", "direct", free), settings=[tiny_setting(ep=4)])


def test_exchange_that_says_results_cannot_come_back() -> None:
    message = broken("law L1", check_exchange, changed("exchange", "direct", lambda exchange: replace(exchange, combine=())))
    assert "have no way back" in message


def test_exchange_that_loses_gradients() -> None:
    def start(setting: Any) -> Any:
        carry = plugin("exchange", "direct")().begin(setting)
        double = staged(lambda bytes_, copies: (bytes_, copies * 2))
        return lambda assignment, *, direction: (
            carry(assignment, direction=direction) if direction == "forward" else double(carry(assignment, direction=direction))
        )

    assert "copies in dispatch forward" in broken("law L2", check_exchange, Own(start))


@dataclass(frozen=True)
class Star:
    """The tiny cluster, changed."""

    change: Callable[[Cluster], Cluster] = lambda cluster: cluster
    drawn: Callable[[Any], None] = lambda graph: None

    def build(self) -> Cluster:
        return self.change(tiny_cluster())

    def graph(self) -> Any:
        cluster = tiny_cluster()
        graph = nx.DiGraph()
        for link, name in enumerate(cluster.link_names):
            way, gpu = name.split(":")
            ends = (f"gpu:{gpu}", "switch") if way == "out" else ("switch", f"gpu:{gpu}")
            graph.add_edge(
                *ends,
                name=name,
                link_class=cluster.link_class[link],
                bandwidth=float(cluster.bandwidth[link]),
                latency=float(cluster.latency[link]),
            )
        self.drawn(graph)
        return graph


def test_honest_star_passes() -> None:
    check_topology(Star())


def with_first(values: Any, first: Any) -> Any:
    out = np.array(values)
    out[0] = first
    return out


@pytest.mark.parametrize(
    ("rule", "change"),
    [
        ("bandwidth", lambda cluster: replace(cluster, bandwidth=with_first(cluster.bandwidth, 0.0))),
        ("range", lambda cluster: replace(cluster, latency=with_first(cluster.latency, -1.0))),
        ("range", lambda cluster: replace(cluster, bandwidth=with_first(cluster.bandwidth, np.inf))),
        ("graph", lambda cluster: replace(cluster, bandwidth=with_first(cluster.bandwidth, 2e9))),
        ("names", lambda cluster: replace(cluster, link_names=("out:1", *cluster.link_names[1:]))),
        ("route", lambda cluster: replace(cluster, route_link=with_first(cluster.route_link, 1))),
        ("route", lambda cluster: replace(cluster, route_link=with_first(cluster.route_link, 5))),
        ("route", lambda cluster: replace(cluster, route_link=cluster.route_link[:0], route_start=cluster.route_start * 0)),
        ("range", lambda cluster: replace(cluster, route_link=with_first(cluster.route_link, 99))),
        ("evidence", lambda cluster: replace(cluster, basis="rumour")),
        ("shape", lambda cluster: replace(cluster, route_start=cluster.route_start[:-1])),
    ],
)
def test_topology_that_breaks_a_rule(rule: str, change: Callable[[Cluster], Cluster]) -> None:
    broken(rule, check_topology, Star(change))


def test_topology_whose_graph_is_another_cluster() -> None:
    def relabel(graph: Any) -> None:
        graph.edges["gpu:0", "switch"]["name"] = "somebody else"

    def unlabel(graph: Any) -> None:
        del graph.edges["gpu:0", "switch"]["link_class"]

    for drawn in (relabel, unlabel, lambda graph: graph.remove_node("gpu:3"), lambda graph: graph.remove_edge("gpu:0", "switch")):
        broken("graph", check_topology, Star(drawn=drawn))


def test_topology_with_a_slower_way_back_must_say_so() -> None:
    slow = with_first(tiny_cluster().latency, 5e-6)

    def drawn(graph: Any) -> None:
        graph.edges["gpu:0", "switch"]["latency"] = 5e-6

    lopsided = Star(lambda cluster: replace(cluster, latency=slow), drawn)
    assert "back" in broken("symmetry", check_topology, lopsided)
    check_topology(lopsided, symmetric=False)


def test_topology_that_is_another_one_every_time() -> None:
    counter = count()
    broken("law L8", check_topology, Star(lambda cluster: replace(cluster, node_of=cluster.node_of * 0 + next(counter) % 2)))
