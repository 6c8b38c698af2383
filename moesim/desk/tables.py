"""Tables as text: CSV that reads back to the same numbers, bit for bit."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.base.errors import ResultError, did_you_mean
from moesim.facts.record import Table

SUFFIXES = {"_s": "s", "_bytes": "B", "_Bps": "B/s", "_flops": "flop"}
KINDS = {"i": "integer", "u": "integer", "f": "number", "b": "boolean", "U": "text", "O": "text"}
EMPTY: dict[str, Any] = {"integer": np.int64, "number": np.float64, "boolean": np.bool_, "text": "<U1"}


def unit_of(column: str, units: Mapping[str, str] | None = None) -> str:
    """Return the unit of a column: as stated, otherwise as its name ends.

    Examples
    --------
    >>> unit_of("step_time_s"), unit_of("bandwidth_Bps"), unit_of("tokens")
    ('s', 'B/s', '')
    """
    if units is not None and column in units:
        return units[column]
    if column == "bytes":
        return "B"
    return next((unit for suffix, unit in SUFFIXES.items() if column.endswith(suffix)), "")


def kind_of(column: NDArray[Any]) -> str:
    """Return ``integer``, ``number``, ``boolean`` or ``text``."""
    return KINDS[column.dtype.kind]


def describe(table: Table) -> dict[str, dict[str, str]]:
    """Return ``{column: {"unit", "type"}}``, what a reader needs to read the CSV back."""
    return {name: {"unit": unit_of(name, table.units), "type": kind_of(column)} for name, column in table.columns.items()}


def to_csv(table: Table) -> str:
    """Write a table as CSV: a header, then rows; a float is written with as few digits as read back to it.

    Parameters
    ----------
    table : Table
        Columns of integers, floats, booleans or text.

    Returns
    -------
    str
        Lines end in a single line feed; text is quoted where it must be.
    """
    header = ",".join(_quoted(name) for name in table.columns)
    rows = zip(*(_texts(column) for column in table.columns.values()), strict=True)
    return "\n".join([header, *map(",".join, rows)]) + "\n"


def from_csv(text: str, columns: Mapping[str, Mapping[str, str]], *, where: str) -> Table:
    """Read what :func:`to_csv` wrote.

    Parameters
    ----------
    text : str
        The file's content.
    columns : mapping
        As :func:`describe` returned it.
    where : str
        The file's name, for messages.

    Raises
    ------
    ResultError
        If the header is another one, a row is too short or long, or a cell is not of its column's type.
    """
    rows = list(csv.reader(io.StringIO(text)))
    header = rows[0] if rows else []
    if header != list(columns):
        odd = next((name for name in header if name not in columns), None)
        why = f"unknown column {odd!r}{did_you_mean(odd, columns)}" if odd is not None else f"expected the columns {', '.join(columns)}"
        raise ResultError(f"{where}: line 1: {why}")
    for line, row in enumerate(rows[1:], start=2):
        if len(row) != len(header):
            raise ResultError(f"{where}: line {line}: {len(row)} values where the header has {len(header)}; the file is damaged or cut off")
    cells = list(zip(*rows[1:], strict=True)) or [()] * len(header)
    arrays = {
        name: _column(list(column), columns[name].get("type", "text"), f"{where}: column {name}")
        for name, column in zip(header, cells, strict=True)
    }
    return Table(columns=arrays, units={name: item.get("unit", "") for name, item in columns.items()})


def _quoted(text: str) -> str:
    if any(letter in text for letter in ',"\r\n') or not text:
        return '"' + text.replace('"', '""') + '"'
    return text


def _texts(column: NDArray[Any]) -> list[str]:
    kind = kind_of(column)
    if kind == "number":
        return list(map(repr, column.astype(np.float64, copy=False).tolist()))
    if kind == "integer":
        return list(map(str, column.tolist()))
    if kind == "boolean":
        return ["true" if item else "false" for item in column.tolist()]
    words = [str(item) for item in column.tolist()]
    known = {word: _quoted(word) for word in dict.fromkeys(words)}
    return [known[word] for word in words]


def _truth(cell: str) -> bool:
    if cell not in {"true", "false"}:
        raise ValueError(cell)
    return cell == "true"


def _column(cells: list[str], kind: str, where: str) -> NDArray[Any]:
    readers: dict[str, Callable[[str], Any]] = {"integer": int, "number": float, "boolean": _truth, "text": str}
    if kind not in readers:
        raise ResultError(f"{where}: unknown type {kind!r}{did_you_mean(kind, readers)}")
    if not cells:
        return np.zeros(0, dtype=EMPTY[kind])
    if kind == "text":
        return np.asarray(cells)
    items: list[Any] = []
    try:
        items.extend(map(readers[kind], cells))
        return np.asarray(items, dtype=EMPTY[kind])
    except (ValueError, OverflowError):
        line = len(items) + 2
        raise ResultError(f"{where}: line {line}: {cells[len(items)]!r} is not {_A[kind]}") from None


_A = {"integer": "a whole number", "number": "a number", "boolean": "true or false", "text": "text"}
