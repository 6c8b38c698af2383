"""Print what the network costs and how right it is: goal, what is required, what this run measured.

    python benchmarks/network_table.py                 # a few minutes
    python benchmarks/network_table.py --long          # with 256 GPUs on SimGrid, which takes it some 20 minutes
    python benchmarks/network_table.py --only fast     # rows whose goal contains a word

Ratios are medians over rounds in which both sides take turns. All seconds are seconds of the processor, on one core of this machine. Rows
that need SimGrid say so where it is not installed (see foreign/README.md).
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import simpy
from foreign import simgrid
from interleaved import median, ratio
from skewed import Problem, one_switch, rails, torus, two_tiers
from through import by_flow, by_rank, exact, follows, quanta, through_core, through_simpy

FAST = (0.01, 2.0)
COARSE = (0.03, 0.0)
HERE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Row:
    """One line of the table; ``met`` is None where nothing was measured."""

    goal: str
    required: str
    measured: str
    met: bool | None = None

    def __str__(self) -> str:
        verdict = {True: "met", False: "MISSED", None: "not measured"}[self.met]
        return f"| {self.goal} | {self.required} | {self.measured} | {verdict} |"


@dataclass(frozen=True)
class Options:
    long: bool
    rounds: int


def drained(problem: Problem, make: Callable[..., object], *settings: float) -> tuple[float, np.ndarray]:
    """Return seconds, and when each GPU has received everything, from a fresh core with a counter per GPU and way."""
    after = follows(problem)
    began = time.process_time()
    ends = through_core(problem, make(problem, after, *settings), by_rank(problem))
    return time.process_time() - began, ends[: problem.gpus]


def against_simgrid(problem: Problem, rounds: int) -> tuple[float, float, float, str]:
    """Return how many times as long SimGrid's faster solver takes (median, least, greatest), and which it is.

    SimGrid's time is that of its run phase, without start and platform; ours is that of making the core, joining and draining.
    """
    modes = dict.fromkeys(simgrid.MODES, 0.0)

    def slow() -> float:
        for mode in modes:
            modes[mode] = simgrid.run(problem, mode=mode).cpu_s
        return min(modes.values())

    # Ours is the median of a few, because one takes so much less than one of theirs.
    middle, least, most = ratio(slow, lambda: statistics.median(drained(problem, exact)[0] for _ in range(5)), rounds)
    return middle, least, most, min(modes, key=lambda mode: modes[mode])


def exact_rows(options: Options) -> Iterator[Row]:
    """Exact against SimGrid: the skewed all-to-all."""
    for gpus, least in ((64, 30), (128, 80), (256, 900)):
        goal, required = f"exact against SimGrid's faster mode, skewed two tiers 2:1, N = {gpus}", f"≥ {least}×"
        if reason := simgrid.missing():
            yield Row(goal, required, reason)
        elif gpus == 256 and not options.long:
            yield Row(goal, required, "takes SimGrid some 20 minutes: --long")
        elif gpus == 256:
            problem = two_tiers(gpus)
            theirs = simgrid.run(problem, mode="Full").cpu_s
            ours = statistics.median(drained(problem, exact)[0] for _ in range(3))
            yield Row(goal, required, f"{theirs / ours:.0f}× ({theirs:.0f} s and {ours:.2f} s, Full only)", theirs >= least * ours)
        else:
            middle, low, high, mode = against_simgrid(two_tiers(gpus), options.rounds if gpus < 128 else 3)
            yield Row(goal, required, f"{middle:.0f}× ({low:.0f} to {high:.0f}; {mode})", middle >= least)


def fabrics(gpus: int) -> dict[str, Problem]:
    """Eight fabrics and ways to use them, and staggered starts on three of them."""
    rng = np.random.default_rng(gpus)
    found = {
        "one switch": one_switch(gpus),
        "2:1": two_tiers(gpus),
        "1:1": two_tiers(gpus, oversubscription=1.0),
        "4:1": two_tiers(gpus, oversubscription=4.0),
        "four hashed spines": two_tiers(gpus, spines=4),
        "rails, two stages": rails(gpus),
        "uniform": two_tiers(gpus, uniform=True, distinct=False),
        "sigma 1.5": two_tiers(gpus, sigma=1.5),
        "whole tokens": two_tiers(gpus, tokens=64, distinct=False),
        "torus": torus(int(gpus**0.5)),
    }
    for name in ("2:1", "rails, two stages", "torus"):
        problem = found[name]
        found[f"{name}, staggered"] = replace(problem, start=np.round(rng.uniform(0, problem.bound, problem.flows), 9))
    return found


def end_rows(options: Options) -> Iterator[Row]:
    """Every flow end against SimGrid."""
    goal, required = "every flow end against SimGrid, ten fabrics, three of them with staggered starts too", "≤ 1e-9 relative"
    if reason := simgrid.missing():
        yield Row(goal, required, reason)
        return
    cases = [(64, name, problem) for name, problem in fabrics(64).items()]
    cases += [(128, "2:1", two_tiers(128))] + ([(256, "2:1", two_tiers(256))] if options.long else [])
    worst: dict[int, float] = {}
    for gpus, name, problem in cases:
        ours = through_core(problem, exact(problem, follows(problem)), by_flow(problem))[:-1]
        off = float(np.abs(ours / simgrid.run(problem).ends - 1).max())
        print(f"  N = {gpus}, {name}: {problem.flows} flows, {off:.1e}", file=sys.stderr)
        worst[gpus] = max(worst.get(gpus, 0.0), off)
    told = ", ".join(f"N = {gpus}: {off:.1e}" for gpus, off in worst.items())
    yield Row(goal, required, told, max(worst.values()) <= 1e-9)


def fast_rows(options: Options) -> Iterator[Row]:
    """Quanta against exact: speed and error, over both fabrics and a few seeds."""
    for gpus, least in ((64, 4), (128, 10), (256, 12)):
        problem = two_tiers(gpus)
        rounds = options.rounds if gpus < 256 else 3
        drained(problem, quanta, *FAST)
        middle, low, high = ratio(
            lambda problem=problem: drained(problem, exact)[0],
            lambda problem=problem: statistics.median(drained(problem, quanta, *FAST)[0] for _ in range(3)),
            rounds,
        )
        found = [errors(two_tiers(gpus, oversubscription=over, seed=seed)) for over in (2.0, 1.0) for seed in range(3 if gpus < 256 else 1)]
        makespan, mean, rank = (100 * max(column) for column in zip(*found, strict=True))
        yield Row(
            f"`fast` against exact, N = {gpus}",
            f"≥ {least}×; makespan ≤ 0.1 %, rank mean ≤ 0.2 %, worst rank ≤ 3 %",
            f"{middle:.1f}× ({low:.1f} to {high:.1f}); {makespan:.3f} %, {mean:.3f} %, {rank:.2f} % (worst of {len(found)}: 2:1 and 1:1)",
            middle >= least and makespan <= 0.1 and mean <= 0.2 and rank <= 3,
        )


def errors(problem: Problem) -> tuple[float, float, float]:
    """Return how far the last end, the mean rank and the worst rank are from exact."""
    right, near = drained(problem, exact)[1], drained(problem, quanta, *FAST)[1]
    off = np.abs(near / right - 1)
    return abs(float(near.max() / right.max()) - 1), float(off.mean()), float(off.max())


MEMORY = """
import sys, time
import numpy as np
sys.path.insert(0, {here!r})
from skewed import Problem, two_tiers
from through import by_rank, follows, quanta, through_core
def resident(name):
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))
def go(problem, after):
    return through_core(problem, quanta(problem, after, {quantum}, {guard}), by_rank(problem))
go(two_tiers(16), follows(two_tiers(16)))
problem = two_tiers({gpus})
after = follows(problem)
with open("/proc/self/clear_refs", "w") as peak:
    peak.write("5")
before = resident("VmRSS")
began = time.process_time()
ends = go(problem, after)
print(time.process_time() - began, (resident("VmHWM") - before) / problem.flows, problem.flows)
"""


def coarse_rows(_: Options) -> Iterator[Row]:
    """Large systems: seconds and memory in a process of its own."""
    for gpus, most in ((1024, 1.5), (4096, 15.0)):
        code = MEMORY.format(here=str(HERE), gpus=gpus, quantum=COARSE[0], guard=COARSE[1])
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        goal, required = f"`coarse`, N = {gpus}", f"≤ {most:g} s, ≤ 100 B per flow"
        if done.returncode:
            yield Row(goal, required, done.stderr.strip().splitlines()[-1], False)
            continue
        took, each, flows = (float(word) for word in done.stdout.split())
        told = f"{took:.2f} s, {each:.0f} B per flow beside the problem's own arrays ({flows:.0f} flows)"
        yield Row(goal, required, told, took <= most and each <= 100)


def rail_rows(options: Options) -> Iterator[Row]:
    """Two stages at once on rails: the traffic of a hierarchical dispatch."""
    goal, required = "two-stage EP = 320 dispatch on rails, exact, against SimGrid's faster mode", "≥ 30×"
    if reason := simgrid.missing():
        yield Row(goal, required, reason)
        return
    middle, low, high, mode = against_simgrid(rails(320), min(options.rounds, 3))
    yield Row(goal, required, f"{middle:.0f}× ({low:.0f} to {high:.0f}; {mode})", middle >= 30)


def step_rows(_: Options) -> Iterator[Row]:
    """A DeepSeek-V3 step: SimPy drives every rank."""
    from steps import deepseek_v3, run

    for gpus, most in ((64, 1.5), (320, 5.0)):
        scenario = deepseek_v3(gpus)
        run(scenario)
        found = [run(scenario) for _ in range(3)]
        play, whole, load = (statistics.median(one[part] for one in found) for part in ("play", "whole", "load"))
        told = f"{play:.2f} s; {whole:.2f} s with loads ({load:.2f} s), the balanced step that results show beside it, and all tables"
        goal = f"DeepSeek-V3 step, 58 MoE layers, forward and backward, ranks not synchronised, EP {gpus}"
        yield Row(goal, f"≤ {most:g} s", f"{told}; peak {peak_memory() / 1e6:.0f} MB", play <= most)


def peak_memory() -> int:
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def layer_rows(options: Options) -> Iterator[Row]:
    """Dispatch and combine of one layer through SimPy and the fabric, as the engine runs them: a run makes its fabric once for all layers.

    Repeats are not looked up, or every round but the first would be free.
    """
    from moesim.engine.fabric import Fabric
    from moesim.facts.scenario import Sharing

    problem = two_tiers(64, experts=192)
    back = replace(problem, source=problem.destination, destination=problem.source, route=reversed_routes(problem))
    ways = []
    for flows in (problem, back):
        env = simpy.Environment()
        ways.append((flows, env, Fabric(env, flows.cluster(), Sharing(repeats=False))))

    def layer() -> None:
        for flows, env, fabric in ways:
            through_simpy(flows, fabric, env, by_rank(flows))

    took = median(layer, options.rounds)
    yield Row("skewed EP 64 layer, 192 experts, two tiers, forward: dispatch and combine", "≤ 0.05 s", f"{took:.3f} s", took <= 0.05)


def reversed_routes(problem: Problem) -> np.ndarray:
    """The way back: what went out of one port comes in at the other; up and down change places."""
    gpus = problem.gpus
    above = (len(problem.capacity) - 4 * gpus) // 2
    mirror = np.arange(len(problem.capacity))
    mirror[: 4 * gpus] = mirror[: 4 * gpus].reshape(2, 2, gpus)[:, ::-1].ravel()
    mirror[4 * gpus :] = mirror[4 * gpus :].reshape(2, above)[::-1].ravel()
    return np.where(problem.route >= 0, mirror[problem.route], -1).astype(np.int32)


def growth_rows(options: Options) -> Iterator[Row]:
    """How the cost of quanta grows."""
    small, large = two_tiers(64), two_tiers(256)
    drained(small, quanta, *FAST)
    found = [drained(large, quanta, *FAST)[0] / drained(small, quanta, *FAST)[0] for _ in range(options.rounds)]
    exponent = float(np.log(statistics.median(found)) / np.log(4))
    yield Row("cost growth of `fast` from N = 64 to 256", "exponent ≤ 2.3", f"{exponent:.2f}", exponent <= 2.3)


ROWS = (exact_rows, end_rows, fast_rows, coarse_rows, rail_rows, step_rows, layer_rows, growth_rows)


def main() -> int:
    parser = argparse.ArgumentParser(description="Print the table of the network's goals, with what this run measured.")
    parser.add_argument("--long", action="store_true", help="with 256 GPUs on SimGrid: some 20 minutes more")
    parser.add_argument(
        "--only", default="", help="names of groups of rows that contain this: " + ", ".join(rows.__name__ for rows in ROWS)
    )
    parser.add_argument("--rounds", type=int, default=5, help="interleaved rounds of each ratio")
    given = parser.parse_args()
    options = Options(long=given.long, rounds=given.rounds)
    print("| goal | required | measured | |\n| --- | --- | --- | --- |", flush=True)
    missed = False
    for rows in ROWS:
        if given.only in rows.__name__:
            for row in rows(options):
                print(row, flush=True)
                missed |= row.met is False
    return 3 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
