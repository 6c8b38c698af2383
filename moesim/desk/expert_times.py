"""Solo calibrations of experts, as ``moesim measure testbed`` writes them, for the compute model ``table``."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from moesim.base.errors import FieldError, Problem, did_you_mean
from moesim.models.compute.table import ExpertTimes

LARGEST = 16 * 2**20
"""Bytes; a calibration has some kilobytes."""


def read_expert_times(path: str, keys: Mapping[str, Any]) -> tuple[ExpertTimes | None, list[Problem]]:
    """Read the seconds of one shape of expert from a calibration.

    The file is JSON: ``{"ffn": {"512x1536,64": 0.00295, ...}, "ffn_bwd": {...}}``, seconds by hidden size x width and rows; keys of other
    operations are for other readers. Backward times of ranks that hold several experts are of ``512x1536/4``: those of the fewest count.

    Parameters
    ----------
    path : str
        Of the file.
    keys : mapping
        The other keys of the section: ``shape`` chooses one of several.

    Returns
    -------
    times : ExpertTimes
        None where there are problems.
    problems : list of Problem
    """
    try:
        tables = _tables(Path(path))
        shape = _shape(tables["ffn"], keys.get("shape"))
        rows = sorted(tables["ffn"][shape])
        backward = _backward(tables["ffn_bwd"], shape)
        backward = _same_rows(shape, rows, backward)
        times = ExpertTimes(
            rows=tuple(rows),
            forward=tuple(tables["ffn"][shape][row] for row in rows),
            backward=tuple(backward[row] for row in rows) if backward else (),
            shape=shape,
            source=Path(path).name,
        )
    except FieldError as error:
        return None, [Problem(file=path, path=error.field, message=error.message)]
    return times, []


def _tables(file: Path) -> dict[str, dict[str, dict[int, float]]]:
    """Return seconds by operation, shape and rows."""
    try:
        with file.open("rb") as stream:
            content = stream.read(LARGEST + 1)
        data = json.loads(content.decode("utf-8-sig")) if len(content) <= LARGEST else None
    except (OSError, ValueError, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else "not JSON"
        raise FieldError("", f"cannot be read as a calibration: {reason.lower()}") from None
    if not isinstance(data, dict) or not isinstance(data.get("ffn"), dict) or not data["ffn"]:
        raise FieldError("", 'holds no calibration of experts: expected JSON with "ffn": {"512x1536,64": seconds, ...}')
    return {name: _by_shape(name, data.get(name, {})) for name in ("ffn", "ffn_bwd")}


def _by_shape(name: str, given: Any) -> dict[str, dict[int, float]]:
    found: dict[str, dict[int, float]] = {}
    for key, seconds in given.items() if isinstance(given, dict) else ():
        shape, _, rows = str(key).rpartition(",")
        if not shape or not (rows.isascii() and rows.isdigit() and int(rows) > 0):
            raise FieldError(name, f"{key!r} does not say a shape and a number of rows, as '512x1536,64' does")
        if isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or not (math.isfinite(seconds) and seconds > 0):
            raise FieldError(name, f"{key}: {seconds!r} is not a time above 0 in seconds")
        found.setdefault(shape, {})[int(rows)] = float(seconds)
    return found


def _backward(tables: Mapping[str, dict[int, float]], shape: str) -> dict[int, float]:
    if shape in tables:
        return tables[shape]
    held = {name.rpartition("/")[2]: table for name, table in tables.items() if name.rpartition("/")[0] == shape}
    of_experts = {int(experts): table for experts, table in held.items() if experts.isascii() and experts.isdigit()}
    return of_experts[min(of_experts)] if of_experts else {}


def _same_rows(shape: str, rows: list[int], backward: dict[int, float]) -> dict[int, float]:
    if backward and sorted(backward) != rows:
        raise FieldError("ffn_bwd", f"{shape} has other rows backward than forward")
    return backward


def _shape(known: Mapping[str, Any], wanted: Any) -> str:
    if wanted is None:
        if len(known) > 1:
            raise FieldError("shape", f"the file holds several shapes: say which (shape: one of {', '.join(sorted(known))})")
        return next(iter(known))
    if wanted not in known:
        raise FieldError("shape", f"there are no experts of {wanted!r}{did_you_mean(str(wanted), known)}")
    return str(wanted)
