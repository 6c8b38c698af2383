"""The trace of a run with several expert-parallel groups that wait: what Perfetto shows must nest on every track."""

import gzip
import json
from collections import defaultdict

import pytest
from scenario_texts import SMALL

from moesim.desk.chrome_trace import chrome_trace
from moesim.desk.scenario_file import read_scenario
from moesim.desk.trace_files import read_trace
from moesim.engine.simulate import simulate

GROUP = 2


@pytest.fixture(scope="module")
def result():
    # 8 GPUs in four groups of two, forward and backward, two measured steps; the routing is so skewed that one of two waits.
    text = SMALL.replace("ep: 8", f"ep: {GROUP}").replace("sigma: 1e-1", "sigma: 2.0").replace("tokens_per_gpu: 256", "tokens_per_gpu: 64")
    return simulate(read_scenario(text, file="f", folder="/"), read_trace=read_trace, keep_spans=True)


@pytest.fixture(scope="module")
def tracks(result):
    """Return the slices of each (GPU, thread), in whole nanoseconds, in the order of the file."""
    found = defaultdict(list)
    for event in json.loads(gzip.decompress(chrome_trace(result, steps=2)))["traceEvents"]:
        if event["ph"] == "X":
            start = round(event["ts"] * 1000)
            found[event["pid"], event["tid"]].append((start, start + round(event["dur"] * 1000), event))
    return found


def test_every_gpu_has_one_track_of_each_lane(tracks):
    # Sequential tasks never overlap on a lane, so nothing is pushed to a second thread.
    assert sorted(tracks) == [(gpu, thread) for gpu in range(8) for thread in (0, 100)]


def test_slices_nest_strictly_on_every_track(tracks):
    # Of two slices on a track the later one either begins when the other is over, or lies within it; a parent comes before its child in the
    # file, so a stack in the order of the file suffices. Only a wait has a parent.
    for track, slices in tracks.items():
        inside = []
        before = -1
        for start, end, event in slices:
            assert start >= before, f"{track}: the file is out of order"
            assert end >= start
            before = start
            while inside and inside[-1][1] <= start:
                inside.pop()
            assert not inside or end <= inside[-1][1], f"{track}: {event['name']} overlaps {inside[-1][2]['name']}"
            assert bool(inside) == event["name"].startswith("waiting"), f"{track}: {event['name']} at {start}"
            inside.append((start, end, event))


def test_who_waits_waits_for_its_own_group(tracks):
    waits = [(pid, event) for (pid, _), slices in tracks.items() for *_, event in slices if event["name"].startswith("waiting")]
    # Somebody waits in every group; nobody for itself, and nobody for a GPU of another group.
    assert {pid // GROUP for pid, _ in waits} == set(range(8 // GROUP))
    for pid, event in waits:
        other = event["args"]["waited_for"]
        assert event["name"] == f"waiting for GPU {other}"
        assert (other // GROUP, other != pid) == (pid // GROUP, True)


def test_every_span_of_both_steps_is_there_once(result, tracks):
    spans = result.tables["spans"]
    slices = [event for found in tracks.values() for *_, event in found if not event["name"].startswith("waiting")]
    assert len(slices) == len(spans)
    asked = sorted(zip(spans["gpu"].tolist(), spans["step"].tolist(), spans["layer"].tolist(), spans["phase"].tolist(), strict=True))
    assert sorted((e["pid"], e["args"]["step"], e["args"]["layer"], e["cat"]) for e in slices) == asked
    # Times are those of the run, rounded to nanoseconds.
    first = min(start for found in tracks.values() for start, *_ in found)
    last = max(end for found in tracks.values() for _, end, _ in found)
    assert (first, last) == (round(spans["start_s"].min() * 1e9), round(spans["end_s"].max() * 1e9))
