"""Is a study done in a minute? Three policies x four capacity factors x 26 MoE layers of recorded routing x 100 steps, on two cores.

    python benchmarks/study_minute.py [--steps 100] [--tokens 1024] [--jobs 2] [--phase prefill]

Writes the scenario over the recording that ships with moesim, runs ``moesim sweep`` on it from start to end of the command, and prints its
seconds, those of the processor, and these by step. Where neighbours use the machine, only those of the processor say something.
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
TRACE = ROOT / "scenarios" / "traces" / "deepseek-v2-lite-intent.npz"
FACTORS = "1.0,1.25,1.5,2.0"
POLICIES = ("contiguous", "round_robin", "eplb")

SCENARIO = """\
name: a study in a minute
seed: 1
steps: {steps}
model: {{preset: deepseek-v2-lite}}
cluster: {{kind: nvlink_nodes, gpu: h100-sxm, nodes: 2, gpus_per_node: 4, nic: 400 Gb/s, oversubscription: 2, nodes_per_leaf: 1}}
parallel: {{ep: 8}}
workload: {{phase: {phase}, tokens_per_gpu: {tokens}, context: 1024}}
routing: {{kind: recorded, trace: {trace}, deal: conversations}}
policy: {{capacity: {{rule: megatron, factor: 1.25, drop: probs}}}}
matrix:
  policy.placement: [{placements}]
"""
PLACEMENTS = {
    "contiguous": "contiguous",
    "round_robin": "round_robin",
    "eplb": "{kind: eplb, redundant: 16, window: 10, interval: 25, algorithm: global}",
}


def text_of(*, steps: int, tokens: int, phase: str) -> str:
    """Return the scenario of all cells, but for the factors."""
    return SCENARIO.format(
        steps=steps, tokens=tokens, phase=phase, trace=TRACE, placements=", ".join(PLACEMENTS[name] for name in POLICIES)
    )


def studied(text: str, jobs: int, environment: dict[str, str]) -> dict[str, float]:
    """Run the command; return what it took."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "scenario.yaml").write_text(text, encoding="utf-8")
        where = ["--executor", "inline"] if jobs == 1 else ["-j", str(jobs)]
        words = ["sweep", "scenario.yaml", f"policy.capacity.factor={FACTORS}", *where, "-o", "out", "--quiet", "--format", "csv"]
        before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        subprocess.run([sys.executable, "-m", "moesim", *words], cwd=folder, check=True, stdout=subprocess.DEVNULL, env=environment)
        seconds, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
        played = json.loads((Path(folder) / "out" / "meta.json").read_text(encoding="utf-8"))["played"]
    processor = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"cells": played, "seconds": seconds, "processor": processor, "peak_MiB": after.ru_maxrss / 1024}


def main() -> None:
    """Print what a study takes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--tokens", type=int, default=1024, help="of each of the 8 GPUs")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--phase", default="prefill", choices=("prefill", "training", "decode"))
    options = parser.parse_args()
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"}
    studied(text_of(steps=2, tokens=options.tokens, phase=options.phase), options.jobs, environment)  # compiles what has to be compiled
    load = os.getloadavg()[0]
    found = studied(text_of(steps=options.steps, tokens=options.tokens, phase=options.phase), options.jobs, environment)
    each = found["processor"] / found["cells"] / options.steps
    print(json.dumps({**{name: round(value, 2) for name, value in found.items()}, "load_before": round(load, 2)}))
    print(f"{found['cells']:.0f} cells of {options.steps} steps: {found['seconds']:.0f} s; {1e3 * each:.0f} ms of one core a step")


if __name__ == "__main__":
    main()
