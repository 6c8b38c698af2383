"""Traffic matrices from CSV, and the folder that ``moesim network -o`` writes."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from moesim.base.errors import Problem, ScenarioError
from moesim.desk import folder as places
from moesim.desk.summary import to_json
from moesim.desk.tables import to_csv
from moesim.facts.arrays import Floats
from moesim.facts.network import NetworkResult
from moesim.facts.record import Table

LEAST, MOST = 1e-6, 1e18
"""Bytes between two GPUs that are not 0: within these bounds no quotient of times leaves the range of floats."""

NAMES = frozenset(
    {
        "network.json",
        "network-rows.csv",
        "network-links.csv",
        "network-over-time.csv",
        "network-fabric.png",
        "network-fabric.svg",
        "network-over-time.png",
        "network-over-time.svg",
    }
)
"""Files that the command writes; none of them is a name that ``moesim run`` uses, so that both can share a folder."""


def read_matrix(path: str | os.PathLike[str], gpus: int) -> Floats:
    """Read float[G, G], bytes from each GPU (row) to each other (column), from CSV without a header.

    Parameters
    ----------
    path : path
        Of a file of G lines with G numbers each, separated by commas; blank lines and lines that start with ``#`` are skipped.
    gpus : int
        G.

    Raises
    ------
    ScenarioError
        With the first problem, as ``file:line:column: what is wrong``.
    """
    shown = os.fspath(path)
    lines = [(number, line) for number, line in enumerate(_lines(path, shown), 1) if line.strip() and not line.lstrip().startswith("#")]
    if not lines:
        raise _wrong(shown, 0, 0, f"holds no numbers; a traffic matrix has {gpus} lines of {gpus} numbers separated by commas")
    rows = []
    for at, (number, line) in enumerate(lines):
        if at == gpus:
            raise _wrong(shown, number, 1, f"this is row {gpus + 1}: {_shape(lines, gpus)}")
        rows.append(_row(shown, number, line, gpus, first=at == 0))
    if len(rows) < gpus:
        raise _wrong(shown, lines[-1][0], 1, f"the matrix ends after row {len(rows)}: {_shape(lines, gpus)}")
    return np.array(rows)


def _lines(path: str | os.PathLike[str], shown: str) -> list[str]:
    try:
        with Path(path).open("rb") as stream:
            content = stream.read()
    except FileNotFoundError:
        raise _wrong(shown, 0, 0, "there is no such file") from None
    except (OSError, ValueError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise _wrong(shown, 0, 0, f"cannot be read: {reason.lower()}") from None
    try:
        return content.decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise _wrong(shown, line, 1, "this is not text; a traffic matrix is a CSV file of numbers") from None


def _row(shown: str, number: int, line: str, gpus: int, *, first: bool) -> list[float]:
    cells = line.split(",")
    values = []
    column = 1
    for cell in cells:
        place = column + len(cell) - len(cell.lstrip())
        text = cell.strip()
        try:
            value = float(text) if "_" not in text else math.nan
        except ValueError:
            value = None
        if value is None or "_" in text:
            raise _wrong(shown, number, place, f"{text!r} is not a number{_why_not(text, line, first=first)}")
        if not math.isfinite(value):
            raise _wrong(shown, number, place, f"{text!r} is not a finite number of bytes")
        if value < 0:
            raise _wrong(shown, number, place, f"{text} bytes cannot be sent: a number of bytes is at least 0")
        if value and not LEAST <= value <= MOST:
            bound = f"less than {LEAST:g}" if value < LEAST else f"more than {MOST:g}"
            raise _wrong(shown, number, place, f"{text} bytes are {bound}: is this the right unit?")
        values.append(value)
        column += len(cell) + 1
    if len(values) != gpus:
        raise _wrong(shown, number, 1, f"this row has {len(values)} of the {gpus} numbers that it needs, one for each GPU of the cluster")
    return values


def _why_not(text: str, line: str, *, first: bool) -> str:
    if not text:
        return ": a cell is empty; write 0 where nothing is sent"
    if "," not in line and len(line.split()) > 1:
        return "; separate numbers by commas"
    if ";" in line:
        return "; separate numbers by commas, and write the decimal point as ."
    return "; a traffic matrix has neither a header nor names of rows, only bytes" if first else "; a traffic matrix holds only bytes"


def _shape(lines: Sequence[object], gpus: int) -> str:
    rows = f"{len(lines)} row{'s' * (len(lines) != 1)}"
    return f"a matrix has a row and a column for each of the {gpus} GPUs of the cluster, and this file has {rows}"


def _wrong(shown: str, line: int, column: int, message: str) -> ScenarioError:
    return ScenarioError([Problem(file=shown, line=line, column=column, message=message)])


def link_table(result: NetworkResult) -> Table:
    """Return one row per link: what it is, what it carried, how long, how full."""
    cluster = result.cluster
    return Table(
        columns={
            "link": np.array(cluster.link_names),
            "link_class": np.array(cluster.link_class),
            "bandwidth_Bps": np.asarray(cluster.bandwidth),
            "latency_s": np.asarray(cluster.latency),
            "bytes": np.asarray(result.carried),
            "busy_s": np.asarray(result.busy),
            "utilisation": result.utilisation,
        }
    )


def time_table(result: NetworkResult) -> Table:
    """Return one row per link and bin of time in which it carried anything."""
    use = result.utilisation_over_time
    at, link = np.nonzero(result.moved)
    return Table(
        columns={
            "start_s": result.edges[at],
            "end_s": result.edges[at + 1],
            "link": np.array(result.cluster.link_names)[link],
            "link_class": np.array(result.cluster.link_class)[link],
            "bytes": result.moved[at, link],
            "utilisation": use[at, link],
        }
    )


def rows_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Return rows of equal keys as a table; missing values become NaN or an empty word."""
    columns = {}
    for name in rows[0]:
        values = [row[name] for row in rows]
        words = any(isinstance(value, str) for value in values)
        columns[name] = np.array([("" if words else math.nan) if value is None else value for value in values])
    return Table(columns=columns)


def write_folder(folder: Path, answer: Mapping[str, Any], result: NetworkResult, pictures: Mapping[str, bytes]) -> None:
    """Write everything that the command found out; ``pictures`` are contents by file name.

    Raises
    ------
    ResultError
        If a file cannot be written.
    """
    places.make(folder)
    content: dict[str, bytes] = {
        "network-links.csv": to_csv(link_table(result)).encode(),
        "network-over-time.csv": to_csv(time_table(result)).encode(),
        **pictures,
    }
    if answer.get("rows"):
        content["network-rows.csv"] = to_csv(rows_table(answer["rows"])).encode()
    for name in sorted(NAMES - set(content) - {"network.json"}):
        places.drop(folder / name)
    for name, data in content.items():
        places.put(folder / name, data)
    places.put(folder / "network.json", to_json(answer).encode())
