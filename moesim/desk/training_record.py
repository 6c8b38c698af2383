"""Recorded trainings, read and shown: without PyTorch."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.base.errors import TraceError, UsageError
from moesim.desk.trace_files import read_trace
from moesim.study.training_courses import Course, Recorded, Strategy

SCHEMA = 1
MARK = "moesim training recording"
REQUIRED = ("made", "partial", "why", "finished", "seconds", "settings", "domains", "environment", "file", "licence", "last")


def read_recording(path: Path) -> dict[str, Any]:
    """Read the JSON file of a recording.

    Raises
    ------
    UsageError
        If it cannot be read, is no recording, is of another schema, or lacks a part.
    """
    try:
        data = json.loads(path.read_bytes())
    except OSError as error:
        raise UsageError(f"{path}: {(error.strerror or str(error)).lower()}") from None
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path}: not JSON: {error}") from None
    if not isinstance(data, dict) or data.get("what") != MARK:
        raise UsageError(f"{path} is no recording of a training")
    if data.get("schema") != SCHEMA:
        raise UsageError(f"{path}: schema {data.get('schema')!r} is not one that this version reads ({SCHEMA}); a newer moesim may")
    missing = [key for key in REQUIRED if key not in data]
    if missing:
        raise UsageError(f"{path}: the part {missing[0]!r} is missing; the file is damaged")
    return data


def is_recording(path: Path) -> bool:
    """Say whether a file is the JSON file of a recording."""
    try:
        data = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(data, dict) and data.get("what") == MARK


SERIES = ("maxvio", "idle_now", "dropped")


def read_recorded(path: Path) -> Recorded:
    """Read a recorded training: its JSON file, and the series that stand in the NPZ file beside it.

    Parameters
    ----------
    path : Path
        Of the JSON file.

    Raises
    ------
    UsageError
        As :func:`read_recording` does, or if its settings are not those of a training.
    TraceError
        If the NPZ file is missing or damaged, or does not hold what the JSON file says.
    """
    about = read_recording(path)
    try:
        settings, size = about["settings"], about["settings"]["size"]
        strategy = Strategy(**{name: value for name, value in settings["strategy"].items() if name != "name"})
        shape = {name: int(size[name]) for name in ("experts", "top_k", "layers")}
        sources, sequences, length = int(settings["sources"]), int(settings["sequences"]), int(size["length"])
        name, seed, domains = str(settings["strategy"]["name"]), int(settings["seed"]), len(about["domains"])
        file = path.with_name(str(about["file"]["name"]))
    except (KeyError, TypeError, ValueError) as error:
        raise UsageError(f"{path}: the settings are not those of a training ({error!r}); the file is damaged") from None
    read_trace(file)  # all checks of a trace, with their messages
    series = _series(file, int(about["finished"]), shape["layers"])
    routes = sequences * length * shape["top_k"]
    course = Course(maxvio=series["maxvio"], idle=series["idle_now"], dropped=series["dropped"] / routes)
    return Recorded(
        name=name, strategy=strategy, seed=seed, sources=sources, tokens_per_source=sequences // sources * length, sequence_length=length,
        domains=domains, course=course, **shape,
    )  # fmt: skip


def _series(file: Path, steps: int, layers: int) -> dict[str, NDArray[np.float64]]:
    found = {}
    with np.load(file, allow_pickle=False) as archive:
        for name in SERIES:
            if name not in archive.files:
                raise TraceError(f"{file}: array {name}: missing; write the file with moesim measure training")
            values = np.asarray(archive[name], dtype=np.float64)
            if values.shape != (steps, layers):
                raise TraceError(f"{file}: array {name}: has shape {values.shape}, expected ({steps}, {layers}) as the JSON file says")
            found[name] = values
    return found


COLUMNS = ("strategy", "seed", "steps", "MaxVio", "idle experts", "drop rate", "LM loss", "seconds", "file")


def table(found: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """Return one row of :data:`COLUMNS` for each recording; numbers of routers are of the end of the training."""
    rows = []
    for item in found:
        end = item["last"]
        rows.append(
            [
                item["settings"]["strategy"]["name"],
                str(item["settings"]["seed"]),
                f"{item['finished']}{' (partial)' if item['partial'] else ''}",
                f"{end['maxvio']:.2f}",
                f"{end['idle_experts']:.2f}",
                f"{end['drop_rate']:.4f}",
                f"{end['lm_loss']:.3f}",
                f"{item['seconds']:.0f}",
                item["file"]["name"],
            ]
        )
    return rows


def shown(found: Sequence[Mapping[str, Any]]) -> str:
    """Return the table of recordings as text."""
    rows = [list(COLUMNS), *table(found)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    lines += [f"PARTIAL: {item['file']['name']}: {item['why']}" for item in found if item["partial"]]
    return "\n".join(lines) + "\n"


def as_csv(found: Sequence[Mapping[str, Any]]) -> str:
    """Return the table of recordings as CSV."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([COLUMNS, *table(found)])
    return text.getvalue()
