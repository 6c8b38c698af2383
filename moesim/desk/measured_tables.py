"""Measured tables: CSV with '#' lines above the header, JSON lines, NPZ; what is wrong with a file or a row is told, never dropped.

The reader looks for what goes wrong in tables that people send each other: numbers mixed with words in one column, rows of another length,
times below 0, a unit that the header contradicts.
"""

from __future__ import annotations

import csv
import io
import json
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.base.errors import CalibrationError

LARGEST = 512 * 1024 * 1024
"""Bytes of a file; a larger one is not a table that anybody measured by hand."""

SEPARATORS = {";": "semicolons", "\t": "tabs", "|": "vertical bars"}
"""What spreadsheets put between cells instead of commas."""

SUFFIXES = (".csv", ".jsonl", ".npz", ".json")

UNIT_SUFFIXES = {"_ns": "nanoseconds", "_us": "microseconds", "_ms": "milliseconds", "_s": "seconds"}
UNIT_WORDS = {
    "ns": "nanoseconds", "nanosecond": "nanoseconds", "nanoseconds": "nanoseconds",
    "us": "microseconds", "µs": "microseconds", "μs": "microseconds", "microsecond": "microseconds", "microseconds": "microseconds",
    "ms": "milliseconds", "millisecond": "milliseconds", "milliseconds": "milliseconds",
    "s": "seconds", "sec": "seconds", "second": "seconds", "seconds": "seconds",
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """Rows of a file that cannot be used: how many, the line of the first, and why."""

    rows: int
    line: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredTable:
    """A file of measurements.

    Parameters
    ----------
    name : str
        Path of the file relative to the folder that was read, with slashes.
    rows : mapping of str to array
        The usable rows: integers int64, numbers float64 (NaN where a cell is empty), text str, anything nested object.
    lines : int array
        Line of the file, from 1, of each usable row.
    notes : tuple of str
        The '#' lines, without the '#'.
    refused : tuple of Refused
        Rows that were left out.
    """

    name: str
    rows: Mapping[str, NDArray[Any]]
    lines: NDArray[np.int64]
    notes: tuple[str, ...] = ()
    refused: tuple[Refused, ...] = ()


def files_below(folder: Path) -> list[Path]:
    """Return every file of a folder and its folders, sorted; names that begin with a dot are left out.

    Raises
    ------
    CalibrationError
        If the folder cannot be read or holds no file.
    """
    if not folder.exists():
        raise CalibrationError(f"{folder}: there is no such folder")
    if not folder.is_dir():
        raise CalibrationError(f"{folder} is a file; name the folder that holds the tables")
    try:
        found = [path for path in folder.rglob("*") if path.is_file() and not _hidden(path.relative_to(folder))]
    except OSError as error:
        raise CalibrationError(f"{folder} cannot be read: {(error.strerror or str(error)).lower()}") from None
    if not found:
        raise CalibrationError(f"{folder} holds no files; tables are named as in docs/howto/calibrate-in-15-minutes.md")
    return sorted(found, key=lambda path: path.relative_to(folder).as_posix())


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") or part == "__pycache__" for part in path.parts)


def read_measured(path: Path, name: str | None = None) -> MeasuredTable:
    """Read one file by its suffix.

    Parameters
    ----------
    path : Path
        Of a ``.csv``, ``.jsonl``, ``.npz`` or ``.json`` file.
    name : str, optional
        What to call it; its file name if left out.

    Raises
    ------
    CalibrationError
        If the file as a whole cannot be used; the message says why and does not repeat the name.
    """
    shown = name or path.name
    if path.suffix == ".npz":
        return _read_npz(path, shown)
    text = _text(path)
    if path.suffix == ".csv":
        return parse_csv(text, shown)
    if path.suffix == ".jsonl":
        return _parse_jsonl(text, shown)
    if path.suffix == ".json":
        try:
            document = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise CalibrationError(f"not JSON: {error}") from None
        return MeasuredTable(name=shown, rows={"document": _objects([document])}, lines=np.asarray([1]))
    raise CalibrationError(f"a file with the ending {path.suffix or '(none)'} is no table; tables end in {', '.join(SUFFIXES)}")


def _text(path: Path) -> str:
    try:
        if os.path.getsize(path) > LARGEST:
            raise CalibrationError(f"is larger than {LARGEST // 1024**2} MiB: this is no table")
        return path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise CalibrationError(f"cannot be read: {(error.strerror or str(error)).lower()}") from None
    except UnicodeDecodeError as error:
        raise CalibrationError(f"byte {error.start} is not UTF-8; save the table as UTF-8 text") from None


def _objects(items: Sequence[Any]) -> NDArray[Any]:
    cells = np.empty(len(items), dtype=object)
    for index, item in enumerate(items):
        cells[index] = item
    return cells


def parse_csv(text: str, name: str) -> MeasuredTable:
    """Read the text of a CSV table; see :func:`read_measured`."""
    notes, header, cells, lines, refused = _split(text)
    columns: dict[str, NDArray[Any]] = {}
    bad: dict[int, str] = {}
    for index, column in enumerate(header):
        found, wrong = _column([row[index].strip() for row in cells], certain=_is_time(column))
        columns[column] = found
        for row, cell in wrong.items():
            bad.setdefault(row, f"column {column}: {cell!r} is not a number, and the other rows hold numbers")
    for column, found in columns.items():
        if _is_time(column) and found.dtype.kind in "if":
            for row in np.flatnonzero(np.nan_to_num(found, nan=0.0, posinf=-1.0) < 0).tolist():
                shown = float(found[row])
                bad.setdefault(row, f"column {column}: the time {shown:g} is {'negative' if shown < 0 else 'not finite'}")
    _check_units(notes, header)
    keep = np.asarray([row for row in range(len(cells)) if row not in bad], dtype=np.int64)
    refused += [Refused(rows=1, line=lines[row], reason=why) for row, why in sorted(bad.items())]
    rows = {column: found[keep] for column, found in columns.items()}
    return MeasuredTable(name=name, rows=rows, lines=np.asarray(lines, dtype=np.int64)[keep], notes=notes, refused=_together(refused))


def _split(text: str) -> tuple[tuple[str, ...], list[str], list[list[str]], list[int], list[Refused]]:
    """Return the notes, the header, the rows of the header's length with their lines, and the rows of another length."""
    lines = text.splitlines()
    notes = tuple(line.lstrip("#").strip() for line in lines if line.startswith("#"))
    numbered = [(number, line) for number, line in enumerate(lines, start=1) if line.strip() and not line.startswith("#")]
    if not numbered:
        raise CalibrationError("the table is empty: there is no header line")
    csv.field_size_limit(16 * 1024 * 1024)
    try:
        parsed = list(csv.reader(io.StringIO("\n".join(line for _, line in numbered)), strict=True))
    except csv.Error as error:
        raise CalibrationError(f"not CSV: {error}") from None
    if len(parsed) != len(numbered):
        raise CalibrationError("not CSV: a quoted cell spans several lines")
    header = [cell.strip() for cell in parsed[0]]
    other = next((name for sign, name in SEPARATORS.items() if len(header) == 1 and sign in header[0]), "")
    if other:
        raise CalibrationError(
            f"the cells are separated by {other}; save the table with commas between them, and decimal points in numbers"
        )
    twice = sorted({cell for cell in header if header.count(cell) > 1})
    if twice:
        raise CalibrationError(f"the column {twice[0]!r} stands twice in the header")
    if "" in header:
        raise CalibrationError(f"column {header.index('') + 1} of the header has no name")
    if all(_number(cell) is not None for cell in header):
        raise CalibrationError(f"the first line holds numbers ({', '.join(header[:3])}...) where names of columns belong")
    cells, kept, refused = [], [], []
    for (number, _), row in zip(numbered[1:], parsed[1:], strict=True):
        if len(row) == len(header):
            cells.append(row)
            kept.append(number)
        else:
            refused.append(Refused(rows=1, line=number, reason=f"{len(row)} cells where the header has {len(header)}"))
    if not cells and not refused:
        raise CalibrationError("the table has a header and no rows")
    return notes, header, cells, kept, refused


def _number(cell: str) -> float | None:
    try:
        return float(cell) if "_" not in cell else None
    except ValueError:
        return None


def _column(cells: list[str], *, certain: bool) -> tuple[NDArray[Any], dict[int, str]]:
    """Return a column with its type, and the cells that do not fit.

    A column is of numbers if half of the cells that hold something are; one that is ``certain`` to be of numbers, if any is.
    """
    given = [(row, cell) for row, cell in enumerate(cells) if cell]
    values = {row: _number(cell) for row, cell in given}
    numeric = sum(value is not None for value in values.values())
    if not numeric or (2 * numeric < len(given) and not certain):
        return np.asarray(cells, dtype=np.str_), {}
    wrong = {row: cell for row, cell in given if values[row] is None}
    if len(given) == len(cells) and not wrong and all(re.fullmatch(r"[-+]?\d{1,18}", cell) for cell in cells):
        return np.asarray([int(cell) for cell in cells], dtype=np.int64), {}
    found = [values.get(row) for row in range(len(cells))]
    return np.asarray([math.nan if value is None else value for value in found], dtype=np.float64), wrong


def _is_time(column: str) -> bool:
    return any(column.endswith(suffix) for suffix in UNIT_SUFFIXES)


def _together(refused: Iterable[Refused]) -> tuple[Refused, ...]:
    """Put rows with the same reason together, under the line of the first."""
    merged: dict[str, Refused] = {}
    for item in sorted(refused, key=lambda item: item.line):
        known = merged.get(item.reason)
        merged[item.reason] = Refused(
            rows=(known.rows if known else 0) + item.rows, line=known.line if known else item.line, reason=item.reason
        )
    return tuple(merged.values())


def _check_units(notes: Sequence[str], header: Sequence[str]) -> None:
    """Refuse a '# units:' line that says something else than the name of a column does."""
    for note in notes:
        key, _, stated = note.partition(":")
        if key.strip().lower() != "units":
            continue
        for part in stated.split(";"):
            pieces = part.split()
            if len(pieces) < 2:
                continue
            suffix = next((suffix for suffix in UNIT_SUFFIXES if pieces[0].endswith(suffix)), None)
            said = UNIT_WORDS.get(pieces[1].strip(",.()").lower())
            applies = pieces[0] in header or pieces[0].startswith("*")
            if suffix and said and applies and UNIT_SUFFIXES[suffix] != said:
                raise CalibrationError(f"the header says that {pieces[0]} is in {said}, its name says {UNIT_SUFFIXES[suffix]}; correct one")


def _parse_jsonl(text: str, name: str) -> MeasuredTable:
    records, lines, refused = [], [], []
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip() or line.startswith("#"):
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            refused.append(Refused(rows=1, line=number, reason=f"not JSON: {error}"))
            continue
        if isinstance(record, dict):
            records.append(record)
            lines.append(number)
        else:
            refused.append(Refused(rows=1, line=number, reason="not a JSON object"))
    if not records:
        raise CalibrationError("no line holds a JSON object")
    names = list(dict.fromkeys(key for record in records for key in record))
    rows = {key: _typed([record.get(key) for record in records]) for key in names}
    return MeasuredTable(name=name, rows=rows, lines=np.asarray(lines, dtype=np.int64), refused=_together(refused))


def _typed(items: list[Any]) -> NDArray[Any]:
    """Return a column of JSON values: of numbers or text where all are, otherwise of objects."""
    if all(isinstance(item, int) and not isinstance(item, bool) and abs(item) < 2**62 for item in items):
        return np.asarray(items, dtype=np.int64)
    if all(item is None or (isinstance(item, (int, float)) and not isinstance(item, bool)) for item in items):
        return np.asarray([math.nan if item is None else float(item) for item in items], dtype=np.float64)
    if all(isinstance(item, str) for item in items):
        return np.asarray(items, dtype=np.str_)
    return _objects(items)


def _read_npz(path: Path, name: str) -> MeasuredTable:
    import zipfile

    try:
        with np.load(path, allow_pickle=False) as archive:
            rows = {key: _objects([archive[key]]) for key in archive.files}
    except OSError as error:
        raise CalibrationError(f"cannot be read: {(error.strerror or str(error)).lower()}") from None
    except (ValueError, EOFError, KeyError, zipfile.BadZipFile) as error:
        raise CalibrationError(f"not an NPZ file of plain arrays: {error}") from None
    if not rows:
        raise CalibrationError("the NPZ file holds no array")
    return MeasuredTable(name=name, rows=rows, lines=np.asarray([1]))
