"""Shared hypothesis strategies: small worlds in which a law must hold."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from hypothesis import strategies as st

from moesim.models.topology.dragonfly import Dragonfly
from moesim.models.topology.fat_tree import FatTree
from moesim.models.topology.graph import GraphTopology
from moesim.models.topology.mesh import Mesh
from moesim.models.topology.nvl_rack import NvlRack
from moesim.models.topology.nvlink_nodes import NvlinkNodes
from moesim.models.topology.one_switch import OneSwitch
from moesim.models.topology.torus import Torus
from moesim.models.topology.wiring import wiring_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Flows:
    """Flows on links, as the sharing models take them."""

    capacity: np.ndarray
    route_start: np.ndarray
    route_link: np.ndarray

    @property
    def count(self) -> int:
        return len(self.route_start) - 1

    @property
    def system(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return self.capacity, self.route_start, self.route_link

    def route(self, flow: int) -> np.ndarray:
        return self.route_link[self.route_start[flow] : self.route_start[flow + 1]]


def routes(links_of_flows: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
    """``route_start`` and ``route_link`` of explicit routes."""
    start = np.cumsum([0, *[len(links) for links in links_of_flows]])
    return start, np.array([link for links in links_of_flows for link in links], dtype=np.int64)


@st.composite
def flow_systems(draw: Any, *, max_links: int = 6, max_flows: int = 8, shortest: int = 1) -> Flows:
    """Links of small whole capacities (ties are likely) or of odd ones, and flows over some of them."""
    links = draw(st.integers(1, max_links))
    number = st.one_of(st.integers(1, 4).map(float), st.floats(0.1, 100.0))
    capacity = np.array(draw(st.lists(number, min_size=links, max_size=links)))
    one_route = st.lists(st.integers(0, links - 1), min_size=shortest, max_size=4, unique=True)
    start, link = routes(draw(st.lists(one_route, min_size=0, max_size=max_flows)))
    return Flows(capacity=capacity, route_start=start, route_link=link)


def small_topologies() -> st.SearchStrategy[Any]:
    """One topology of up to 24 GPUs whose routes are the only shortest ones between their ends."""
    few = st.integers(1, 3)
    over = st.sampled_from([1.0, 1.5, 2.0, 4.0])
    leaf = st.one_of(st.none(), few)
    return st.one_of(
        st.builds(OneSwitch, gpus=st.integers(1, 9)),
        st.builds(
            NvlinkNodes,
            nodes=st.integers(1, 6),
            gpus_per_node=st.integers(1, 4),
            oversubscription=over,
            rail_optimised=st.booleans(),
            nodes_per_leaf=leaf,
        ),
        st.builds(
            lambda trays, each, **rest: NvlRack(gpus=trays * each, gpus_per_tray=each, **rest), few, few, racks=few, oversubscription=over
        ),
        st.builds(Mesh, nodes=few, gpus_per_node=st.integers(1, 4), oversubscription=over, nodes_per_leaf=leaf),
    )


def every_topology() -> st.SearchStrategy[Any]:
    """One topology of up to 24 GPUs of any built-in kind: those that hash, forward, or take a way round too, and graphs."""
    few = st.integers(1, 3)
    over = st.sampled_from([1.0, 1.5, 2.0, 4.0])
    tori = [((2,), 1), ((5,), 5), ((2, 3), 2), ((3, 4), 4), ((4, 4), 2), ((2, 2, 2), 1), ((2, 3, 4), 8)]
    dragonflies = [
        {"groups": 1, "routers_per_group": 3, "gpus_per_router": 2},
        {"groups": 2, "routers_per_group": 2, "gpus_per_router": 2, "gpus_per_node": 1},
        {"groups": 3, "routers_per_group": 2, "gpus_per_router": 2, "global_links": 1},
        {"groups": 3, "routers_per_group": 2, "gpus_per_router": 4},
        {"groups": 5, "routers_per_group": 2, "gpus_per_router": 2, "routing": "valiant", "valiant_seed": 3},
    ]
    return st.one_of(
        small_topologies(),
        small_topologies().map(lambda topology: GraphTopology(wiring=wiring_of(topology.graph()), gpu=topology.gpu)),
        st.builds(
            NvlinkNodes,
            nodes=st.integers(1, 6),
            gpus_per_node=st.integers(1, 4),
            oversubscription=over,
            nodes_per_leaf=few,
            spines=few,
            ecmp_seed=st.integers(0, 9),
        ),
        st.builds(
            NvlinkNodes,
            nodes=st.integers(1, 6),
            gpus_per_node=st.integers(1, 4),
            oversubscription=over,
            nodes_per_leaf=few,
            rail_optimised=st.just(value=True),
            pxn=st.just(value=True),
        ),
        st.builds(
            FatTree,
            nodes=st.integers(1, 6),
            gpus_per_node=st.integers(1, 4),
            oversubscription=over,
            nodes_per_leaf=st.none() | few,
            leaves_per_pod=st.none() | few,
            spread=st.booleans(),
        ),
        st.sampled_from(tori).map(lambda shape: Torus(dims=shape[0], gpus_per_node=shape[1])),
        st.sampled_from(dragonflies).map(lambda keys: Dragonfly(**keys)),
    )
