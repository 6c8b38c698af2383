"""What each step leaves behind besides spans: counts, bytes, bounds."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.base import balance_health
from moesim.engine.load import LayerLoad, StepLoad
from moesim.facts.arrays import Floats, Ints
from moesim.facts.cluster import Cluster
from moesim.facts.model import MoeModel
from moesim.facts.routing import LayerRouting, Routing
from moesim.facts.trace import Trace
from moesim.models.gate.losses import Losses
from moesim.models.source.traces import trace_of


@dataclass(frozen=True, slots=True)
class Mark:
    """When a step started and ended, in s, and what every link had done by its end: float[K] busy s and carried B."""

    start: float
    end: float
    busy: Floats
    carried: Floats


@dataclass(slots=True)
class Tally:
    """What each step leaves behind besides spans; ``traffic`` holds float[groups, R, R], sums over the measured steps."""

    cluster: Cluster
    model: MoeModel
    ranks: int
    warmup: int
    keep_routing: bool
    losses: Callable[[LayerRouting], Losses] | None = None
    stages: int = 1
    marks: list[Mark] = field(default_factory=list)
    layer_rows: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    rank_rows: dict[str, list[NDArray[Any]]] = field(default_factory=lambda: defaultdict(list))
    routes: NDArray[np.int64] | None = None
    dropped: NDArray[np.int64] | None = None
    traffic: dict[str, NDArray[Any]] = field(default_factory=dict)
    guests: Ints | None = None
    tokens: list[int] = field(default_factory=list)
    tokens_of_gpus: list[Ints] = field(default_factory=list)
    repeats: list[int] = field(default_factory=list)
    unequal_ranks: list[float] = field(default_factory=list)
    before: dict[int, Ints] = field(default_factory=dict)
    idle_for: dict[int, Ints] = field(default_factory=dict)
    choices: list[tuple[int, Routing]] = field(default_factory=list)

    def tokens_per_step(self) -> float:
        """Return the mean over measured steps."""
        return float(np.mean(self.tokens[self.warmup :]))

    def add(self, step: int, load: StepLoad, mark: Mark) -> None:
        """Take in one finished step."""
        self.marks.append(mark)
        self.tokens.append(load.tokens)
        if self.keep_routing:
            self.choices.append((step, Routing(layers=[layer.chosen for layer in load.layers])))
        if step < self.warmup:
            return
        shape = (len(load.layers), self.model.experts)
        routes = self.routes if self.routes is not None else np.zeros(shape, dtype=np.int64)
        dropped = self.dropped if self.dropped is not None else np.zeros(shape, dtype=np.int64)
        gpus, ranks = self.cluster.gpus, self.ranks
        of_stage = gpus // self.stages
        node_of = self.cluster.node_of.reshape(-1, ranks)
        crosses, own = node_of[:, :, None] != node_of[:, None, :], np.arange(ranks)
        for name in ("dispatch_bytes", "combine_bytes", "copies"):
            self.traffic.setdefault(name, np.zeros((gpus // ranks, ranks, ranks)))
        for moe_layer, layer in enumerate(load.layers):
            by_expert = layer.chosen.counts.sum(axis=0)
            routes[moe_layer] += by_expert
            dropped[moe_layer] += layer.kept.dropped.sum(axis=0)
            sums = {"dispatch": 0.0, "combine": 0.0}
            cross, counted = {"dispatch": 0.0, "combine": 0.0}, {"dispatch": 0.0, "combine": 0.0}
            copies = 0
            for exchange in layer.exchange.values():
                for phase, stages in (("dispatch", exchange.dispatch), ("combine", exchange.combine)):
                    counted[phase] += float(exchange.counted(phase).sum()) / of_stage
                    for stage in stages:
                        inside = stage.among(ranks)
                        sums[phase] += float(inside.sum())
                        cross[phase] += float(inside[crosses].sum())
                        self.traffic[f"{phase}_bytes"] += inside
            for stage in layer.exchange["forward"].dispatch:
                sent = stage.copies_among(ranks).copy()
                sent[:, own, own] = 0
                copies += int(sent.sum())
                self.traffic["copies"] += sent
            self._layer(step, moe_layer, layer, by_expert, sums, cross, counted, copies)
            self.rank_rows["rows"].append(layer.rows)
            self.rank_rows["padding"].append(layer.padding)
            self.guests = layer.guests if self.guests is None else np.maximum(self.guests, layer.guests)
        self.tokens_of_gpus.append(load.layers[0].tokens)
        self.repeats.append(-1 if load.routing.repeats is None else load.routing.repeats)
        self.routes, self.dropped = routes, dropped

    def _losses(self, chosen: LayerRouting) -> dict[str, float]:
        """Return the auxiliary losses of one layer; NaN where the routing has no scores to compute them from."""
        known = None if chosen.scores is None or self.losses is None else self.losses(chosen)
        return {
            "aux_loss": known.micro_batch if known else math.nan,
            "aux_loss_sequence": known.sequence if known else math.nan,
            "aux_loss_batch": known.batch if known else math.nan,
            "aux_loss_device": known.device if known else math.nan,
            "router_z_loss": known.z if known else math.nan,
        }

    def _layer(
        self,
        step: int,
        moe_layer: int,
        layer: LayerLoad,
        by_expert: Ints,
        sums: dict[str, float],
        cross: dict[str, float],
        counted: dict[str, float],
        copies: int,
    ) -> None:
        kept = layer.kept
        row = {
            "step": step,
            "moe_layer": moe_layer,
            "layer": self.model.moe_layers[moe_layer],
            "tokens": layer.chosen.tokens,
            "routes": int(by_expert.sum()),
            "dropped": int(kept.dropped.sum()),
            "kept": int(kept.routing.counts.sum()),
            "padding": int(kept.padding.sum()),
            "fully_dropped": -1 if kept.fully_dropped is None else kept.fully_dropped,
            "capacity_rows": kept.admitted(),
            "expert_max": int(by_expert.max()),
            "expert_mean": float(by_expert.mean()),
            "rank_max": int(layer.rows.max()),
            "rank_mean": float(layer.rows.sum()) / (len(layer.rows) // self.stages),
            "dispatch_bytes": sums["dispatch"],
            "combine_bytes": sums["combine"],
            "cross_node_bytes": cross["dispatch"] + cross["combine"],
            "dispatch_cross_node_bytes": cross["dispatch"],
            "dispatch_library_bytes": counted["dispatch"],
            "combine_library_bytes": counted["combine"],
            "copies": copies,
            "nodes": layer.nodes,
            **self._health(moe_layer, layer.chosen, by_expert),
            **self._losses(layer.chosen),
        }
        for name, value in row.items():
            self.layer_rows[name].append(value)

    def _health(self, moe_layer: int, chosen: LayerRouting, by_expert: Ints) -> dict[str, float]:
        """Return how well the router of one layer does, and since when experts of it have been idle."""
        resting = balance_health.idle(by_expert)
        since = np.where(resting, self.idle_for.get(moe_layer, np.zeros(len(by_expert), dtype=np.int64)) + 1, 0)
        self.idle_for[moe_layer] = since
        earlier = self.before.get(moe_layer)
        self.before[moe_layer] = by_expert
        mean = float(by_expert.mean())
        of_domains = chosen.routes_of_domains()
        return {
            "idle_experts": int(resting.sum()),
            "stagnant_experts": int(balance_health.stagnant(by_expert).sum()),
            "idle_longest": int(since.max(initial=0)),
            "load_cv": float(by_expert.std()) / mean if mean else math.nan,
            "load_entropy": balance_health.entropy(by_expert),
            "load_correlation": math.nan if earlier is None else balance_health.correlation(by_expert, earlier),
            "source_information": balance_health.mutual_information(chosen.counts),
            "domain_information": math.nan if of_domains is None else balance_health.mutual_information(of_domains),
        }

    def routing(self, origin: str) -> Trace | None:
        """Return every token's choices as a trace that can be replayed, if they were kept; ``origin`` says where they came from."""
        if not self.choices:
            return None
        return trace_of(
            self.choices, name="routing of this run", top_k=self.model.top_k, layer_numbers=self.model.moe_layers, origin=origin
        )
