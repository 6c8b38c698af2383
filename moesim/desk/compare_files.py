"""A comparison as files: what scripts read, two tables, and every variant's scenario."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

import moesim
from moesim.desk import folder as places
from moesim.desk.cell_files import file_of, write_answer
from moesim.desk.compare_runs import BLOCKS
from moesim.desk.compare_shown import JSON, shown_of
from moesim.desk.compare_words import evidence
from moesim.desk.comparing import Outcome
from moesim.desk.scenario_text import digest, dump
from moesim.desk.study_folder import CELLS, META, REPORT, meta
from moesim.desk.summary import SCHEMA, metric, to_json
from moesim.study.compare import HEADLINES
from moesim.study.many import ALPHA

NAMES = frozenset({JSON, "variants.csv", "differences.csv", REPORT, META})


def content(outcome: Outcome) -> dict[str, Any]:
    """Return the content of ``comparison.json``. Its keys are a contract; add to them, do not rename.

    Parameters
    ----------
    outcome : Outcome

    Returns
    -------
    dict
        Nothing in it differs between two comparisons of the same scenario by the same version.
    """
    question, comparison = outcome.question, outcome.comparison
    paths = scenario_paths(outcome)
    variants = {}
    for runs in question.runs:
        if runs.name not in outcome.played:
            continue
        played = outcome.played[runs.name]
        variants[runs.name] = {
            "metrics": {name: metric(value) for name, value in comparison.metrics[runs.name].items()},
            "evidence": {
                "kind": runs.kind,
                "seeds": list(played.seeds),
                "steps": len(played.answers[0].steps),
                "blocks": len(np.unique(played.blocks)) if played.blocks is not None else None,
                "independent_blocks": runs.independent if runs.kind == BLOCKS else None,
            },
            "same_choices": comparison.same_choices[runs.name],
            "scenario": paths[runs.name],
            "scenario_digest": digest(outcome.scenario(runs.name)),
            "gpu_memory": float(outcome.scenario(runs.name).cluster.build().gpu.memory),
            "source": outcome.scenario(runs.name).routing.kind,
            "cells": [answer.digest for answer in played.answers],
        }
    return {
        "schema": SCHEMA,
        "name": question.name,
        "version": moesim.__version__,
        "evidence": evidence(outcome),
        "baseline": comparison.baseline,
        "variants": variants,
        "differences": {
            name: {key: dataclasses.asdict(difference) for key, difference in of.items()} for name, of in comparison.differences.items()
        },
        "winner": dataclasses.asdict(comparison.winner),
        "failed": dict(outcome.failed),
        "correction": {"method": "holm", "alpha": ALPHA, "headlines": sorted({*HEADLINES, question.by})},
        "warnings": list(outcome.warnings),
    }


def variants_csv(outcome: Outcome) -> str:
    """Return one row per variant and metric; an empty cell where there is no number."""
    rows = (
        {"variant": name, "metric": key, **metric(value)}
        for name, metrics in outcome.comparison.metrics.items()
        for key, value in metrics.items()
    )
    return _csv(["variant", "metric", "value", "unit", "low", "high", "n", "basis"], rows)


def differences_csv(outcome: Outcome) -> str:
    """Return one row per variant, other than the baseline, and metric."""
    rows = [
        {"variant": name, "baseline": outcome.comparison.baseline, "metric": key, **dataclasses.asdict(difference)}
        for name, of in outcome.comparison.differences.items()
        for key, difference in of.items()
    ]
    return _csv(list(rows[0]), rows)


def scenario_paths(outcome: Outcome) -> dict[str, str]:
    """Return where in the folder the scenario of each variant goes, failed ones too."""
    taken: dict[str, str] = {}
    for runs in outcome.question.runs:
        stem = places.slug(runs.name)
        number = 1
        while f"variants/{stem}.yaml" in taken.values():
            number += 1
            stem = f"{places.slug(runs.name)}-{number}"
        taken[runs.name] = f"variants/{stem}.yaml"
    return taken


def deliver(outcome: Outcome, folder: str | Path, *, report: bool = True) -> None:
    """Write a comparison's folder: the answer first and the page last.

    Parameters
    ----------
    outcome : Outcome
    folder : path
        Paths inside the scenarios are written relative to where they stand.
    report : bool
        Whether to draw the page; without, one of an earlier comparison is removed.

    Raises
    ------
    ResultError
        If a file cannot be written; the message names it and the reason.
    """
    folder = Path(folder)
    paths = scenario_paths(outcome)
    places.make(folder / "variants")
    old = _old_scenarios(folder)
    # meta.json marks the folder as that of a comparison, so that one that stopped half-way can be repeated into it; then the answer.
    places.put(folder / META, to_json(meta("compare")).encode())
    places.put(folder / JSON, to_json(content(outcome)).encode())
    places.put(folder / "differences.csv", differences_csv(outcome).encode())
    places.put(folder / "variants.csv", variants_csv(outcome).encode())
    texts = {name: dump(outcome.scenario(name), folder=(folder / path).parent) for name, path in paths.items()}
    for name, path in paths.items():
        places.put(folder / path, texts[name].encode())
    for path in old - set(paths.values()):
        places.drop(folder / path)
    places.make(folder / CELLS)
    for answer in [answer for played in outcome.played.values() for answer in played.answers]:  # of these the page can be drawn again
        if not file_of(folder / CELLS, answer.digest).is_file():
            write_answer(folder / CELLS, answer)
    if not report:
        places.drop(folder / REPORT)
        return
    from moesim.desk.report.comparison.page import page

    places.put(folder / REPORT, page(shown_of(outcome, version=moesim.__version__, texts=texts)).encode())


def _old_scenarios(folder: Path) -> set[str]:
    """Return which scenarios an earlier comparison left in the folder."""
    try:
        variants = json.loads((folder / JSON).read_bytes())["variants"].values()
        found = {str(variant["scenario"]) for variant in variants}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return set()
    return {path for path in found if path.startswith("variants/") and path.endswith(".yaml") and path.count("/") == 1}


def _csv(columns: list[str], rows: Iterable[Mapping[str, Any]]) -> str:
    out = io.StringIO()
    writer = csv.DictWriter(out, columns, lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({name: _cell(row[name]) for name in columns})
    return out.getvalue()


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    return repr(value) if isinstance(value, float) else str(value)
