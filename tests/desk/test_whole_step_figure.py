"""Pictures of whole steps: every kind of task has a colour, the parts of a step add up to it, and slices keep what takes most of them."""

from functools import cache

import numpy as np
import pytest
from worlds import no_trace

from moesim.desk.report import figures, style
from moesim.desk.report.figures.kinds import LABELS, kinds, strips
from moesim.desk.report.figures.whole_step import BINS, rows_of, runs
from moesim.desk.scenario_file import read_scenario
from moesim.desk.words import PHASES, phase_seconds
from moesim.engine.simulate import simulate
from moesim.facts.program import COLLECTIVES, GROUP_CALLS, TENSOR_CALLS
from moesim.facts.record import Table

WHOLE = """
name: a whole step
model: {preset: deepseek-v2-lite, layers: 4, moe_layers: [1, 2, 3]}
cluster: {kind: nvlink_nodes, nodes: 2, gpus_per_node: 4}
parallel: {ep: 2, tp: 2, pp: 2}
workload: {tokens_per_gpu: 256}
routing: {kind: uniform}
schedule: {kind: pipeline, microbatches: 4, operation: reduce_scatter, gather_parameters: true}
training: {recompute: selective, recompute_modules: [experts, attention_core], sharding: data_parallel}
"""
SERVING = WHOLE.partition("parallel:")[0] + "parallel: {ep: 4}\nworkload: {phase: decode, tokens_per_gpu: 16}\nrouting: {kind: uniform}\n"


@cache
def ran(text):
    return simulate(read_scenario(text, file="here", folder="."), read_trace=no_trace)


def spans(**columns):
    size = len(next(iter(columns.values())))
    every = {"phase": ["attention"] * size, "direction": ["forward"] * size, "lane": ["compute"] * size, **columns}
    return Table(columns={name: np.array(values) for name, values in every.items()})


def test_every_phase_has_a_kind_and_every_kind_a_colour():
    of_experts = ("attention", "attention_core", "dense", "gate", "shared", "experts", *COLLECTIVES)
    phases = [*of_experts, *GROUP_CALLS, *TENSOR_CALLS, "optimiser", "send", "receive"]
    found = kinds(spans(phase=phases))
    assert set(found) <= set(style.COLOURS)
    assert set(found) <= set(PHASES) | set(LABELS)
    assert len(set(style.COLOURS.values())) == len(style.COLOURS)


def test_what_is_computed_again_is_told_apart_and_what_travels_again_is_not():
    table = spans(
        phase=["experts", "dispatch", "experts"],
        direction=["recompute", "recompute", "backward"],
        lane=["compute", "communication", "compute"],
    )
    assert kinds(table).tolist() == ["recompute", "dispatch", "experts"]


def test_strips():
    table = spans(
        phase=["gate", "combine", "gradients", "send", "receive"], lane=["compute", "communication", "gradients", "pipeline", "pipeline"]
    )
    assert strips(table).tolist() == [0, 1, 2, 2, 0]


def test_the_parts_of_every_gpus_step_add_up_to_it():
    for text in (WHOLE, SERVING):
        result = ran(text)
        total = sum(phase_seconds(result.tables["gpus"]).values())
        assert total == pytest.approx(np.full(len(total), result.metrics["step_time"].value), rel=1e-9)


def test_a_bubble_is_no_longer_than_what_a_gpu_idles():
    # The first GPU exchanges gradients for 1 of the 3 s of its bubble; the second idles for 1 s after the pipeline.
    gpus = Table(columns={"bubble_s": np.array([3.0, 1.0]), "idle_s": np.array([2.0, 2.0]), "gradient_exposed_s": np.array([1.0, 0.0])})
    seconds = phase_seconds(gpus)
    assert (seconds["bubble"].tolist(), seconds["idle"].tolist()) == ([2.0, 1.0], [0.0, 1.0])
    assert sum(seconds.values()).tolist() == [3.0, 2.0]


def test_a_slice_has_the_colour_of_what_takes_most_of_it():
    # Of 500 slices of 1: a fills the first 10 and 0.4 of the next, b the other 0.6 and one more; then nothing; then c in 0.4 of a slice.
    start, end = np.array([0.0, 10.4, 100.0, 499.0]), np.array([10.4, 12.0, 100.4, 500.0])
    assert runs(start, end, np.array(["a", "b", "c", "a"]), float(BINS)) == [("a", 0.0, 10.0), ("b", 10.0, 12.0), ("a", 499.0, 500.0)]


def test_short_tasks_together_take_their_slice():
    # Ten tasks of 0.1 in one slice, six of them x.
    edges = np.arange(11) / 10
    names = np.array(["x", "y"] * 4 + ["x", "x"])
    assert runs(edges[:-1], edges[1:], names, float(BINS)) == [("x", 0.0, 1.0)]
    assert runs(np.zeros(0), np.zeros(0), np.zeros(0, dtype=np.str_), 1.0) == []


def test_one_gpu_of_each_stage():
    table = spans(gpu=np.repeat(np.arange(16), 2))
    assert rows_of(table, 4) == [0, 4, 8, 12]
    assert rows_of(table, 1) == [0, 2, 4, 6, 8, 10, 12, 15]
    assert rows_of(spans(gpu=np.arange(32)), 16) == [0, 4, 8, 12, 16, 20, 24, 30]


def test_the_figure_is_there_for_whole_steps_only():
    drawings = figures.draw(ran(WHOLE))
    labels = {label for label, *_ in drawings["whole"].legend}
    assert {"optimiser", "computed again", "waits for another stage", "gradients"} <= labels
    assert "One GPU of each of 2 stages" in drawings["whole"].caption
    assert "Bubbles are" in drawings["whole"].caption
    assert {"tensor-parallel exchange", "computed again"} <= {label for label, *_ in drawings["timeline"].legend}
    assert {"optimiser", "pipeline bubble", "tensor-parallel exchange"} <= {label for label, *_ in drawings["phases"].legend}
    assert "whole" not in figures.draw(ran(SERVING))
