"""From a scenario file to cells of a study, and from a cell to its answer."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

from moesim import __version__
from moesim.base.errors import MoesimError, ResultError, UsageError, did_you_mean
from moesim.desk.plain_data import plain_data
from moesim.desk.scenario_file import load_scenario, read_scenario
from moesim.desk.scenario_text import digest as meaning
from moesim.desk.scenario_text import dump
from moesim.facts.scenario import Scenario
from moesim.facts.trace import Trace
from moesim.study.cell import Answer, Cell, Scalar, failure

_ONE_AT_A_TIME = threading.Lock()
"""A worker of a cluster may have several threads. They share one core's worth of Python anyway, and plug-ins need not expect them."""

KEPT_TRACES = 4
"""Recordings that a process keeps in memory between cells, the last used ones."""


def cell_of(
    file: str | os.PathLike[str],
    overrides: Iterable[str] = (),
    *,
    name: str,
    axes: Mapping[str, Scalar],
    variant: str | None = None,
    tables: Iterable[str] = (),
) -> Cell:
    """Read a scenario file as one cell of a study.

    Parameters
    ----------
    file : path
        A scenario file.
    overrides : iterable of str
        ``policy.capacity.factor=1.1`` and so on, laid over the file in order.
    name : str
        Of the cell, for people.
    axes : mapping of str to scalar
        Where the cell stands in its study.
    variant : str, optional
        The name of a policy of ``compare:``; the file's own policy if left out.
    tables : iterable of str
        Tables of the run that the answer shall keep.

    Raises
    ------
    ScenarioError
        With every problem of the file and the overrides.
    UsageError
        If there is no such variant.
    """
    scenario = load_scenario(file, overrides, read_trace=read_trace)
    if variant is not None:
        if variant not in scenario.compare:
            raise UsageError(f"{os.fspath(file)} has no variant {variant!r} under compare{did_you_mean(variant, scenario.compare)}")
        scenario = replace(scenario, policy=scenario.compare[variant])
    return cell_from(scenario, name=name, axes=axes, tables=tables)


def cell_from(scenario: Scenario, *, name: str, axes: Mapping[str, Scalar], tables: Iterable[str] = ()) -> Cell:
    """Return a scenario that is already loaded as a cell; its variants, which a run leaves alone, are left out."""
    scenario = replace(scenario, compare={})
    tables = tuple(tables)
    inputs = {path: content_digest(path) for path in files_of(scenario)}
    # Paths do not count and contents do: a study that moved to another folder need not be played again.
    parts = [__version__, meaning(scenario), *inputs.values(), *tables]
    return Cell(
        name=name,
        text=dump(scenario),
        folder="/",
        axes=dict(axes),
        digest=hashlib.sha256("\n".join(parts).encode()).hexdigest(),
        version=__version__,
        inputs=inputs,
        tables=tables,
    )


def files_of(scenario: Scenario) -> list[str]:
    """Return the absolute path of every file that a run of a scenario reads: recordings, profiles and plug-ins, in the order of keys."""
    found: list[str] = []

    def take(path: str) -> str:
        found.append(path)
        return path

    plain_data(scenario, Scenario, take)
    return list(dict.fromkeys([*found, *scenario.plugins]))


def content_digest(path: str) -> str:
    """Return the SHA-256 of a file, hexadecimal; a file that has not changed since is not read again.

    Raises
    ------
    ResultError
        If it cannot be read.
    """
    try:
        return _content_digest(path, *_stamp(path))
    except OSError as error:
        raise ResultError(f"cannot read {path}: {(error.strerror or str(error)).lower()}") from None


def read_trace(path: str, *, task: str | None = None) -> Trace:
    """Read a recording as :func:`moesim.desk.trace_files.read_trace` does; a process keeps the last few until their files change."""
    try:
        stamp = _stamp(path)
    except OSError:
        stamp = (0, 0)  # not there: the reader says it better
    return _read_trace(path, task, *stamp)


def play(cell: Cell) -> Answer:
    """Run a cell. Whatever is wrong with it is in the answer: one bad cell does not end a study."""
    try:
        with _ONE_AT_A_TIME:
            return _played(cell)
    except MoesimError as error:
        return failure(cell, str(error))
    except MemoryError as error:
        return failure(cell, f"not enough memory for one worker: {error}; fewer jobs leave more for each")
    except Exception as error:  # noqa: BLE001 - a defect of a plug-in or of moesim; the study goes on and reports it
        return failure(cell, f"{type(error).__name__}: {error} (a defect of moesim or of a plug-in; 'moesim run --debug' shows where)")


def _played(cell: Cell) -> Answer:
    from moesim.engine.simulate import simulate
    from moesim.study.uncertainty import with_drawn_parameters

    if cell.version and cell.version != __version__:
        raise UsageError(f"this worker runs moesim {__version__}, and the study is of moesim {cell.version}; install the same everywhere")
    for path, digest in cell.inputs.items():
        if content_digest(path) != digest:
            raise ResultError(
                f"{path} is not the file that the study began with; start the study again, with the same file on every machine"
            )
    scenario = read_scenario(cell.text, file=cell.name, folder=cell.folder, read_trace=read_trace)
    if scenario.uncertainty is not None and scenario.uncertainty.draws:
        # The seeds of a study are the draws: parameters go by the seed, so that every variant has the same ones (law L9).
        scenario = with_drawn_parameters(scenario)
    result = simulate(scenario, read_trace=read_trace)
    unknown = next((name for name in cell.tables if name not in result.tables and name != "rebalances"), None)
    if unknown is not None:
        raise UsageError(f"a run has no table {unknown!r}{did_you_mean(unknown, result.tables)}")
    return Answer(
        name=cell.name,
        digest=cell.digest,
        axes=cell.axes,
        metrics=result.metrics,
        samples=result.samples,
        steps=result.tables["steps"]["step"],
        fresh=result.fresh,
        facts={name: fact for name, fact in result.facts.items() if name != "graph"},
        warnings=result.warnings,
        assumptions=result.assumptions,
        tables={name: result.tables[name] for name in cell.tables if name in result.tables} if cell.tables else None,
    )


def _stamp(path: str) -> tuple[int, int]:
    status = os.stat(path)
    return status.st_mtime_ns, status.st_size


@lru_cache(maxsize=256)
def _content_digest(path: str, _changed: int, _size: int) -> str:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


@lru_cache(maxsize=KEPT_TRACES)
def _read_trace(path: str, task: str | None, _changed: int, _size: int) -> Trace:
    from moesim.desk import trace_files

    return trace_files.read_trace(path) if task is None else trace_files.read_trace(path, task=task)
