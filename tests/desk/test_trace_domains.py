"""Which kind of text tokens are from, in trace files: read, replayed, written back, and refused where it cannot be."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from moesim.base.errors import TraceError
from moesim.base.registry import plugin
from moesim.desk.trace_files import read_trace, write_trace
from moesim.models.bare_setting import bare_setting
from moesim.models.source.traces import trace_of
from moesim.models.source.training import Training

RECORDING = Path(__file__).resolve().parents[1] / "data" / "trainings" / "training-none-seed-0.npz"


def setting(**shape):
    return bare_setting(
        **({"gpus": 2, "experts": 4, "top_k": 1, "layers": 1, "tokens_per_gpu": 4, "seed": 0} | shape), read_trace=read_trace
    )


def replayed(path, steps, deal="recorded", **shape):
    draw = plugin("source", "recorded")(trace=str(path), deal=deal).begin(setting(**shape))
    return [draw(step).layers for step in range(steps)]


def counts(**changes):
    """Three steps of one layer, two sources and four experts; two domains, noted in steps 0 and 2."""
    found = np.array([[[[2, 1, 1, 0], [0, 0, 2, 2]]], [[[4, 0, 0, 0], [1, 1, 1, 1]]], [[[0, 4, 0, 0], [0, 0, 0, 4]]]])
    by_domain = np.array([[[[2, 1, 1, 0], [0, 0, 2, 2]]], [[[0, 2, 0, 2], [0, 2, 0, 2]]]])
    plain = {
        "counts": found, "axes": np.array(["step", "layer", "source", "expert"]), "top_k": np.array(1), "domain_routes": by_domain,
        "looked_at": np.array([0, 50]), "recorded_at": np.array([0, 25, 50]),
    }  # fmt: skip
    return plain | changes


def saved(path, arrays):
    np.savez(path, **{name: array for name, array in arrays.items() if array is not None})
    return path


def test_domains_of_tokens_are_replayed_and_written_back(tmp_path):
    ids = np.arange(8).reshape(8, 1, 1) % 4
    path = saved(tmp_path / "a.npz", {"ids": ids, "domain": np.array([0, 0, 2, 2, 0, 0, 2, 2])})
    assert replayed(path, 1)[0][0].routes_of_domains().tolist() == [[2, 2, 0, 0], [0, 0, 0, 0], [0, 0, 2, 2]]
    assert replayed(path, 1, deal="in_order")[0][0].domains.tolist() == [0, 0, 2, 2, 0, 0, 2, 2]
    write_trace(read_trace(path), tmp_path / "b.npz")
    again = read_trace(tmp_path / "b.npz")
    assert (again.digest, again.domain.tolist()) == (read_trace(path).digest, [0, 0, 2, 2, 0, 0, 2, 2])
    without = saved(tmp_path / "c.npz", {"ids": ids})
    assert read_trace(without).digest != again.digest
    assert replayed(without, 1)[0][0].routes_of_domains() is None


def test_domains_of_counts_are_known_in_the_steps_in_which_they_were_noted(tmp_path):
    path = saved(tmp_path / "a.npz", counts())
    found = [layers[0].routes_of_domains() for layers in replayed(path, 4)]
    assert found[1] is None
    assert found[0].tolist() == found[3].tolist() == [[2, 1, 1, 0], [0, 0, 2, 2]]  # read again from its start
    write_trace(read_trace(path), tmp_path / "b.npz")
    assert np.array_equal(read_trace(tmp_path / "b.npz").domain_counts, read_trace(path).domain_counts)
    assert read_trace(tmp_path / "b.npz").digest == read_trace(path).digest


def test_a_recorded_training_says_what_its_experts_specialise_in():
    trace = read_trace(RECORDING)
    known = (trace.domain_counts >= 0).all(axis=(1, 2, 3))
    assert np.flatnonzero(known).tolist() == list(range(0, 300, 25))  # every 4th step was recorded, and every 25th looked at: each 100th
    assert np.array_equal(trace.domain_counts[known].sum(axis=2), trace.counts[known].sum(axis=2))


def test_routing_of_a_training_keeps_its_domains_in_a_trace(tmp_path):
    where = setting(experts=8, top_k=2, tokens_per_gpu=64)
    draw = Training(sequence_length=16, domains=3).begin(where)
    write_trace(trace_of(((step, draw(step)) for step in (0, 1)), name="x", top_k=2), tmp_path / "x.npz")
    again = replayed(tmp_path / "x.npz", 2, experts=8, top_k=2, tokens_per_gpu=64)
    assert np.array_equal(again[1][0].domains, draw(1).layers[0].domains)
    assert np.array_equal(again[1][0].routes_of_domains(), draw(1).layers[0].routes_of_domains())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"domain_routes": np.ones((2, 1, 2, 5), int)}, r"domain_routes: has shape \(2, 1, 2, 5\), expected \(steps, 1, domains, 4\)"),
        ({"domain_routes": np.ones((2, 1, 2, 4))}, "domain_routes: holds float64"),
        ({"looked_at": None}, "looked_at: missing"),
        ({"recorded_at": np.array([0, 1])}, "recorded_at: has 2 entries, but there are 3 steps"),
        ({"domain_routes": np.ones((2, 1, 2, 4), int)}, "step 0, layer 0, expert 1: domains add up to 2 routes, but counts has 1"),
        ({"domain_counts": np.ones((2, 1, 2, 4), int)}, "domain_counts: has 2 steps, but counts has 3"),
    ],
)
def test_domains_that_do_not_fit_the_counts_are_refused(tmp_path, changes, message):
    with pytest.raises(TraceError, match=message):
        read_trace(saved(tmp_path / "a.npz", counts(**changes)))


@pytest.mark.parametrize(
    ("domain", "message"),
    [
        (np.zeros(3, int), "has 3 entries, but ids has 4 tokens"),
        (np.array([0, 0, -1, 0]), "holds -1"),
        (np.array([0, 0, 10_000, 0]), "token 2: 10000 is too large"),
    ],
)
def test_domains_that_do_not_fit_the_tokens_are_refused(tmp_path, domain, message):
    with pytest.raises(TraceError, match=message):
        read_trace(saved(tmp_path / "a.npz", {"ids": np.zeros((4, 1, 1), int), "domain": domain}))
