"""Alarms about routing: each is raised for its own trouble, from the step on in which it began, and for nothing else."""

import math

import numpy as np
import pytest

from moesim.base.balance_health import correlation, entropy, idle, mutual_information, noise_floor, stagnant
from moesim.base.loads import maxvio
from moesim.facts.record import Table
from moesim.measure.alarms import DEAD, PATIENCE, find_alarms

STEPS, EXPERTS, TOP_K, TOKENS = 30, 16, 2, 4096


def tables(**columns):
    """Thirty healthy steps of one layer, 16 experts, 4 GPUs, with some columns changed."""
    plain = {
        "step": np.arange(STEPS),
        "moe_layer": np.zeros(STEPS, dtype=int),
        "idle_experts": np.zeros(STEPS, dtype=int),
        "idle_longest": np.zeros(STEPS, dtype=int),
        "expert_max": np.full(STEPS, 900),
        "expert_mean": np.full(STEPS, 512.0),
        "rank_max": np.full(STEPS, 2300),
        "rank_mean": np.full(STEPS, 2048.0),
        "load_correlation": np.full(STEPS, 0.8),
        "load_cv": np.full(STEPS, 0.3),
        "source_information": np.full(STEPS, 0.05),
        "domain_information": np.full(STEPS, np.nan),
    }
    ranks = Table(columns={"step": np.zeros(4, dtype=int), "gpu": np.arange(4), "rows": np.full(4, 2048)})
    return {"layers": Table(columns=plain | columns), "ranks": ranks}


def found(some, phase="training"):
    return [(alarm.name, alarm.step) for alarm in find_alarms(some, experts=EXPERTS, top_k=TOP_K, tokens=TOKENS, phase=phase, ranks=4)]


def since(step, value, otherwise=0):
    return np.where(np.arange(STEPS) >= step, value, otherwise)


def test_healthy_routing_raises_none():
    assert found(tables()) == []
    assert found(tables(), phase="decode") == []


def test_collapse_is_told_from_the_step_on_in_which_half_are_idle():
    assert found(tables(idle_experts=since(12, 8))) == [("collapse", 12)]
    assert found(tables(idle_experts=since(12, 7))) == []


def test_what_does_not_last_is_no_alarm():
    once = np.zeros(STEPS, dtype=int)
    once[10 : 10 + PATIENCE - 1] = 9
    assert found(tables(idle_experts=once)) == []
    once[10 : 10 + PATIENCE] = 9
    assert found(tables(idle_experts=once)) == [("collapse", 10)]


def test_one_dead_expert_is_told_from_its_first_idle_step():
    # Idle from step 4 on, so for 20 steps in step 23.
    assert found(tables(idle_longest=np.maximum(np.arange(STEPS) - 3, 0))) == [("dead expert", 23 - DEAD + 1)]


def test_swinging_loads_are_an_overshooting_bias_and_noise_is_not():
    assert found(tables(load_correlation=since(5, -0.6, 0.8))) == [("oscillating bias", 5)]
    floor = noise_floor(EXPERTS, TOP_K, TOKENS)
    small = np.full(STEPS, 512 * (1 + 1.5 * floor))
    assert found(tables(load_correlation=since(5, -0.6, 0.8), expert_max=small)) == []


def test_specialisation_that_is_lost_while_loads_are_even_is_over_balancing():
    even = np.full(STEPS, 512 * (1 + noise_floor(EXPERTS, TOP_K, TOKENS)))
    assert found(tables(source_information=since(9, 0.001, 0.05), expert_max=even)) == [("over-balancing", 9)]
    assert found(tables(source_information=since(9, 0.001, 0.05))) == []  # loads are uneven: nothing was over-balanced
    assert found(tables(source_information=np.full(STEPS, 0.001), expert_max=even)) == []  # there never was any


def test_specialisation_is_judged_by_domains_where_they_are_known():
    even = np.full(STEPS, 512 * (1 + noise_floor(EXPERTS, TOP_K, TOKENS)))
    lost, kept = since(9, 0.001, 0.05), np.full(STEPS, 0.05)
    assert found(tables(domain_information=lost, source_information=kept, expert_max=even)) == [("over-balancing", 9)]
    assert found(tables(domain_information=kept, source_information=lost, expert_max=even)) == []
    seldom = np.where(np.arange(STEPS) % 10 == 0, kept, np.nan)  # known in three steps: too few to judge by
    assert found(tables(domain_information=seldom, source_information=lost, expert_max=even)) == [("over-balancing", 9)]


def test_loads_that_come_apart_are_told_before_experts_die():
    assert found(tables(load_cv=since(14, 0.7, 0.3))) == [("rising variance", 14)]
    assert found(tables(load_cv=since(14, 0.55, 0.3))) == []  # not twice as much
    assert found(tables(load_cv=since(14, 0.01, 0.001))) == []  # chance alone gives sqrt(7 / 4096) = 0.04
    collapsed = tables(load_cv=since(14, 2.0, 0.3), idle_experts=since(14, 9))
    assert found(collapsed) == [("collapse", 14)]  # said once, by its worst name


def test_serving_with_loads_as_even_as_chance_is_unrealistic():
    even = np.full(STEPS, 512 * (1 + noise_floor(EXPERTS, TOP_K, TOKENS)))
    assert found(tables(expert_max=even), phase="decode") == [("unrealistic routing", 0)]
    assert found(tables(expert_max=even), phase="training") == []


def test_ranks_without_any_row_are_named():
    some = tables()
    some["ranks"] = Table(columns={"step": np.zeros(4, dtype=int), "gpu": np.arange(4), "rows": np.array([10, 0, 10, 0])})
    alarms = find_alarms(some, experts=EXPERTS, top_k=TOP_K, tokens=TOKENS, phase="training", ranks=4)
    assert [alarm.name for alarm in alarms] == ["ranks without work"]
    assert "2 of 4 GPUs" in alarms[0].sentence


def test_ranks_that_grow_uneven_after_a_placement_make_it_stale():
    some = tables(rank_max=since(20, 3200, 2200))
    some["rebalances"] = Table(columns={"in_place_step": np.array([6, -1])})
    assert found(some) == [("stale placement", 20)]
    some["rebalances"] = Table(columns={"in_place_step": np.array([22])})
    assert found(some) == []  # not long enough ago to say


def test_statistics_by_hand():
    assert entropy([2, 2, 0, 0]) == pytest.approx(0.5)  # ln 2 / ln 4
    assert math.isnan(entropy([0, 0]))
    assert idle([1000, 1000, 0, 4]).tolist() == [False, False, True, True]  # below 5.01
    assert not idle([0, 0]).any()
    assert stagnant([1000, 1000, 0, 60]).tolist() == [False, False, True, False]  # below 51.5
    assert correlation([1, 2, 3], [10, 20, 30]) == pytest.approx(1.0)
    assert correlation([1, 2, 3], [3, 2, 1]) == pytest.approx(-1.0)
    assert math.isnan(correlation([1, 1], [1, 2]))
    # Each of two sources uses an expert of its own: one bit, less (2 - 1)(2 - 1) / (2 * 200 * ln 2).
    assert mutual_information([[100, 0], [0, 100]]) == pytest.approx(1 - 1 / (400 * math.log(2)))
    assert mutual_information([[50, 50], [50, 50]]) == 0.0


def test_mutual_information_of_chance_is_nothing_on_average():
    rng = np.random.default_rng(4)
    bits = [mutual_information(rng.multinomial(400, np.full(32, 1 / 32)).reshape(4, 8)) for _ in range(200)]
    # Without the correction it would be 3 * 7 / (2 * 400 * ln 2) = 0.038 bit; cut at 0, half of the spread remains.
    assert np.mean(bits) < 0.01


@pytest.mark.parametrize(("experts", "top_k"), [(16, 2), (64, 6), (256, 8)])
def test_noise_floor_is_what_chance_gives(experts, top_k):
    rng = np.random.default_rng(1)
    tokens = 2048
    seen = []
    for _ in range(8):
        ids = np.argpartition(rng.random((tokens, experts)), top_k, axis=1)[:, :top_k]
        seen.append(maxvio(np.bincount(ids.ravel(), minlength=experts)[None])[0])
    # The factor is 0.85 for all; 0.75 to 0.95 were found.
    assert np.mean(seen) / noise_floor(experts, top_k, tokens) == pytest.approx(1.0, abs=0.13)
