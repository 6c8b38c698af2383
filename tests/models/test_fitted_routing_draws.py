"""The routings that measured tables name."""

import csv
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moesim.models.fitted import routing_draws
from moesim.models.fitted.routing_draws import (
    BY_RANK,
    BY_SIZE,
    distinct_tokens,
    even_rows,
    filled_tokens,
    hottest_rank,
    pareto_rows,
    power_law_rows,
    power_law_weights,
    rows_by_rank,
    seeded_uniforms,
    uniforms_of,
)

COUNTS = Path(__file__).parents[1] / "data" / "measured" / "moe_layer_skew_expert_counts.csv"


def published():
    with COUNTS.open(encoding="utf-8") as text:
        return list(csv.DictReader(line for line in text if not line.startswith("#")))


def test_even_rows_begin_on_expert_0():
    # One route of rank 0 of two: the first of two experts has it.
    assert even_rows(1, 4).tolist() == [1, 0, 0, 0]
    assert even_rows(7, 3).tolist() == [3, 2, 2]


def test_a_power_law_stays_in_its_range_and_is_the_inverse_distribution_function():
    # With exponent 2 on [1, 2]: F(x) = (1 - 1/x) / (1 - 1/2), so u = 1/2 gives 1/x = 3/4.
    assert power_law_weights(np.array([0.0, 0.5]), 2.0, 1.0, 2.0) == pytest.approx([1.0, 4 / 3])
    # With exponent 1 the logarithm is uniform.
    assert power_law_weights(np.array([0.5]), 1.0, 1.0, 9.0) == pytest.approx([3.0])


def test_the_seeded_uniforms_are_those_of_the_generator_that_made_the_tables():
    # The first numbers of torch.rand after torch.manual_seed(0), as every tutorial prints them.
    assert seeded_uniforms(3) == pytest.approx([0.4963, 0.7682, 0.0885], abs=5e-5)


@pytest.mark.parametrize("row", published(), ids=lambda row: "-".join(list(row.values())[2:5]))
def test_published_counts_are_met(row):
    wanted = np.array([int(part) for part in row["counts"].split()])
    tokens, ranks = int(row["global_num_tokens"]), int(row["moe_ep_size"])
    exponent = float(row["distribution"].rsplit("_", 1)[1])
    found = power_law_rows(seeded_uniforms(len(wanted))[None], exponent, tokens=tokens, top_k=int(row["topk"]), ranks=ranks)[0]
    # Single precision there, double here: of hundreds of thousands a few rows are rounded the other way, or a surplus is taken elsewhere.
    assert np.abs(found - wanted).sum() <= 0.001 * wanted.sum()
    assert found.sum() == wanted.sum()
    if tokens <= 2048:
        assert found.tolist() == wanted.tolist()


def test_lost_routes_go_to_the_least_loaded():
    # 4 tokens of 2 on 256 experts: the mean is 1/32, so that nearly every weight rounds to nothing.
    uniforms = np.full((1, 256), 0.5)
    by_size = power_law_rows(uniforms, 1.2, tokens=4, top_k=2, ranks=4, dealing=BY_SIZE)[0]
    assert by_size[-8:].tolist() == [1] * 8  # of equals the last ones first
    assert by_size.sum() == 8
    by_rank = power_law_rows(uniforms, 1.2, tokens=4, top_k=2, ranks=4, dealing=BY_RANK)[0].reshape(4, 64)
    assert by_rank[:, :2].tolist() == [[1, 1]] * 4
    assert by_rank.sum() == 8


def test_what_an_expert_cannot_hold_goes_to_the_one_with_the_least():
    # Shares of 0.9, 0.05 and 0.05 of 20 routes are 18, 1 and 1; of 10 tokens an expert gets 10 at most, and the last one the other 8.
    rows = np.array([[10, 1, 1]])
    routing_draws._pour_by_size(rows, np.array([8]), 10)
    assert rows.tolist() == [[10, 1, 9]]
    # 12 do not fit there: 9 fill it, and 3 go to the next.
    rows = np.array([[10, 1, 1]])
    routing_draws._pour_by_size(rows, np.array([12]), 10)
    assert rows.tolist() == [[10, 4, 10]]


def test_a_surplus_is_taken_from_the_least_loaded_that_have_any():
    # Two too many: the expert with none has nothing to give, so the fullest does, and the one with 1 gives it.
    rows = np.array([[4, 1, 0], [4, 1, 0]])
    routing_draws._take_by_size(rows, np.array([2, 0]))
    assert rows.tolist() == [[3, 0, 0], [4, 1, 0]]


def dealt(rows, tokens, top_k):
    """Deal rows to tokens expert after expert, one by one: which token takes which experts."""
    flat = [expert for expert in sorted(range(len(rows)), key=lambda e: -rows[e]) for _ in range(rows[expert])]
    return [{flat[turn * tokens + token] for turn in range(top_k)} for token in range(tokens)]


@settings(max_examples=40, deadline=None)
@given(tokens=st.integers(1, 40), top_k=st.integers(1, 5), exponent=st.floats(0.3, 2.5), seed=st.integers(0, 9), rank=st.integers(0, 3))
def test_arcs_reach_the_tokens_that_dealing_one_by_one_reaches(tokens, top_k, exponent, seed, rank):
    rows = power_law_rows(uniforms_of(2, 12, "arcs", seed), exponent, tokens=tokens, top_k=top_k, ranks=4, dealing=BY_SIZE)
    local = np.tile(np.arange(3) + 3 * rank, (2, 1))
    found = filled_tokens(rows, tokens, local)
    for line in range(2):
        chosen = dealt(rows[line].tolist(), tokens, top_k)
        assert found[line] == sum(bool(experts & set(local[line].tolist())) for experts in chosen)


@settings(max_examples=60, deadline=None)
@given(
    exponent=st.floats(0.3, 3.0),
    tokens=st.integers(1, 4000),
    top_k=st.integers(1, 6),
    ranks=st.sampled_from([1, 2, 4, 8]),
    dealing=st.sampled_from([BY_RANK, BY_SIZE]),
)
def test_every_route_is_somewhere_and_no_token_counts_twice(exponent, tokens, top_k, ranks, dealing):
    rows = power_law_rows(uniforms_of(3, 16, "test"), exponent, tokens=tokens, top_k=top_k, ranks=ranks, dealing=dealing)
    assert rows.sum(axis=1).tolist() == [tokens * top_k] * 3
    assert rows.min() >= 0
    assert rows.max() <= tokens


def test_sampled_tokens_choose_distinct_experts_and_some_experts_are_far_ahead():
    rows = pareto_rows(1.9, tokens=500, top_k=6, experts=64, draws=4)
    assert rows.sum(axis=1).tolist() == [3000] * 4
    assert rows.max() <= 500
    assert rows.max(axis=1).mean() > 4 * 3000 / 64
    # More tokens than are sampled one by one: the same shares.
    many = pareto_rows(1.9, tokens=20480, top_k=6, experts=64, draws=1)[0]
    few = pareto_rows(1.9, tokens=2048, top_k=6, experts=64, draws=1)[0]
    assert many.tolist() == (10 * few).tolist()


def test_the_mean_draw_is_that_of_the_table():
    # The table's columns are means over ten seeds of its generator: 8192 tokens, EP 4, hottest rank 17301.5 rows, hottest expert 5693.5.
    rows = pareto_rows(1.9, tokens=8192, top_k=6, experts=384, draws=32)
    ranks = rows_by_rank(rows, 4).sum(axis=2).max(axis=1)
    assert ranks.mean() == pytest.approx(17301.5, rel=0.08)
    assert rows.max(axis=1).mean() == pytest.approx(5693.5, rel=0.2)


def test_the_hottest_rank_is_found():
    rows = rows_by_rank(np.array([[1, 2, 9, 0], [5, 5, 1, 1]]), 2)
    assert hottest_rank(rows).tolist() == [[9, 0], [5, 5]]


def test_distinct_tokens_by_hand():
    # Half of 8 tokens at one expert and half at another: 8 (1 - 1/4). All tokens at one: all.
    assert distinct_tokens(np.array([[4, 4], [8, 0], [0, 0]]), 8).tolist() == [6.0, 8.0, 0.0]
