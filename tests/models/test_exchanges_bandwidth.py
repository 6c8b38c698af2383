"""Bandwidths as libraries define them, against the figures that they published beside times."""

import csv
from math import comb
from pathlib import Path

import numpy as np
import pytest
from assignments import assign, setting

from moesim.base.errors import PluginError, UsageError
from moesim.facts.traffic import Exchange, Traffic
from moesim.models.exchange.bandwidth import (
    deepep_bandwidth,
    low_latency_bandwidth,
    mori_bandwidth,
    nccl_bandwidths,
    pplx_bandwidth,
)
from moesim.models.exchange.direct import Direct
from moesim.models.exchange.low_latency import LowLatency

DATA = Path(__file__).parents[1] / "data" / "library_bandwidths.csv"


def published(library):
    with DATA.open(encoding="utf-8") as lines:
        rows = list(csv.DictReader(line for line in lines if not line.startswith("#")))
    found = [row for row in rows if row["library"] == library]
    assert len(found) > 10
    return [{key: value if not value.replace(".", "").isdigit() else float(value) for key, value in row.items()} for row in found]


def test_low_latency_bandwidth_is_what_deepep_prints():
    for row in published("deepep_low_latency"):
        choices = row["tokens"] * row["top_k"]
        slack = 1e-5
        if row["source"].startswith("DeepEP"):
            # That benchmark masks ten choices before it counts, and its documentation rounds both figures to whole ones.
            choices -= 10
            slack = 0.5 / row["bandwidth_GBps"] + 0.5 / row["time_us"]
        seconds, header = row["time_us"] * 1e-6, row["op"] == "dispatch"
        ours = low_latency_bandwidth(choices, int(row["width"]), seconds, dtype=row["dtype"], header=header)
        assert ours / 1e9 == pytest.approx(row["bandwidth_GBps"], rel=slack)


def test_the_exchange_counts_what_the_benchmark_counts():
    # 128 tokens of eight choices of a rank in a real run weigh as much as in the benchmark's own arithmetic.
    width = 256
    slots = np.array([np.random.default_rng(token).permutation(16)[:8] for token in range(12)])
    assignment = assign(slots, [0, 12, 12, 12, 12], 4)
    exchange = LowLatency().begin(setting(8))(assignment, direction="forward")
    assert exchange.dispatch_counted[0] == low_latency_bandwidth(12 * 8, width, 1.0)
    assert exchange.combine_counted[0] == low_latency_bandwidth(12 * 8, width, 1.0, dtype="bf16", header=False)


def test_mori_bandwidth_is_what_its_tuner_printed():
    for row in published("mori"):
        ranks, experts, k = int(row["ranks"]), int(row["experts"]), int(row["top_k"])
        # A token reaches a rank unless all its choices are elsewhere; a rank receives as many as its own tokens send.
        reached = 1 - comb(experts - experts // ranks, k) / comb(experts, k)
        received = row["tokens"] * ranks * reached
        ours = mori_bandwidth(received, int(row["width"]), row["time_us"] * 1e-6, dtype=row["dtype"])
        assert ours / 1e9 == pytest.approx(row["bandwidth_GBps"], rel=0.01)


def test_nccl_bandwidths_by_hand():
    # 8 ranks, 1 GB, 10 ms: an all-reduce sends 2 * 7/8 of the buffer, the others 7/8.
    assert nccl_bandwidths("all_reduce", 1e9, 8, 0.01) == (1e11, 1.75e11)
    for collective in ("all_gather", "reduce_scatter", "all_to_all"):
        assert nccl_bandwidths(collective, 1e9, 8, 0.01) == (1e11, 0.875e11)
    assert nccl_bandwidths("all_gather", 1e9, 1, 0.01)[1] == 0.0
    with pytest.raises(UsageError, match="no bandwidth of 'all2all'; did you mean 'all_to_all'"):
        nccl_bandwidths("all2all", 1e9, 8, 0.01)


def test_deepep_and_pplx_by_hand():
    # 7168 elements: 7168 + 56 scales of 4 B in fp8, 14336 B in bf16.
    assert deepep_bandwidth(1000, 7168, 0.5, dtype="fp8") == 1000 * 7392 / 0.5
    assert deepep_bandwidth(1000, 7168, 0.5) == 1000 * 14336 / 0.5
    assert pplx_bandwidth(128, 8, 7168, 0.5) == 128 * 8 * 7392 / 0.5
    assert pplx_bandwidth(128, 8, 7168, 0.5, dtype="bf16") == 128 * 8 * 14336 / 0.5


def test_an_exchange_of_somebody_else_counts_what_it_sends():
    size = np.array([[0.0, 3.0], [5.0, 0.0]])
    stage = Traffic(bytes=size, copies=np.zeros((2, 2)))
    plain = Exchange(dispatch=(stage, stage), combine=(stage,))
    assert plain.counted("dispatch").tolist() == [6.0, 10.0]
    assert plain.counted("combine").tolist() == [3.0, 5.0]
    told = Exchange(dispatch=(stage,), combine=(stage,), dispatch_counted=np.array([1.0, 2.0]))
    assert told.counted("dispatch").tolist() == [1.0, 2.0]
    assert told.counted("combine").tolist() == [3.0, 5.0]
    assert not told.dispatch_counted.flags.writeable
    assert Direct().begin(setting(1))(assign([[0]], [0, 1, 1, 1, 1], 1), direction="forward").counted("combine").sum() == 512


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"order": "rotate"}, "order 'rotate'; did you mean 'rotated'"),
        ({"overhead": -1.0}, "cannot spend -1.0 s on a message"),
        ({"overhead": float("inf")}, "overhead must be finite"),
        ({"in_flight": -2}, "cannot have -2 messages on their way"),
        ({"port": 0.0}, "cannot send 0.0 B/s"),
        ({"port": float("nan")}, "cannot send nan B/s"),
        ({"dispatch_counted": np.array([-1.0])}, "dispatch_counted holds a number below 0"),
        ({"combine_counted": np.array([np.nan])}, "combine_counted holds a number below 0 or not finite"),
    ],
)
def test_an_exchange_out_of_range_is_refused(wrong, message):
    with pytest.raises(PluginError, match=message):
        Exchange(dispatch=(), combine=(), **wrong)
