"""Plug-ins as they would be if something were taken away: faster links, even layers, a GPU that is not late.

Each wraps a plug-in of a scenario and is put in its place; nothing else knows of it. They have no names in scenario files.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import networkx as nx
import numpy as np

from moesim.facts.arrays import Floats, Ints
from moesim.facts.cluster import Cluster
from moesim.facts.contracts import Draw, Kernels, Topology
from moesim.facts.routing import LayerRouting, Routing
from moesim.facts.scenario import Setting
from moesim.models.source.balanced import balanced_ids
from moesim.models.source.on_demand import LayersOnDemand


@dataclass(frozen=True, slots=True, kw_only=True)
class FasterLinks:
    """A topology whose named links have ``factor`` times the bandwidth; latencies stay."""

    base: Any
    links: frozenset[str]
    factor: float

    @property
    def kind(self) -> str:
        """Return the kind of what is wrapped."""
        return str(self.base.kind)

    def graph(self) -> nx.DiGraph:
        """Return the graph of what is wrapped: routes are the same."""
        topology: Topology = self.base
        return topology.graph()

    def build(self) -> Cluster:
        """Return the arrays, with more bandwidth."""
        cluster: Cluster = self.base.build()
        faster = np.array([name in self.links for name in cluster.link_names])
        return dataclasses.replace(cluster, bandwidth=np.where(faster, cluster.bandwidth * self.factor, cluster.bandwidth))


@dataclass(frozen=True, slots=True, kw_only=True)
class EvenLayers:
    """A source some of whose MoE layers have as many routes as before, from the same GPUs, but the same load on every expert.

    Where routes are dropped, an even layer drops fewer: it is not faster for having less to do.
    """

    base: Any
    layers: frozenset[int]

    @property
    def kind(self) -> str:
        """Return the kind of what is wrapped."""
        return str(self.base.kind)

    def begin(self, setting: Setting) -> Draw:
        """Return the draws of one run."""
        given: Draw = self.base.begin(setting)

        def draw(step: int) -> Routing:
            routing = given(step)

            def layer(index: int) -> LayerRouting:
                drawn = routing.layers[index]
                return even_layer(drawn, setting.rng("what if", "even", step, index)) if index in self.layers else drawn

            return dataclasses.replace(routing, layers=LayersOnDemand(layer, len(routing.layers)))

        return draw


def even_layer(layer: LayerRouting, rng: np.random.Generator) -> LayerRouting:
    """Return a layer with the same tokens (or routes) on every source GPU, and equal loads of experts up to rounding."""
    tokens = np.diff(layer.token_start)
    if layer.ids is None:
        routes = layer.counts.sum(axis=1)
        whole, rest = np.divmod(routes, layer.experts)
        # What does not divide goes to experts in turn, each GPU going on where the one before it stopped.
        turn = (np.arange(layer.experts) - (np.cumsum(rest) - rest)[:, None]) % layer.experts
        return dataclasses.replace(layer, counts=whole[:, None] + (turn < rest[:, None]))
    top_k = layer.ids.shape[1]
    most = int(tokens.max(initial=0))
    ids = balanced_ids(rng, gpus=layer.gpus, tokens=most, experts=layer.experts, top_k=top_k).reshape(layer.gpus, most, top_k)
    mine = np.concatenate([ids[gpu, :count] for gpu, count in enumerate(tokens)])
    weights = None if layer.weights is None else np.full(mine.shape, 1.0 / top_k, dtype=np.float32)
    return LayerRouting.of_tokens(mine, layer.token_start, layer.experts, weights=weights)


@dataclass(frozen=True, slots=True, kw_only=True)
class NoLaggards:
    """A compute model in which the experts of some GPUs never take longer than those of the mean of the other GPUs."""

    base: Any
    gpus: frozenset[int]

    @property
    def kind(self) -> str:
        """Return the kind of what is wrapped."""
        return str(self.base.kind)

    def begin(self, setting: Setting) -> Kernels:
        """Return the kernels of one run."""
        return _LevelKernels(self.base.begin(setting), np.array(sorted(self.gpus), dtype=np.int64))


class _LevelKernels:
    """Kernels whose expert time is cut on some GPUs."""

    def __init__(self, kernels: Kernels, gpus: Ints) -> None:
        self._kernels = kernels
        self._gpus = gpus
        self.basis = kernels.basis

    def dense(self, flops: Floats, moved: Floats, *, dtype: str) -> Floats:
        return self._kernels.dense(flops, moved, dtype=dtype)

    def experts(self, rows: Ints, *, direction: str) -> Floats:
        seconds = np.array(self._kernels.experts(rows, direction=direction), dtype=np.float64)
        others = np.delete(seconds, self._gpus)
        if others.size:
            seconds[self._gpus] = np.minimum(seconds[self._gpus], others.mean())
        return seconds
