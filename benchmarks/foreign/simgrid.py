"""Run a problem on SimGrid, an independent simulator that shares links max-min fairly too.

Its network model CM02 is reduced to plain max-min sharing: no correction factors, no bound from a TCP window, no cross-traffic. What it
needs is in README.md beside this file. Nothing here is imported by moesim or its tests.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from skewed import Problem

SOURCE = Path(__file__).with_name("simgrid_driver.cpp")
MODES = ("Full", "Lazy")
HEADERS = (Path("/usr/include"), Path("/usr/local/include"))
OPTIONS = {
    "network/model": "CM02",
    "network/bandwidth-factor": "1",
    "network/latency-factor": "1",
    "network/weight-S": "0",
    "network/TCP-gamma": "0",
    "network/crosstraffic": "0",
}
PRECISION = 1e-12
"""Ends that lie closer than this many seconds count as one; smaller for problems that are over sooner."""


@dataclass(frozen=True, slots=True)
class Ran:
    """Ends float[F] in s; the version; seconds of the run phase alone, by the clock and of the processor; peak memory in B."""

    ends: NDArray[np.float64]
    version: str
    run_s: float
    cpu_s: float
    memory: int


def missing() -> str:
    """Say why SimGrid cannot be run here; empty if it can."""
    if shutil.which("g++") is None:
        return "no C++ compiler (g++)"
    if not any((folder / "simgrid" / "s4u.hpp").exists() for folder in HEADERS):
        return "SimGrid's headers are not installed (Debian: libsimgrid-dev)"
    return ""


@cache
def driver() -> Path:
    """Compile the driver into a new temporary folder; return the program."""
    program = Path(tempfile.mkdtemp(prefix="moesim-simgrid-")) / "driver"
    subprocess.run(["g++", "-O2", "-std=c++17", str(SOURCE), "-o", str(program), "-lsimgrid"], check=True)
    return program


def write(problem: Problem, path: Path) -> NDArray[np.int64]:
    """Write a problem as the driver reads it; return the order in which its flows stand there."""
    begin = problem.start if problem.weight is None else problem.start - 1 / problem.weight
    if (begin < 0).any():
        raise ValueError("SimGrid starts a flow of weight w only 1 / w seconds after it is asked to: start it no earlier")
    pairs = len(np.unique(problem.source.astype(np.int64) * problem.gpus + problem.destination))
    if pairs < problem.flows and not (problem.weight is None and problem.cap is None):
        raise ValueError("a weight or a cap belongs to a pair of GPUs here: one flow per pair")
    order = np.argsort(begin, kind="stable")
    none = np.zeros(problem.flows)
    columns = (problem.size, begin, none if problem.cap is None else problem.cap, none if problem.weight is None else problem.weight)
    with path.open("wb") as file:
        counts = (problem.gpus, len(problem.capacity), problem.flows, problem.route.shape[1], len(problem.changes[0]))
        np.array(counts, dtype=np.int64).tofile(file)
        problem.capacity.tofile(file)
        for column in columns:
            np.where(np.isfinite(column), column, 0.0)[order].tofile(file)
        for ends in (problem.route, problem.source, problem.destination):
            ends[order].astype(np.int32).tofile(file)
        for column, kind in zip(problem.changes, (np.float64, np.int32, np.float64), strict=True):
            column.astype(kind).tofile(file)
    return order


def run(problem: Problem, *, mode: str = "Full", precision: float = PRECISION, seconds: float | None = None) -> Ran:
    """Return the end of every flow, with the solver that updates all actions at each event (Full) or only those it must (Lazy)."""
    with tempfile.TemporaryDirectory(prefix="moesim-simgrid-") as folder:
        asked, answered = Path(folder) / "problem", Path(folder) / "ends"
        order = write(problem, asked)
        options = OPTIONS | {"network/optim": mode, **precisions(precision)}
        words = [
            str(driver()),
            str(asked),
            str(answered),
            "--log=root.thresh:error",
            *(f"--cfg={key}:{value}" for key, value in options.items()),
        ]
        done = subprocess.run(words, capture_output=True, text=True, check=True, timeout=seconds)
        ends = np.empty(problem.flows)
        ends[order] = np.fromfile(answered)
    told = json.loads(done.stdout.splitlines()[-1])
    return Ran(ends, told["version"], told["run_s"], told["cpu_s"], told["memory"])


def precisions(timing: float) -> dict[str, str]:
    """The two precisions under the names that the installed version knows."""
    header = next(folder / "simgrid" / "version.h" for folder in HEADERS if (folder / "simgrid" / "version.h").exists())
    old = "SIMGRID_VERSION_MAJOR 3" in header.read_text(encoding="utf-8")
    names = ("surf/precision", "maxmin/precision") if old else ("precision/timing", "precision/work-amount")
    return {names[0]: f"{timing:g}", names[1]: "1e-9"}
