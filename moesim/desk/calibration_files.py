"""What a calibration reads and writes: tables, logs of nccl-tests, traces of torch.profiler; profiles, and a report of the fit."""

from __future__ import annotations

import gzip
import json
import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from moesim.base.errors import CalibrationError, UsageError
from moesim.desk.folder import make
from moesim.desk.kineto_trace import is_trace, read_trace_kernels
from moesim.desk.measured_tables import LARGEST, SUFFIXES, MeasuredTable, files_below, read_measured
from moesim.desk.nccl_tests_log import is_log, read_log
from moesim.desk.network_text import aligned
from moesim.desk.profile_files import write_profile
from moesim.facts.profile import Profile
from moesim.study.calibrate import Calibration, TableFit
from moesim.study.scores import Errors

TEXTS = (".log", ".txt", ".out")
"""Endings of files that may be logs of nccl-tests."""

MEASURED_HERE = "moesim measurement"
"""The mark of a JSON file of ``moesim measure``; its tables stand beside it."""


def read_inputs(folder: Path, *, gpu: str = "") -> tuple[list[MeasuredTable], list[tuple[str, str]]]:
    """Read all that a folder offers for fitting.

    Parameters
    ----------
    folder : Path
        With tables, logs and traces, also in folders.
    gpu : str
        Preset of the GPU that was measured: overrules what tables, logs and traces say of their system.

    Returns
    -------
    tables : list of MeasuredTable
    unused : list of (str, str)
        Files that are none, with the reason.
    """
    tables, unused = [], []
    for path in files_below(folder):
        name = path.relative_to(folder).as_posix()
        try:
            table = _read(path, name, gpu)
        except CalibrationError as error:
            unused.append((name, str(error)))
            continue
        tables.append(_on(table, gpu) if gpu else table)
    return tables, unused


def _read(path: Path, name: str, gpu: str) -> MeasuredTable:
    if path.name.endswith((".json", ".json.gz")):
        document = _json(path)
        if is_trace(document):
            return read_trace_kernels(document, name, gpu=gpu)
        if isinstance(document, Mapping) and MEASURED_HERE in (document.get("what"), document.get("mark"), document.get("format")):
            raise CalibrationError("a record of 'moesim measure': its tables stand beside it and are read instead")
        cells = np.empty(1, dtype=object)
        cells[0] = document
        return MeasuredTable(name=name, rows={"document": cells}, lines=np.asarray([1]))
    if path.suffix in SUFFIXES:
        return read_measured(path, name)
    if path.suffix in TEXTS:
        text = _text(path)
        if is_log(text):
            return read_log(text, name, gpu=gpu)
        raise CalibrationError("no log of nccl-tests: there is no line '# size ... time algbw busbw'")
    known = ", ".join((*SUFFIXES, ".json.gz", *TEXTS))
    raise CalibrationError(f"neither a table, a log nor a trace: their names end in {known}")


def _text(path: Path) -> str:
    try:
        if path.stat().st_size > LARGEST:
            raise CalibrationError(f"is larger than {LARGEST // 1024**2} MiB")
        return path.read_bytes().decode("utf-8-sig", errors="replace")
    except OSError as error:
        raise CalibrationError(f"cannot be read: {(error.strerror or str(error)).lower()}") from None


def _json(path: Path) -> Any:
    try:
        if path.stat().st_size > LARGEST:
            raise CalibrationError(f"is larger than {LARGEST // 1024**2} MiB; record fewer steps")
        content = path.read_bytes()
        if path.suffix == ".gz":
            with gzip.open(path) as stream:
                content = stream.read(4 * LARGEST + 1)
            if len(content) > 4 * LARGEST:
                raise CalibrationError(f"is larger than {4 * LARGEST // 1024**2} MiB when unpacked; record fewer steps")
        return json.loads(content)
    except (OSError, EOFError, zlib.error) as error:
        said = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise CalibrationError(f"cannot be read: {said.lower()}") from None
    except (ValueError, RecursionError) as error:
        raise CalibrationError(f"not JSON: {error}") from None


def _on(table: MeasuredTable, gpu: str) -> MeasuredTable:
    """Return a table whose rows all name one GPU."""
    named = {column: np.full(len(table.rows[column]), gpu) for column in ("system", "device", "gpu") if column in table.rows}
    return replace(table, rows={**table.rows, **named})


def chosen(calibration: Calibration, *, gpu: str, name: str) -> Profile:
    """Return the one profile that goes into one file.

    Raises
    ------
    CalibrationError
        If nothing could be fitted.
    UsageError
        If several GPUs were measured and none is named, or the named one was not.
    """
    profiles = calibration.profiles
    if not profiles:
        raise CalibrationError("nothing could be fitted; the reasons stand above")
    if gpu and gpu not in profiles:
        raise UsageError(f"no table determines a model of {gpu}; there are fits of {', '.join(profiles)}")
    if not gpu and len(profiles) > 1:
        raise UsageError(f"the tables are of {', '.join(profiles)}: choose one with --gpu, or name a folder with -o to write all of them")
    profile = profiles[gpu or next(iter(profiles))]
    return replace(profile, name=name) if name else profile


def write_profiles(out: Path, profiles: Mapping[str, Profile]) -> list[Path]:
    """Write every profile into a folder, one file each.

    Raises
    ------
    ResultError
        If a file cannot be written.
    """
    make(out)
    paths = [out / f"{name}.yaml" for name in profiles]
    for path, profile in zip(paths, profiles.values(), strict=True):
        write_profile(path, profile)
    return paths


def report(calibration: Calibration) -> dict[str, Any]:
    """Return what was fitted, for ``--format json``."""
    return {
        "schema": 1,
        "profiles": {
            name: {"gpu": profile.gpu, "sections": {key: _section(section) for key, section in profile.sections.items()}}
            for name, profile in calibration.profiles.items()
        },
        "tables": [_fit(fit) for fit in calibration.fits],
        "unused": [{"file": item.file, "reason": item.reason} for item in calibration.unused],
    }


def _section(section: Any) -> dict[str, Any]:
    return {
        "model": section.model,
        "rows": section.rows,
        "fitted_range": {name: list(pair) for name, pair in section.fitted_range.items()},
        "parameters": {
            item.name: {"value": item.value, "unit": item.unit, "error": item.error, "basis": item.basis} for item in section.parameters
        },
    }


def _fit(fit: TableFit) -> dict[str, Any]:
    return {
        "table": fit.table,
        "sections": list(fit.sections),
        "fitted_rows": _errors(fit.inside),
        "held_back": [{"way": item.way, "folds": item.folds, **_errors(item.errors), "coverage": item.covered} for item in fit.held_back],
    }


def _errors(errors: Errors) -> dict[str, Any]:
    return {"n": errors.n, "mape": errors.mape, "median_ape": errors.median_ape, "p90_ape": errors.p90_ape, "bias": errors.bias}


WAYS = {"row": "left out one by one", "part": "left out in {folds} parts", "group": "left out group by group ({folds})"}


def text(calibration: Calibration) -> str:
    """Return what was fitted, for a terminal."""
    lines: list[str] = []
    for name, profile in calibration.profiles.items():
        lines.append(f"{name}: {len(profile.sections)} section{'s' * (len(profile.sections) != 1)}")
        for key, section in profile.sections.items():
            lines.append(f"  {key} ({section.model}), {section.rows} rows")
            cells = [
                [item.name, f"{item.value:.4g} {item.unit}".strip(), _error(item.error, item.value), item.basis]
                for item in section.parameters
            ]
            lines += aligned(cells, left={0, 3}, indent="    ")
            ranges = "; ".join(f"{column} {least:g} to {most:g}" for column, (least, most) in section.fitted_range.items())
            lines += [f"    fitted range: {ranges}"] if ranges else []
        lines.append("")
    if calibration.fits:
        lines += ["Errors in per cent of the measured time", *_held(calibration.fits), ""]
    if calibration.unused:
        lines += ["Not used", *(f"  {item.file}: {item.reason}" for item in calibration.unused), ""]
    return "\n".join(lines)


def _error(error: float | None, value: float) -> str:
    return "-" if error is None or not value else f"+-{100 * error / abs(value):.2g} %"


def _held(fits: Sequence[TableFit]) -> list[str]:
    cells = [["table", "rows", "", "mean", "median", "p90", "bias", "in 90 %"]]
    for fit in fits:
        cells.append([fit.table, "that were fitted", *_cells(fit.inside), "-"])
        cells += [
            [
                fit.table,
                WAYS[item.way].format(folds=item.folds),
                *_cells(item.errors),
                "-" if math.isnan(item.covered) else f"{100 * item.covered:.0f} %",
            ]
            for item in fit.held_back
        ]
    return aligned(cells, left={0, 1}, indent="  ")


def _cells(errors: Errors) -> list[str]:
    if not errors.n:
        return ["0", "-", "-", "-", "-"]
    return [str(errors.n), f"{errors.mape:.1f}", f"{errors.median_ape:.1f}", f"{errors.p90_ape:.1f}", f"{errors.bias:+.1f}"]
