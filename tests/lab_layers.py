"""A Mixture-of-Experts layer in one process, written route by route: what expert-parallel ranks must agree with."""

from __future__ import annotations

import numpy as np
import torch

from moesim.models.capacity.megatron import megatron_capacity


def reference(shape, gate, weights, inputs):
    """The same layer in one process, route by route: (outputs, leaves, kept rows of each source and expert)."""
    gate_weight = gate.weight.clone().requires_grad_()
    up, down = weights.up.clone().requires_grad_(), weights.down.clone().requires_grad_()
    leaves = [x.clone().requires_grad_() for x in inputs]
    outputs, kept = [], []
    for x in leaves:
        probability = torch.softmax((x @ gate_weight.T).float() + gate.popularity, -1)
        best = torch.topk(probability, shape.top_k)
        routes = [(token, slot) for token in range(len(x)) for slot in range(shape.top_k)]
        rows = [[] for _ in range(shape.experts)]
        for token, slot in routes:
            rows[int(best.indices[token, slot])].append((token, slot))
        if shape.capacity_factor is not None:
            limit = int(megatron_capacity(np.array([len(x)]), shape.top_k, shape.experts, shape.capacity_factor)[0])
            if shape.drop == "probs":
                # sorted() keeps the order of equals, so of equal probabilities the earlier token survives.
                value = best.values.detach().numpy()
                rows = [sorted(of, key=lambda route, value=value: -value[route]) for of in rows]
            rows = [of[:limit] for of in rows]
        kept.append([len(of) for of in rows])
        output = [torch.zeros(x.shape[1], dtype=x.dtype) for _ in range(len(x))]
        for expert, of in enumerate(rows):
            width = down.shape[2]
            for token, slot in of:
                inner = up[expert] @ x[token]
                made = down[expert] @ (torch.nn.functional.silu(inner[:width]) * inner[width:])
                output[token] = output[token] + best.values[token, slot].to(x.dtype) * made
        outputs.append(torch.stack(output) if output else x.clone())
    return outputs, (leaves, gate_weight, up, down), kept
