"""Sources that draw routing: balanced, uniform, power law, log-normal."""

from dataclasses import replace
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moesim.facts.scenario import Parallel, Setting
from moesim.models.bare_setting import bare_setting
from moesim.models.source.balanced import Balanced, spread_order
from moesim.models.source.lognormal import LogNormal
from moesim.models.source.plackett_luce import draw_popular, draw_uniform, draw_weights
from moesim.models.source.power_law import PowerLaw, log_power_law
from moesim.models.source.router import Router
from moesim.models.source.uniform import Uniform

SYNTHETIC = [
    Balanced(),
    Uniform(),
    PowerLaw(),
    PowerLaw(alpha=1.0, redraw="step"),
    LogNormal(),
    LogNormal(sigma=8.0),
    Router(),
    Router(scores=True),
]


def no_file(path: str) -> None:
    raise AssertionError(f"nobody should read {path}")


def setting_of(*, gpus: int = 2, experts: int = 8, top_k: int = 2, layers: int = 3, tokens: int = 16, seed: int = 0) -> Setting:
    return bare_setting(gpus=gpus, experts=experts, top_k=top_k, layers=layers, tokens_per_gpu=tokens, seed=seed, read_trace=no_file)


@st.composite
def worlds(draw):
    experts = draw(st.integers(1, 24))
    return setting_of(
        gpus=draw(st.integers(1, 5)),
        experts=experts,
        top_k=draw(st.integers(1, experts)),
        layers=2,
        tokens=draw(st.integers(1, 40)),
        seed=draw(st.integers(0, 1000)),
    )


@pytest.mark.parametrize("source", SYNTHETIC, ids=repr)
@settings(max_examples=15, deadline=None)
@given(world=worlds())
def test_l1_tokens_every_token_has_k_distinct_experts(source, world):
    for layer in source.begin(world)(1).layers:
        ordered = np.sort(layer.ids, axis=1)
        assert layer.ids.shape == (world.gpus * world.workload.tokens_per_gpu, world.model.top_k)
        assert ordered.min() >= 0
        assert ordered.max() < world.model.experts
        assert (np.diff(ordered, axis=1) > 0).all()
        assert layer.counts.sum() == layer.ids.size
        assert (layer.weights > 0).all()
        assert layer.weights.sum(axis=1) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("source", SYNTHETIC, ids=repr)
def test_l9_draws_depend_on_seed_step_and_layer_only(source):
    world = setting_of(gpus=4)
    draw = source.begin(world)
    forward = [[layer.ids for layer in draw(step).layers] for step in range(2)]
    # Another width of expert parallelism, another order of steps and layers: the same tokens.
    other = source.begin(replace(world, parallel=Parallel(ep=2)))
    for step in (1, 0):
        layers = other(step).layers
        for index in (2, 0, 1, -1):
            assert np.array_equal(layers[index].ids, forward[step][index])
    assert not np.array_equal(forward[0][0], forward[1][0])
    assert not np.array_equal(forward[0][0], forward[0][1])
    assert not np.array_equal(source.begin(replace(world, seed=1))(0).layers[0].ids, forward[0][0])


@settings(max_examples=60, deadline=None)
@given(world=worlds(), step=st.integers(0, 5))
def test_l15_balanced_loads_are_equal_from_every_source_and_overall(world, step):
    counts = Balanced().begin(world)(step).layers[0].counts
    assert np.ptp(counts, axis=1).max() <= 1  # each source by itself
    for first in range(world.gpus):  # every run of neighbouring GPUs, so every expert-parallel group
        for last in range(first + 1, world.gpus + 1):
            assert np.ptp(counts[first:last].sum(axis=0)) <= 1


@settings(max_examples=40, deadline=None)
@given(power=st.integers(0, 6), gpus=st.integers(1, 8), tokens=st.integers(1, 50), top_k=st.integers(1, 8), seed=st.integers(0, 99))
def test_l15_balanced_leaves_no_rank_idle_under_any_contiguous_placement(power, gpus, tokens, top_k, seed):
    experts = 2**power
    world = setting_of(gpus=gpus, experts=experts, top_k=min(top_k, experts), tokens=tokens, seed=seed)
    load = Balanced().begin(world)(0).layers[0].counts.sum(axis=0)
    for exponent in range(power + 1):
        assert np.ptp(load.reshape(2**exponent, -1).sum(axis=1)) <= 1


def test_balanced_pairs_experts_differently_in_every_layer_and_evenly_overall():
    # 8 experts, 2 choices, 2048 tokens x 8 layers: each of the 28 pairs is expected 16384 / 28 = 585 times, deviation below 25.
    layers = Balanced().begin(setting_of(layers=8, gpus=1, tokens=2048))(0).layers
    pairs = np.concatenate([np.sort(layer.ids, axis=1) for layer in layers])
    times = np.bincount(pairs[:, 0] * 8 + pairs[:, 1], minlength=64).reshape(8, 8)[np.triu_indices(8, 1)]
    assert abs(times - 16384 / 28).max() < 5 * np.sqrt(16384 / 28)


@given(experts=st.integers(1, 60), seed=st.integers(0, 9))
def test_spread_order_visits_every_expert_once(experts, seed):
    assert sorted(spread_order(np.random.default_rng(seed), experts)) == list(range(experts))


def test_l15_uniform_loads_are_equal_on_average():
    # 64 experts, 6 x 65536 choices: mean 6144, standard deviation of a count sqrt(6144 (1 - 6/64)) = 74.6.
    load = Uniform().begin(setting_of(gpus=16, experts=64, top_k=6, tokens=4096))(0).layers[0].counts.sum(axis=0)
    assert abs(load - 6144).max() < 5 * 74.6
    assert 0.6 * 74.6 < load.std() < 1.5 * 74.6  # but not made equal by construction


def test_uniform_takes_every_ordered_choice_equally_often():
    # 4 experts, 2 choices: 12 ordered pairs, 10000 expected each, standard deviation 95.7.
    ids = draw_uniform(np.random.default_rng(5), tokens=120_000, experts=4, top_k=2)
    times = np.bincount(ids[:, 0] * 4 + ids[:, 1], minlength=16).reshape(4, 4)
    assert times.diagonal().sum() == 0
    assert abs(times[~np.eye(4, dtype=bool)] - 10_000).max() < 5 * 95.7


def test_popular_choices_follow_plackett_luce():
    # Independent arithmetic: P(first a, then b, then c) = p_a * p_b / (1 - p_a) * p_c / (1 - p_a - p_b).
    share = np.array([0.5, 0.3, 0.15, 0.05])
    tokens = 200_000
    ids = draw_popular(np.random.default_rng(6), np.log(share), tokens=tokens, top_k=3)
    for a, b, c in permutations(range(4), 3):
        expected = share[a] * share[b] / (1 - share[a]) * share[c] / (1 - share[a] - share[b])
        seen = np.mean((ids == (a, b, c)).all(axis=1))
        assert abs(seen - expected) < 5 * np.sqrt(expected * (1 - expected) / tokens)


def test_a_nearly_certain_expert_leaves_the_law_of_the_others_intact():
    # Expert 0 has all but 3e-9 of the popularity, so the second choice is nearly always rejected and must come from the Gumbel fallback.
    log_popularity = np.log(np.array([1.0, 2e-9, 1e-9, 1e-300]))
    ids = draw_popular(np.random.default_rng(7), log_popularity, tokens=30_000, top_k=2)
    assert (ids[:, 0] == 0).all()
    seen = np.mean(ids[:, 1] == 1)
    assert abs(seen - 2 / 3) < 5 * np.sqrt(2 / 9 / 30_000)
    assert not (ids == 3).any()


def test_gate_weights_are_those_of_a_router_with_gumbel_noise():
    # The independent way: make all logits log(share) + Gumbel, take the three largest, softmax over them.
    share = np.array([0.5, 0.3, 0.15, 0.05])
    rng = np.random.default_rng(8)
    logits = np.log(share) + rng.gumbel(size=(100_000, 4))
    order = np.argsort(-logits, axis=1)[:, :3]
    chosen = np.exp(np.take_along_axis(logits, order, axis=1))
    expected = chosen / chosen.sum(axis=1, keepdims=True)
    ids = draw_popular(rng, np.log(share), tokens=100_000, top_k=3)
    weights = draw_weights(rng, share[ids])
    assert (np.diff(weights, axis=1) <= 0).all()
    error = np.hypot(expected.std(axis=0), weights.std(axis=0)) / np.sqrt(100_000)
    assert (abs(expected.mean(axis=0) - weights.mean(axis=0)) < 5 * error).all()
    assert (abs(expected.std(axis=0) - weights.std(axis=0)) < 0.01).all()


@pytest.mark.parametrize("alpha", [0.5, 1.0, 1.2, 3.0])
def test_power_law_has_its_distribution_function(alpha):
    low, high, size = 1.0, 1000.0, 40_000
    draws = np.exp(log_power_law(np.random.default_rng(9), size=size, alpha=alpha, low=low, high=high))
    assert low <= draws.min()
    assert draws.max() <= high * (1 + 1e-9)
    for x in (2.0, 30.0, 400.0):
        # By hand: F(x) = (x^(1-a) - 1) / (1000^(1-a) - 1), and log x / log 1000 at a = 1.
        expected = np.log(x) / np.log(high) if alpha == 1 else (x ** (1 - alpha) - 1) / (high ** (1 - alpha) - 1)
        assert abs(np.mean(draws <= x) - expected) < 5 * np.sqrt(expected * (1 - expected) / size)


@pytest.mark.parametrize("source", [PowerLaw(), LogNormal()])
def test_popularity_stays_for_a_run_unless_redrawn(source):
    # With popularity kept, loads of two steps agree up to sampling noise; redrawn, they have nothing in common.
    world = setting_of(gpus=4, experts=64, top_k=2, tokens=4096)

    def loads(kept):
        draw = kept.begin(world)
        return np.corrcoef([draw(step).layers[0].counts.sum(axis=0) for step in range(2)])[0, 1]

    assert loads(source) > 0.99
    assert loads(replace(source, redraw="step")) < 0.6
    layers = source.begin(world)(0).layers
    assert abs(np.corrcoef([layers[0].counts.sum(axis=0), layers[1].counts.sum(axis=0)])[0, 1]) < 0.6


def test_lognormal_load_follows_popularity():
    # At k = 1 an expert's share is its popularity exp(sigma z): the logarithms of the loads have deviation sigma (64 experts: +- 9 %).
    load = LogNormal(sigma=0.5).begin(setting_of(gpus=8, experts=64, top_k=1, tokens=8192))(0).layers[0].counts.sum(axis=0)
    assert np.log(load).std() == pytest.approx(0.5, rel=0.3)


def test_no_expert_takes_two_routes_of_one_token_however_popular():
    world = setting_of(gpus=1, experts=8, top_k=2, tokens=512)
    load = LogNormal(sigma=30.0).begin(world)(0).layers[0].counts.sum(axis=0)
    assert load.max() == 512  # E / k = 4 times the mean of 128


def test_layers_on_demand_behave_like_a_sequence():
    layers = Uniform().begin(setting_of(layers=3))(0).layers
    assert len(layers) == 3
    assert len(layers[1:]) == 2
    assert [layer.ids[0, 0] for layer in layers] == [layers[index].ids[0, 0] for index in range(3)]
    assert layers[2] is layers[-1]
    with pytest.raises(IndexError, match="layer 3 does not exist"):
        layers[3]
