"""The workloads W0 to W7: each shows its own imbalance and no other."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moesim.base.errors import UsageError
from moesim.facts.scenario import Parallel
from moesim.models.bare_setting import bare_setting
from moesim.models.source.imbalance import WORKLOADS, Imbalance, experts_of_rank, ragged_tokens

EXPERTS, RANKS, TOP_K, TOKENS = 32, 8, 4, 512


def no_file(path):
    raise AssertionError(path)


def setting(*, experts=EXPERTS, ranks=RANKS, top_k=TOP_K, tokens=TOKENS, seed=3, layers=2):
    plain = bare_setting(gpus=ranks, experts=experts, top_k=top_k, layers=layers, tokens_per_gpu=tokens, seed=seed, read_trace=no_file)
    return replace(plain, parallel=Parallel(ep=ranks))


def loads(workload, step=0, layer=0, **keys):
    """Routes of each expert over the mean."""
    counts = Imbalance(workload=workload, **keys).begin(setting())(step).layers[layer].counts.sum(axis=0)
    return counts / counts.mean()


def of_ranks(load):
    return load.reshape(RANKS, -1).mean(axis=1)


def plackett_luce_share(heat):
    """Load of a hot expert over that of a cold one. A token draws 4 times without replacement, so heat is damped; from its law."""
    rng = np.random.default_rng(0)
    keys = rng.gumbel(size=(40_000, EXPERTS)) + np.where(np.arange(EXPERTS) < EXPERTS // RANKS, np.log(heat), 0.0)
    chosen = np.bincount(np.argsort(-keys, axis=1)[:, :TOP_K].ravel(), minlength=EXPERTS)
    return chosen[: EXPERTS // RANKS].mean() / chosen[EXPERTS // RANKS :].mean()


def test_w0_every_expert_has_the_same_load():
    assert np.ptp(loads("W0_balanced")) == 0  # 8 * 512 * 4 routes over 32 experts: no rounding


@pytest.mark.parametrize("workload", ["W1_hot_expert_set", "W2_hot_rank", "W3_spread_hot_experts", "W6_rotating_hotspot"])
def test_as_many_experts_are_hot_as_a_rank_holds_and_all_workloads_are_equally_hot(workload):
    load = np.sort(loads(workload, heat=6.0))
    hot, cold = load[-4:], load[:-4]
    # 16,384 routes: a cold expert has about 400, so its relative standard deviation is 5 %; 4 of them bound the mean of four hot ones.
    assert hot.min() > 1.5 * cold.max()
    assert hot.mean() / cold.mean() == pytest.approx(plackett_luce_share(6.0), rel=0.05)


def test_w1_another_set_in_each_layer_and_the_same_in_each_step():
    def hot(step, layer):
        return set(np.argsort(loads("W1_hot_expert_set", step, layer, heat=16.0))[-4:].tolist())

    assert hot(0, 0) == hot(5, 0)
    assert hot(0, 0) != hot(0, 1)


def test_w2_rank_0_is_hot_and_w3_spreads_the_same_heat_evenly():
    ranks = of_ranks(loads("W2_hot_rank", heat=6.0))
    assert ranks[0] > 2 * ranks[1:].max()
    # Four hot experts over eight ranks: every second rank has one, and those ranks are equally loaded up to chance (2,048 routes: 9 %).
    spread = of_ranks(loads("W3_spread_hot_experts", heat=6.0))
    assert np.ptp(spread[::2]) < 0.2
    assert spread.max() < 0.7 * ranks[0]


def test_w3_hot_experts_stand_on_different_ranks():
    hot = np.argsort(loads("W3_spread_hot_experts", heat=16.0))[-4:]
    assert len({int(expert) // (EXPERTS // RANKS) for expert in hot}) == 4


def test_w4_sources_are_ragged_and_experts_are_not():
    layer = Imbalance(workload="W4_source_ragged", heat=3.0).begin(setting())(0).layers[0]
    tokens = np.diff(layer.token_start)
    assert tokens.sum() == RANKS * TOKENS
    assert tokens[-1] / tokens[0] == pytest.approx(3.0, abs=0.02)  # whole tokens: at most 1 of 256 off
    assert (np.diff(tokens) > 0).all()
    load = layer.counts.sum(axis=0)
    assert load.max() / load.mean() < 1.25  # 512 routes each, 4 standard deviations are 18 %


def test_w5_the_last_rank_gets_nothing_and_the_others_are_even():
    load = loads("W5_zero_expert_rank")
    assert (load[-4:] == 0).all()
    assert load[:-4].min() > 0.7 * load[:-4].max()


def test_w6_the_hot_rank_moves_on_after_each_period():
    hot = [int(np.argmax(of_ranks(loads("W6_rotating_hotspot", step, heat=8.0, period=3)))) for step in range(9)]
    assert hot == [0, 0, 0, 1, 1, 1, 2, 2, 2]


def test_w7_only_the_last_step_of_a_period_is_hot():
    worst = [of_ranks(loads("W7_burst", step, heat=8.0, period=4)).max() for step in range(8)]
    assert [load > 1.5 for load in worst] == [False, False, False, True] * 2
    assert worst[0] == 1.0


def test_w5_needs_enough_other_experts():
    with pytest.raises(UsageError, match=r"leaves 4 of 8 experts .* chooses 6"):
        Imbalance(workload="W5_zero_expert_rank").begin(setting(experts=8, ranks=2, top_k=6))


@settings(max_examples=60, deadline=None)
@given(gpus=st.integers(1, 40), tokens=st.integers(1, 300), ratio=st.floats(1.0, 50.0))
def test_l1_tokens_ragged_sources_keep_the_sum(gpus, tokens, ratio):
    ragged = ragged_tokens(gpus, tokens, ratio)
    assert ragged.sum() == gpus * tokens
    assert ragged.min() >= 0
    assert (np.diff(ragged) >= -1).all()  # a ramp up to rounding


@settings(max_examples=40, deadline=None)
@given(
    workload=st.sampled_from(WORKLOADS),
    ranks=st.integers(1, 6),
    experts=st.integers(6, 30),
    top_k=st.integers(1, 3),
    step=st.integers(0, 9),
)
def test_l11_placement_any_shape_has_distinct_experts(workload, ranks, experts, top_k, step):
    where = setting(experts=experts, ranks=ranks, top_k=top_k, tokens=7)
    if workload == "W5_zero_expert_rank" and experts - len(experts_of_rank(experts, ranks, ranks - 1)) < top_k:
        return
    ids = Imbalance(workload=workload).begin(where)(step).layers[1].ids
    ordered = np.sort(ids, axis=1)
    assert ids.shape == (7 * ranks, top_k)
    assert (np.diff(ordered, axis=1) > 0).all()
    assert ordered.min() >= 0
    assert ordered.max() < experts
