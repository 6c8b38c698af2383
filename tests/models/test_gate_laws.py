"""Laws that every gate keeps, and those that only some do."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from routings import world

from moesim.base.registry import plugin
from moesim.facts.contracts import Learn
from moesim.facts.routing import LayerRouting
from moesim.models.capacity.megatron import Megatron
from moesim.models.gate.auction import balanced_assignment
from moesim.models.gate.losses import layer_losses
from moesim.models.gate.sinkhorn import balanced_plan
from moesim.testing.routing import check_ids

ONE_CHOICE = {"base"}
TWO_CHOICES = {"deepspeed_top2", "gshard_top2"}
GATES = {
    "base": {},
    "deepspeed_top2": {},
    "expert_choice": {"factor": 1.5},
    "group_limited": {"groups": 4, "top_groups": 3},
    "gshard_top2": {},
    "hash": {"words": "zipf", "vocabulary": 40},
    "input_jitter": {"epsilon": 0.3},
    "loss_free": {"rate": 0.1},
    "noisy_topk": {"amount": 1.0},
    "quantile": {},
    "sinkhorn": {},
    "top_p": {},
    "topk": {},
    "zero_computation": {"rate": 0.3},
}
REMEMBER = ("loss_free", "quantile", "zero_computation")
EXPERTS, TOKENS = 8, 16


def start(kind, *, top_k=2, **sizes):
    sizes = {"gpus": 2, "experts": EXPERTS, "top_k": 1 if kind in ONE_CHOICE else top_k, "tokens_per_gpu": TOKENS} | sizes
    return plugin("gate", kind)(**GATES[kind]).begin(world(**sizes))


def logits_of(seed, *, tokens=2 * TOKENS):
    """Skewed logits with ties: halves of whole numbers."""
    rng = np.random.default_rng(seed)
    return (np.round(2 * (rng.standard_normal((tokens, EXPERTS)) + rng.laplace(size=EXPERTS))) / 2).astype(np.float32)


def scored(logits, first=None):
    """Logits of two GPUs; the first has ``first`` of the tokens."""
    middle = len(logits) // 2 if first is None else first
    return LayerRouting.of_tokens(np.zeros((len(logits), 1), dtype=int), [0, middle, len(logits)], EXPERTS, scores=logits)


@given(kind=st.sampled_from(sorted(GATES)), seed=st.integers(0, 2**32 - 1), first=st.integers(0, 20), rest=st.integers(0, 20))
@settings(max_examples=100, deadline=None)
def test_l1_a_gate_counts_the_choices_that_it_makes(kind, seed, first, rest):
    routing = start(kind)(scored(logits_of(seed, tokens=first + rest), first), step=0, moe_layer=0)
    check_ids(kind, routing)  # distinct, in range, counted, with weights of at least 0
    assert routing.token_start.tolist() == [0, first, first + rest]
    assert not routing.weights[routing.ids < 0].any()
    chosen = (routing.ids >= 0).sum(axis=1)
    assert routing.routes == chosen.sum()
    if kind not in {"expert_choice", "gshard_top2", "top_p", "zero_computation"}:
        assert (chosen == routing.ids.shape[1]).all()


@given(kind=st.sampled_from(sorted(GATES)), seed=st.integers(0, 2**32 - 1), factor=st.sampled_from([0.5, 1.0, 2.0]))
@settings(max_examples=50, deadline=None)
def test_l1_what_a_gate_chose_is_kept_or_dropped(kind, seed, factor):
    routing = start(kind)(scored(logits_of(seed)), step=0, moe_layer=0)
    kept = Megatron(factor=factor).begin(world(gpus=2, experts=EXPERTS))(routing, step=0, moe_layer=0)
    np.testing.assert_array_equal(kept.routing.counts + kept.dropped, routing.counts)
    lost = (routing.ids >= 0).any(axis=1) & ~(kept.routing.ids >= 0).any(axis=1)
    assert kept.fully_dropped == lost.sum()  # a token that chose no expert has lost nothing


@given(kind=st.sampled_from(sorted(GATES)), seed=st.integers(0, 2**32 - 1), step=st.integers(0, 5), layer=st.integers(0, 1))
@settings(max_examples=50, deadline=None)
def test_l8_a_gate_draws_by_seed_step_and_layer_alone(kind, seed, step, layer):
    routing = scored(logits_of(seed))
    one, other = start(kind, seed=7), start(kind, seed=7)
    other(scored(logits_of(seed + 1)), step=step, moe_layer=1 - layer)  # another layer before: nobody's business
    first, second = one(routing, step=step, moe_layer=layer), other(routing, step=step, moe_layer=layer)
    np.testing.assert_array_equal(first.ids, second.ids)
    np.testing.assert_array_equal(first.weights, second.weights)


@given(kind=st.sampled_from(sorted(GATES)), seed=st.integers(0, 2**32 - 1))
@settings(max_examples=50, deadline=None)
def test_l9_a_gate_leaves_the_tokens_as_the_source_drew_them(kind, seed):
    routing = scored(logits_of(seed))
    before = np.array(routing.scores)
    answer = start(kind)(routing, step=0, moe_layer=0)
    np.testing.assert_array_equal(routing.scores, before)
    np.testing.assert_array_equal(answer.scores, before)


@given(kind=st.sampled_from(sorted(GATES)), seed=st.integers(0, 2**32 - 1), now=st.integers(0, 4))
@settings(max_examples=60, deadline=None)
def test_l12_a_gate_does_not_know_later_steps(kind, seed, now):
    # Two histories that part after step ``now``: choices up to and in that step are the same.
    one, other = start(kind), start(kind)
    for step in range(5):
        same = logits_of(seed + step)
        first = one(scored(same), step=step, moe_layer=0)
        second = other(scored(same if step <= now else logits_of(seed + 100 + step)), step=step, moe_layer=0)
        if step <= now:
            np.testing.assert_array_equal(first.ids, second.ids)


@pytest.mark.parametrize("kind", REMEMBER)
def test_l12_a_gate_that_remembers_uses_the_past_and_not_the_present_step(kind):
    routing, quiet = scored(logits_of(3)), scored(logits_of(4) / 10)
    fresh, taught = start(kind), start(kind)
    once = taught(routing, step=0, moe_layer=0)
    np.testing.assert_array_equal(once.ids, fresh(routing, step=0, moe_layer=0).ids)  # a step has no effect on itself
    np.testing.assert_array_equal(taught(routing, step=0, moe_layer=0).ids, once.ids)
    untaught = start(kind)(quiet, step=1, moe_layer=0)
    assert (taught(quiet, step=1, moe_layer=0).ids != untaught.ids).any()


@given(seed=st.integers(0, 2**32 - 1), cut=st.integers(1, 4))
@settings(max_examples=25, deadline=None)
def test_l12_what_was_dropped_counts_from_the_next_step_on(seed, cut):
    # Two runs are told of different drops in step ``cut``: they agree up to and in that step.
    setting = world(gpus=2, experts=EXPERTS)
    runs = [plugin("gate", "loss_free")(rate=0.2, count="after").begin(setting) for _ in range(2)]
    assert all(isinstance(run, Learn) for run in runs)
    for step in range(cut + 1):
        answers = [run(scored(logits_of(seed + step)), step=step, moe_layer=0) for run in runs]
        np.testing.assert_array_equal(answers[0].ids, answers[1].ids)
        for number, (run, answer) in enumerate(zip(runs, answers, strict=True)):
            factor = 0.5 if number and step == cut else 1.0
            run.learn(Megatron(factor=factor).begin(setting)(answer, step=step, moe_layer=0), step=step, moe_layer=0)


@given(seed=st.integers(0, 2**32 - 1), tokens=st.integers(1, 40), experts=st.integers(1, 6))
@settings(max_examples=50, deadline=None)
def test_a_balanced_assignment_is_balanced_and_near_the_best(seed, tokens, experts):
    from scipy.optimize import linear_sum_assignment

    scores = np.random.default_rng(seed).standard_normal((tokens, experts))
    found = balanced_assignment(scores)
    places = -(-tokens // experts)
    assert np.bincount(found, minlength=experts).max() <= places
    rows, columns = linear_sum_assignment(np.repeat(scores, places, axis=1), maximize=True)
    best = scores[rows, columns // places].sum()
    assert scores[np.arange(tokens), found].sum() >= best - tokens * np.ptp(scores) / 20_000 - 1e-9


@given(seed=st.integers(0, 2**32 - 1), tokens=st.integers(1, 40))
@settings(max_examples=50, deadline=None)
def test_a_sinkhorn_plan_has_equal_rows_and_columns(seed, tokens):
    plan = balanced_plan(logits_of(seed, tokens=tokens), 1e-6, 10_000)
    np.testing.assert_allclose(plan.sum(axis=1), 1 / tokens, rtol=1e-3)
    np.testing.assert_allclose(plan.sum(axis=0), 1 / EXPERTS, rtol=1e-3)


@given(seed=st.integers(0, 2**32 - 1), first=st.integers(0, 16), scoring=st.sampled_from(["softmax", "sigmoid", "sqrtsoftplus"]))
@settings(max_examples=50, deadline=None)
def test_losses_of_parts_and_of_the_whole(seed, first, scoring):
    routing = scored(logits_of(seed), first)
    keys = {"scoring": scoring, "top_k": 2}
    whole = layer_losses(routing, sequence_length=2 * TOKENS, ranks=EXPERTS, **keys)
    # A device of one expert is an expert; a GPU with one sequence is a sequence; one GPU with all tokens is the batch.
    assert whole.device == pytest.approx(whole.batch, rel=1e-9)
    assert whole.sequence == pytest.approx(whole.micro_batch, rel=1e-9)
    alone = layer_losses(scored(logits_of(seed), 2 * TOKENS), sequence_length=2 * TOKENS, ranks=1, **keys)
    assert alone.micro_batch == pytest.approx(whole.batch, rel=1e-9)
    assert alone.device == pytest.approx(1.0, rel=1e-6)
    # By hand for each GPU: E times the sum of f P.
    values, weights = [], []
    for begin, end in ((0, first), (first, 2 * TOKENS)):
        if end > begin:
            part = layer_losses(scored(logits_of(seed)[begin:end], end - begin), sequence_length=1000, ranks=1, **keys)
            values.append(part.batch)
            weights.append(end - begin)
    assert whole.micro_batch == pytest.approx(np.average(values, weights=weights), rel=1e-9)


def test_losses_are_one_when_even_and_large_when_not():
    # Token t likes expert t mod 8 by far: all alike. Then all like expert 0: f_0 = 1, P_0 = 1, so the loss is E.
    even = scored(50 * np.eye(EXPERTS, dtype=np.float32)[np.arange(32) % EXPERTS])
    odd = scored(np.tile(50 * np.eye(EXPERTS, dtype=np.float32)[0], (32, 1)))
    keys = {"scoring": "softmax", "top_k": 1, "sequence_length": 8, "ranks": 4}
    for loss in ("micro_batch", "sequence", "batch", "device"):
        assert getattr(layer_losses(even, **keys), loss) == pytest.approx(1.0)
    odd_losses = layer_losses(odd, **keys)
    assert odd_losses.batch == odd_losses.sequence == pytest.approx(EXPERTS)
    assert odd_losses.device == pytest.approx(4.0)  # one of four devices has everything
    assert odd_losses.z == pytest.approx(2500.0)
    # Each sequence has one expert to itself: the batch is even, the sequences are not.
    apart = scored(50 * np.repeat(np.eye(EXPERTS, dtype=np.float32), 4, axis=0))
    losses = layer_losses(apart, **keys | {"sequence_length": 4})
    assert (losses.batch, losses.sequence, losses.micro_batch) == (pytest.approx(1.0), pytest.approx(8.0), pytest.approx(2.0))


def test_no_tokens_have_no_loss():
    losses = layer_losses(scored(np.zeros((0, EXPERTS))), scoring="softmax", top_k=2, sequence_length=4, ranks=2)
    assert np.isnan([losses.micro_batch, losses.sequence, losses.batch, losses.device, losses.z]).all()
    assert np.isnan(layer_losses(scored(logits_of(1)), scoring="softmax", top_k=2, sequence_length=4, ranks=3).device)
