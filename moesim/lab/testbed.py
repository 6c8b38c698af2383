"""Measure the cases of a prediction file on shaped links: fabrics one after the other, real PyTorch ranks, real bytes.

The lab knows nothing of the models that made the predictions. It is given a file that was written before, sees to it that it is unchanged,
and returns what was measured.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from moesim.base.errors import MeasurementError, UsageError
from moesim.desk.sealed import SEAL, check_seal
from moesim.lab.job import ExchangeCase, Job, LayerCase
from moesim.lab.launch import Outcome, run_ranks, terminated_like_interrupted
from moesim.lab.namespaces import Fabric, Testbed, why_not
from moesim.lab.needs import need_torch
from moesim.lab.testbed_lines import latencies, measured

Progress = Callable[[str], None]
CHANGES, QUIET = 9, 0.05
"""Repeats of a change that is timed, and s after the start of the smallest all-to-all, when that is over."""
PROBES = 21
"""Repeats of the smallest all-to-all."""
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
    fabrics: Sequence[Mapping[str, Any]], layers: Sequence[Mapping[str, Any]], *, exchanging: Sequence[str],
    changing: Sequence[str], probe: Mapping[str, Any],
    seed: int, repeats: int, quick: bool, reference: int, progress: Progress,
) -> dict[str, Any]:  # fmt: skip
    """Measure what predictions may rest on: local operations alone, latencies of the smallest step; and find out which rows will be kept.

    Parameters
    ----------
    fabrics, layers : sequence of mapping
        As a prediction file has them.
    exchanging : sequence of str
        Names of the fabrics that have all-to-alls.
    changing : sequence of str
        Names of those with links that change.
    probe : mapping
        ``tokens``, ``expert_width`` and ``top_k`` of the smallest step, ``pair_bytes`` of the smallest all-to-all.
    seed : int
        Of the jobs that will be measured.
    repeats : int
        Of every case.
    quick : bool
        Take fewer points for the calibration.
    reference : int
        Rows of the expert that tells how fast cores are while all ranks are at it.
    progress : callable
        Told what is done.

    Returns
    -------
    dict
        ``calibration``, ``kept``, ``probes`` by fabric with layers, ``crowded`` (s of the reference while all ranks are at it) by fabric
        with layers and shape, ``posting`` (s of the smallest all-to-all) by fabric with all-to-alls, ``changing`` (s that a change of a
        link takes) by fabric with such, ``environment``.
    """
    with terminated_like_interrupted():
        smallest = {key: value for key, value in probe.items() if key != "pair_bytes"}
        found = _prepare(fabrics, layers, probe=smallest, seed=seed, repeats=repeats, quick=quick, reference=reference, progress=progress)
        of_name = {fabric["name"]: fabric for fabric in fabrics}
        posting = {}
        for name in exchanging:
            progress(f"smallest all-to-all of {name}")
            posting[name] = posting_of(of_name[name], int(probe["pair_bytes"]), seed=seed)
        late = {}
        for name in changing:
            progress(f"a change of a link of {name}")
            late[name] = changing_of(of_name[name], int(probe["pair_bytes"]), seed=seed)
        return {**found, "posting": posting, "changing": late}


def posting_of(fabric: Mapping[str, Any], pair_bytes: int, *, seed: int) -> float:
    """Return what an all-to-all of next to nothing takes on a fabric, s: the median over repeats of the last rank's end.

    Raises
    ------
    MeasurementError
        If it was not finished.
    """
    case = _smallest(fabric, pair_bytes)
    outcome, _, _ = on_fabric(fabric_of(fabric), exchange_job([case], seed=seed, repeats=PROBES), scheduling="realtime")
    _demand(outcome, str(fabric["name"]))
    return float(statistics.median(measured(case, outcome.ranks)["seconds"]))


def changing_of(fabric: Mapping[str, Any], pair_bytes: int, *, seed: int) -> float:
    """Return how long after it is due a link of a fabric has another rate, s: the median over changes while nothing is under way.

    Raises
    ------
    MeasurementError
        If it was not finished.
    """
    change = {"after_s": QUIET, "rank": 0, "mbit": fabric["fast_mbit"] / 2}
    job = exchange_job([_smallest(fabric, pair_bytes)], seed=seed, repeats=CHANGES)
    outcome, _, notes = on_fabric(fabric_of(fabric), job, scheduling="realtime", change=change)
    _demand(outcome, str(fabric["name"]))
    return float(statistics.median(note["done_s"] - QUIET for note in notes))


def _smallest(fabric: Mapping[str, Any], pair_bytes: int) -> dict[str, Any]:
    ranks = int(fabric["ranks"])
    sent = [[0 if one == other else pair_bytes for other in range(ranks)] for one in range(ranks)]
    return {"kind": "exchange", "name": "probe", "bytes": sent, "posting": "receives_first", "stagger_s": [0.0] * ranks, "pattern": "even"}


def _demand(outcome: Outcome, fabric: str) -> None:
    if outcome.why:
        raise (KeyboardInterrupt if outcome.interrupted else MeasurementError(f"the probe on {fabric} was not finished: {outcome.why}"))


def _prepare(
    fabrics: Sequence[Mapping[str, Any]],
    layers: Sequence[Mapping[str, Any]],
    *,
    probe: Mapping[str, Any],
    seed: int,
    repeats: int,
    quick: bool,
    reference: int,
    progress: Progress,
) -> dict[str, Any]:
    of_name = {fabric["name"]: fabric for fabric in fabrics}
    ranks_of = {fabric["name"]: int(fabric["ranks"]) for fabric in fabrics}
    stacks = sorted(
        {(case["hidden"], case["expert_width"], case["experts"] // ranks_of[case["fabric"]]) for case in layers if case["backward"]}
    )
    shapes = sorted({(case["hidden"], case["expert_width"], case["experts"], case["top_k"], case["tokens"]) for case in layers})
    progress("local operations, alone")
    cases = [{**case, "ranks": of_name[case["fabric"]]["ranks"]} for case in layers]
    alone = _alone({"seed": seed, "cases": cases, "shapes": shapes, "stacks": stacks, "repeats": 3 if quick else 9, "quick": quick})
    probes: dict[str, dict[str, float]] = {}
    crowded: dict[str, dict[str, float]] = {}
    for name in dict.fromkeys(case["fabric"] for case in layers):
        progress(f"latencies of {name}")
        mine = [case for case in layers if case["fabric"] == name]
        tiny = {**mine[0], **probe, "kind": "layer", "name": "probe", "skew": 0.0, "capacity_factor": None, "backward": False}
        of_shape = {f"{case['hidden']}x{case['expert_width']}": case for case in mine}
        wide = [{**tiny, "hidden": case["hidden"], "expert_width": case["expert_width"], "name": shape} for shape, case in of_shape.items()]
        job = layer_job([tiny, *wide], seed=seed, repeats=max(repeats, 7), ranks=ranks_of[name], reference=reference)
        outcome, _, _ = on_fabric(fabric_of(of_name[name]), job, scheduling="first")
        _demand(outcome, name)
        probes[name] = latencies(outcome)
        crowded[name] = {
            shape: statistics.fmean(measured(case, outcome.ranks)["reference_s"]) for shape, case in zip(of_shape, wide, strict=True)
        }
    known = {name: alone[name] for name in ("calibration", "kept", "environment")}
    return {**known, "probes": probes, "crowded": crowded}


def _alone(request: Mapping[str, Any]) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="moesim-") as name:
        asked, answered = Path(name) / "request.json", Path(name) / "answer.json"
        asked.write_text(json.dumps(request), encoding="utf-8")
        command = [sys.executable, "-m", "moesim.lab.solo", str(asked), str(answered)]
        environment = {**os.environ, "MOESIM_LAB_PARENT": str(os.getpid())}  # it ends with this process, however that ends
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)  # noqa: S603 - this Python
        if done.returncode:
            said = [line for line in done.stderr.splitlines() if line.strip()]
            raise MeasurementError(f"the calibration of local operations failed: {said[-1] if said else f'exit code {done.returncode}'}")
        answer: dict[str, Any] = json.loads(answered.read_text(encoding="utf-8"))
        return answer


def fabric_of(item: Mapping[str, Any]) -> Fabric:
    """Return a fabric as a prediction file describes it."""
    return Fabric(**{key: item[key] for key in OF_FABRIC})


def layer_job(cases: Sequence[Mapping[str, Any]], *, seed: int, repeats: int, ranks: int, reference: int = 0) -> Job:
    """Return the job of some steps: every rank has one thread, and the core of its number; ``reference`` as a job has it."""
    cores = tuple(sorted(os.sched_getaffinity(0)))
    made = tuple(LayerCase(**{key: case[key] for key in OF_LAYER}, kernel="loop") for case in cases)
    return Job(
        kind="layer", cases=made, repeats=repeats, warmup=2, seed=seed, threads=1, cores=cores[:ranks], backend="gloo", device="cpu",
        reference=reference,
    )  # fmt: skip


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
                kind, repeats = cases[0]["kind"], document["repeats"]
                if cases[0]["posting"] == "library" and kind == "exchange":
                    repeats *= document.get("library_times", 1)
                progress(f"{fabric['name']}: {len(cases)} {kind} {'case' if len(cases) == 1 else 'cases'}")
                job = (
                    exchange_job(cases, seed=seed, repeats=repeats)
                    if kind == "exchange"
                    else layer_job(cases, seed=seed, repeats=repeats, ranks=fabric["ranks"], reference=document.get("reference_rows", 0))
                )
                scheduling = "realtime" if kind == "exchange" else "first"
                outcome, counters, changed = on_fabric(fabric_of(fabric), job, scheduling=scheduling, change=change)
                found["runs"].append({"fabric": fabric["name"], "kind": kind, "cases": len(cases), "repeats": job.repeats, **counters})
                for case in cases:
                    found["cases"][case["name"]] = measured(case, outcome.ranks) | ({"changes": changed} if changed else {})
                if outcome.why:
                    found |= {"partial": f"{fabric['name']}: {outcome.why}", "interrupted": outcome.interrupted}
                    break
    except KeyboardInterrupt:
        found |= {"partial": "interrupted", "interrupted": True}
    except MeasurementError as error:
        found["partial"] = str(error)
    return {**found, "ended": datetime.now(UTC).isoformat(timespec="seconds")}


def _runs(document: Mapping[str, Any]) -> Iterator[tuple[Mapping[str, Any], list[Mapping[str, Any]], Mapping[str, Any] | None]]:
    """Yield (fabric, cases, change of a link): what one start of the ranks measures.

    A case with a change has a start of its own, and so have the all-to-alls of a library, which are measured more often.
    """
    for fabric in document["fabrics"]:
        mine = [case for case in document["cases"] if case["fabric"] == fabric["name"]]
        sorts: dict[tuple[str, bool], list[Mapping[str, Any]]] = {("exchange", False): [], ("exchange", True): [], ("layer", False): []}
        for case in mine:
            if not case.get("change"):
                own = case["kind"] == "exchange" and case["posting"] == "library" and "library_times" in document
                sorts[case["kind"], own].append(case)
        yield from ((fabric, together, None) for together in sorts.values() if together)
        for case in mine:
            if case.get("change"):
                yield fabric, [case], case["change"]
