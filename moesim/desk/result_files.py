"""A result as a folder, and back. ``docs/reference/results.md`` describes every file."""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from moesim.base.errors import ResultError
from moesim.desk import folder as places
from moesim.desk.summary import SCHEMA, digest, plain, summarise, to_json
from moesim.desk.tables import describe, from_csv, to_csv
from moesim.facts.record import Result, Table, Value

OPTIONAL = ("rebalances.csv", "spans.parquet", "spans.csv.gz", "routing.npz", "trace.json.gz", "report.html")
"""Files that only some runs write; an earlier run's are removed, so that a folder never mixes two runs."""

TABLES = ("steps", "layers", "experts", "ranks", "gpus", "links", "traffic", "collectives", "timeline")
NAMES = frozenset({"scenario.yaml", "summary.json", "graph.json", "meta.json", *OPTIONAL, *(f"{table}.csv" for table in TABLES)})


@dataclass(frozen=True, slots=True, kw_only=True)
class Parcel:
    """Everything that is always written, as bytes, before anything is: a failing disk cannot cost a finished run its answer."""

    folder: Path
    result: Result
    scenario_text: str
    summary: Mapping[str, Any]
    files: Mapping[str, bytes]

    @property
    def summary_text(self) -> str:
        """The content of ``summary.json``."""
        return self.files["summary.json"].decode()


def pack(result: Result, folder: str | Path, *, spans: bool = True) -> Parcel:
    """Turn a result into the bytes of its files.

    Parameters
    ----------
    result : Result
        A finished run.
    folder : str or Path
        Where it will go; paths inside ``scenario.yaml`` are written relative to it.
    spans : bool
        Whether spans, if the run kept them, become a file.
    """
    from moesim.desk.scenario_text import digest as scenario_digest
    from moesim.desk.scenario_text import dump

    folder = Path(folder)
    scenario_text = dump(result.scenario, folder=folder)
    files: dict[str, bytes] = {}
    tables = {name: table for name, table in result.tables.items() if spans or name != "spans"}
    for name, table in tables.items():
        if name != "spans":
            files[f"{name}.csv"] = to_csv(table).encode()
    if "graph" in result.facts:
        files["graph.json"] = (json.dumps({"schema": SCHEMA, **plain(result.facts["graph"])}, ensure_ascii=False) + "\n").encode()
    summary = summarise(result, tables=tables, scenario_digest=scenario_digest(result.scenario), files=files)
    files["scenario.yaml"] = scenario_text.encode()
    files["meta.json"] = to_json(result.meta).encode()
    files["summary.json"] = to_json(summary).encode()
    return Parcel(folder=folder, result=result, scenario_text=scenario_text, summary=json.loads(files["summary.json"]), files=files)


def deliver(parcel: Parcel, *, report: bool = True, trace_steps: int = 0, draw: Callable[[Parcel], bytes] | None = None) -> None:
    """Write a parcel, then what takes longer; what is written stays when a later file fails.

    Parameters
    ----------
    parcel : Parcel
        From :func:`pack`.
    report : bool
        Whether to draw ``report.html``.
    trace_steps : int
        How many steps of ``trace.json.gz``; 0 writes none.
    draw : callable, optional
        Draws the report, if not :func:`moesim.desk.report.page.draw`.

    Raises
    ------
    ResultError
        If a file cannot be written; the message names it and the reason.
    """
    result, folder = parcel.result, parcel.folder
    places.make(folder)
    # meta.json comes first: it marks the folder as moesim's, so that a run that stopped half-way can be repeated into it. Then the
    # answer and the question, so that a full disk costs tables and not them.
    first = ("meta.json", "summary.json", "scenario.yaml")
    for name in (*first, *(name for name in parcel.files if name not in first)):
        places.put(folder / name, parcel.files[name])
    later: dict[str, Callable[[Path], None]] = {}
    if "spans" in parcel.summary["columns"]:
        name, make = _spans_writer()
        table = result.tables["spans"]
        later[name] = lambda path: places.put(path, make(table))
    if result.routing is not None:
        from moesim.desk.trace_files import write_trace

        routing = result.routing
        later["routing.npz"] = lambda path: write_trace(routing, path)
    if trace_steps:
        from moesim.desk.chrome_trace import chrome_trace

        later["trace.json.gz"] = lambda path: places.put(path, chrome_trace(result, steps=trace_steps))
    if report:
        drawn = draw or _draw
        later["report.html"] = lambda path: places.put(path, drawn(parcel))
    for name in OPTIONAL:
        if name not in later and name not in parcel.files:
            places.drop(folder / name)
    for name, write in later.items():
        write(folder / name)


def _draw(parcel: Parcel) -> bytes:
    from moesim.desk.report.page import draw

    return draw(parcel)


def save(result: Result, folder: str | Path, *, report: bool = True, trace_steps: int = 0) -> Parcel:
    """Write a result as a folder: :func:`pack`, then :func:`deliver`."""
    parcel = pack(result, folder)
    deliver(parcel, report=report, trace_steps=trace_steps)
    return parcel


def load(folder: str | Path) -> Result:
    """Read a folder back.

    Raises
    ------
    ResultError
        If it is no result folder, of another schema, damaged, or lacks a file; the message names the file.
    """
    return unpack(folder).result


def unpack(folder: str | Path) -> Parcel:
    """Read a folder back as the parcel it was written from."""
    folder = Path(folder)
    if not folder.is_dir():
        raise ResultError(f"{folder} is {'a file' if folder.exists() else 'not there'}; name a folder that `moesim run` wrote")
    if not (folder / "summary.json").is_file():
        raise ResultError(f"{folder} holds no finished result: summary.json is missing; run the scenario again with -o {folder}")
    files = {"summary.json": _read(folder / "summary.json")}
    summary = _json(files["summary.json"], folder / "summary.json")
    if summary.get("schema") != SCHEMA:
        raise ResultError(
            f"{folder / 'summary.json'} has schema {summary.get('schema')!r}, this moesim reads schema {SCHEMA}; "
            f"use moesim {summary.get('version', 'of the version that wrote it')}, or run the scenario again"
        )
    try:
        result, files = _result(folder, summary, files)
    except (KeyError, TypeError, AttributeError) as error:
        raise ResultError(f"{folder / 'summary.json'} is damaged: {type(error).__name__}: {error}; run the scenario again") from None
    return Parcel(folder=folder, result=result, scenario_text=files["scenario.yaml"].decode(), summary=summary, files=files)


def _result(folder: Path, summary: dict[str, Any], files: dict[str, bytes]) -> tuple[Result, dict[str, bytes]]:
    from moesim.desk.scenario_file import load_scenario

    tables: dict[str, Table] = {}
    for name, columns in summary["columns"].items():
        if name == "spans":
            tables[name] = _read_spans(folder, columns)
            continue
        path = folder / f"{name}.csv"
        files[path.name] = _read(path)
        tables[name] = from_csv(_text(files[path.name], path), columns, where=str(path))
    facts = dict(summary["facts"])
    if "graph.json" in summary["files"]:
        path = folder / "graph.json"
        files[path.name] = _read(path)
        graph = _json(files[path.name], path)
        facts["graph"] = {key: graph[key] for key in graph if key != "schema"}
    files["scenario.yaml"] = _read(folder / "scenario.yaml")
    _text(files["scenario.yaml"], folder / "scenario.yaml")
    for name, expected in summary["files"].items():
        if digest(files[name]) != expected:
            raise ResultError(
                f"{folder / name} does not belong to {folder / 'summary.json'}: it was changed or damaged, or a later run into this "
                f"folder stopped half-way; run the scenario again"
            )
    files["meta.json"] = _read(folder / "meta.json")
    result = Result(
        scenario=load_scenario(folder / "scenario.yaml", check=False),
        tables=tables,
        metrics={name: Value(**item) for name, item in summary["metrics"].items()},
        warnings=tuple(summary["warnings"]),
        assumptions=tuple(summary["assumptions"]),
        facts=facts,
        meta=_json(files["meta.json"], folder / "meta.json"),
    )
    if (folder / "routing.npz").is_file():
        from moesim.desk.trace_files import read_trace

        result = replace(result, routing=read_trace(str(folder / "routing.npz")))
    return result, files


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise ResultError(f"{path} is missing; the folder is not whole: run the scenario again") from None
    except OSError as error:
        raise ResultError(f"cannot read {path}: {places.reason(error)}") from None


def _text(content: bytes, path: Path) -> str:
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise ResultError(f"{path} is damaged: byte {error.start} is not UTF-8") from None


def _json(content: bytes, path: Path) -> dict[str, Any]:
    try:
        data = json.loads(_text(content, path))
    except json.JSONDecodeError as error:
        raise ResultError(f"{path}:{error.lineno}:{error.colno}: damaged: {error.msg.lower()}; run the scenario again") from None
    if not isinstance(data, dict):
        raise ResultError(f"{path} is damaged: expected a JSON object; run the scenario again")
    return data


def _parquet() -> Any:
    try:
        from pyarrow import parquet
    except ImportError:
        return None
    return parquet


def _spans_writer() -> tuple[str, Callable[[Table], bytes]]:
    if _parquet() is not None:
        return "spans.parquet", _spans_parquet
    return "spans.csv.gz", lambda table: gzip.compress(to_csv(table).encode(), 6, mtime=0)


def _spans_parquet(table: Table) -> bytes:
    import pyarrow as pa

    parquet = _parquet()
    columns = {name: pa.array(column.tolist() if column.dtype.kind in "UO" else column) for name, column in table.columns.items()}
    about = describe(table)
    fields = [pa.field(name, column.type, metadata={"unit": about[name]["unit"]}) for name, column in columns.items()]
    sink = io.BytesIO()
    parquet.write_table(pa.table(list(columns.values()), schema=pa.schema(fields)), sink, compression="zstd")
    return sink.getvalue()


def _read_spans(folder: Path, columns: Mapping[str, Mapping[str, str]]) -> Table:
    packed = folder / "spans.csv.gz"
    if packed.is_file():
        try:
            content = gzip.decompress(_read(packed))
        except (OSError, EOFError) as error:
            raise ResultError(f"{packed} is damaged: {error}") from None
        return from_csv(_text(content, packed), columns, where=str(packed))
    path = folder / "spans.parquet"
    content = _read(path)
    parquet = _parquet()
    if parquet is None:
        raise ResultError(f"{path} needs pyarrow: pip install 'moesim[parquet]'")
    import pyarrow as pa

    try:
        read = parquet.read_table(io.BytesIO(content))
    except (pa.ArrowException, OSError) as error:
        raise ResultError(f"{path} is damaged: {str(error).splitlines()[0]}") from None
    arrays = {name: read[name].to_numpy() for name in columns if name in read.column_names}
    if list(arrays) != list(columns):
        raise ResultError(f"{path} lacks the column {next(name for name in columns if name not in arrays)}; run the scenario again")
    arrays = {name: np.asarray(array.tolist(), dtype=str) if array.dtype.kind == "O" else array for name, array in arrays.items()}
    return Table(columns=arrays, units={name: item["unit"] for name, item in columns.items()})
