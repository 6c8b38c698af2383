"""Outputs of Megatron-Core, DeepSpeed, Tutel and V-MoE, and measured drop rates of a random router (see tests/golden/README.md)."""

import csv
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from routings import world

from moesim.facts.routing import LayerRouting
from moesim.models.capacity.deepspeed import DeepSpeed
from moesim.models.capacity.megatron import Megatron
from moesim.models.capacity.tutel import Tutel
from moesim.models.capacity.vmoe import VMoe
from moesim.models.gate.deepspeed_top2 import DeepSpeedTop2
from moesim.models.gate.topk import TopK

GOLDEN = Path(__file__).parents[1] / "golden"
RELATIVE = 1e-5


def cases(name, **where):
    every = json.loads((GOLDEN / f"{name}.json").read_text())["cases"]
    return [pytest.param(case, id=case["id"]) for case in every if where.items() <= case["params"].items()]


@pytest.fixture(scope="module")
def arrays():
    def load(name):
        with np.load(GOLDEN / f"{name}.npz") as file:
            return dict(file)

    return {name: load(name) for name in ("megatron_topk_drop", "deepspeed_gating", "tutel_extract_critical", "vmoe_dispatch")}


def unrouted(logits):
    """One source whose gate has not chosen yet."""
    return LayerRouting.of_tokens(np.zeros((len(logits), 1), dtype=int), [0, len(logits)], logits.shape[1], scores=logits)


def dense(routing, values, dtype):
    """Spread [T, k] values to [T, E]."""
    out = np.zeros((routing.tokens, routing.experts), dtype=dtype)
    token, slot = np.nonzero(routing.ids >= 0)
    out[token, routing.ids[token, slot]] = values[token, slot]
    return out


@pytest.mark.parametrize("case", cases("megatron_topk_drop"))
def test_megatron(case, arrays):
    given = {name.split("__")[-1]: array for name, array in arrays["megatron_topk_drop"].items() if name.startswith(case["id"])}
    params = case["params"]
    setting = world(experts=params["num_experts"], top_k=params["topk"])
    gate = TopK(pre_softmax=params.get("use_pre_softmax", False)).begin(setting)
    routing = gate(unrouted(given["logits"]), step=0, moe_layer=0)
    chosen = dense(routing, np.ones_like(routing.ids), bool)
    np.testing.assert_array_equal(chosen, given["routing_map"].astype(bool))
    np.testing.assert_array_equal(routing.counts[0], given["tokens_per_expert"])
    np.testing.assert_allclose(dense(routing, routing.weights, float), given["routing_probs"], rtol=RELATIVE)

    rule = Megatron(factor=params["capacity_factor"], drop=params["drop_policy"], pad_to_capacity=params["pad_to_capacity"])
    kept = rule.begin(setting)(routing, step=0, moe_layer=0)
    assert kept.capacity.tolist() == [params["capacity"]]
    np.testing.assert_array_equal(kept.routing.counts[0] + kept.padding[0], given["kept_per_expert"])
    if not case["tie_sensitive"]:
        final = given["final_map"].astype(bool)
        np.testing.assert_array_equal(dense(kept.routing, np.ones_like(routing.ids), bool), final & chosen)
        np.testing.assert_allclose(dense(kept.routing, kept.routing.weights, float), given["final_probs"], rtol=RELATIVE)
        assert kept.fully_dropped == np.count_nonzero(~(final & chosen).any(axis=1))
    if not params["pad_to_capacity"]:
        assert kept.dropped.sum() == case["dropped_routes"]


class Numbers:
    """A generator whose random numbers are those that the reference used."""

    def __init__(self, arrays):
        self.arrays = arrays

    def random(self, shape, dtype):
        assert self.arrays["draws"].shape == shape
        return self.arrays["draws"].astype(dtype)

    def gumbel(self, size):
        assert self.arrays["gumbel"].shape == size
        return self.arrays["gumbel"]


@pytest.mark.parametrize("case", cases("deepspeed_gating"))
def test_deepspeed(case, arrays):
    given = {name.split("__")[-1]: array for name, array in arrays["deepspeed_gating"].items() if name.startswith(case["id"])}
    params = case["params"]
    numbers = {"gumbel": given.get("gumbel")}
    plain = world(experts=params["num_experts"], top_k=params["topk"])
    setting = SimpleNamespace(model=plain.model, parallel=plain.parallel, rng=lambda *_: Numbers(numbers))
    two = params["function"] == "top2gating"
    gate = DeepSpeedTop2(sample_second=params["top2_2nd_expert_sampling"]) if two else TopK(pre_softmax=True)
    routing = gate.begin(setting)(unrouted(given["logits"]), step=0, moe_layer=0)
    if "used_token" in given:  # tokens that are padding of the batch make no choice
        ids = np.where(given["used_token"][:, None] > 0, routing.ids, -1)
        routing = LayerRouting.of_tokens(ids, routing.token_start, routing.experts, weights=routing.weights)
    np.testing.assert_array_equal(routing.counts[0], given["exp_counts"])

    if "rts_uniform" in given:
        numbers["draws"] = np.take_along_axis(given["rts_uniform"], routing.ids, axis=1)
    rule = DeepSpeed(
        factor=params["capacity_factor"],
        min_capacity=params["min_capacity"],
        drop=params.get("drop_policy", "auto"),
        use_rts=params.get("use_rts", True),
        drop_tokens=params.get("drop_tokens", True),
    )
    kept = rule.begin(setting)(routing, step=0, moe_layer=0)
    assert kept.capacity.tolist() == [params["capacity"]]
    np.testing.assert_array_equal(kept.routing.counts[0], given["kept_per_expert"])
    np.testing.assert_array_equal(kept.padding[0], params["capacity"] - given["kept_per_expert"])
    if not case["tie_sensitive"]:
        mask = dense(kept.routing, np.ones_like(routing.ids), bool)
        np.testing.assert_array_equal(mask, given["kept_TE"].astype(bool))
        np.testing.assert_array_equal(mask, given["slot_TE"] >= 0)
        np.testing.assert_allclose(dense(kept.routing, kept.routing.weights, float), given["combine_TE"], rtol=RELATIVE)


def chosen_by(gates, ids):
    """One source whose gate chose ``ids`` with the softmax probabilities ``gates``."""
    return LayerRouting.of_tokens(ids, [0, len(ids)], gates.shape[1], weights=np.take_along_axis(gates, ids.astype(int), axis=1))


def check_buffers(kept, given, case):
    """Check the capacity, the kept routes in their places, the counts and the padding against a golden case."""
    assert kept.capacity.tolist() == [case["params"]["capacity"]]
    np.testing.assert_array_equal(kept.routing.ids >= 0, given["kept"].astype(bool))
    np.testing.assert_array_equal(kept.routing.counts[0], given["kept_per_expert"])
    np.testing.assert_array_equal(kept.padding[0], case["params"]["capacity"] - given["kept_per_expert"])
    assert kept.dropped.sum() / given["kept"].size == pytest.approx(case["drop_rate"], rel=RELATIVE)


@pytest.mark.parametrize("case", cases("tutel_extract_critical"))
def test_tutel(case, arrays):
    given = {name.split("__")[-1]: array for name, array in arrays["tutel_extract_critical"].items() if name.startswith(case["id"])}
    params = case["params"]
    routing = chosen_by(given["scores"], given["indices"])
    rule = Tutel(
        factor=params["capacity_factor"],
        batch_prioritized_routing=params["batch_prioritized_routing"],
        alignment=params["alignment"],
        normalize_gate=params["normalize_gate"],
    )
    kept = rule.begin(world(experts=params["num_experts"], top_k=routing.ids.shape[1]))(routing, step=0, moe_layer=0)
    check_buffers(kept, given, case)
    np.testing.assert_allclose(kept.routing.weights, np.where(given["kept"] > 0, given["gates"], 0), rtol=RELATIVE)


@pytest.mark.parametrize("case", cases("vmoe_dispatch", kind="token_choice"))
def test_vmoe(case, arrays):
    given = {name.split("__")[-1]: array for name, array in arrays["vmoe_dispatch"].items() if name.startswith(case["id"])}
    params = case["params"]
    routing = chosen_by(given["gates"], given["expert_index"])
    rule = VMoe(factor=params["capacity_factor"], batch_priority=params["batch_priority"], multiple_of=params["multiple_of"] or 0)
    kept = rule.begin(world(experts=params["num_experts"], top_k=params["topk"]))(routing, step=0, moe_layer=0)
    check_buffers(kept, given, case)
    np.testing.assert_allclose(kept.routing.weights, np.where(given["kept"] > 0, given["combine"], 0), rtol=RELATIVE)


@pytest.fixture(scope="module")
def random_router():
    """Routes per expert of the first 1, 2 and 4 choices of 32768 tokens with independent normal logits, over many draws."""
    draws = []
    for seed in range(24):
        logits = np.random.default_rng([2024, seed]).standard_normal((32768, 64), dtype=np.float32)
        routing = TopK().begin(world(experts=64, top_k=4))(unrouted(logits), step=0, moe_layer=0)
        draws.append({k: LayerRouting.of_tokens(routing.ids[:, :k], [0, 32768], 64).counts for k in (1, 2, 4)})
    return draws


def measured_drop_rates():
    with (GOLDEN / "drop_rate_random_router.csv").open() as file:
        rows = list(csv.DictReader(line for line in file if not line.startswith("#")))
    return [pytest.param(row, id=f"k{row['top_k']}-cf{row['capacity_factor']}") for row in rows]


@pytest.mark.parametrize("row", measured_drop_rates())
def test_drop_rate_of_a_random_router(row, random_router):
    # A measured mean over a few batches of 32768 tokens: one batch scatters by about 0.003 at factor 1, hence the mean over draws.
    top_k, factor = int(row["top_k"]), float(row["capacity_factor"])
    tokens, experts = int(row["num_tokens"]), int(row["num_experts"])
    rule = Megatron(factor=factor).begin(world(experts=experts, top_k=top_k))
    rates = []
    for draw in random_router:
        routing = LayerRouting(experts=experts, token_start=[0, tokens], counts=draw[top_k])
        rates.append(rule(routing, step=0, moe_layer=0).dropped.sum() / routing.routes)
    assert abs(np.mean(rates) - float(row["avg_drop_rate"])) < 0.0015
