"""A router that trains: exact gradients, updates that the frameworks make, and what happens without any."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moesim.base.errors import FieldError, PluginError
from moesim.base.loads import maxvio
from moesim.base.registry import plugin
from moesim.facts.routing import Fidelity
from moesim.models.bare_setting import bare_setting
from moesim.models.gate.losses import balance_loss, probabilities, z_loss
from moesim.models.router.coefficients import OverSteps, at_step
from moesim.models.router.dynamics import RouterState, Tokens, advance, balance_gradient, z_gradient
from moesim.models.router.law import Law
from moesim.models.source.training import Shift, Training


def no_file(path):
    raise AssertionError(path)


def setting(*, gpus=2, experts=8, top_k=2, tokens=256, layers=2, seed=1):
    return bare_setting(gpus=gpus, experts=experts, top_k=top_k, layers=layers, tokens_per_gpu=tokens, seed=seed, read_trace=no_file)


def worst(source, step, *, where=None, layer=0):
    counts = source.begin(where or setting())(step).layers[layer].counts.sum(axis=0)
    return float(maxvio(counts[None])[0])


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), groups=st.integers(1, 4), top_k=st.integers(1, 3))
def test_balance_gradient_is_the_derivative_of_the_loss(seed, groups, top_k):
    # Shares are constants to the gradient, so the loss is moved by probabilities alone; central differences in two random logits.
    rng = np.random.default_rng(seed)
    tokens, experts, step = 4 * groups, 5, 1e-5
    logits = rng.normal(size=(tokens, experts))
    group = np.repeat(np.arange(groups), 4)
    counts = rng.integers(0, 9, size=(groups, experts))

    def loss(values):
        likely = np.exp(values) / np.exp(values).sum(axis=1, keepdims=True)
        parts = [balance_loss(counts[g] / (4 * top_k), likely[group == g].mean(axis=0)) for g in range(groups)]
        return float(np.mean(parts))  # groups of equal size

    likely = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    slope = balance_gradient(likely, counts, group, top_k)
    for _ in range(2):
        at = rng.integers(tokens), rng.integers(experts)
        nudge = np.zeros_like(logits)
        nudge[at] = step
        numeric = (loss(logits + nudge) - loss(logits - nudge)) / (2 * step)
        assert slope[at] == pytest.approx(numeric, rel=1e-5, abs=1e-9)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_z_gradient_is_the_derivative_of_the_z_loss(seed):
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(6, 4)) * 3
    at, step = (rng.integers(6), rng.integers(4)), 1e-5
    nudge = np.zeros_like(logits)
    nudge[at] = step
    numeric = (z_loss(logits + nudge) - z_loss(logits - nudge)) / (2 * step)
    likely = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    assert z_gradient(likely, logits)[at] == pytest.approx(numeric, rel=1e-5)


def test_one_step_by_hand():
    # Four experts, loads 6 2 0 0 (mean 2), so 3, 1, 0 and 0 times the mean: 2 (x - 1) / (x + 1) = 1, 0, -2, -2. Feedback 0.1 at pace 0.5,
    # drive 0.4 with an eighth left of it, decay 0.5, drift 0.01.
    state = RouterState(offsets=np.ones(4), domains=np.zeros((2, 4)), driven=np.array([0.0, 0.0, 1.0, -1.0]))
    chosen = np.array([[0, 1], [0, 1], [0, -1], [0, -1], [0, -1], [0, -1]])
    advance(
        state,
        Law(feedback=0.1, domain_feedback=0.2, drive=0.4, gain=0.0, decay=0.5, drift=0.01),
        logits=np.zeros((6, 4)),
        domain=np.array([0, 0, 1, 1, 1, 1]),
        chosen=chosen,
        counted=np.array([6, 2, 0, 0]),
        group=np.zeros(6, dtype=int),
        top_k=2,
        balance=0.0,
        z=0.0,
        scoring="softmax",
        walk=np.vstack([[1.0, 0.0, 0.0, -1.0], np.ones((2, 4))]),
        pace=0.5,
        pull=0.125,
    )
    np.testing.assert_allclose(state.offsets, [0.5 + 0.05 + 0.01, 0.5, 0.5 - 0.1 + 0.05, 0.5 - 0.1 - 0.05 - 0.01])
    # Domain 0 has loads 2 2 0 0: 2/3, 2/3, -2, -2; domain 1 has 4 0 0 0: 6/5, -2, -2, -2; less 1, 0, -2, -2 of all, times 0.2 times 0.5.
    np.testing.assert_allclose(state.domains, 0.1 * np.array([[2 / 3 - 1, 2 / 3, 0, 0], [6 / 5 - 1, -2, 0, 0]]), atol=1e-15)


def test_gradients_move_offsets_by_the_gain_and_at_most_by_the_limit():
    # Two experts, every token takes expert 0: f = (1, 0), p = sigmoid(2) and the rest. dL/do_0 = E p_0 (1 - p_0) = 2 * 0.10499.
    slope = 2 * 0.8807970779778823 * 0.11920292202211755
    for limit, wanted in ((None, 0.5 * 3 * slope), (0.1, 1.5 * slope / np.hypot(1, 15 * slope))):
        state = RouterState(offsets=np.zeros(2), domains=np.zeros((1, 2)))
        advance(
            state,
            Law(feedback=0.0, domain_feedback=0.0, gain=3.0, limit=limit, decay=0.0, drift=0.0),
            logits=np.tile([2.0, 0.0], (4, 1)),
            domain=np.zeros(4, dtype=int),
            chosen=np.zeros((4, 1), dtype=int),
            counted=np.array([4, 0]),
            group=np.array([0, 0, 1, 1]),
            top_k=1,
            balance=0.5,
            z=0.0,
            scoring="softmax",
            walk=np.zeros((2, 2)),
            plain=True,
        )
        np.testing.assert_allclose(state.offsets, [-wanted, wanted], rtol=1e-5)
        np.testing.assert_allclose(state.domains[0], [-wanted, wanted], rtol=1e-5)


def test_tokens_have_parts_in_common_with_their_kind_and_their_sequence():
    # Of a variance of 4 (1 to begin with, and 3 that expert 0 has grown), a quarter belongs to kinds and a half to sequences; that of
    # expert 1 is still 1. Offsets are 10 for expert 0 and 1 more in domain 1.
    state = RouterState(
        offsets=np.array([10.0, 0.0]), domains=np.array([[0.0, 0.0], [1.0, 0.0]]), kinds=np.arange(8, dtype=np.float32).reshape(4, 2),
        grown=np.array([3.0, 0.0]),
    )  # fmt: skip
    tokens = Tokens(domain=np.array([0, 1]), sequence=np.array([0, 1]), kind=np.array([1, 2]))
    noise, topics = np.ones((2, 2), dtype=np.float32), np.array([[1.0, -1.0], [2.0, 0.0]], dtype=np.float32)
    logits = state.logits(tokens, noise, topics, law=Law(scale=1.0, kinds=2, kind_share=0.25, sequence_share=0.5))
    alone, topic = 1.0, 2.0 * np.sqrt(0.5)  # 2 sqrt(1 - 0.25 - 0.5) and 2 sqrt(0.5); kinds weigh 2 sqrt(0.25) = 1; half that for expert 1
    wanted = [[10 + 2 + alone + topic, (3 + alone - topic) / 2], [11 + 4 + alone + 2 * topic, (5 + alone) / 2]]
    np.testing.assert_allclose(logits, wanted, rtol=1e-6)


def test_the_paces_of_a_law():
    law = Law(fading=50.0, growth=0.5)
    assert [law.faded(step) for step in (0, 50, 150)] == [1.0, 0.5, 0.25]
    assert law.grown(64) == 16.0
    assert replace(law, settling=64.0).grown(64) == 8.0  # half of it
    # While the rate rises over 30 steps, the sum of its squares is that of (s / 30)^2: 8^3 / 2700, 10 at the end, then one a step.
    warm = replace(law, warmup=30.0)
    assert [warm.grown(step) for step in (0, 30, 31, 130)] == pytest.approx([0.0, 2.5, 2.75, 27.5])
    assert warm.grown(8) == pytest.approx(0.25 * 8**3 / 2700)
    assert Law().faded(10**6) == 1.0


def test_without_balancing_the_rich_get_richer_until_k_are_left():
    source = Training(feedback=5e-3, sequence_length=64)
    course = [worst(source, step) for step in (0, 200, 600)]
    assert course[0] < 0.6 < course[1] < course[2]
    counts = source.begin(setting())(1500).layers[0].counts.sum(axis=0)
    assert (counts > 0.02 * counts.mean()).sum() == 2  # top 2: two experts take all


@pytest.mark.parametrize(
    "strategy",
    [
        {"auxiliary": ((0, 0.1),)},
        {"gate": plugin("gate", "loss_free")(rate=1e-2)},
        {"gate": plugin("gate", "quantile")()},
    ],
    ids=["auxiliary loss", "loss-free bias", "quantiles"],
)
def test_every_strategy_keeps_balance_where_nothing_would_not(strategy):
    plain = Training(feedback=5e-3, sequence_length=64)
    assert worst(replace(plain, **strategy), 500) < 0.5 < 1.5 < worst(plain, 500)


def test_more_auxiliary_loss_is_more_balance_and_its_schedule_is_followed():
    plain = Training(feedback=5e-3, sequence_length=64)
    weak, strong = (worst(replace(plain, auxiliary=((0, amount),)), 400) for amount in (3e-3, 1e-1))
    assert strong < weak < worst(plain, 400)
    late = replace(plain, auxiliary=((400, 0.0), (401, 0.3)))
    assert worst(late, 400) == worst(plain, 400)
    assert worst(late, 900) < 0.6


def test_the_scope_of_the_loss_matters_to_specialisation():
    # Sequences of one domain each: balance inside every sequence forbids domains their own experts, balance of the batch does not.
    plain = Training(
        feedback=2e-3, domain_feedback=5e-3, domain_start=0.5, stickiness=1.0, sequence_length=64, auxiliary=((0, 0.1),), scores=True
    )
    spread = {}
    for scope in ("sequence", "batch"):
        run = replace(plain, scope=scope).begin(setting())
        layer = run(400).layers[0]
        by_sequence = np.stack([np.bincount(part.ravel(), minlength=8) for part in layer.ids.reshape(-1, 64, 2)])
        spread[scope] = maxvio(by_sequence).mean()
    assert spread["sequence"] < 0.7 * spread["batch"]


def test_l8_any_order_of_steps_and_layers_gives_the_same_routing():
    source = Training(gate=plugin("gate", "loss_free")(rate=1e-2), auxiliary=((0, 0.01),), sequence_length=64)
    forward, jumping = source.begin(setting()), source.begin(setting())
    wanted = {(step, layer): forward(step).layers[layer].ids for step in range(6) for layer in range(2)}
    for step, layer in ((5, 1), (2, 0), (2, 1), (4, 1), (0, 0), (5, 0)):
        assert np.array_equal(jumping(step).layers[layer].ids, wanted[step, layer])


def test_stride_and_first_skip_steps_and_change_nothing():
    source = Training(auxiliary=((0, 0.01),), sequence_length=64)
    every, some = source.begin(setting()), replace(source, first=4, stride=3).begin(setting())
    for simulated, trained in ((0, 4), (1, 7), (2, 10)):
        assert np.array_equal(some(simulated).layers[1].ids, every(trained).layers[1].ids)


def test_a_frozen_gate_keeps_its_bias():
    gate = plugin("gate", "loss_free")(rate=0.05)
    still = Training(gate=gate, freeze_gate_at=3, feedback=5e-3, sequence_length=64)
    moving = replace(still, freeze_gate_at=None)
    assert np.array_equal(still.begin(setting())(3).layers[0].ids, moving.begin(setting())(3).layers[0].ids)
    assert worst(still, 600) > worst(moving, 600)  # feedback goes on, the bias does not


def test_a_shift_changes_the_domains_from_its_step_on():
    shift = Shift(at=5, mixture=(0.0, 1.0))
    source = Training(domains=2, mixture=(1.0, 0.0), shift=shift, domain_start=3.0, feedback=0.0, domain_feedback=0.0, drift=0.0, decay=0.0)
    draw = source.begin(setting())
    before, after = (draw(step).layers[0].counts.sum(axis=0) for step in (4, 5))
    still = replace(source, shift=None).begin(setting())
    assert np.array_equal(before, still(4).layers[0].counts.sum(axis=0))
    assert not np.array_equal(after, still(5).layers[0].counts.sum(axis=0))
    # Two domains with offsets of deviation 3 have different favourites.
    assert np.corrcoef(before, after)[0, 1] < 0.9


def test_capacity_limits_what_experts_learn_from_if_they_learn_from_what_is_kept():
    plain = Training(feedback=5e-3, sequence_length=64)
    limited = replace(plain, capacity=plugin("capacity", "megatron")(factor=1.0))
    assert worst(limited, 400) == worst(plain, 400)
    assert worst(replace(limited, learn_from="kept"), 400) < worst(plain, 400)


def test_a_z_loss_that_moves_all_offsets_at_once_hardly_changes_choices():
    # The common part of its gradient lowers all logits until the sum of their exponentials is near 1; then little is left to do.
    slow = Training(z=((0, 0.05),), gain=1.0, sequence_length=64)
    fast, plain = replace(slow, common=30.0), replace(slow, z=((0, 0.0),))
    after = {name: worst(source, 100) for name, source in (("slow", slow), ("fast", fast), ("plain", plain))}
    assert abs(after["fast"] - after["plain"]) < 0.3 * abs(after["slow"] - after["plain"])


def test_the_probabilities_of_the_loss_are_those_of_the_frameworks():
    logits = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
    np.testing.assert_allclose(probabilities(logits, "softmax"), np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True), rtol=1e-6)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([], "the list is empty"),
        ([[0, 1], 2], "is no corner"),
        ([[5, 1], [5, 2]], "does not come after"),
        (-1, "too small"),
        ([[0, float("nan")]], "not a finite number"),
    ],
)
def test_coefficients_that_make_no_sense_are_refused(value, message):
    with pytest.raises(ValueError, match=message):
        OverSteps().parse(value)


def test_coefficients_are_straight_between_corners_and_round_trip():
    marker = OverSteps()
    corners = marker.parse([[10, 0.0], [20, 1.0]])
    assert [at_step(corners, step) for step in (0, 10, 15, 20, 99)] == [0.0, 0.0, 0.5, 1.0, 1.0]
    assert marker.parse(marker.text(corners)) == corners
    assert marker.text(marker.parse(0.5)) == 0.5


def test_bad_fields_are_named():
    with pytest.raises(FieldError, match="3 weights for 2 domains"):
        Training(domains=2, mixture=(1.0, 1.0, 1.0))
    with pytest.raises(FieldError, match="all weights of the mixture are 0"):
        Training(domains=2, shift=Shift(at=1, mixture=(0.0, 0.0)))
    with pytest.raises(PluginError, match="as_given"):
        Training(gate=plugin("gate", "as_given")()).begin(setting())


def test_a_rate_that_changes_over_the_steps():
    # Biases move at 0.05 until step 20 and not at all from 21 on: as if the gate were frozen there.
    gate = plugin("gate", "loss_free")
    changing = Training(gate=gate(rate=((0, 0.05), (20, 0.05), (21, 0.0))), feedback=5e-3, sequence_length=64)
    frozen = replace(changing, gate=gate(rate=0.05), freeze_gate_at=21)
    still = replace(frozen, freeze_gate_at=None)
    drawn = {name: source.begin(setting())(60).layers[0].ids for name, source in (("rate", changing), ("frozen", frozen), ("on", still))}
    assert np.array_equal(drawn["rate"], drawn["frozen"])
    assert not np.array_equal(drawn["rate"], drawn["on"])


@pytest.mark.parametrize(("kind", "name"), [("noisy_topk", "amount"), ("input_jitter", "epsilon")])
def test_noise_that_fades_is_gone_at_its_last_corner(kind, name):
    source = Training(gate=plugin("gate", kind)(**{name: ((0, 8.0), (4, 0.0))}), sequence_length=64)
    fading, clean = source.begin(setting()), replace(source, gate=plugin("gate", "topk")()).begin(setting())
    # Noise does not move the tokens of a step, only choices; what was learned from them differs, but by step 4 that is little.
    same = [float((fading(step).layers[0].ids == clean(step).layers[0].ids).mean()) for step in (0, 4)]
    assert same[0] < 0.5
    assert same[1] > 0.9


def test_a_capacity_factor_that_changes_over_the_steps():
    rule = plugin("capacity", "scheduled")(of=plugin("capacity", "megatron")(factor=9.0), factor=((0, 4.0), (10, 1.0)), first=2, stride=4)
    where = setting()
    limit, draw = rule.begin(where), Training(feedback=5e-3).begin(where)
    for step, factor in ((0, 3.4), (1, 2.2), (2, 1.0), (9, 1.0)):  # steps 2, 6, 10 and 38 of the schedule
        wanted = plugin("capacity", "megatron")(factor=factor).begin(where)(draw(step).layers[0], step=step, moe_layer=0)
        found = limit(draw(step).layers[0], step=step, moe_layer=0)
        assert found.capacity.tolist() == wanted.capacity.tolist() == [np.ceil(64 * factor)] * 2  # 256 tokens, two choices, eight experts
        assert np.array_equal(found.dropped, wanted.dropped)


@pytest.mark.parametrize(
    "gate",
    [
        plugin("gate", "loss_free")(rate=0.02),
        plugin("gate", "loss_free")(rate=0.02, count="after"),
        plugin("gate", "quantile")(),
        plugin("gate", "zero_computation")(rate=0.02),
    ],
    ids=["bias", "bias after drops", "quantiles", "zero-computation experts"],
)
def test_a_router_that_is_served_changes_no_more_and_keeps_its_biases(gate):
    source = Training(gate=gate, drive=0.01, sequence_length=64, serve_from=40, scores=True)
    trained, served = replace(source, serve_from=None).begin(setting()), source.begin(setting())
    assert np.array_equal(trained(40).layers[0].ids, served(40).layers[0].ids)  # the router of step 40, biases and all
    later = [served(step).layers[0] for step in (41, 200)]
    assert not np.array_equal(later[0].ids, later[1].ids)  # other tokens
    offsets = [layer.scores.mean(axis=0) for layer in (served(40).layers[0], *later)]
    assert max(float(np.abs(one - offsets[0]).max()) for one in offsets) < 0.4  # means of 512 tokens differ by chance only
    assert float(np.abs(trained(200).layers[0].scores.mean(axis=0) - offsets[0]).max()) > 0.8
    assert np.array_equal(source.begin(setting())(200).layers[0].ids, later[1].ids)  # whichever steps were asked for before
    assert np.array_equal(served(7).layers[0].ids, trained(7).layers[0].ids)  # and back


def test_service_has_no_noise_and_balances_no_more():
    noisy = Training(gate=plugin("gate", "noisy_topk")(amount=5.0), serve_from=3)
    assert np.array_equal(noisy.begin(setting())(3).layers[0].ids, _without(noisy, 3))
    sinkhorn = Training(gate=plugin("gate", "sinkhorn")(), experts_start=1.0, serve_from=3)
    assert worst(replace(sinkhorn, serve_from=None), 3) < 0.5 < worst(sinkhorn, 3)
    # What it is asked about does not change how it was trained: in decode, too, sinkhorn balanced until it was served.
    where = setting()
    decode = replace(where, workload=replace(where.workload, phase="decode"))
    assert np.array_equal(sinkhorn.begin(decode)(2).layers[0].ids, sinkhorn.begin(where)(2).layers[0].ids)


def _without(source, step):
    """Ids of the k largest logits of a step."""
    logits = replace(source, scores=True).begin(setting())(step).layers[0].scores
    return np.argsort(-logits, axis=1, kind="stable")[:, :2]


def test_tokens_know_their_domain():
    layer = Training(domains=3, mixture=(1.0, 0.0, 3.0), stickiness=1.0, sequence_length=32).begin(setting())(0).layers[0]
    assert set(np.unique(layer.domains)) == {0, 2}
    by_domain = layer.routes_of_domains()
    assert np.array_equal(by_domain.sum(axis=0), layer.counts.sum(axis=0))
    assert by_domain[1].sum() == 0
    assert by_domain[0].sum() == 2 * (layer.domains == 0).sum()


def test_a_gate_without_biases_has_none_to_keep():
    with pytest.raises(PluginError, match=r"freeze_gate_at 5: the gate 'topk' has no biases"):
        Training(freeze_gate_at=5).begin(setting())
    with pytest.raises(FieldError, match="'dropless' has no factor"):
        plugin("capacity", "scheduled")(of=plugin("capacity", "dropless")(), factor=((0, 1.0),))


@pytest.mark.parametrize(
    ("changes", "steps", "where"),
    [
        ({"shift": Shift(at=10, mixture=(1.0,) * 4)}, 11, []),
        ({"shift": Shift(at=10, mixture=(1.0,) * 4)}, 10, ["shift.at"]),
        ({"shift": Shift(at=100, mixture=(1.0,) * 4), "first": 40, "stride": 20}, 4, []),
        ({"shift": Shift(at=101, mixture=(1.0,) * 4), "first": 40, "stride": 20}, 4, ["shift.at"]),
        ({"shift": Shift(at=40, mixture=(1.0,) * 4), "first": 40}, 9, ["shift.at"]),
        ({"freeze_gate_at": 9, "serve_from": 10}, 10, ["serve_from"]),
        ({"freeze_gate_at": 10, "serve_from": 9}, 10, ["freeze_gate_at"]),
    ],
)
def test_what_the_run_never_reaches_is_refused(changes, steps, where):
    assert [name for name, _ in Training(**changes).outside(steps)] == where


def test_policies_are_told_what_the_source_keeps():
    assert (Training().fidelity, Training(scores=True).fidelity) == (Fidelity.WEIGHTS, Fidelity.SCORES)


def test_noise_goes_with_every_gate_and_is_not_learned_from():
    plain = Training(gate=plugin("gate", "loss_free")(rate=0.02), auxiliary=((0, 0.01),), sequence_length=64, scores=True)
    noisy = replace(plain, noise=((0, 2.0), (3, 2.0), (4, 0.0)))
    drawn = {name: source.begin(setting()) for name, source in (("plain", plain), ("noisy", noisy))}
    first = {name: draw(0).layers[0] for name, draw in drawn.items()}
    assert np.array_equal(first["plain"].scores, first["noisy"].scores)  # what losses are taken of
    assert (first["plain"].ids != first["noisy"].ids).mean() > 0.5
    still = drawn["noisy"](4).layers[0]  # biases apart, choices follow the scores again
    assert still.weights is not None
    assert np.array_equal(replace(noisy, serve_from=0).begin(setting())(0).layers[0].ids, first["plain"].ids)  # no noise in service
    # Noise alone makes loads more even.
    skewed = Training(experts_start=1.0, feedback=0.0, domain_feedback=0.0)
    assert worst(replace(skewed, noise=((0, 5.0),)), 0) < 0.5 * worst(skewed, 0)
