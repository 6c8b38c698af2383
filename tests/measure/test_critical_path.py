"""The critical path of a step: hand-made steps, and the steps of whole runs."""

import dataclasses
import itertools

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from worlds import play, scenarios

from moesim.facts.record import Table
from moesim.measure.critical_path import critical_path, waiting_chains

NAMES = ("gpu", "phase", "start_s", "end_s", "waiting_s", "waited_for", "layer", "moe_layer", "microbatch", "direction")


def spans_of(*rows):
    """One span each: gpu, phase, start, end, waiting, waited for; all in layer 0."""
    full = [(*row, 0, 0, 0, "forward") for row in rows]
    return Table(columns={name: np.array(column) for name, column in zip(NAMES, zip(*full, strict=True), strict=True)})


def collectives_of(*rows):
    """One stage each: phase, last arrival, last GPU."""
    phase, last, gpu = zip(*rows, strict=True)
    size = len(rows)
    return Table(
        columns={
            "phase": np.array(phase),
            "last_arrival_s": np.array(last),
            "last_gpu": np.array(gpu),
            "layer": np.zeros(size, dtype=int),
            "group": np.zeros(size, dtype=int),
            "microbatch": np.zeros(size, dtype=int),
            "direction": np.full(size, "forward"),
            "bottleneck_link": np.full(size, "wire"),
        }
    )


def told(path):
    return [(link.gpu, link.phase, link.kind, link.start, link.end) for link in path]


def test_the_path_leaves_a_collective_towards_the_gpu_that_came_last():
    # GPU 1 computes 3 s and comes last; then bytes move for 2 s; then GPU 0 computes 4 s. GPU 0's first second is not on the path.
    spans = spans_of(
        (0, "attention", 0.0, 1.0, 0.0, -1),
        (1, "attention", 0.0, 3.0, 0.0, -1),
        (0, "dispatch", 1.0, 5.0, 2.0, 1),
        (1, "dispatch", 3.0, 5.0, 0.0, -1),
        (0, "experts", 5.0, 9.0, 0.0, -1),
        (1, "experts", 5.0, 6.0, 0.0, -1),
    )
    path = critical_path(spans, collectives_of(("dispatch", 3.0, 1)), start=0.0, ranks=2)
    assert told(path) == [(1, "attention", "compute", 0.0, 3.0), (0, "dispatch", "transfer", 3.0, 5.0), (0, "experts", "compute", 5.0, 9.0)]
    assert path[1].bottleneck == "wire"


def test_stages_of_a_collective_are_followed_one_by_one():
    # Stage 1 begins when GPU 0 comes at 2 (after a launch of 0.5 s), stage 2 when GPU 1 has finished stage 1 at 6.
    spans = spans_of(
        (0, "attention", 0.0, 1.5, 0.0, -1),
        (1, "attention", 0.0, 1.0, 0.0, -1),
        (0, "dispatch", 1.5, 7.0, 0.0, -1),
        (1, "dispatch", 1.0, 7.0, 0.5, 0),
    )
    path = critical_path(spans, collectives_of(("dispatch", 2.0, 0), ("dispatch", 6.0, 1)), start=0.0, ranks=2)
    assert told(path) == [
        (0, "attention", "compute", 0.0, 1.5),
        (0, "dispatch", "launch", 1.5, 2.0),
        (1, "dispatch", "transfer", 2.0, 6.0),
        (0, "dispatch", "transfer", 6.0, 7.0),
    ]


def test_time_in_which_nothing_was_recorded_is_idle():
    spans = spans_of((0, "attention", 1.0, 2.0, 0.0, -1), (0, "experts", 2.5, 3.0, 0.0, -1))
    path = critical_path(spans, collectives_of(("dispatch", 9.0, 0)), start=0.0, ranks=1)
    assert [(kind, start, end) for _, _, kind, start, end in told(path)] == [
        ("idle", 0.0, 1.0),
        ("compute", 1.0, 2.0),
        ("idle", 2.0, 2.5),
        ("compute", 2.5, 3.0),
    ]


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(scenario=scenarios())
def test_l6_causality_the_path_of_a_run_covers_each_step_without_gaps(scenario):
    result = play(scenario)
    spans, collectives, steps = result.tables["spans"], result.tables["collectives"], result.tables["steps"]
    for step, start, seconds in zip(steps["step"], steps["start_s"], steps["step_time_s"], strict=True):
        path = critical_path(
            spans.where(spans["step"] == step),
            collectives.where(collectives["step"] == step),
            start=float(start),
            ranks=scenario.parallel.ep,
        )
        if not path:
            assert seconds == 0
            continue
        slack = 1e-8 * seconds
        assert abs(path[0].start - start) <= slack
        assert abs(path[-1].end - (start + seconds)) <= slack
        assert all(abs(before.end - after.start) <= slack for before, after in itertools.pairwise(path))
        assert sum(link.seconds for link in path) == pytest.approx(seconds, rel=1e-7)
        # What computes on the path is a kernel that was recorded, whole.
        kernels = {(int(gpu), float(begin)) for gpu, begin in zip(spans["gpu"], spans["start_s"], strict=True)}
        assert all((link.gpu, link.start) in kernels for link in path if link.kind == "compute")


def test_waits_are_added_up_by_pair_the_longest_first():
    spans = spans_of(
        (0, "dispatch", 0.0, 1.0, 0.25, 2),
        (0, "combine", 1.0, 2.0, 0.5, 2),
        (1, "dispatch", 0.0, 1.0, 0.875, 2),
        (2, "dispatch", 0.0, 1.0, 0.0, -1),
    )
    spans = dataclasses.replace(spans, columns={**spans.columns, "layer": np.array([0, 3, 1, 0])})
    rows = waiting_chains(spans)
    assert [list(rows[name]) for name in ("gpu", "waiting_gpu", "seconds", "calls", "worst_layer")] == [
        [2, 2], [1, 0], [0.875, 0.75], [1, 2], [1, 3],
    ]  # fmt: skip
    assert len(waiting_chains(spans.where(np.zeros(4, dtype=bool)))) == 0
