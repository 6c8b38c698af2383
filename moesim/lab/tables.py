"""Tidy tables of a measurement, in the columns of published measurements, so that both can be read alike."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

Row = dict[str, Any]


def tables(measured: Mapping[str, Any]) -> dict[str, str]:
    """Return the text of every table of a measurement by its file name; a table without rows is left out."""
    makers: dict[str, Callable[[Mapping[str, Any]], dict[str, tuple[list[Row], list[str]]]]] = {
        "compute": _compute,
        "exchange": _exchange,
        "layer": _layer,
        "overlap": _overlap,
    }
    made = makers[measured["kind"]](measured)
    return {name: _text(measured, rows, notes) for name, (rows, notes) in made.items() if rows}


def _text(measured: Mapping[str, Any], rows: Sequence[Row], notes: Iterable[str]) -> str:
    environment = measured["environment"]
    torch = environment.get("torch", {}).get("version", "unknown")
    device = environment.get("gpu", {}).get("name") or environment.get("processor") or "unknown device"
    ranks = "1 rank" if measured["ranks"] == 1 else f"{measured['ranks']} ranks"
    load = environment.get("load")
    head = [
        f"# source: moesim {measured['moesim']} measure {measured['kind']}, {measured['made']}, PyTorch {torch}, {ranks} on {device}",
        f"# licence: {measured['licence']}",
        *(f"# {note}" for note in notes),
        f"# note: medians over n repeats in random order, with quartiles and minimum; load of the machine before: {load}",
    ]
    if measured["partial"]:
        head.append(f"# note: PARTIAL: {measured['why']}")
    out = io.StringIO()
    writer = csv.DictWriter(out, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: _cell(value) for key, value in row.items()} for row in rows)
    return "\n".join(head) + "\n" + out.getvalue()


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(int(value))
    if isinstance(value, float):
        return f"{value:.6g}"
    return str(value)


def _spread(result: Mapping[str, Any], name: str = "time") -> Row:
    return {
        f"{name}_us": result["median"] * 1e6,
        "q25_us": result["q25"] * 1e6,
        "q75_us": result["q75"] * 1e6,
        "min_us": result["min"] * 1e6,
        "n": result["n"],
    }


def _done(measured: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [case for case in measured["cases"] if "results" in case]


def _compute(measured: Mapping[str, Any]) -> dict[str, tuple[list[Row], list[str]]]:
    version = measured["environment"].get("torch", {}).get("version", "")
    rows: list[Row] = []
    whole: list[Row] = []
    for case in _done(measured):
        asked, facts, result = case["parameters"], case["facts"], case["results"]["time"]
        shape = {
            "moe_dtype": asked["dtype"],
            "model": "",
            "hidden_size": asked["hidden"],
            "inter_size": asked["expert_width"],
            "topk": asked["top_k"],
            "num_experts": asked["experts"],
            "moe_ep_size": asked["ep"],
            "distribution": asked["distribution"],
            "num_tokens": asked["tokens"],
        }
        framework = {"system": measured["system"], "framework": "torch", "version": version, "kernel_source": facts["kernel"]}
        extra = {
            "rows": facts["rows"],
            "active_experts": facts["active_experts"],
            "max_expert_rows": facts["max_expert_rows"],
            "graph": facts["graph"],
        }
        listed = {"rows_per_expert": " ".join(map(str, facts["rows_per_expert"]))}
        rate = {"tflops": facts["flop"] / result["median"] / 1e12, "GBps": facts["bytes"] / result["median"] / 1e9}
        rows.append({**framework, "operation": asked["operation"], **shape, **extra, **_spread(result), **rate, **listed})
        if asked["operation"] == "moe_ffn":
            times = _spread(result)
            whole.append({**framework, **shape, "time_us": times.pop("time_us"), **extra, **times})
    kept = measured["settings"]
    notes = [
        "units: time_us microseconds of one call on one device; sizes in elements; tflops 1e12 flop/s; GBps 1e9 B/s of weights and rows",
        "note: num_tokens = tokens of the whole expert-parallel group; the device plays the most loaded of moe_ep_size ranks",
        "note: rows = token-expert pairs of the device's own experts, the only ones that it computes; rows_per_expert: of each of them",
        "note: power_law_A draws a weight per expert by inverse CDF on [1, 0.8 num_tokens], one seeded draw",
        f"note: caches {'emptied' if kept['cold'] else 'warm'}; graph 1: replayed as a CUDA graph; CPU threads: {kept['threads']}",
    ]
    about = ["note: softmax and top-k of given logits, permute, gated (SwiGLU) FFN, weighted sum; no gate GEMM, no communication"]
    return {"compute.csv": (rows, notes), f"moe_ffn_{measured['system']}.csv": (whole, [*notes, *about])}


def _exchange(measured: Mapping[str, Any]) -> dict[str, tuple[list[Row], list[str]]]:
    header = measured["rank_headers"][0] if measured["rank_headers"] else {}
    backend = header.get("backend", "")
    version = measured["environment"].get("gpu", {}).get("nccl") or measured["environment"].get("torch", {}).get("version", "")
    rows: list[Row] = []
    even: list[Row] = []
    for case in _done(measured):
        asked, facts, results = case["parameters"], case["facts"], case["results"]
        times = _spread(results["rank_time"])
        rates = {"algbw_GBps": facts["algbw"] / 1e9, "busbw_GBps": facts["busbw"] / 1e9}
        rows.append(
            {
                "system": measured["system"],
                "library": backend,
                "version": version,
                "pattern": asked["pattern"],
                "posting": asked["posting"],
                "num_gpus": measured["ranks"],
                "bytes_per_rank": facts["bytes_per_rank"],
                "sent_per_rank": facts["sent_per_rank"],
                "busiest_port_bytes": facts["busiest_port_bytes"],
                **times,
                **rates,
                "completion_us": results["completion"]["median"] * 1e6,
                "arrival_skew_us": results["arrival_skew"]["median"] * 1e6,
                "correct": facts["correct"],
            }
        )
        if backend == "nccl" and asked["pattern"] == "even" and asked["posting"] == "library" and facts["correct"]:
            same = {"system": measured["system"], "nccl": version, "dtype": "uint8", "num_gpus": measured["ranks"]}
            even.append({**same, "bytes_per_rank": int(facts["bytes_per_rank"]), "time_us": times["time_us"], **rates})
    notes = [
        "units: *_us microseconds; bytes_per_rank B of a mean rank's buffer, own share included; *_GBps 1e9 B/s",
        "note: as in nccl-tests time_us is the mean over ranks of their own times, and algbw = bytes_per_rank / time",
        "note: busbw = what leaves a mean rank / time; completion_us runs from the first arrival to the last end",
        "note: posting receives_first: all receives are posted before any send; library: all_to_all_single",
    ]
    return {"exchange.csv": (rows, notes), f"nccl_alltoall_{measured['system']}.csv": (even, notes)}


def _layer(measured: Mapping[str, Any]) -> dict[str, tuple[list[Row], list[str]]]:
    header = measured["rank_headers"][0] if measured["rank_headers"] else {}
    rows: list[Row] = []
    phases: list[Row] = []
    counts: list[Row] = []
    for case in _done(measured):
        asked, facts, results = case["parameters"], case["facts"], case["results"]
        routes, dropped = facts["routes"], sum(facts["dropped"])
        row = {
            "system": measured["system"],
            "library": header.get("backend", ""),
            "kernel_source": facts["kernel"],
            "posting": asked["posting"],
            "case": case["name"],
            "moe_dtype": asked["dtype"],
            "hidden_size": asked["hidden"],
            "inter_size": asked["expert_width"],
            "topk": asked["top_k"],
            "num_experts": asked["experts"],
            "moe_ep_size": measured["ranks"],
            "skew": asked["skew"],
            "popularity": asked["popularity"],
            "capacity_factor": asked["capacity_factor"],
            "drop": asked["drop"],
            "tokens_per_rank": asked["tokens"],
            "global_num_tokens": asked["tokens"] * measured["ranks"],
        }
        loads = {
            "routes": routes,
            "dropped": dropped,
            "max_rank_load": facts["max_rank_load"],
            "mean_rank_load": facts["mean_rank_load"],
            "max_over_mean": facts["max_rank_load"] / facts["mean_rank_load"] if facts["mean_rank_load"] else 1.0,
            "max_expert_load": facts["max_expert_load"],
            "active_experts_on_hot_rank": facts["active_experts_on_hot_rank"],
        }
        skews = {f"{name}_us": result["median"] * 1e6 for name, result in results.items() if name in {"skew_dispatch", "skew_combine"}}
        rows.append({**row, "pass": "forward", **_spread(results["forward"]), **loads, **skews})
        if asked["backward"]:
            rows.append({**row, "pass": "forward_backward", **_spread(results["step"]), **loads, **skews})
        phases += [
            {"case": case["name"], "rank": rank, "phase": item["phase"], **_spread(item), "cpu_us": item["cpu"] * 1e6}
            for rank, listed in enumerate(case["phases"])
            for item in listed
        ]
        counts += [
            {"case": case["name"], "source_rank": rank, "dropped": facts["dropped"][rank], "counts": " ".join(map(str, kept))}
            for rank, kept in enumerate(facts["kept"])
        ]
    notes = [
        "units: *_us microseconds; loads in token-expert assignments after drops; sizes in elements",
        "note: whole routed layer, from the common start to the end of the slowest rank, without overlap of communication and compute",
        "note: gate, capacity and drops, exchange of counts, dispatch, SwiGLU experts, combine, weighted sum; and back",
        "note: skew: before the gate's own noise an expert's probability falls with its popularity rank to the power -skew",
        "note: capacity ceil(tokens topk / experts * capacity_factor) per source rank and expert, empty: dropless",
        "note: experts are placed contiguously; rows per source rank and expert are in layer_expert_counts.csv",
    ]
    of_phases = [
        "units: *_us microseconds; cpu_us CPU time of all threads of the rank in that phase",
        "note: phases of one rank follow each other; a phase that exchanges includes waiting for peers",
    ]
    of_counts = [
        "units: counts rows kept per expert, in the order of experts; dropped assignments",
        "note: join on case; rows that source_rank sends",
    ]
    return {"layer.csv": (rows, notes), "layer_phases.csv": (phases, of_phases), "layer_expert_counts.csv": (counts, of_counts)}


def _overlap(measured: Mapping[str, Any]) -> dict[str, tuple[list[Row], list[str]]]:
    header = measured["rank_headers"][0] if measured["rank_headers"] else {}
    rows: list[Row] = []
    for case in _done(measured):
        asked, facts, results = case["parameters"], case["facts"], case["results"]
        micro = {name: result["median"] * 1e6 for name, result in results.items()}
        rows.append(
            {
                "system": measured["system"],
                "library": header.get("backend", ""),
                "posting": asked["posting"],
                "kernel_source": facts["kernel"],
                "moe_dtype": asked["dtype"],
                "hidden_size": asked["hidden"],
                "inter_size": asked["expert_width"],
                "num_local_experts": asked["experts"],
                "rows": asked["rows"],
                "num_gpus": measured["ranks"],
                "bytes_per_rank": asked["bytes"],
                "compute_us": micro["compute"],
                "exchange_us": micro["exchange"],
                "sequential_us": micro["compute"] + micro["exchange"],
                **_spread(results["overlapped"], "overlapped"),
                "compute_beside_us": micro["compute_beside"],
                "exchange_beside_us": micro["exchange_beside"],
                "correct": facts["correct"],
            }
        )
    notes = [
        "units: *_us microseconds of the slowest rank; sizes in elements; bytes_per_rank with a rank's own share",
        "note: experts (SwiGLU) and an even all-to-all, each alone, then started together on the same ranks",
        "note: sequential = compute + exchange; overlapped = until both have ended; *_beside = until that one has ended beside the other",
    ]
    return {"overlap.csv": (rows, notes)}
