"""The timeline in the trace-event format of Chrome, which Perfetto opens: a process per GPU, a thread per lane.

Perfetto reads this format as a legacy one and does not show slices of a thread that overlap without nesting. Times are therefore
rounded once to whole nanoseconds (so that neighbours still touch), waiting is a child slice of its collective, and tasks that do
overlap on a lane go to a second thread of that lane.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from typing import Any

import numpy as np

from moesim.base.errors import UsageError
from moesim.facts.program import COMMUNICATES, GRADIENTS, PIPELINE
from moesim.facts.record import Result, Table

NAMES = {"attention": "attn", "experts": "mlp"}
"""Words of profilers where they differ from moesim's phases."""

DIRECTIONS = {"forward": "F", "backward": "B", "recompute": "R"}
LANES = ("compute", "communication", GRADIENTS)
OF_LANES = {GRADIENTS: " of gradients", PIPELINE: " to the next stage"}
"""What a counter of bytes says of the lane that sends them, where it is not that of tokens."""
THREADS = 100
"""Threads reserved for each lane of a GPU."""


def slice_name(phase: str, direction: str) -> str:
    """Return the annotation name of a task.

    Examples
    --------
    >>> slice_name("dispatch", "forward"), slice_name("experts", "backward")
    ('dispatch(F)', 'mlp(B)')
    """
    return f"{NAMES.get(phase, phase)}({DIRECTIONS.get(direction, direction)})"


def chrome_trace(result: Result, *, steps: int = 1) -> bytes:
    """Return a gzipped trace of the first measured steps; equal results give equal bytes.

    Parameters
    ----------
    result : Result
        With a ``timeline``; more than one step needs ``spans``.
    steps : int
        How many steps.

    Raises
    ------
    UsageError
        If more than one step is asked for and the run kept no spans.
    """
    if steps > 1 and "spans" not in result.tables:
        raise UsageError(f"a trace of {steps} steps needs the spans of all steps; run with --spans, or trace 1 step")
    table = result.tables["timeline"] if steps <= 1 else result.tables["spans"]
    wanted = np.unique(table["step"])[: max(steps, 1)]
    table = table.where(np.isin(table["step"], wanted))
    data = {
        "traceEvents": list(events(table, result.tables["gpus"])),
        "displayTimeUnit": "ms",
        "otherData": {"name": result.scenario.name, "seed": result.scenario.seed, "steps": wanted.tolist()},
    }
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return gzip.compress(text.encode(), 6, mtime=0)


def events(table: Table, gpus: Table) -> Iterator[dict[str, Any]]:
    """Yield the trace events of a table of spans.

    Parameters
    ----------
    table : Table
        Spans (see ``docs/reference/results.md``).
    gpus : Table
        Gives the node of each GPU.
    """
    node_of = dict(zip(gpus["gpu"].tolist(), gpus["node"].tolist(), strict=True))
    start, end = (np.rint(table[name] * 1e9).astype(np.int64) for name in ("start_s", "end_s"))
    # Ties: a longer span first, then the order of the table, so that an enclosing slice comes before what it encloses.
    order = np.lexsort((np.arange(len(table)), -end, start, table["gpu"]))
    column = {name: values.tolist() for name, values in table.columns.items()}
    for gpu in sorted(set(column["gpu"])):
        yield _about(gpu, "process_name", name=f"GPU {gpu} (node {node_of[gpu]})" if gpu in node_of else f"GPU {gpu}")
        yield _about(gpu, "process_sort_index", sort_index=gpu)
    lanes = (*LANES, *sorted(set(column["lane"]) - set(LANES)))
    free: dict[tuple[int, str], list[int]] = {}
    for row in order.tolist():
        gpu, lane = column["gpu"][row], column["lane"][row]
        threads = free.setdefault((gpu, lane), [])
        thread = next((at for at, until in enumerate(threads) if until <= start[row]), len(threads))
        track = lanes.index(lane) * THREADS + thread
        if thread == len(threads):
            threads.append(0)
            yield _about(gpu, "thread_name", thread=track, name=lane if thread == 0 else f"{lane} {thread + 1}")
            yield _about(gpu, "thread_sort_index", thread=track, sort_index=track)
        threads[thread] = int(end[row])
        yield from _slices({name: values[row] for name, values in column.items()}, int(start[row]), int(end[row]), track)


def _about(gpu: int, name: str, /, *, thread: int = 0, **args: Any) -> dict[str, Any]:
    return {"ph": "M", "pid": gpu, "tid": thread, "name": name, "args": args}


def _slice(span: dict[str, Any], track: int, name: str, start: int, end: int, args: dict[str, Any]) -> dict[str, Any]:
    # A nanosecond count divided by 1000 has at most three decimals, so microseconds keep the rounding. Readers add the duration to the
    # start, in floating point: where their sum would pass the end, and with it the start of the next slice, a nanosecond is left out.
    length = end - start
    while length and start / 1000 + length / 1000 > end / 1000:
        length -= 1
    return {
        "ph": "X",
        "pid": span["gpu"],
        "tid": track,
        "name": name,
        "cat": span["phase"],
        "ts": start / 1000,
        "dur": length / 1000,
        "args": args,
    }


def _slices(span: dict[str, Any], start: int, end: int, track: int) -> Iterator[dict[str, Any]]:
    where = {name: span[name] for name in ("step", "layer", "moe_layer", "microbatch", "tokens")}
    collective = span["phase"] in COMMUNICATES
    if not collective:
        yield _slice(span, track, slice_name(span["phase"], span["direction"]), start, end, where)
        return
    waited = min(round(span["waiting_s"] * 1e9), end - start)
    args = where | {"bytes": span["bytes"], "waiting_us": waited / 1000, "waited_for": span["waited_for"]}
    yield _slice(span, track, slice_name(span["phase"], span["direction"]), start, end, args)
    if waited > 0:
        whom = f"waiting for GPU {span['waited_for']}" if span["waited_for"] >= 0 else "waiting"
        yield _slice(span, track, whom, start, start + waited, {"waited_for": span["waited_for"]})
    moving = end - start - waited
    if moving > 0:
        # Bytes per nanosecond are gigabytes per second: the mean rate of this GPU over the transferring part.
        of = OF_LANES.get(span["lane"], "")
        rate = {"ph": "C", "pid": span["gpu"], "tid": 0, "name": f"mean send rate{of} (GB/s)"}
        yield rate | {"ts": (start + waited) / 1000, "args": {"GB/s": round(span["bytes"] / moving, 3)}}
        yield rate | {"ts": end / 1000, "args": {"GB/s": 0}}
