"""Files of a measurement: JSON that any machine reads back, and tidy tables beside it."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import moesim
from moesim.base.errors import UsageError
from moesim.desk import folder as places
from moesim.desk.summary import to_json
from moesim.lab.job import CASES, Job
from moesim.lab.launch import Outcome
from moesim.lab.merging import merge

SCHEMA = 1
MARK = "moesim measurement"


def names_of(kind: str, system: str) -> tuple[str, ...]:
    """Return every file that a measurement of a kind may write."""
    tables = {
        "compute": ("compute.csv", f"moe_ffn_{system}.csv"),
        "exchange": ("exchange.csv", f"nccl_alltoall_{system}.csv"),
        "layer": ("layer.csv", "layer_phases.csv", "layer_expert_counts.csv"),
        "overlap": ("overlap.csv",),
    }
    return (f"{kind}.json", *tables[kind])


def system_name(text: str) -> str:
    """Return a name of a system that can stand in file names.

    Examples
    --------
    >>> system_name("NVIDIA H200 NVL")
    'nvidia_h200_nvl'
    """
    return re.sub(r"[^a-z0-9]+", "_", text.lower()).strip("_") or "system"


def prepare(folder: Path, kind: str) -> None:
    """See to it, before anything is measured, that results can be written.

    Raises
    ------
    UsageError
        If the folder cannot be made or written, or holds a file of that name that is no measurement.
    """
    main = folder / f"{kind}.json"
    if main.exists():
        try:
            read_measurement(main)
        except UsageError as error:
            raise UsageError(f"{error}; it would be overwritten: choose another folder with -o") from None
    places.prepare(folder, frozenset())


def document(job: Job, outcome: Outcome, *, system: str, licence: str) -> dict[str, Any]:
    """Return everything about a measurement as plain data, as it stands in the JSON file.

    Parameters
    ----------
    job : Job
        What was asked.
    outcome : Outcome
        What the ranks left.
    system : str
        Name of what was measured; that of the GPU or processor if empty.
    licence : str
        Under which the tables may be used.
    """
    headers = [next((line for line in lines if "environment" in line), None) for lines in outcome.ranks]
    known = [header for header in headers if header is not None]
    settings = {key: value for key, value in dataclasses.asdict(job).items() if key not in {"cases", "kind"}}
    cases = merge(job, outcome.ranks)
    environment: dict[str, Any] = known[0].pop("environment") if known else {}
    device = environment.get("gpu", {}).get("name") or environment.get("processor") or "unknown"
    for header in known[1:]:
        # What differs from rank 0 is worth keeping: one rank on a slower clock explains much.
        other = header.pop("environment")
        header["differs"] = {key: value for key, value in other.items() if value != environment.get(key)}
    return {
        "schema": SCHEMA,
        "what": MARK,
        "kind": job.kind,
        "moesim": moesim.__version__,
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
        "system": system or system_name(str(device)),
        "licence": licence,
        "partial": bool(outcome.why),
        "why": outcome.why,
        "ranks": len(outcome.ranks),
        "settings": settings,
        "environment": environment,
        "rank_headers": [{key: value for key, value in header.items() if key != "schema"} for header in known],
        "cases": cases,
    }


def write(folder: Path, measured: Mapping[str, Any]) -> list[Path]:
    """Write the JSON file and the tables of a measurement; return their paths, JSON first.

    Raises
    ------
    ResultError
        If a file cannot be written.
    """
    from moesim.lab.tables import tables

    places.make(folder)
    files = {f"{measured['kind']}.json": to_json(measured), **tables(measured)}
    for name, text in files.items():
        places.put(folder / name, text.encode())
    return [folder / name for name in files]


def read_measurement(path: Path) -> dict[str, Any]:
    """Read a file that :func:`write` wrote, on this machine or another.

    Raises
    ------
    UsageError
        If it cannot be read, is no measurement, is of a newer schema, or lacks a part.
    """
    try:
        data = json.loads(path.read_bytes())
    except OSError as error:
        raise UsageError(f"{path}: {(error.strerror or str(error)).lower()}") from None
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path}: not JSON: {error}") from None
    if not isinstance(data, dict) or data.get("what") != MARK:
        raise UsageError(f"{path} is no measurement of moesim")
    if data.get("schema") != SCHEMA:
        raise UsageError(f"{path}: schema {data.get('schema')!r} is not one that this version reads ({SCHEMA}); a newer moesim may")
    if data.get("kind") not in CASES:
        raise UsageError(f"{path}: unknown kind of measurement {data.get('kind')!r}")
    missing = [key for key in REQUIRED if key not in data]
    if missing:
        raise UsageError(f"{path}: the part {missing[0]!r} is missing; the file is damaged")
    return data


REQUIRED = ("made", "system", "partial", "why", "ranks", "settings", "environment", "rank_headers", "cases")

_SPREAD = {
    "type": "object",
    "required": ["median", "q25", "q75", "min", "max", "n", "unit"],
    "properties": {
        **{key: {"type": "number", "minimum": 0} for key in ("median", "q25", "q75", "min", "max")},
        "n": {"type": "integer", "minimum": 1},
    },
}


def json_schema() -> dict[str, Any]:
    """Return the JSON Schema of a measurement file."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "a measurement of moesim",
        "type": "object",
        "required": ["schema", "what", "kind", "moesim", "licence", *REQUIRED],
        "properties": {
            "schema": {"const": SCHEMA},
            "what": {"const": MARK},
            "kind": {"enum": sorted(CASES)},
            "made": {"type": "string", "format": "date-time"},
            "system": {"type": "string", "minLength": 1},
            "partial": {"type": "boolean"},
            "why": {"type": "string"},
            "ranks": {"type": "integer", "minimum": 1},
            "settings": {"type": "object"},
            "environment": {"type": "object"},
            "rank_headers": {
                "type": "array",
                "items": {"type": "object", "required": ["rank", "world_size", "device", "backend", "machine"]},
            },
            "cases": {
                "type": "array",
                "items": {
                    "type": "object",
                    "required": ["name", "parameters", "repeats"],
                    "properties": {
                        "name": {"type": "string"},
                        "parameters": {"type": "object"},
                        "repeats": {"type": "integer", "minimum": 0},
                        "error": {"type": "string"},
                        "facts": {"type": "object"},
                        "results": {"type": "object", "additionalProperties": _SPREAD},
                        "samples": {"type": "object"},
                    },
                },
            },
        },
    }
