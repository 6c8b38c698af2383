"""``moesim trace``: the numbers against direct counting, the shapes that scripts rely on, the refusals."""

import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from moesim.base.errors import FidelityError, MoesimError, PluginError, TraceError, UsageError
from moesim.cli.trace import command
from moesim.desk.trace_files import read_trace
from moesim.models.bare_setting import bare_setting
from moesim.models.source.power_law import PowerLaw
from moesim.models.source.recorded import Recorded

SHIPPED = str(Path(__file__).parents[2] / "scenarios" / "traces" / "deepseek-v2-lite-intent.npz")


def trace(*words: str) -> str:
    result = CliRunner().invoke(command, list(words), catch_exceptions=True)
    if isinstance(result.exception, MoesimError):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.stdout


def info(*words: str) -> dict:
    return json.loads(trace("info", *words, "--format", "json"))


@pytest.mark.parametrize("rule", ["megatron", "deepspeed"])
@pytest.mark.parametrize("order", ["probs", "position"])
def test_drops_of_the_shipped_trace_equal_direct_counting(rule, order):
    with np.load(SHIPPED) as file:
        ids = file["ids"].astype(np.int64)
    tokens, layers, top_k = ids.shape
    for ranks, factors in ((1, (1.0, 2.0)), (8, (1.25,)), (64, (1.0, 1.5))):
        # One histogram over (layer, rank, expert): rank r takes the r-th block of equal size, the last one what is left.
        rank = np.arange(tokens) // -(-tokens // ranks)
        place = (np.arange(layers)[:, None] * ranks + rank[:, None, None]) * 64 + ids
        counts = np.bincount(place.ravel(), minlength=layers * ranks * 64).reshape(layers, ranks, 64)
        # Exact for these factors: T k factor / 64 has a finite binary expansion. DeepSpeed never goes below 4 rows.
        routes = np.bincount(rank, minlength=ranks) * top_k
        for factor in factors:
            report = info(SHIPPED, "--ep", str(ranks), "--capacity-factor", str(factor), "--rule", rule, "--drop", order)
            capacity = np.maximum(np.ceil(routes * factor / 64), 4 if rule == "deepspeed" else 0).astype(np.int64)
            dropped = np.maximum(counts - capacity[:, None], 0).sum(axis=(1, 2))
            assert [row["dropped"] for row in report["layers"]] == dropped.tolist()
            assert [row["drop_rate"] for row in report["layers"]] == (dropped / (tokens * top_k)).tolist()
            assert {row["routes"] for row in report["layers"]} == {tokens * top_k}


def test_fully_dropped_tokens_equal_direct_counting():
    # One rank, factor 0.25, token order: C = ceil(8222 * 6 / 64 * 0.25) = 193 rows of each expert go to the earliest tokens.
    with np.load(SHIPPED) as file:
        ids = file["ids"]
    report = info(SHIPPED, "--ep", "1", "--capacity-factor", "0.25", "--drop", "position")
    for layer in (0, 13):
        kept = np.zeros(ids.shape[::2], dtype=bool)
        for expert in range(64):
            tokens, slots = np.nonzero(ids[:, layer] == expert)
            kept[tokens[:193], slots[:193]] = True
        assert report["layers"][layer]["fully_dropped"] == np.count_nonzero(~kept.any(axis=1)) > 0
        assert report["layers"][layer]["capacity"] == 193


def test_load_statistics_of_the_shipped_trace():
    with np.load(SHIPPED) as file:
        load = np.bincount(file["ids"][:, 3].reshape(-1), minlength=64)
    report = info(SHIPPED, "--ep", "8")
    row = report["layers"][3]
    share = load / load.sum()
    rank = load.reshape(8, 8).sum(axis=1)  # contiguous: rank 0 has experts 0 to 7
    assert report["rule"] == "dropless"
    assert (row["layer"], row["dropped"], row["drop_rate"], row["fully_dropped"], row["capacity"]) == (3, 0, 0.0, 0, None)
    assert row["expert_max_over_mean"] == pytest.approx(load.max() / load.mean())
    assert row["expert_maxvio"] == pytest.approx(load.max() / load.mean() - 1)
    assert row["expert_coefficient_of_variation"] == pytest.approx(load.std() / load.mean())
    assert row["expert_gini"] == pytest.approx(abs(load[:, None] - load[None, :]).mean() / (2 * load.mean()))
    assert row["expert_normalised_entropy"] == pytest.approx(-(share * np.log(share)).sum() / np.log(64))
    assert row["rank_max_over_mean"] == pytest.approx(rank.max() / rank.mean())
    assert row["rank_coefficient_of_variation"] == pytest.approx(rank.std() / rank.mean())
    assert (row["dead_experts"], row["dead_ranks"]) == (0, 0)


def test_l15_a_capacity_factor_of_experts_over_choices_drops_nothing():
    for rule in ("megatron", "deepspeed"):
        report = info(SHIPPED, "--ep", "16", "--capacity-factor", "10.67", "--rule", rule, "--drop", "position")
        assert sum(row["dropped"] for row in report["layers"]) == 0


def test_info_says_what_the_trace_is_and_what_it_cannot_tell():
    report = info(SHIPPED)
    about = report["trace"]
    assert report["ep"] == 1
    assert (about["tokens"], about["layers"], about["experts"], about["top_k"], about["conversations"]) == (8222, 26, 64, 6, 127)
    assert about["fidelity"] == "tokens with gate weights"
    assert [answer["possible"] for answer in report["questions"]] == [True, True, True, True, False, True, False]
    assert all(answer["possible"] or answer["reason"] for answer in report["questions"])


def test_table_and_csv_hold_the_same_numbers_as_json():
    words = (SHIPPED, "--ep", "4", "--capacity-factor", "1.5")
    rows = list(csv.DictReader(io.StringIO(trace("info", *words, "--format", "csv"))))
    expected = info(*words)["layers"]
    assert [{name: float(value) for name, value in row.items()} for row in rows] == expected
    text = trace("info", *words)
    assert "4 ranks (dealt in equal blocks), capacity rule megatron, capacity factor 1.5, drop probs" in text
    assert f"{expected[0]['drop_rate']:.4f}" in text
    assert "cannot tell: what another gate would have chosen" in text


@pytest.fixture
def counts(tmp_path) -> str:
    path = tmp_path / "counts.csv"
    path.write_text("layer,expert,token_count\n2,0,6\n2,1,1\n2,2,1\n2,3,0\n")
    return str(path)


def test_counts_without_sources_say_unknown_and_why(counts):
    report = info(counts, "--ep", "2", "--capacity-factor", "1.0", "--top-k", "2")
    row = report["layers"][0]
    assert (row["layer"], row["model_layer"], row["routes"]) == (0, 2, 8)
    assert (row["dropped"], row["drop_rate"], row["fully_dropped"]) == (None, None, None)
    assert "on which rank a route starts" in report["unknown"]["dropped"]
    assert row["rank_max_over_mean"] == 7 / 4
    # One rank is all ranks: 6 tokens (expert 0 needs 6 different ones), C = ceil(6 * 2 / 4) = 3, so 3 routes of expert 0 are dropped.
    row = info(counts, "--ep", "1", "--capacity-factor", "1.0", "--top-k", "2")["layers"][0]
    assert (row["dropped"], row["fully_dropped"]) == (3, None)
    assert "choose" in info(counts, "--ep", "1", "--capacity-factor", "1.0")["unknown"]["dropped"]
    assert info(counts, "--ep", "4")["layers"][0]["dropped"] == 0  # nothing limits, nothing is dropped
    assert "?" in trace("info", counts, "--ep", "2", "--capacity-factor", "1.0")


def test_rows_of_a_rank_are_after_drops_and_loads_before(tmp_path):
    # Two ranks of two experts. All 4 tokens are on rank 0, top-1: expert 0 gets 3 and expert 2 gets 1. C = ceil(4 x 1 x 1 / 4) = 1.
    path = str(tmp_path / "t.npz")
    np.savez(path, ids=np.array([[[0]], [[0]], [[0]], [[2]]]), source=np.zeros(4, dtype=int), ranks=2, experts=4)
    row = info(path, "--capacity-factor", "1.0", "--drop", "position")["layers"][0]
    assert (row["rank_max"], row["rank_mean"]) == (3, 2.0)
    assert (row["dropped"], row["rank_rows_max"], row["rank_rows_mean"]) == (2, 1, 1.0)
    row = info(path)["layers"][0]
    assert (row["rank_rows_max"], row["rank_rows_mean"]) == (3, 2.0)
    padded = info(path, "--capacity-factor", "1.0", "--drop", "position", "--rule", "deepspeed")["layers"][0]
    # DeepSpeed's least capacity is 4, and both sources fill their buffers up to it: 4 rows x 2 sources x 2 experts of a rank.
    assert (padded["rank_max"], padded["rank_rows_max"], padded["rank_rows_mean"]) == (3, 16, 16.0)


def test_rows_of_a_rank_are_unknown_where_drops_are(counts):
    report = info(counts, "--ep", "2", "--capacity-factor", "1.0", "--top-k", "2")
    assert report["layers"][0]["rank_rows_max"] is report["layers"][0]["rank_rows_mean"] is None
    assert report["layers"][0]["rank_max"] == 7
    assert "on which rank" in report["unknown"]["rank_rows_*"]


def test_info_says_when_the_number_of_experts_is_only_the_largest_id(counts):
    result = CliRunner().invoke(command, ["info", counts, "--format", "json"])
    assert json.loads(result.stdout)["trace"]["experts_stated"] is False
    assert "Warning: the trace counts.csv does not state its number of experts: 4 are taken from its largest id, 3" in result.stderr
    assert "--experts" in result.stderr
    for number in ("4", "6"):
        result = CliRunner().invoke(command, ["info", counts, "--format", "json", "--experts", number])
        about = json.loads(result.stdout)["trace"]
        assert (about["experts"], about["experts_stated"], result.stderr) == (int(number), True, "")


def test_info_says_which_ranks_have_no_tokens(tmp_path):
    path = str(tmp_path / "t.npz")
    np.savez(path, ids=np.array([[[0]], [[3]]]), source=np.array([0, 1]), experts=4)
    result = CliRunner().invoke(command, ["info", path, "--ep", "4", "--format", "json"])
    assert (result.exit_code, json.loads(result.stdout)["ep"]) == (0, 4)
    assert "its largest source is 1: the last 2 of 4 have no tokens" in result.stderr
    assert info(path)["trace"]["recorded_ranks"] == 2
    np.savez(path, ids=np.array([[[0]], [[3]]]), source=np.array([0, 1]), experts=4, ranks=4)
    assert (info(path)["ep"], info(path)["trace"]["recorded_ranks"]) == (4, 4)
    with pytest.raises(TraceError, match=r"recorded on 4 ranks .* but 2 are asked for"):
        info(path, "--ep", "2")
    table = tmp_path / "c.csv"
    table.write_text("layer,source,expert,token_count\n0,0,0,5\n0,1,3,2\n")
    assert [row["rank_max"] for row in info(str(table), "--ep", "4", "--experts", "4")["layers"]] == [5]


def test_experts_that_do_not_divide_have_no_rank_loads(counts):
    report = info(counts, "--ep", "3")
    assert report["layers"][0]["rank_max_over_mean"] is None
    assert report["unknown"]["rank_*"] == "4 experts do not divide over 3 ranks"
    assert info(counts, "--ep", "3", "--experts", "6")["layers"][0]["dead_experts"] == 3


def test_synth_writes_what_the_source_draws(tmp_path):
    path = str(tmp_path / "synthetic.npz")
    words = ["--experts", "8", "--top-k", "2", "--layers", "3", "--tokens-per-gpu", "5", "--gpus", "4", "--steps", "2", "--seed", "9"]
    assert trace("synth", "power_law", "alpha=1.5", "redraw=step", "-o", path, *words) == f"{path}\n"
    saved = read_trace(path)
    assert saved.ids.shape == (40, 3, 2)
    assert "power_law alpha=1.5 redraw=step" in saved.origin
    world = bare_setting(gpus=4, experts=8, top_k=2, layers=3, tokens_per_gpu=5, seed=9, read_trace=read_trace)
    drawn = PowerLaw(alpha=1.5, redraw="step").begin(world)
    replayed = Recorded(trace=path, deal="recorded").begin(world)
    for step in range(2):
        for one, other in zip(drawn(step).layers, replayed(step).layers, strict=True):
            assert np.array_equal(one.ids, other.ids)
            assert np.array_equal(one.weights, other.weights)
    report = info(path, "--capacity-factor", "1.0")
    assert (report["ep"], report["trace"]["recorded_ranks"]) == (4, 4)
    # Each step and source by itself: C = ceil(5 * 2 / 8) = 2.
    expected = sum(np.maximum(drawn(step).layers[1].counts - 2, 0).sum() for step in range(2))
    assert report["layers"][1]["dropped"] == expected
    first = Path(path).read_bytes()
    trace("synth", "power_law", "alpha=1.5", "redraw=step", "-o", path, *words)
    assert Path(path).read_bytes() == first


@pytest.mark.parametrize(
    ("words", "error", "said"),
    [
        (["info", "nowhere.npz"], TraceError, "nowhere.npz: there is no such file"),
        (["info", SHIPPED, "--rule", "megatron"], UsageError, "rule 'megatron': --capacity-factor: is missing"),
        (["info", SHIPPED, "--drop", "probs"], UsageError, "--capacity-factor: is missing"),
        (["info", SHIPPED, "--capacity-factor", "-1"], UsageError, "--capacity-factor: -1.0 is too small"),
        (["info", SHIPPED, "--capacity-factor", "nan"], UsageError, "not a finite number"),
        (["info", SHIPPED, "--capacity-factor", "1", "--rule", "megatrom"], PluginError, "did you mean 'megatron'?"),
        (["info", SHIPPED, "--capacity-factor", "1", "--drop", "prob"], UsageError, "--drop: unknown choice 'prob'; did you mean 'probs'?"),
        (["info", SHIPPED, "--experts", "63"], UsageError, "--experts 63 is too small"),
        (["info", SHIPPED, "--top-k", "4"], UsageError, "--top-k 4 contradicts"),
        (["info", SHIPPED, "--task", "law"], TraceError, "not several tasks"),
        (["synth", "powerlaw", "-o", "x.npz", "--experts", "4", "--top-k", "1"], PluginError, "did you mean 'power_law'?"),
        (["synth", "uniform", "-o", "x.npz", "--experts", "4", "--top-k", "5"], UsageError, "--top-k: top_k (5) is larger"),
        (["synth", "uniform", "-o", "x.csv", "--experts", "4", "--top-k", "1"], UsageError, "name the file x.npz"),
        (["synth", "power_law", "beta=1", "-o", "x.npz", "--experts", "4", "--top-k", "1"], UsageError, "known: alpha, redraw"),
        (["synth", "power_law", "alpha", "-o", "x.npz", "--experts", "4", "--top-k", "1"], UsageError, "not a key=value pair"),
        (["synth", "router", "preset=null", "-o", "x.npz", "--experts", "4", "--top-k", "1"], UsageError, "offsets must be given"),
    ],
)  # fmt: skip
def test_wrong_words_are_refused(words, error, said):
    with pytest.raises(error) as caught:
        trace(*words)
    assert said in str(caught.value)
    assert caught.value.exit_code == 2


def test_a_rule_that_needs_weights_refuses_a_trace_without(tmp_path):
    path = str(tmp_path / "plain.npz")
    np.savez(path, ids=np.array([[[0, 1]], [[1, 2]]]))
    with pytest.raises(FidelityError, match="gate weight"):
        trace("info", path, "--capacity-factor", "1", "--drop", "probs")
    assert info(path, "--capacity-factor", "1", "--drop", "position")["layers"][0]["routes"] == 4
