"""The gradients that move a simulated router are those that PyTorch finds by itself for the losses of the recorded trainings."""

from __future__ import annotations

import numpy as np
import pytest

from moesim.models.router.dynamics import RouterState, advance
from moesim.models.router.law import Law

torch = pytest.importorskip("torch", reason="measuring needs PyTorch: pip install 'moesim[measure]'")

from moesim.lab.training_model import losses  # noqa: E402
from moesim.lab.training_strategy import Strategy  # noqa: E402

TOKENS, EXPERTS, TOP_K, DOMAINS = 24, 6, 2, 3


@pytest.mark.parametrize("blocks", [1, 2, 6], ids=["batch", "micro-batch", "sequence"])
@pytest.mark.parametrize("scoring", ["softmax", "sigmoid"])
@pytest.mark.parametrize(("aux", "z"), [(0.3, 0.0), (0.0, 0.2), (0.3, 0.2)])
def test_a_step_goes_down_the_gradient_of_autograd(blocks, scoring, aux, z):
    rng = np.random.default_rng(blocks)
    logits = (2 * rng.standard_normal((TOKENS, EXPERTS))).astype(np.float32)
    domain = rng.integers(DOMAINS, size=TOKENS)
    # A tensor for the offsets of every domain, added to the logits as in a router: its gradient is what moves them.
    offsets = torch.zeros((DOMAINS, EXPERTS), requires_grad=True)
    seen = torch.from_numpy(logits) + offsets[torch.from_numpy(domain)]
    losses(seen, Strategy(aux=aux, z=z, scoring=scoring), TOP_K, blocks).backward()
    wanted = offsets.grad.numpy()

    state = RouterState(offsets=np.zeros(EXPERTS), domains=np.zeros((DOMAINS, EXPERTS)))
    best = np.argsort(-logits, axis=1, kind="stable")[:, :TOP_K]
    advance(
        state,
        Law(feedback=0.0, domain_feedback=0.0, gain=2.0, common=1.0, decay=0.0, drift=0.0),
        logits=logits,
        domain=domain,
        chosen=best,
        counted=np.full(EXPERTS, 8),
        group=np.arange(TOKENS) // (TOKENS // blocks),
        top_k=TOP_K,
        balance=aux,
        z=z,
        scoring=scoring,
        walk=np.zeros((1 + DOMAINS, EXPERTS)),
    )
    np.testing.assert_allclose(state.domains, -2.0 * wanted, rtol=2e-4, atol=2e-7)
    np.testing.assert_allclose(state.offsets, -2.0 * wanted.sum(axis=0), rtol=2e-4, atol=2e-7)
