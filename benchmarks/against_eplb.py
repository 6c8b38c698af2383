"""Time EPLB of 61 layers, 256 experts and 320 slots against DeepSeek's own file, which is not part of this project.

    python benchmarks/against_eplb.py path/to/eplb.py

Takes deepseek-ai/EPLB's ``eplb.py`` (it needs PyTorch), or any file with its ``rebalance_experts``. Both plan the same loads, in turns;
numbers of replicas have to agree, or the exit code is 3.
"""

from __future__ import annotations

import importlib.util
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from moesim.models.placement.eplb_plan import plan_eplb

LAYERS, EXPERTS, SLOTS, ROUNDS = 61, 256, 320, 5
CASES = [("global, 64 GPUs", 64, 8, 1), ("global, 32 GPUs", 32, 4, 1), ("hierarchical, 64 GPUs in 8 nodes, 8 groups", 64, 8, 8)]


def loads() -> np.ndarray[Any, Any]:
    """Return float[L, E], popularities as uneven as a fitted router's."""
    return np.random.default_rng(0).lognormal(sigma=1.0, size=(LAYERS, EXPERTS)).round(3) * 1000


def processor_seconds(work: Callable[[], Any]) -> tuple[float, Any]:
    """Return the processor time of a call, and what it returned."""
    began = time.process_time()
    answer = work()
    return time.process_time() - began, answer


def main(path: Path) -> int:
    """Print a row for each case; return 0, or 3 if the plans do not agree."""
    import torch

    torch.set_num_threads(1)
    spec = importlib.util.spec_from_file_location("eplb_reference", path)
    if spec is None or spec.loader is None:
        raise SystemExit(f"{path} is no Python file")
    reference = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(reference)
    given = loads()
    agree = True
    print(f"{LAYERS} layers, {EXPERTS} experts, {SLOTS} slots; median of {ROUNDS} rounds, processor time of one thread")
    for name, gpus, nodes, groups in CASES:
        ours, theirs = [], []
        for _ in range(ROUNDS):
            seconds, plan = processor_seconds(partial(plan_eplb, given, slots=SLOTS, gpus=gpus, nodes=nodes, groups=groups))
            ours.append(seconds)
            weight = torch.tensor(given)
            seconds, (_, _, count) = processor_seconds(partial(reference.rebalance_experts, weight, SLOTS, groups, nodes, gpus))
            theirs.append(seconds)
        same = np.array_equal(plan.logical_count, count.numpy())
        agree = agree and same
        mine, other = float(np.median(ours)), float(np.median(theirs))
        said = "same replicas" if same else "OTHER REPLICAS"
        print(f"{name}: moesim {1e3 * mine:.1f} ms, reference {1e3 * other:.1f} ms, {other / mine:.0f} times as long; {said}")
    return 0 if agree else 3


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    sys.exit(main(Path(sys.argv[1])))
