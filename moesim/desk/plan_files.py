"""A plan as files: ``plan.json`` for scripts, ``candidates.csv`` for spreadsheets, the Pareto front as a figure."""

from __future__ import annotations

import csv
import dataclasses
import io
import math
from pathlib import Path
from typing import Any

import moesim
from moesim.desk import study_folder
from moesim.desk.plan_ask import Asked
from moesim.desk.plan_words import explanations, headline, in_order
from moesim.desk.summary import SCHEMA
from moesim.study.plan import Found, cost_of
from moesim.study.plan_verdicts import Judged, Mean, Verdict

JSON, CSV, FIGURE = "plan.json", "candidates.csv", "pareto"
NAMES = frozenset({JSON, CSV, f"{FIGURE}.png", f"{FIGURE}.svg", study_folder.REPORT, study_folder.META})


def content(asked: Asked, found: Found) -> dict[str, Any]:
    """Return the content of ``plan.json``. Its keys are a contract; add to them, do not rename."""
    plan = asked.plan
    return {
        "schema": SCHEMA,
        "version": moesim.__version__,
        "name": asked.name,
        "objective": found.objective,
        "confidence": found.confidence,
        "replicates": plan.replicates,
        "currency": plan.currency if plan.price else None,
        "prices": {name: {"per_gpu_hour": price.per_gpu_hour, "source": price.source or None} for name, price in plan.price.items()},
        "targets": [str(target) for target in plan.targets],
        "answer": headline(found, plan),
        "explanations": explanations(found, plan),
        "chosen": found.chosen.candidate.name if found.chosen else None,
        "nearest": found.nearest.candidate.name if found.nearest else None,
        "next_cheaper": found.cheaper.candidate.name if found.cheaper else None,
        "binding": dict(found.ruled_out),
        "pruned": dict(found.pruned),
        "pareto": list(found.pareto),
        "candidates": [_candidate(one, found) for one in found.judged],
        "warnings": list(asked.warnings),
    }


def _candidate(one: Judged, found: Found) -> dict[str, Any]:
    candidate = one.candidate
    cost = cost_of(one, found.objective)
    return {
        "name": candidate.name,
        "axes": dict(candidate.axes),
        "gpu": candidate.gpu or None,
        "gpus": candidate.gpus or None,
        "cost_per_hour": candidate.cost_per_hour,
        "objective": cost if math.isfinite(cost) and candidate.gpus else None,
        "status": one.status,
        "reason": one.reason,
        "pruned_by": one.pruned_by or None,
        "targets": [_verdict(verdict, one) for verdict in one.verdicts],
        "metrics": {name: dataclasses.asdict(mean) for name, mean in one.means.items()},
        "bounds": [dataclasses.asdict(bound) for bound in candidate.bounds],
        "cells": [cell.digest for cell in candidate.cells],
    }


def _verdict(verdict: Verdict, one: Judged) -> dict[str, Any]:
    return {
        "target": str(verdict.target),
        "limit": verdict.target.limit_for(one.candidate.memory),
        "value": verdict.mean.value,
        "low": verdict.mean.low,
        "high": verdict.mean.high,
        "n": verdict.mean.n,
        "outcome": verdict.outcome,
        "miss": verdict.miss if math.isfinite(verdict.miss) else None,
    }


def candidates_csv(asked: Asked, found: Found) -> str:
    """Return one row per candidate, the cheapest first; SI units, an empty cell where there is no number."""
    keys = list(asked.plan.candidates)
    metrics = list(dict.fromkeys(name for one in found.judged for name in one.means))
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(
        ["name", "status", *keys, "gpu", "gpus", "cost_per_hour", *(f"{name}{end}" for name in metrics for end in ("", "_low", "_high")),
         "worst_miss", "pareto", "pruned_by", "reason"]
    )  # fmt: skip
    for one in in_order(found):
        candidate = one.candidate
        numbers: list[object] = []
        for name in metrics:
            mean = one.means.get(name, Mean(value=None))
            numbers += [mean.value, mean.low, mean.high]
        row = [
            candidate.name, one.status, *(candidate.axes.get(key) for key in keys), candidate.gpu, candidate.gpus or None,
            candidate.cost_per_hour, *numbers, one.worst if one.verdicts else None, candidate.name in found.pareto, one.pruned_by,
            one.reason,
        ]  # fmt: skip
        writer.writerow([_cell(item) for item in row])
    return out.getvalue()


def _cell(value: object) -> object:
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return ""
    return str(value).lower() if isinstance(value, bool) else repr(value) if isinstance(value, float) else value


def deliver(asked: Asked, found: Found, folder: Path, *, figure: bool = True, report: bool = True) -> None:
    """Write everything into a folder; ``figure`` and ``report`` say whether to draw.

    Raises
    ------
    ResultError
        If a file cannot be written.
    """
    from moesim.desk.report.study.plan import page

    files: dict[str, bytes] = {CSV: candidates_csv(asked, found).encode()}
    if figure:
        from moesim.desk.plan_picture import pictures

        files |= pictures(asked, found)
    study_folder.deliver(folder, "plan", NAMES, content(asked, found), files, answer=JSON, page=page if report else None)
