"""A router that trains: how far losses reach neglected experts, and what kinds, noise, drops and sigmoids add to feedback."""

from dataclasses import replace

import numpy as np
import pytest

from moesim.base.registry import plugin
from moesim.models.gate.noisy_topk import draw
from moesim.models.router.dynamics import RouterState, advance, balance_gradient, z_gradient
from moesim.models.router.law import Law
from moesim.models.source.training_run import gate_noise

NOTHING = Law(feedback=0.0, domain_feedback=0.0, decay=0.0, drift=0.0, gain=0.0)
CHOSEN = np.array([[0]] * 6 + [[1]] * 2)  # loads 1.5 and 0.5 of the mean; z and balance are taken over the same tokens
LOGITS = np.array([[2.0, 1.0]] * 6 + [[0.0, 1.0]] * 2)


def step(law, *, logits=LOGITS, chosen=CHOSEN, state=None, **given):
    """Go one step from nothing, and return the state."""
    experts = logits.shape[1]
    state = RouterState(offsets=np.zeros(experts), domains=np.zeros((1, experts))) if state is None else state
    group = np.zeros(len(logits), dtype=int)
    plain = {"balance": 0.0, "z": 0.0, "scoring": "softmax", "walk": np.zeros((2, experts)), "group": group, "top_k": 1}
    counted = np.bincount(chosen.ravel(), minlength=experts)
    advance(state, law, logits=logits, domain=np.zeros(len(logits), dtype=int), chosen=chosen, counted=counted, **plain | given)
    return state


def likely(logits):
    weights = np.exp(logits)
    return weights / weights.sum(axis=1, keepdims=True)


def test_a_loss_moves_neglected_experts_further():
    law = replace(NOTHING, gain=2.0, floor=0.25, memory=1.0)
    slope = balance_gradient(likely(LOGITS), np.array([[6, 2]]), np.zeros(8, dtype=int), 1).sum(axis=0)
    # With memory 1 the load of late is that of the step: 1.5 and 0.5, so 1 / sqrt(1.75) and 1 / sqrt(0.75).
    expected = -2.0 * 0.1 * slope / np.sqrt([1.75, 0.75])
    np.testing.assert_allclose(step(law, balance=0.1).offsets, expected, rtol=1e-6)
    # With memory 0.5 it is half way from 1 to that.
    half = replace(law, memory=0.5)
    np.testing.assert_allclose(step(half, balance=0.1).offsets, -2.0 * 0.1 * slope / np.sqrt([1.5, 1.0]), rtol=1e-6)
    assert step(replace(law, floor=None), balance=0.1).offsets == pytest.approx(-2.0 * 0.1 * slope)


@pytest.mark.parametrize("level", [0.0, -9.0])
def test_what_moves_all_logits_lowers_the_neglected_and_raises_those_in_use(level):
    logits = LOGITS + level
    slope = z_gradient(likely(logits), logits).sum(axis=0)
    found = step(replace(NOTHING, gain=1.0, common=10.0, floor=0.5, memory=1.0), logits=logits, z=0.01).offsets
    own = np.array([1 / 2**0.5, 1.0])  # 1 / sqrt(1.5 + 0.5), 1 / sqrt(0.5 + 0.5)
    alike = own if slope.mean() > 0 else np.array([2 * 1.5 / 2.5, 2 * 0.5 / 1.5])
    assert (slope.mean() > 0) == (level == 0.0)  # the sum of exponentials is above 1, or far below
    np.testing.assert_allclose(found, -0.01 * (own * slope + 9.0 * slope.mean() * alike), rtol=1e-6)
    gap = found[0] - found[1]
    assert gap > 0  # whichever way logits go together, the expert in use comes out ahead


def test_kinds_keep_finding_their_experts():
    kind = np.array([0, 0, 0, 0, 1, 1, 1, 1])
    state = RouterState(
        offsets=np.zeros(2), domains=np.zeros((1, 2)), kinds=np.zeros((2, 2), dtype=np.float32), moved=np.ones((2, 2), dtype=np.float32)
    )
    law = replace(NOTHING, kinds=2, kind_share=0.5, kind_feedback=0.8, decay=0.5)
    found = step(law, state=state, kind=kind).moved
    # Kind 0 gave 4 and 0 of 8 tokens: 2 more and 2 fewer than an equal part; kind 1 gave 2 and 2. Half of what was there is lost.
    np.testing.assert_allclose(found, [[0.5 + 0.8 * 2 / 8, 0.5 - 0.8 * 2 / 8], [0.5, 0.5]], rtol=1e-6)


@pytest.mark.parametrize(
    ("constant", "given", "factor"),
    [
        ({"noise_push": 2.0}, {"noise": 0.5}, 2.0),
        ({"drop_push": 3.0}, {"dropped": 0.25}, 1.75),
        ({"noise_push": 1.0, "drop_push": 2.0}, {"noise": 0.5, "dropped": 0.25}, 2.0),  # 1 + 0.5 + 0.5
        ({"sigmoid_push": 0.5}, {"scoring": "sigmoid"}, 1.5),
        ({"sigmoid_push": 0.5}, {"scoring": "softmax"}, 1.0),
        ({"noise_push": 2.0, "drop_push": 3.0}, {}, 1.0),
    ],
)
def test_what_makes_feedback_stronger(constant, given, factor):
    law = replace(NOTHING, feedback=0.01, **constant)
    # 2 (x - 1) / (x + 1) of 1.5 and 0.5.
    np.testing.assert_allclose(step(law, **given).offsets, factor * 0.01 * np.array([0.4, -2.0 / 3.0]), rtol=1e-12)


@pytest.mark.parametrize("law", ["normal", "gumbel", "uniform"])
def test_the_noise_of_a_gate_counts_by_its_standard_deviation(law):
    drawn = draw(np.random.default_rng(1), law, 0.5, (400, 500))
    # Of 200,000 numbers; the fourth moment of none of the laws makes the error of a deviation larger than 2 standard errors of 0.3 %.
    assert gate_noise(plugin("gate", "noisy_topk")(law=law, amount=((0, 0.0), (10, 1.0))), 5, 16) == pytest.approx(drawn.std(), rel=0.01)
    assert gate_noise(plugin("gate", "noisy_topk")(), 5, 16) == 1 / 16
    assert gate_noise(plugin("gate", "topk")(), 5, 16) == 0.0


def test_noise_stirs_random_walks_and_lets_logits_grow():
    law = replace(NOTHING, drift=0.1, domain_drift=0.2, noise_push=2.0, noise_growth=4.0)
    found = step(law, noise=0.5, walk=np.ones((2, 2)), growth=0.01, balance=1e-9)
    np.testing.assert_allclose(found.offsets, 0.2)
    np.testing.assert_allclose(found.domains, 0.4)
    np.testing.assert_allclose(found.grown, 0.03)  # times 1 + 4 x 0.5


def test_a_weak_loss_teaches_an_expert_without_tokens_little():
    idle = np.array([[0]] * 8)
    # 2 x / (x + 1) of 2 and 0 without a loss; with one, the part c / (c + reach) of everybody is as the mean.
    assert step(NOTHING, chosen=idle, growth=0.3).grown == pytest.approx([0.4, 0.0])
    law = replace(NOTHING, reach=0.03)
    assert step(law, chosen=idle, growth=0.3, balance=0.01).grown == pytest.approx([0.3 * 1.25, 0.3 * 0.25])
    assert step(law, chosen=idle, growth=0.3, z=0.03).grown == pytest.approx([0.3 * (1 + 0.5 / 3), 0.3 * 0.5])
    assert step(NOTHING, chosen=idle, growth=0.3, z=1e-6).grown == pytest.approx([0.3, 0.3])  # reach 0: any loss does
