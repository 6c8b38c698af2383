"""A finished run made by hand: 2 nodes of 8 GPUs, 4 MoE layers of 64 experts, 3 measured steps, skewed loads.

Nothing here comes from the engine. Every table keeps the contract of ``docs/reference/results.md``, and the numbers hang together (times
add up, bytes agree between tables), so that files, page and trace can be tested on their own.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from moesim.base.stats import mean_interval
from moesim.desk.columns import COLUMNS
from moesim.facts.record import Result, Table, Value

GPUS, NODES, LAYERS, EXPERTS, STEPS, TOP_K, TOKENS = 16, 2, 4, 64, 3, 6, 4096
MODEL_LAYERS = (1, 2, 3, 4)
ROW_BYTES = 4096.0
NVLINK, NIC, UPLINK = 450e9, 50e9, 200e9
UNITS = {"_s": "s", "_bytes": "B", "_Bps": "B/s", "bytes": "B"}


def _table(columns: dict[str, Any]) -> Table:
    arrays = {name: np.asarray(column) for name, column in columns.items()}
    units = {name: next((unit for suffix, unit in UNITS.items() if name.endswith(suffix)), "") for name in arrays}
    return Table(columns=arrays, units=units)


def _graph() -> dict[str, Any]:
    nodes: list[list[Any]] = [[f"gpu:{gpu}", "gpu", gpu // 8] for gpu in range(GPUS)]
    nodes += [[f"{kind}:{node}", kind, -1] for kind in ("nvswitch", "leaf") for node in range(NODES)] + [["spine:0", "spine", -1]]
    edges: list[list[Any]] = []
    for gpu in range(GPUS):
        node = gpu // 8
        edges += [
            [f"gpu:{gpu}", f"nvswitch:{node}", f"nvlink-out:{gpu}", "nvlink", NVLINK, 1e-6],
            [f"nvswitch:{node}", f"gpu:{gpu}", f"nvlink-in:{gpu}", "nvlink", NVLINK, 1e-6],
            [f"gpu:{gpu}", f"leaf:{node}", f"nic-out:{gpu}", "nic", NIC, 2e-6],
            [f"leaf:{node}", f"gpu:{gpu}", f"nic-in:{gpu}", "nic", NIC, 2e-6],
        ]
    for node in range(NODES):
        edges += [
            [f"leaf:{node}", "spine:0", f"up:{node}", "uplink", UPLINK, 1e-6],
            ["spine:0", f"leaf:{node}", f"down:{node}", "uplink", UPLINK, 1e-6],
        ]
    return {"nodes": nodes, "edges": edges}


def _loads(rng: np.random.Generator) -> np.ndarray:
    """Return int[STEPS, LAYERS, GPUS, EXPERTS], routes of each source to each expert."""
    popularity = np.exp(0.7 * rng.standard_normal((LAYERS, EXPERTS)))
    popularity[2, 11] *= 6.0
    popularity /= popularity.sum(axis=1, keepdims=True)
    loads = np.zeros((STEPS, LAYERS, GPUS, EXPERTS), dtype=np.int64)
    for step in range(STEPS):
        for layer in range(LAYERS):
            loads[step, layer] = rng.multinomial(TOKENS * TOP_K, popularity[layer], size=GPUS)
    return loads


def _spans(rows: np.ndarray, sent: np.ndarray, rng: np.random.Generator) -> dict[str, list[Any]]:
    """Return a timeline: each layer is attention, gate, dispatch, experts, combine; a collective starts when the last GPU arrives."""
    names = list(COLUMNS["spans"])
    spans: dict[str, list[Any]] = {name: [] for name in names}
    clock = np.zeros(GPUS)

    def add(where: tuple[int, int, str], phase: str, start: np.ndarray, end: np.ndarray, **more: Any) -> None:
        step, layer, direction = where
        collective = phase in {"dispatch", "combine"}
        for gpu in range(GPUS):
            row = (
                *(step, MODEL_LAYERS[layer], layer, 0, direction, gpu, "communication" if collective else "compute", phase),
                *(start[gpu], end[gpu], more["bytes"][gpu] if collective else 0.0, int(more["tokens"][gpu])),
                *(more["waiting"][gpu] if collective else 0.0, more["last"] if collective and more["waiting"][gpu] > 0 else -1),
                0.0,
            )
            for name, item in zip(names, row, strict=True):
                spans[name].append(item)

    for step in range(STEPS):
        clock[:] = clock.max() + 20e-6
        for direction, order in (("forward", range(LAYERS)), ("backward", range(LAYERS - 1, -1, -1))):
            factor = 1.0 if direction == "forward" else 2.0
            for layer in order:
                first, second = ("dispatch", "combine") if direction == "forward" else ("combine", "dispatch")
                where = (step, layer, direction)
                work = {
                    "attention": factor * 0.42e-3 * (1 + 0.02 * rng.standard_normal(GPUS)),
                    "gate": np.full(GPUS, factor * 0.03e-3),
                    "experts": factor * (0.05e-3 + rows[step, layer] * 2.3e-8),
                }
                for phase in ("attention", "gate", first, "experts", second):
                    if phase in work:
                        end = clock + work[phase]
                        tokens = rows[step, layer] if phase == "experts" else np.full(GPUS, TOKENS)
                        add(where, phase, clock.copy(), end, tokens=tokens)
                        clock = end
                        continue
                    moved = sent[step, layer].sum(axis=1 if phase == "dispatch" else 0) * ROW_BYTES
                    last = int(clock.argmax())
                    waiting = clock.max() - clock
                    end = clock.max() + np.full(GPUS, moved.max() / (2.4 * NIC))
                    add(where, phase, clock.copy(), end, bytes=moved, tokens=sent[step, layer].sum(axis=1), waiting=waiting, last=last)
                    clock = end
    return spans


def example_tables(seed: int = 5) -> dict[str, Table]:
    """Return every table of a run with ``keep_spans``."""
    rng = np.random.default_rng(seed)
    loads = _loads(rng)
    capacity = int(np.ceil(TOKENS * TOP_K / EXPERTS * 1.25))
    kept = np.minimum(loads, capacity)
    dropped = loads - kept
    home = np.arange(EXPERTS) // (EXPERTS // GPUS)
    sent = np.stack([kept[..., home == gpu].sum(axis=-1) for gpu in range(GPUS)], axis=-1)
    rows = sent.sum(axis=2)
    node = np.arange(GPUS) // 8
    off = sent * (1 - np.eye(GPUS, dtype=np.int64))
    cross = (off * (node[:, None] != node[None, :])).sum(axis=(2, 3)) * ROW_BYTES
    copies = (off * 0.8).astype(np.int64)
    spans = {name: np.asarray(column) for name, column in _spans(rows, off, rng).items()}
    length = spans["end_s"] - spans["start_s"]

    def phase_mean(gpu: int | None, step: int | None, phase: str, *, waiting: bool | None = None) -> float:
        mask = (
            (spans["phase"] == phase) & (True if step is None else spans["step"] == step) & (True if gpu is None else spans["gpu"] == gpu)
        )
        value = spans["waiting_s"][mask] if waiting else length[mask] - (spans["waiting_s"][mask] if waiting is False else 0.0)
        return float(value.sum()) / (GPUS if gpu is None else 1) / (STEPS if step is None else 1)

    def both(gpu: int | None, step: int | None) -> float:
        return sum(phase_mean(gpu, step, phase, waiting=True) for phase in ("dispatch", "combine"))

    start = np.array([spans["start_s"][spans["step"] == step].min() for step in range(STEPS)])
    step_time = np.array([spans["end_s"][spans["step"] == step].max() for step in range(STEPS)]) - start
    every = range(STEPS)
    slowest = [max(phase_mean(gpu, step, "experts") for gpu in range(GPUS)) for step in every]
    transfer = {phase: np.array([phase_mean(None, step, phase, waiting=False) for step in every]) for phase in ("dispatch", "combine")}
    wait = np.array([both(None, step) for step in every])
    steps = {
        "step": np.arange(STEPS) + 1,
        "start_s": start,
        "step_time_s": step_time,
        "tokens": np.full(STEPS, GPUS * TOKENS),
        "repeats": np.full(STEPS, -1),
        "dispatch_transfer_s": transfer["dispatch"],
        "combine_transfer_s": transfer["combine"],
        "waiting_s": wait,
        "expert_s": [phase_mean(None, step, "experts") for step in every],
        "expert_slowest_s": slowest,
        "attention_s": [phase_mean(None, step, "attention") for step in every],
        "dense_s": np.zeros(STEPS),
        "gate_s": [phase_mean(None, step, "gate") for step in every],
        "shared_s": np.zeros(STEPS),
        "gradient_s": np.zeros(STEPS),
        "gradient_exposed_s": np.zeros(STEPS),
        "exposed_communication_s": transfer["dispatch"] + transfer["combine"] + wait,
        "slowed_s": np.zeros(STEPS),
        **{
            name: np.zeros(STEPS)
            for name in ("tensor_s", "recompute_s", "optimiser_s", "hand_over_s", "pipeline_s", "bubble_s", "unequal_ranks_s")
        },
    }
    step_of, layer_of = np.repeat(np.arange(STEPS), LAYERS), np.tile(np.arange(LAYERS), STEPS)
    by_expert = loads.sum(axis=2)
    layers = {
        "step": step_of + 1,
        "moe_layer": layer_of,
        "layer": np.asarray(MODEL_LAYERS)[layer_of],
        "tokens": np.full(STEPS * LAYERS, GPUS * TOKENS),
        "routes": loads.sum(axis=(2, 3)).ravel(),
        "dropped": dropped.sum(axis=(2, 3)).ravel(),
        "kept": kept.sum(axis=(2, 3)).ravel(),
        "padding": np.zeros(STEPS * LAYERS, dtype=np.int64),
        "fully_dropped": np.full(STEPS * LAYERS, -1),
        "capacity_rows": np.full(STEPS * LAYERS, capacity * GPUS * EXPERTS),
        "expert_max": by_expert.max(axis=-1).ravel(),
        "expert_mean": by_expert.mean(axis=-1).ravel(),
        "rank_max": rows.max(axis=-1).ravel(),
        "rank_mean": rows.mean(axis=-1).ravel(),
        "dispatch_bytes": off.sum(axis=(2, 3)).ravel() * ROW_BYTES,
        "combine_bytes": off.sum(axis=(2, 3)).ravel() * ROW_BYTES,
        "cross_node_bytes": 2 * cross.ravel(),
        "dispatch_cross_node_bytes": cross.ravel(),
        "dispatch_library_bytes": off.sum(axis=(2, 3)).ravel() * ROW_BYTES / GPUS,
        "combine_library_bytes": off.sum(axis=(2, 3)).ravel() * ROW_BYTES / GPUS,
        "copies": copies.sum(axis=(2, 3)).ravel(),
        "nodes": copies.sum(axis=(2, 3)).ravel(),
        "idle_experts": np.zeros(STEPS * LAYERS, dtype=np.int64),
        "stagnant_experts": np.zeros(STEPS * LAYERS, dtype=np.int64),
        "idle_longest": np.zeros(STEPS * LAYERS, dtype=np.int64),
        "load_cv": np.full(STEPS * LAYERS, 0.25),
        "load_entropy": np.full(STEPS * LAYERS, 0.96875),
        "load_correlation": np.full(STEPS * LAYERS, 0.75),
        "source_information": np.full(STEPS * LAYERS, 0.0625),
        "domain_information": np.full(STEPS * LAYERS, np.nan),
        "aux_loss": np.full(STEPS * LAYERS, np.nan),
        "aux_loss_sequence": np.full(STEPS * LAYERS, np.nan),
        "aux_loss_batch": np.full(STEPS * LAYERS, np.nan),
        "aux_loss_device": np.full(STEPS * LAYERS, np.nan),
        "router_z_loss": np.full(STEPS * LAYERS, np.nan),
    }
    layer_of_expert = np.repeat(np.arange(LAYERS), EXPERTS)
    experts = {
        "moe_layer": layer_of_expert,
        "layer": np.asarray(MODEL_LAYERS)[layer_of_expert],
        "expert": np.tile(np.arange(EXPERTS), LAYERS),
        "routes": loads.sum(axis=(0, 2)).ravel(),
        "dropped": dropped.sum(axis=(0, 2)).ravel(),
    }
    ranks = {
        "step": np.repeat(step_of, GPUS) + 1,
        "moe_layer": np.repeat(layer_of, GPUS),
        "gpu": np.tile(np.arange(GPUS), STEPS * LAYERS),
        "rows": rows.ravel(),
        "padding": np.zeros(rows.size, dtype=np.int64),
    }
    mean_time = step_time.mean()
    busy = [{phase: phase_mean(gpu, None, phase) for phase in ("attention", "gate", "experts")} for gpu in range(GPUS)]
    waits = np.array([both(gpu, None) for gpu in range(GPUS)])
    moving = {phase: np.array([phase_mean(gpu, None, phase, waiting=False) for gpu in range(GPUS)]) for phase in ("dispatch", "combine")}
    computing = np.array([sum(phases.values()) for phases in busy])
    gpus = {
        "gpu": np.arange(GPUS),
        "node": node,
        "rows": rows.sum(axis=1).mean(axis=0),
        "attention_s": [phases["attention"] for phases in busy],
        "dense_s": np.zeros(GPUS),
        "gate_s": [phases["gate"] for phases in busy],
        "shared_s": np.zeros(GPUS),
        "expert_s": [phases["experts"] for phases in busy],
        "dispatch_transfer_s": moving["dispatch"],
        "combine_transfer_s": moving["combine"],
        "waiting_s": waits,
        "gradient_s": np.zeros(GPUS),
        "gradient_exposed_s": np.zeros(GPUS),
        "tensor_s": np.zeros(GPUS),
        "optimiser_s": np.zeros(GPUS),
        "bubble_s": np.zeros(GPUS),
        "idle_s": mean_time - computing - waits - moving["dispatch"] - moving["combine"],
        "weight_bytes": np.full(GPUS, 9.1e9),
        "peak_memory_bytes": 9.1e9 + rows.max(axis=(0, 1)) * ROW_BYTES,
    }
    pair = off.mean(axis=0).sum(axis=0) * 4 * ROW_BYTES
    source, destination = np.nonzero(pair)
    traffic = {
        "source": source,
        "destination": destination,
        "dispatch_bytes": pair[source, destination] / 2,
        "combine_bytes": pair[source, destination] / 2,
        "copies": copies.mean(axis=0).sum(axis=0)[source, destination] * 4.0,
    }
    links = _links(pair, node, mean_time)
    spans["step"] = spans["step"] + 1
    timeline = {name: column[spans["step"] == 1] for name, column in spans.items()}
    tables = {"steps": steps, "layers": layers, "experts": experts, "ranks": ranks, "gpus": gpus, "links": links, "traffic": traffic}
    moves = {
        "step": [2],
        "decided_s": [steps["start_s"][1]],
        "planner_s": [0.0],
        "layers": [LAYERS],
        "copies": [6],
        "bytes": [6 * 3.3e8],
        "transfer_s": [0.02],
        "stall_s": [0.0],
        "in_place_step": [-1],
    }
    tables |= {"collectives": _collectives(spans), "timeline": timeline, "spans": spans, "rebalances": moves}
    return {name: _table(columns) for name, columns in tables.items()}


def _links(pair: np.ndarray, node: np.ndarray, mean_time: float) -> dict[str, Any]:
    cross = node[:, None] != node[None, :]
    carried = {}
    for gpu in range(GPUS):
        carried[f"nvlink-out:{gpu}"], carried[f"nvlink-in:{gpu}"] = (pair * ~cross)[gpu].sum(), (pair * ~cross)[:, gpu].sum()
        carried[f"nic-out:{gpu}"], carried[f"nic-in:{gpu}"] = (pair * cross)[gpu].sum(), (pair * cross)[:, gpu].sum()
    for n in range(NODES):
        carried[f"up:{n}"] = carried[f"down:{1 - n}"] = (pair * cross)[node == n].sum()
    edges = _graph()["edges"]
    moved = np.array([carried[edge[2]] for edge in edges])
    bandwidth = np.array([edge[4] for edge in edges])
    busy = np.minimum(moved / bandwidth * 1.15, mean_time)
    return {
        "link": [edge[2] for edge in edges],
        "link_class": [edge[3] for edge in edges],
        "bandwidth_Bps": bandwidth,
        "bytes": moved,
        "busy_s": busy,
        "utilisation": moved / (bandwidth * mean_time),
        "busy_utilisation": moved / (bandwidth * busy),
    }


def _collectives(spans: dict[str, np.ndarray]) -> dict[str, Any]:
    mask = (spans["lane"] == "communication") & (spans["gpu"] == 0)
    first = np.flatnonzero(mask)
    all_of = [slice(at, at + GPUS) for at in first]
    return {
        "step": spans["step"][first],
        "layer": spans["layer"][first],
        "moe_layer": spans["moe_layer"][first],
        "microbatch": spans["microbatch"][first],
        "phase": spans["phase"][first],
        "direction": spans["direction"][first],
        "group": np.zeros(len(first), dtype=np.int64),
        "first_arrival_s": [spans["start_s"][rows].min() for rows in all_of],
        "last_arrival_s": [spans["start_s"][rows].max() for rows in all_of],
        "last_gpu": [int(spans["start_s"][rows].argmax()) for rows in all_of],
        "end_s": [spans["end_s"][rows].max() for rows in all_of],
        "moving_s": [spans["end_s"][rows].max() - spans["start_s"][rows].max() for rows in all_of],
        "transfer_s": [(spans["end_s"][rows] - spans["start_s"][rows] - spans["waiting_s"][rows]).mean() for rows in all_of],
        "alone_s": [spans["bytes"][rows].mean() / NIC / 4 for rows in all_of],
        "bytes": [spans["bytes"][rows].sum() for rows in all_of],
        "cross_node_bytes": [spans["bytes"][rows].sum() / 2 for rows in all_of],
        "port_bound_s": [spans["bytes"][rows].max() / NIC / 4 for rows in all_of],
        "link_bound_s": [spans["bytes"][rows].max() / NIC / 3 for rows in all_of],
        "bottleneck_link": ["nic-in:11"] * len(first),
    }


def example_metrics(tables: dict[str, Table]) -> dict[str, Value]:
    """Return metrics under their public names."""
    steps, layers = tables["steps"], tables["layers"]
    time = steps["step_time_s"]
    ratio = (layers["rank_max"] / layers["rank_mean"]).reshape(STEPS, LAYERS).mean(axis=1)
    expert_ratio = (layers["expert_max"] / layers["expert_mean"]).reshape(STEPS, LAYERS).mean(axis=1)
    drops = (layers["dropped"] / layers["routes"]).reshape(STEPS, LAYERS).mean(axis=1)
    cross = layers["cross_node_bytes"].reshape(STEPS, LAYERS).sum(axis=1)
    samples = {
        "step_time": (time, "s", "fitted"),
        "step_time_if_balanced": (time * 0.78, "s", "fitted"),
        "step_time_if_no_communication": (time * 0.49, "s", "fitted"),
        "tokens_per_second": (steps["tokens"] / time, "tokens/s", "fitted"),
        "dispatch_transfer_time": (steps["dispatch_transfer_s"], "s", "datasheet"),
        "combine_transfer_time": (steps["combine_transfer_s"], "s", "datasheet"),
        "waiting_time": (steps["waiting_s"], "s", "fitted"),
        "expert_time": (steps["expert_s"], "s", "fitted"),
        "exposed_communication": (steps["exposed_communication_s"], "s", "fitted"),
        "drop_rate": (drops, "", "exact"),
        "fully_dropped_tokens": (np.full(STEPS, np.nan), "", "exact"),
        "capacity_utilisation": (layers["kept"].reshape(STEPS, LAYERS).sum(axis=1) / 2e6, "", "exact"),
        "rank_max_over_mean": (ratio, "", "exact"),
        "expert_max_over_mean": (expert_ratio, "", "exact"),
        "maxvio": (expert_ratio - 1, "", "exact"),
        "balancedness": (1 / ratio, "", "exact"),
        "cross_node_bytes": (cross, "B", "exact"),
        "peak_memory": (np.full(STEPS, tables["gpus"]["peak_memory_bytes"].max()), "B", "datasheet"),
    }
    metrics = {}
    for name, (values, unit, basis) in samples.items():
        if np.isnan(values).any():
            metrics[name] = Value(value=None, unit=unit, low=None, high=None, n=0, basis=basis)
            continue
        found = mean_interval(values)
        metrics[name] = Value(value=found.value, unit=unit, low=found.low, high=found.high, n=found.n, basis=basis)
    return metrics


def example_result(scenario: Any, *, spans: bool = False) -> Result:
    """Return the run; ``scenario`` is any loaded scenario (its name, seed and model are shown, nothing is computed from it)."""
    tables = example_tables()
    metrics = example_metrics(tables)
    if not spans:
        del tables["spans"]
    facts = {
        "gpus": GPUS,
        "nodes": NODES,
        "links": len(_graph()["edges"]),
        "experts": EXPERTS,
        "top_k": TOP_K,
        "moe_layers": LAYERS,
        "tokens_per_step": GPUS * TOKENS,
        "model": "deepseek-v2-lite",
        "cluster": "nvlink_nodes: 2 nodes of 8 h100-sxm",
        "trace": None,
        "expert_group_size": GPUS,
        "graph": _graph(),
    }
    return Result(
        scenario=scenario,
        tables=tables,
        metrics=metrics,
        warnings=("The trace holds 3 steps and was read again from its start.",),
        assumptions=(
            "A pair of GPUs starts to exchange when both have arrived.",
            "Flows share links by max-min fairness; congestion control and packet loss are not modelled.",
            "Rows on the wire are bf16.",
        ),
        facts=facts,
        meta={"version": "0.1.0", "wall_time_s": 0.8},
    )


SCENARIO = """
name: hand-made example, EP 16
seed: 1
steps: 3
model: {preset: deepseek-v2-lite}
cluster: {kind: nvlink_nodes, gpu: h100-sxm, nodes: 2, gpus_per_node: 8}
parallel: {ep: 16}
workload: {phase: training, tokens_per_gpu: 4096}
routing: {kind: power_law}
policy: {capacity: {factor: 1.25, rule: megatron, drop: probs}}
"""


def example() -> Result:
    """Return the run with its spans, and a scenario that fits it."""
    from moesim.desk.scenario_file import read_scenario

    return example_result(read_scenario(SCENARIO, file="example.yaml", folder="."), spans=True)
