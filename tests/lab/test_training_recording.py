"""Trainings are recorded: the same for the same seed, in files that every command replays, and kept when they break off."""

from __future__ import annotations

import json

import numpy as np
import pytest
from click.testing import CliRunner

from moesim.base.errors import MeasurementError, UsageError
from moesim.base.loads import maxvio
from moesim.cli.measure import command as measure
from moesim.desk.trace_files import read_trace
from moesim.lab.training_strategy import strategy
from moesim.lab.training_text import Batches, Domain, domains_of_files, standard_domains

torch = pytest.importorskip("torch", reason="measuring needs PyTorch: pip install 'moesim[measure]'")

from moesim.desk.training_record import read_recording  # noqa: E402
from moesim.lab.training import Plan, train  # noqa: E402
from moesim.lab.training_files import prepare, stem_of, write  # noqa: E402
from moesim.lab.training_model import Size  # noqa: E402

TINY = Size(layers=2, hidden=8, heads=2, width=8, experts=4, length=8)


def plan(words="none", **changes):
    given = {"size": TINY, "steps": 6, "sequences": 4, "sources": 2, "look": 2, "sample": 3, "sampled": 5, "warmup": 2}
    return Plan(strategy=strategy(words), **(given | changes))


def text(seed=0):
    rng = np.random.default_rng(seed)
    return tuple(Domain(name, rng.integers(low, low + 20, size=20_000).astype(np.uint8)) for name, low in (("low", 40), ("high", 90)))


def test_the_same_seed_gives_the_same_training():
    words = "aux=0.01+noise=0.5+capacity=1"
    first, again, other = (train(plan(words, seed=seed), text()).arrays for seed in (3, 3, 4))
    assert set(first) == set(again)
    assert all(np.array_equal(first[name], again[name], equal_nan=True) for name in first)
    assert not np.array_equal(first["counts"], other["counts"])


def test_what_is_recorded_agrees_with_itself():
    arrays = train(plan("bias=0.01+capacity=1", steps=7, every=2), text()).arrays
    assert arrays["counts"].shape == (4, 2, 2, 4)
    assert arrays["recorded_at"].tolist() == [0, 2, 4, 6]
    assert (arrays["counts"].sum(axis=-1) == 16 * 2).all()  # tokens of a source times k
    np.testing.assert_allclose(arrays["maxvio"][::2], maxvio(arrays["counts"].sum(axis=2)), rtol=1e-6)
    # Megatron's limit at factor 1: ceil(16 * 2 / 4) = 8 of each source and expert.
    over = np.maximum(arrays["counts"].astype(int) - 8, 0).sum(axis=(2, 3))
    assert np.array_equal(over, arrays["dropped"][::2])
    assert arrays["looked_at"].tolist() == [0, 2, 4, 6]
    assert np.array_equal(arrays["domain_routes"].sum(axis=2), arrays["counts"].sum(axis=2))
    assert (arrays["gate_bias"][0] == 0).all()
    np.testing.assert_allclose(np.abs(arrays["gate_bias"][1]) % 0.01, 0, atol=1e-6)
    assert arrays["logit_sample"].shape == (3, 2, 5, 4)


def test_training_trains():
    losses = train(plan(steps=60, rate=1e-2), text()).arrays["lm_loss"]
    assert losses[-10:].mean() < losses[0] - 1.0  # 40 of 256 bytes occur: ln 256 = 5.5 to about ln 20 = 3


def test_a_recording_is_a_trace(tmp_path):
    recording = train(plan(every=2), text())
    found = write(tmp_path, recording, text(), licence="Apache-2.0", environment={"torch": "x"})
    trace = read_trace(tmp_path / "training-none-seed-0.npz")
    assert np.array_equal(trace.counts, recording.arrays["counts"])
    assert (trace.top_k, trace.experts, trace.named_ranks) == (2, 4, 2)
    assert read_recording(tmp_path / "training-none-seed-0.json") == json.loads(json.dumps(found))
    first = (tmp_path / found["file"]["name"]).read_bytes()
    write(tmp_path, train(plan(every=2), text()), text(), licence="Apache-2.0", environment={})
    assert (tmp_path / found["file"]["name"]).read_bytes() == first


def test_an_interrupted_training_keeps_what_it_has():
    def stop(done, loss):
        if done == 3:
            raise KeyboardInterrupt

    recording = train(plan(), text(), progress=stop)
    assert (recording.finished, recording.interrupted, recording.why) == (3, True, "interrupted")
    assert len(recording.arrays["maxvio"]) == 3


def test_a_training_that_explodes_says_so():
    recording = train(plan(rate=1e30, steps=50, warmup=0), text())
    assert "not finite" in recording.why
    assert 0 < recording.finished < 50


def test_a_training_without_a_finished_step_leaves_nothing(monkeypatch):
    def stop(self, step):
        raise KeyboardInterrupt

    monkeypatch.setattr(Batches, "at", stop)
    with pytest.raises(MeasurementError, match="no step of none was finished: interrupted"):
        train(plan(), text())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("axu=0.1", "did you mean 'aux'"),
        ("aux", "unknown word 'aux'"),
        ("aux=x", "is not a number"),
        ("aux=-1", "out of range"),
        ("aux=nan", "out of range"),
        ("aux=1+aux=2", "there twice"),
        ("aux=1+scope=token", "none of micro_batch, sequence, batch"),
        ("none+aux=1", "unknown word 'none'"),
    ],
)
def test_strategies_that_make_no_sense_are_refused(words, message):
    with pytest.raises(UsageError, match=message):
        strategy(words)


@pytest.mark.parametrize(
    "words", ["none", "aux=0.01", "aux=0.01+scope=sequence+z=0.001", "bias=0.001", "bias=0.1+capacity=1.25+scoring=softmax"]
)
def test_names_of_strategies_are_read_back(words):
    assert strategy(words).name == words
    assert strategy(strategy(words).name) == strategy(words)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sequences": 3}, "3 sequences cannot be shared equally by 2"),
        ({"sampled": 99}, "99 tokens cannot be sampled from 32"),
        ({"size": Size(experts=2, top_k=3)}, "top-3 of 2 experts"),
        ({"size": Size(hidden=9)}, "hidden size of 9"),
    ],
)
def test_plans_that_make_no_sense_are_refused(changes, message):
    with pytest.raises(UsageError, match=message):
        plan(**changes)


def test_standard_text_is_of_four_kinds_and_batches_are_drawn_from_it():
    domains = standard_domains()
    assert [item.name for item in domains] == ["prose", "code", "tables", "names"]
    assert all(100_000 < len(item.content) <= 1_000_000 for item in domains)
    batches = Batches(domains=domains, seed=1, sequences=64, length=32)
    rows, domain = batches.at(7)
    assert rows.shape == (64, 33)
    assert set(domain.tolist()) == {0, 1, 2, 3}
    for row, which in zip(rows, domain, strict=True):
        assert row.tobytes() in domains[which].content.tobytes()
    assert np.array_equal(rows, batches.at(7)[0])
    assert not np.array_equal(rows, batches.at(8)[0])


def test_text_of_ones_own(tmp_path):
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "2.txt").write_bytes(b"x" * 9000)
    (tmp_path / "b" / "1.txt").write_bytes(b"y" * 9000)
    (tmp_path / "a.txt").write_bytes(b"z" * 20_000)
    first, second = domains_of_files({"one": tmp_path / "a.txt", "two": tmp_path / "b"})
    assert (first.name, len(first.content)) == ("one", 20_000)
    assert second.content.tobytes() == b"y" * 9000 + b"x" * 9000
    with pytest.raises(UsageError, match="no such file"):
        domains_of_files({"gone": tmp_path / "none"})
    (tmp_path / "c").write_bytes(b"short")
    with pytest.raises(UsageError, match="has 5 bytes"):
        domains_of_files({"short": tmp_path / "c"})


def test_files_of_others_are_not_overwritten(tmp_path):
    (tmp_path / f"{stem_of(plan())}.npz").write_bytes(b"mine")
    with pytest.raises(UsageError, match="would be overwritten"):
        prepare(tmp_path, [plan()])
    with pytest.raises(UsageError, match="2 times"):
        prepare(tmp_path / "new", [plan(), plan()])


def run(*words):
    return CliRunner().invoke(measure, ["training", *map(str, words)], catch_exceptions=False)


def test_the_command_writes_what_show_prints(tmp_path):
    (tmp_path / "t").write_bytes(bytes(range(40, 120)) * 200)
    common = (
        "--text",
        f"t={tmp_path / 't'}",
        "--sequences",
        4,
        "--hidden",
        8,
        "--experts",
        4,
        "--layers",
        2,
        "--quiet",
        "-o",
        tmp_path / "o",
    )
    done = run("--strategy", "none", "--strategy", "aux=0.1", "--seeds", "0,2", "--steps", 3, *common)
    assert done.exit_code == 0
    assert sorted(file.name for file in (tmp_path / "o").iterdir()) == sorted(
        f"training-{name}-seed-{seed}.{end}" for name in ("none", "aux-0.1") for seed in (0, 2) for end in ("json", "npz")
    )
    lines = done.stdout.splitlines()
    assert [line.split()[:2] for line in lines[1:]] == [["none", "0"], ["none", "2"], ["aux=0.1", "0"], ["aux=0.1", "2"]]
    shown = CliRunner().invoke(measure, ["show", str(tmp_path / "o" / "training-aux-0.1-seed-2.json")], catch_exceptions=False)
    assert shown.stdout.splitlines()[1].split() == lines[4].split()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--text", "x"), "is not NAME=PATH"),
        (("--hidden", 9), "is odd"),
        (("-o", " "), "names no folder"),
        (("--sequences", 3), "3 sequences cannot be shared"),
        (("--seeds", "a"), "is not a number"),
    ],
)
def test_options_that_make_no_sense_are_refused(words, message):
    with pytest.raises(UsageError, match=message):
        run("--steps", 1, *words)
