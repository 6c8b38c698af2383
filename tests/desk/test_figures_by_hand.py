"""What figures and sentences say of tables so small that anyone can add them up."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from example_result import example

from moesim.desk.report.figures import load, network, style, time
from moesim.desk.report.figures.timeline import MOST_GPUS, pick_gpus
from moesim.desk.words import change, imbalance, waiting_share
from moesim.facts.record import Result, Table, Value


@pytest.fixture(scope="module")
def result() -> Result:
    return example()


def with_columns(result: Result, facts: dict[str, Any] | None = None, **tables: dict[str, Any]) -> Result:
    made = {name: Table(columns={key: np.asarray(column) for key, column in columns.items()}) for name, columns in tables.items()}
    return dataclasses.replace(result, tables={**result.tables, **made}, facts={**result.facts, **(facts or {})})


def four_gpus(result: Result, **tables: dict[str, Any]) -> Result:
    """Return a run on two nodes of two GPUs."""
    computing = ("attention_s", "dense_s", "gate_s", "shared_s", "expert_s")
    parts = (*computing, "dispatch_transfer_s", "combine_transfer_s", "gradient_exposed_s", "idle_s")
    gpus = {"gpu": np.arange(4), "node": [0, 0, 1, 1], "waiting_s": [0.2, 0.4, 0.1, 0.3]} | {name: np.full(4, 0.1) for name in parts}
    return with_columns(result, {"gpus": 4, "nodes": 2}, gpus=gpus, **tables)


def test_who_sends_most_counts_dispatch_and_combine(result: Result) -> None:
    # By dispatch alone GPU 0 sends most (10 kB to GPU 1), by combine alone GPU 2 (9 kB to 3); with both GPU 1 sends 8 + 7 kB to GPU 2.
    # What GPU 3 keeps (99 kB) is not sent.
    sent = {
        "source": [0, 1, 2, 0, 3],
        "destination": [1, 2, 3, 1, 3],
        "dispatch_bytes": [10e3, 8e3, 0.0, 0.0, 99e3],
        "combine_bytes": [0.0, 7e3, 9e3, 2e3, 0.0],
        "copies": [1, 1, 1, 1, 1],
    }
    with style.paper():
        drawing = network.traffic(four_gpus(result, traffic=sent))
    assert drawing is not None
    # Two rows of one pair add up: 10 + 2, 15 and 9 kB. Only the 15 leave their node: 15 of 36.
    assert "GPU 1 sends most to GPU 2: 15.0 kB a step." in drawing.caption
    assert "42 % of the bytes leave their node." in drawing.caption
    assert drawing.scale == ("0 B", "15.0 kB")


def test_rows_are_compared_with_the_mean_gpu_of_the_same_layer(result: Result) -> None:
    # Layer 0 has 40 rows, layer 1 400: GPU 3 has 25 of a mean of 10, GPU 1 130 of a mean of 100. Two steps of layer 0 add up.
    ranks = {
        "step": [0] * 4 + [1] * 4 + [0] * 4,
        "moe_layer": [0] * 8 + [1] * 4,
        "gpu": [0, 1, 2, 3] * 3,
        "rows": [5, 5, 0, 10, 0, 5, 0, 15, 100, 130, 80, 90],
        "padding": [0] * 12,
    }
    layers = {"moe_layer": [0, 0, 1], "rank_max": [10, 15, 130], "rank_mean": [5.0, 5.0, 100.0]}
    with style.paper():
        drawing = load.ranks(four_gpus(result, ranks=ranks, layers=layers))
    assert drawing is not None
    assert "Boxed: GPU 3 computes 2.50 times the mean in MoE layer 0" in drawing.caption
    # Above: the mean over steps of 10 / 5 and 15 / 5 in layer 0, and 1.3 in layer 1.
    assert "max over mean above, from 1.30 to 2.50" in drawing.alt
    assert drawing.scale == ("0× the mean GPU", "2.5×")


def test_the_drop_rate_of_a_run_weighs_layers_by_their_routes(result: Result) -> None:
    # Layer 0 drops 10 of 100, layer 1 90 of 300 (in two steps): 100 of 400 overall, not the mean of 10 % and 30 %.
    layers = {"moe_layer": [0, 1, 1], "dropped": [10, 60, 30], "routes": [100, 100, 200]}
    with style.paper():
        drawing = load.drops(four_gpus(result, layers=layers))
    assert drawing is not None
    assert "25 % overall, most in MoE layer 1 (30 %)." in drawing.caption
    assert "from 10 to 30 per cent" in drawing.alt


def test_the_gpus_that_wait_most_and_least_are_named(result: Result) -> None:
    with style.paper():
        drawing = time.phases(four_gpus(result))
    assert drawing is not None
    assert "GPU 1 waits longest (400 ms a step), GPU 2 least (100 ms)" in drawing.caption


def test_the_last_to_arrive_are_shown_before_those_that_others_waited_for() -> None:
    # 100 GPUs. Everybody waits for GPU 50; but 3, 13 and 77 arrived last at what is drawn. An even spread alone holds none of the four.
    gpus = np.arange(100)
    table = Table(columns={"gpu": gpus, "waited_for": np.where(gpus == 50, -1, 50), "waiting_s": np.where(gpus == 50, 0.0, 1.0)})
    shown = pick_gpus(table, [77, 3, 13, 3])
    assert {3, 13, 50, 77} <= set(shown)
    assert len(shown) == MOST_GPUS
    # More of them than half the rows: the lowest numbers take the half, and the spread goes on to the last GPU.
    many = pick_gpus(table, range(20, 60))
    assert [gpu for gpu in many if 20 <= gpu < 60][: MOST_GPUS // 2] == list(range(20, 20 + MOST_GPUS // 2))
    assert many[-1] == 99


@pytest.mark.parametrize(
    ("whole", "part", "written"),
    [(10.0, 8.0, "−20 %"), (8.0, 10.0, "+25 %"), (10.0, 10.0, "±0 %"), (1000.0, 1001.0, "±0 %"), (1000.0, 999.0, "±0 %"), (0.0, 1.0, "")],
)
def test_changes_are_relative_to_the_whole(whole: float, part: float, written: str) -> None:
    assert change(whole, part) == written


def with_metrics(result: Result, **values: float | None) -> Result:
    made = {name: Value(value=value, unit="", low=None, high=None, n=1, basis="exact") for name, value in values.items()}
    return dataclasses.replace(result, metrics=made)


def test_the_share_of_waiting_is_what_the_metric_says_or_the_ratio(result: Result) -> None:
    assert waiting_share(with_metrics(result, waiting_time=2.0, step_time=8.0)) == 0.25
    assert waiting_share(with_metrics(result, waiting_time=2.0, step_time=8.0, waiting_share=0.5)) == 0.5
    for unknown in ({"waiting_time": 2.0}, {"step_time": 8.0}, {"waiting_time": 2.0, "step_time": 0.0}, {"waiting_time": None}):
        assert waiting_share(with_metrics(result, **unknown)) is None


def test_one_imbalance_has_several_names(result: Result) -> None:
    # A GPU with 1.5 times the mean: overload factor 1.5, imbalance ratio 0.5. What was not measured is left out.
    found = imbalance(with_metrics(result, rank_max_over_mean=1.5, expert_max_over_mean=4.0, maxvio=3.0))
    assert [(of, formula, value) for of, formula, _, value in found] == [
        ("GPUs", "max ÷ mean", "1.50"),
        ("GPUs", "(max − mean) ÷ mean", "0.500"),
        ("experts", "max ÷ mean", "4.00"),
        ("experts", "(max − mean) ÷ mean", "3.00"),
    ]
