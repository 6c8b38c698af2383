"""From what happened to columns: the tables of a result."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.engine.bubbles import bubble, covered
from moesim.engine.own_tokens import held_tokens
from moesim.engine.rebalancing import Move
from moesim.engine.recorder import Recorder
from moesim.engine.tally import Mark, Tally
from moesim.facts.arrays import Floats, Ints
from moesim.facts.cluster import Cluster
from moesim.facts.placement import Placement
from moesim.facts.program import COLLECTIVES, GRADIENTS, OPTIMISER, PIPELINE, RECOMPUTE, SEND, TENSOR_CALLS, Program
from moesim.facts.record import Table
from moesim.facts.scenario import Setting
from moesim.models.memory import expert_bytes, peak_memory, weight_bytes
from moesim.models.parallel_memory import held_by, spread_or_recomputed
from moesim.models.stages import stage_of_layers

PHASES = ("attention", "dense", "gate", "shared", "experts")


def build_tables(
    recorder: Recorder, tally: Tally, *, setting: Setting, placement: Placement, program: Program, keep_spans: bool
) -> dict[str, Table]:
    """Return the tables of a result.

    Parameters
    ----------
    recorder : Recorder
        Spans and collectives of all steps.
    tally : Tally
        Counts of the measured steps.
    setting : Setting
    placement : Placement
    program : Program
        Says which stage runs which layer, and how many passes of a layer are kept.
    keep_spans : bool
        Whether to return every span, or those of the first measured step only.

    Returns
    -------
    dict of str to Table
        As ``docs/reference/results.md`` describes them.
    """
    spans, collectives = recorder.spans(), recorder.collectives()
    spans = spans.where(spans["step"] >= tally.warmup)
    marks = tally.marks[tally.warmup :]
    numbers = np.arange(tally.warmup, len(tally.marks))
    per_gpu = _phase_seconds(spans, numbers, setting.gpus)
    tables = {
        "steps": _steps(marks, numbers, tally, per_gpu),
        "layers": Table(
            columns={name: np.array(values) for name, values in tally.layer_rows.items()},
            units={name: "B" for name in tally.layer_rows if name.endswith("_bytes")},
        ),
        "experts": _experts(tally),
        "ranks": _ranks(tally, numbers, setting.gpus, program),
        "gpus": _gpus(tally, marks, per_gpu, setting, placement, program),
        "links": _links(tally, marks, setting.cluster),
        "traffic": _traffic(tally, len(marks)),
        "collectives": collectives.where(collectives["step"] >= tally.warmup),
        "timeline": spans.where(spans["step"] == numbers[0]),
    }
    if keep_spans:
        tables["spans"] = spans
    return tables


def _phase_seconds(spans: Table, numbers: NDArray[np.int64], gpus: int) -> dict[str, Floats]:
    """Return float[steps, G] seconds by phase, with collectives split into waiting and transferring."""
    seconds = spans["end_s"] - spans["start_s"]
    place = (spans["step"] - numbers[0]) * gpus + spans["gpu"]
    size = len(numbers) * gpus

    def total(values: Floats, mask: NDArray[np.bool_]) -> Floats:
        sums = np.bincount(place[mask], weights=values[mask], minlength=size).astype(np.float64)
        return sums.reshape(len(numbers), gpus)

    phase = spans["phase"]
    collective = np.isin(phase, COLLECTIVES)
    sums = {name: total(seconds, phase == name) for name in PHASES}
    sums["attention"] += total(seconds, phase == "attention_core")
    for name in COLLECTIVES:
        sums[name] = total(seconds - spans["waiting_s"], phase == name)
    sums["slowed"] = total(spans["slowed_s"], spans["slowed_s"] > 0)
    sums["waiting"] = total(spans["waiting_s"], collective)
    occupied = _occupied(spans, numbers, gpus)
    sums["exposed"] = occupied["at all"] - occupied["computing"]
    sums["gradients"] = occupied["gradients"]
    sums["gradients_exposed"] = occupied["at all"] - occupied["tokens"]
    sums["occupied"] = occupied["at all"]
    sums["tensor"] = total(seconds, np.isin(phase, TENSOR_CALLS))
    sums["optimiser"] = total(seconds, phase == OPTIMISER)
    sums["recompute"] = total(seconds, spans["direction"] == RECOMPUTE)
    sums["handed_over"] = total(seconds, phase == SEND)
    window, idle = bubble(spans, numbers, gpus)
    sums["pipeline"], sums["bubble"] = window, idle
    return sums


def _occupied(spans: Table, numbers: NDArray[np.int64], gpus: int) -> dict[str, Floats]:
    """Return float[steps, G], seconds in which a GPU has a task under way: any, one of computing, on gradients, or any but those."""
    spans = spans.where(spans["lane"] != PIPELINE)  # what is handed on keeps nobody busy, and who waits for it is idle
    of_gradients = spans["lane"] == GRADIENTS
    lanes = {"at all": np.ones(len(spans), dtype=np.bool_), "computing": spans["lane"] == "compute"}
    if of_gradients.any():
        lanes |= {"gradients": of_gradients, "tokens": ~of_gradients}
    order = np.lexsort((spans["start_s"], spans["gpu"], spans["step"]))
    step, gpu, start, end = (spans[name][order] for name in ("step", "gpu", "start_s", "end_s"))
    occupied = {name: np.zeros((len(numbers), gpus)) for name in lanes}
    bounds = np.flatnonzero(np.r_[True, (np.diff(step) != 0) | (np.diff(gpu) != 0), True])
    chosen = {name: mask[order] for name, mask in lanes.items()}
    for first, last in itertools.pairwise(bounds):
        part = slice(first, last)
        for name, mask in chosen.items():
            occupied[name][step[first] - numbers[0], gpu[first]] = covered(start[part][mask[part]], end[part][mask[part]])
    return {"gradients": np.zeros((len(numbers), gpus)), "tokens": occupied["at all"], **occupied}


def _steps(marks: list[Mark], numbers: NDArray[np.int64], tally: Tally, per_gpu: dict[str, Floats]) -> Table:
    columns: dict[str, NDArray[Any]] = {
        "step": numbers,
        "start_s": np.array([mark.start for mark in marks]),
        "step_time_s": np.array([mark.end - mark.start for mark in marks]),
        "tokens": np.array(tally.tokens[tally.warmup :]),
        "repeats": np.array(tally.repeats),
        "dispatch_transfer_s": per_gpu["dispatch"].mean(axis=1),
        "combine_transfer_s": per_gpu["combine"].mean(axis=1),
        "waiting_s": per_gpu["waiting"].mean(axis=1),
        "expert_s": per_gpu["experts"].mean(axis=1),
        "expert_slowest_s": per_gpu["experts"].max(axis=1),
        "attention_s": per_gpu["attention"].mean(axis=1),
        "dense_s": per_gpu["dense"].mean(axis=1),
        "gate_s": per_gpu["gate"].mean(axis=1),
        "shared_s": per_gpu["shared"].mean(axis=1),
        "gradient_s": per_gpu["gradients"].mean(axis=1),
        "gradient_exposed_s": per_gpu["gradients_exposed"].mean(axis=1),
        "exposed_communication_s": per_gpu["exposed"].mean(axis=1),
        "slowed_s": per_gpu["slowed"].mean(axis=1),
        "tensor_s": per_gpu["tensor"].mean(axis=1),
        "recompute_s": per_gpu["recompute"].mean(axis=1),
        "optimiser_s": per_gpu["optimiser"].mean(axis=1),
        "hand_over_s": per_gpu["handed_over"].mean(axis=1),
        "pipeline_s": per_gpu["pipeline"].mean(axis=1),
        "bubble_s": per_gpu["bubble"].mean(axis=1),
        "unequal_ranks_s": np.array(tally.unequal_ranks),
    }
    return Table(columns=columns, units={name: "s" for name in columns if name.endswith("_s")})


def _experts(tally: Tally) -> Table:
    routes = tally.routes if tally.routes is not None else np.zeros((0, tally.model.experts), dtype=np.int64)
    dropped = tally.dropped if tally.dropped is not None else np.zeros_like(routes)
    layers = np.repeat(np.arange(len(routes)), tally.model.experts)
    return Table(
        columns={
            "moe_layer": layers,
            "layer": np.array(tally.model.moe_layers)[layers],
            "expert": np.tile(np.arange(tally.model.experts), len(routes)),
            "routes": routes.ravel(),
            "dropped": dropped.ravel(),
        }
    )


def _ranks(tally: Tally, numbers: NDArray[np.int64], gpus: int, program: Program) -> Table:
    layers = len(tally.model.moe_layers)
    if program.stages > 1:
        return _ranks_of_stages(tally, numbers, gpus, program)
    return Table(
        columns={
            "step": np.repeat(numbers, layers * gpus),
            "moe_layer": np.tile(np.repeat(np.arange(layers), gpus), len(numbers)),
            "gpu": np.tile(np.arange(gpus), len(numbers) * layers),
            "rows": np.concatenate(tally.rank_rows["rows"]),
            "padding": np.concatenate(tally.rank_rows["padding"]),
        }
    )


def _ranks_of_stages(tally: Tally, numbers: NDArray[np.int64], gpus: int, program: Program) -> Table:
    """Return the rows of those GPUs that run each layer."""
    of_stage, layers = gpus // program.stages, tally.model.moe_layers
    stage_of = stage_of_layers(program, tally.model.layers)
    mine = np.array([np.arange(of_stage) + stage_of[layer] * of_stage for layer in layers])
    values = {
        name: np.array(tally.rank_rows[name]).reshape(len(numbers), len(layers), gpus)[:, np.arange(len(layers))[:, None], mine].ravel()
        for name in ("rows", "padding")
    }
    return Table(
        columns={
            "step": np.repeat(numbers, len(layers) * of_stage),
            "moe_layer": np.tile(np.repeat(np.arange(len(layers)), of_stage), len(numbers)),
            "gpu": np.tile(mine.ravel(), len(numbers)),
            **values,
        }
    )


def _gpus(tally: Tally, marks: list[Mark], per_gpu: dict[str, Floats], setting: Setting, placement: Placement, program: Program) -> Table:
    gpus = setting.gpus
    rows = np.concatenate(tally.rank_rows["rows"]).reshape(len(marks), -1, gpus)
    step_time = np.array([mark.end - mark.start for mark in marks])
    slots = np.tile(placement.slots_per_rank(setting.parallel.ep), setting.groups)
    weights = np.array([weight_bytes(setting.model, int(count), setting.workload.phase) for count in slots])
    # Training holds the activations of all layers at once, a forward pass those of one.
    held = rows.mean(axis=1) if setting.workload.phase == "training" else rows.max(axis=1)
    tokens, contexts = held_tokens(setting, np.stack(tally.tokens_of_gpus), np.arange(tally.warmup, len(tally.marks)))
    peak = [
        peak_memory(
            setting.model, setting.workload, int(slots[gpu]), held[:, gpu], tokens=tokens[:, gpu], context=contexts[:, gpu]
        ).max()
        for gpu in range(gpus)
    ]  # fmt: skip
    if spread_or_recomputed(setting):
        weights, peak = _spread(setting, program, slots, rows, tokens, contexts)
    columns: dict[str, NDArray[Any]] = {
        "gpu": np.arange(gpus),
        "node": setting.cluster.node_of,
        "rows": rows.sum(axis=1).mean(axis=0),
        "attention_s": per_gpu["attention"].mean(axis=0),
        "dense_s": per_gpu["dense"].mean(axis=0),
        "gate_s": per_gpu["gate"].mean(axis=0),
        "shared_s": per_gpu["shared"].mean(axis=0),
        "expert_s": per_gpu["experts"].mean(axis=0),
        "dispatch_transfer_s": per_gpu["dispatch"].mean(axis=0),
        "combine_transfer_s": per_gpu["combine"].mean(axis=0),
        "waiting_s": per_gpu["waiting"].mean(axis=0),
        "gradient_s": per_gpu["gradients"].mean(axis=0),
        "gradient_exposed_s": per_gpu["gradients_exposed"].mean(axis=0),
        "tensor_s": per_gpu["tensor"].mean(axis=0),
        "optimiser_s": per_gpu["optimiser"].mean(axis=0),
        "bubble_s": per_gpu["bubble"].mean(axis=0),
        "idle_s": np.maximum(step_time[:, None] - per_gpu["occupied"], 0.0).mean(axis=0),
        "weight_bytes": weights,
        "peak_memory_bytes": np.array(peak) + _guests(tally, setting),
    }
    units = {name: "s" if name.endswith("_s") else "B" for name in columns if name.endswith(("_s", "_bytes"))}
    return Table(columns=columns, units=units)


def _spread(setting: Setting, program: Program, slots: Ints, rows: Ints, tokens: Ints, contexts: Floats) -> tuple[Floats, list[float]]:
    """Return float[G] bytes of weights, and the peak of each GPU, where its stage and what it keeps matter."""
    held = [
        held_by(setting, program, gpu, int(slots[gpu]), rows[:, :, gpu], tokens[:, gpu], contexts[:, gpu]) for gpu in range(setting.gpus)
    ]
    return np.array([weights for weights, _ in held]), [weights + float(activations.max()) for weights, activations in held]


def _guests(tally: Tally, setting: Setting) -> Floats:
    """Return float[G], the bytes of experts that were copied to a GPU for a batch, at most; a layer's are gone before the next comes."""
    each = expert_bytes(setting.model, setting.workload.phase, optimiser=False)
    return np.zeros(setting.gpus) if tally.guests is None else np.asarray(tally.guests * each, dtype=np.float64)


def rebalances(moves: Sequence[Move]) -> Table:
    """Return one row per new placement that was decided during a run."""
    columns: dict[str, NDArray[Any]] = {
        "step": np.array([move.step for move in moves], dtype=np.int64),
        "decided_s": np.array([move.decided_at for move in moves], dtype=np.float64),
        "planner_s": np.array([move.planner for move in moves], dtype=np.float64),
        "layers": np.array([move.layers for move in moves], dtype=np.int64),
        "copies": np.array([move.copies for move in moves], dtype=np.int64),
        "bytes": np.array([move.bytes for move in moves], dtype=np.float64),
        "transfer_s": np.array([move.transfer for move in moves], dtype=np.float64),
        "stall_s": np.array([move.stall for move in moves], dtype=np.float64),
        "in_place_step": np.array([move.in_place for move in moves], dtype=np.int64),
    }
    return Table(columns=columns, units={name: "s" for name in columns if name.endswith("_s")} | {"bytes": "B"})


def _links(tally: Tally, marks: list[Mark], cluster: Cluster) -> Table:
    before = tally.marks[tally.warmup - 1] if tally.warmup else None
    carried = marks[-1].carried - (before.carried if before else 0.0)
    busy = marks[-1].busy - (before.busy if before else 0.0)
    seconds = sum(mark.end - mark.start for mark in marks)
    return Table(
        columns={
            "link": np.array(cluster.link_names),
            "link_class": np.array(cluster.link_class),
            "bandwidth_Bps": cluster.bandwidth,
            "bytes": carried / len(marks),
            "busy_s": busy / len(marks),
            "utilisation": carried / (cluster.bandwidth * seconds),
            "busy_utilisation": np.divide(carried, cluster.bandwidth * busy, out=np.zeros_like(carried), where=busy > 0),
        },
        units={"bandwidth_Bps": "B/s", "bytes": "B", "busy_s": "s"},
    )


def _traffic(tally: Tally, steps: int) -> Table:
    any_bytes = tally.traffic["dispatch_bytes"] + tally.traffic["combine_bytes"] + tally.traffic["copies"]
    group, source, destination = np.nonzero(any_bytes)
    first = group * tally.ranks
    columns: dict[str, NDArray[Any]] = {"source": first + source, "destination": first + destination}
    for name in ("dispatch_bytes", "combine_bytes", "copies"):
        columns[name] = tally.traffic[name][group, source, destination] / steps
    return Table(columns=columns, units={"dispatch_bytes": "B", "combine_bytes": "B"})
