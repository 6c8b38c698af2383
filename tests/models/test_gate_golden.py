"""Outputs of Megatron-Core, DeepSpeed, V-MoE, Tutel and fairseq (see tests/golden/README.md), reproduced by gates and losses."""

import json
from pathlib import Path

import numpy as np
import pytest
from routings import world

from moesim.base.loads import maxvio
from moesim.facts.routing import LayerRouting
from moesim.models.gate.auction import balanced_assignment
from moesim.models.gate.base_layer import Base
from moesim.models.gate.expert_choice import ExpertChoice
from moesim.models.gate.group_limited import GroupLimited
from moesim.models.gate.groups import experts_that_count
from moesim.models.gate.loss_free import LossFree
from moesim.models.gate.losses import balance_loss, first_choice_loss, layer_losses, probabilities, z_loss
from moesim.models.gate.quantile import Quantile
from moesim.models.gate.select import largest
from moesim.models.gate.sinkhorn import Sinkhorn, balanced_plan
from moesim.models.gate.topk import TopK

GOLDEN = Path(__file__).parents[1] / "golden"
RELATIVE = 1e-5


def cases(name, *, having=None, without=""):
    """The cases of a set: those with the output ``having``, if it is given, and not with the input ``without``."""
    found = json.loads((GOLDEN / f"{name}.json").read_text())["cases"]
    return [
        pytest.param(case, id=case["id"])
        for case in found
        if (having is None or having in case["outputs"]) and without not in case["inputs"]
    ]


@pytest.fixture(scope="module")
def arrays():
    loaded = {}

    def load(name, case):
        if name not in loaded:
            with np.load(GOLDEN / f"{name}.npz") as file:
                loaded[name] = dict(file)
        return {key.split("__")[-1]: array for key, array in loaded[name].items() if key.startswith(f"{case['id']}__")}

    return load


def unrouted(logits):
    """One source whose gate has not chosen yet."""
    return LayerRouting.of_tokens(np.zeros((len(logits), 1), dtype=int), [0, len(logits)], logits.shape[1], scores=logits)


def dense(routing, values):
    """Spread [T, k] values to [T, E]."""
    out = np.zeros((routing.tokens, routing.experts))
    token, slot = np.nonzero(routing.ids >= 0)
    out[token, routing.ids[token, slot]] = values[token, slot]
    return out


def chosen_map(routing):
    return dense(routing, np.ones(routing.ids.shape)).astype(bool)


@pytest.mark.parametrize("rule", ["top2", "megatron"])
@pytest.mark.parametrize("case", cases("group_limited_routing"))
def test_group_limited(case, rule, arrays):
    given, params = arrays("group_limited_routing", case), case["params"]
    setting = world(experts=params["num_experts"], top_k=params["topk"])
    keys = {
        "groups": params["num_groups"],
        "top_groups": params["group_topk"],
        "group_score": rule,
        "scale": params["route_scale"],
    }
    bias = given.get("expert_bias")
    run = (GroupLimited(**keys) if bias is None else LossFree(**keys)).begin(setting)
    if bias is not None:
        run.memory.vectors[0] = bias
    routing = run(unrouted(given["logits"]), step=0, moe_layer=0)
    reference = {"top2": "dsp", "megatron": "meg"}[rule]
    np.testing.assert_array_equal(chosen_map(routing), given[f"selected_{reference}"].astype(bool))
    np.testing.assert_allclose(dense(routing, routing.weights), given[f"weights_{reference}"], rtol=RELATIVE)
    if rule == "top2":
        np.testing.assert_array_equal(routing.counts[0], given["counts_dsp"])
        groups = routing.ids // (routing.experts // params["num_groups"])
        np.testing.assert_array_equal([len(set(row)) for row in groups.tolist()], given["groups_touched"])
        assert given["groups_touched"].max() <= params["group_topk"]


def test_the_two_group_scores_are_not_the_same_rule(arrays):
    # A test of the cases: where k // M is not 2 the references differ, so a gate with one rule for both would fail above.
    differ = []
    for param in cases("group_limited_routing"):
        case = param.values[0]
        given, params = arrays("group_limited_routing", case), case["params"]
        same = np.array_equal(given["selected_dsp"], given["selected_meg"])
        assert same == (experts_that_count("megatron", params["topk"], params["group_topk"]) == 2)
        differ.append(not same)
    assert any(differ)


@pytest.mark.parametrize("case", cases("megatron_losses"))
def test_losses_of_megatron(case, arrays):
    given, params = arrays("megatron_losses", case), case["params"]
    logits, scoring, top_k = given["logits"], params["score_function"], params["topk"]
    liked = probabilities(logits, scoring)
    np.testing.assert_allclose(liked, given["scores"], rtol=RELATIVE)
    ids = largest(logits, top_k, "test")
    plain = unrouted(logits)
    routing = LayerRouting.of_tokens(ids, plain.token_start, plain.experts, scores=logits)
    np.testing.assert_array_equal(chosen_map(routing), given["routing_map"].astype(bool))
    np.testing.assert_array_equal(routing.counts[0], given["tokens_per_expert"])
    losses = layer_losses(routing, scoring=scoring, top_k=top_k, sequence_length=len(logits), ranks=1)
    for value in (losses.micro_batch, losses.sequence, losses.batch):  # one GPU and one sequence: all the same
        np.testing.assert_allclose(value, given["aux_loss"], rtol=RELATIVE)
    np.testing.assert_allclose(losses.z, given["z_loss"], rtol=RELATIVE)
    assert losses.device == pytest.approx(1.0)
    # Megatron interleaves the sequences of a micro-batch token by token; here a sequence is a run of tokens.
    batch, length = params["batch"], params["seq_len"]
    in_a_row = np.ascontiguousarray(logits.reshape(length, batch, -1).swapaxes(0, 1)).reshape(logits.shape)
    losses = layer_losses(unrouted(in_a_row), scoring=scoring, top_k=top_k, sequence_length=length, ranks=1)
    np.testing.assert_allclose(losses.sequence, given["seq_aux_loss"], rtol=RELATIVE)
    np.testing.assert_allclose(losses.batch, given["aux_loss"], rtol=RELATIVE)


@pytest.mark.parametrize("case", cases("megatron_losses"))
def test_sinkhorn_of_megatron(case, arrays):
    given, params = arrays("megatron_losses", case), case["params"]
    plan = balanced_plan(given["logits"], 1e-4, 1000)
    np.testing.assert_allclose(plan, given["sinkhorn_matrix"], rtol=RELATIVE)
    setting = world(experts=params["num_experts"], top_k=params["topk"])
    routing = Sinkhorn().begin(setting)(unrouted(given["logits"]), step=0, moe_layer=0)
    np.testing.assert_array_equal(routing.counts[0], given["sinkhorn_counts"])


@pytest.mark.parametrize("case", cases("megatron_quantile_balancing"))
def test_quantile_balancing_of_megatron(case, arrays):
    given, params = arrays("megatron_quantile_balancing", case), case["params"]
    setting = world(experts=params["num_experts"], top_k=params["topk"], tokens_per_gpu=params["num_tokens"])
    run = Quantile(scoring="softmax", ema=params["ema"]).begin(setting)  # these cases take the logits as scores
    run.memory.vectors[0] = given["beta"]
    routing = run(unrouted(given["logits"]), step=0, moe_layer=0)
    np.testing.assert_array_equal(np.sort(routing.ids), np.sort(given["indices"]))
    np.testing.assert_array_equal(routing.counts[0], given["counts"])
    np.testing.assert_allclose(run.memory.latest[0][1], given["beta_local"], rtol=RELATIVE, atol=1e-6)
    after = run(unrouted(given["logits"]), step=1, moe_layer=0)
    np.testing.assert_allclose(run.memory.vectors[0], given["beta_next"], rtol=RELATIVE, atol=1e-6)
    # A quantile is the score of some token, which may then like two experts equally: which one a top-k takes is up to its backend.
    best = -np.sort(-(given["logits"] - given["beta_next"]), axis=1)
    undecided = np.count_nonzero(best[:, params["topk"] - 1] == best[:, params["topk"]])
    assert np.abs(after.counts[0] - given["counts_next"]).sum() <= 2 * undecided
    assert undecided <= 2


@pytest.mark.parametrize("centre", [False, True])
@pytest.mark.parametrize("case", cases("lossfree_bias_dynamics"))
def test_loss_free_bias_of_megatron(case, centre, arrays):
    given, params = arrays("lossfree_bias_dynamics", case), case["params"]
    setting = world(experts=params["num_experts"], top_k=params["topk"])
    run = LossFree(rate=params["update_rate"], centre=centre).begin(setting)
    loads = []
    for step, noise in enumerate(given["noise"]):
        loads.append(run(unrouted(noise.astype(np.float32) + given["expert_offset"]), step=step, moe_layer=0).counts[0])
        if not centre:
            bias = run.memory.update(run.memory.vectors[0], loads[-1])
            np.testing.assert_allclose(bias, given["bias_after"][step], rtol=RELATIVE, atol=1e-7)
    # Subtracting the mean of the changes moves all biases together, and so no choice.
    np.testing.assert_array_equal(loads, given["counts"])
    np.testing.assert_allclose([maxvio(load) for load in loads], given["maxvio"], rtol=RELATIVE)
    tail = np.sum(loads[-(len(loads) // 5) :], axis=0)
    assert maxvio(tail) == pytest.approx(case["maxvio_global_tail"], rel=RELATIVE)


@pytest.mark.parametrize("case", cases("base_assignment"))
def test_base_assignment_of_fairseq(case, arrays):
    given, params = arrays("base_assignment", case), case["params"]
    scores, tokens = given["scores"], np.arange(params["num_tokens"])
    experts = balanced_assignment(scores)
    np.testing.assert_array_equal(np.bincount(experts), params["num_tokens"] // params["num_workers"])
    total = scores[tokens, experts].astype(float).sum()
    spread = float(scores.max() - scores.min())
    assert total >= case["total_score"] - 1e-4
    assert total == pytest.approx(case["optimal_score"], abs=len(tokens) * spread / 20_000)
    setting = world(experts=params["num_workers"], top_k=1)
    routing = Base().begin(setting)(unrouted(scores), step=0, moe_layer=0)
    np.testing.assert_array_equal(routing.ids[:, 0], experts)
    serving = Base().begin(world(experts=params["num_workers"], top_k=1, phase="prefill"))(unrouted(scores), step=0, moe_layer=0)
    np.testing.assert_array_equal(serving.ids[:, 0], given["greedy"])
    np.testing.assert_array_equal(serving.counts[0], given["greedy_counts"])


@pytest.mark.parametrize("case", cases("vmoe_dispatch", having="selected_TE"))
def test_expert_choice_of_vmoe(case, arrays):
    given, params = arrays("vmoe_dispatch", case), case["params"]
    gate = ExpertChoice(factor=params["capacity_factor"], multiple_of=params["multiple_of"] or 1)
    routing = gate.begin(world(experts=params["num_experts"]))(unrouted(given["logits"]), step=0, moe_layer=0)
    np.testing.assert_array_equal(chosen_map(routing), given["selected_TE"].astype(bool))
    np.testing.assert_array_equal((routing.ids >= 0).sum(axis=1), given["experts_per_item"])
    np.testing.assert_array_equal(routing.counts[0], params["capacity"])
    np.testing.assert_allclose(dense(routing, routing.weights), given["gates"] * given["selected_TE"], rtol=RELATIVE)
    assert np.mean((routing.ids < 0).all(axis=1)) == pytest.approx(case["unprocessed_fraction"])


@pytest.mark.parametrize("case", cases("vmoe_dispatch", having="expert_index"))
def test_choices_of_vmoe(case, arrays):
    given, params = arrays("vmoe_dispatch", case), case["params"]
    gate = TopK(pre_softmax=True).begin(world(experts=params["num_experts"], top_k=params["topk"]))
    routing = gate(unrouted(given["logits"]), step=0, moe_layer=0)
    np.testing.assert_array_equal(routing.ids, given["expert_index"])
    np.testing.assert_allclose(routing.weights, given["combine"], rtol=RELATIVE)


@pytest.mark.parametrize("case", cases("tutel_extract_critical"))
def test_choices_and_loss_of_tutel(case, arrays):
    given, params = arrays("tutel_extract_critical", case), case["params"]
    top_k = min(params["topk"], params["num_experts"])
    gate = TopK(pre_softmax=True, normalise=top_k > 1).begin(world(experts=params["num_experts"], top_k=top_k))
    routing = gate(unrouted(given["logits"]), step=0, moe_layer=0)
    np.testing.assert_array_equal(routing.ids, given["indices"])
    np.testing.assert_allclose(routing.weights, given["gates"], rtol=RELATIVE)
    np.testing.assert_allclose(first_choice_loss(given["logits"]), given["gshard_loss"], rtol=RELATIVE)


@pytest.mark.parametrize("case", cases("deepspeed_gating", without="used_token"))  # there are no tokens that only fill up a batch here
def test_losses_of_deepspeed(case, arrays):
    given, params = arrays("deepspeed_gating", case), case["params"]
    logits, top_k = given["logits"], params["topk"]
    if params["function"] == "topkgating":
        counts = np.bincount(largest(logits, top_k, "test").ravel(), minlength=logits.shape[1])
        loss = balance_loss(counts / counts.sum(), probabilities(logits, "softmax").mean(axis=0))
    else:
        loss = first_choice_loss(logits)
    np.testing.assert_allclose(loss, given["l_aux"], rtol=RELATIVE)


def test_z_loss_is_of_the_logits_as_they_are():
    # One expert: the logarithm of the sum of exponentials is the logit itself.
    assert z_loss(np.asarray([[3.0], [-1.0]])) == pytest.approx((9 + 1) / 2)
