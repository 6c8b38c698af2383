"""A whole DeepSeek-V3 step through the engine: 58 MoE layers, forward and backward, a hierarchical exchange on rails, no barrier.

Routing is drawn as copies between GPUs and not token by token, because drawing the choices of 15 million tokens takes longer than all that
is measured here. So the parts that stand in for source and exchange are these; schedule, kernels, SimPy, collectives, fabric and records
are the engine's own.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import Any
from unittest.mock import patch

import numpy as np
from skewed import COPY, TOKENS, TOP_K, rail_copies

from moesim.base.registry import plugin
from moesim.engine.machine import Machine
from moesim.engine.simulate import simulate
from moesim.facts.model import MoeModel
from moesim.facts.program import FORWARD
from moesim.facts.routing import LayerRouting, Routing
from moesim.facts.scenario import Parallel, Scenario, Workload
from moesim.facts.traffic import Exchange, Traffic
from moesim.models.topology.nvlink_nodes import NvlinkNodes

GRADIENT = 2 * COPY  # bf16 where the way to the experts is fp8
GPUS_PER_NODE = 8


@dataclass(frozen=True)
class DrawnCounts:
    """Routes from GPU to expert: log-normal popularity, a taste of each GPU's own."""

    seed: int = 0
    kind = "drawn_counts"

    def begin(self, setting: Any) -> Any:
        def draw(step: int) -> Routing:
            rng = np.random.default_rng([self.seed, step])
            gpus, experts = setting.gpus, setting.model.experts
            start = np.arange(gpus + 1) * TOKENS
            layers = []
            for _ in setting.model.moe_layers:
                taste = rng.lognormal(sigma=0.5, size=experts) * rng.lognormal(sigma=0.25, size=(gpus, experts))
                counts = np.stack([rng.multinomial(TOKENS * TOP_K, row / row.sum()) for row in taste])
                layers.append(LayerRouting(experts=experts, token_start=start, counts=counts))
            return Routing(layers=layers)

        return draw


@dataclass(frozen=True)
class DrawnStages:
    """Both stages of each layer, across nodes and within; another draw for every layer."""

    seed: int = 0
    kind = "drawn_stages"
    start = "pairwise"

    def begin(self, setting: Any) -> Any:
        rng = np.random.default_rng(self.seed)
        seen: dict[int, tuple[Any, tuple[np.ndarray, ...]]] = {}

        def carry(assignment: Any, *, direction: str) -> Exchange:
            if id(assignment) not in seen:
                drawn = rail_copies(setting.gpus, gpus_per_node=GPUS_PER_NODE, sigma=0.5, tokens=TOKENS, rng=rng)
                seen.clear()
                seen[id(assignment)] = (assignment, drawn)
            out = seen[id(assignment)][1]
            home = tuple(stage.T for stage in reversed(out))
            there, back = (COPY, GRADIENT) if direction == FORWARD else (GRADIENT, GRADIENT)
            return Exchange(dispatch=traffic(out, there), combine=traffic(home, back), launch=8.7e-6, pipelined=True)

        return carry


def traffic(stages: tuple[np.ndarray, ...], each: int) -> tuple[Traffic, ...]:
    return tuple(Traffic(bytes=copies * float(each), copies=copies) for copies in stages)


def deepseek_v3(gpus: int) -> Scenario:
    """The step: as many GPUs as ranks; 320 ranks hold 320 experts, as a deployment with redundant ones does."""
    from moesim.desk.presets.models import model_preset

    model: MoeModel = model_preset("deepseek-v3")
    if gpus > model.experts:
        model = replace(model, experts=gpus)
    return Scenario(
        name=f"DeepSeek-V3, EP {gpus}",
        model=model,
        cluster=NvlinkNodes(nodes=gpus // GPUS_PER_NODE, gpus_per_node=GPUS_PER_NODE, rail_optimised=True),
        parallel=Parallel(ep=gpus),
        workload=Workload(phase="training", tokens_per_gpu=TOKENS),
        routing=DrawnCounts(),
        exchange=DrawnStages(),
        compute=plugin("compute", "grouped_gemm")(),
    )


def no_trace(path: str) -> Any:
    raise AssertionError(path)


def run(scenario: Scenario) -> dict[str, float]:
    """Return seconds of the processor for ``simulate``, of playing the step in it, and of making its load."""
    parts: dict[str, list[float]] = {"play": [], "load": []}

    def timed(name: str) -> Any:
        call = getattr(Machine, name)

        def wrapped(*arguments: Any, **named: Any) -> Any:
            began = time.process_time()
            found = call(*arguments, **named)
            parts[name].append(time.process_time() - began)
            return found

        return patch.object(Machine, name, wrapped)

    began = time.process_time()
    with timed("play"), timed("load"):
        result = simulate(scenario, read_trace=no_trace)
    whole = time.process_time() - began
    # The engine plays the step, and then one of balanced loads for the bound that results show.
    return {"whole": whole, "play": parts["play"][0], "load": parts["load"][0], "step_time": result.metrics["step_time"].value}
