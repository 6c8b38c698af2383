"""The model that is trained is what it says: its layer, losses, drops and biases are those of references and of moesim's own plug-ins."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moesim.facts.routing import LayerRouting
from moesim.models.capacity.megatron import Megatron
from moesim.models.gate.loss_free import LossFree
from moesim.models.gate.losses import layer_losses

torch = pytest.importorskip("torch", reason="measuring needs PyTorch: pip install 'moesim[measure]'")

from moesim.lab.training_model import LanguageModel, MoeLayer, Size, losses, next_bias, within_capacity  # noqa: E402
from moesim.lab.training_strategy import Strategy, strategy  # noqa: E402

SMALL = Size(layers=2, hidden=8, heads=2, width=8, experts=4, top_k=2, length=4)


def maker(seed=0):
    generator = torch.Generator().manual_seed(seed)

    def make(shape, deviation):
        return (deviation * torch.randn(shape, generator=generator)).requires_grad_()

    return make


def gelu(x):
    return 0.5 * x * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


@pytest.mark.parametrize("words", ["none", "noise=0.7", "bias=0.1", "capacity=0.75", "scoring=sigmoid+capacity=1"])
def test_a_layer_is_that_of_a_loop_over_routes(words):
    plan = strategy(words)
    layer = MoeLayer(SMALL, plan, 2, maker())
    layer.router = (layer.router * 40).detach().requires_grad_()
    if plan.bias:
        layer.bias = torch.tensor([0.4, -0.1, 0.0, -0.3])
    x = torch.randn(8, 8, generator=torch.Generator().manual_seed(1), requires_grad=True)
    noise = torch.randn(8, 4, generator=torch.Generator().manual_seed(2)) if plan.noise else None
    output, routed = layer.forward(x, noise)

    plain, router = x.detach().numpy().astype(float), layer.router.detach().numpy().astype(float)
    logits = plain @ router.T + (0.0 if noise is None else plan.noise * noise.numpy())
    scores = 1 / (1 + np.exp(-logits)) if plan.scoring == "sigmoid" else np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    wanted = np.zeros((8, 8))
    routes = []
    for token in range(8):
        best = np.argsort(-(scores[token] + layer.bias.numpy()))[:2]
        whole = scores[token, best].sum()
        routes += [(token, int(expert), scores[token, expert] / whole) for expert in best]
    room = math.ceil(4 * 2 / 4 * plan.capacity) if plan.capacity else 8
    kept = 0
    for source in range(2):
        for expert in range(4):
            mine = sorted((item for item in routes if item[0] // 4 == source and item[1] == expert), key=lambda item: -item[2])
            for token, which, weight in mine[:room]:
                up, down = (part[which].detach().numpy().astype(float) for part in (layer.up, layer.down))
                wanted[token] += weight * gelu(plain[token] @ up) @ down
                kept += 1
    np.testing.assert_allclose(output.detach().numpy(), wanted, rtol=2e-4, atol=2e-6)
    assert int(routed.kept.sum()) == kept
    output.square().sum().backward()
    assert layer.router.grad.abs().sum() > 0
    assert x.grad.abs().sum() > 0


def test_an_expert_without_tokens_does_no_harm():
    layer = MoeLayer(SMALL, Strategy(), 1, maker())
    layer.router = torch.zeros_like(layer.router).requires_grad_()
    with torch.no_grad():
        layer.router[0] += 1
        layer.router[1] += 1
    output, routed = layer.forward(torch.ones(4, 8), None)
    assert routed.ids.sort(dim=1).values.tolist() == [[0, 1]] * 4
    output.sum().backward()
    assert layer.up.grad[2].abs().sum() == 0 < layer.up.grad[0].abs().sum()


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 9999), rate=st.sampled_from([1e-4, 1e-3, 0.1]))
def test_the_bias_follows_the_rule_of_the_gate_loss_free(seed, rate):
    rng = np.random.default_rng(seed)
    bias, load = rng.normal(size=6).astype(np.float32), rng.integers(0, 5, size=6)
    ours = next_bias(torch.from_numpy(bias), torch.from_numpy(load), rate).numpy()
    assert np.array_equal(ours, LossFree(rate=rate).next_bias(bias, load))


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 9999), factor=st.sampled_from([0.3, 1.0, 1.25, 9.0]), sources=st.sampled_from([1, 2, 4]))
def test_drops_are_those_of_the_capacity_rule_megatron(seed, factor, sources):
    rng = np.random.default_rng(seed)
    ids = np.argsort(rng.random((12, 5)), axis=1)[:, :2]
    weights = rng.random((12, 2)).astype(np.float32).round(1)  # ties
    start = np.arange(sources + 1) * (12 // sources)
    kept = Megatron(factor=factor).apply(LayerRouting.of_tokens(ids, start, 5, weights=weights), top_k=2)
    ours = within_capacity(torch.from_numpy(ids), torch.from_numpy(weights), 5, sources, factor).numpy()
    assert np.array_equal(ours, np.asarray(kept.routing.ids) >= 0)


@pytest.mark.parametrize("scoring", ["softmax", "sigmoid"])
def test_losses_are_those_that_moesim_measures(scoring):
    logits = np.random.default_rng(5).normal(size=(16, 4)).astype(np.float32)
    routing = LayerRouting.of_tokens(np.tile([0, 1], (16, 1)), [0, 8, 16], 4, scores=logits)
    known = layer_losses(routing, scoring=scoring, top_k=2, sequence_length=4, ranks=2)
    for blocks, wanted in ((1, known.batch), (2, known.micro_batch), (4, known.sequence)):
        plan = Strategy(aux=0.5, z=0.25, scoring=scoring)
        assert float(losses(torch.from_numpy(logits), plan, 2, blocks)) == pytest.approx(0.5 * wanted + 0.25 * known.z, rel=1e-5)


def test_no_byte_knows_what_comes_after_it():
    model = LanguageModel(SMALL, Strategy(), 1, torch.Generator().manual_seed(0))
    text = torch.tensor([[1, 2, 3, 4]])
    other = torch.tensor([[1, 2, 9, 4]])
    first, second = (model.forward(item, [None, None])[0].detach() for item in (text, other))
    assert torch.equal(first[:2], second[:2])
    assert not torch.equal(first[2], second[2])
