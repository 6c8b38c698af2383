"""Each metric on the tables of conftest.py, with its value worked out by hand."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from moesim.base.registry import kinds
from moesim.facts.contracts import Record
from moesim.facts.record import Table
from moesim.measure.collect import declaration_problem, metrics, sample

SQRT_HALF = np.sqrt(0.5)
# Expected samples of steps 3 and 4.
EXPECTED: dict[str, tuple[float, float]] = {
    # Columns of the table of steps, as they are.
    "step_time": (2.0, 4.0),
    "dispatch_transfer_time": (0.1, 0.3),
    "combine_transfer_time": (0.2, 0.4),
    "waiting_time": (0.5, 2.0),
    "expert_time": (0.6, 0.7),
    "expert_time_slowest": (0.8, 1.2),
    "attention_time": (0.25, 0.25),
    "gradient_time": (0.4, math.nan),  # the second step exchanges no gradients
    "gradient_time_exposed": (0.15, math.nan),
    "exposed_communication": (0.9, 1.1),
    # 1.2 s and 2.7 s in collectives (gradients and waiting included), 0.3 s and 1.6 s hidden; kernels lost 0.06 s and 0.25 s to that.
    "overlap_scheduled": (0.3 / 1.2, 1.6 / 2.7),
    "overlap_realised": (0.24 / 1.2, 1.35 / 2.7),
    "idle_experts": (0.5, 2.5),
    "stagnant_experts": (1.0, 3.0),
    "load_cv": (0.375, 0.75),
    "load_entropy": (0.875, 0.375),
    "load_correlation": (math.nan, 0.125),
    "source_information": (0.25, 0.5),
    "domain_information": (0.75, 0.25),  # a layer of which nothing is known does not count
    # 100 tokens in 2 s and in 4 s; waiting 0.5 of 2 s and 2 of 4 s.
    "tokens_per_second": (50.0, 25.0),
    "waiting_share": (0.25, 0.5),
    "step_time_if_balanced": (1.5, 2.5),
    "step_time_if_no_communication": (1.0, 2.0),
    # Step 3: 40 of 400 routes, 5 of 200 tokens, 360 kept in 480 rows, 40 padding rows beside 360. Step 4: nothing, 400 in 800.
    "drop_rate": (0.1, 0.0),
    "fully_dropped_tokens": (0.025, 0.0),
    "capacity_utilisation": (0.75, 0.5),
    "padding_waste": (0.1, 0.0),
    # Layers of step 3: experts 100/50 and 150/50, ranks 120/100 and 150/100; of step 4: 80/40, 100/50, 1, 1.
    "rank_max_over_mean": (1.35, 1.0),
    "expert_max_over_mean": (2.5, 2.0),
    "maxvio": (1.5, 1.0),
    # Rows of step 3: (120, 80), (50, 150): mean 100 of 120 and of 150. Step 4: (100, 100), (300, 100): 1 and 200 of 300.
    "balancedness": ((100 / 120 + 100 / 150) / 2, (1 + 200 / 300) / 2),
    "balancedness_vllm": (200 / 270, 300 / 400),
    # Deviations over n: 20/100 and 50/100; 0 and 100/200.
    "rank_cv": (0.35, 0.25),
    # Experts over both steps: (6, 2, 0) has mean 8/3 and variance (100 + 4 + 64) / 27; (4, 4, 4) is balanced. One dead of six.
    "expert_cv": (np.sqrt(168 / 27) / (8 / 3) / 2,) * 2,
    "normalised_entropy": ((1 - (0.75 * np.log(0.75) + 0.25 * np.log(0.25)) / np.log(3)) / 2,) * 2,
    "dead_experts": (0.5, 0.5),
    # (6, 2, 0): 6 / (8/3) - 1 = 5/4, and Gini (2 (0 x 1 + 2 x 2 + 6 x 3) / (3 x 8) - 4/3) = 1/2; the balanced layer 0 and 0.
    "maxvio_global": (0.625, 0.625),
    "expert_gini": (0.25, 0.25),
    "dispatch_bytes": (3000.0, 1200.0),
    "combine_bytes": (3300.0, 1400.0),
    "cross_node_bytes": (700.0, 120.0),
    # Of 3000 and 1200 B of dispatch 250 and 50 leave a node; of 3300 and 1400 B of combine the rest of 700 and 120.
    "dispatch_bytes_across_nodes": (250.0, 50.0),
    "dispatch_bytes_within_nodes": (2750.0, 1150.0),
    "combine_bytes_across_nodes": (450.0, 70.0),
    "combine_bytes_within_nodes": (2850.0, 1330.0),
    # 1500 B in 0.1 s, 600 B in 0.3 s; 1800 B in 0.2 s, 800 B in 0.4 s.
    "dispatch_bandwidth": (15000.0, 2000.0),
    "combine_bandwidth": (9000.0, 2000.0),
    # 200 and 100 copies of 200 (token, layer) pairs.
    "copies_per_token": (1.0, 0.5),
    # 240 nodes of 200 (token, layer) pairs; unknown in one layer of the other step.
    "nodes_per_token": (1.2, np.nan),
    # Step 3: (0.5 + 0.25) s over 0.5 s of ports and 0.6 s of links. Step 4 sends nothing: unknown.
    "all_to_all_contention": (1.5, np.nan),
    "fabric_bound_ratio": (1.25, np.nan),
    "busiest_link_utilisation": (0.3, 0.3),
    "peak_memory": (9e9, 9e9),
    # Means over the two layers.
    # One rebalance, before the second of the measured steps, which takes longer than the first: it never pays.
    "rebalance_stall": (0.0, 0.5),
    "net_step_time": (2.0, 4.5),
    "migrated_bytes": (0.0, 60.0),
    "rebalance_break_even": (math.nan, math.nan),
    "aux_loss": (2.0, 1.0),
    "aux_loss_sequence": (2.5, 1.5),
    "aux_loss_batch": (1.5, 1.0),
    "aux_loss_device": (1.25, 1.0),
    "router_z_loss": (6.0, 2.0),
    "unequal_ranks_time": (0.125, 0.5),
    "pipeline_bubble": (0.25, np.nan),  # 0.4 s of 1.6 s; no pipeline in the second step
    "recompute_time": (0.3, np.nan),
    "optimiser_time": (0.05, np.nan),
    "tensor_parallel_time": (np.nan, np.nan),
}


@pytest.mark.parametrize("name", EXPECTED)
def test_metric_by_hand(name: str, record: Record) -> None:
    # The two balancednesses add 1e-5 to loads of about 100, hence 1e-6.
    np.testing.assert_allclose(sample(name, metrics()[name], record), EXPECTED[name], rtol=1e-6)


def test_a_rebalance_breaks_even_after_its_price_over_its_gain(record: Record) -> None:
    # Steps 3 and 4 take 2 s; the weights are on their way in step 5 (3 s, 1 s longer); from step 6 on a step takes 1.5 s: 0.5 s gained.
    # With a stall of 0.25 s the price is 1.25 s: 2.5 steps.
    steps = Table(columns={"step": np.arange(3, 8), "step_time_s": np.array([2.0, 2.0, 3.0, 1.5, 1.5])})
    moves = Table(columns={"step": np.array([5]), "in_place_step": np.array([6]), "stall_s": np.array([0.25])})
    world = dataclasses.replace(record, tables={"steps": steps, "rebalances": moves})
    assert sample("rebalance_break_even", metrics()["rebalance_break_even"], world).tolist() == [2.5] * 5
    # Not in place by the end of the run: nothing can be told.
    late = Table(columns={"step": np.array([5]), "in_place_step": np.array([-1]), "stall_s": np.array([0.25])})
    world = dataclasses.replace(record, tables={"steps": steps, "rebalances": late})
    assert np.isnan(sample("rebalance_break_even", metrics()["rebalance_break_even"], world)).all()


def test_every_metric_of_the_package_is_tested_by_hand() -> None:
    ours = {kind for kind, cls in kinds("metric").items() if cls.__module__.startswith("moesim.")}
    assert ours == set(EXPECTED)


@pytest.mark.parametrize("name", EXPECTED)
def test_metric_says_what_it_is(name: str) -> None:
    metric = metrics()[name]
    assert declaration_problem(metric) is None
    definition = (type(metric).__doc__ or "").splitlines()[0]
    assert len(definition) > 20
    assert definition.endswith(".")


def _with(record: Record, table: str, **columns: object) -> Record:
    old = record.tables[table]
    new = Table(columns=dict(old.columns) | {name: np.asarray(column) for name, column in columns.items()})
    return dataclasses.replace(record, tables=dict(record.tables) | {table: new})


def test_unknown_tokens_and_missing_capacity_are_not_zero(record: Record) -> None:
    # System: the first layer of step 3 knows no single tokens and has no capacity. Expectation: unknown there, known in step 4.
    known = metrics()
    changed = _with(record, "layers", fully_dropped=[-1, 4, 0, 0], capacity_rows=[-1, 240, 400, 400])
    np.testing.assert_array_equal(sample("f", known["fully_dropped_tokens"], changed), [np.nan, 0.0])
    np.testing.assert_array_equal(sample("c", known["capacity_utilisation"], changed), [np.nan, 0.5])


def test_losses_of_a_router_without_scores_are_unknown(record: Record) -> None:
    # System: a run whose layers have no column of losses, and one whose second layer of step 3 has no scores.
    columns = {name: column for name, column in record.tables["layers"].columns.items() if "loss" not in name}
    bare = dataclasses.replace(record, tables=dict(record.tables) | {"layers": Table(columns=columns)})
    for name in ("aux_loss", "aux_loss_sequence", "aux_loss_batch", "aux_loss_device", "router_z_loss"):
        np.testing.assert_array_equal(sample(name, metrics()[name], bare), [np.nan, np.nan])
        changed = _with(record, "layers", **{name: [1.0, np.nan, 3.0, 5.0]})
        np.testing.assert_array_equal(sample(name, metrics()[name], changed), [np.nan, 4.0])


def test_a_layer_without_load_counts_as_balanced(record: Record) -> None:
    # A layer that no route reaches: max / mean would be 0 / 0.
    changed = _with(record, "layers", expert_max=[0.0, 150.0, 80.0, 100.0], expert_mean=[0.0, 50.0, 40.0, 50.0])
    assert sample("m", metrics()["maxvio"], changed)[0] == pytest.approx((0.0 + 2.0) / 2)


# How each unit answers to seconds times c and bytes times b.
EXPONENTS = {"s": (1, 0), "B": (0, 1), "tokens/s": (-1, 0), "": (0, 0), "bit": (0, 0), "B/s": (-1, 1)}
SECONDS, SIZE = 3.0, 5.0


def _scaled(record: Record) -> Record:
    tables = {}
    for name, table in record.tables.items():
        columns = {}
        for column, values in table.columns.items():
            factor = 1.0
            if column.endswith("_s"):
                factor = SECONDS
            elif column == "bytes" or column.endswith("_bytes"):
                factor = SIZE
            elif column.endswith("_Bps"):
                factor = SIZE / SECONDS
            columns[column] = values if factor == 1.0 else values * factor
        tables[name] = Table(columns=columns)
    return dataclasses.replace(record, tables=tables, bounds={name: bound * SECONDS for name, bound in record.bounds.items()})


@pytest.mark.parametrize("name", EXPECTED)
def test_dimension_of_each_metric_is_that_of_its_unit(name: str, record: Record) -> None:
    # System: the same run in which every time is 3 times and every size 5 times as large. Expectation: a metric in s grows 3 times,
    # one in B 5 times, a pure number not at all; a metric that mixes dimensions would do something else.
    metric = metrics()[name]
    seconds, size = EXPONENTS[metric.unit]
    np.testing.assert_allclose(
        sample(name, metric, _scaled(record)), sample(name, metric, record) * SECONDS**seconds * SIZE**size, rtol=1e-12
    )
