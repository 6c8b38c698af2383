from __future__ import annotations

import dataclasses
import gzip
import json
from collections import defaultdict
from typing import Any

import numpy as np
import pytest
from example_result import GPUS, example
from hypothesis import given, settings
from hypothesis import strategies as st

from moesim.base.errors import UsageError
from moesim.desk.chrome_trace import chrome_trace, events
from moesim.facts.record import Result, Table


@pytest.fixture(scope="module")
def result() -> Result:
    return example()


@pytest.fixture(scope="module")
def trace(result: Result) -> list[dict[str, Any]]:
    return json.loads(gzip.decompress(chrome_trace(result)))["traceEvents"]


def slices_by_track(found: list[dict[str, Any]]) -> dict[tuple[int, int], list[tuple[int, int, str]]]:
    """Return whole nanoseconds: microseconds with three decimals are exact in them."""
    tracks = defaultdict(list)
    for event in found:
        if event["ph"] == "X":
            start, length = round(event["ts"] * 1000), round(event["dur"] * 1000)
            assert start / 1000 == event["ts"]
            assert length / 1000 == event["dur"]
            tracks[event["pid"], event["tid"]].append((start, start + length, event["name"]))
    return tracks


def assert_nested(spans: list[tuple[int, int, str]] | list[tuple[float, float, str]]) -> None:
    open_until: list[float] = []
    for start, end, name in sorted(spans, key=lambda span: (span[0], -span[1])):
        while open_until and open_until[-1] <= start:
            open_until.pop()
        assert not open_until or end <= open_until[-1], f"{name} at {start} overlaps its neighbour"
        open_until.append(end)


def test_slices_of_a_track_nest_strictly(trace: list[dict[str, Any]]) -> None:
    tracks = slices_by_track(trace)
    assert len(tracks) == 2 * GPUS
    for spans in tracks.values():
        assert_nested(spans)


def as_readers_add(found: list[dict[str, Any]]) -> dict[tuple[int, int], list[tuple[float, float, str]]]:
    """Ends as a viewer gets them: start plus duration, in floating point. Sums that pass the next start make it stack neighbours."""
    tracks = defaultdict(list)
    for event in found:
        if event["ph"] == "X":
            tracks[event["pid"], event["tid"]].append((event["ts"], event["ts"] + event["dur"], event["name"]))
    return tracks


def test_slices_nest_in_the_floating_point_of_a_viewer(trace: list[dict[str, Any]]) -> None:
    for spans in as_readers_add(trace).values():
        assert_nested(spans)


def test_names_are_those_of_profilers(trace: list[dict[str, Any]]) -> None:
    names = {event["name"] for event in trace if event["ph"] == "X" and not event["name"].startswith("waiting")}
    assert names == {f"{name}({way})" for name in ("attn", "gate", "dispatch", "mlp", "combine") for way in "FB"}
    about = {event["pid"]: event["args"]["name"] for event in trace if event["name"] == "process_name"}
    assert about[3] == "GPU 3 (node 0)"
    assert about[15] == "GPU 15 (node 1)"
    assert {event["args"]["name"] for event in trace if event["name"] == "thread_name"} == {"compute", "communication"}


def test_waiting_is_a_child_of_its_collective(result: Result, trace: list[dict[str, Any]]) -> None:
    timeline = result.tables["timeline"]
    waits = [event for event in trace if event["ph"] == "X" and event["name"].startswith("waiting")]
    assert len(waits) == int((timeline["waiting_s"] > 0).sum())
    # Each wait is rounded by at most half a nanosecond.
    assert sum(event["dur"] for event in waits) == pytest.approx(timeline["waiting_s"].sum() * 1e6, abs=len(waits) * 0.0006)
    collectives = {(e["pid"], e["ts"]): e for e in trace if e["ph"] == "X" and e["cat"] in {"dispatch", "combine"} and "bytes" in e["args"]}
    for event in waits:
        parent = collectives[event["pid"], event["ts"]]
        assert event["dur"] <= parent["dur"]
        assert event["name"] == f"waiting for GPU {parent['args']['waited_for']}"


def test_rate_counters_return_to_zero(result: Result, trace: list[dict[str, Any]]) -> None:
    last: dict[int, float] = {}
    sent: dict[int, float] = defaultdict(float)
    since: dict[int, float] = {}
    for event in (event for event in trace if event["ph"] == "C"):
        gpu, rate = event["pid"], event["args"]["GB/s"]
        if rate:
            since[gpu] = event["ts"]
        else:
            sent[gpu] += last[gpu] * (event["ts"] - since[gpu]) * 1e3
        last[gpu] = rate
    assert set(last.values()) == {0}
    timeline = result.tables["timeline"]
    for gpu in range(GPUS):
        # The rate is written in MB/s steps.
        assert sent[gpu] == pytest.approx(timeline["bytes"][timeline["gpu"] == gpu].sum(), rel=1e-4)


def test_l8_equal_results_give_equal_traces(result: Result) -> None:
    assert chrome_trace(result) == chrome_trace(example())


def test_more_steps_need_spans(result: Result) -> None:
    two = json.loads(gzip.decompress(chrome_trace(result, steps=2)))
    assert {event["args"]["step"] for event in two["traceEvents"] if event["ph"] == "X" and "step" in event["args"]} == {1, 2}
    without = {name: table for name, table in result.tables.items() if name != "spans"}
    with pytest.raises(UsageError, match="--spans"):
        chrome_trace(dataclasses.replace(result, tables=without), steps=2)


SPANS = st.lists(
    st.tuples(st.integers(0, 3000), st.integers(0, 900), st.booleans(), st.floats(0, 2)), min_size=1, max_size=30
)  # fmt: skip


@given(SPANS)
@settings(max_examples=60, deadline=None)
def test_tasks_that_overlap_on_a_lane_still_nest(drawn: list[tuple[int, int, bool, float]]) -> None:
    start = np.array([at for at, *_ in drawn]) * 1e-7
    length = np.array([size for _, size, *_ in drawn]) * 1e-7
    collective = np.array([kind for *_, kind, _ in drawn])
    count = len(drawn)
    columns = {name: np.zeros(count, dtype=np.int64) for name in ("step", "layer", "moe_layer", "microbatch", "gpu", "tokens")}
    table = Table(
        columns=columns
        | {
            "direction": np.array(["forward"] * count),
            "lane": np.where(collective, "communication", "compute"),
            "phase": np.where(collective, "dispatch", "experts"),
            "start_s": start,
            "end_s": start + length,
            "bytes": np.ones(count),
            # More waiting than the span is long can only be rounding; the slice must still fit.
            "waiting_s": length * np.array([share for *_, share in drawn]),
            "waited_for": np.full(count, -1),
        }
    )
    gpus = Table(columns={"gpu": np.array([0]), "node": np.array([0])})
    found = list(events(table, gpus))
    for spans in (*slices_by_track(found).values(), *as_readers_add(found).values()):
        assert_nested(spans)
    assert sum(event["ph"] == "X" and event["name"] != "waiting" for event in found) == count


def test_the_order_of_the_table_plays_no_part(result: Result) -> None:
    # Slices are put in the order of time before they are given threads: rows in any order need no more threads and give the same tracks.
    timeline, gpus = result.tables["timeline"], result.tables["gpus"]
    backwards = Table(columns={name: column[::-1] for name, column in timeline.columns.items()}, units=timeline.units)
    assert slices_by_track(list(events(backwards, gpus))) == slices_by_track(list(events(timeline, gpus)))
