"""How cost grows with GPUs, layers, steps and cells: processor seconds and peak memory of one run, each in a process of its own.

    python benchmarks/scale.py [--most 512] [--cells 64] [--only gpus] [--json FILE]

Prints a table per axis with the exponent of the growth between its last points, and what that would make of 10,000 GPUs. Seconds are of the
processor, since clocks of shared machines measure their neighbours too; compiled code is loaded before the clock starts.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
TARGET = 10_000
"""GPUs that the table is extended to."""

SCENARIO = """\
name: scale
seed: 1
steps: {steps}
model:
  name: small
  layers: {layers}
  moe_layers: [{moe_layers}]
  hidden: 2048
  experts: {experts}
  top_k: 8
  expert_width: 768
  dispatch_width: 2048
  attention: {{heads: 32, score_width: 128, projection_parameters: 18874368, cache_bytes_per_token: 2048}}
cluster: {{kind: nvlink_nodes, gpu: h100-sxm, nodes: {nodes}, gpus_per_node: 8, nic: 400 Gb/s}}
parallel: {{ep: {ep}}}
workload: {{phase: prefill, tokens_per_gpu: 64, context: 1024}}
routing: {{kind: lognormal, sigma: 0.5}}
sharing: {{mode: {sharing}}}
"""

PLAIN = {"gpus": 16, "ep": 16, "layers": 2, "steps": 2, "sharing": "exact", "cells": 0}


def axes(most: int, cells: int) -> dict[str, tuple[str, list[dict[str, Any]]]]:
    """What is varied, each with what a reader is told about it and its points."""
    gpus = [size for size in (8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096) if size <= most]
    wide = [size for size in gpus if size <= 256]
    coarse = [size for size in gpus if 64 <= size <= 512]
    return {
        "gpus": ("GPUs, expert groups of one node (EP 8)", [{"gpus": size, "ep": 8} for size in gpus]),
        "eight_nodes": ("GPUs, expert groups of eight nodes (EP 64)", [{"gpus": size, "ep": 64} for size in gpus if 64 <= size <= 2048]),
        "wide": ("GPUs, one expert group of all, exact sharing", [{"gpus": size, "ep": size} for size in wide]),
        "coarse": ("GPUs, one expert group of all, coarse sharing", [{"gpus": size, "ep": size, "sharing": "coarse"} for size in coarse]),
        "layers": ("MoE layers", [{"layers": count} for count in (4, 8, 16, 32, 64)]),
        "steps": ("steps", [{"steps": count} for count in (4, 8, 16, 32, 64)]),
        "cells": ("cells of a sweep", [{"cells": count} for count in (4, 8, 16, 32, 64, 128, 256) if count <= cells]),
    }


def text_of(point: dict[str, Any]) -> str:
    layers = point["layers"]
    return SCENARIO.format(
        steps=point["steps"], layers=layers, moe_layers=", ".join(map(str, range(layers))), nodes=max(point["gpus"] // 8, 1),
        experts=max(64, point["ep"]), ep=point["ep"], sharing=point["sharing"],
    )  # fmt: skip


def memory() -> float:
    """Peak resident bytes of this process so far."""
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def measure(point: dict[str, Any]) -> dict[str, Any]:
    """Measure one point, in a process that has done nothing else."""
    import moesim

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "scale.yaml"
        path.write_text(text_of({**PLAIN, "gpus": 8, "ep": 8, "sharing": point["sharing"], "layers": 1, "steps": 1}), encoding="utf-8")
        moesim.run(path)  # loads and compiles what the clock should not see
        if point["cells"]:
            moesim.sweep(path, ["seed=1..2"])
        path.write_text(text_of(point), encoding="utf-8")
        before, began = memory(), time.process_time()
        if point["cells"]:
            moesim.sweep(path, [f"seed=1..{point['cells']}"])
            return {"build": None, "seconds": time.process_time() - began, "peak": memory(), "before": before}
        scenario = moesim.load_scenario(path)
        cluster = scenario.cluster.build()
        build = time.process_time() - began
        routes = cluster.route_start.nbytes + cluster.route_link.nbytes
        del cluster
        moesim.run(scenario)  # builds it again, as every run does
        return {
            "build": build,
            "seconds": time.process_time() - began - build,
            "peak": memory(),
            "before": before,
            "routes": routes,
        }


def apart(point: dict[str, Any]) -> dict[str, Any]:
    """Measure one point in a new process."""
    done = subprocess.run(
        [sys.executable, __file__, "--point", json.dumps(point)], capture_output=True, text=True, check=False, env=_environment()
    )  # fmt: skip
    if done.returncode:
        raise SystemExit(f"{point}: {done.stderr.strip().splitlines()[-1] if done.stderr.strip() else done.returncode}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    changed = ", ".join(f"{name} {value}" for name, value in point.items() if value != PLAIN[name]) or "as it is"
    print(f"{changed}: {found['seconds']:.2f} s, {found['peak'] / 1e6:,.0f} MB", file=sys.stderr, flush=True)
    return found


def _environment() -> dict[str, str]:
    import os

    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"}


def exponent(sizes: list[float], values: list[float]) -> float:
    """The slope between the last three points, both axes logarithmic, least squares."""
    points = [(math.log(size), math.log(value)) for size, value in zip(sizes, values, strict=True) if value > 0][-3:]
    if len(points) < 2:
        return math.nan
    x, y = (sum(point[axis] for point in points) / len(points) for axis in (0, 1))
    return sum((a - x) * (b - y) for a, b in points) / sum((a - x) ** 2 for a, _ in points)


def show(title: str, varied: str, points: list[dict[str, Any]], found: list[dict[str, Any]]) -> None:
    sizes = [float(point[varied]) for point in points]
    gained = [max(each["peak"] - each["before"], 0.0) for each in found]
    print(f"\n{title}")
    print(f"| {varied} | cluster, s | run, s | peak memory | more than at the start | route arrays |")
    print("| --- | --- | --- | --- | --- | --- |")
    for size, each, more in zip(sizes, found, gained, strict=True):
        build = "" if each["build"] is None else f"{each['build']:.2f}"
        routes = f"{each['routes'] / 1e6:,.1f} MB" if "routes" in each else ""
        print(f"| {size:,.0f} | {build} | {each['seconds']:.2f} | {each['peak'] / 1e6:,.0f} MB | {more / 1e6:,.0f} MB | {routes} |")
    kinds = {"run": [each["seconds"] for each in found], "memory": gained}
    if all(each["build"] is not None for each in found):
        kinds = {"cluster": [each["build"] for each in found], **kinds}
    for name, values in kinds.items():
        slope = exponent(sizes, values)
        last = ""
        if varied == "gpus" and values[-1] > 0:
            there = values[-1] * (TARGET / sizes[-1]) ** slope
            last = f"; at {TARGET:,} GPUs " + (f"{there / 1e9:,.1f} GB" if name == "memory" else f"{there:,.0f} s") + " if it goes on so"
        print(f"  {name}: exponent {slope:.2f}{last}")
    sys.stdout.flush()


def main() -> None:
    """Measure and print."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--most", type=int, default=512, help="GPUs of the largest cluster")
    options.add_argument("--cells", type=int, default=64, help="cells of the largest sweep")
    options.add_argument("--only", action="append", help="an axis; all if left out")
    options.add_argument("--json", type=Path, help="where numbers go, too")
    options.add_argument("--point", help=argparse.SUPPRESS)
    asked = options.parse_args()
    if asked.point:
        print(json.dumps(measure(json.loads(asked.point))))
        return
    everything = {}
    for name, (title, points) in axes(asked.most, asked.cells).items():
        if asked.only and name not in asked.only:
            continue
        whole = [{**PLAIN, **point} for point in points]
        found = [apart(point) for point in whole]
        varied = "gpus" if name in {"gpus", "eight_nodes", "wide", "coarse"} else name
        show(title, varied, whole, found)
        everything[name] = [{**point, **each} for point, each in zip(whole, found, strict=True)]
        if asked.json:
            asked.json.write_text(json.dumps(everything, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
