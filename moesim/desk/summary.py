"""``summary.json``: what scripts read. Its keys are a contract; add to them, do not rename."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

import moesim
from moesim.desk.tables import describe
from moesim.facts.record import Result, Table, Value

SCHEMA = 1


def digest(content: bytes) -> str:
    """Return the SHA-256 of some bytes, hexadecimal."""
    return hashlib.sha256(content).hexdigest()


def to_json(data: Any) -> str:
    """Write JSON the same way every time: order as given, floats that read back exactly, NaN and infinity as null.

    Letters beyond ASCII are escaped, so that any terminal and any pipe can carry it.
    """
    return json.dumps(plain(data), indent=1, allow_nan=False) + "\n"


def plain(value: Any) -> Any:
    """Return ``value`` with NumPy numbers as Python numbers, tuples and arrays as lists, NaN and infinity as None."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return value


def metric(value: Value) -> dict[str, Any]:
    """Return one metric as it stands in JSON."""
    return {
        "value": value.value,
        "unit": value.unit,
        "low": value.low,
        "high": value.high,
        "n": value.n,
        "basis": value.basis,
    }


def summarise(result: Result, *, tables: Mapping[str, Table], scenario_digest: str, files: Mapping[str, bytes]) -> dict[str, Any]:
    """Return the content of ``summary.json``.

    Parameters
    ----------
    result : Result
        A finished run.
    tables : mapping
        The tables that are written.
    scenario_digest : str
        Of the scenario's meaning (:func:`moesim.desk.scenario_text.digest`).
    files : mapping
        The other data files of the folder, by name: their digests tell a damaged or mixed folder from a whole one.

    Returns
    -------
    dict
        Nothing in it differs between two runs of the same scenario by the same version.
    """
    trace = result.facts.get("trace")
    return {
        "schema": SCHEMA,
        "name": result.scenario.name,
        "seed": result.scenario.seed,
        "version": moesim.__version__,
        "metrics": {name: metric(value) for name, value in result.metrics.items()},
        "warnings": list(result.warnings),
        "assumptions": list(result.assumptions),
        "facts": {name: item for name, item in result.facts.items() if name != "graph"},
        "scenario_digest": scenario_digest,
        "trace_digest": trace.get("digest") if isinstance(trace, Mapping) else None,
        "columns": {name: describe(table) for name, table in tables.items()},
        "files": {name: digest(content) for name, content in files.items()},
    }


def metrics_csv(result: Result) -> str:
    """Return the metrics as CSV, one row each; an empty cell where there is no number."""
    lines = ["name,value,unit,low,high,n,basis"]
    for name, value in result.metrics.items():
        cells = [name, *("" if item is None else item if isinstance(item, str) else repr(item) for item in metric(value).values())]
        lines.append(",".join(cells))
    return "\n".join(lines) + "\n"
