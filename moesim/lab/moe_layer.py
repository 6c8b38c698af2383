"""One expert-parallel Mixture-of-Experts layer, forward and backward, cut into phases that can be timed.

Forward: gate → capacity, drops and permute → exchange of counts → dispatch → group by expert → experts → ungroup → combine → weighted
sum. Backward goes the same way back. The graph of autograd is cut at both all-to-alls: each side is differentiated by PyTorch, and
gradients of rows travel by the same all-to-all in the other direction. Rank r holds the experts from r · experts / ranks on.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from moesim.lab.alltoall import AllToAll
from moesim.lab.device import Device
from moesim.lab.experts import Weights, feed_forward, grouped_product
from moesim.lab.routing import Gate, by_expert, capacity, choose, keep, weighted_sum

FORWARD = ("gate", "permute", "counts", "dispatch", "group", "experts", "ungroup", "combine", "unpermute")
BACKWARD = (
    "unpermute_backward",
    "combine_backward",
    "ungroup_backward",
    "experts_backward",
    "group_backward",
    "dispatch_backward",
    "gate_backward",
)

Mark = Callable[[], None]


@dataclass(frozen=True, kw_only=True)
class Shape:
    """What a layer is, whatever its weights."""

    experts: int
    top_k: int
    capacity_factor: float | None
    drop: str
    kernel: str


@dataclass(frozen=True, kw_only=True)
class Gradients:
    """Of the layer's input, of the gate's weights as far as this rank's tokens go, and of this rank's experts."""

    x: Any
    gate: Any
    up: Any
    down: Any


@dataclass(kw_only=True)
class Pass:
    """What one forward pass leaves for the backward one and for whoever asks."""

    output: Any
    kept: Any
    dropped: int
    sends: list[int]
    receives: list[int]
    rows_sent: Any
    rows_received: Any
    token_of: Any
    probability: Any
    x: Any
    order: Any
    grouped: Any
    results: Any
    returned: Any


class Layer:
    """A layer as one rank of ``world`` holds it.

    Parameters
    ----------
    shape : Shape
        Number of experts, choices, capacity.
    gate : Gate
        Whole, on this rank's device.
    weights : Weights
        Of this rank's experts.
    exchange : AllToAll
        Moves rows between ranks.
    gather : callable
        int64[n] of every rank → int64[world, n].
    rank, world : int
        Which part this is.
    device : Device
        Where it computes.
    """

    def __init__(
        self,
        shape: Shape,
        gate: Gate,
        weights: Weights,
        *,
        exchange: AllToAll,
        gather: Callable[[Any], Any],
        rank: int,
        world: int,
        device: Device,
    ) -> None:
        self.shape, self.gate, self.weights = shape, gate, weights
        self.exchange, self.gather = exchange, gather
        self.rank, self.world, self.device = rank, world, device
        self.local = shape.experts // world

    def forward(self, x: Any, mark: Mark = lambda: None) -> Pass:
        """Run the layer.

        Parameters
        ----------
        x : tensor [tokens, hidden]
            This rank's tokens; with ``requires_grad`` for a backward pass.
        mark : callable
            Called when a phase of :data:`FORWARD` has ended.
        """
        shape, tokens = self.shape, x.shape[0]
        probability, experts_of = choose(x, self.gate, shape.top_k)
        mark()
        limit = capacity(tokens, shape.top_k, shape.experts, shape.capacity_factor)
        routes = keep(experts_of, probability, shape.experts, limit, shape.drop)
        kept = torch.bincount(experts_of.reshape(-1)[routes], minlength=shape.experts)
        token_of = routes // shape.top_k
        rows = x.detach().index_select(0, token_of)
        mark()
        counts = self.gather(kept).view(self.world, self.world, self.local)
        sends = counts[self.rank].sum(1).tolist()
        mine = counts[:, self.rank].contiguous()
        receives = mine.sum(1).tolist()
        per_expert = mine.sum(0).tolist()
        mark()
        received = rows.new_empty(sum(receives), rows.shape[1])
        self.exchange(rows, received, sends, receives)
        mark()
        order = by_expert(mine)
        grouped = received.index_select(0, order).requires_grad_(x.requires_grad)
        mark()
        results = feed_forward(grouped, self.weights, grouped_product(shape.kernel, per_expert, self.device))
        mark()
        ready = torch.empty_like(received).index_copy_(0, order, results.detach().to(received.dtype))
        mark()
        returned = torch.empty_like(rows)
        self.exchange(ready, returned, receives, sends)
        returned.requires_grad_(x.requires_grad)
        mark()
        chosen = probability.reshape(-1)[routes]
        output = weighted_sum(returned, chosen, token_of, tokens)
        mark()
        return Pass(
            output=output,
            kept=kept,
            dropped=int(experts_of.numel() - routes.numel()),
            sends=sends,
            receives=receives,
            rows_sent=rows,
            rows_received=received,
            token_of=token_of,
            probability=chosen,
            x=x,
            order=order,
            grouped=grouped,
            results=results,
            returned=returned,
        )

    def backward(self, done: Pass, gradient: Any, mark: Mark = lambda: None) -> Gradients:
        """Return the gradients of a forward pass.

        Parameters
        ----------
        done : Pass
            Of an ``x`` that requires gradients; used once.
        gradient : tensor [tokens, hidden]
            Of the output.
        mark : callable
            Called when a phase of :data:`BACKWARD` has ended.
        """
        of_returned, of_probability = torch.autograd.grad(done.output, (done.returned, done.probability), gradient, retain_graph=True)
        mark()
        of_ready = torch.empty_like(done.rows_received)
        self.exchange(of_returned.contiguous(), of_ready, done.sends, done.receives)
        mark()
        of_results = of_ready.index_select(0, done.order)
        mark()
        # Experts without rows have gradients of zero.
        of_grouped, of_up, of_down = torch.autograd.grad(
            done.results, (done.grouped, *self.weights.parameters), of_results.to(done.results.dtype), materialize_grads=True
        )
        mark()
        of_received = torch.empty_like(done.rows_received).index_copy_(0, done.order, of_grouped)
        mark()
        of_rows = torch.empty_like(done.rows_sent)
        self.exchange(of_received, of_rows, done.receives, done.sends)
        mark()
        # Two ways lead to a token: the rows that were sent, and the gate.
        of_x, of_gate = torch.autograd.grad(done.probability, (done.x, self.gate.weight), of_probability)
        of_x = of_x.index_add(0, done.token_of, of_rows)
        mark()
        return Gradients(x=of_x, gate=of_gate, up=of_up, down=of_down)
