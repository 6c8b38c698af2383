"""Which runs a variant is played in, that all see the same tokens, and how many pieces of evidence a recording has."""

import hashlib
import math
from dataclasses import replace

import numpy as np
import pytest
from scenario_texts import SMALL

from moesim.base.errors import SimulationError, UsageError
from moesim.desk.compare_runs import BLOCKS, SEEDS, runs_of
from moesim.desk.compare_variants import read_variants
from moesim.desk.comparing import ask, conclude
from moesim.desk.study_cells import play, read_trace
from moesim.desk.trace_files import write_trace
from moesim.engine.simulate import simulate
from moesim.facts.trace import Trace
from moesim.study.cell import failure

SPEEDY = ["workload.tokens_per_gpu=32"]


@pytest.fixture
def small(tmp_path):
    path = tmp_path / "small.yaml"
    path.write_text(SMALL)
    return path


def recorded(folder, tokens, *, deal="in_order", **more):
    """The small scenario with a recording of so many tokens; a step takes 8 * 32 = 256 of them."""
    rng = np.random.default_rng(0)
    ids = rng.permuted(np.tile(np.arange(16, dtype=np.int16), (tokens, 2, 1)), axis=-1)[:, :, :2]
    trace = Trace(name="t", digest="", layers=2, experts=16, top_k=2, ids=ids, **more)
    write_trace(trace, folder / "t.npz")
    path = folder / "recorded.yaml"
    text = SMALL.replace("routing: {kind: lognormal, sigma: 1e-1}", f"routing: {{kind: recorded, trace: t.npz, deal: {deal}}}")
    text = text.replace("{rule: megatron, factor: 1.25}", "{rule: megatron, factor: 1.25, drop: position}")
    path.write_text(text.replace("tokens_per_gpu: 256", "tokens_per_gpu: 32"))
    return path


def answered(question):
    return conclude(question, [play(cell) for cell in question.cells()])


def test_synthetic_routing_is_replicated_over_seeds(small):
    variants, _ = read_variants(small, SPEEDY)
    runs = runs_of(variants[0], 3, read_trace)
    assert (runs.kind, [scenario.seed for scenario in runs.scenarios]) == (SEEDS, [1, 2, 3])
    cells = runs.cells()
    assert [cell.axes["seed"] for cell in cells] == [1, 2, 3]
    # Only the first run leaves tables for the report.
    assert [bool(cell.tables) for cell in cells] == [True, False, False]


def test_l9_all_variants_have_the_same_tokens_in_every_step(small):
    def choices(scenario):
        trace = simulate(scenario, read_trace=read_trace, keep_routing=True).routing
        return [hashlib.sha256(np.ascontiguousarray(trace.ids[trace.step == step])).hexdigest() for step in np.unique(trace.step)]

    variants, _ = read_variants(small, [*SPEEDY, "steps=2", "warmup=0"], ["moved:policy.placement=round_robin,policy.capacity.factor=0.5"])
    found = [choices(variant.scenario) for variant in variants]
    assert len(found) == 3
    assert len(set(found[0])) == 2
    assert found[0] == found[1] == found[2]
    other, _ = read_variants(small, [*SPEEDY, "steps=2", "warmup=0", "routing={kind: lognormal, sigma: 0.1},uniform"])
    first, second = (choices(variant.scenario) for variant in other)
    assert first == found[0]
    assert not set(first) & set(second)


def test_the_comparison_says_whose_choices_differ(small):
    outcome = answered(ask(small, SPEEDY, ["uniform:routing={kind: uniform}"], replicates=2))
    assert dict(outcome.comparison.same_choices) == {"dropless": True, "tight": True, "uniform": False}
    (said,) = (warning for warning in outcome.warnings if "other tokens" in warning)
    assert said.startswith("uniform has other tokens or choices than dropless")


def test_a_recording_in_order_is_cut_into_blocks(tmp_path):
    # 2,048 tokens are 8 steps. Three stretches of 2 measured steps after one of warm-up: 7 steps, and no second seed.
    question = ask(recorded(tmp_path, 2048), replicates=3)
    (runs, _) = question.runs
    assert (runs.kind, runs.independent, len(runs.scenarios), runs.scenarios[0].steps) == (BLOCKS, 8, 1, 7)
    outcome = answered(question)
    one = outcome.comparison.differences["tight"]["drop_rate"]
    assert (one.n, one.verdict) == (6, "worse")
    assert outcome.warnings == ()


def test_no_more_steps_are_played_than_there_are_blocks_and_no_fewer_than_asked_for(tmp_path):
    assert ask(recorded(tmp_path, 1024), replicates=5).runs[0].scenarios[0].steps == 4
    question = ask(recorded(tmp_path, 600), ["steps=5"], replicates=5)
    assert (question.runs[0].independent, question.runs[0].scenarios[0].steps) == (2, 5)
    outcome = answered(question)
    # Steps 1 to 4 of 256 tokens begin at tokens 256, 512, 168, 424 of 600: blocks 1, 1, 0, 1.
    assert outcome.played["tight"].blocks.tolist() == [1, 1, 0, 1]
    assert outcome.comparison.differences["tight"]["drop_rate"].n == 2
    assert any("2 independent blocks of tokens for 5 steps" in warning for warning in outcome.warnings)


def test_one_block_gives_no_intervals(tmp_path):
    outcome = answered(ask(recorded(tmp_path, 300), replicates=5))
    one = outcome.comparison.differences["tight"]["step_time"]
    assert (one.n, one.low, one.verdict) == (1, None, "not distinguishable")
    assert any("no intervals and no verdicts" in warning and "1 independent block" in warning for warning in outcome.warnings)
    assert outcome.comparison.winner.name is None
    assert math.isfinite(outcome.comparison.winner.margin)


def test_recorded_steps_are_the_blocks_of_a_recording_with_steps(tmp_path):
    path = recorded(tmp_path, 1024, deal="recorded", step=np.repeat(np.arange(4), 256))
    runs = ask(path, replicates=5).runs[0]
    assert (runs.kind, runs.independent) == (BLOCKS, 4)
    assert runs.block_of(np.arange(6)).tolist() == [0, 1, 2, 3, 0, 1]


def test_recorded_conversations_are_drawn_by_seed(tmp_path):
    path = recorded(tmp_path, 1000, deal="conversations", sample_length=np.full(100, 10))
    runs = ask(path, replicates=2).runs[0]
    assert (runs.kind, len(runs.scenarios), runs.scenarios[0].steps) == (SEEDS, 2, 3)


def test_copies_of_one_run_are_told_from_evidence(tmp_path):
    # One conversation only: every GPU has it in every step, under every seed.
    path = recorded(tmp_path, 100, deal="conversations", sample_length=np.array([100]))
    outcome = answered(ask(path, replicates=3))
    assert {len(played.seeds) for played in outcome.played.values()} == {1}
    assert any("the routing is the same under every seed" in warning for warning in outcome.warnings)
    assert outcome.comparison.differences["tight"]["step_time"].low is None


def test_a_variant_that_fails_is_named_and_the_others_are_compared(small):
    question = ask(small, SPEEDY, ["third:policy.capacity.factor=2.0"], replicates=2)
    answers = [play(cell) for cell in question.cells()]
    broken = [failure(cell, "out of order") for cell in question.cells()]
    # All runs of tight, and one of third.
    outcome = conclude(question, [*answers[:2], *broken[2:4], broken[4], answers[5]])
    assert (outcome.failed, list(outcome.played)) == ({"tight": "out of order"}, ["dropless", "third"])
    assert outcome.comparison.differences["third"]["drop_rate"].n == 1
    assert "tight failed and is not compared: out of order" in outcome.warnings
    assert any("third: 1 of 2 runs failed" in warning for warning in outcome.warnings)
    # Without its baseline, the first that is left takes its place; with one variant left there is nothing to compare.
    outcome = conclude(question, [*broken[:2], *answers[2:]])
    assert (outcome.comparison.baseline, list(outcome.comparison.differences)) == ("tight", ["third"])
    assert any("the baseline dropless failed: differences are taken from tight" in warning for warning in outcome.warnings)
    with pytest.raises(SimulationError, match="2 of 3 variants failed"):
        conclude(question, [*broken[:4], *answers[4:]])


@pytest.mark.parametrize("replicates", [0, 10_001, 100_000_000])
def test_a_number_of_replicates_beyond_reason_is_refused_before_any_run_is_written_down(small, replicates):
    with pytest.raises(UsageError, match=f"--replicates {replicates}: choose 1 to 10,000"):
        ask(small, SPEEDY, replicates=replicates)


def test_a_variant_that_changes_nothing_is_named(small):
    outcome = answered(ask(small, SPEEDY, ["twin:policy.capacity=null"], replicates=2))
    assert outcome.comparison.differences["twin"]["step_time"].value == 0
    assert [warning for warning in outcome.warnings if "nothing" in warning] == ["twin changes nothing: every metric is that of dropless"]


def test_warnings_that_differ_in_numbers_only_are_said_once(small):
    question = ask(small, SPEEDY, replicates=2)
    texts = ["hot: GPU 1 has 2.5 times the mean", "hot: GPU 3 has 4 times the mean", "hot: GPU 3 has 4 times the mean", "cold: GPU 1"]
    answers = [replace(play(cell), warnings=(text,)) for cell, text in zip(question.cells(), texts, strict=True)]
    found = conclude(question, answers).warnings
    assert [line for line in found if "GPU" in line] == [
        "hot: GPU 1 has 2.5 times the mean; 1 more warning like it, with other numbers", "tight: cold: GPU 1"
    ]  # fmt: skip
