"""Does a sweep keep the cores busy? The same cells on one core and on all, by turns, from start to end of the command.

    python benchmarks/sweep.py [--cells 1000] [--rounds 1]

Prints, for each run, its seconds, those of the processor, cells per second, and ``busy``: seconds of the processor by second, which is how
many cores it kept at work. Then the ratio of cells per second, of the best round of each. With others at work the clock measures them too,
and this ratio and ``busy`` say little. Seconds of the processor still say what two cores could give at most: less than twice as much only
by what workers need beyond the same cells in one process. That bound is printed, too.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

SCENARIO = """\
name: many small cells
seed: 1
steps: 2
model: {preset: qwen3-30b-a3b, layers: 6, moe_layers: [0, 1, 2, 3, 4, 5]}
cluster: {kind: nvlink_nodes, gpu: h200-sxm, nodes: 2, gpus_per_node: 4, nic: 400 Gb/s}
parallel: {ep: 8}
workload: {phase: prefill, tokens_per_gpu: 512, context: 1024}
routing: {kind: lognormal, sigma: 0.5}
policy: {capacity: {rule: megatron, factor: 1.25}}
"""


def swept(cells: int, cores: set[int]) -> dict[str, float]:
    """Run the command on these cores; return what it took."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "scenario.yaml").write_text(SCENARIO, encoding="utf-8")
        words = [f"seed=1..{-(-cells // 4)}", "policy.capacity.factor=1.0,1.25,1.5,2.0"]
        where = ["--executor", "inline"] if len(cores) == 1 else ["-j", str(len(cores))]
        command = [sys.executable, "-m", "moesim", "sweep", "scenario.yaml", *words, *where, "-o", "out", "--quiet", "--format", "csv"]
        load = os.getloadavg()[0]
        before, used = os.sched_getaffinity(0), _processor()
        os.sched_setaffinity(0, cores)
        began = time.perf_counter()
        try:
            subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL, env={**os.environ, "PYTHONPATH": str(ROOT)})
        finally:
            os.sched_setaffinity(0, before)
        seconds, processor = time.perf_counter() - began, _processor() - used
        played = json.loads((Path(folder) / "out" / "meta.json").read_text())["played"]
    return {
        "cores": len(cores),
        "cells": played,
        "seconds": seconds,
        "processor": processor,
        "cells_per_second": played / seconds,
        "busy": processor / seconds,
        "load_before": load,
    }


def _processor() -> float:
    """Return the processor seconds of all commands so far, with those of their workers."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main() -> None:
    """Print one line per run, then the ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=1)
    options = parser.parse_args()
    every = sorted(os.sched_getaffinity(0))
    swept(4, set(every))  # compiles what has to be compiled, and fills the disk's cache
    swept(4, set(every))  # compiles what has to be compiled, and fills the disk's cache
    best: dict[int, dict[str, float]] = {}
    for turn in range(options.rounds):
        for cores in (set(every[:1]), set(every)) if turn % 2 == 0 else (set(every), set(every[:1])):
            found = swept(options.cells, cores)
            if found["cells_per_second"] > best.get(len(cores), {"cells_per_second": 0.0})["cells_per_second"]:
                best[len(cores)] = found
            print(json.dumps({name: round(value, 3) for name, value in found.items()}), flush=True)
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    one, many = best[1], best[len(every)]
    ratio = many["cells_per_second"] / one["cells_per_second"]
    most = len(every) * one["processor"] / one["cells"] / (many["processor"] / many["cells"])
    print(f"{len(every)} cores: {ratio:.2f} x one core by the clock; at most {most:.2f} x by seconds of the processor")
    print(f"the largest process held {peak:.0f} MiB")


if __name__ == "__main__":
    main()
