"""What ``moesim place`` answers: one mapping for scripts, a table for people, rows for a spreadsheet.

The keys of the mapping are a contract; add to them, do not rename.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from moesim.base.loads import max_over_mean
from moesim.base.units import format_quantity
from moesim.desk.place_plan import Placed, number_of

SCHEMA = 1


def answer(placed: Placed) -> dict[str, Any]:
    """Return everything that was found out."""
    sizes, load = placed.sizes, placed.gpu_load
    return {
        "schema": SCHEMA,
        "name": placed.name,
        "kind": placed.kind,
        "slots": sizes.slots,
        "gpus": sizes.gpus,
        "nodes": sizes.nodes,
        "groups": sizes.groups,
        "layers": None if placed.layers is None else list(placed.layers),
        "physical_to_logical_map": placed.plan.physical_to_logical_map.tolist(),
        "logical_count": placed.plan.logical_count.tolist(),
        "gpu_load": load.tolist(),
        "max_over_mean": max_over_mean(load).tolist(),
        "max_over_mean_in_order": None if placed.in_order is None else max_over_mean(placed.in_order).tolist(),
        "memory": redundant_memory(placed),
        "warnings": list(placed.notes),
        "units": {"redundant_bytes_per_gpu": "B", "redundant_bytes": "B", "expert_bytes_per_gpu": "B"},
    }


def text_of(told: Mapping[str, Any]) -> str:
    """Return an answer as JSON, a line for each key: a placement written a number per line would be thousands of lines long."""
    lines = ",\n".join(f"  {json.dumps(key)}: {json.dumps(value, ensure_ascii=False, allow_nan=False)}" for key, value in told.items())
    return f"{{\n{lines}\n}}\n"


def redundant_memory(placed: Placed) -> dict[str, float] | None:
    """Return the bytes that slots beyond one per expert take, and those of all routed experts; None without a model.

    ``per_gpu`` is what the mean GPU holds; slots are shared equally.
    """
    model = placed.model
    if model is None:
        return None
    layers = len(model.moe_layers)
    slots, gpus = int(placed.sizes.slots or 0), int(placed.sizes.gpus or 1)
    one = model.expert_bytes * layers
    return {
        "redundant_bytes_per_gpu": one * (slots - model.experts) / gpus,
        "redundant_bytes": one * (slots - model.experts),
        "expert_bytes_per_gpu": one * slots / gpus,
    }


def rows(placed: Placed) -> str:
    """Return the plan as CSV, a line for each slot of each layer, with its share of its expert's load."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["layer", "slot", "gpu", "expert", "replicas", "load"])
    plan = placed.plan
    share = placed.loads / plan.logical_count
    for row, experts in enumerate(plan.physical_to_logical_map.tolist()):
        layer, count, load = number_of(placed.layers, row), plan.logical_count[row].tolist(), share[row].tolist()
        gpus = plan.rank_of_slot.tolist()
        writer.writerows([layer, slot, gpus[slot], expert, count[expert], repr(load[expert])] for slot, expert in enumerate(experts))
    return text.getvalue()


def table(placed: Placed) -> str:
    """Return the answer for a terminal."""
    sizes, load = placed.sizes, placed.gpu_load
    layers, experts = placed.loads.shape
    lines = [
        f"{placed.name}: {layers} layers, {experts} experts, planned by {placed.kind}",
        f"{sizes.slots} slots on {sizes.gpus} GPUs in {_some(sizes.nodes, 'node')}, {_some(sizes.groups, 'group')} of experts",
        "",
        "max/mean of the GPUs' loads, if replicas share the load of their expert evenly:",
        f"{'layer':>5}  {'in order':>8}  {'planned':>8}  hottest expert",
    ]
    planned = max_over_mean(load)
    before = np.full(layers, np.nan) if placed.in_order is None else max_over_mean(placed.in_order)
    for row in range(layers):
        hottest = int(placed.loads[row].argmax())
        copies = int(placed.plan.logical_count[row, hottest])
        hot = f"{hottest}, {copies} replica{'s' * (copies != 1)}, {float(max_over_mean(placed.loads[row])):.3g} times the mean"
        lines.append(f"{number_of(placed.layers, row):>5}  {_shown(before[row]):>8}  {planned[row]:>8.3f}  {hot}")
    if layers > 1:
        lines.append(f"{'mean':>5}  {_shown(before.mean()):>8}  {planned.mean():>8.3f}")
    if placed.in_order is None:
        lines += ["", f"? in order: {experts} experts do not divide over {sizes.gpus} GPUs"]
    memory = redundant_memory(placed)
    if memory is not None and placed.model is not None:
        extra, whole = (format_quantity(memory[name], "B") for name in ("redundant_bytes_per_gpu", "expert_bytes_per_gpu"))
        lines += ["", f"memory of {placed.model.name}: redundant experts take {extra} of each GPU, all its experts {whole}"]
    return "\n".join(lines)


def _some(number: int | None, noun: str) -> str:
    return f"{number} {noun}{'s' * (number != 1)}"


def _shown(value: Any) -> str:
    return "?" if np.isnan(value) else f"{value:.3f}"
