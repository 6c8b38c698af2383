"""Every GPU gets every token of its group: all-gather out, reduce-scatter back."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated

import numpy as np

from moesim.base.fields import Choice, Flag
from moesim.base.registry import register
from moesim.facts.arrays import Ints
from moesim.facts.routing import Assignment
from moesim.facts.scenario import Setting
from moesim.models.exchange.copies import without_own
from moesim.models.exchange.transport import Carrier, Rows, Stage, Transport, there_and_back


@register("exchange", "allgather")
@dataclass(frozen=True, slots=True, kw_only=True)
class AllGather(Transport):
    """Give every token of a group to all its GPUs, and add the partial results up on the way back, whatever the routing.

    Dispatch is an all-gather: each GPU picks the tokens of its own experts from all tokens of the group. Combine is a reduce-scatter: each
    GPU contributes a partial sum to every token of every other. A row is ``dispatch_width`` elements with their scales and, in dispatch, a
    4-byte index and a 4-byte weight for each of the k choices. Routing decides nothing but who computes; only the tokens of the GPUs
    count, dropped ones as well. Padding rows are made where they are computed, so they are not sent. Backward is the reverse in bf16: the
    gradient of combine is gathered, that of dispatch reduced, with k gradients of gate weights.

    Its bandwidth is the algorithm bandwidth of nccl-tests: the gathered buffer, all tokens of the group, over time.

    Parameters
    ----------
    algorithm : str
        ``direct``: every GPU sends its tokens to every other. ``ring``: in n - 1 steps every GPU passes to the next what it got from the
        one before, its own tokens first; combine goes round the other way.
    pipelined : bool
        The steps of a ring overlap, as rings of chunks do; otherwise each step waits for the one before. ``direct`` has one step.

    Notes
    -----
    Source: vllm-project/vllm, ``vllm/distributed/device_communicators/all2all.py`` (``AgRsAll2AllManager``); NVIDIA/Megatron-LM,
    ``megatron/core/transformer/moe/token_dispatcher.py`` (``MoEAllGatherTokenDispatcher``), which gathers a map of all experts instead of
    k indices and weights.
    """

    algorithm: Annotated[str, Choice(("direct", "ring"))] = "direct"
    pipelined: Flag = True

    def begin(self, setting: Setting) -> Carrier:
        """Return the exchange of one run."""
        price = self.price(setting.model.dispatch_width, choices=setting.model.top_k)
        price = replace(price, counted_dispatch=price.dispatch, counted_gradient=price.gradient_out)
        count = partial(_count, ranks=setting.parallel.ep, ring=self.algorithm == "ring")
        pipelined = self.pipelined and self.algorithm == "ring"
        return Carrier(plan=self, price=price, port=self.port(setting), held_sms=self.held_sms(setting), count=count, pipelined=pipelined)


def _count(assignment: Assignment, *, ranks: int, ring: bool) -> Rows:
    tokens = np.diff(assignment.kept.routing.token_start)
    gathered = np.repeat(tokens.reshape(-1, ranks).sum(axis=1), ranks)
    return there_and_back(ring_steps(tokens, ranks) if ring else (_everybody(tokens, ranks),), gathered)


def ring_steps(tokens: Ints, ranks: int) -> tuple[Stage, ...]:
    """Return the steps of a ring all-gather: in step s, GPU r passes the tokens of the GPU s before it in its group to the next one.

    Parameters
    ----------
    tokens : int[G]
        Of each GPU.
    ranks : int
        Of a group.
    """
    of_group = tokens.reshape(-1, ranks)
    own = np.arange(ranks)
    steps = []
    for step in range(ranks - 1):
        moved = np.zeros((len(of_group), ranks, ranks), dtype=np.int64)
        moved[:, own, (own + 1) % ranks] = of_group[:, (own - step) % ranks]
        steps.append((moved, np.zeros_like(moved)))
    return tuple(steps)


def _everybody(tokens: Ints, ranks: int) -> Stage:
    moved = without_own(np.repeat(tokens, ranks).reshape(-1, ranks, ranks))
    return moved, np.zeros_like(moved)
