"""Record the ends that SimGrid gives the flows of small problems, as golden data of the tests.

    python benchmarks/foreign/record_ends.py

Writes ``tests/golden/simgrid_ends.npz`` (arrays ``<case>__<column>``) and ``.json`` (how they were made). Run it again after a change here.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from foreign import simgrid
from skewed import Problem, one_switch, rails, torus, two_tiers

GOLDEN = Path(__file__).resolve().parents[2] / "tests" / "golden"
SMALL = {"gpus_per_node": 4, "nodes_per_leaf": 2}
FINE = 1e-18
"""Precision in s where some flows last less than a nanosecond."""


def spread(problem: Problem, seed: int) -> Problem:
    """Every flow starts at its own nanosecond within the time that the busiest link needs."""
    rng = np.random.default_rng(seed)
    return replace(problem, start=np.round(rng.uniform(0, problem.bound, problem.flows), 9))


def bursts(problem: Problem, seed: int) -> Problem:
    """Each GPU starts all its flows at one moment, as a rank that arrives late does; some arrive together."""
    rng = np.random.default_rng(seed)
    moments = np.round(problem.bound * rng.integers(0, 6, problem.gpus) / 5, 9)
    return replace(problem, start=moments[problem.source])


def idle_between(problem: Problem) -> Problem:
    """Every fourth GPU comes after the rest have long ended: the links idle in between."""
    return replace(problem, start=np.where(problem.source % 4 == 0, np.round(5 * problem.bound, 6), 0.0))


def sizes(problem: Problem, choices: np.ndarray, seed: int) -> Problem:
    rng = np.random.default_rng(seed)
    return replace(problem, size=rng.choice(choices, problem.flows))


def powers_of_ten(problem: Problem, seed: int) -> Problem:
    """From one byte to 100 GB, every order of magnitude alike; half of the flows start at 1 ns, half at 1 s."""
    rng = np.random.default_rng(seed)
    start = np.where(rng.random(problem.flows) < 0.5, 1e-9, 1.0)
    return replace(problem, size=np.round(10 ** rng.uniform(0, 11, problem.flows)), start=start)


def changed(problem: Problem, seed: int) -> Problem:
    """Twelve links get another capacity while flows are on their way: slower, faster, one of them twice."""
    rng = np.random.default_rng(seed)
    at = np.round(np.sort(rng.uniform(0, problem.bound, 12)), 9)
    link = rng.choice(problem.route[problem.route >= 0], 12).astype(np.int32)
    link[-1] = link[0]
    return replace(problem, changes=(at, link, np.round(problem.capacity[link] * rng.choice([0.1, 0.5, 2.0, 4.0], 12))))


def weighted(problem: Problem, seed: int) -> Problem:
    """Weights over a factor of ten; flows start when SimGrid lets such a flow start, at 1 / weight seconds or later."""
    rng = np.random.default_rng(seed)
    weight = np.round(rng.uniform(1e4, 1e5, problem.flows))
    return replace(problem, weight=weight, start=problem.start + 1 / weight)


def capped(problem: Problem, seed: int) -> Problem:
    """Half of the flows can use only so much."""
    rng = np.random.default_rng(seed)
    return replace(problem, cap=np.where(rng.random(problem.flows) < 0.5, np.round(rng.uniform(1e9, 2e10, problem.flows)), np.inf))


CASES: dict[str, tuple[Callable[[], Problem], float]] = {
    "one-switch": (lambda: one_switch(16, seed=1), simgrid.PRECISION),
    "two-tiers-2to1": (lambda: two_tiers(32, seed=2, **SMALL), simgrid.PRECISION),
    "two-tiers-1to1": (lambda: two_tiers(32, oversubscription=1.0, seed=3, **SMALL), simgrid.PRECISION),
    "two-tiers-4to1": (lambda: two_tiers(32, oversubscription=4.0, seed=4, **SMALL), simgrid.PRECISION),
    "four-spines": (lambda: two_tiers(32, spines=4, seed=5, **SMALL), simgrid.PRECISION),
    "rails": (lambda: rails(32, gpus_per_node=4, seed=6), simgrid.PRECISION),
    "uniform": (lambda: two_tiers(32, uniform=True, distinct=False, seed=7, **SMALL), simgrid.PRECISION),
    "sigma-1.5": (lambda: two_tiers(24, sigma=1.5, seed=8, **SMALL), simgrid.PRECISION),
    "whole-tokens": (lambda: two_tiers(32, tokens=16, distinct=False, seed=9, **SMALL), simgrid.PRECISION),
    "torus": (lambda: torus(5, seed=10), simgrid.PRECISION),
    "staggered": (lambda: spread(two_tiers(24, seed=11, **SMALL), 11), simgrid.PRECISION),
    "staggered-bursts": (lambda: bursts(two_tiers(32, seed=12, **SMALL), 12), simgrid.PRECISION),
    "staggered-ties": (lambda: bursts(two_tiers(24, tokens=16, distinct=False, seed=13, **SMALL), 13), simgrid.PRECISION),
    "staggered-rails": (lambda: rails(32, gpus_per_node=4, staged=True, seed=14), simgrid.PRECISION),
    "staggered-torus": (lambda: spread(torus(4, seed=15), 15), simgrid.PRECISION),
    "staggered-idle": (lambda: idle_between(one_switch(12, seed=16)), simgrid.PRECISION),
    "one-byte-and-100-gb": (lambda: sizes(two_tiers(16, seed=17, **SMALL), np.array([1.0, 1e11]), 17), FINE),
    "powers-of-ten": (lambda: powers_of_ten(two_tiers(16, seed=18, **SMALL), 18), FINE),
    "changed": (lambda: changed(two_tiers(16, seed=19, **SMALL), 19), simgrid.PRECISION),
    "changed-staggered": (lambda: changed(spread(torus(4, seed=20), 20), 20), simgrid.PRECISION),
    "weights": (lambda: weighted(two_tiers(16, seed=21, **SMALL), 21), simgrid.PRECISION),
    "caps": (lambda: capped(two_tiers(16, seed=22, **SMALL), 22), simgrid.PRECISION),
    "weights-caps-staggered": (lambda: weighted(capped(spread(two_tiers(16, seed=23, **SMALL), 23), 23), 23), simgrid.PRECISION),
}


def columns(problem: Problem, ends: np.ndarray) -> dict[str, np.ndarray]:
    """The arrays of a case; those that say nothing are left out."""
    at, link, value = problem.changes
    found = {
        "capacity": problem.capacity,
        "route": problem.route.astype(np.int16),
        "source": problem.source.astype(np.int16),
        "destination": problem.destination.astype(np.int16),
        "size": problem.size,
        "start": problem.start,
        "ends": ends,
    }
    found |= {} if problem.weight is None else {"weight": problem.weight}
    found |= {} if problem.cap is None else {"cap": problem.cap}
    return found | ({"change_at": at, "change_link": link, "change_value": value} if len(at) else {})


def main() -> int:
    if reason := simgrid.missing():
        print(f"SimGrid cannot be run here: {reason}", file=sys.stderr)
        return 1
    arrays, told, versions = {}, {}, set()
    for name, (make, precision) in CASES.items():
        problem = make()
        full, lazy = (simgrid.run(problem, mode=mode, precision=precision) for mode in simgrid.MODES)
        between = float(np.abs(lazy.ends / full.ends - 1).max())
        arrays |= {f"{name}__{column}": values for column, values in columns(problem, full.ends).items()}
        versions.add(full.version)
        told[name] = {
            "gpus": problem.gpus,
            "flows": problem.flows,
            "links": len(problem.capacity),
            "distinct_ends": len(np.unique(full.ends)),
            "precision_s": precision,
            "largest_relative_difference_between_modes": between,
        }
        print(f"{name}: {problem.flows} flows, {told[name]['distinct_ends']} distinct ends, modes differ by {between:.1e}")
    np.savez_compressed(GOLDEN / "simgrid_ends.npz", **arrays)
    recipe = {
        "what": "end of every flow in s, as SimGrid computes it, with the problem: links, routes, bytes, starts and what else there is",
        "source": f"SimGrid {', '.join(sorted(versions))} (https://simgrid.org), called through its public interface; outputs only",
        "made_with": "python benchmarks/foreign/record_ends.py, whose CASES hold the generators and seeds of all problems",
        "mode": "network/optim:Full is recorded; Lazy was run besides",
        "options": simgrid.OPTIONS,
        "numpy": np.__version__,
        "units": "seconds, bytes, bytes per second",
        "weights": "SimGrid shares by 1 / latency: a flow of weight w got a link of its own with 1 / w s, and was sent so much earlier",
        "caps": "the bandwidth of a link of the flow's own",
        "cases": told,
    }
    (GOLDEN / "simgrid_ends.json").write_text(json.dumps(recipe, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
