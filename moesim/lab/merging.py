"""Lines of all ranks put together: one entry per case, with what was measured and its spread."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from moesim.lab.job import Case, Job
from moesim.lab.spread import spread

Line = dict[str, Any]


def parse(text: str) -> list[Line]:
    """Return the lines of one rank; a last line that was cut off when the rank died is left out."""
    lines: list[Line] = []
    for line in text.splitlines():
        try:
            item = json.loads(line)
        except json.JSONDecodeError:
            break
        if isinstance(item, dict):
            lines.append(item)
    return lines


def finished(lines: Sequence[Line]) -> bool:
    """Tell whether a rank came to its end."""
    return bool(lines) and lines[-1].get("end") is True


def merge(job: Job, ranks: Sequence[Sequence[Line]]) -> list[dict[str, Any]]:
    """Return one mapping per case: ``name``, ``parameters``, ``facts``, ``results``, ``samples``, ``repeats``, or ``error``.

    Parameters
    ----------
    job : Job
        What was asked.
    ranks : sequence of sequences of mappings
        Lines of every rank, as :func:`parse` returns them.

    Returns
    -------
    list of dict
        In the order of the job. A repeat counts only if every rank has measured it, so partial files merge as well as whole ones.
    """
    return [_case(job, case, ranks) for case in job.cases]


def _case(job: Job, case: Case, ranks: Sequence[Sequence[Line]]) -> dict[str, Any]:
    parameters = {key: value for key, value in dataclasses.asdict(case).items() if key != "name"}
    of_case = [[line for line in lines if line.get("case") == case.name] for lines in ranks]
    found: dict[str, Any] = {"name": case.name, "parameters": parameters}
    error = next((line["error"] for lines in of_case for line in lines if "error" in line), None)
    facts = [next((line["facts"] for line in lines if "facts" in line), None) for lines in of_case]
    measured = [{line["repeat"]: line for line in lines if "repeat" in line} for lines in of_case]
    common = sorted(set.intersection(*(set(item) for item in measured))) if measured else []
    samples = [[item[repeat] for item in measured] for repeat in common]
    found["repeats"] = len(samples)
    if error is not None:
        found["error"] = error
    if not samples:
        return found
    merged = {"exchange": _exchange, "layer": _layer, "compute": _compute, "overlap": _overlap}[job.kind](parameters, facts, samples)
    return {**found, **merged}


def _results(series: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    return {name: {**spread(values), "unit": "s"} for name, values in series.items()}


def _exchange(parameters: Mapping[str, Any], facts: Any, samples: Sequence[Sequence[Line]]) -> dict[str, Any]:  # noqa: ARG001 - as its brothers
    def column(name: str) -> Any:
        return np.asarray([[line[name] for line in ranks] for ranks in samples])

    calls = column("iterations")[:, 0]
    arrival, posted, end = column("arrival_s"), column("posted_s"), column("end_s")
    matrix = np.asarray(parameters["bytes"], dtype=np.int64)
    start = started(arrival, matrix)
    size = _sizes(matrix)
    results = _results(
        {
            "completion": ((end.max(axis=1) - arrival.min(axis=1)) / calls).tolist(),
            "rank_time": ((end - arrival).mean(axis=1) / calls).tolist(),
            "arrival_skew": (arrival.max(axis=1) - arrival.min(axis=1)).tolist(),
        }
    )
    # Bandwidths of nccl-tests: the time is the mean over ranks; algbw counts the whole buffer, busbw what leaves the rank.
    seconds = results["rank_time"]["median"]
    rates = {"algbw": size["bytes_per_rank"] / seconds, "busbw": size["sent_per_rank"] / seconds}
    kept: dict[str, Any] = {"arrival_s": arrival, "posted_s": posted, "start_s": start, "end_s": end, "late_s": column("late_s")}
    kept = {name: values.tolist() for name, values in kept.items()} | {"iterations": calls.tolist()}
    if all("flows_s" in line for ranks in samples for line in ranks):
        kept["flows_s"] = [[line["flows_s"] for line in ranks] for ranks in samples]
    correct = bool(column("correct").all())
    return {"facts": {**size, **rates, "correct": correct}, "results": results, "samples": kept}


def started(arrival: Any, matrix: Any) -> Any:
    """Return float[repeats, ranks]: when the first byte of each rank can move.

    Parameters
    ----------
    arrival : float[repeats, ranks]
        When each rank entered.
    matrix : int[ranks, ranks]
        Bytes.

    Notes
    -----
    That is when the rank and at least one of those it exchanges bytes with are there. Until then it waits for peers.
    """
    matrix = np.asarray(matrix)
    joined = (matrix + matrix.T) > 0
    np.fill_diagonal(joined, val=False)
    both = np.maximum(arrival[:, :, None], arrival[:, None, :])
    first = np.where(joined[None], both, np.inf).min(axis=2)
    return np.where(np.isfinite(first), first, arrival)


def _sizes(matrix: Any) -> dict[str, Any]:
    away = matrix - np.diag(np.diag(matrix))
    return {
        "bytes_per_rank": float(matrix.sum(axis=1).mean()),
        "sent_per_rank": float(away.sum(axis=1).mean()),
        "busiest_port_bytes": int(max(away.sum(axis=0).max(), away.sum(axis=1).max())),
    }


SKEWED = ("counts", "dispatch", "combine", "combine_backward", "dispatch_backward")
"""Phases in which ranks wait for each other."""


def _layer(parameters: Mapping[str, Any], facts: Sequence[Any], samples: Sequence[Sequence[Line]]) -> dict[str, Any]:  # noqa: ARG001
    marks = np.asarray([[line["marks_s"] for line in ranks] for ranks in samples])  # [repeats, ranks, phases + 1]
    cpu = np.asarray([[line["cpu_s"] for line in ranks] for ranks in samples])
    known = [item for item in facts if item is not None]
    phases = known[0]["phases"]
    forward = phases.index("unpermute") + 1
    begun = marks[:, :, 0].min(axis=1)
    series = {"forward": (marks[:, :, forward].max(axis=1) - begun).tolist(), "step": (marks[:, :, -1].max(axis=1) - begun).tolist()}
    series |= {f"skew_{name}": np.ptp(marks[:, :, at], axis=1).tolist() for at, name in enumerate(phases) if name in SKEWED}
    spans = np.diff(marks, axis=2)
    kept = np.asarray([item["kept"] for item in known])
    loads = kept.sum(axis=0).reshape(len(samples[0]), -1)
    of_rank = loads.sum(axis=1)
    hot = int(of_rank.argmax())
    together = {
        "phases": phases,
        "kernel": known[0]["kernel"],
        "routes": sum(item["routes"] for item in known),
        "dropped": [item["dropped"] for item in known],
        "kept": kept.tolist(),
        "row_bytes": known[0]["row_bytes"],
        "sums": [item["sums"] for item in known],
        "max_rank_load": int(of_rank.max()),
        "mean_rank_load": float(of_rank.mean()),
        "max_expert_load": int(loads.max()),
        "active_experts_on_hot_rank": int((loads[hot] > 0).sum()),
    }
    per_rank = [[{"phase": name, **spread(spans[:, rank, at].tolist()), "unit": "s", "cpu": float(np.median(cpu[:, rank, at]))}
                 for at, name in enumerate(phases)] for rank in range(spans.shape[1])]  # fmt: skip
    return {
        "facts": together,
        "results": _results(series),
        "phases": per_rank,
        "samples": {"marks_s": marks.tolist(), "dropped": [[line["dropped"] for line in ranks] for ranks in samples]},
    }


def _compute(parameters: Mapping[str, Any], facts: Sequence[Any], samples: Sequence[Sequence[Line]]) -> dict[str, Any]:
    times = [ranks[0]["time_s"] for ranks in samples]
    return {
        "facts": {**facts[0], **work(parameters, facts[0])},
        "results": _results({"time": times}),
        "samples": {"time_s": times, "iterations": [ranks[0]["iterations"] for ranks in samples]},
    }


TOGETHER = ("compute", "exchange", "compute_beside", "exchange_beside")
"""What a repeat of an overlap times: each alone, and each beside the other."""


def _overlap(parameters: Mapping[str, Any], facts: Sequence[Any], samples: Sequence[Sequence[Line]]) -> dict[str, Any]:
    """Return the times of the slowest rank, and of both parts together."""
    columns = {name: np.asarray([[line[f"{name}_s"] for line in ranks] for ranks in samples]) for name in TOGETHER}
    slowest = {name: values.max(axis=1) for name, values in columns.items()}
    together = np.maximum(columns["compute_beside"], columns["exchange_beside"]).max(axis=1)
    known = next(item for item in facts if item is not None)
    return {
        "facts": {
            "kernel": known["kernel"],
            "correct": all(line["correct"] for ranks in samples for line in ranks),
            "flop": 6.0 * parameters["rows"] * parameters["hidden"] * parameters["expert_width"],
        },
        "results": _results({**{name: values.tolist() for name, values in slowest.items()}, "overlapped": together.tolist()}),
        "samples": {f"{name}_s": values.tolist() for name, values in columns.items()},
    }


WIDTHS = {"float32": 4, "bfloat16": 2, "float16": 2, "float8_e4m3fn": 1}


def work(parameters: Mapping[str, Any], facts: Mapping[str, Any]) -> dict[str, float]:
    """Return floating-point operations and least bytes of a case.

    A product of [m, k] and [k, n] has 2 m k n operations; three of them make a SwiGLU expert. Bytes are the weights of experts with rows,
    and rows read and written once.
    """
    hidden, width, operation = parameters["hidden"], parameters["expert_width"], parameters["operation"]
    rows, active, size = facts["rows"], facts["active_experts"], WIDTHS[parameters["dtype"]]
    moved = max(size, 2)  # rows travel in bfloat16 beside float8 weights
    if operation == "gate":
        tokens, experts = parameters["tokens"], parameters["experts"]
        return {"flop": 2.0 * tokens * hidden * experts, "bytes": float(moved * hidden * (tokens + experts))}
    if operation in {"permute", "unpermute"}:
        return {"flop": 0.0 if operation == "permute" else 2.0 * rows * hidden, "bytes": 2.0 * rows * hidden * moved}
    matrices = {"up_proj": 2, "down_proj": 1}.get(operation, 3)
    return {
        "flop": 2.0 * rows * hidden * width * matrices,
        "bytes": float(active * hidden * width * matrices * size + 2 * rows * hidden * moved),
    }
