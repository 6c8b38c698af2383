"""Loads of experts to plan a placement by: an array, a table, a recording, or the folder of a finished run."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.base.errors import ResultError, UsageError
from moesim.desk.trace_size import LARGEST_BYTES
from moesim.facts.arrays import Ints
from moesim.facts.model import MoeModel
from moesim.facts.scenario import Scenario
from moesim.facts.trace import Trace

KINDS = ".npy (float or int [layers, experts]), .csv, .json (logical_count), a trace (.npz, .csv) or the folder of a run"


@dataclass(frozen=True, slots=True, kw_only=True)
class Loads:
    """What a placement is planned by.

    Parameters
    ----------
    name : str
        The file's or folder's name.
    loads : float[L, E] or float[steps, L, E]
        Load of each expert.
    layers : tuple of int or None
        The number of each layer in the model, where known.
    experts_stated : bool
        False if there may be more experts than the largest id says.
    scenario : Scenario or None
        Of the run whose folder it is.
    """

    name: str
    loads: NDArray[Any]
    layers: tuple[int, ...] | None = None
    experts_stated: bool = True
    scenario: Scenario | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """L and E."""
        return int(self.loads.shape[-2]), int(self.loads.shape[-1])


def read_loads(path: str | os.PathLike[str], *, task: str | None = None) -> Loads:
    """Read loads from whatever a user has.

    Parameters
    ----------
    path : path
        A NumPy array, a CSV of numbers (a line for each layer, a column for each expert), a CSV or NPZ trace, SGLang's JSON with
        ``logical_count``, or the folder of a finished run.
    task : str, optional
        Which task, for a CSV trace that holds several.

    Raises
    ------
    UsageError
        If there is no such file, or it holds no loads; the message names the file, the place and the value.
    TraceError
        If a trace is damaged.
    ResultError
        If a folder is.
    """
    file = Path(path)
    if file.is_dir():
        return _of_run(file)
    if not file.exists():
        raise UsageError(f"{file}: there is no such file")
    if file.suffix == ".npy":
        return _checked(file, _array(file))
    if file.suffix == ".json":
        return _checked(file, _logical_count(file))
    if file.suffix in {".csv", ".txt"} and not _is_trace_table(file):
        return _checked(file, _matrix(file))
    if file.suffix not in {".npz", ".csv", ".txt"}:
        raise UsageError(f"{file}: loads are read from {KINDS}")
    from moesim.desk.trace_files import read_trace

    return of_trace(read_trace(file, task=task))


def of_trace(trace: Trace) -> Loads:
    """Return the routes to each expert of a recording, step by step where it says which step a token was in."""
    layers = None if trace.layer_numbers is None else tuple(int(layer) for layer in trace.layer_numbers)
    loads = _counted(np.asarray(trace.ids), trace.step, trace.experts) if trace.counts is None else trace.counts.sum(axis=2)
    return Loads(name=trace.name, loads=loads, layers=layers, experts_stated=trace.experts_stated)


def _counted(ids: NDArray[Any], step: Ints | None, experts: int) -> Ints:
    tokens, layers, _ = ids.shape
    at = np.zeros(tokens, dtype=np.int64) if step is None else np.unique(step, return_inverse=True)[1]
    loads = np.zeros((int(at.max(initial=0)) + 1, layers, experts), dtype=np.int64)
    for layer in range(layers):
        chosen = ids[:, layer].astype(np.int64)
        flat = (at[:, None] * experts + chosen)[chosen >= 0]
        loads[:, layer] = np.bincount(flat, minlength=len(loads) * experts).reshape(len(loads), experts)
    return loads


def _of_run(folder: Path) -> Loads:
    from moesim.desk.result_files import load

    try:
        result = load(folder)
    except ResultError as error:
        raise UsageError(str(error)) from None
    model, table = result.scenario.model, result.tables["experts"]
    loads = np.zeros((len(model.moe_layers), model.experts), dtype=np.int64)
    loads[np.asarray(table["moe_layer"]), np.asarray(table["expert"])] = np.asarray(table["routes"])
    return Loads(name=folder.name or str(folder), loads=loads, layers=model.moe_layers, scenario=result.scenario)


def _array(file: Path) -> NDArray[Any]:
    try:
        # Mapped, so that a header which claims more than the file has asks for no memory.
        array = np.load(file, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        hint = (
            "; Python objects are never unpickled, save plain numbers" if "pickle" in str(error) or "object" in str(error).lower() else ""
        )
        raise UsageError(f"{file}: not a NumPy array of numbers ({error}){hint}") from None
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "iuf":
        raise UsageError(f"{file}: holds {getattr(array, 'dtype', 'an archive')}, but loads are whole numbers or floats")
    if array.nbytes > LARGEST_BYTES:
        raise UsageError(f"{file}: is larger than {LARGEST_BYTES // 2**30} GiB; add up its steps first")
    return np.array(array)


def _logical_count(file: Path) -> NDArray[Any]:
    try:
        data = json.loads(file.read_text(encoding="utf-8-sig"))
    except json.JSONDecodeError as error:
        raise UsageError(f"{file}:{error.lineno}:{error.colno}: not JSON: {error.msg}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"{file}: cannot be read as JSON: {error}") from None
    if not isinstance(data, dict) or "logical_count" not in data:
        raise UsageError(f"{file}: holds no loads: expected the key logical_count, as SGLang's --init-expert-location takes it")
    try:
        array = np.asarray(data["logical_count"])
    except (ValueError, OverflowError):
        array = np.empty(0, dtype=object)
    if array.dtype.kind not in "iuf":
        raise UsageError(f"{file}: logical_count must be a table of numbers with rows of equal length")
    return array


def _lines(file: Path) -> list[tuple[int, str]]:
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise UsageError(f"{file}: this is not text; loads in CSV are numbers separated by commas") from None
    except OSError as error:
        raise UsageError(f"{file}: cannot be read: {(error.strerror or str(error)).lower()}") from None
    return [(number, line) for number, line in enumerate(lines, 1) if line.strip() and not line.lstrip().startswith("#")]


def _is_trace_table(file: Path) -> bool:
    lines = _lines(file)
    return bool(lines) and any("layer" in cell for cell in lines[0][1].split(","))


def _matrix(file: Path) -> NDArray[Any]:
    rows: list[list[float]] = []
    for number, line in _lines(file):
        cells = [cell.strip() for cell in line.split(",")]
        row = []
        for column, cell in enumerate(cells, 1):
            try:
                row.append(float(cell))
            except ValueError:
                raise UsageError(
                    f"{file}:{number}: column {column}: {cell!r} is not a number; loads in CSV are a line for each layer and a column for "
                    "each expert without a header, or a table with the columns layer,expert,token_count"
                ) from None
        if rows and len(row) != len(rows[0]):
            raise UsageError(f"{file}:{number}: {len(row)} experts, but the lines above have {len(rows[0])}")
        rows.append(row)
    return np.array(rows).reshape(len(rows), len(rows[0]) if rows else 0)


def _checked(file: Path, array: NDArray[Any]) -> Loads:
    if array.ndim not in {2, 3} or not array.size:
        hint = "; one layer is [1, experts]" if array.ndim == 1 else ""
        raise UsageError(f"{file}: has shape {list(array.shape)}, expected [layers, experts] or [steps, layers, experts]{hint}")
    bad = np.argwhere(~np.isfinite(array) | (array < 0))
    if bad.size:
        at = bad[0].tolist()
        step = f"step {at[0]}, " if array.ndim == 3 else ""
        wrong = array[tuple(at)]
        raise UsageError(f"{file}: {step}layer {at[-2]}, expert {at[-1]}: {wrong} is no load; a load is a finite number, at least 0")
    return Loads(name=file.name, loads=array)


def model_named(name: str) -> MoeModel:
    """Return a model by the name of its preset or the path of its ``config.json``.

    Raises
    ------
    UsageError
        If there is neither.
    ScenarioError
        If the file does not describe a model.
    """
    from moesim.base.errors import did_you_mean
    from moesim.desk.model_config import read_config
    from moesim.desk.presets.models import model_preset, model_presets

    if name in model_presets():
        return model_preset(name)
    if Path(name).exists():
        return read_config(name)
    raise UsageError(
        f"--model: there is neither a preset nor a file {name!r}{did_you_mean(name, model_presets())}; moesim list models shows all"
    )
