"""The files of a sweep: one table of all cells, a summary for scripts, pictures. The same sweep gives the same bytes."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

import moesim
from moesim.desk import folder as places
from moesim.desk.scenario_text import digest as scenario_digest
from moesim.desk.scenario_text import dump
from moesim.desk.summary import digest, metric, plain, to_json
from moesim.desk.sweep_cells import Plan
from moesim.desk.tables import describe
from moesim.facts.record import Table
from moesim.study.sweep import Sweep

SCHEMA = 1
PICTURES = ("sweep-curves", "sweep-heatmap", "sweep-front")
NAMES = frozenset(
    {
        "meta.json",
        "summary.json",
        "scenario.yaml",
        "cells.csv",
        "cells.parquet",
        "report.html",
        *(f"{name}.{form}" for name in PICTURES for form in ("png", "svg")),
    }
)


def summarise(plan: Plan, sweep: Sweep, *, pictures: list[str], files: Mapping[str, bytes]) -> dict[str, Any]:
    """Return the content of ``summary.json``; its keys are a contract: add to them, do not rename."""
    warnings: dict[str, list[str]] = {}
    for answer in sweep.done:
        for warning in answer.warnings:
            warnings.setdefault(warning, []).append(answer.name)
    return {
        "schema": SCHEMA,
        "study": "sweep",
        "name": sweep.name,
        "version": moesim.__version__,
        "scenario_digest": scenario_digest(plan.base),
        "axes": [{"key": axis, "values": sweep.values(axis)} for axis in sweep.axes],
        "cells": [
            {
                "name": answer.name,
                "axes": dict(answer.axes),
                "digest": answer.digest or None,
                "status": answer.status,
                "error": answer.error,
                "metrics": {name: metric(value) for name, value in answer.metrics.items()},
            }
            for answer in sweep.answers
        ],
        "changed_nothing": list(sweep.idle()),
        "shown": list(sweep.shown),
        "done": len(sweep.done),
        "failed": len(sweep.failed),
        "pareto": {"metrics": list(sweep.pareto), "cells": [answer.name for answer in sweep.front()]},
        "warnings": [{"text": text, "cells": cells} for text, cells in warnings.items()],
        "columns": describe(sweep.table()),
        "pictures": pictures,
        "files": {name: digest(content) for name, content in files.items()},
    }


def cells_csv(table: Table) -> str:
    """Return the table of cells as CSV: an empty cell where there is no number."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(table.columns)
    writer.writerows(zip(*(map(_cell, column.tolist()) for column in table.columns.values()), strict=True))
    return out.getvalue()


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return "" if math.isnan(value) else repr(value)
    return str(value)


def cells_parquet(table: Table) -> bytes | None:
    """Return the table of cells as Parquet with units as metadata of the columns; None without pyarrow."""
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ImportError:
        return None
    about = describe(table)
    columns = {name: _arrow(column, pa) for name, column in table.columns.items()}
    fields = [pa.field(name, column.type, metadata={"unit": about[name]["unit"]}) for name, column in columns.items()]
    sink = io.BytesIO()
    parquet.write_table(pa.table(list(columns.values()), schema=pa.schema(fields)), sink, compression="zstd")
    return sink.getvalue()


def write_sweep(plan: Plan, sweep: Sweep, folder: Path, meta: Mapping[str, Any], *, report: bool = True) -> dict[str, Any]:
    """Write everything but the cells, the answer first and the page, if there shall be one, last; return the content of ``summary.json``.

    Raises
    ------
    ResultError
        If a file cannot be written; the message names it, and what was written before it stays.
    """
    from moesim.desk.sweep_pictures import pictures

    table = sweep.table()
    files = {"cells.csv": cells_csv(table).encode()}
    packed = cells_parquet(table)
    if packed is not None:
        files["cells.parquet"] = packed
    files["scenario.yaml"] = dump(plan.base, folder=folder).encode()
    drawn = pictures(sweep)
    summary = summarise(plan, sweep, pictures=sorted(drawn), files=files)
    places.put(folder / "summary.json", to_json(summary).encode())
    for name, content in (files | drawn).items():
        places.put(folder / name, content)
    for name in NAMES - {"meta.json", "summary.json", *files, *drawn, *(["report.html"] if report else [])}:
        places.drop(folder / name)
    places.put(folder / "meta.json", to_json(meta).encode())
    if report:
        from moesim.desk.report.study.sweep import page

        places.put(folder / "report.html", page(plain(summary), files["scenario.yaml"].decode()).encode())
    return summary


def _arrow(column: Any, pa: Any) -> Any:
    if column.dtype.kind in "UO":
        return pa.array(column.tolist(), type=pa.string())
    return pa.array(column, mask=np.isnan(column) if column.dtype.kind == "f" else None)  # NaN is null
