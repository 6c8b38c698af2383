"""Ranks with unequal tokens and contexts: times by hand, waiting, padding, dummies, memory; and what is refused."""

import dataclasses
import re

import numpy as np
import pytest
from examples import examples
from hypothesis import example, given
from hypothesis import strategies as st
from worlds import no_trace, play, small_model

from moesim.base.errors import FieldError, PluginError
from moesim.base.registry import plugin
from moesim.engine.check import check
from moesim.engine.rows import rows_of_steps
from moesim.engine.simulate import simulate
from moesim.facts.gpu import Gpu
from moesim.facts.model import Attention, MoeModel
from moesim.facts.ranks import Ranks, RankStep, divided, shared_out
from moesim.facts.routing import LayerRouting, Routing
from moesim.facts.scenario import Parallel, Policy, Scenario, Setting, Workload
from moesim.study.memory import memory_need

# A GPU that reads 1 GB/s and computes without end, so that every kernel is its bytes: times can be written down.
SLOW = Gpu(name="slow", flops={"bf16": 1e21, "fp8": 1e21}, memory=1e12, memory_bandwidth=1e9, nvlink=1e12, nic=1e12, sms=100)
# One MoE layer: a token reads 10 values of 2 B per layer of each token before it; projections of 1,000 weights.
MODEL = MoeModel(
    name="by hand",
    layers=1,
    moe_layers=(0,),
    hidden=10,
    dispatch_width=10,
    experts=4,
    top_k=1,
    expert_width=5,
    attention=Attention(heads=1, score_width=10.0, projection_parameters=1000, cache_bytes_per_token=20),
)


def scenario(ranks=None, *, tokens=2, phase="decode", context=100, gpus=2, tp=1, steps=1, source="balanced", model=MODEL, **more):
    return Scenario(
        name="ranks",
        seed=3,
        steps=steps,
        model=model,
        cluster=plugin("topology", "one_switch")(gpus=gpus, gpu=SLOW),
        parallel=Parallel(ep=gpus, tp=tp),
        workload=Workload(phase=phase, tokens_per_gpu=tokens, context=context, ranks=ranks),
        routing=plugin("source", source)(),
        compute=plugin("compute", "roofline")(compute_efficiency=1.0, memory_efficiency=1.0, launch=0.0),
        **more,
    )


def attention(result):
    spans = result.tables["timeline"]
    spans = spans.where(spans["phase"] == "attention")
    return spans["end_s"][np.argsort(spans["gpu"])] - spans["start_s"][np.argsort(spans["gpu"])]


def by_hand(tokens, context):
    # Weights 1,000 x 2 B; of a token: residual stream in and out (2 x 10) and queries, keys, values, results (4 x 10), 2 B each; its own
    # keys and values written (20 B) and those of its context read (20 B each).
    return (2000 * (tokens > 0) + tokens * (120 + 20 * (1 + context))) / 1e9


def test_attention_takes_what_its_own_tokens_and_contexts_ask_for():
    result = play(scenario(Ranks(tokens=(3, 1), contexts=(50, 400))))
    # 3 tokens of 50: 2,000 + 3 x 1,140 = 5,420 B; 1 token of 400: 2,000 + 8,140 = 10,140 B: the rank with fewer tokens is the slower.
    assert attention(result).tolist() == pytest.approx([5.42e-6, 10.14e-6])
    assert attention(result).tolist() == pytest.approx([by_hand(3, 50), by_hand(1, 400)])


def test_the_faster_rank_waits_for_the_slower_one():
    result = play(scenario(Ranks(tokens=(3, 1), contexts=(50, 400))))
    spans = result.tables["timeline"]
    of = {name: spans.where(spans["phase"] == name) for name in ("gate", "dispatch")}
    gate = of["gate"]["end_s"] - of["gate"]["start_s"]
    # The router: 10 x 4 weights of 2 B, and of a token 10 values of 2 B and 4 scores of 4 B in and out.
    assert sorted(gate) == pytest.approx([(80 + 52) / 1e9, (80 + 3 * 52) / 1e9])
    late = by_hand(1, 400) - by_hand(3, 50) + (52 - 3 * 52) / 1e9
    waited = dict(zip(of["dispatch"]["gpu"].tolist(), of["dispatch"]["waiting_s"].tolist(), strict=True))
    assert waited[0] == pytest.approx(late)
    # Of the two GPUs one waits: the mean is half of it.
    assert result.metrics["unequal_ranks_time"].value == pytest.approx(late / 2)


def test_equal_ranks_wait_for_nobody_and_change_nothing():
    plain = play(scenario(tokens=8))
    equal = play(scenario(Ranks(), tokens=8))
    assert equal.metrics["unequal_ranks_time"].value == 0
    assert plain.metrics["step_time"].value == equal.metrics["step_time"].value
    assert plain.metrics["unequal_ranks_time"].value == 0


def test_hot_experts_make_nobody_wait_for_a_rank():
    hot = dataclasses.replace(scenario(tokens=64), routing=plugin("source", "imbalance")(workload="W2_hot_rank", heat=50.0))
    result = play(hot)
    assert result.metrics["rank_max_over_mean"].value > 1.5
    assert result.metrics["unequal_ranks_time"].value == 0


def test_a_rank_without_requests_computes_nothing_and_still_joins_the_exchange():
    result = play(scenario(Ranks(tokens=(4, 0))))
    spans = result.tables["timeline"].where(result.tables["timeline"]["gpu"] == 1)
    assert attention(result).tolist() == pytest.approx([by_hand(4, 100), 0.0])
    assert set(spans["phase"]) >= {"dispatch", "combine"}
    # It computes the experts that it holds for the tokens of the other.
    assert (spans["end_s"] - spans["start_s"])[spans["phase"] == "experts"].sum() > 0


def test_a_dummy_batch_is_computed_and_reads_no_context():
    result = play(scenario(Ranks(tokens=(4, 0), dummy=1)))
    # Weights, and one token's 120 B and its own 20 B of keys and values.
    assert attention(result).tolist() == pytest.approx([by_hand(4, 100), (2000 + 140) / 1e9])
    assert int(result.tables["layers"]["routes"].sum()) == 4  # it is nobody's token
    assert int(result.tables["layers"]["padding"].sum()) == 0


def test_padding_to_the_maximum_adds_rows_but_no_context():
    result = play(scenario(Ranks(tokens=(3, 1), contexts=(50, 400), padding="maximum")))
    # Rank 1 computes 3 tokens: 2 more of 120 + 20 B, and reads the context of its one.
    assert attention(result).tolist() == pytest.approx([by_hand(3, 50), by_hand(1, 400) + 2 * 140 / 1e9])
    assert int(result.tables["steps"]["tokens"][0]) == 4


def test_padded_rows_that_travel_choose_the_first_experts():
    masked, alike = (play(scenario(Ranks(tokens=(3, 1), padding="maximum", padded_rows=rows))) for rows in ("masked", "alike"))
    assert masked.tables["layers"]["padding"].tolist() == [0]
    # Two rows of rank 1 to expert 0, which rank 0 holds: 2 more rows there, and their bytes on the way.
    assert alike.tables["layers"]["padding"].tolist() == [2]
    more = alike.tables["ranks"]["rows"] - masked.tables["ranks"]["rows"]
    assert more.tolist() == [2, 0]
    sent = alike.tables["layers"]["dispatch_bytes"] - masked.tables["layers"]["dispatch_bytes"]
    assert sent.tolist() == [2 * (10 * 2 + 8.0)]  # 10 values of 2 B, gate weight and expert of 4 B each


def test_prefill_shares_reads_between_queries():
    result = play(scenario(Ranks(tokens=(256, 64), contexts=(128, 1280)), tokens=160, phase="prefill"))
    # Blocks of 128 queries read keys and values once: a token pays its context / 128.
    hand = [(2000 + tokens * (120 + 20 * (1 + context / 128))) / 1e9 for tokens, context in ((256, 128), (64, 1280))]
    assert attention(result).tolist() == pytest.approx(hand)


def test_recorded_steps_are_played_in_turn_and_again():
    steps = (RankStep(tokens=(3, 1), contexts=(10, 20)), RankStep(tokens=(0, 4), contexts=(0, 30)))
    result = play(scenario(Ranks(recorded=steps), steps=3))
    spans = result.tables["spans"].where(result.tables["spans"]["phase"] == "attention")
    tokens = [[int(spans["tokens"][(spans["step"] == step) & (spans["gpu"] == gpu)][0]) for gpu in (0, 1)] for step in range(3)]
    assert tokens == [[3, 1], [0, 4], [3, 1]]


def test_a_tensor_parallel_group_is_one_rank():
    model = dataclasses.replace(small_model(4, 1), activation_dtype="bf16")
    result = play(scenario(Ranks(tokens=(6, 2), contexts=(40, 400)), tokens=2, gpus=4, tp=2, model=model))
    spans = result.tables["timeline"]
    spans = spans.where((spans["phase"] == "attention") & (spans["layer"] == 1))
    seconds = (spans["end_s"] - spans["start_s"])[np.argsort(spans["gpu"])]
    assert seconds[0] == seconds[1]
    assert seconds[2] == seconds[3]
    assert seconds[2] > seconds[0]


def test_memory_follows_the_ranks_own_context():
    case = scenario(Ranks(tokens=(3, 1), contexts=(50, 400)))
    result = play(case)
    need = memory_need(case, rows_of_steps(case, read_trace=no_trace))
    # Cache: tokens x context x 20 B: 3,000 and 8,000; the rest of an activation is less than 120 + 80 B a token.
    activations = [gpu.activations.max for gpu in need.gpus]
    assert 3000 < activations[0] < 4000
    assert 8000 < activations[1] < 8400
    assert result.tables["gpus"]["peak_memory_bytes"].tolist() == pytest.approx([gpu.total.max for gpu in need.gpus])


def test_the_balanced_bound_is_of_equal_ranks():
    # 96 tokens read 200 each and 32 read 400: 250 on average.
    result = play(scenario(Ranks(tokens=(96, 32), contexts=(200, 400)), tokens=64))
    equal = play(scenario(tokens=64, context=250))
    assert result.metrics["step_time_if_balanced"].value == pytest.approx(equal.metrics["step_time"].value)
    assert result.metrics["step_time"].value > equal.metrics["step_time"].value


@pytest.mark.parametrize("source", ["uniform", "balanced", "router", "lognormal", "power_law"])
def test_every_source_draws_what_the_ranks_have(source):
    case = scenario(Ranks(variation=0.7, idle=0.25), tokens=40, gpus=4, source=source, steps=3)
    result = play(case)
    spans = result.tables["spans"]
    spans = spans.where(spans["phase"] == "attention")
    tokens = np.array([[spans["tokens"][(spans["step"] == step) & (spans["gpu"] == gpu)][0] for gpu in range(4)] for step in range(3)])
    assert tokens.sum(axis=1).tolist() == [160] * 3
    assert ((tokens == 0).sum(axis=1) == 1).all()
    assert len({tuple(row) for row in tokens.tolist()}) == 3


def test_a_source_of_ones_own_that_knows_nothing_of_ranks_is_told():
    class Deaf:
        kind = "deaf"

        def begin(self, setting):
            starts = np.arange(setting.gpus + 1) * setting.workload.tokens_per_gpu
            layer = LayerRouting.of_tokens(np.zeros((int(starts[-1]), 1), dtype=np.int64), starts, setting.model.experts)
            return lambda step: Routing(layers=[layer])

    case = dataclasses.replace(scenario(Ranks(tokens=(3, 1))), routing=Deaf())
    with pytest.raises(PluginError, match=r"drew 2 tokens on GPU 0, where workload\.ranks says 3.*token_start"):
        simulate(case, read_trace=no_trace)


@pytest.mark.parametrize(
    ("keys", "gpus", "path", "message"),
    [
        ({"tokens": (3, 1, 2)}, 2, "workload.ranks.tokens", "3 ranks are named, but a stage has 2 ranks"),
        ({"tokens": (9, 1)}, 2, "workload.ranks.tokens", "5 tokens per GPU on average.*write tokens_per_gpu: 5"),
        ({"contexts": (9,)}, 2, "workload.ranks.contexts", "1 ranks are named"),
        ({"recorded": (RankStep(tokens=(4, 4)),)}, 2, "workload.ranks.file", "write tokens_per_gpu: 4"),
    ],
)
def test_numbers_of_another_world_are_refused(keys, gpus, path, message):
    (problem,) = check(scenario(Ranks(**keys), gpus=gpus), no_trace)
    assert problem.path == path
    assert re.search(message, problem.message)


@pytest.mark.parametrize(
    ("keys", "field"),
    [
        ({"tokens": (1, 1), "variation": 0.1}, "variation"),
        ({"tokens": (1, 1), "idle": 0.5}, "idle"),
        ({"tokens": (1, 1), "contexts": (1,)}, "contexts"),
        ({"contexts": (1, 1), "context_variation": 0.1}, "context_variation"),
        ({"tokens": (0, 0)}, "tokens"),
        ({"idle": 1.0}, "idle"),
        ({"tokens": (1,), "recorded": (RankStep(tokens=(1,)),)}, "tokens"),
        ({"recorded": (RankStep(tokens=(1,)), RankStep(tokens=(1, 2)))}, "recorded"),
        ({"recorded": (RankStep(tokens=(0,)),)}, "recorded"),
    ],
)
def test_keys_that_contradict_each_other_are_refused(keys, field):
    with pytest.raises(FieldError) as caught:
        Ranks(**keys)
    assert caught.value.field == field


@pytest.mark.parametrize(("source", "keys"), [("imbalance", {"workload": "W4_source_ragged"}), ("training", {})])
def test_sources_with_ranks_of_their_own_refuse_others(source, keys):
    case = dataclasses.replace(scenario(Ranks(variation=0.2)), routing=plugin("source", source)(**keys))
    (problem,) = check(case, no_trace)
    assert problem.path == "routing"
    assert "leave workload.ranks out" in problem.message


@examples(40)
@example(shares=[1e-308], total=2, group=1)
@given(
    shares=st.lists(st.floats(0, 1e6), min_size=1, max_size=40).filter(lambda values: sum(values) > 0),
    total=st.integers(0, 10**6),
    group=st.integers(1, 8),
)
def test_l1_no_token_is_lost_when_they_are_shared_out(shares, total, group):
    whole = shared_out(np.array(shares), total)
    assert whole.sum() == total
    parts = np.array(shares) / max(shares)
    assert (np.abs(whole - parts * (total / parts.sum())) < 1 + 1e-6 * total).all()
    parts = divided(whole, group).reshape(-1, group)
    assert parts.sum(axis=1).tolist() == whole.tolist()
    assert (parts.max(axis=1) - parts.min(axis=1) <= 1).all()


@examples(25)
@given(
    variation=st.floats(0, 10),
    spread=st.floats(0, 10),
    idle=st.floats(0, 0.99),
    tokens=st.integers(1, 64),
    padding=st.sampled_from(["none", "maximum"]),
    rows=st.sampled_from(["masked", "alike"]),
    dummy=st.integers(0, 2),
    phase=st.sampled_from(["decode", "prefill", "training"]),
    kind=st.sampled_from(["sequential", "two_batch"]),
    seed=st.integers(0, 99),
)
def test_l1_any_ranks_play_and_keep_their_tokens(variation, spread, idle, tokens, padding, rows, dummy, phase, kind, seed):
    ranks = Ranks(variation=variation, context_variation=spread, idle=idle, padding=padding, padded_rows=rows, dummy=dummy)
    if kind == "two_batch" and tokens < 2:
        return
    case = scenario(ranks, tokens=tokens, gpus=4, phase=phase, schedule=plugin("schedule", kind)(), source="uniform", policy=Policy())
    result = play(dataclasses.replace(case, seed=seed))
    assert int(result.tables["steps"]["tokens"][0]) == 4 * tokens
    assert int(result.tables["layers"]["routes"][0]) == 4 * tokens * MODEL.top_k
    assert result.metrics["unequal_ranks_time"].value >= 0
    # What is computed is what was kept and what was added.
    assert int(result.tables["ranks"]["rows"].sum()) == int(result.tables["layers"]["kept"][0] + result.tables["layers"]["padding"][0])


def test_contexts_of_many_requests_are_alike():
    # The mean of n independent requests varies by 1 / sqrt(n): 0.5 for one of 0.5, 0.05 for 100.
    ranks = Ranks(context_variation=0.5)
    rng = np.random.default_rng(0)
    few, many = (np.concatenate([ranks.draw_contexts(rng, np.full(50, n), 1000, 0, decode=True) for _ in range(100)]) for n in (1, 100))
    assert few.mean() == pytest.approx(1000, rel=0.03)
    assert few.std() / few.mean() == pytest.approx(0.5, rel=0.06)
    assert many.std() / many.mean() == pytest.approx(0.05, rel=0.06)


def drawn(ranks, steps=4, gpus=8, tokens=20):
    case = scenario(ranks, tokens=tokens, gpus=gpus)
    setting = Setting(
        cluster=case.cluster.build(), model=case.model, parallel=case.parallel, workload=case.workload, seed=5, read_trace=no_trace
    )
    return np.array([setting.tokens_of_gpus(step) for step in range(steps)]), np.array(
        [setting.contexts_of_gpus(step) for step in range(steps)]
    )


def test_what_is_drawn_once_stays_for_the_run():
    tokens, contexts = drawn(Ranks(variation=0.5, context_variation=0.5, redraw="run"))
    assert (tokens == tokens[0]).all()
    assert (contexts == contexts[0]).all()
    tokens, contexts = drawn(Ranks(variation=0.5, context_variation=0.5))
    assert len({tuple(row) for row in tokens.tolist()}) == len({tuple(row) for row in contexts.tolist()}) == 4


def test_tokens_do_not_depend_on_how_contexts_are_drawn():
    plain, _ = drawn(Ranks(variation=0.5))
    spread, _ = drawn(Ranks(variation=0.5, context_variation=3.0))
    assert plain.tolist() == spread.tolist()


def test_idle_ranks_are_rounded_and_never_all():
    for idle, resting in ((0.25, 2), (0.3, 2), (0.99, 7)):
        tokens, _ = drawn(Ranks(idle=idle))
        assert ((tokens == 0).sum(axis=1) == resting).all()
        assert (tokens.sum(axis=1) == 160).all()


def test_tokens_vary_by_what_was_asked():
    tokens, _ = drawn(Ranks(variation=0.5), steps=100, tokens=1000)
    # Scaling to the same sum takes 1 / 8 of the variance of 8 ranks away, less or more: 0.5 x sqrt(7 / 8) = 0.47.
    assert tokens.std() / tokens.mean() == pytest.approx(0.47, rel=0.08)
