"""Predictions of the testbed beside what was measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from moesim.study.scores import order_of, summary_of
from moesim.study.validation.testbed_all_to_all import LONG, REPEATED

ROUGHLY = 0.03
"""Relative width of a single call besides its order."""


def compared(document: Mapping[str, Any], measured: Mapping[str, Any]) -> dict[str, Any]:
    """Return every case with its measurement and its error, and the errors of each sort of case.

    Parameters
    ----------
    document : mapping
        The prediction file.
    measured : mapping
        What the lab returned: ``cases`` by name with ``seconds``, and why it is partial, if it is.

    Returns
    -------
    dict
        ``cases``: name, sort, predicted, median, quartiles, extremes and number of repeats in s, error and errors of the baselines in per
        cent (signed, of the measurement). Where ranks have timed a reference kernel beside the steps, ``at_speed`` has the slowdown of
        their cores against the calibration and the error of what was predicted for such cores. Where a range of orders was foretold,
        ``orders`` has it, the share of calls inside (give or take 3 %) and the error of the mean. ``sorts``: number, mean, worst and
        signed mean of the errors, and the same of each baseline; ``at_speed`` likewise.
        ``order`` of layer cases of one fabric and shape: pairs that differ by more than noise, and those that were predicted the other
        way round. ``unmeasured``: names.
    """
    queue = {fabric["name"]: fabric["queue"] for fabric in document["fabrics"]}
    cases, missing, notes = [], [], []
    for case in document["cases"]:
        found = measured["cases"].get(case["name"], {})
        seconds = np.asarray(found.get("seconds", ()), dtype=np.float64)
        if not len(seconds):
            missing.append(case["name"])
            continue
        if case["kind"] == "layer" and found["kept"] != case["kept"]:
            notes.append(f"{case['name']}: the ranks kept other rows than was foretold; its prediction is of another step")
        slowdown = slowdown_of(case, found)
        cases.append(_case(case, seconds, slowdown, _sort(case, queue[case["fabric"]], float(np.median(seconds)))))
    sorts = {sort: _sort_of([case for case in cases if case["sort"] == sort]) for sort in dict.fromkeys(case["sort"] for case in cases)}
    return {
        "prediction": document["sha256"],
        "partial": measured["partial"],
        "cases": cases,
        "sorts": sorts,
        "order": _order(document, cases),
        "unmeasured": missing,
        "notes": notes,
        "runs": list(measured["runs"]),
    }


def _sort(case: Mapping[str, Any], queue: str, seconds: float) -> str:
    if case["kind"] == "layer":
        return "layer, forward and backward" if case["backward"] else "layer, forward"
    words = ["exchange"]
    words += ["one queue per link"] if queue == "fifo" else []
    words += ["the library's own"] if case["posting"] == "library" else []
    words += ["late starts"] if case["stagger_ms"] else []
    words += ["a link that changes"] if case["change"] else []
    words += [] if seconds >= LONG else ["below 50 ms"]
    return ", ".join(words)


def slowdown_of(case: Mapping[str, Any], found: Mapping[str, Any]) -> float | None:
    """Return how many times the calibrated seconds the reference kernel took beside a step, on average over ranks; None if nobody knows."""
    if not case.get("at_slowdown") or not found.get("reference_s"):
        return None
    return float(np.mean(found["reference_s"])) / float(case["reference_s"])


def _at_speed(case: Mapping[str, Any], median: float, slowdown: float) -> dict[str, Any]:
    """Read what was predicted for cores of some speed; beyond the speeds that were played, straight on."""
    at = case["at_slowdown"]

    def read(seconds: Sequence[float]) -> float:
        played, known = np.array(at["slowdown"]), np.array(seconds)
        pair = int(np.clip(np.searchsorted(played, slowdown), 1, len(played) - 1))
        slope = (known[pair] - known[pair - 1]) / (played[pair] - played[pair - 1])
        return float(known[pair - 1] + slope * (slowdown - played[pair - 1]))

    predicted = read(at["predicted_s"])
    return {
        "slowdown": slowdown,
        "predicted_s": predicted,
        "error_pct": (predicted / median - 1.0) * 100.0,
        "baselines_pct": {name: (read(seconds) / median - 1.0) * 100.0 for name, seconds in at["baselines_s"].items()},
    }


def _case(case: Mapping[str, Any], seconds: Any, slowdown: float | None, sort: str) -> dict[str, Any]:
    median = float(np.median(seconds))
    lower, upper = (float(value) for value in np.quantile(seconds, (0.25, 0.75)))
    return {
        "name": case["name"],
        "sort": sort,
        "predicted_s": case["predicted_s"],
        "median_s": median,
        "q25_s": lower,
        "q75_s": upper,
        "min_s": float(seconds.min()),
        "max_s": float(seconds.max()),
        "repeats": len(seconds),
        "error_pct": (case["predicted_s"] / median - 1.0) * 100.0,
        "baselines_pct": {name: (value / median - 1.0) * 100.0 for name, value in case["baselines_s"].items()},
        **({} if slowdown is None else {"at_speed": _at_speed(case, median, slowdown)}),
        **({"orders": _orders(case, seconds)} if "low_s" in case else {}),
    }


def _orders(case: Mapping[str, Any], seconds: Any) -> dict[str, float]:
    """Hold what varies by itself against the range that was foretold: medians of few calls say little where a few durations alternate."""
    inside = (seconds >= (1.0 - ROUGHLY) * case["low_s"]) & (seconds <= (1.0 + ROUGHLY) * case["high_s"])
    return {
        "low_s": case["low_s"],
        "high_s": case["high_s"],
        "inside": float(inside.mean()),
        "mean_error_pct": (case["mean_s"] / float(seconds.mean()) - 1.0) * 100.0,
    }


def _sort_of(cases: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    at_speed = [case["at_speed"] for case in cases if "at_speed" in case]
    return {**_summary(cases), **({"at_speed": _summary(at_speed)} if len(at_speed) == len(cases) else {})}


def _summary(cases: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    def of(values: Sequence[float]) -> dict[str, float | int]:
        errors = summary_of(np.asarray(values, dtype=np.float64))
        return {"n": errors.n, "mean_abs_pct": errors.mape, "worst_pct": errors.worst, "bias_pct": errors.bias}

    names = dict.fromkeys(name for case in cases for name in case["baselines_pct"])
    return {
        **of([case["error_pct"] for case in cases]),
        "baselines": {name: of([case["baselines_pct"][name] for case in cases if name in case["baselines_pct"]]) for name in names},
    }


def _order(document: Mapping[str, Any], cases: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Hold the order of routings and capacity factors on one fabric, of one shape, against the measured one.

    What is held against it was predicted for the speed of the cores where that is known: rivals are measured at different times.
    """
    by_name = {case["name"]: case for case in document["cases"]}
    layers = [case for case in cases if by_name[case["name"]]["kind"] == "layer"]
    if not layers:
        return {"pairs": 0, "wrong": 0, "experiments": 0}
    keys = ("fabric", "hidden", "expert_width", "experts", "top_k", "tokens", "backward")
    rivals = np.array([" ".join(str(by_name[case["name"]][key]) for key in keys) for case in layers])
    median = np.array([case["median_s"] for case in layers])
    own = np.array([0.93 * (case["q75_s"] - case["q25_s"]) / np.sqrt(case["repeats"]) for case in layers]) / median
    predicted = np.array([case.get("at_speed", case)["predicted_s"] for case in layers])
    found = order_of(median, predicted, rivals, np.hypot(own, REPEATED))
    return {"pairs": found.pairs, "wrong": found.wrong, "experiments": found.experiments, "rank_correlation": found.correlation}
