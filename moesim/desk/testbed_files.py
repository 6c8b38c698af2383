"""Tables of a testbed, as ``moesim validate`` reads them: all-to-alls as CSV, steps as JSON lines, the calibration beside them."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from typing import Any

from moesim.desk.summary import plain, to_json

NAMES = ("predictions.json", "measured.json", "comparison.json", "a2a_cases.csv", "moe_fwd_own.jsonl", "moe_fwd_own_calibration.json")
"""Every file that a run of the testbed may write."""


def tables(document: Mapping[str, Any], compared: Mapping[str, Any], measured: Mapping[str, Any]) -> dict[str, str]:
    """Return the tables of a run by file name; cases that were not measured are left out.

    Parameters
    ----------
    document, compared, measured : mapping
        The prediction file, the comparison, and what the lab returned.
    """
    fabrics = {fabric["name"]: fabric for fabric in document["fabrics"]}
    found = {case["name"]: case for case in compared["cases"]}
    exchanges = [case for case in document["cases"] if case["kind"] == "exchange" and case["name"] in found and not case["change"]]
    layers = [case for case in document["cases"] if case["kind"] == "layer" and case["name"] in found]
    posting = document.get("posting", {})
    files: dict[str, str] = {}
    if exchanges:
        files["a2a_cases.csv"] = _csv(
            [
                _exchange(case, found[case["name"]], fabrics[case["fabric"]], posting.get(case["fabric"]), document["cores"])
                for case in exchanges
            ],
            document,
            measured["partial"],
        )
    if layers:
        rows = [_layer(case, found[case["name"]], fabrics[case["fabric"]], document, measured) for case in layers]
        files["moe_fwd_own.jsonl"] = "".join(json.dumps(plain(row), allow_nan=False) + "\n" for row in rows)
        files["moe_fwd_own_calibration.json"] = to_json(document["calibration"])
    return files


def _exchange(
    case: Mapping[str, Any], found: Mapping[str, Any], fabric: Mapping[str, Any], posting: float | None, cores: int
) -> dict[str, Any]:
    late = f"@{case['stagger_ms']:g}" if case["stagger_ms"] else ""
    return {
        "tag": fabric["name"] + ("-library" if case["posting"] == "library" else ""),
        "n": fabric["ranks"],
        "per_node": fabric["per_node"] or 1,
        "fast_mbit": fabric["fast_mbit"],
        "slow_mbit": fabric["slow_mbit"],
        "shaper": "htbfq" if fabric["queue"] == "flow" else "htb",
        "mode": "a2a" if case["posting"] == "library" else "pre",
        "kind": case["pattern"] + late,
        "bytes_per_pair": case["bytes_per_pair"],
        "reps": found["repeats"],
        "cores": cores,
        **({"alpha_s": f"{posting:.6g}"} if posting is not None else {}),
        **{name: f"{found[name]:.6g}" for name in ("median_s", "min_s", "max_s", "q25_s", "q75_s", "predicted_s")},
    }


def _layer(
    case: Mapping[str, Any], found: Mapping[str, Any], fabric: Mapping[str, Any], document: Mapping[str, Any], measured: Mapping[str, Any]
) -> dict[str, Any]:
    probe = document["probes"][fabric["name"]]
    lab = {"n": fabric["ranks"], "fast": fabric["fast_mbit"] * 1e6}
    if fabric["per_node"]:
        lab |= {"per_node": fabric["per_node"], "slow": fabric["slow_mbit"] * 1e6}
    return {
        "lab": fabric["name"], "lab_kw": lab, "cores": document["cores"], "bwd": int(case["backward"]), "ff": case["expert_width"],
        "skew": case["skew"], "cf": case["capacity_factor"] or 0.0, "tokens": case["tokens"], "d": case["hidden"],
        "experts": case["experts"],
        "pinned": 1, "a2a": "gloo" if case["posting"] == "library" else "pre", "reps": found["repeats"],
        **{name: found[name] for name in ("median_s", "min_s", "max_s", "q25_s", "q75_s", "predicted_s")},
        "dropped": measured["cases"][case["name"]]["dropped"], "kept": measured["cases"][case["name"]]["kept"],
        **({"crowding": case["slowdown"]} if "crowded" in document else {}),
        **({"slowdown": found["at_speed"]["slowdown"]} if "at_speed" in found else {}),
        "counts_latency_s": probe["counts_s"], "tiny_a2a_s": probe["all_to_all_s"],
        "phases": measured["cases"][case["name"]]["phases"], "mark_median_s": measured["cases"][case["name"]]["marks_median_s"],
        "steps_s": measured["cases"][case["name"]]["seconds"],
    }  # fmt: skip


def _csv(rows: Sequence[Mapping[str, Any]], document: Mapping[str, Any], partial: str) -> str:
    text = io.StringIO()
    text.write("# All-to-alls of PyTorch ranks (gloo) in network namespaces with shaped links; moesim measure testbed.\n")
    text.write(f"# Predicted before they were measured; SHA-256 of the prediction file's content: {document['sha256']}\n")
    text.write("# units: *_s seconds; *_mbit Mbit/s; bytes_per_pair bytes\n")
    text.write(f"# PARTIAL: {partial}\n" if partial else "")
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
