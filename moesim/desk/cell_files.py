"""The answer of a cell as a file: the same bytes for the same answer, whole or not there at all."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import moesim
from moesim.base.errors import ResultError
from moesim.desk import folder as places
from moesim.desk.summary import metric, plain
from moesim.desk.tables import EMPTY, describe
from moesim.facts.record import Table, Value
from moesim.study.cell import DONE, Answer

SCHEMA = 1
SUFFIX = ".json"


def file_of(folder: str | Path, digest: str) -> Path:
    """Return where the answer of a cell with this digest is, or will be."""
    return Path(folder) / f"{digest}{SUFFIX}"


def write_answer(folder: str | Path, answer: Answer) -> Path:
    """Write an answer into a folder as ``<digest>.json``, and return the path.

    The folder must be there. Readers see the whole file or none.

    Raises
    ------
    ResultError
        If it cannot be written; the message says why, and nothing of it is left.
    """
    path = file_of(folder, answer.digest)
    places.put(path, to_bytes(answer))
    return path


def to_bytes(answer: Answer) -> bytes:
    """Return the content of the file of an answer: JSON with one line for every series of numbers; NaN is null."""
    head = {
        "schema": SCHEMA,
        "version": moesim.__version__,
        "digest": answer.digest,
        "name": answer.name,
        "axes": dict(answer.axes),
        "status": answer.status,
        "error": answer.error,
        "warnings": list(answer.warnings),
        "assumptions": list(answer.assumptions),
        "facts": answer.facts,
        "steps": answer.steps,
        "fresh": answer.fresh,
    }
    blocks = {
        "metrics": {name: metric(value) for name, value in answer.metrics.items()},
        "samples": answer.samples,
    }
    lines = [f"{_line(name)}: {_line(item)}" for name, item in head.items()]
    lines += [f"{_line(name)}: {_block(items)}" for name, items in blocks.items()]
    if answer.tables is not None:
        lines.append(f'"columns": {_block({name: describe(table) for name, table in answer.tables.items()})}')
        inner = {name: _block(table.columns, indent="  ") for name, table in answer.tables.items()}
        text = ",\n".join(f"  {_line(name)}: {body}" for name, body in inner.items())
        lines.append(f'"tables": {{\n{text}\n }}' if inner else '"tables": {}')
    return ("{\n " + ",\n ".join(lines) + "\n}\n").encode()


def read_answer(path: str | Path) -> Answer:
    """Read what :func:`write_answer` wrote.

    Raises
    ------
    ResultError
        If the file is missing, damaged, of another schema or another version, or its name is not its digest.
    """
    path = Path(path)
    try:
        data = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise ResultError(f"{path} is not there") from None
    except OSError as error:
        raise ResultError(f"cannot read {path}: {places.reason(error)}") from None
    except ValueError as error:
        raise ResultError(f"{path} is damaged: {error}") from None
    if not isinstance(data, dict) or "schema" not in data:
        raise ResultError(f"{path} is damaged, or is no answer of a cell")
    if data["schema"] != SCHEMA:
        raise ResultError(f"{path} has schema {data['schema']!r}, and this moesim reads schema {SCHEMA}")
    try:
        answer = _answer(data)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ResultError(f"{path} is damaged: {type(error).__name__}: {error}") from None
    if path.stem != answer.digest:
        raise ResultError(f"{path} holds the answer of cell {answer.digest[:12]}: it was renamed or damaged")
    return answer


def _line(value: Any) -> str:
    return json.dumps(plain(value), allow_nan=False)


def _block(items: Mapping[str, Any], *, indent: str = " ") -> str:
    if not items:
        return "{}"
    inner = ",\n".join(f"{indent} {_line(name)}: {_line(item)}" for name, item in items.items())
    return f"{{\n{inner}\n{indent}}}"


def _answer(data: dict[str, Any]) -> Answer:
    tables = data.get("tables")
    return Answer(
        name=str(data["name"]),
        digest=str(data["digest"]),
        axes=dict(data["axes"]),
        status=str(data.get("status", DONE)),
        error=str(data["error"]),
        metrics={name: Value(**item) for name, item in data["metrics"].items()},
        samples={name: _floats(items) for name, items in data["samples"].items()},
        steps=np.asarray(data["steps"], dtype=np.int64),
        fresh=np.asarray(data["fresh"], dtype=np.bool_),
        facts=dict(data["facts"]),
        warnings=tuple(data["warnings"]),
        assumptions=tuple(data["assumptions"]),
        tables=None if tables is None else {name: _table(table, data["columns"][name]) for name, table in tables.items()},
    )


def _table(columns: Mapping[str, list[Any]], about: Mapping[str, Mapping[str, str]]) -> Table:
    arrays = {name: _column(items, about[name]["type"]) for name, items in columns.items()}
    return Table(columns=arrays, units={name: about[name]["unit"] for name in columns})


def _column(items: list[Any], kind: str) -> NDArray[Any]:
    if kind == "number":
        return _floats(items)
    if kind == "text":
        return np.asarray(items, dtype=str) if items else np.zeros(0, dtype="<U1")
    return np.asarray(items, dtype=EMPTY[kind])


def _floats(items: list[Any]) -> NDArray[np.float64]:
    return np.array([np.nan if item is None else item for item in items], dtype=np.float64)
