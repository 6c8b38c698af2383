"""Read a table of expert counts from CSV."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np

from moesim.base.errors import TraceError, did_you_mean
from moesim.base.units import format_quantity
from moesim.desk.trace_size import LARGEST_BYTES
from moesim.facts.trace import Trace

NEEDED = ("layer", "expert", "token_count")
OPTIONAL = ("step", "source")
Key = tuple[int, int, int, int]


def read_table(file: Path, task: str | None) -> Trace:
    """Return the counts of one task.

    Parameters
    ----------
    file : Path
        Columns layer, expert, token_count; optionally task, step, source; further columns are ignored, as are lines that start with ``#``.
        A (layer, expert) that has no line counts 0.
    task : str or None
        Which task; may be None if there is one.

    Raises
    ------
    TraceError
        If columns are missing, a number is wrong or doubled, or the task is not chosen.
    """
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise TraceError(f"{file}: cannot be read as text ({error}); a table of counts is UTF-8 CSV") from error
    comments = [line.lstrip("# ").rstrip() for line in lines if line.startswith("#")]
    numbered = [(number, line) for number, line in enumerate(lines, 1) if line.strip() and not line.startswith("#")]
    if not numbered:
        raise TraceError(f"{file}: there is no header line; expected {','.join(('task', *NEEDED))}")
    header = [name.strip() for name in next(csv.reader([numbered[0][1]]))]
    for name in NEEDED:
        if name not in header:
            raise TraceError(f"{file}:{numbered[0][0]}: column {name!r} is missing{did_you_mean(name, header)}")
    tasks: dict[str, dict[Key, int]] = {}
    for number, line in numbered[1:]:
        cells = next(csv.reader([line]))
        if len(cells) != len(header):
            raise TraceError(f"{file}:{number}: {len(cells)} cells, but the header has {len(header)}")
        row = dict(zip(header, (cell.strip() for cell in cells), strict=True))
        key = (
            _whole(row.get("step", "0"), "step", file, number),
            _whole(row["layer"], "layer", file, number),
            _whole(row.get("source", "0"), "source", file, number),
            _whole(row["expert"], "expert", file, number),
        )
        counts = tasks.setdefault(row.get("task", ""), {})
        if key in counts:
            raise TraceError(
                f"{file}:{number}: layer {key[1]}, expert {key[3]} is there twice; add the two lines up, or name step and source"
            )
        counts[key] = _whole(row["token_count"], "token_count", file, number)
    chosen = _choose(tasks, task, file)
    return _trace(tasks[chosen], file, "\n".join(comments), by_source="source" in header, task=chosen)


def _whole(cell: str, column: str, file: Path, number: int) -> int:
    try:
        value = int(cell)
    except ValueError:
        raise TraceError(f"{file}:{number}: column {column}: {cell!r} is not a whole number") from None
    if value < 0:
        raise TraceError(f"{file}:{number}: column {column}: {value} is less than 0")
    if column != "token_count" and value > 1_000_000:
        raise TraceError(f"{file}:{number}: column {column}: {value} is too large to be the number of a {column}")
    return value


def _choose(tasks: dict[str, dict[Key, int]], task: str | None, file: Path) -> str:
    if not tasks:
        raise TraceError(f"{file}: there are no counts below the header")
    if task is None:
        if len(tasks) > 1:
            raise TraceError(f"{file}: holds {len(tasks)} tasks ({', '.join(tasks)}); choose one with task (--task on the command line)")
        return next(iter(tasks))
    if task not in tasks:
        raise TraceError(f"{file}: there is no task {task!r}{did_you_mean(task, tasks)}")
    return task


def _trace(counts: dict[Key, int], file: Path, comments: str, *, by_source: bool, task: str) -> Trace:
    keys = np.array(list(counts), dtype=np.int64)
    # Steps and layers may have gaps (a model's first layers are often dense); experts and sources are numbered from 0.
    steps, step_at = np.unique(keys[:, 0], return_inverse=True)
    layers, layer_at = np.unique(keys[:, 1], return_inverse=True)
    sources, experts = int(keys[:, 2].max()) + 1, int(keys[:, 3].max()) + 1
    cells = len(steps) * len(layers) * sources * experts
    if cells * 8 > LARGEST_BYTES:
        raise TraceError(
            f"{file}: {len(steps)} steps, {len(layers)} layers, sources up to {sources - 1} and experts up to {experts - 1} make a table "
            f"of {format_quantity(cells * 8, 'B')}, more than the {format_quantity(LARGEST_BYTES, 'B')} that are read; number experts and "
            "sources from 0, or keep fewer steps"
        )
    full = np.zeros((len(steps), len(layers), sources, experts), dtype=np.int64)
    full[step_at, layer_at, keys[:, 2], keys[:, 3]] = list(counts.values())
    if not full.any():
        raise TraceError(f"{file}: all counts are 0: there are no routes in it")
    return Trace(
        name=f"{file.name}, task {task}" if task else file.name,
        digest="",
        layers=len(layers),
        experts=experts,
        top_k=0,
        counts=full,
        by_source=by_source,
        experts_stated=False,
        layer_numbers=layers,
        origin=comments,
    )
