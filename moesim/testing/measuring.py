"""The check of the slot ``metric``, and a record to try it on."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from moesim.base.errors import ContractBroken
from moesim.base.registry import plugin
from moesim.base.streams import stream
from moesim.facts.contracts import Record
from moesim.facts.record import Table
from moesim.facts.scenario import Parallel, Scenario, Workload
from moesim.measure.collect import declaration_problem
from moesim.testing.rules import demand, name_of, same
from moesim.testing.world import SEED, tiny_cluster, tiny_model

STEPS, LAYERS, GPUS, EXPERTS, TOKENS = 3, 2, 4, 8, 64

DIMENSIONS = {"": (0, 0), "s": (1, 0), "B": (0, 1), "B/s": (-1, 1), "tokens/s": (-1, 0), "1/s": (-1, 0)}
"""Unit -> the powers of seconds and of bytes in it."""

SECONDS, SIZE = 4.0, 8.0
"""Factors of the dimensional check: powers of two, so that no digit is lost."""


def check_metric(metric: Any, *, record: Record | None = None) -> None:
    """Check a metric.

    It declares unit, better and rests_on; gives one finite number or NaN per measured step, also for runs without traffic, capacity or
    known tokens; leaves the record alone; and scales like its unit when all times and all sizes of a run are multiplied.

    Parameters
    ----------
    metric : object
        An instance of a metric.
    record : Record or None
        Another run to try it on besides the small ones of the check.

    Raises
    ------
    ContractBroken
        Naming the rule and the numbers.
    """
    who = name_of("metric", metric)
    problem = declaration_problem(metric)
    if problem:
        raise ContractBroken("declaration", f"{who} {problem}")
    for number, each in enumerate([*tiny_records(), *([] if record is None else [record])]):
        before = {
            name: Table(columns={key: np.array(column) for key, column in table.columns.items()}) for name, table in each.tables.items()
        }
        samples = _samples(f"{who}, record {number}", metric, each)
        demand(same(samples, _samples(who, metric, each)), "law L8", f"{who}: measuring again gives other numbers")
        for name, table in before.items():
            for key, column in table.columns.items():
                text = f"{who}: changed column {key!r} of the table {name!r}"
                demand(same(column, np.asarray(each.tables[name][key])), "read-only", text)
        if metric.unit in DIMENSIONS:
            times, sizes = DIMENSIONS[metric.unit]
            factor = SECONDS**times * SIZE**sizes
            scaled = _samples(who, metric, _scaled(each))
            wrong = np.flatnonzero(~np.isclose(scaled, samples * factor, rtol=1e-9, atol=0.0, equal_nan=True))
            if wrong.size:
                step = int(wrong[0])
                text = f"expected {samples[step] * factor:g} for a metric in {metric.unit!r}"
                grown = f"times x {SECONDS:g} and sizes x {SIZE:g} turn {samples[step]:g} into {scaled[step]:g}"
                raise ContractBroken("dimension", f"{who}: {grown}, {text}")


def tiny_records() -> Iterator[Record]:
    """Yield runs of three measured steps: an ordinary one; one without traffic, capacity and known tokens; one of a single step."""
    busy = _tables(quiet=False)
    yield _record(busy, STEPS)
    yield _record(_tables(quiet=True), STEPS)
    yield _record({name: table.where(table["step"] == 1) if "step" in table.columns else table for name, table in busy.items()}, 1)


def _record(tables: Mapping[str, Table], steps: int) -> Record:
    scenario = Scenario(
        name="tiny",
        seed=SEED,
        steps=steps + 1,
        warmup=1,
        model=tiny_model(experts=EXPERTS),
        cluster=plugin("topology", "one_switch")(gpus=GPUS),
        parallel=Parallel(ep=GPUS),
        workload=Workload(tokens_per_gpu=TOKENS // GPUS),
        routing=plugin("source", "uniform")(),
    )
    bounds = {name: np.linspace(1.0, 2.0, steps) * scale for name, scale in _BOUNDS.items()}
    return Record(scenario=scenario, cluster=tiny_cluster(GPUS), tables=tables, bounds=bounds)


_BOUNDS = {"step_time_if_balanced": 0.75, "step_time_if_no_communication": 0.5}

_COMPUTING = ("attention", "dense", "gate", "shared", "expert")
_PHASES = (*_COMPUTING, "dispatch_transfer", "combine_transfer", "waiting", "gradient", "gradient_exposed", "bubble")
_WHOLE = ("tensor", "recompute", "optimiser", "hand_over", "pipeline", "unequal_ranks")


def _tables(*, quiet: bool) -> dict[str, Table]:
    """Return all tables of a run with numbers that differ from cell to cell, or mostly nothing if ``quiet``."""
    rng = stream(SEED, "testing", "record")
    steps = np.arange(1, STEPS + 1)

    def times(rows: int) -> Any:
        return rng.integers(1, 1000, size=rows) / 1024.0

    def sizes(rows: int) -> Any:
        return np.zeros(rows) if quiet else rng.integers(1, 10**6, size=rows).astype(np.float64)

    def counts(rows: int, most: int = 100) -> Any:
        return rng.integers(1, most, size=rows)

    step_time = times(STEPS) + 8.0
    layers = STEPS * LAYERS
    routes, dropped = counts(layers) + 100, np.zeros(layers, dtype=np.int64) if quiet else counts(layers, 50)
    expert_routes = counts(LAYERS * EXPERTS)
    expert_routes[0] = 0
    collectives = 0 if quiet else layers * 4
    arrival = times(collectives)
    pairs = np.argwhere(~np.eye(GPUS, dtype=np.bool_)) if not quiet else np.zeros((0, 2), dtype=np.int64)
    spans = STEPS * GPUS * 2
    links = tiny_cluster(GPUS)
    carried = sizes(links.links)
    timeline = {
        "step": np.repeat(steps, GPUS * 2),
        "layer": np.ones(spans, dtype=np.int64),
        "moe_layer": np.zeros(spans, dtype=np.int64),
        "microbatch": np.zeros(spans, dtype=np.int64),
        "direction": np.full(spans, "forward"),
        "gpu": np.tile(np.repeat(np.arange(GPUS), 2), STEPS),
        "lane": np.tile(["compute", "communication"], STEPS * GPUS),
        "phase": np.tile(["attention", "dispatch"], STEPS * GPUS),
        "start_s": times(spans),
        "end_s": times(spans) + 1.0,
        "bytes": sizes(spans),
        "tokens": counts(spans),
        "waiting_s": times(spans) / 8.0,
        "waited_for": np.full(spans, -1),
        "slowed_s": times(spans) / 16.0,
    }
    columns: dict[str, dict[str, Any]] = {
        "steps": {
            "step": steps,
            "start_s": np.cumsum(step_time) - step_time,
            "step_time_s": step_time,
            "tokens": np.full(STEPS, TOKENS),
            "repeats": np.full(STEPS, -1),
        }
        | {f"{phase}_s": times(STEPS) for phase in (*_PHASES, *_WHOLE)}
        | {"expert_slowest_s": times(STEPS) + 1.0, "exposed_communication_s": times(STEPS), "slowed_s": times(STEPS)},
        "layers": {
            "step": np.repeat(steps, LAYERS),
            "moe_layer": np.tile(np.arange(LAYERS), STEPS),
            "layer": np.tile(np.arange(LAYERS) + 1, STEPS),
            "tokens": np.full(layers, TOKENS),
            "routes": routes,
            "dropped": dropped,
            "kept": routes - dropped,
            "padding": np.zeros(layers, dtype=np.int64) if quiet else counts(layers),
            "fully_dropped": np.full(layers, -1) if quiet else counts(layers, 20),
            "capacity_rows": np.full(layers, -1) if quiet else routes + counts(layers),
            "expert_max": routes / EXPERTS + counts(layers),
            "expert_mean": routes / EXPERTS,
            "rank_max": routes / GPUS + counts(layers),
            "rank_mean": routes / GPUS,
            "dispatch_bytes": sizes(layers),
            "combine_bytes": sizes(layers),
            "cross_node_bytes": sizes(layers),
            "dispatch_cross_node_bytes": sizes(layers),
            "dispatch_library_bytes": sizes(layers),
            "combine_library_bytes": sizes(layers),
            "copies": np.zeros(layers, dtype=np.int64) if quiet else counts(layers),
            "nodes": counts(layers),
            "idle_experts": counts(layers, 3),
            "stagnant_experts": counts(layers, 3),
            "idle_longest": counts(layers, 4),
            "load_cv": times(layers),
            "load_entropy": times(layers),
            "load_correlation": np.full(layers, np.nan) if quiet else times(layers) - 0.5,
            "source_information": times(layers),
            "domain_information": np.full(layers, np.nan) if quiet else times(layers),
        },
        "experts": {
            "moe_layer": np.repeat(np.arange(LAYERS), EXPERTS),
            "layer": np.repeat(np.arange(LAYERS) + 1, EXPERTS),
            "expert": np.tile(np.arange(EXPERTS), LAYERS),
            "routes": expert_routes,
            "dropped": expert_routes // 4,
        },
        "ranks": {
            "step": np.repeat(steps, LAYERS * GPUS),
            "moe_layer": np.tile(np.repeat(np.arange(LAYERS), GPUS), STEPS),
            "gpu": np.tile(np.arange(GPUS), layers),
            "rows": counts(layers * GPUS),
            "padding": np.zeros(layers * GPUS, dtype=np.int64),
        },
        "gpus": {"gpu": np.arange(GPUS), "node": links.node_of, "rows": counts(GPUS).astype(np.float64)}
        | {f"{phase}_s": times(GPUS) for phase in (*_PHASES, "tensor", "optimiser", "idle")}
        | {"weight_bytes": np.full(GPUS, 1e9), "peak_memory_bytes": 2e9 + sizes(GPUS)},
        "links": {
            "link": np.array(links.link_names),
            "link_class": np.array(links.link_class),
            "bandwidth_Bps": np.array(links.bandwidth),
            "bytes": carried,
            "busy_s": np.where(carried > 0, times(links.links), 0.0),
            "utilisation": carried / 1e7,
            "busy_utilisation": carried / 1e6,
        },
        "traffic": {
            "source": pairs[:, 0],
            "destination": pairs[:, 1],
            "dispatch_bytes": sizes(len(pairs)),
            "combine_bytes": sizes(len(pairs)),
            "copies": counts(len(pairs)).astype(np.float64),
        },
        "collectives": {
            "step": np.repeat(steps, collectives // STEPS),
            "layer": np.ones(collectives, dtype=np.int64),
            "moe_layer": np.zeros(collectives, dtype=np.int64),
            "microbatch": np.zeros(collectives, dtype=np.int64),
            "phase": np.resize(["dispatch", "combine"], collectives),
            "direction": np.resize(["forward", "forward", "backward", "backward"], collectives),
            "group": np.zeros(collectives, dtype=np.int64),
            "first_arrival_s": arrival,
            "last_arrival_s": arrival + 0.25,
            "last_gpu": np.zeros(collectives, dtype=np.int64),
            "end_s": arrival + 0.25 + times(collectives),
            "moving_s": times(collectives),
            "transfer_s": times(collectives),
            "alone_s": times(collectives),
            "bytes": sizes(collectives),
            "cross_node_bytes": sizes(collectives),
            "port_bound_s": times(collectives),
            "link_bound_s": times(collectives),
            "bottleneck_link": np.resize(["out:0"], collectives),
        },
        "timeline": {name: column[: GPUS * 2] for name, column in timeline.items()},
        "spans": timeline,
    }
    return {name: Table(columns={key: _read_only(column) for key, column in table.items()}) for name, table in columns.items()}


def _read_only(column: Any) -> Any:
    array = np.array(column)
    array.flags.writeable = False
    return array


def _samples(who: str, metric: Any, record: Record) -> Any:
    answer = metric.measure(record)
    samples = np.asarray(answer, dtype=np.float64)
    steps = len(record.steps)
    demand(samples.shape == (steps,), "shape", f"{who}: returned shape {samples.shape}, expected ({steps},): one number per measured step")
    demand(not np.isinf(samples).any(), "range", f"{who}: returned an infinite number; use NaN for what cannot be told")
    return samples


def _scaled(record: Record) -> Record:
    """Return the same run with all times and all sizes multiplied."""
    tables = {
        name: Table(columns={key: column * _factor(key) if _factor(key) != 1.0 else column for key, column in table.columns.items()})
        for name, table in record.tables.items()
    }
    bounds = {name: bound * SECONDS for name, bound in record.bounds.items()}
    return dataclasses.replace(record, tables=tables, bounds=bounds)


def _factor(column: str) -> float:
    if column.endswith("_s"):
        return SECONDS
    if column == "bytes" or column.endswith("_bytes"):
        return SIZE
    return SIZE / SECONDS if column.endswith("_Bps") else 1.0
