"""Measure the cases of a prediction file on shaped links: fabrics one after the other, real PyTorch ranks, real bytes.

The lab knows nothing of the models that made the predictions. It is given a file that was written before, sees to it that it is unchanged,
and returns what was measured.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from moesim.base.errors import MeasurementError, UsageError
from moesim.desk.sealed import SEAL, check_seal
from moesim.lab.job import ExchangeCase, Job, LayerCase
from moesim.lab.launch import Outcome, run_ranks, terminated_like_interrupted
from moesim.lab.namespaces import Fabric, Testbed, why_not
from moesim.lab.needs import need_torch

Progress = Callable[[str], None]
OF_FABRIC = ("name", "ranks", "per_node", "fast_mbit", "slow_mbit", "queue")
OF_LAYER = (
    "name", "tokens", "hidden", "expert_width", "experts", "top_k", "capacity_factor", "drop", "skew", "popularity", "posting", "backward",
)  # fmt: skip


def need_testbed() -> None:
    """See to it that this machine can hold a testbed.

    Raises
    ------
    UsageError
        Saying what is missing: Linux, iproute2, root, the kernel's consent, PyTorch.
    """
    need_torch()
    reason = why_not()
    if reason:
        raise UsageError(f"there can be no testbed here: {reason}")


def prepare(
    fabrics: Sequence[Mapping[str, Any]], layers: Sequence[Mapping[str, Any]], *, probe: Mapping[str, Any], seed: int, repeats: int,
    quick: bool, progress: Progress,
) -> dict[str, Any]:  # fmt: skip
    """Measure what predictions may rest on: local operations alone, latencies of the smallest step; and find out which rows will be kept.

    Parameters
    ----------
    fabrics, layers : sequence of mapping
        As a prediction file has them.
    probe : mapping
        ``tokens``, ``expert_width`` and ``top_k`` of the smallest step.
    seed : int
        Of the jobs that will be measured.
    repeats : int
        Of every case.
    quick : bool
        Take fewer points for the calibration.
    progress : callable
        Told what is done.

    Returns
    -------
    dict
        ``calibration``, ``kept``, ``probes`` by fabric, ``environment``.
    """
    with terminated_like_interrupted():
        return _prepare(fabrics, layers, probe=probe, seed=seed, repeats=repeats, quick=quick, progress=progress)


def _prepare(
    fabrics: Sequence[Mapping[str, Any]],
    layers: Sequence[Mapping[str, Any]],
    *,
    probe: Mapping[str, Any],
    seed: int,
    repeats: int,
    quick: bool,
    progress: Progress,
) -> dict[str, Any]:
    of_name = {fabric["name"]: fabric for fabric in fabrics}
    backward = any(case["backward"] for case in layers)
    shapes = sorted({(case["hidden"], case["expert_width"], case["experts"], case["top_k"], case["tokens"]) for case in layers})
    progress("local operations, alone")
    cases = [{**case, "ranks": of_name[case["fabric"]]["ranks"]} for case in layers]
    alone = _alone({"seed": seed, "cases": cases, "shapes": shapes, "repeats": 3 if quick else 9, "quick": quick, "backward": backward})
    probes: dict[str, dict[str, float]] = {}
    for name in dict.fromkeys(case["fabric"] for case in layers):
        progress(f"latencies of {name}")
        first = next(case for case in layers if case["fabric"] == name)
        tiny = {**first, **probe, "name": "probe", "skew": 0.0, "capacity_factor": None, "backward": False}
        job = layer_job([tiny], seed=seed, repeats=max(repeats, 7), ranks=of_name[name]["ranks"])
        outcome, _, _ = on_fabric(fabric_of(of_name[name]), job, scheduling="first")
        if outcome.why:
            raise (KeyboardInterrupt if outcome.interrupted else MeasurementError(f"the probe on {name} was not finished: {outcome.why}"))
        probes[name] = latencies(outcome)
    return {"calibration": alone["calibration"], "kept": alone["kept"], "probes": probes, "environment": alone["environment"]}


def _alone(request: Mapping[str, Any]) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="moesim-") as name:
        asked, answered = Path(name) / "request.json", Path(name) / "answer.json"
        asked.write_text(json.dumps(request), encoding="utf-8")
        command = [sys.executable, "-m", "moesim.lab.solo", str(asked), str(answered)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - this Python
        if done.returncode:
            said = [line for line in done.stderr.splitlines() if line.strip()]
            raise MeasurementError(f"the calibration of local operations failed: {said[-1] if said else f'exit code {done.returncode}'}")
        answer: dict[str, Any] = json.loads(answered.read_text(encoding="utf-8"))
        return answer


def fabric_of(item: Mapping[str, Any]) -> Fabric:
    """Return a fabric as a prediction file describes it."""
    return Fabric(**{key: item[key] for key in OF_FABRIC})


def layer_job(cases: Sequence[Mapping[str, Any]], *, seed: int, repeats: int, ranks: int) -> Job:
    """Return the job of some steps: every rank has one thread, and the core of its number."""
    cores = tuple(sorted(os.sched_getaffinity(0)))
    made = tuple(LayerCase(**{key: case[key] for key in OF_LAYER}, kernel="loop") for case in cases)
    return Job(kind="layer", cases=made, repeats=repeats, warmup=2, seed=seed, threads=1, cores=cores[:ranks], backend="gloo", device="cpu")


def exchange_job(cases: Sequence[Mapping[str, Any]], *, seed: int, repeats: int) -> Job:
    """Return the job of some all-to-alls."""
    made = tuple(
        ExchangeCase(
            name=case["name"], bytes=tuple(map(tuple, case["bytes"])), posting=case["posting"], stagger_s=tuple(case["stagger_s"]),
            pattern=case["pattern"],
        )
        for case in cases
    )  # fmt: skip
    return Job(kind="exchange", cases=made, repeats=repeats, warmup=2, seed=seed, threads=1, backend="gloo", device="cpu", iterations=1)


def on_fabric(
    fabric: Fabric, job: Job, *, scheduling: str, change: Mapping[str, Any] | None = None
) -> tuple[Outcome, dict[str, int], list[dict[str, float]]]:
    """Make a fabric, run a job on it, remove it; return what ranks left, the counters of the fabric, and when its link changed."""
    with tempfile.TemporaryDirectory(prefix="moesim-") as name, Testbed(fabric) as made:
        notes = Path(name) / "changes.jsonl"
        place: dict[str, Any] = {
            "namespaces": [made.namespace(f"r{rank}") for rank in range(fabric.ranks)],
            "address": made.address(0),
            "scheduling": scheduling,
            "change": None,
        }
        if change is not None:
            rank, old = int(change["rank"]), fabric.fast_mbit
            steps, back = made.change(rank, float(change["mbit"])), made.change(rank, old)
            place["change"] = {"after_s": change["after_s"], "rank": rank, "steps": steps, "back": back, "notes": str(notes)}
        (Path(name) / "place.json").write_text(json.dumps(place), encoding="utf-8")
        command = (sys.executable, "-m", "moesim.lab.inside", str(Path(name) / "place.json"))
        outcome = run_ranks(job, fabric.ranks, timeout_s=600.0 + 60.0 * len(job.cases), command=command)
        counters = made.counters()
        changed = [json.loads(line) for line in notes.read_text(encoding="utf-8").splitlines()] if notes.exists() else []
    return outcome, counters, changed


def latencies(outcome: Outcome) -> dict[str, float]:
    """Return what the exchange of counts, and an all-to-all of next to nothing, take: from the last rank's arrival to its end, s."""
    marks, facts = marks_of(outcome.ranks, "probe")
    middle = np.median(marks, axis=0)  # [ranks, phases + 1]
    at = {name: number for number, name in enumerate(facts["phases"])}

    def spent(phase: str) -> float:
        return max(0.0, float(middle[:, at[phase] + 1].max() - middle[:, at[phase]].max()))

    return {"counts_s": spent("counts"), "all_to_all_s": statistics.median([spent("dispatch"), spent("combine")])}


def marks_of(ranks: Sequence[Sequence[Mapping[str, Any]]], name: str) -> tuple[Any, Mapping[str, Any]]:
    """Return float[repeats, ranks, phases + 1], the instants of a layer case that every rank has measured, and the facts of rank 0."""
    found = [{line["repeat"]: line["marks_s"] for line in lines if line.get("case") == name and "repeat" in line} for lines in ranks]
    common = sorted(set.intersection(*map(set, found))) if found else []
    facts: Mapping[str, Any] = (
        next((line["facts"] for line in ranks[0] if line.get("case") == name and "facts" in line), {}) if ranks else {}
    )
    return np.array([[of_rank[repeat] for of_rank in found] for repeat in common]), facts


def measure(document: Mapping[str, Any], *, seed: int, progress: Progress) -> dict[str, Any]:
    """Measure every case of a prediction file.

    Parameters
    ----------
    document : mapping
        With its hash.
    seed : int
        Of the jobs.
    progress : callable
        Told what is done.

    Returns
    -------
    dict
        ``prediction`` (the hash), ``partial`` (why not everything was measured, or empty), ``interrupted``, ``runs`` (fabric, counters),
        and ``cases`` by name: ``seconds`` of each repeat, and what else is known.

    Raises
    ------
    UsageError
        If the file was changed after it was written.
    """
    check_seal(document, "predictions")
    begun = datetime.now(UTC).isoformat(timespec="seconds")
    found: dict[str, Any] = {"prediction": document[SEAL], "begun": begun, "partial": "", "interrupted": False, "runs": [], "cases": {}}
    try:
        with terminated_like_interrupted():
            for fabric, cases, change in _runs(document):
                kind = cases[0]["kind"]
                progress(f"{fabric['name']}: {len(cases)} {kind} {'case' if len(cases) == 1 else 'cases'}")
                job = (
                    exchange_job(cases, seed=seed, repeats=document["repeats"])
                    if kind == "exchange"
                    else layer_job(cases, seed=seed, repeats=document["repeats"], ranks=fabric["ranks"])
                )
                scheduling = "realtime" if kind == "exchange" else "first"
                outcome, counters, changed = on_fabric(fabric_of(fabric), job, scheduling=scheduling, change=change)
                found["runs"].append({"fabric": fabric["name"], "kind": kind, "cases": len(cases), "repeats": job.repeats, **counters})
                for case in cases:
                    found["cases"][case["name"]] = _measured(case, outcome.ranks) | ({"changes": changed} if changed else {})
                if outcome.why:
                    found |= {"partial": f"{fabric['name']}: {outcome.why}", "interrupted": outcome.interrupted}
                    break
    except KeyboardInterrupt:
        found |= {"partial": "interrupted", "interrupted": True}
    except MeasurementError as error:
        found["partial"] = str(error)
    return {**found, "ended": datetime.now(UTC).isoformat(timespec="seconds")}


def _runs(document: Mapping[str, Any]) -> Iterator[tuple[Mapping[str, Any], list[Mapping[str, Any]], Mapping[str, Any] | None]]:
    """Yield (fabric, cases, change of a link): what one start of the ranks measures. A case with a change has a start of its own."""
    for fabric in document["fabrics"]:
        mine = [case for case in document["cases"] if case["fabric"] == fabric["name"]]
        for kind in ("exchange", "layer"):
            together = [case for case in mine if case["kind"] == kind and not case.get("change")]
            if together:
                yield fabric, together, None
        for case in mine:
            if case.get("change"):
                yield fabric, [case], case["change"]


def _measured(case: Mapping[str, Any], ranks: Sequence[Sequence[Mapping[str, Any]]]) -> dict[str, Any]:
    if case["kind"] == "layer":
        marks, facts = marks_of(ranks, case["name"])
        if not len(marks):
            return {"seconds": []}
        of_ranks: list[Mapping[str, Any]] = [
            next((line["facts"] for line in lines if line.get("case") == case["name"] and "facts" in line), {}) for lines in ranks
        ]
        kept, dropped = [item.get("kept") for item in of_ranks], sum(item.get("dropped", 0) for item in of_ranks)
        return {
            "seconds": marks[:, :, -1].max(axis=1).tolist(),
            "phases": facts["phases"],
            "marks_median_s": np.median(marks, axis=0).tolist(),
            "kept": kept,
            "dropped": dropped,
        }
    found = [{line["repeat"]: line for line in lines if line.get("case") == case["name"] and "repeat" in line} for lines in ranks]
    common = sorted(set.intersection(*map(set, found))) if found else []
    ends = np.array([[of_rank[repeat]["end_s"] for of_rank in found] for repeat in common])
    wrong = sum(not of_rank[repeat]["correct"] for repeat in common for of_rank in found)
    if wrong:
        raise MeasurementError(f"case {case['name']!r}: {wrong} receives did not hold what was sent")
    return {"seconds": ends.max(axis=1).tolist() if len(ends) else []}


@contextlib.contextmanager
def ignoring_interrupts() -> Iterator[None]:
    """Hold back Ctrl-C while results are written."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
