"""What the lines of ranks say of a testbed's cases: times, latencies, how fast cores were."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from moesim.base.errors import MeasurementError
from moesim.lab.launch import Outcome


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


def measured(case: Mapping[str, Any], ranks: Sequence[Sequence[Mapping[str, Any]]]) -> dict[str, Any]:
    """Return the seconds of each repeat that every rank has measured, and what else ranks have noted of a case.

    Raises
    ------
    MeasurementError
        If something else arrived than was sent.
    """
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
            "cpu_median_s": _of_ranks(ranks, case["name"], "cpu_s"),
            "reference_s": _of_ranks(ranks, case["name"], "reference_s"),
            "kept": kept,
            "dropped": dropped,
        }
    found = [{line["repeat"]: line for line in lines if line.get("case") == case["name"] and "repeat" in line} for lines in ranks]
    common = sorted(set.intersection(*map(set, found))) if found else []
    ends = np.array([[of_rank[repeat]["end_s"] for of_rank in found] for repeat in common])
    wrong = sum(not of_rank[repeat]["correct"] for repeat in common for of_rank in found)
    if wrong:
        raise MeasurementError(f"case {case['name']!r}: {wrong} receives did not hold what was sent")
    if not len(ends):
        return {"seconds": []}
    arrivals = [[of_rank[repeat]["arrival_s"] for of_rank in found] for repeat in common]
    return {"seconds": ends.max(axis=1).tolist(), "arrivals_s": arrivals}


def _of_ranks(ranks: Sequence[Sequence[Mapping[str, Any]]], name: str, what: str) -> list[Any]:
    """Return the median over repeats of something that every rank noted; empty if none did."""
    found = [[line[what] for line in lines if line.get("case") == name and what in line] for lines in ranks]
    return [np.median(np.array(of_rank), axis=0).tolist() for of_rank in found] if all(found) else []
